// weir recv: what comes through a port to the standard output.
//
// Messages are written straight out of the buffers that they came in; small ones several at a time. It ends with the stream:
// when the port's last sender has ended and all is written. Where there was a stream before, it waits for the next one.
//
// How the stream ended is how its last sender did. Of several senders, one that was killed while others went on to their
// ends is not told of.
#include "meter.hpp"
#include "pipe.hpp"
#include "stop.hpp"
#include "verb.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <vector>

#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

namespace weir::tool {

namespace {

// What is written at once: larger batches would keep buffers from the sender.
constexpr std::size_t batch_max = 64;
constexpr std::size_t batch_bytes = 1 << 16;

/// Throws: BrokenPipe, Stopped, std::runtime_error.
void write_all(std::span<iovec> parts) {
    while (!parts.empty()) {
        const ssize_t count = writev(STDOUT_FILENO, parts.data(), static_cast<int>(parts.size()));
        throw_if_stopped();
        if (count < 0) {
            if (errno == EPIPE) {
                throw BrokenPipe();
            }
            if (errno == EAGAIN) { // somebody made it non-blocking
                pollfd wanted{STDOUT_FILENO, POLLOUT, 0};
                poll(&wanted, 1, -1);
            } else if (errno != EINTR) {
                throw std::runtime_error(fmt::format("cannot write to the standard output: {}", std::strerror(errno)));
            }
            continue;
        }
        auto rest = static_cast<std::size_t>(count);
        while (!parts.empty() && rest >= parts.front().iov_len) {
            rest -= parts.front().iov_len;
            parts = parts.subspan(1);
        }
        if (!parts.empty()) {
            parts.front().iov_base = static_cast<std::byte*>(parts.front().iov_base) + rest;
            parts.front().iov_len -= rest;
        }
    }
}

class Receiver {
public:
    explicit Receiver(const PipeOptions& options);
    Receiver(const Receiver&) = delete;
    Receiver& operator=(const Receiver&) = delete;
    ~Receiver() { pipe_.take_turn(); }

    /// Writes all that comes, until the stream is at its end.
    /// Throws: BrokenPipe, Stopped, std::runtime_error.
    [[nodiscard]] StreamEnd run();
    [[nodiscard]] const std::string& port_name() const noexcept { return pipe_.port_name(); }

private:
    [[nodiscard]] StreamEnd wait_for_message(BufferPtr& message);
    void write_batch(BufferPtr first);
    void require_sound() const;

    const PipeOptions& options_;
    Meter meter_;
    Pipe pipe_;
    std::uint32_t changes_before_;
    bool had_sender_; ///< when we came
    Consumer in_;
    std::vector<BufferPtr> batch_;
    std::vector<iovec> parts_;
};

// How senders came and went is looked at before they see us, since one with nothing to send goes as soon as it does.
Receiver::Receiver(const PipeOptions& options)
    : options_(options), meter_(!options.quiet && !is_terminal(STDOUT_FILENO)), pipe_(options, "weir-recv"),
      changes_before_(pipe_.view().changes(PortEnd::producer)),
      had_sender_(pipe_.view().is_attached(PortEnd::producer)), in_(pipe_.port()) {
    batch_.reserve(batch_max);
    parts_.reserve(2 * batch_max);
}

StreamEnd Receiver::run() {
    if (!had_sender_) {
        pipe_.wait(PortEnd::consumer, meter_, "a sender", [this](Look) {
            return pipe_.view().changes(PortEnd::producer) != changes_before_ || in_.has_message();
        });
    }
    for (;;) {
        BufferPtr message;
        StreamEnd end = wait_for_message(message);
        if (end != StreamEnd::open) {
            // Once more when nobody leaves but we: who left something behind with --keep counts on its being received.
            pipe_.take_turn();
            end = in_.stream_end();
            if (end != StreamEnd::open) {
                return end;
            }
            pipe_.give_turn_back();
        } else {
            write_batch(std::move(message));
        }
    }
}

/// Open: there is a message.
StreamEnd Receiver::wait_for_message(BufferPtr& message) {
    StreamEnd end = StreamEnd::open;
    pipe_.wait(PortEnd::consumer, meter_, "the sender", [&](Look look) {
        message = in_.try_pop();
        if (message || in_.last_error()) {
            return true;
        }
        if (look == Look::last) {
            in_.count_wait();
        }
        end = look == Look::quick ? StreamEnd::open : in_.stream_end();
        return end != StreamEnd::open;
    });
    require_sound();
    return end;
}

void Receiver::write_batch(BufferPtr first) {
    static char newline = '\n';
    std::size_t bytes = 0;
    for (BufferPtr message = std::move(first); message; message = in_.try_pop()) {
        const std::span<std::byte> content = message.bytes();
        if (!content.empty()) {
            parts_.push_back({content.data(), content.size()});
        }
        if (options_.lines) {
            parts_.push_back({&newline, 1});
        }
        bytes += content.size() + (options_.lines ? 1 : 0);
        batch_.push_back(std::move(message));
        if (batch_.size() == batch_max || bytes >= batch_bytes) {
            break;
        }
    }
    write_all(parts_);
    parts_.clear();
    batch_.clear();
    meter_.add(bytes);
}

void Receiver::require_sound() const {
    if (in_.last_error()) {
        throw std::system_error(in_.last_error(),
                                fmt::format("cannot pop from port {} ({})", pipe_.port_name(), in_.last_error_field()));
    }
}

int run_recv(const PipeOptions& options) {
    const StopSignals signals;
    int signal = 0;
    try {
        Receiver receiver(options);
        if (receiver.run() == StreamEnd::died) {
            throw std::runtime_error(
                fmt::format("the sender of {} was killed or interrupted, or it failed: what was received is not all",
                            receiver.port_name()));
        }
        // Some file systems say only now that there was no space.
        if (close(STDOUT_FILENO) != 0 && errno != EINTR) {
            throw std::runtime_error(fmt::format("cannot write to the standard output: {}", std::strerror(errno)));
        }
        return exit_fine;
    } catch (const BrokenPipe&) {
        if (signals.ignores_broken_pipes()) {
            throw std::runtime_error("cannot write to the standard output: Broken pipe");
        }
        signal = SIGPIPE;
    } catch (const Stopped& stopped) {
        signal = stopped.signal;
    }
    end_by(signal);
}

} // namespace

Verb add_recv(CLI::App& weir) {
    const auto options = std::make_shared<PipeOptions>();
    CLI::App* app = weir.add_subcommand("recv", "Write what weir send sends to the standard output");
    app->add_option("PORT", options->port, "NAME, or DOMAIN/NAME; whoever comes first makes it")
        ->type_name("")
        ->required();
    app->add_flag("--lines", options->lines, "Write a newline after each message");
    add_pipe_options(*app, *options);
    app->footer("Any number may send and receive; each message goes to one receiver. Waits for a\n"
                "sender. The stream ends when its last sender does.\n\n"
                "Exit status: 0 the stream has ended and all is written; 1 it failed, also where\n"
                "the last sender was killed or interrupted; 2 wrong usage; 141 (SIGPIPE) nobody\n"
                "reads the standard output any more\n\n"
                "Example:\n"
                "  tar c DIR | weir send x        and elsewhere: weir recv x | tar x");
    return {app, [options] { return run_recv(*options); }};
}

} // namespace weir::tool
