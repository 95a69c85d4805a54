// The signals that end a program which has a domain to leave first.
//
// The handler notes which signal came, and starts a timer that from then on interrupts whatever the program waits in, every
// few milliseconds: so a signal that came just before a blocking call ends that call too. Who is interrupted (EINTR, or a
// short count) calls throw_if_stopped().
#pragma once

namespace weir::tool {

/// Thrown when it is time to end.
struct Stopped {
    int signal;
};

/// While it exists, SIGINT, SIGTERM and SIGHUP are noted, but for those that whoever started us had ignored, and writing
/// into a broken pipe fails with EPIPE. One at a time.
class StopSignals {
public:
    StopSignals() noexcept;
    StopSignals(const StopSignals&) = delete;
    StopSignals& operator=(const StopSignals&) = delete;
    ~StopSignals();

    /// Whether whoever started us had SIGPIPE ignored, and so wants an error instead.
    [[nodiscard]] bool ignores_broken_pipes() const noexcept { return ignores_broken_pipes_; }

private:
    bool ignores_broken_pipes_;
};

/// Whether one of the signals came.
[[nodiscard]] bool is_stopped() noexcept;

/// Throws: Stopped, where one of the signals came.
void throw_if_stopped();

/// Ends this process by the signal, so that who started it sees that.
[[noreturn]] void end_by(int signal) noexcept;

} // namespace weir::tool
