#include "pipe.hpp"

#include "domains.hpp"
#include "usage_error.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string_view>
#include <system_error>
#include <thread>

#include <unistd.h>

namespace weir::tool {

namespace {

/// Room for many lines; streams of chunks run out of buffers before that. Whether receivers that are gone are a broken pipe
/// is the sender's decision.
constexpr PortOptions port_options{.capacity = 1024, .when_unconsumed = WhenUnconsumed::fill};

struct Place {
    std::string domain;
    std::string port;
};

bool is_name(std::string_view text) {
    constexpr std::size_t name_size_max = 58; // 64, less what we put before it
    return !text.empty() && text.size() <= name_size_max && std::ranges::all_of(text, [](char letter) {
        return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') ||
               (letter >= '0' && letter <= '9') || letter == '.' || letter == '_' || letter == '-';
    });
}

Place place_of(const std::string& text) {
    const std::size_t slash = text.find('/');
    Place place = slash == std::string::npos ? Place{pipe_domain(text), text}
                                             : Place{text.substr(0, slash), text.substr(slash + 1)};
    if (!is_name(place.port) || !is_name(slash == std::string::npos ? text : place.domain)) {
        throw UsageError(fmt::format(
            "\"{}\" is no port: write NAME or DOMAIN/NAME, each with 1 to 58 of the characters A-Z a-z 0-9 . _ -",
            text));
    }
    return place;
}

Domain join(const std::string& domain, const PipeOptions& options, const char* process_name) {
    JoinOptions join_options;
    join_options.process_name = process_name;
    if (!options.user.empty()) {
        join_options.user = find_user(options.user);
        if (!join_options.user) {
            throw UsageError(fmt::format("there is no user {}; --user wants a user's name or number", options.user));
        }
    }
    try {
        return Domain::join(domain, join_options);
    } catch (const std::system_error& error) {
        throw std::system_error(error.code(), fmt::format("cannot join domain {}: {}", domain, error.what()));
    }
}

} // namespace

void add_pipe_options(CLI::App& app, PipeOptions& options) {
    app.add_option("--user", options.user, "The domain is this user's, not yours")->type_name("USER");
    app.add_flag("--quiet", options.quiet, "No progress on the terminal");
}

Pipe::Pipe(const PipeOptions& options, const char* process_name)
    : port_name_(place_of(options.port).port), domain_(join(place_of(options.port).domain, options, process_name)),
      port_(open_or_make([this](const PortOptions& given) { return domain_.port(port_name_, given); }, port_options)) {}

void Pipe::take_turn() noexcept {
    using namespace std::chrono_literals;
    constexpr std::int64_t patience_ns = 5'000'000'000;
    try {
        const DeadlineNs deadline_ns = deadline_after(patience_ns);
        while (!has_turn_ && monotonic_ns() < deadline_ns) {
            has_turn_ = domain_.try_claim(port_);
            if (!has_turn_) {
                std::this_thread::sleep_for(1ms);
            }
        }
    } catch (const std::exception&) {
        // No memory for the lock: what it excludes is improbable.
    }
}

void Pipe::give_turn_back() noexcept {
    if (has_turn_) {
        domain_.release_claim(port_);
        has_turn_ = false;
    }
}

bool is_terminal(int descriptor) noexcept {
    return isatty(descriptor) != 0;
}

} // namespace weir::tool
