// stream.hpp: producers and consumers, as processes, that send numbered values through a queue as fast as they can, and
// verify all of them. Used for the ring and for what it is compared with.
#pragma once

#include "harness.hpp"

#include <algorithm>
#include <array>
#include <atomic>

namespace bench {

inline constexpr std::size_t stream_process_max = 16;
inline constexpr std::uint32_t stream_number_bits = 24;
inline constexpr std::uint32_t stream_end = 15U << stream_number_bits;

/// What the processes of one stream share.
struct Stream {
    struct alignas(weir::cache_line_bytes) Share {
        std::int64_t start_ns, end_ns;
        std::uint64_t count, sum, stall_count;
    };
    std::array<Share, stream_process_max> shares;
    alignas(weir::cache_line_bytes) std::atomic<std::uint32_t> finished_producer_count;
};

struct StreamShape {
    unsigned producer_count;
    unsigned consumer_count;
    std::uint64_t count_per_producer; ///< at most 2^24
    bool counts_stalls = false;
    bool keeps_order = true; ///< false: a queue that does not, of which only counts and sums are checked
};

/// Calls `attempt` until it succeeds; returns whether that took more than a millisecond. The clock is only read where
/// the first attempt fails, and only if stalls are counted.
template <class Attempt>
[[nodiscard]] bool until_true_stalled(bool counts_stalls, Attempt&& attempt) {
    if (attempt()) {
        return false;
    }
    const std::int64_t start_ns = counts_stalls ? weir::monotonic_ns() : 0;
    Backoff backoff;
    do {
        backoff();
    } while (!attempt());
    return counts_stalls && weir::monotonic_ns() - start_ns > 1'000'000;
}

/// Processes 0 to producer_count - 1 produce, those that follow consume; all call this with a `stream` of zeroed bytes.
/// A value has 28 bits: the producer's number and the value's. Each consumer checks that the values of each producer come
/// in order; in the end all counts and the sum of all values must be right. Returns the time per value in ns, over the
/// time from when the first process began until the last one was done.
template <class Producer, class Consumer>
[[nodiscard]] double run_stream(Process& me, Stream& stream, const StreamShape& shape, Producer&& producer,
                                Consumer&& consumer) {
    Stream::Share& share = stream.shares[me.number()];
    std::uint64_t stall_count = 0;
    me.in_step();
    share.start_ns = weir::monotonic_ns();
    if (me.number() < shape.producer_count) {
        const std::uint32_t first = me.number() << stream_number_bits;
        for (std::uint32_t number = 0; number < shape.count_per_producer; ++number) {
            stall_count += until_true_stalled(shape.counts_stalls, [&] { return producer(first | number); });
        }
        // The last producer to finish tells each consumer that it was the last.
        if (stream.finished_producer_count.fetch_add(1, std::memory_order_acq_rel) + 1 == shape.producer_count) {
            for (unsigned count = 0; count < shape.consumer_count; ++count) {
                until_true<Backoff>([&] { return producer(stream_end); });
            }
        }
    } else {
        std::array<std::uint32_t, stream_process_max> next{};
        std::uint64_t count = 0, sum = 0;
        const auto take = [&](std::uint32_t value) {
            const std::uint32_t from = value >> stream_number_bits;
            const std::uint32_t number = value & ((1U << stream_number_bits) - 1);
            require(from < shape.producer_count && (number >= next[from] || !shape.keeps_order),
                    "a value came twice or out of order");
            next[from] = number + 1;
            ++count;
            sum += value;
        };
        for (std::uint32_t value = 0;;) {
            stall_count += until_true_stalled(shape.counts_stalls, [&] { return consumer(value); });
            if (value == stream_end) {
                break;
            }
            take(value);
        }
        if (!shape.keeps_order) {
            // The end may have overtaken others; another consumer's end is handed on.
            unsigned end_count = 0;
            for (std::uint32_t value = 0; consumer(value);) {
                value == stream_end ? static_cast<void>(++end_count) : take(value);
            }
            for (; end_count > 0; --end_count) {
                until_true<Backoff>([&] { return producer(stream_end); });
            }
        }
        share.count = count;
        share.sum = sum;
    }
    share.stall_count = stall_count;
    share.end_ns = weir::monotonic_ns();
    me.in_step();

    const unsigned process_count = shape.producer_count + shape.consumer_count;
    const std::uint64_t total = shape.producer_count * shape.count_per_producer;
    std::uint64_t count = 0, sum = 0, expected_sum = 0;
    std::int64_t start_ns = share.start_ns, end_ns = share.end_ns;
    for (unsigned number = 0; number < process_count; ++number) {
        const Stream::Share& other = stream.shares[number];
        count += other.count;
        sum += other.sum;
        start_ns = std::min(start_ns, other.start_ns);
        end_ns = std::max(end_ns, other.end_ns);
    }
    for (std::uint64_t from = 0; from < shape.producer_count; ++from) {
        expected_sum += (from << stream_number_bits) * shape.count_per_producer +
                        shape.count_per_producer * (shape.count_per_producer - 1) / 2;
    }
    require(count == total, "values were lost, or came twice");
    require(sum == expected_sum, "the sum of the values is wrong");
    return static_cast<double>(end_ns - start_ns) / static_cast<double>(total);
}

/// How many waits of one stream took more than a millisecond.
[[nodiscard]] inline std::uint64_t stall_count(const Stream& stream) noexcept {
    std::uint64_t count = 0;
    for (const Stream::Share& share : stream.shares) {
        count += share.stall_count;
    }
    return count;
}

} // namespace bench
