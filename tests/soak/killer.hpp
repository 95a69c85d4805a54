// The killer: starts lives, stops them, continues them and kills them, at random.
#pragma once

#include "soak.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace soak {

/// What one pipe is for: one life after the other.
struct Seat {
    Role role = Role::producer;
    bool is_steady = false; ///< its lives are stopped, but killed only together with all others
    int diary = -1;         ///< the pipe's end to write to
};

struct KillPlan {
    std::string domain;
    std::uint64_t seed = 0;
    std::uint64_t kill_count = 0;          ///< after that many it ends
    std::int64_t end_ns = 0;               ///< or then
    const volatile int* is_over = nullptr; ///< or when this is set
    std::vector<Seat> seats;
};

/// Kills until it is enough, then asks all who live to leave, and waits for them. False: a life failed.
[[nodiscard]] bool run_killer(const KillPlan& plan);

/// The command line of a life that is executed anew, and what is read from it.
[[nodiscard]] std::vector<std::string> arguments_of(const Life& life);
[[nodiscard]] Life life_of(int argument_count, char** arguments);

} // namespace soak
