// platform.hpp (layer 0): what the machine and the compiler give us.
//
// The cache line size that shared layouts are padded to, a pause for spin loops, prefetches, and the assertion
// that names the rule a caller broke. Everything else in weir is built on these.
//
// Assertions are for what only a wrong program can do: a handle used from two threads, a buffer dropped twice.
// What can happen in operation (full, closed, corrupt bytes in shared memory) is a value or an exception of
// error.hpp and never an assertion. WEIR_ASSERT is active unless NDEBUG is defined.
//
//     WEIR_ASSERT(position % 2 == 0, "a position is even before its cell is filled");
//
// anything || anything: yes.
// Progress: everything here is wait-free. A process that dies here leaves nothing behind.
// Limits: Linux, x86-64 and aarch64, and compilers whose std::atomic_ref is lock-free for 32 and 64 bits.
#pragma once

#if __cplusplus < 202002L
#error "weir needs C++20: -std=c++20, CMake's CMAKE_CXX_STANDARD 20, or Meson's default_options: ['cpp_std=c++20']"
#endif

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(__linux__) == 0
#error "weir is for Linux: it uses futexes and POSIX shared memory"
#endif

#if defined(__SANITIZE_THREAD__)
#define WEIR_THREAD_SANITIZER
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WEIR_THREAD_SANITIZER
#endif
#endif

#pragma GCC visibility push(default)
namespace weir {

/// The unit that cores hand each other; shared layouts are padded to it. 64 on x86-64 and on nearly all aarch64.
inline constexpr std::size_t cache_line_bytes = 64;

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free, "shared words need lock-free 64-bit atomics");
static_assert(std::atomic_ref<std::uint32_t>::is_always_lock_free, "futex words need lock-free 32-bit atomics");

/// An atomic view of a shared word. Shared words are plain integers: no constructor has to have run on them, and
/// zeroed bytes are valid. Reading needs no write access, but std::atomic_ref<const T> comes only with C++26.
template <class Word>
[[nodiscard]] inline std::atomic_ref<Word> shared(const Word& word) noexcept {
    return std::atomic_ref<Word>(const_cast<Word&>(word));
}

/// Two shared words, aligned to 16 bytes, of which each is otherwise read and written alone. Where is_available, both are
/// compared and swapped in one step; std::atomic_ref has no such thing without a library that may take a lock. (To
/// ThreadSanitizer, which would not see it, it is not there.)
class SharedPair {
public:
    /// Of both words.
    using Words = std::array<std::uint64_t, 2>;

#if defined(__x86_64__) && !defined(WEIR_THREAD_SANITIZER)
    static constexpr bool is_available = true;
#else
    static constexpr bool is_available = false;
#endif

    explicit SharedPair(std::uint64_t& first) noexcept : words_(reinterpret_cast<std::uint64_t (*)[2]>(&first)) {}

    /// Whatever orders are named: it is a locked instruction.
    [[nodiscard]] bool compare_exchange_strong([[maybe_unused]] Words expected, [[maybe_unused]] Words desired,
                                               std::memory_order, std::memory_order) const noexcept {
        bool is_done = false;
#if defined(__x86_64__) && !defined(WEIR_THREAD_SANITIZER)
        asm volatile("lock cmpxchg16b %1"
                     : "=@ccz"(is_done), "+m"(*words_), "+a"(expected[0]), "+d"(expected[1])
                     : "b"(desired[0]), "c"(desired[1])
                     : "memory");
#endif
        return is_done;
    }

private:
    std::uint64_t (*words_)[2];
};

/// Tells the core that this is a spin loop.
inline void cpu_relax() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

// The prefetches are always inlined: gcc takes a function that only prefetches for one without effect, and drops the call.

/// Asks for a line that is about to be written, so that one transfer brings it instead of two.
[[gnu::always_inline]] inline void prefetch_for_write(const void* address) noexcept {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(address)));
#else
    __builtin_prefetch(address, 1);
#endif
}

/// Asks for a line that is about to be read.
[[gnu::always_inline]] inline void prefetch_for_read(const void* address) noexcept {
    __builtin_prefetch(address, 0);
}

[[nodiscard]] constexpr std::size_t round_up(std::size_t value, std::size_t multiple) noexcept {
    return (value + multiple - 1) / multiple * multiple;
}

namespace detail {
[[noreturn]] void assertion_failed(const char* rule, const char* file, int line) noexcept;
} // namespace detail

} // namespace weir
#pragma GCC visibility pop

#if defined(NDEBUG)
#define WEIR_ASSERT(condition, rule) static_cast<void>(0)
#else
/// Ends the process and names the rule, where a program breaks one; nothing with NDEBUG.
#define WEIR_ASSERT(condition, rule)                                                                                   \
    (__builtin_expect(static_cast<bool>(condition), 1) ? static_cast<void>(0)                                          \
                                                       : ::weir::detail::assertion_failed(rule, __FILE__, __LINE__))
#endif
