// queue_peer.hpp: what a queue of small values has to bring to be measured beside weir's ring: a class, and one line.
//
//     class MyQueue {
//     public:
//         static constexpr bench::Ends ends = bench::Ends::many;            // or one producer and one consumer
//         static constexpr bench::Between between = bench::Between::processes;   // or threads only
//         static std::size_t bytes();                                       // of shared memory, for `queue_capacity` values
//         static void format(std::span<std::byte> memory);                  // once, of zeroed bytes
//         explicit MyQueue(std::span<std::byte> memory);                    // one process's, or thread's, view
//         bool try_push(std::uint32_t value);                               // 28 bits; false: full
//         bool try_pop(std::uint32_t& value);                               // false: empty
//     };
//     const bench::QueuePeer<MyQueue> my_queue("my_queue");
//
// Each repetition runs ring, peer, peer, ring, by the same pinned processes through run_stream(), which checks that every
// value arrived exactly once and in its producer's order (by counts and sums alone, of a queue that does not keep it). Threads-only queues are measured between threads, and so is the
// ring beside them. What happens when one of the processes is killed is measured by kill.hpp.
#pragma once

#include "../stream.hpp"
#include "kill.hpp"

#include <string>
#include <type_traits>

namespace bench {

enum class Ends { one, many };
enum class Between { threads, processes };

inline constexpr std::uint32_t queue_capacity = 1024;

/// weir's ring, as its peers are seen.
template <Ends its_ends, class Producer, class Consumer>
class BasicRingQueue {
public:
    static constexpr Ends ends = its_ends;
    static constexpr Between between = Between::processes;
    static std::size_t bytes() { return weir::Ring::bytes(queue_capacity); }
    static void format(std::span<std::byte>) {}
    explicit BasicRingQueue(std::span<std::byte> memory)
        : producer_(weir::Ring(memory, queue_capacity)), consumer_(weir::Ring(memory, queue_capacity)) {}
    bool try_push(std::uint32_t value) { return producer_.try_push(value) == weir::RingStatus::ok; }
    bool try_pop(std::uint32_t& value) { return consumer_.try_pop(value) == weir::RingStatus::ok; }
    /// In batches: all, where there is room for all.
    bool try_push_all(std::span<const std::uint32_t> values) {
        std::size_t count = producer_.try_push(values, values.size());
        if (count == 0) {
            return false;
        }
        for (Backoff backoff; count < values.size(); count += producer_.try_push(values.subspan(count))) {
            backoff(); // another producer was faster
        }
        return true;
    }
    /// As many as fit, or after some looks in vain fewer.
    std::size_t try_pop_some(std::span<std::uint32_t> values) {
        const std::size_t count = consumer_.try_pop(values, miss_count_ < 16 ? values.size() : 1);
        miss_count_ = count == 0 ? miss_count_ + 1 : 0;
        return count;
    }

private:
    Producer producer_;
    Consumer consumer_;
    unsigned miss_count_ = 0;
};
using RingQueue = BasicRingQueue<Ends::many, weir::RingProducer, weir::RingConsumer>;
using ExclusiveRingQueue = BasicRingQueue<Ends::one, weir::ExclusiveRingProducer, weir::ExclusiveRingConsumer>;

/// Whether the values of one producer come to one consumer in their order; as they do unless the queue says otherwise.
template <class Queue>
inline constexpr bool keeps_order = [] {
    if constexpr (requires { Queue::keeps_order; }) {
        return Queue::keeps_order;
    }
    return true;
}();

/// What an object of type T, made by format() in shared memory, is to all that share it.
template <class T>
[[nodiscard]] T* object_in(std::span<std::byte> memory) noexcept {
    return std::launder(reinterpret_cast<T*>(memory.data()));
}

template <class Queue>
[[nodiscard]] double run_queue(Process& me, Stream& stream, const StreamShape& shape, std::span<std::byte> memory) {
    if (me.is_first()) {
        Queue::format(memory);
    }
    me.in_step();
    Queue queue(memory);
    return run_stream(
        me, stream, shape, [&](std::uint32_t value) { return queue.try_push(value); },
        [&](std::uint32_t& value) { return queue.try_pop(value); });
}

template <class Queue, unsigned end_count>
void measure_queue_stream(Results& results) {
    using Ring = std::conditional_t<Queue::ends == Ends::one, ExclusiveRingQueue, RingQueue>;
    const StreamShape shape{end_count, end_count, scaled(400'000, 2'000) / end_count};
    StreamShape peer_shape = shape;
    peer_shape.keeps_order = keeps_order<Queue>;
    Trial trial(2 * end_count);
    auto& streams = trial.share<std::array<Stream, 4>>();
    const std::array<std::span<std::byte>, 2> ring_memory{trial.share_bytes(Ring::bytes()),
                                                          trial.share_bytes(Ring::bytes())};
    const std::array<std::span<std::byte>, 2> peer_memory{trial.share_bytes(Queue::bytes()),
                                                          trial.share_bytes(Queue::bytes())};
    const auto body = [&](Process& me) {
        me.record("pingpong_before_ns", me.ping_pong());
        const double ring_first_ns = run_queue<Ring>(me, streams[0], shape, ring_memory[0]);
        const double peer_first_ns = run_queue<Queue>(me, streams[1], peer_shape, peer_memory[0]);
        const double peer_second_ns = run_queue<Queue>(me, streams[2], peer_shape, peer_memory[1]);
        const double ring_second_ns = run_queue<Ring>(me, streams[3], shape, ring_memory[1]);
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("weir_ns", (ring_first_ns + ring_second_ns) / 2);
        me.record("peer_ns", (peer_first_ns + peer_second_ns) / 2);
    };
    Queue::between == Between::processes ? trial.run(body) : trial.run_threads(body);
    results = trial.results();
}

/// One way, in ns: a number to and fro through two queues, each side adding one to it.
template <class Queue>
[[nodiscard]] double queue_ping_pong(Process& me, std::span<std::byte> there, std::span<std::byte> back) {
    const std::uint64_t warm_up_count = scaled(2'000, 10);
    const std::uint64_t round_count = scaled(20'000, 50);
    const bool is_first = me.is_first();
    if (is_first) {
        Queue::format(there);
        Queue::format(back);
    }
    me.in_step();
    Queue out(is_first ? there : back);
    Queue in(is_first ? back : there);
    Spin spin;
    std::uint32_t value = 0;
    const auto push = [&] {
        while (!out.try_push(value)) {
            spin();
        }
        value = (value + 1) & weir::ring_value_max;
    };
    const auto pop = [&] {
        std::uint32_t popped = 0;
        while (!in.try_pop(popped)) {
            spin();
        }
        require(popped == value, "a value was lost, or came twice");
        value = (value + 1) & weir::ring_value_max;
    };
    const auto play = [&](std::uint64_t count) {
        for (std::uint64_t round = 0; round < count; ++round) {
            if (is_first) {
                push();
                pop();
            } else {
                pop();
                push();
            }
        }
    };
    play(warm_up_count);
    const Stopwatch stopwatch;
    play(round_count);
    const double elapsed_ns = stopwatch.elapsed_ns();
    me.in_step();
    return elapsed_ns / static_cast<double>(2 * round_count);
}

template <class Queue>
void measure_queue_latency(Results& results) {
    Trial trial(2);
    std::array<std::span<std::byte>, 4> ring_memory, peer_memory;
    for (std::size_t place = 0; place < 4; ++place) {
        ring_memory[place] = trial.share_bytes(RingQueue::bytes());
        peer_memory[place] = trial.share_bytes(Queue::bytes());
    }
    const auto body = [&](Process& me) {
        me.record("pingpong_before_ns", me.ping_pong());
        const double ring_first_ns = queue_ping_pong<RingQueue>(me, ring_memory[0], ring_memory[1]);
        const double peer_first_ns = queue_ping_pong<Queue>(me, peer_memory[0], peer_memory[1]);
        const double peer_second_ns = queue_ping_pong<Queue>(me, peer_memory[2], peer_memory[3]);
        const double ring_second_ns = queue_ping_pong<RingQueue>(me, ring_memory[2], ring_memory[3]);
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("weir_ns", (ring_first_ns + ring_second_ns) / 2);
        me.record("peer_ns", (peer_first_ns + peer_second_ns) / 2);
    };
    Queue::between == Between::processes ? trial.run(body) : trial.run_threads(body);
    results = trial.results();
}

/// Participants of a queue are killed: two at each end where it can have so many.
template <class Queue>
void measure_queue_kills(Results& results) {
    constexpr unsigned end_count = Queue::ends == Ends::many ? 2 : 1;
    std::unique_ptr<SharedBytes> memory;
    KillSetup setup;
    setup.kill_count = 1'000; // what can block it takes a few ns
    setup.producer_count = setup.consumer_count = end_count;
    setup.renews_always = true; // what one left behind would come twice in the next
    setup.renew = [&] {
        memory = std::make_unique<SharedBytes>(Queue::bytes());
        Queue::format(memory->bytes());
    };
    setup.produce = [&](KillProducer& me) {
        Queue queue(memory->bytes());
        me.produce([&](std::uint64_t number) {
            return queue.try_push(me.origin() << stream_number_bits | static_cast<std::uint32_t>(number));
        });
    };
    setup.consume = [&](KillConsumer& me) {
        Queue queue(memory->bytes());
        std::uint32_t value = 0;
        me.consume([&] {
            if (!queue.try_pop(value)) {
                return false;
            }
            me.note(value >> stream_number_bits, value & ((1U << stream_number_bits) - 1));
            return true;
        });
    };
    results = run_kills(setup);
}

template <class Queue>
class QueuePeer {
public:
    explicit QueuePeer(const std::string& name) {
        const std::string group = Queue::between == Between::threads ? "peers/threads" : "peers/queue";
        if constexpr (Queue::ends == Ends::many) {
            Registration((group + "/1+1/" + name).c_str(), "peer_ns", measure_queue_stream<Queue, 1>);
            Registration((group + "/2+2/" + name).c_str(), "peer_ns", measure_queue_stream<Queue, 2>);
        } else {
            Registration((group + "/exclusive/" + name).c_str(), "peer_ns", measure_queue_stream<Queue, 1>);
        }
        Registration((group + "/latency/" + name).c_str(), "peer_ns", measure_queue_latency<Queue>);
        if constexpr (Queue::between == Between::processes) {
            Registration(("peers/kill/" + name).c_str(), "experiment_ns", measure_queue_kills<Queue>);
        }
    }
};

} // namespace bench
