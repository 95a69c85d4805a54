// Who holds a file lock, as far as /proc tells: for people alone, who want to know which process to end.
#pragma once

#include "process_state.hpp"

#include <weir/file.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace weir::tool {

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
