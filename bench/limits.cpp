// The limits that weir is measured by, by themselves: what the machine and the C library do without it.
#include "bare_slots.hpp"

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include <sys/syscall.h>
#include <unistd.h>

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

/// One compare-and-swap, on a line that nobody else looks at.
void measure_cas(bench::Results& results) {
    bench::Trial trial(1);
    auto& word = trial.share<std::uint64_t>();
    trial.run([&](bench::Process& me) {
        const std::uint64_t count = bench::scaled(5'000'000, 1'000);
        std::uint64_t expected = 0;
        const bench::Stopwatch stopwatch;
        for (std::uint64_t number = 0; number < count; ++number) {
            bench::require(weir::shared(word).compare_exchange_strong(expected, number + 1, std::memory_order_seq_cst),
                           "changed");
            expected = number + 1;
        }
        me.record("cas_ns", stopwatch.elapsed_ns() / static_cast<double>(count));
    });
    results = trial.results();
}

/// A system call that does nothing, past the C library, which might remember the answer.
void measure_system_call(bench::Results& results) {
    bench::Trial trial(1);
    trial.run([](bench::Process& me) {
        const std::uint64_t count = bench::scaled(1'000'000, 1'000);
        const bench::Stopwatch stopwatch;
        for (std::uint64_t number = 0; number < count; ++number) {
            long parent = syscall(SYS_getppid);
            benchmark::DoNotOptimize(parent);
        }
        me.record("system_call_ns", stopwatch.elapsed_ns() / static_cast<double>(count));
    });
    results = trial.results();
}

/// 64 MiB of shared memory, written, read and copied by one processor, and read by the other one after that. Messages are
/// written and read by the same two functions (size.cpp).
void measure_memory(bench::Results& results) {
    const std::uint64_t bytes = bench::scaled(64 << 20, 1 << 16);
    const std::uint64_t round_count = bench::scaled(4, 1);
    bench::Trial trial(2);
    const std::span<std::byte> source = trial.share_bytes(bytes);
    const std::span<std::byte> target = trial.share_bytes(bytes);
    auto& other_read_ns = trial.share<double>();
    trial.run([&](bench::Process& me) {
        double write_ns = 0, read_ns = 0, copy_ns = 0;
        me.record("pingpong_before_ns", me.ping_pong());
        for (std::uint64_t round = 1; round <= round_count; ++round) {
            if (me.is_first()) {
                const bench::Stopwatch writing;
                bench::write_words(source, round);
                write_ns += writing.elapsed_ns();
                const bench::Stopwatch reading;
                bench::require(bench::all_words_are(source, round), "not what was written");
                read_ns += reading.elapsed_ns();
                const bench::Stopwatch copying;
                std::memcpy(target.data(), source.data(), source.size());
                copy_ns += copying.elapsed_ns();
            }
            me.in_step();
            if (!me.is_first()) {
                const bench::Stopwatch reading;
                bench::require(bench::all_words_are(target, round), "not what was copied");
                other_read_ns += reading.elapsed_ns();
            }
            me.in_step();
        }
        me.record("pingpong_after_ns", me.ping_pong());
        const auto per_byte = [&](double all_ns) { return all_ns / static_cast<double>(round_count * bytes); };
        me.record("byte_written_ns", per_byte(write_ns));
        me.record("byte_read_ns", per_byte(read_ns));
        me.record("byte_copied_ns", per_byte(copy_ns));
        me.record("byte_read_by_other_ns", per_byte(other_read_ns));
    });
    results = trial.results();
}

const bench::Registration ping_pong("limits/ping_pong", "pingpong_ns", measure_ping_pong);
const bench::Registration malloc_free("limits/malloc", "malloc_ns", measure_malloc);
const bench::Registration futex("limits/futex", "futex_ns", measure_futex);
const bench::Registration cas("limits/cas", "cas_ns", measure_cas);
const bench::Registration system_call("limits/system_call", "system_call_ns", measure_system_call);
const bench::Registration memory("limits/memory", "byte_copied_ns", measure_memory);
const bench::Registration clock_read("limits/clock", "clock_ns", measure_clock);

} // namespace
