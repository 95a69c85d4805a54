// weir demo: real files through three stages of processes, in buffers that stay where they are.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace weir::demo {

struct DemoOptions {
    std::vector<std::string> files;
    bool kill = false;
    std::optional<std::uint64_t> bytes_max;
    std::string keep;
    std::optional<std::uint32_t> seed;
};

/// Runs the demo and prints what happened. Returns the exit status: 0, or 1 where a byte differs or something broke.
/// Throws: UsageError, std::system_error.
[[nodiscard]] int run_demo(const DemoOptions& options);

} // namespace weir::demo
