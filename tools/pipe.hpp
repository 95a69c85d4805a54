// What weir send and weir recv have in common: a port that either makes, and how one waits at it and leaves.
//
// NAME stands for the port NAME in a domain of its own, pipe.NAME: so what an interrupted stream left behind goes when its
// last process leaves, whatever other pipes there are. DOMAIN/NAME is a port of any domain, also of other programs. A port's
// senders share buffers of their own: where two pipes follow each other, one must not wait for the other's.
//
// A stream is cut when its sender is killed, is interrupted or fails: receivers must not take that for its end. The port says
// so by itself where the sender dies (StreamEnd::died). So who is interrupted while there are receivers does not leave the
// domain either, but dies as a member; the last receiver removes the names. --keep ends in the same way, after it has
// closed the stream: the names stay until the next one that leaves. For this to be exact, those who leave do so one at a
// time (take_turn()): each then knows whether somebody is left who will remove the names.
#pragma once

#include "meter.hpp"
#include "stop.hpp"

#include <weir/weir.hpp>

#include <string>

namespace CLI {
class App;
} // namespace CLI

namespace weir::tool {

struct PipeOptions {
    std::string port; ///< NAME or DOMAIN/NAME
    std::string user; ///< whose domain: a name or a number; empty: ours
    bool lines = false;
    bool quiet = false;
};

/// The domain of a port that is named without one.
[[nodiscard]] inline std::string pipe_domain(const std::string& port) {
    return "pipe." + port;
}

/// Adds what both verbs are called with but for the port.
void add_pipe_options(CLI::App& app, PipeOptions& options);

/// Thrown when nobody is there any more who wants the data.
struct BrokenPipe {};

class Pipe {
public:
    /// Joins the domain and opens the port; both are made where they are not there.
    /// Throws: UsageError, std::system_error.
    Pipe(const PipeOptions& options, const char* process_name);

    [[nodiscard]] Domain& domain() noexcept { return domain_; }
    [[nodiscard]] const Port& port() const noexcept { return port_; }
    [[nodiscard]] const std::string& port_name() const noexcept { return port_name_; }
    [[nodiscard]] PortView& view() const noexcept { return *port_.view(); }

    /// Waits until `ready(look)` is true, woken by what the other end does.
    /// Throws: Stopped, and what ready() throws.
    template <class Ready>
    void wait(PortEnd end, Meter& meter, const char* waits_for, Ready&& ready) {
        const auto ready_or_stopped = [&](Look look) { return ready(look) || is_stopped(); };
        const auto on_sleep = [&] {
            view().recheck();
            meter.wait(waits_for);
        };
        static_cast<void>(
            wait_until(view().waiting_event(end), WaitOptions{}, deadline_never, ready_or_stopped, on_sleep));
        throw_if_stopped();
    }

    /// Waits until no other process of this pipe is about to leave; from now on none is until this one has left or ended.
    /// It gives up after a while, for somebody may be stopped there.
    void take_turn() noexcept;
    void give_turn_back() noexcept;

private:
    std::string port_name_;
    Domain domain_;
    Port port_;
    bool has_turn_ = false;
};

/// Opens what has a name in a domain, with open(options), and makes it where it is not there. Somebody else may be faster:
/// then that is taken, with whatever options.
template <class Open, class Options>
auto open_or_make(Open&& open, const Options& options) {
    try {
        return open(Options{});
    } catch (const std::system_error& error) {
        if (error.code() != errc::not_found) {
            throw;
        }
    }
    try {
        return open(options);
    } catch (const std::system_error& error) {
        if (error.code() != errc::other_parameters) {
            throw;
        }
    }
    return open(Options{});
}

/// Whether `descriptor` is what somebody types into or reads from, where a line of ours would be in the way.
[[nodiscard]] bool is_terminal(int descriptor) noexcept;

} // namespace weir::tool
