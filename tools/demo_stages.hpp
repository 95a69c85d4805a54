// The demo's three stages; each runs in a process of its own.
#pragma once

#include "demo_plan.hpp"
#include "demo_shared.hpp"

#include <filesystem>
#include <string>

namespace weir::demo {

/// What a stage is given. A stage that cannot go on writes down why and ends its process.
struct Stage {
    const Plan& plan;
    const SharedMemory& memory;
    const std::filesystem::path& output;
    bool has_kill;
    Membership me;
    ProcessReport& report;
    std::uint32_t number; ///< among those of its kind
};

/// Streams the parts of producer `stage.number` into the first port.
void produce(const Stage& stage);

/// Takes buffers from the first port, writes a checksum into each, and passes them on through the second.
void work(const Stage& stage);

/// Writes what comes out of the second port into the output folder, and compares it with the originals.
void collect(const Stage& stage);

/// Writes down why the process gives up, and ends it.
[[noreturn]] void give_up(ProcessReport& report, const std::string& why) noexcept;

/// For a process whose neighbour is gone: that one says why.
inline constexpr int neighbour_is_gone = 3;

} // namespace weir::demo
