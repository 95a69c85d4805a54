// port_stream.hpp: streams through a bare port, between two processes and on one core. Used for the ports, and as what the
// scheduler is measured against.
#pragma once

#include "harness.hpp"

#include <array>
#include <span>

namespace bench {

/// Whether messages carry a number in their payload, or are told by what the port numbers them with: then the payload's
/// line stays where it is.
enum class Payload { written, untouched };

/// Takes a buffer out of the pool, with eight bytes in it unless it is to stay untouched.
template <Payload payload = Payload::written>
[[nodiscard]] weir::BufferPtr allocate_message(weir::BufferPool& pool) {
    weir::BufferPtr buffer;
    until_true<Backoff>([&] { return static_cast<bool>(buffer = pool.try_allocate()); });
    if constexpr (payload == Payload::written) {
        buffer.resize(sizeof(std::uint64_t));
    }
    return buffer;
}

template <Payload payload>
inline void write_number(const weir::BufferPtr& buffer, std::uint64_t number) noexcept {
    if constexpr (payload == Payload::written) {
        write_word(buffer, number);
    }
}
template <Payload payload>
[[nodiscard]] std::uint64_t read_number(const weir::BufferPtr& buffer) noexcept {
    if constexpr (payload == Payload::written) {
        return read_word(buffer);
    } else {
        return buffer.sequence();
    }
}

inline constexpr std::size_t batch_max = 64;

/// A stream from process 0 to process 1: allocate, write 8 bytes, push; pop, read and check, drop. Both wait by trying
/// again. Returns the time per message in ns, in process 1. A batch of 1 uses the single operations.
template <Payload payload = Payload::written>
[[nodiscard]] double run_port_stream(Process& me, SharedDomain::Member& member, std::size_t batch) {
    const std::uint64_t warm_up_count = scaled(20'000, 100) / batch * batch;
    const std::uint64_t count = scaled(500'000, 1'000) / batch * batch;
    weir::BufferPool& pool = member.pools[0];
    double elapsed_ns = 0;
    me.in_step();
    if (me.is_first()) {
        weir::Producer producer(member.ports[0]);
        me.in_step();
        std::uint64_t next = 0;
        const auto send_single = [&] {
            weir::BufferPtr buffer = allocate_message<payload>(pool);
            write_number<payload>(buffer, next++);
            until_true<Backoff>([&] { return producer.try_push(std::move(buffer)) == weir::PushResult::ok; });
        };
        std::array<weir::BufferPtr, batch_max> buffers;
        const auto send_batch = [&] {
            for (weir::BufferPtr& buffer : std::span(buffers).first(batch)) {
                buffer = allocate_message<payload>(pool);
                write_number<payload>(buffer, next++);
            }
            std::size_t sent = 0;
            until_true<Backoff>([&] {
                sent += producer.try_push(std::span(buffers).subspan(sent, batch - sent));
                return sent == batch;
            });
        };
        while (next < warm_up_count + count) {
            batch == 1 ? send_single() : send_batch();
        }
        me.in_step();
    } else {
        weir::Consumer consumer(member.ports[0]);
        me.in_step();
        std::uint64_t next = 0;
        const auto receive = [&next](weir::BufferPtr& buffer) {
            require(read_number<payload>(buffer) == next, "a message was lost, came twice or out of order");
            ++next;
            buffer.reset();
        };
        std::array<weir::BufferPtr, batch_max> buffers;
        const auto receive_until = [&](std::uint64_t end) {
            Backoff backoff;
            while (next < end) {
                if (batch == 1) {
                    if (weir::BufferPtr buffer = consumer.try_pop()) {
                        receive(buffer);
                        continue;
                    }
                } else if (const std::size_t got = consumer.try_pop(std::span(buffers).first(batch)); got > 0) {
                    for (weir::BufferPtr& buffer : std::span(buffers).first(got)) {
                        receive(buffer);
                    }
                    continue;
                }
                backoff();
            }
        };
        // The clock starts here in the middle of the stream, with both ends at work.
        receive_until(warm_up_count);
        const std::uint64_t received_before = next;
        const Stopwatch stopwatch;
        receive_until(warm_up_count + count);
        elapsed_ns = stopwatch.elapsed_ns() / static_cast<double>(next - received_before);
        me.in_step();
    }
    return elapsed_ns;
}

/// Through a port and back out of it, in one process: the time per message in ns, allocate to drop.
template <Payload payload = Payload::written>
[[nodiscard]] double run_port_on_one_core(SharedDomain::Member& member) {
    weir::Producer producer(member.ports[0]);
    weir::Consumer consumer(member.ports[0]);
    const std::uint64_t count = scaled(1'000'000, 1'000);
    const Stopwatch stopwatch;
    for (std::uint64_t number = 0; number < count; ++number) {
        weir::BufferPtr buffer = allocate_message<payload>(member.pools[0]);
        write_number<payload>(buffer, number);
        require(producer.try_push(std::move(buffer)) == weir::PushResult::ok, "cannot push");
        weir::BufferPtr popped = consumer.try_pop();
        require(popped && read_number<payload>(popped) == number, "not what was pushed");
    }
    return stopwatch.elapsed_ns() / static_cast<double>(count);
}

} // namespace bench
