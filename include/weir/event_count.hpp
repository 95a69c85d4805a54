// event_count.hpp (layer 2): sleep until something may have changed, at the cost of one load for whoever changes it.
//
// An event count is one 32-bit shared word: an epoch, and in bit 0 a sticky "somebody waits". It stands beside a
// condition (an item in a ring, a free buffer) that is looked at without it:
//
//     // the waiter                                     // the notifier
//     std::uint32_t key = event.prepare();              publish();            // seq_cst
//     if (!condition())                                 event.notify();
//         event.sleep(key, deadline);
//
// prepare() sets the bit before the condition is looked at again, and notify() reads it after the publication. All four
// accesses are seq_cst, so that not both can miss the other: either the waiter sees the condition, or the notifier sees
// the bit and wakes. With the bit clear, notify() is one load of a line that nobody writes, and no system call.
//
// A waiter never clears the bit, so a waiter that was killed leaves one that costs exactly one needless wake. A wake
// wakes everybody: a wake of one could be swallowed by a stopped process. A notifier that is killed between its
// publication and its wake leaves sleepers that were not told: each sleep is therefore limited to one re-check interval
// by its caller. The epoch has 31 bits; a waiter that is stopped between prepare() and the kernel's comparison while
// exactly 2^31 wakes happen would sleep for one re-check interval.
//
// Anything || anything: yes.
// Zeroed bytes are a valid event count on which nobody waits.
// Source: the event counts of Reed and Kanodia (1979), in the form of Concurrency Kit's ck_ec.
#pragma once

#include <weir/futex.hpp>
#include <weir/platform.hpp>

#include <cstdint>
#include <limits>

#pragma GCC visibility push(default)
namespace weir {

/// A view of one shared word.
class EventCount {
public:
    explicit EventCount(std::uint32_t& word) noexcept : word_(&word) {}

    /// Says that the caller is about to wait; it looks at its condition (seq_cst) after this, and only then sleeps.
    /// Progress: wait-free.
    /// If the caller dies here: the bit stays and costs one needless wake. [crash: wait]
    [[nodiscard]] std::uint32_t prepare() noexcept {
        // (1) seq_cst: the bit is set before the condition is looked at again; pairs with (2), (3), (4), and (1) in
        // reference.hpp, (1) in ring.hpp, (2) in process_table.hpp, (1) in port.hpp, (1) in io_thread.hpp, (3) in worker.hpp
        return shared(*word_).fetch_or(waiting_bit, std::memory_order_seq_cst) | waiting_bit;
    }

    /// Sleeps unless somebody notified since prepare() returned `key`. May return at any time.
    /// Progress: blocking, until the deadline at most.
    /// If the caller dies here: as in prepare(). [crash: wait]
    void sleep(std::uint32_t key, DeadlineNs deadline_ns) noexcept { futex_wait(*word_, key, deadline_ns); }

    /// Whether somebody waits, or was killed while it did; looked at after the publication, as in notify().
    /// Progress: wait-free.
    /// If the caller dies here: nothing was changed. [crash: notify]
    [[nodiscard]] bool has_waiters() const noexcept {
        // (4) seq_cst: looks for waiters after the publication; pairs with (1), and (6), (7) in reference.hpp
        return (shared(*word_).load(std::memory_order_seq_cst) & waiting_bit) != 0;
    }

    /// What sleepers give to the kernel, for who sleeps on several at once; they go by prepare() all the same.
    [[nodiscard]] const std::uint32_t& word() const noexcept { return *word_; }

    /// Wakes all who wait, if there are any; the caller has published (seq_cst) what they wait for.
    /// Returns true where a wake was sent.
    /// Progress: wait-free.
    /// If the caller dies here: who sleeps learns of the change at its next re-check. [crash: notify]
    bool notify() noexcept {
        // (2) seq_cst: looks for waiters after the publication; pairs with (1), and (6), (7) in reference.hpp, (2), (3),
        // (9), (10) in ring.hpp, (1) in process_table.hpp, (2), (3) in port.cpp, (2) in io_thread.cpp, (1) in scheduler.cpp
        const std::uint32_t seen = shared(*word_).load(std::memory_order_seq_cst);
        return (seen & waiting_bit) != 0 && wake_all(*word_, seen);
    }

private:
    static constexpr std::uint32_t waiting_bit = 1;

    [[gnu::noinline]] static bool wake_all(std::uint32_t& word, std::uint32_t seen) noexcept {
        // (3) seq_cst, on failure seq_cst: the next epoch, nobody waiting. One attempt: where it fails, another notifier
        // has moved the epoch on after our publication, and wakes; who sets the bit after that sees our publication;
        // pairs with (1), and (1) in sleeper_futex.cpp
        if (!shared(word).compare_exchange_strong(seen, (seen & ~waiting_bit) + 2, std::memory_order_seq_cst,
                                                  std::memory_order_seq_cst)) {
            return false;
        }
        futex_wake(word, std::numeric_limits<std::uint32_t>::max());
        return true;
    }

    std::uint32_t* word_;
};

/// How a wait goes about it: first it spins, then it sleeps in the kernel, and looks again by itself once an interval.
struct WaitOptions {
    std::uint32_t spin_count = 200;                 ///< looks before the first sleep; 0 sleeps at once
    std::int64_t recheck_interval_ns = 100'000'000; ///< the longest single sleep
};

/// What who waits does beside looking again, before each sleep: a domain looks for members that died, at most once a
/// re-check interval.
class Recheck {
public:
    /// Looks for the dead, if it is time to, and gives back what they held.
    /// Progress: a look at a clock, mostly; reaping takes time proportional to the cells and words.
    /// If the caller dies here: another member does it an interval later. [crash: recheck]
    virtual void recheck() noexcept = 0;

protected:
    ~Recheck() = default;
};

/// How closely a waiter looks at what it waits for.
enum class Look : std::uint8_t {
    quick,    ///< in each turn of the spin loop
    thorough, ///< now and then in the spin loop: also at what is too costly to look at in each turn
    last      ///< before a sleep, after the bit was set: at everything that a notifier may have changed
};

/// Waits until `ready(look)` returns true, or the deadline has passed. `ready` looks at shared words with seq_cst, may take
/// what it finds, and is called at least once, also after the deadline. `on_sleep()` is called before each sleep.
/// `options` are read anew in each turn, so that `ready` may shorten the next sleep.
/// Progress: blocking.
/// Returns what the last ready() returned.
/// If the caller dies here: as in prepare() and sleep(). [crash: wait]
template <class Ready, class OnSleep>
[[nodiscard]] bool wait_until(EventCount event, const WaitOptions& options, DeadlineNs deadline_ns, Ready&& ready,
                              OnSleep&& on_sleep) {
    constexpr std::uint32_t thorough_interval = 256;
    for (std::uint32_t spin = 0; spin < options.spin_count; ++spin) {
        const Look look = spin % thorough_interval == thorough_interval - 1 ? Look::thorough : Look::quick;
        if (ready(look)) {
            return true;
        }
        if (look == Look::thorough && deadline_ns != deadline_never && monotonic_ns() >= deadline_ns) {
            return false;
        }
        cpu_relax();
    }
    for (;;) {
        const std::uint32_t key = event.prepare();
        if (ready(Look::last)) {
            return true;
        }
        if (monotonic_ns() >= deadline_ns) {
            return false;
        }
        on_sleep();
        // The interval begins after on_sleep(): what that did once an interval is due again when the sleep ends.
        const std::int64_t now_ns = monotonic_ns();
        const std::int64_t left_ns = deadline_ns - now_ns;
        event.sleep(key, left_ns < options.recheck_interval_ns ? deadline_ns : now_ns + options.recheck_interval_ns);
    }
}

} // namespace weir
#pragma GCC visibility pop
