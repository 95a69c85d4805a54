// The limits that weir is measured by, by themselves: what the machine and the C library do without it.
#include "harness.hpp"

#include <cstdlib>

namespace {

void measure_ping_pong(bench::Results& results) {
    bench::Trial trial(2);
    trial.run([](bench::Process& me) {
        me.record("pingpong_ns", me.ping_pong());
        me.record("two_lines_ns", me.ping_pong_on_two_lines());
    });
    results = trial.results();
}

void measure_malloc(bench::Results& results) {
    bench::Trial trial(1);
    trial.run([](bench::Process& me) {
        const std::uint64_t count = bench::scaled(5'000'000, 1'000);
        const bench::Stopwatch stopwatch;
        for (std::uint64_t number = 0; number < count; ++number) {
            void* block = std::malloc(64);
            benchmark::DoNotOptimize(block);
            std::free(block);
        }
        me.record("malloc_ns", stopwatch.elapsed_ns() / static_cast<double>(count));
    });
    results = trial.results();
}

/// What a hand-over costs at least when the receiver sleeps.
void measure_futex(bench::Results& results) {
    bench::Trial trial(2);
    trial.run([](bench::Process& me) { me.record("futex_ns", me.futex_ping_pong()); });
    results = trial.results();
}

void measure_clock(bench::Results& results) {
    bench::Trial trial(1);
    trial.run([](bench::Process& me) {
        const std::uint64_t count = bench::scaled(1'000'000, 1'000);
        const bench::Stopwatch stopwatch;
        for (std::uint64_t number = 0; number < count; ++number) {
            std::int64_t now_ns = weir::monotonic_ns();
            benchmark::DoNotOptimize(now_ns);
        }
        me.record("clock_ns", stopwatch.elapsed_ns() / static_cast<double>(count));
    });
    results = trial.results();
}

const bench::Registration ping_pong("limits/ping_pong", "pingpong_ns", measure_ping_pong);
const bench::Registration malloc_free("limits/malloc", "malloc_ns", measure_malloc);
const bench::Registration futex("limits/futex", "futex_ns", measure_futex);
const bench::Registration clock_read("limits/clock", "clock_ns", measure_clock);

} // namespace
