#include <weir/futex.hpp>

#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace weir {

namespace {

constexpr std::int64_t ns_per_second = 1'000'000'000;

void system_wait(const std::uint32_t& word, std::uint32_t expected, DeadlineNs deadline_ns) noexcept {
    // FUTEX_WAIT_BITSET takes an absolute time, so that waking early does not stretch the wait.
    timespec until{};
    timespec* timeout = nullptr;
    if (deadline_ns != deadline_never) {
        const std::int64_t clamped_ns = deadline_ns > 0 ? deadline_ns : 0;
        until.tv_sec = static_cast<time_t>(clamped_ns / ns_per_second);
        until.tv_nsec = static_cast<long>(clamped_ns % ns_per_second);
        timeout = &until;
    }
    syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, expected, timeout, nullptr, FUTEX_BITSET_MATCH_ANY);
}

std::uint32_t system_wake(const std::uint32_t& word, std::uint32_t count_max) noexcept {
    const int count = count_max > INT_MAX ? INT_MAX : static_cast<int>(count_max);
    const long woken = syscall(SYS_futex, &word, FUTEX_WAKE, count, nullptr, nullptr, 0);
    return woken < 0 ? 0 : static_cast<std::uint32_t>(woken);
}

std::int64_t system_monotonic_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::int64_t>(now.tv_sec) * ns_per_second + now.tv_nsec;
}

constinit FutexOps ops{system_wait, system_wake, system_monotonic_ns};

} // namespace

void futex_wait(const std::uint32_t& word, std::uint32_t expected, DeadlineNs deadline_ns) noexcept {
    ops.wait(word, expected, deadline_ns);
}

std::uint32_t futex_wake(const std::uint32_t& word, std::uint32_t count_max) noexcept {
    return ops.wake(word, count_max);
}

std::int64_t monotonic_ns() noexcept {
    return ops.monotonic_ns();
}

DeadlineNs deadline_after(std::int64_t duration_ns) noexcept {
    const std::int64_t now_ns = monotonic_ns();
    return duration_ns >= deadline_never - now_ns ? deadline_never : now_ns + duration_ns;
}

FutexOps replace_futex_ops(const FutexOps& replacement) noexcept {
    const FutexOps before = ops;
    ops = replacement;
    return before;
}

} // namespace weir
