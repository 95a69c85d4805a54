// Who holds a file lock, as far as /proc tells: for people alone, who want to know which process to end.
#pragma once

#include <weir/file.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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

struct LockHolders {
    std::vector<ProcessState> processes;
    unsigned hidden_count = 0; ///< processes that could not be looked at
};

/// Who has a descriptor that holds an open-file-description lock on this byte.
[[nodiscard]] LockHolders holders_of_lock(const FileId& file, std::uint64_t byte);

/// An open-file-description lock, as a line of /proc/<pid>/fdinfo/<number> shows it.
struct ShownLock {
    unsigned device_major = 0;
    unsigned device_minor = 0;
    std::uint64_t inode = 0;
    std::uint64_t first_byte = 0;
    std::uint64_t last_byte = 0;
};

/// Nothing for other lines.
[[nodiscard]] std::optional<ShownLock> parsed_lock(const std::string& line);

} // namespace weir::tool
