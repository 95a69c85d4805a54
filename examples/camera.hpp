// What the camera's programs have in common: names and sizes, so that either may come first and make what both use.
#pragma once

#include <weir/weir.hpp>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace camera {

/// A port that is never full: its producers take the oldest frame out themselves, and go on where nobody looks.
inline constexpr weir::PortOptions port_options{
    .capacity = 8, .when_full = weir::WhenFull::drop_oldest, .when_unconsumed = weir::WhenUnconsumed::fill};

/// As many buffers as the port holds, and one for each frame that somebody writes or looks at: a dozen cameras and as many
/// viewers, together.
inline constexpr weir::PoolOptions pool_options{.buffer_bytes = 1 << 18, .buffer_count = 32};

struct Arguments {
    std::string domain = "camera";
    std::uint64_t frame_count = 0; ///< 0: until interrupted
    std::uint64_t frame_bytes = 65'536;
    std::uint64_t rate = 100; ///< frames a second

    Arguments(int count, char** values) {
        for (int place = 1; place < count; place += 2) {
            const std::string name = values[place];
            const std::string value = place + 1 < count ? values[place + 1] : "";
            if (name == "--domain") {
                domain = value;
            } else if (name == "--frames") {
                frame_count = number(name, value, 1'000'000'000'000);
            } else if (name == "--bytes") {
                frame_bytes = number(name, value, pool_options.buffer_bytes);
            } else if (name == "--rate") {
                rate = number(name, value, 1'000'000);
            } else {
                throw std::invalid_argument("usage: " + std::string(values[0]) +
                                            " [--domain NAME] [--frames N] [--bytes N] [--rate N]");
            }
        }
    }

private:
    static std::uint64_t number(const std::string& name, const std::string& value, std::uint64_t max) {
        char* end = nullptr;
        const std::uint64_t result = std::strtoull(value.c_str(), &end, 10);
        if (end == value.c_str() || *end != '\0' || result == 0 || result > max) {
            throw std::invalid_argument(name + " wants a number from 1 to " + std::to_string(max));
        }
        return result;
    }
};

inline volatile std::sig_atomic_t is_interrupted = 0;

/// Ctrl-C ends the program, which then leaves the domain; nothing breaks where it is killed instead.
inline void end_by_signals() {
    struct sigaction action {};
    action.sa_handler = [](int) { is_interrupted = 1; };
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

} // namespace camera
