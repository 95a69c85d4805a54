// The ring by itself: latency beside the bare ping-pong, throughput beside Vyukov's queue.
#include "harness.hpp"
#include "stream.hpp"
#include "vyukov_queue.hpp"

namespace {

constexpr std::uint32_t capacity = 1024;

/// One way, in ns: two processes hand a number to and fro through two rings, each adding one to it.
double ring_ping_pong(bench::Process& me, std::span<std::byte> there, std::span<std::byte> back) {
    const std::uint64_t warm_up_count = bench::scaled(2'000, 10);
    const std::uint64_t round_count = bench::scaled(100'000, 50);
    const bool is_first = me.is_first();
    weir::RingProducer producer(weir::Ring(is_first ? there : back, capacity));
    weir::RingConsumer consumer(weir::Ring(is_first ? back : there, capacity));
    bench::Spin spin;
    std::uint32_t value = 0;
    const auto push = [&] {
        while (producer.try_push(value) != weir::RingStatus::ok) {
            spin();
        }
    };
    const auto pop = [&] {
        std::uint32_t popped = 0;
        while (consumer.try_pop(popped) != weir::RingStatus::ok) {
            spin();
        }
        bench::require(popped == value, "a value was lost, or came twice");
    };
    const auto play = [&](std::uint64_t count) {
        for (std::uint64_t round = 0; round < count; ++round) {
            if (is_first) {
                push();
                value = (value + 1) & weir::ring_value_max;
                pop();
            } else {
                pop();
                value = (value + 1) & weir::ring_value_max;
                push();
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
    std::array<std::span<std::byte>, 4> rings;
    for (std::span<std::byte>& ring : rings) {
        ring = trial.share_bytes(weir::Ring::bytes(capacity));
    }
    trial.run([&](bench::Process& me) {
        me.record("pingpong_before_ns", me.ping_pong());
        const double first_ns = ring_ping_pong(me, rings[0], rings[1]);
        me.record("pingpong_between_ns", me.ping_pong());
        const double second_ns = ring_ping_pong(me, rings[2], rings[3]);
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("two_lines_ns", me.ping_pong_on_two_lines());
        me.record("ring_ns", (first_ns + second_ns) / 2);
    });
    results = trial.results();
}

/// The ring beside Vyukov's queue: ring, Vyukov, Vyukov, ring.
void measure_throughput(bench::Results& results, const bench::StreamShape& shape) {
    bench::Trial trial(shape.producer_count + shape.consumer_count);
    auto& streams = trial.share<std::array<bench::Stream, 4>>();
    const std::span<std::byte> ring_memory = trial.share_bytes(weir::Ring::bytes(capacity));
    const std::span<std::byte> vyukov_memory = trial.share_bytes(bench::VyukovQueue::bytes(capacity));
    bench::VyukovQueue vyukov(vyukov_memory, capacity);
    vyukov.format();
    trial.run([&](bench::Process& me) {
        weir::RingProducer producer(weir::Ring(ring_memory, capacity));
        weir::RingConsumer consumer(weir::Ring(ring_memory, capacity));
        const auto run_ring = [&](bench::Stream& stream) {
            return bench::run_stream(
                me, stream, shape,
                [&](std::uint32_t value) { return producer.try_push(value) == weir::RingStatus::ok; },
                [&](std::uint32_t& value) { return consumer.try_pop(value) == weir::RingStatus::ok; });
        };
        const auto run_vyukov = [&](bench::Stream& stream) {
            return bench::run_stream(
                me, stream, shape, [&](std::uint32_t value) { return vyukov.try_push(value); },
                [&](std::uint32_t& value) { return vyukov.try_pop(value); });
        };
        me.record("pingpong_before_ns", me.ping_pong());
        const double ring_first_ns = run_ring(streams[0]);
        const double vyukov_first_ns = run_vyukov(streams[1]);
        const double vyukov_second_ns = run_vyukov(streams[2]);
        const double ring_second_ns = run_ring(streams[3]);
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("ring_ns", (ring_first_ns + ring_second_ns) / 2);
        me.record("vyukov_ns", (vyukov_first_ns + vyukov_second_ns) / 2);
        if (shape.counts_stalls) {
            me.record("ring_stall_count", static_cast<double>(stall_count(streams[0]) + stall_count(streams[3])));
            me.record("vyukov_stall_count", static_cast<double>(stall_count(streams[1]) + stall_count(streams[2])));
        }
    });
    results = trial.results();
}

constexpr std::size_t batch_length = 64;

/// Values one by one on the outside, batches towards the ring. The stream's end goes at once.
template <class RingProducer>
class BatchProducer {
public:
    explicit BatchProducer(weir::Ring ring) noexcept : producer_(ring) {}

    [[nodiscard]] bool try_push(std::uint32_t value) noexcept {
        if (count_ == batch_length && !flush()) {
            return false;
        }
        values_[count_++] = value;
        return value != bench::stream_end || flush();
    }

private:
    [[nodiscard]] bool flush() noexcept {
        first_ += producer_.try_push(std::span(values_).subspan(first_, count_ - first_));
        if (first_ != count_) {
            return false;
        }
        first_ = count_ = 0;
        return true;
    }

    RingProducer producer_;
    std::array<std::uint32_t, batch_length> values_{};
    std::size_t first_ = 0, count_ = 0;
};

template <class RingConsumer>
class BatchConsumer {
public:
    explicit BatchConsumer(weir::Ring ring) noexcept : consumer_(ring) {}

    [[nodiscard]] bool try_pop(std::uint32_t& value) noexcept {
        if (first_ == count_) {
            first_ = 0;
            count_ = consumer_.try_pop(std::span(values_));
            if (count_ == 0) {
                return false;
            }
        }
        value = values_[first_++];
        return true;
    }

private:
    RingConsumer consumer_;
    std::array<std::uint32_t, batch_length> values_{};
    std::size_t first_ = 0, count_ = 0;
};

/// One producer and one consumer, each alone at its end or not, one by one or in batches.
void measure_ends(bench::Results& results) {
    const bench::StreamShape shape{1, 1, bench::scaled(2'000'000, 2'000)};
    bench::Trial trial(2);
    auto& streams = trial.share<std::array<bench::Stream, 4>>();
    const std::span<std::byte> memory = trial.share_bytes(weir::Ring::bytes(capacity));
    trial.run([&](bench::Process& me) {
        const auto run = [&](bench::Stream& stream, auto&& producer, auto&& consumer) {
            me.in_step(); // the ring is empty, and the last handles are gone
            return bench::run_stream(me, stream, shape, producer, consumer);
        };
        const weir::Ring ring(memory, capacity);
        const auto single = [&](bench::Stream& stream, auto producer, auto consumer) {
            return run(
                stream, [&](std::uint32_t value) { return producer.try_push(value) == weir::RingStatus::ok; },
                [&](std::uint32_t& value) { return consumer.try_pop(value) == weir::RingStatus::ok; });
        };
        const auto batched = [&](bench::Stream& stream, auto producer, auto consumer) {
            return run(
                stream, [&](std::uint32_t value) { return producer.try_push(value); },
                [&](std::uint32_t& value) { return consumer.try_pop(value); });
        };
        me.record("pingpong_before_ns", me.ping_pong());
        me.record("shared_ns", single(streams[0], weir::RingProducer(ring), weir::RingConsumer(ring)));
        me.record("exclusive_ns",
                  single(streams[1], weir::ExclusiveRingProducer(ring), weir::ExclusiveRingConsumer(ring)));
        me.record("shared_batch_ns", batched(streams[2], BatchProducer<weir::RingProducer>(ring),
                                             BatchConsumer<weir::RingConsumer>(ring)));
        me.record("exclusive_batch_ns", batched(streams[3], BatchProducer<weir::ExclusiveRingProducer>(ring),
                                                BatchConsumer<weir::ExclusiveRingConsumer>(ring)));
        me.record("pingpong_after_ns", me.ping_pong());
    });
    results = trial.results();
}

void measure_throughput_1(bench::Results& results) {
    measure_throughput(results, {1, 1, bench::scaled(2'000'000, 2'000)});
}
void measure_throughput_2(bench::Results& results) {
    measure_throughput(results, {2, 2, bench::scaled(1'000'000, 1'000)});
}
void measure_throughput_4(bench::Results& results) {
    measure_throughput(results, {4, 4, bench::scaled(500'000, 500), true});
}

const bench::Registration latency("ring/latency", "ring_ns", measure_latency);
const bench::Registration ends("ring/ends", "exclusive_ns", measure_ends);
const bench::Registration throughput_1("ring/throughput/1+1", "ring_ns", measure_throughput_1);
const bench::Registration throughput_2("ring/throughput/2+2", "ring_ns", measure_throughput_2);
const bench::Registration throughput_4("ring/throughput/4+4", "ring_ns", measure_throughput_4);

} // namespace
