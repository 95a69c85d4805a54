// futex.hpp (layer 1): waiting in the kernel for a shared 32-bit word to change, and the clock of deadlines.
//
// The futexes are shared ones (never FUTEX_PRIVATE_FLAG): the kernel finds the waiters by the page, so the word may be
// mapped at different addresses in different processes. std::atomic::wait uses private futexes and does not work
// across processes.
//
//     while (shared(word).load(std::memory_order_acquire) == old)
//         weir::futex_wait(word, old, weir::deadline_never);
//
// The kernel compares the word and goes to sleep in one atomic step, so a wake between the caller's look and its sleep
// is not lost. Returning says nothing about the word: waking without cause, a signal, or the end of the time look the
// same, and the caller looks again.
//
// The three functions are the seam behind which tests put their own kernel: replace_futex_ops() exchanges them for the
// whole process. It is not meant for use while others wait.
//
// wait || wake: yes; replace_futex_ops || anything: no.
// Progress: futex_wait blocks, until woken or the deadline; futex_wake and monotonic_ns are wait-free.
// If the caller dies here: nothing is left but sleepers that were not told, and look again by themselves. [crash: wait, notify]
#pragma once

#include <cstdint>
#include <limits>

#pragma GCC visibility push(default)
namespace weir {

/// A point in time on CLOCK_MONOTONIC, in ns.
using DeadlineNs = std::int64_t;

inline constexpr DeadlineNs deadline_never = std::numeric_limits<DeadlineNs>::max();

/// What futex_wait, futex_wake and monotonic_ns call.
struct FutexOps {
    void (*wait)(const std::uint32_t& word, std::uint32_t expected, DeadlineNs deadline_ns) noexcept;
    std::uint32_t (*wake)(const std::uint32_t& word, std::uint32_t count_max) noexcept;
    std::int64_t (*monotonic_ns)() noexcept;
};

/// Sleeps while `word` holds `expected`, at most until the deadline.
/// Progress: blocking.
/// If the caller dies here: the kernel forgets the waiter. [crash: wait]
void futex_wait(const std::uint32_t& word, std::uint32_t expected, DeadlineNs deadline_ns) noexcept;

/// Wakes up to `count_max` of those who sleep on `word`; returns how many.
/// Progress: wait-free.
/// If the caller dies here: it woke them or it did not; who sleeps re-checks by itself. [crash: notify]
std::uint32_t futex_wake(const std::uint32_t& word, std::uint32_t count_max) noexcept;

/// Now, on the clock of deadlines, in ns.
[[nodiscard]] std::int64_t monotonic_ns() noexcept;

/// The deadline that lies `duration_ns` after now; never, where that is beyond the clock's range.
[[nodiscard]] DeadlineNs deadline_after(std::int64_t duration_ns) noexcept;

/// For tests: from now on the functions above call `ops`. Returns what they called before.
FutexOps replace_futex_ops(const FutexOps& ops) noexcept;

} // namespace weir
#pragma GCC visibility pop
