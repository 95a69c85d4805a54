// What the copy's programs have in common: names and sizes, so that any of them may come first and make what all use.
//
//     copy_source --read--> copy_worker --worked--> copy_sink
//          ^                                            |
//          +------------------written-------------------+
//
// A chunk of the file is one buffer, and goes round: it is read, worked on in place, written, and comes back to the
// source as the report that it is written. Its tag is its number in the file.
//
// What a killed process had in its hands is gone with it. Its buffers come back too, but by the pool, without a report. So
// when all buffers are back nothing is under way any more, and the source sends again what was not reported. (What is
// written twice is the same in the same place.) Nothing is concluded from time: who is slow, or stopped, is waited for.
//
// The copy is over when the source closes its end of the port "source", which carries nothing else. When the source died
// instead, it is waited for, as all others are.
#pragma once

#include "arguments.hpp"

#include <weir/weir.hpp>

#include <chrono>
#include <cstdint>

namespace copy {

inline constexpr weir::PoolOptions pool_options{.buffer_bytes = 1 << 18, .buffer_count = 32};
inline constexpr std::uint64_t chunk_bytes = pool_options.buffer_bytes;

/// A port has room for all buffers that there are: nobody ever waits for room.
inline constexpr weir::PortOptions port_options{.capacity = 32, .when_unconsumed = weir::WhenUnconsumed::fill};

/// Who is at the other end may be killed, and started again.
[[nodiscard]] inline weir::BindOptions bind_options() {
    return {.port = port_options, .waits_for_producers = true};
}

/// Runs the blocks until the copy is over, or one of them fails.
inline void run_until_over(weir::Scheduler& scheduler, weir::Domain& domain) {
    using namespace std::chrono_literals;
    weir::Consumer source = domain.consumer("source", port_options);
    scheduler.start();
    while (scheduler.is_running() && source.stream_end() != weir::StreamEnd::closed) {
        if (source.wait_for_producer(100ms)) {
            static_cast<void>(source.pop_for(100ms));
        }
    }
    scheduler.drain();
    scheduler.wait();
}

} // namespace copy
