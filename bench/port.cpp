// Ports: latency, streams and hops of whole buffers between two processes.
#include "port_stream.hpp"
#include "vyukov_queue.hpp"

#include <array>
#include <cstdlib>
#include <vector>

namespace {

constexpr weir::WaitOptions sleeps_at_once{.spin_count = 0};

enum class Touch { reads, writes };

/// One way, in ns: a buffer goes to and fro between two processes through two ports. Each pops it, reads the number in
/// its first line and compares it with what it must be, writes the next number there (only process 0 does, where the
/// touch only reads), and pushes it on. Process 0 sends `buffer_count` buffers in turn, one at a time.
double port_ping_pong(bench::Process& me, weir::BufferPool& pool, const weir::Port& there, const weir::Port& back,
                      Touch touch, std::size_t buffer_count) {
    const std::uint64_t warm_up_count = bench::scaled(2'000, 10);
    const std::uint64_t round_count = bench::scaled(50'000, 50);
    const bool is_first = me.is_first();
    const std::uint64_t step = touch == Touch::writes ? 1 : 0;
    weir::Producer producer(is_first ? there : back);
    weir::Consumer consumer(is_first ? back : there);
    std::vector<weir::BufferPtr> buffers;
    for (std::size_t number = 0; is_first && number < buffer_count; ++number) {
        buffers.push_back(bench::allocate_message(pool));
    }
    bench::Spin spin;
    const auto push = [&](weir::BufferPtr& buffer) {
        while (producer.try_push(std::move(buffer)) != weir::PushResult::ok) {
            spin();
        }
    };
    const auto pop = [&] {
        for (;;) {
            weir::BufferPtr buffer = consumer.try_pop();
            if (buffer) {
                return buffer;
            }
            spin();
        }
    };
    std::uint64_t word = 0;
    std::size_t turn = 0;
    const auto play = [&](std::uint64_t count) {
        for (std::uint64_t round = 0; round < count; ++round, word += 2) {
            if (is_first) {
                weir::BufferPtr& buffer = buffers[turn];
                turn = turn + 1 == buffer_count ? 0 : turn + 1;
                bench::write_word(buffer, word);
                push(buffer);
                buffer = pop();
                bench::require(bench::read_word(buffer) == word + step, "the buffer is not the one that was sent");
            } else {
                weir::BufferPtr buffer = pop();
                bench::require(bench::read_word(buffer) == word, "the buffer is not the one that was expected");
                if (touch == Touch::writes) {
                    bench::write_word(buffer, word + step);
                }
                push(buffer);
            }
        }
    };
    me.in_step();
    play(warm_up_count);
    const bench::Stopwatch stopwatch;
    play(round_count);
    const double elapsed_ns = stopwatch.elapsed_ns();
    me.in_step();
    return elapsed_ns / static_cast<double>(2 * round_count);
}

void measure_latency(bench::Results& results) {
    bench::Trial trial(2);
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 64}}, {{.capacity = 64}, {.capacity = 64}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        const auto run = [&](Touch touch) {
            return port_ping_pong(me, member.pools[0], member.ports[0], member.ports[1], touch, 1);
        };
        me.record("pingpong_before_ns", me.ping_pong());
        const double first_ns = run(Touch::writes);
        const double reads_ns = run(Touch::reads);
        const double second_ns = run(Touch::writes);
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("two_lines_ns", me.ping_pong_on_two_lines());
        me.record("port_ns", (first_ns + second_ns) / 2);
        me.record("port_reads_only_ns", reads_ns);
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

/// Buffers of 64 B and of 64 MiB, of which only the first line is ever touched. Four of each go in turn, so that neither
/// where one line lies decides, nor do the large ones, whose first lines are a multiple of 64 MiB apart and fall into the
/// same set of a cache, push each other out of it: the smallest first-level caches have 8 ways.
void measure_hop_size(bench::Results& results) {
    constexpr std::uint32_t buffer_count = 4;
    constexpr std::uint64_t large_bytes = 64 << 20;
    bench::Trial trial(2);
    const bench::SharedDomain small({{.buffer_bytes = 64, .buffer_count = buffer_count}},
                                    {{.capacity = 64}, {.capacity = 64}});
    const bench::SharedDomain large({{.buffer_bytes = large_bytes, .buffer_count = buffer_count}},
                                    {{.capacity = 64}, {.capacity = 64}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member small_member = small.join();
        bench::SharedDomain::Member large_member = large.join();
        const auto run = [&](bench::SharedDomain::Member& member) {
            return port_ping_pong(me, member.pools[0], member.ports[0], member.ports[1], Touch::writes, buffer_count);
        };
        double small_ns = 0, large_ns = 0;
        me.record("pingpong_before_ns", me.ping_pong());
        small_ns += run(small_member);
        large_ns += run(large_member);
        large_ns += run(large_member);
        small_ns += run(small_member);
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("hop_64b_ns", small_ns / 2);
        me.record("hop_64mib_ns", large_ns / 2);
        small_member.leave();
        large_member.leave();
    });
    small.require_idle();
    large.require_idle();
    results = trial.results();
}

void measure_stream(bench::Results& results) {
    constexpr std::array<std::size_t, 4> batches{1, 4, 16, bench::batch_max};
    bench::Trial trial(2);
    auto& times_ns = trial.share<std::array<double, batches.size()>>();
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 256}}, {{.capacity = 256}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        me.record("pingpong_before_ns", me.ping_pong());
        me.record("two_lines_ns", me.ping_pong_on_two_lines());
        // There and back again, so that what drifts meets all alike; the consumer has the time.
        for (std::size_t step = 0; step < 2 * batches.size(); ++step) {
            const std::size_t place = step < batches.size() ? step : 2 * batches.size() - 1 - step;
            const double message_ns = bench::run_port_stream(me, member, batches[place]);
            if (!me.is_first()) {
                times_ns[place] += message_ns / 2;
            }
        }
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("message_ns", times_ns[0]);
        for (std::size_t place = 1; place < batches.size(); ++place) {
            me.record("message_batch_" + std::to_string(batches[place]) + "_ns", times_ns[place]);
        }
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

/// As run_port_on_one_core(), with memory of malloc() and pointers through Vyukov's queue.
double run_malloc_on_one_core() {
    using Queue = bench::BasicVyukovQueue<void*>;
    constexpr std::size_t capacity = 256;
    alignas(weir::cache_line_bytes) std::array<std::byte, Queue::bytes(capacity)> memory{};
    Queue queue(memory, capacity);
    queue.format();
    const std::uint64_t count = bench::scaled(1'000'000, 1'000);
    const bench::Stopwatch stopwatch;
    for (std::uint64_t number = 0; number < count; ++number) {
        void* message = std::malloc(64);
        bench::require(message != nullptr, "no memory");
        std::memcpy(message, &number, sizeof(number));
        bench::require(queue.try_push(message), "cannot push");
        void* popped = nullptr;
        bench::require(queue.try_pop(popped), "cannot pop");
        std::uint64_t word = 0;
        std::memcpy(&word, popped, sizeof(word));
        bench::require(word == number, "not what was pushed");
        std::free(popped);
    }
    return stopwatch.elapsed_ns() / static_cast<double>(count);
}

/// On one processor, through a port and back out of it: what the instructions cost without any line changing sides.
void measure_one_core(bench::Results& results) {
    bench::Trial trial(2);
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 256}}, {{.capacity = 256}});
    trial.run([&](bench::Process& me) {
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            bench::SharedDomain::Member member = domain.join();
            const double port_first_ns = bench::run_port_on_one_core(member);
            const double malloc_first_ns = run_malloc_on_one_core();
            const double malloc_second_ns = run_malloc_on_one_core();
            const double port_second_ns = bench::run_port_on_one_core(member);
            me.record("message_ns", (port_first_ns + port_second_ns) / 2);
            me.record("malloc_ns", (malloc_first_ns + malloc_second_ns) / 2);
            member.leave();
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
    });
    domain.require_idle();
    results = trial.results();
}

/// As the latency, but both ends sleep at once where there is nothing, in turn with a ping-pong of sleepers on a bare
/// futex. Half the median round trip of each.
void measure_wake_up(bench::Results& results) {
    constexpr unsigned slice_count = 10;
    bench::Trial trial(2);
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 4}}, {{.capacity = 4}, {.capacity = 4}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        const bool is_first = me.is_first();
        std::vector<double> futex_ns, port_ns;
        {
            weir::Producer producer(member.ports[is_first ? 0 : 1], sleeps_at_once);
            weir::Consumer consumer(member.ports[is_first ? 1 : 0], sleeps_at_once);
            weir::BufferPtr buffer = is_first ? bench::allocate_message(member.pools[0]) : weir::BufferPtr();
            const auto run_port = [&](std::uint64_t round_count) {
                port_ns.reserve(port_ns.size() + round_count);
                me.in_step();
                for (std::uint64_t round = 0; round < round_count; ++round) {
                    const bench::Stopwatch stopwatch;
                    if (is_first) {
                        bench::write_word(buffer, round);
                        bench::require(producer.push(std::move(buffer)) == weir::PushResult::ok, "cannot push");
                    }
                    buffer = consumer.pop();
                    bench::require(buffer && bench::read_word(buffer) == round, "not what was pushed");
                    if (!is_first) {
                        bench::require(producer.push(std::move(buffer)) == weir::PushResult::ok, "cannot push");
                    }
                    port_ns.push_back(stopwatch.elapsed_ns());
                }
                me.in_step();
            };
            me.record("pingpong_before_ns", me.ping_pong());
            run_port(bench::scaled(100, 2));
            me.futex_ping_pong(bench::scaled(100, 2), futex_ns);
            port_ns.clear();
            futex_ns.clear();
            const std::uint64_t round_count = bench::scaled(200, 2);
            for (unsigned slice = 0; slice < slice_count; ++slice) {
                if (slice % 2 == 0) {
                    me.futex_ping_pong(round_count, futex_ns);
                }
                run_port(round_count);
                if (slice % 2 != 0) {
                    me.futex_ping_pong(round_count, futex_ns);
                }
            }
            me.record("pingpong_after_ns", me.ping_pong());
        }
        me.record("wake_up_ns", bench::median(port_ns) / 2);
        me.record("futex_ns", bench::median(futex_ns) / 2);
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

const bench::Registration latency("port/latency", "port_ns", measure_latency);
const bench::Registration hop_size("port/hop_size", "hop_64mib_ns", measure_hop_size);
const bench::Registration stream("port/stream", "message_ns", measure_stream);
const bench::Registration one_core("port/one_core", "message_ns", measure_one_core);
const bench::Registration wake_up("port/wake_up", "wake_up_ns", measure_wake_up);

} // namespace
