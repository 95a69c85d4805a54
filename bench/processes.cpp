// Throughput against the number of processes, from 1+1 to 8+8: whole messages through a port (allocate, write eight bytes,
// push; pop, read, drop), and values through the bare ring, in turn: port, ring, ring, port. Who finds no room, no buffer
// or no message tries again and gives the processor away now and then, or sleeps.
//
// Where there are more processes than processors, this measures preemption: then a wait of more than a millisecond is the
// rule, so these are counted, and the report calls the figure oversubscribed.
#include "port_stream.hpp"
#include "stream.hpp"

#include <array>
#include <string>

namespace {

constexpr std::uint32_t capacity = 1'024;

enum class Waiting { spins, sleeps };

/// The bare ring with an event count at each end, which is how to sleep on it.
struct RingEvents {
    alignas(weir::cache_line_bytes) std::uint32_t item;
    alignas(weir::cache_line_bytes) std::uint32_t room;
};

/// Attempts of which each that follows one in vain waits.
template <class Try, class Wait>
class Attempts {
public:
    Attempts(Waiting waiting, Try attempt, Wait wait)
        : sleeps_(waiting == Waiting::sleeps), try_(attempt), wait_(wait) {}

    template <class Value>
    bool operator()(Value&& value) {
        const bool done = sleeps_ && was_in_vain_ ? wait_(value) : try_(value);
        was_in_vain_ = !done;
        return done;
    }

private:
    bool sleeps_;
    bool was_in_vain_ = false;
    Try try_;
    Wait wait_;
};

/// The fewer processes, the more of the values are each one's.
bench::StreamShape shape_of(unsigned pair_count, Waiting waiting) {
    return {pair_count, pair_count, bench::scaled(waiting == Waiting::sleeps ? 400'000 : 1'000'000, 2'000) / pair_count,
            true};
}

double run_port(bench::Process& me, bench::SharedDomain::Member& member, bench::Stream& stream,
                const bench::StreamShape& shape, Waiting waiting) {
    weir::Producer producer(member.ports[0]);
    weir::Consumer consumer(member.ports[0]);
    weir::BufferPtr sent;
    const auto send = [&](std::uint32_t value, bool waits) {
        if (!sent) {
            sent = waits ? member.pools[0].allocate() : member.pools[0].try_allocate();
            if (!sent) {
                return false;
            }
            sent.resize(sizeof(std::uint64_t));
            bench::write_word(sent, value);
        }
        const weir::PushResult result = waits ? producer.push(std::move(sent)) : producer.try_push(std::move(sent));
        bench::require(result == weir::PushResult::ok || result == weir::PushResult::full, "cannot push");
        return result == weir::PushResult::ok;
    };
    const auto receive = [&](std::uint32_t& value, bool waits) {
        const weir::BufferPtr buffer = waits ? consumer.pop() : consumer.try_pop();
        if (buffer) {
            value = static_cast<std::uint32_t>(bench::read_word(buffer));
        }
        return static_cast<bool>(buffer);
    };
    Attempts push(
        waiting, [&](std::uint32_t value) { return send(value, false); },
        [&](std::uint32_t value) { return send(value, true); });
    Attempts pop(
        waiting, [&](std::uint32_t& value) { return receive(value, false); },
        [&](std::uint32_t& value) { return receive(value, true); });
    // All ends stay attached until the last one is done: run_stream() ends in step.
    return bench::run_stream(me, stream, shape, push, pop);
}

double run_ring(bench::Process& me, std::span<std::byte> memory, RingEvents& events, bench::Stream& stream,
                const bench::StreamShape& shape, Waiting waiting) {
    const weir::WaitOptions wait;
    weir::RingProducer producer(weir::Ring(memory, capacity));
    weir::RingConsumer consumer(weir::Ring(memory, capacity));
    weir::EventCount item(events.item), room(events.room);
    const bool sleeps = waiting == Waiting::sleeps;
    const auto try_push = [&](std::uint32_t value) {
        const bool done = producer.try_push(value) == weir::RingStatus::ok;
        if (done && sleeps) {
            item.notify();
        }
        return done;
    };
    const auto try_pop = [&](std::uint32_t& value) {
        const bool done = consumer.try_pop(value) == weir::RingStatus::ok;
        if (done && sleeps) {
            room.notify();
        }
        return done;
    };
    const auto until = [&](weir::EventCount& event, auto&& attempt) {
        return weir::wait_until(
            event, wait, weir::deadline_never, [&](weir::Look) { return attempt(); }, [] {});
    };
    Attempts push(waiting, try_push, [&](std::uint32_t value) { return until(room, [&] { return try_push(value); }); });
    Attempts pop(waiting, try_pop, [&](std::uint32_t& value) { return until(item, [&] { return try_pop(value); }); });
    return bench::run_stream(me, stream, shape, push, pop);
}

void measure_processes(bench::Results& results, unsigned pair_count, Waiting waiting) {
    const bench::StreamShape shape = shape_of(pair_count, waiting);
    bench::Trial trial(2 * pair_count);
    auto& streams = trial.share<std::array<bench::Stream, 4>>();
    auto& events = trial.share<RingEvents>();
    const std::span<std::byte> ring = trial.share_bytes(weir::Ring::bytes(capacity));
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 2 * capacity}}, {{.capacity = capacity}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        me.record("pingpong_before_ns", me.ping_pong());
        const double port_first_ns = run_port(me, member, streams[0], shape, waiting);
        const double ring_first_ns = run_ring(me, ring, events, streams[1], shape, waiting);
        const double ring_second_ns = run_ring(me, ring, events, streams[2], shape, waiting);
        const double port_second_ns = run_port(me, member, streams[3], shape, waiting);
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("port_ns", (port_first_ns + port_second_ns) / 2);
        me.record("ring_ns", (ring_first_ns + ring_second_ns) / 2);
        me.record("port_stall_count", static_cast<double>(stall_count(streams[0]) + stall_count(streams[3])));
        me.record("ring_stall_count", static_cast<double>(stall_count(streams[1]) + stall_count(streams[2])));
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

const bool registered = [] {
    for (const Waiting waiting : {Waiting::spins, Waiting::sleeps}) {
        for (const unsigned pair_count : {1U, 2U, 4U, 8U}) {
            const std::string pairs = std::to_string(pair_count) + "+" + std::to_string(pair_count);
            bench::Registration(std::string("processes/") + (waiting == Waiting::sleeps ? "sleep/" : "spin/") + pairs,
                                "port_ns",
                                [=](bench::Results& results) { measure_processes(results, pair_count, waiting); });
        }
    }
    return true;
}();

} // namespace
