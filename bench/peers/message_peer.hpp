// message_peer.hpp: what a channel of whole messages has to bring to be measured beside weir's ports: a class, and a line.
//
//     class MyChannel {
//     public:
//         static constexpr std::size_t message_bytes_max = ...;
//         explicit MyChannel(std::size_t message_bytes);    // before the processes are forked
//         class Sender {
//         public:
//             explicit Sender(MyChannel& channel);          // in the sending process
//             bool is_connected();                          // whether the receiver has been found
//             template <class Write> bool try_send(Write&& write);         // false: no room now
//         };
//         class Receiver { ...; template <class Read> bool try_receive(Read&& read); };   // false: nothing now
//     };
//     const bench::MessagePeer<MyChannel> my_channel("my_channel");
//
// try_send() calls `write(std::span<std::byte>)` once for each message, on the memory in which it is sent where the channel
// lends that, else on memory of its own; try_receive() calls `read(std::span<const std::byte>)`. Either may wait a
// few milliseconds inside, where the channel has threads of its own that need the processor.
//
// What is written and read: the message's number in the first eight bytes; where all pages are touched, also in the first
// eight bytes of each 4 KiB and in the last eight, each with its offset added. Whoever reads verifies all that was
// written, and that each number follows the one before. It is the same for all.
//
// Each repetition runs weir, peer, peer, weir, by the same two pinned processes.
#pragma once

#include "../harness.hpp"
#include "kill.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>

#include <unistd.h>

namespace bench {

enum class Touch { first_line, all_pages };

inline void write_payload(std::span<std::byte> payload, std::uint64_t number, Touch touch) noexcept {
    const auto write = [&](std::size_t offset) {
        const std::uint64_t word = number + offset;
        std::memcpy(payload.data() + offset, &word, sizeof(word));
    };
    write(0);
    if (touch == Touch::all_pages) {
        for (std::size_t offset = 4096; offset < payload.size(); offset += 4096) {
            write(offset);
        }
        write(payload.size() - 8);
    }
}

/// Empty where the words are not those of one message.
[[nodiscard]] inline std::optional<std::uint64_t> read_payload(std::span<const std::byte> payload,
                                                               Touch touch) noexcept {
    std::uint64_t number = 0;
    std::memcpy(&number, payload.data(), sizeof(number));
    bool is_right = true;
    const auto read = [&](std::size_t offset) {
        std::uint64_t word = 0;
        std::memcpy(&word, payload.data() + offset, sizeof(word));
        is_right = is_right && word == number + offset;
    };
    if (touch == Touch::all_pages) {
        for (std::size_t offset = 4096; offset < payload.size(); offset += 4096) {
            read(offset);
        }
        if (payload.size() > 8) {
            read(payload.size() - 8);
        }
    }
    return is_right ? std::optional(number) : std::nullopt;
}

/// How many messages of a size may be underway.
[[nodiscard]] constexpr std::uint32_t channel_depth(std::size_t message_bytes) noexcept {
    return message_bytes <= 4096 ? 256 : 16;
}

/// A name that nothing else has on this system.
[[nodiscard]] inline std::string unique_name() {
    static unsigned count = 0;
    return "weir-bench-" + std::to_string(getpid()) + "-" + std::to_string(++count);
}

/// weir: a pool and a port of a named domain, as its peers are seen.
class WeirChannel {
public:
    static constexpr std::size_t message_bytes_max = std::size_t{1} << 30;
    explicit WeirChannel(std::size_t message_bytes)
        : message_bytes_(message_bytes), depth_(channel_depth(message_bytes)),
          domain_(weir::Domain::join(name_.text())),
          pool_(domain_.pool(
              "pool", {.buffer_bytes = std::max<std::size_t>(message_bytes, 64), .buffer_count = 2 * depth_ + 16})) {}

    class Sender {
    public:
        explicit Sender(WeirChannel& channel)
            : message_bytes_(channel.message_bytes_), domain_(channel.join()), pool_(domain_.pool("pool")),
              producer_(domain_.producer("port",
                                         {.capacity = channel.depth_, .when_unconsumed = weir::WhenUnconsumed::fill})) {
        }
        bool is_connected() { return true; }
        template <class Write>
        bool try_send(Write&& write) {
            if (!buffer_) {
                buffer_ = pool_.try_allocate();
                if (!buffer_) {
                    return false;
                }
                buffer_.resize(message_bytes_);
                write(buffer_.bytes());
            }
            return producer_.try_push(std::move(buffer_)) == weir::PushResult::ok;
        }

    private:
        std::size_t message_bytes_;
        weir::Domain domain_;
        weir::BufferPool pool_;
        weir::Producer producer_;
        weir::BufferPtr buffer_;
    };

    class Receiver {
    public:
        explicit Receiver(WeirChannel& channel)
            : domain_(channel.join()),
              consumer_(domain_.consumer("port",
                                         {.capacity = channel.depth_, .when_unconsumed = weir::WhenUnconsumed::fill})) {
        }
        bool is_connected() { return true; }
        template <class Read>
        bool try_receive(Read&& read) {
            const weir::BufferPtr buffer = consumer_.try_pop();
            if (!buffer) {
                return false;
            }
            read(std::span<const std::byte>(buffer.bytes()));
            return true;
        }

    private:
        weir::Domain domain_;
        weir::Consumer consumer_;
    };

    /// Buffers that are not free though nobody is there any more.
    [[nodiscard]] std::uint64_t leaked() {
        domain_.reap();
        const std::vector<std::string> broken = domain_.check();
        require(broken.empty(), broken.empty() ? "" : broken.front().c_str());
        return pool_.buffer_count() - pool_.free_count();
    }

private:
    [[nodiscard]] weir::Domain join() const {
        weir::JoinOptions options;
        options.prefault = true;
        return weir::Domain::join(name_.text(), options);
    }

    DomainName name_;
    std::size_t message_bytes_;
    std::uint32_t depth_;
    weir::Domain domain_;
    weir::BufferPool pool_;
};

/// A channel between processes 0 and 1, as one of them sees it.
template <class Channel>
class OneWay {
public:
    OneWay(Channel& channel, bool sends) {
        if (sends) {
            sender_.emplace(channel);
        } else {
            receiver_.emplace(channel);
        }
    }

    void wait_until_connected() {
        until_true<Backoff>([&] { return sender_ ? sender_->is_connected() : receiver_->is_connected(); });
    }

    template <class Wait>
    void send(std::uint64_t number, Touch touch) {
        until_true<Wait>([&] {
            return sender_->try_send([&](std::span<std::byte> payload) { write_payload(payload, number, touch); });
        });
    }

    template <class Wait>
    void receive(std::uint64_t number, Touch touch) {
        until_true<Wait>([&] {
            return receiver_->try_receive([&](std::span<const std::byte> payload) {
                require(read_payload(payload, touch) == number, "a message was lost, came twice or was garbled");
            });
        });
    }

private:
    std::optional<typename Channel::Sender> sender_;
    std::optional<typename Channel::Receiver> receiver_;
};

/// Returns the time per message in ns, in process 1; its clock starts in the middle of the stream.
template <class Channel>
[[nodiscard]] double run_message_stream(Process& me, OneWay<Channel>& channel, std::uint64_t count, Touch touch) {
    const std::uint64_t warm_up_count = count / 10;
    me.in_step();
    double elapsed_ns = 0;
    if (me.is_first()) {
        for (std::uint64_t number = 0; number < warm_up_count + count; ++number) {
            channel.template send<Backoff>(number, touch);
        }
    } else {
        std::uint64_t next = 0;
        while (next < warm_up_count) {
            channel.template receive<Backoff>(next++, touch);
        }
        const Stopwatch stopwatch;
        while (next < warm_up_count + count) {
            channel.template receive<Backoff>(next++, touch);
        }
        elapsed_ns = stopwatch.elapsed_ns() / static_cast<double>(count);
    }
    me.in_step();
    return elapsed_ns;
}

/// Returns half a round trip in ns, in process 0.
template <class Channel>
[[nodiscard]] double run_message_ping_pong(Process& me, OneWay<Channel>& there, OneWay<Channel>& back,
                                           std::uint64_t count, Touch touch) {
    const std::uint64_t warm_up_count = count / 10;
    std::uint64_t number = 0;
    const auto play = [&](std::uint64_t round_count) {
        for (std::uint64_t round = 0; round < round_count; ++round, ++number) {
            if (me.is_first()) {
                there.template send<Spin>(number, touch);
                back.template receive<Spin>(number, touch);
            } else {
                there.template receive<Spin>(number, touch);
                back.template send<Spin>(number, touch);
            }
        }
    };
    me.in_step();
    play(warm_up_count);
    const Stopwatch stopwatch;
    play(count);
    const double elapsed_ns = stopwatch.elapsed_ns();
    me.in_step();
    return elapsed_ns / static_cast<double>(2 * count);
}

template <class Channel, std::size_t message_bytes, Touch touch>
void measure_message_stream(Results& results) {
    const std::uint64_t count = scaled(message_bytes <= 8192 ? 40'000 : message_bytes <= 65'536 ? 4'000 : 500, 20);
    const std::uint64_t weir_count = scaled(message_bytes <= 8192     ? 200'000
                                            : message_bytes <= 65'536 ? 20'000
                                                                      : 2'000,
                                            20);
    Trial trial(2);
    auto& times_ns = trial.share<std::array<double, 2>>();
    WeirChannel weir_channel(message_bytes);
    Channel peer_channel(message_bytes);
    trial.run([&](Process& me) {
        OneWay<WeirChannel> weir_way(weir_channel, me.is_first());
        OneWay<Channel> peer_way(peer_channel, me.is_first());
        peer_way.wait_until_connected();
        me.record("pingpong_before_ns", me.ping_pong());
        double weir_ns = run_message_stream(me, weir_way, weir_count, touch);
        double peer_ns = run_message_stream(me, peer_way, count, touch);
        peer_ns += run_message_stream(me, peer_way, count, touch);
        weir_ns += run_message_stream(me, weir_way, weir_count, touch);
        if (!me.is_first()) {
            times_ns = {weir_ns / 2, peer_ns / 2};
        }
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("weir_ns", times_ns[0]);
        me.record("peer_ns", times_ns[1]);
    });
    results = trial.results();
}

template <class Channel, std::size_t message_bytes, Touch touch>
void measure_message_latency(Results& results) {
    const std::uint64_t count = scaled(message_bytes <= 8192 ? 2'000 : message_bytes <= 65'536 ? 1'000 : 200, 10);
    const std::uint64_t weir_count = scaled(message_bytes <= 8192     ? 20'000
                                            : message_bytes <= 65'536 ? 10'000
                                                                      : 1'000,
                                            10);
    Trial trial(2);
    WeirChannel weir_there(message_bytes), weir_back(message_bytes);
    Channel peer_there(message_bytes), peer_back(message_bytes);
    trial.run([&](Process& me) {
        OneWay<WeirChannel> weir_out(weir_there, me.is_first()), weir_in(weir_back, !me.is_first());
        OneWay<Channel> peer_out(peer_there, me.is_first()), peer_in(peer_back, !me.is_first());
        peer_out.wait_until_connected();
        peer_in.wait_until_connected();
        me.record("pingpong_before_ns", me.ping_pong());
        double weir_ns = run_message_ping_pong(me, weir_out, weir_in, weir_count, touch);
        double peer_ns = run_message_ping_pong(me, peer_out, peer_in, count, touch);
        peer_ns += run_message_ping_pong(me, peer_out, peer_in, count, touch);
        weir_ns += run_message_ping_pong(me, weir_out, weir_in, weir_count, touch);
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("weir_ns", weir_ns / 2);
        me.record("peer_ns", peer_ns / 2);
    });
    results = trial.results();
}

/// How a channel is killed, where it is not as usual.
template <class Channel>
void adjust_kills(KillSetup& setup) {
    if constexpr (requires { Channel::adjust_kills(setup); }) {
        Channel::adjust_kills(setup);
    }
}

/// The sender or the receiver of messages of 64 KiB, or of as many as the channel carries, is killed.
template <class Channel>
void measure_message_kills(Results& results) {
    constexpr std::size_t message_bytes = std::min<std::size_t>(65'536, Channel::message_bytes_max);
    std::unique_ptr<Channel> channel;
    KillSetup setup;
    setup.kill_after_us = 20'000;
    setup.arrivals_after = 128;
    setup.drain_ms = 300;
    setup.renew = [&] {
        channel.reset();
        channel = std::make_unique<Channel>(message_bytes);
    };
    setup.produce = [&](KillProducer& me) {
        typename Channel::Sender sender(*channel);
        until_true<Backoff>([&] { return sender.is_connected(); });
        me.produce([&](std::uint64_t number) {
            return sender.try_send([&](std::span<std::byte> payload) {
                write_payload(payload, std::uint64_t{me.origin()} << 32 | number, Touch::all_pages);
            });
        });
    };
    setup.consume = [&](KillConsumer& me) {
        typename Channel::Receiver receiver(*channel);
        me.consume([&] {
            return receiver.try_receive([&](std::span<const std::byte> payload) {
                if (const std::optional<std::uint64_t> word = read_payload(payload, Touch::all_pages)) {
                    me.note(static_cast<std::uint32_t>(*word >> 32), *word & 0xffff'ffff);
                } else {
                    me.note_garbled();
                }
            });
        });
    };
    if constexpr (requires { channel->leaked(); }) {
        setup.leaked = [&] { return channel->leaked(); };
    }
    adjust_kills<Channel>(setup);
    results = run_kills(setup);
}

template <class Channel>
class MessagePeer {
public:
    explicit MessagePeer(const std::string& name) {
        add<8, Touch::first_line>("8b", name);
        if constexpr (Channel::message_bytes_max < 65'536) {
            add<Channel::message_bytes_max, Touch::all_pages>("8k", name);
        } else {
            add<65'536, Touch::all_pages>("64k", name);
            add<1'048'576, Touch::all_pages>("1m", name);
            add<1'048'576, Touch::first_line>("1m_first_line", name);
        }
        Registration(("peers/kill/" + name).c_str(), "experiment_ns", measure_message_kills<Channel>);
    }

private:
    template <std::size_t message_bytes, Touch touch>
    static void add(const std::string& size, const std::string& name) {
        Registration(("peers/message/" + size + "/" + name).c_str(), "peer_ns",
                     measure_message_stream<Channel, message_bytes, touch>);
        Registration(("peers/message_latency/" + size + "/" + name).c_str(), "peer_ns",
                     measure_message_latency<Channel, message_bytes, touch>);
    }
};

} // namespace bench
