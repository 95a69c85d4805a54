// How many bytes a second go from one process to another, message by message, against the messages' size: all of each is
// written by the sender, and read and verified by the receiver. Beside it the same through bare slots (bare_slots.hpp),
// in turn: port, bare, bare, port. What memory gives without any hand-over is in limits/memory.
#include "bare_slots.hpp"

#include <array>
#include <string>

namespace {

constexpr std::uint64_t mib = 1 << 20;

constexpr std::uint64_t sizes[] = {8, 64, 512, 4'096, 32'768, 262'144, 2 * mib, 16 * mib, 64 * mib};

/// Sends what is to warm up and then what is timed; the clock starts in the middle of the stream, in the receiver. Returns
/// the time per message in ns, in process 1.
template <class Send, class Receive>
double run_stream(bench::Process& me, std::uint64_t warm_up_count, std::uint64_t count, Send&& send,
                  Receive&& receive) {
    double elapsed_ns = 0;
    me.in_step();
    if (me.is_first()) {
        for (std::uint64_t number = 0; number < warm_up_count + count; ++number) {
            send(number);
        }
    } else {
        for (std::uint64_t number = 0; number < warm_up_count; ++number) {
            receive(number);
        }
        const bench::Stopwatch stopwatch;
        for (std::uint64_t number = warm_up_count; number < warm_up_count + count; ++number) {
            receive(number);
        }
        elapsed_ns = stopwatch.elapsed_ns() / static_cast<double>(count);
    }
    me.in_step();
    return elapsed_ns;
}

void measure_size(bench::Results& results, std::uint64_t message_bytes) {
    // 16 MiB of buffers, but at least two, so that one is written while the other is read.
    const auto length = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(16 * mib / message_bytes, 2, 256));
    const std::uint64_t warm_up_count = bench::scaled(2 * length, 2);
    const std::uint64_t count = bench::scaled(std::clamp<std::uint64_t>(256 * mib / message_bytes, 4, 500'000), 4);
    bench::Trial trial(2);
    auto& times_ns = trial.share<std::array<double, 2>>();
    const std::span<std::byte> slots = trial.share_bytes(bench::BareSlots::bytes(message_bytes, length));
    const bench::SharedDomain domain(
        {{.buffer_bytes = std::max(message_bytes, weir::buffer_bytes_min), .buffer_count = length}},
        {{.capacity = length}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join(bench::MapIn::everything);
        const auto run_port = [&] {
            weir::Producer producer(member.ports[0]);
            weir::Consumer consumer(member.ports[0]);
            times_ns[0] += run_stream(
                me, warm_up_count, count,
                [&](std::uint64_t number) {
                    weir::BufferPtr buffer;
                    bench::until_true<bench::Backoff>(
                        [&] { return static_cast<bool>(buffer = member.pools[0].try_allocate()); });
                    buffer.resize(message_bytes);
                    bench::write_words(buffer.bytes(), number);
                    bench::until_true<bench::Backoff>(
                        [&] { return producer.try_push(std::move(buffer)) == weir::PushResult::ok; });
                },
                [&](std::uint64_t number) {
                    weir::BufferPtr buffer;
                    bench::until_true<bench::Backoff>([&] { return static_cast<bool>(buffer = consumer.try_pop()); });
                    bench::require(buffer.size_bytes() == message_bytes && bench::all_words_are(buffer.bytes(), number),
                                   "a message was lost, came twice, out of order, or is not what was written");
                });
        };
        bench::BareSlots bare(slots, message_bytes, length, false);
        const auto run_bare = [&] {
            times_ns[1] += run_stream(
                me, warm_up_count, count,
                [&](std::uint64_t number) {
                    bare.send([&](std::span<std::byte> bytes) { bench::write_words(bytes, number); });
                },
                [&](std::uint64_t number) {
                    bare.receive<bench::Backoff>([&](std::span<const std::byte> bytes) {
                        bench::require(bench::all_words_are(bytes, number), "a message is not what was written");
                    });
                });
        };
        me.record("pingpong_before_ns", me.ping_pong());
        run_port();
        run_bare();
        run_bare();
        run_port();
        me.record("pingpong_after_ns", me.ping_pong());
        me.in_step();
        me.record("message_ns", times_ns[0] / 2);
        me.record("bare_ns", times_ns[1] / 2);
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

std::string name_of(std::uint64_t bytes) {
    return "size/" + (bytes >= mib     ? std::to_string(bytes / mib) + "MiB"
                      : bytes >= 1'024 ? std::to_string(bytes / 1'024) + "KiB"
                                       : std::to_string(bytes) + "B");
}

const bool registered = [] {
    for (const std::uint64_t bytes : sizes) {
        bench::Registration(name_of(bytes), "message_ns",
                            [bytes](bench::Results& results) { measure_size(results, bytes); });
    }
    return true;
}();

} // namespace
