// Allocation: on one core beside malloc, with pools small and large, nearly empty and exhausted, and by two at once.
#include "harness.hpp"

#include <array>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

/// Rounds that alternate between what is compared, so that each meets the same weather.
constexpr unsigned slice_count = 20;

// As try_allocate() itself, it is a part of the loop that calls it.
[[gnu::always_inline]] inline weir::BufferPtr allocate(weir::BufferPool& pool) {
    weir::BufferPtr buffer = pool.try_allocate();
    bench::require(static_cast<bool>(buffer), "no buffer, though some are free");
    std::byte* bytes = buffer.bytes().data();
    benchmark::DoNotOptimize(bytes);
    return buffer;
}

/// Allocate and drop, one at a time; ns for both.
double allocate_and_drop(weir::BufferPool& pool, std::uint64_t count) {
    const bench::Stopwatch stopwatch;
    for (std::uint64_t number = 0; number < count; ++number) {
        weir::BufferPtr buffer = allocate(pool);
    }
    return stopwatch.elapsed_ns() / static_cast<double>(count);
}

/// As above, `burst` at a time: allocate all, then drop all, the first one first.
double allocate_and_drop_bursts(weir::BufferPool& pool, std::uint64_t count, std::size_t burst) {
    std::vector<weir::BufferPtr> buffers(burst);
    const std::uint64_t burst_count = (count + burst - 1) / burst;
    const bench::Stopwatch stopwatch;
    for (std::uint64_t number = 0; number < burst_count; ++number) {
        for (weir::BufferPtr& buffer : buffers) {
            buffer = allocate(pool);
        }
        for (weir::BufferPtr& buffer : buffers) {
            buffer.reset();
        }
    }
    return stopwatch.elapsed_ns() / static_cast<double>(burst_count * burst);
}

double malloc_and_free(std::uint64_t count) {
    const bench::Stopwatch stopwatch;
    for (std::uint64_t number = 0; number < count; ++number) {
        void* block = std::malloc(64);
        benchmark::DoNotOptimize(block);
        std::free(block);
    }
    return stopwatch.elapsed_ns() / static_cast<double>(count);
}

void measure_malloc(bench::Results& results) {
    bench::Trial trial(2);
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 256}}, {});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        const std::uint64_t count = bench::scaled(100'000, 100);
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            static_cast<void>(allocate_and_drop(member.pools[0], count));
            static_cast<void>(malloc_and_free(count));
            double weir_ns = 0, malloc_ns = 0, burst_ns = 0;
            for (unsigned slice = 0; slice < slice_count; ++slice) {
                weir_ns += allocate_and_drop(member.pools[0], count);
                malloc_ns += malloc_and_free(count);
                burst_ns += allocate_and_drop_bursts(member.pools[0], count, 32);
            }
            me.record("weir_ns", weir_ns / slice_count);
            me.record("weir_burst_32_ns", burst_ns / slice_count);
            me.record("malloc_ns", malloc_ns / slice_count);
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

/// Takes all buffers of a pool and drops a random choice of them again, in random order: `held_count` stay.
std::vector<weir::BufferPtr> hold_random(weir::BufferPool& pool, std::size_t held_count, std::mt19937& random) {
    std::vector<weir::BufferPtr> held;
    held.reserve(pool.buffer_count());
    for (std::uint32_t number = 0; number < pool.buffer_count(); ++number) {
        held.push_back(allocate(pool));
    }
    std::shuffle(held.begin(), held.end(), random);
    held.resize(held_count);
    return held;
}

/// Allocate and drop in pools of 64 and of 1,048,576 buffers of which 50% and 95% are held. `_burst_3` drops three at a
/// time (no more are free in a pool of 64 at 95%), `_churn` drops a random held one and takes another, which in a large
/// pool measures the memory that holds the headers.
void measure_occupancy(bench::Results& results) {
    struct Setting {
        const char* name;
        std::uint32_t buffer_count;
        unsigned percent;
    };
    const auto large_count = static_cast<std::uint32_t>(bench::scaled(1'048'576, 4'096));
    const std::array<Setting, 4> settings{
        {{"64_at_50", 64, 50}, {"64_at_95", 64, 95}, {"1m_at_50", large_count, 50}, {"1m_at_95", large_count, 95}}};
    bench::Trial trial(2);
    std::vector<weir::BufferPoolOptions> pools;
    std::vector<bench::SharedDomain> domains;
    for (const Setting& setting : settings) {
        domains.emplace_back(
            std::vector<weir::BufferPoolOptions>{{.buffer_bytes = 64, .buffer_count = setting.buffer_count}},
            std::vector<weir::PortOptions>{});
    }
    trial.run([&](bench::Process& me) {
        std::mt19937 random(4711);
        if (me.is_first()) {
            std::vector<bench::SharedDomain::Member> members;
            std::vector<std::vector<weir::BufferPtr>> held;
            for (std::size_t place = 0; place < settings.size(); ++place) {
                members.push_back(domains[place].join());
                // Rounded up: 61 of 64.
                const std::size_t held_count =
                    (std::size_t{settings[place].buffer_count} * settings[place].percent + 99) / 100;
                held.push_back(hold_random(members.back().pools[0], held_count, random));
            }
            me.record("pingpong_before_ns", me.ping_pong());
            const std::uint64_t count = bench::scaled(20'000, 100);
            std::array<double, 4> single_ns{}, burst_ns{}, churn_ns{};
            for (unsigned slice = 0; slice < slice_count; ++slice) {
                for (std::size_t step = 0; step < settings.size(); ++step) {
                    const std::size_t place = (step + slice) % settings.size();
                    weir::BufferPool& pool = members[place].pools[0];
                    static_cast<void>(allocate_and_drop(pool, count / 10));
                    single_ns[place] += allocate_and_drop(pool, count) / slice_count;
                    burst_ns[place] += allocate_and_drop_bursts(pool, count, 3) / slice_count;
                    std::uniform_int_distribution<std::size_t> any(0, held[place].size() - 1);
                    std::vector<std::size_t> places(count / 10);
                    std::generate(places.begin(), places.end(), [&] { return any(random); });
                    const bench::Stopwatch stopwatch;
                    for (const std::size_t number : places) {
                        held[place][number].reset();
                        held[place][number] = allocate(pool);
                    }
                    churn_ns[place] += stopwatch.elapsed_ns() / static_cast<double>(places.size()) / slice_count;
                }
            }
            me.record("pingpong_after_ns", me.ping_pong());
            for (std::size_t place = 0; place < settings.size(); ++place) {
                const std::string name = settings[place].name;
                me.record("allocate_" + name + "_ns", single_ns[place]);
                me.record("allocate_" + name + "_burst_3_ns", burst_ns[place]);
                me.record("allocate_" + name + "_churn_ns", churn_ns[place]);
                held[place].clear();
                members[place].leave();
            }
        } else {
            static_cast<void>(me.ping_pong());
            static_cast<void>(me.ping_pong());
        }
    });
    for (const bench::SharedDomain& domain : domains) {
        domain.require_idle();
    }
    results = trial.results();
}

/// try_allocate() on a pool in which nothing is free: the normal state of a producer that is faster than its consumers.
void measure_exhausted(bench::Results& results) {
    const auto buffer_count = static_cast<std::uint32_t>(bench::scaled(1'048'576, 4'096));
    bench::Trial trial(2);
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = buffer_count}}, {});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        weir::BufferPool& pool = member.pools[0];
        std::vector<weir::BufferPtr> held;
        if (me.is_first()) {
            std::mt19937 random(4711);
            held = hold_random(pool, buffer_count, random);
        }
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            const std::uint64_t count = bench::scaled(20'000, 100);
            std::uint64_t found_count = 0;
            const bench::Stopwatch stopwatch;
            for (std::uint64_t number = 0; number < count; ++number) {
                found_count += pool.try_allocate() ? 1U : 0U;
            }
            me.record("exhausted_ns", stopwatch.elapsed_ns() / static_cast<double>(count));
            bench::require(found_count == 0, "an exhausted pool has given a buffer");
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
        held.clear();
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

/// Two processes allocate and drop in one pool at the same time: one at a time, which their own candidates serve, and 32
/// at a time, which goes through the shared bitmap.
void measure_contended(bench::Results& results) {
    bench::Trial trial(2);
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 256}}, {});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        const std::uint64_t count = bench::scaled(500'000, 1'000);
        me.record("pingpong_before_ns", me.ping_pong());
        const double single_ns = allocate_and_drop(member.pools[0], count);
        me.in_step();
        const double burst_ns = allocate_and_drop_bursts(member.pools[0], count, 32);
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("contended_ns", single_ns);
        me.record("contended_burst_32_ns", burst_ns);
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

/// A further reference, and a further copy within the process, and their end.
void measure_clone(bench::Results& results) {
    bench::Trial trial(2);
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 256}}, {});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            const std::uint64_t count = bench::scaled(1'000'000, 100);
            const weir::BufferPtr buffer = allocate(member.pools[0]);
            const bench::Stopwatch clone_stopwatch;
            for (std::uint64_t number = 0; number < count; ++number) {
                weir::BufferPtr clone = buffer.clone();
                bench::require(static_cast<bool>(clone), "no reference word is free");
            }
            me.record("clone_ns", clone_stopwatch.elapsed_ns() / static_cast<double>(count));
            const bench::Stopwatch copy_stopwatch;
            for (std::uint64_t number = 0; number < count; ++number) {
                weir::BufferPtr copy = buffer;
                std::uint32_t id = copy.id();
                benchmark::DoNotOptimize(id);
            }
            me.record("copy_ns", copy_stopwatch.elapsed_ns() / static_cast<double>(count));
            bench::require(buffer.use_count() == 1, "references or copies are left over");
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

/// What a large pool needs beside its payload, and how long it takes to prepare that.
void measure_control(bench::Results& results) {
    const weir::BufferPoolOptions options{.buffer_bytes = 64, .buffer_count = 1'048'576, .references_per_buffer = 4};
    bench::Trial trial(1);
    const std::span<std::byte> control = trial.share_bytes(weir::BufferPool::control_bytes(options));
    trial.run([&](bench::Process& me) {
        const bench::Stopwatch stopwatch;
        weir::BufferPool::format(control, options);
        me.record("format_ns", stopwatch.elapsed_ns());
        me.record("control_bytes_count", static_cast<double>(control.size()));
        me.record("buffer_count", options.buffer_count);
    });
    results = trial.results();
}

const bench::Registration malloc_free("allocate/malloc", "weir_ns", measure_malloc);
const bench::Registration occupancy("allocate/occupancy", "allocate_1m_at_95_ns", measure_occupancy);
const bench::Registration exhausted("allocate/exhausted", "exhausted_ns", measure_exhausted);
const bench::Registration contended("allocate/contended", "contended_ns", measure_contended);
const bench::Registration clone("allocate/clone", "clone_ns", measure_clone);
const bench::Registration control("allocate/control", "format_ns", measure_control);

} // namespace
