// The scheduler: what a call of work() costs, and streams through graphs within a worker, between workers, and between
// processes.
#include "graph.hpp"
#include "port_stream.hpp"

#include <array>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace {

// --- Calls -----------------------------------------------------------------------------------------------------------

double plain_ns(std::uint64_t count) {
    bench::Ticker ticker(count);
    while (ticker.tick() != weir::WorkResult::done) {
    }
    return ticker.call_ns();
}

/// By each call of work() of one of `block_count` blocks, which all make progress.
double call_ns(const weir::Domain& domain, std::uint64_t count, unsigned block_count) {
    weir::Scheduler scheduler(domain, bench::one_worker());
    std::vector<bench::Ticker*> tickers;
    for (unsigned number = 0; number < block_count; ++number) {
        tickers.push_back(&scheduler.add<bench::Ticker>(count));
    }
    scheduler.run();
    bench::require(scheduler.counters().work_calls >= count * block_count, "calls are missing");
    double elapsed_ns = 0;
    for (const bench::Ticker* ticker : tickers) {
        elapsed_ns += ticker->call_ns();
    }
    return elapsed_ns / (block_count * block_count); // all blocks' calls fall into the time of each one
}

/// An uncontended compare-and-swap, on a line that is this processor's already.
double cas_ns(std::uint64_t count) {
    alignas(weir::cache_line_bytes) std::uint64_t word = 0;
    benchmark::DoNotOptimize(&word);
    const bench::Stopwatch stopwatch;
    for (std::uint64_t number = 0; number < count; ++number) {
        std::uint64_t expected = number;
        bench::require(weir::shared(word).compare_exchange_strong(expected, number + 1, std::memory_order_seq_cst),
                       "somebody else writes to a private word");
    }
    return stopwatch.elapsed_ns() / static_cast<double>(count);
}

void measure_work_call(bench::Results& results) {
    bench::Trial trial(2);
    bench::Home home({.buffer_bytes = 64, .buffer_count = 256});
    const bench::SharedDomain bare({{.buffer_bytes = 64, .buffer_count = 256}}, {{.capacity = 256}});
    trial.run([&](bench::Process& me) {
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            const std::uint64_t count = bench::scaled(1'000'000, 1'000);
            bench::SharedDomain::Member member = bare.join();
            {
                const weir::Domain domain = home.join();
                std::map<std::string, double> times_ns;
                // Twice, and the second time backwards, so that what drifts meets all alike.
                const auto measure = [&](unsigned step) {
                    switch (step) {
                    case 0: times_ns["cas_ns"] += cas_ns(count); break;
                    case 1: times_ns["plain_ns"] += plain_ns(count); break;
                    case 2: times_ns["call_ns"] += call_ns(domain, count, 1); break;
                    case 3: times_ns["call_of_two_ns"] += call_ns(domain, count, 2); break;
                    case 4:
                        times_ns["graph_ns"] += bench::graph_ns(domain, bench::one_worker(), count / 2, 0, 1);
                        break;
                    default: times_ns["message_ns"] += bench::run_port_on_one_core(member); break;
                    }
                };
                constexpr unsigned step_count = 6;
                for (unsigned step = 0; step < 2 * step_count; ++step) {
                    measure(step < step_count ? step : 2 * step_count - 1 - step);
                }
                for (const auto& [name, time_ns] : times_ns) {
                    me.record(name, time_ns / 2);
                }
            }
            member.leave();
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
    });
    home.require_idle();
    results = trial.results();
}

void measure_three_blocks(bench::Results& results) {
    bench::Trial trial(2);
    bench::Home home({.buffer_bytes = 64, .buffer_count = 256});
    trial.run([&](bench::Process& me) {
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            const weir::Domain domain = home.join();
            const std::uint64_t count = bench::scaled(500'000, 1'000);
            me.record("item_ns", bench::graph_ns(domain, bench::one_worker(), count, 1, 1));
            me.record("item_of_burst_ns", bench::graph_ns(domain, bench::one_worker(), count, 1, bench::burst_usual));
            me.record("chain_of_10_ns", bench::graph_ns(domain, bench::one_worker(), count / 4, 10, 1));
            me.record("chain_of_10_of_burst_ns",
                      bench::graph_ns(domain, bench::one_worker(), count / 4, 10, bench::burst_usual));
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
    });
    home.require_idle();
    results = trial.results();
}

// --- Streams ---------------------------------------------------------------------------------------------------------

constexpr std::uint32_t stream_capacity = 256;

std::uint64_t stream_count() {
    return bench::scaled(1'000'000, 1'000);
}

/// Runs a scheduler whose NullSink gets `count` messages. Returns the time per message in ns, from when some had come
/// until all workers have ended.
double run_null_sink(weir::Scheduler& scheduler, const weir::NullSink& sink, std::uint64_t count) {
    std::int64_t start_ns = weir::monotonic_ns();
    std::uint64_t start_count = 0;
    scheduler.start();
    while (scheduler.is_running() && sink.message_count() < count / 16) {
        std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    if (const std::uint64_t seen_count = sink.message_count(); seen_count <= count / 2) {
        start_ns = weir::monotonic_ns();
        start_count = seen_count;
    }
    scheduler.wait();
    const std::int64_t end_ns = weir::monotonic_ns();
    bench::require(sink.message_count() == count, "not as many messages came as were sent");
    return static_cast<double>(end_ns - start_ns) / static_cast<double>(count - start_count);
}

/// Streams from process 0 to process 1, each with a scheduler of its own, through the port `port`, which nobody has used
/// before. They return the time per message in ns, in process 1.
double run_null_stream(bench::Process& me, weir::Domain& domain, const std::string& port) {
    const weir::BindOptions binding{.port = {.capacity = stream_capacity}};
    weir::Scheduler scheduler(domain, bench::one_worker());
    double message_ns = 0;
    me.in_step();
    if (me.is_first()) {
        scheduler.add<weir::NullSource>(domain.pool("pool"), stream_count()).out.bind(port, binding);
        scheduler.run();
    } else {
        auto& sink = scheduler.add<weir::NullSink>();
        sink.in.bind(port, binding);
        message_ns = run_null_sink(scheduler, sink, stream_count());
    }
    me.in_step();
    return message_ns;
}

double run_numbered_stream(bench::Process& me, weir::Domain& domain, const std::string& port) {
    const weir::BindOptions binding{.port = {.capacity = stream_capacity}};
    weir::Scheduler scheduler(domain, bench::one_worker());
    double message_ns = 0;
    me.in_step();
    if (me.is_first()) {
        scheduler.add<bench::NumberSource>(domain.pool("pool"), stream_count(), bench::burst_usual)
            .out.bind(port, binding);
        scheduler.run();
    } else {
        auto& sink = scheduler.add<bench::NumberSink>(stream_count(), bench::burst_usual);
        sink.in.bind(port, binding);
        scheduler.run();
        message_ns = sink.message_ns();
    }
    me.in_step();
    return message_ns;
}

/// Between two processes: null blocks beside a bare port whose messages stay untouched too, and numbered messages beside a
/// bare port whose messages are numbered.
void measure_stream(bench::Results& results) {
    constexpr std::array<const char*, 4> names{"bare_untouched_ns", "null_ns", "bare_ns", "numbered_ns"};
    bench::Trial trial(2);
    auto& times_ns = trial.share<std::array<double, names.size()>>();
    bench::Home home({.buffer_bytes = 64, .buffer_count = 256});
    const bench::SharedDomain bare({{.buffer_bytes = 64, .buffer_count = 256}}, {{.capacity = stream_capacity}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = bare.join();
        {
            weir::Domain domain = home.join();
            const auto run = [&](std::size_t place, const std::string& port) {
                switch (place) {
                case 0: return bench::run_port_stream<bench::Payload::untouched>(me, member, 1);
                case 1: return run_null_stream(me, domain, port);
                case 2: return bench::run_port_stream(me, member, 1);
                default: return run_numbered_stream(me, domain, port);
                }
            };
            me.record("pingpong_before_ns", me.ping_pong());
            for (std::size_t step = 0; step < 2 * names.size(); ++step) {
                const std::size_t place = step < names.size() ? step : 2 * names.size() - 1 - step;
                const double message_ns = run(place, "stream" + std::to_string(step));
                if (!me.is_first()) {
                    times_ns[place] += message_ns / 2;
                }
            }
            me.record("pingpong_after_ns", me.ping_pong());
        }
        for (std::size_t place = 0; place < names.size(); ++place) {
            me.record(names[place], times_ns[place]);
        }
        member.leave();
    });
    home.require_idle();
    bare.require_idle();
    results = trial.results();
}

double null_graph_ns(const weir::Domain& domain, const weir::SchedulerOptions& options) {
    weir::Domain member = domain;
    weir::Scheduler scheduler(domain, options);
    auto& source = scheduler.add<weir::NullSource>(member.pool("pool"), stream_count());
    auto& sink = scheduler.add<weir::NullSink>();
    scheduler.connect(source.out, sink.in, {.capacity = stream_capacity});
    return run_null_sink(scheduler, sink, stream_count());
}

/// The same in one process: one worker beside the bare port on one core, and two workers.
void measure_one_process(bench::Results& results) {
    bench::Trial trial(2);
    bench::Home home({.buffer_bytes = 64, .buffer_count = 256});
    const bench::SharedDomain bare({{.buffer_bytes = 64, .buffer_count = 256}}, {{.capacity = 256}});
    trial.run([&](bench::Process& me) {
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            bench::SharedDomain::Member member = bare.join();
            {
                const weir::Domain domain = home.join();
                const auto bare_ns = [&] { return bench::run_port_on_one_core<bench::Payload::untouched>(member); };
                const auto bare_numbered_ns = [&] { return bench::run_port_on_one_core(member); };
                const auto numbered_ns = [&] {
                    return bench::graph_ns(domain, bench::one_worker(), stream_count(), 0, bench::burst_usual);
                };
                double sums_ns[4] = {};
                sums_ns[0] += bare_ns();
                sums_ns[1] += null_graph_ns(domain, bench::one_worker());
                sums_ns[2] += bare_numbered_ns();
                sums_ns[3] += numbered_ns();
                sums_ns[3] += numbered_ns();
                sums_ns[2] += bare_numbered_ns();
                sums_ns[1] += null_graph_ns(domain, bench::one_worker());
                sums_ns[0] += bare_ns();
                me.record("bare_untouched_ns", sums_ns[0] / 2);
                me.record("null_ns", sums_ns[1] / 2);
                me.record("bare_ns", sums_ns[2] / 2);
                me.record("numbered_ns", sums_ns[3] / 2);
            }
            member.leave();
        }
        me.in_step();
        if (me.is_first()) {
            const weir::Domain domain = home.join();
            me.record("two_workers_ns", null_graph_ns(domain, bench::two_workers()));
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
    });
    home.require_idle();
    bare.require_idle();
    results = trial.results();
}

/// 4 KiB, all of which is written, changed in place by a second process, and verified by a third one.
void measure_three_processes(bench::Results& results) {
    constexpr std::size_t word_count = 4'096 / sizeof(std::uint64_t);
    bench::Trial trial(3);
    auto& message_ns = trial.share<double>();
    bench::Home home({.buffer_bytes = 4'096, .buffer_count = 64});
    trial.run([&](bench::Process& me) {
        weir::Domain domain = home.join();
        const std::uint64_t count = bench::scaled(200'000, 500);
        const weir::BindOptions binding{.port = {.capacity = 32}};
        weir::Scheduler scheduler(domain, bench::one_worker());
        me.in_step();
        if (me.number() == 0) {
            scheduler.add<bench::NumberSource>(domain.pool("pool"), count, bench::burst_usual, word_count)
                .out.bind("raw", binding);
            scheduler.run();
        } else if (me.number() == 1) {
            auto& map = scheduler.add<bench::AddOne>(bench::burst_usual);
            map.in.bind("raw", binding);
            map.out.bind("mapped", binding);
            scheduler.run();
        } else {
            auto& sink = scheduler.add<bench::NumberSink>(count, bench::burst_usual, 1, word_count);
            sink.in.bind("mapped", binding);
            scheduler.run();
            message_ns = sink.message_ns();
        }
        me.in_step();
        me.record("message_ns", message_ns);
    });
    home.require_idle();
    results = trial.results();
}

const bench::Registration work_call("scheduler/work_call", "call_ns", measure_work_call);
const bench::Registration three_blocks("scheduler/three_blocks", "item_ns", measure_three_blocks);
const bench::Registration stream("scheduler/stream", "null_ns", measure_stream);
const bench::Registration one_process("scheduler/one_process", "null_ns", measure_one_process);
const bench::Registration three_processes("scheduler/three_processes", "message_ns", measure_three_processes);

} // namespace
