// The demo's three stages; each runs in a program of its own, which the parent starts and which joins by name.
#pragma once

#include <cstdint>
#include <string>

namespace weir::demo {

enum class Role : std::uint8_t { producer, worker, collector };

/// The hidden verb that starts a stage; its arguments are those below, in their order.
inline constexpr const char* stage_verb = "demo-stage";

struct StageOptions {
    std::string role;         ///< "producer", "worker" or "collector"
    std::uint32_t number = 0; ///< among those of its role
    std::uint32_t life = 0;   ///< how often it had been started before
    std::uint32_t report = 0; ///< where on the board it reports
    std::string domain;
};

[[nodiscard]] const char* name_of(Role role) noexcept;

/// Runs a stage to its end. Returns the exit status; on failure the reason is on the board.
[[nodiscard]] int run_stage(const StageOptions& options);

} // namespace weir::demo
