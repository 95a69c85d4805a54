// How a process is, as /proc tells.
#pragma once

#include <weir/process.hpp>

#include <cstdint>
#include <optional>
#include <string>

#include <sys/types.h>

namespace weir::tool {

/// A process as /proc shows it.
struct ProcessState {
    pid_t pid = 0;
    std::string name;
    char letter = '?'; ///< of its state: R, S, D, T, t, Z, X
    unsigned thread_count = 1;
    std::uint64_t start_time_ticks = 0;

    [[nodiscard]] bool is_stopped() const noexcept { return letter == 'T' || letter == 't'; }
    /// Only its entry is left. (Where its first thread alone has ended, it goes on.)
    [[nodiscard]] bool is_zombie() const noexcept { return (letter == 'Z' || letter == 'X') && thread_count <= 1; }
};

/// Nothing, where there is no such process in this PID namespace, or /proc does not show it.
[[nodiscard]] std::optional<ProcessState> state_of(pid_t pid);

/// Whether a signal or a debugger has stopped it; false where its number means nothing here, or is another's by now.
[[nodiscard]] bool is_stopped(const ProcessInfo& process);

} // namespace weir::tool
