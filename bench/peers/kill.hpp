// kill.hpp: what the others see when one of the processes at a queue or a channel is killed.
//
// One experiment: producers and consumers, each a process of its own, are at work; at a random moment one of them, chosen
// at random, gets SIGKILL. A successor is started at once in its place. The others must go on: all that are alive have to
// move messages again within the watchdog's time. Then the producers are told to stop, the consumers take what is left,
// and the ledger is read: each producer counts what it began and what it finished to push, each consumer notes what it
// took. What was finished and never noted is lost, except for the one message that a killed consumer may have had in its
// hands; what was noted twice came twice. After an experiment that did not end well everything is made anew, a queue after each.
//
// The counts are numbers of experiments (of `kill_count`), and of messages where the name says so:
//
//     went_on_count     all alive moved messages again, nothing was lost, came twice, or was garbled, nothing leaked
//     blocked_count     somebody alive moved nothing within the watchdog's time; the ledger is not read then
//     losing_count      messages were lost;  lost_messages_count: how many in all
//     doubling_count    messages came twice
//     garbling_count    a message's bytes were not those of one message
//     leaking_count     buffers did not come back;  leaked_buffers_count: how many in all
//     failed_count      a participant ended by itself with an error
//     pause_ns          the longest time from a kill to when all alive had moved messages again
#pragma once

#include "../harness.hpp"

#include <functional>
#include <memory>

namespace bench {

/// Zeroed memory that forked processes share, gone with its object.
class SharedBytes {
public:
    explicit SharedBytes(std::size_t bytes);
    SharedBytes(const SharedBytes&) = delete;
    SharedBytes& operator=(const SharedBytes&) = delete;
    ~SharedBytes();
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

private:
    std::span<std::byte> bytes_;
};

struct KillLedger;

/// A producer, as it sees itself.
class KillProducer {
public:
    KillProducer(KillLedger& ledger, std::uint32_t origin) noexcept : ledger_(&ledger), origin_(origin) {}

    /// Which producer it is; a successor is another one.
    [[nodiscard]] std::uint32_t origin() const noexcept { return origin_; }

    /// Pushes the numbers from 0 on, each until `try_push(number)` succeeds, until it is told to stop.
    template <class TryPush>
    void produce(TryPush&& try_push) {
        for (std::uint64_t number = 0; begin(number);) {
            for (Backoff backoff; !try_push(number);) {
                if (is_stopped()) {
                    return;
                }
                backoff();
            }
            finish(++number);
        }
    }

private:
    [[nodiscard]] bool begin(std::uint64_t number) noexcept;
    void finish(std::uint64_t count) noexcept;
    [[nodiscard]] bool is_stopped() const noexcept;

    KillLedger* ledger_;
    std::uint32_t origin_;
};

/// A consumer, as it sees itself.
class KillConsumer {
public:
    KillConsumer(KillLedger& ledger, unsigned number) noexcept : ledger_(&ledger), number_(number) {}

    /// Calls `try_pop` until it is told to stop; that notes what it took and returns whether there was anything.
    template <class TryPop>
    void consume(TryPop&& try_pop) {
        for (Backoff backoff; !is_stopped();) {
            if (!try_pop()) {
                note_nothing();
                backoff();
            }
        }
    }

    void note(std::uint32_t origin, std::uint64_t number) noexcept;
    void note_garbled() noexcept;

private:
    void move() noexcept;
    void note_nothing() noexcept;
    [[nodiscard]] bool is_stopped() const noexcept;

    KillLedger* ledger_;
    unsigned number_;
};

struct KillSetup {
    unsigned producer_count = 1;
    unsigned consumer_count = 1;
    unsigned kill_count = 200;
    unsigned watchdog_ms = 2'000;
    /// The kill comes at a random time up to this after all are at work.
    unsigned kill_after_us = 5'000;
    /// Messages that have to arrive after the kill: more than can have been underway before it.
    std::uint64_t arrivals_after = 4'096;
    /// How long nothing may come, once all consumers have found nothing, before that is taken for the end.
    unsigned drain_ms = 0;

    bool renews_always = false; ///< not only after an experiment that did not end well

    std::function<void()> renew;                ///< makes everything anew
    std::function<void(KillProducer&)> produce; ///< in a forked process
    std::function<void(KillConsumer&)> consume; ///< in a forked process
    std::function<std::uint64_t()> leaked = {}; ///< buffers that have not come back, when all have ended
};

[[nodiscard]] Results run_kills(const KillSetup& setup);

} // namespace bench
