// fork_guard.hpp (layer 1): ForkStamp, by which a handle knows that it is used in a forked child.
//
// A forked child is no member of its parent's domain: what its inherited handles say they hold is held by the parent.
// So each handle carries the stamp of the process that made it, and each public call and each destructor looks at it
// first: in the child, calls report errc::used_after_fork, and destructors do nothing. The child may join for itself; what
// it then makes is its own.
//
//     const weir::ForkStamp stamp = weir::ForkStamp::capture();        // when the handle is made
//     if (stamp.is_foreign()) [[unlikely]] { ... }                      // one load and a comparison
//
// The stamp is a word in a page of private memory that the kernel hands to a forked child wiped (MADV_WIPEONFORK, since
// Linux 4.14), however the child is made: by fork(), or by a clone() that the C library knows nothing of. There the word
// is 0 until the child makes a handle itself; then it gets a number that no ancestor ever had, so that inherited handles
// stay foreign. A child that shares its parent's memory (vfork, a thread) is the same process as far as handles go.
//
// capture() || capture() || is_foreign(): yes, also while another thread forks.
// Progress: is_foreign() is wait-free; the first capture() of a process maps one page.
// If the caller dies here: nothing is left, as nothing here is shared. [crash: none, the process's own memory]
// Source: the kernel's flag was made for random number generators, whose state a child must not repeat.
#pragma once

#include <weir/platform.hpp>

#include <cstdint>

#pragma GCC visibility push(default)
namespace weir {

/// Which process made a handle.
class ForkStamp {
public:
    /// The stamp of no process: never foreign.
    constexpr ForkStamp() noexcept = default;

    /// The stamp of this process.
    /// Throws: std::system_error, where the kernel gives no such page.
    [[nodiscard]] static ForkStamp capture();

    /// Whether it was captured in another process, of which this one is a child.
    [[nodiscard]] bool is_foreign() const noexcept {
        // relaxed: the process's own word; it was set before the stamp was captured, and changes by forking alone
        return shared(*word_).load(std::memory_order_relaxed) != value_;
    }

private:
    static constexpr std::uint64_t no_process = 0;

    ForkStamp(const std::uint64_t* word, std::uint64_t value) noexcept : word_(word), value_(value) {}

    const std::uint64_t* word_ = &no_process;
    std::uint64_t value_ = no_process;
};

} // namespace weir
#pragma GCC visibility pop
