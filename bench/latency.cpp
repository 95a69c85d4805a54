// How long a message takes from when it should have been sent until it was received and read, at given rates.
//
// The loop is open: messages have a time at which they are to be sent, whatever became of those before. A message that is
// sent late, because the one before it took long or the sender had no processor, has been under way since its intended
// time; so a stall counts for all messages that it delays. (A sender that waits for the answer to its last message sends
// nothing during a stall, and measures it once.) The time ends when the receiver has read the whole message and looked at
// the clock.
//
// The sender looks at the clock until it is time, and never sleeps; the receiver spins, or sleeps at once where there is
// nothing. The same messages at the same rate also go through bare slots (bare_slots.hpp), in turn: port, bare, bare, port.
#include "bare_slots.hpp"
#include "histogram.hpp"

#include <array>
#include <string>

namespace {

struct Load {
    bool sleeps;
    std::uint64_t message_bytes;
    std::uint64_t message_rate; ///< a second
};

constexpr std::uint64_t mib = 1 << 20;

constexpr Load loads[] = {
    {false, 8, 10'000},  {false, 8, 100'000}, {false, 8, 1'000'000}, {false, 4'096, 10'000}, {false, 4'096, 100'000},
    {false, mib, 1'000}, {true, 8, 10'000},   {true, 8, 100'000},    {true, 4'096, 10'000},  {true, mib, 1'000},
};

/// As many messages as fit 16 MiB, but for a queue that holds what comes in a millisecond or two.
std::uint32_t queue_length(const Load& load) {
    return load.message_bytes >= mib ? 16 : 1'024;
}

/// Sends and receives a quarter of a second's messages, of which the first ones are not recorded.
template <class Send, class Receive>
void run_open_loop(bench::Process& me, const Load& load, bench::Histogram& latencies, Send&& send, Receive&& receive) {
    const std::uint64_t warm_up_count = bench::scaled(queue_length(load), 16);
    const std::uint64_t count = bench::scaled(load.message_rate / 4, 100) + warm_up_count;
    const auto period_ns = static_cast<std::int64_t>(1'000'000'000 / load.message_rate);
    me.in_step();
    if (me.is_first()) {
        bench::Spin spin;
        std::int64_t intended_ns = weir::monotonic_ns() + 100'000;
        for (std::uint64_t number = 0; number < count; ++number, intended_ns += period_ns) {
            while (weir::monotonic_ns() < intended_ns) {
                spin();
            }
            send(static_cast<std::uint64_t>(intended_ns));
        }
    } else {
        std::int64_t expected_ns = 0;
        for (std::uint64_t number = 0; number < count; ++number) {
            const auto intended_ns = static_cast<std::int64_t>(receive());
            const std::int64_t now_ns = weir::monotonic_ns();
            bench::require(number == 0 || intended_ns == expected_ns, "a message was lost, came twice or out of order");
            expected_ns = intended_ns + period_ns;
            if (number >= warm_up_count) {
                latencies.record(now_ns - intended_ns);
            }
        }
    }
    me.in_step();
}

[[nodiscard]] std::uint64_t read_message(std::span<const std::byte> bytes) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), sizeof(word));
    bench::require(bench::all_words_are(bytes, word), "a message is not what was written");
    return word;
}

void measure_latency(bench::Results& results, const Load& load) {
    const std::uint32_t length = queue_length(load);
    const weir::WaitOptions wait{.spin_count = load.sleeps ? 0U : 200U};
    bench::Trial trial(2);
    auto& histograms = trial.share<std::array<bench::Histogram, 2>>();
    const std::span<std::byte> slots = trial.share_bytes(bench::BareSlots::bytes(load.message_bytes, length));
    const bench::SharedDomain domain(
        {{.buffer_bytes = std::max<std::uint64_t>(load.message_bytes, weir::buffer_bytes_min), .buffer_count = length}},
        {{.capacity = length}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join(bench::MapIn::everything);
        const auto run_port = [&] {
            weir::Producer producer(member.ports[0]);
            weir::Consumer consumer(member.ports[0], wait);
            const auto send = [&](std::uint64_t word) {
                weir::BufferPtr buffer;
                bench::until_true<bench::Backoff>(
                    [&] { return static_cast<bool>(buffer = member.pools[0].try_allocate()); });
                buffer.resize(load.message_bytes);
                bench::write_words(buffer.bytes(), word);
                bench::until_true<bench::Backoff>(
                    [&] { return producer.try_push(std::move(buffer)) == weir::PushResult::ok; });
            };
            const auto receive = [&] {
                weir::BufferPtr buffer;
                if (load.sleeps) {
                    buffer = consumer.pop();
                } else {
                    bench::until_true<bench::Spin>([&] { return static_cast<bool>(buffer = consumer.try_pop()); });
                }
                bench::require(buffer && buffer.size_bytes() == load.message_bytes, "not what was pushed");
                return read_message(buffer.bytes());
            };
            run_open_loop(me, load, histograms[0], send, receive);
        };
        bench::BareSlots bare(slots, load.message_bytes, length, load.sleeps);
        const auto run_bare = [&] {
            const auto send = [&](std::uint64_t word) {
                bare.send([&](std::span<std::byte> bytes) { bench::write_words(bytes, word); });
            };
            const auto receive = [&] {
                std::uint64_t word = 0;
                bare.receive<bench::Spin>([&](std::span<const std::byte> bytes) { word = read_message(bytes); });
                return word;
            };
            run_open_loop(me, load, histograms[1], send, receive);
        };
        me.record("pingpong_before_ns", me.ping_pong());
        run_port();
        run_bare();
        run_bare();
        run_port();
        me.record("pingpong_after_ns", me.ping_pong());
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
    bench::report_histogram(results, "port", histograms[0]);
    bench::report_histogram(results, "bare", histograms[1]);
}

std::string name_of(const Load& load) {
    const std::string size = load.message_bytes == mib     ? "1MiB"
                             : load.message_bytes == 4'096 ? "4KiB"
                                                           : std::to_string(load.message_bytes) + "B";
    return std::string("latency/") + (load.sleeps ? "sleep" : "spin") + "/" + size + "/" +
           std::to_string(load.message_rate);
}

const bool registered = [] {
    for (const Load& load : loads) {
        bench::Registration(name_of(load), "port_p50_ns",
                            [load](bench::Results& results) { measure_latency(results, load); });
    }
    return true;
}();

} // namespace
