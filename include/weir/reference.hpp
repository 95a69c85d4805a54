// reference.hpp (layer 1): the reference word, one of the two kinds of shared words that carry the truth.
//
// Each buffer has 4 (or 12) reference words. A word is FREE, HELD by a process, or QUEUED in a port, and names its
// owner: so each reference is attributed to a process incarnation, and there is no count that a crash could leave
// wrong. A buffer is free when all of its words are FREE; its reference count is the number of words that are not.
//
//     63               32 31         21 20      11 10     3 2     0
//     | generation 32    | incarnation | port 10  | slot 8 | state |        all-zero bits: FREE, never used
//
// The generation goes up at every transition, so that a compare-and-swap with an old word fails. It wraps after 2^32
// transitions of one word: a process that is stopped in front of its compare-and-swap for exactly that many meets an
// equal word; improbable, not impossible. A word holds the low 11 bits of its owner's 48-bit incarnation; who acts on a
// dead process's word reads the process table's entry again first (reap.hpp).
//
//     std::uint64_t word = 0;                                              // lies in shared memory
//     const std::uint64_t seen = weir::load_reference(word);
//     if (weir::is_free(seen) && weir::try_hold(word, seen, me)) { ... weir::set_free(word); }
//
// | transition                | who may        | how                                          |
// | FREE -> HELD(me)          | anyone         | try_hold: CAS (allocate, clone)              |
// | HELD(me) -> QUEUED(me)    | the holder     | set_queued: store, the word is its own (push) |
// | QUEUED -> HELD(me)        | a consumer     | try_claim: CAS (pop)                         |
// | QUEUED(me) -> HELD(me)    | who queued it  | set_held: store, before its cell was filled   |
// | HELD(me) -> FREE          | the holder     | set_free: store (drop, a failed allocation)  |
// | HELD(dead) -> FREE        | any reaper     | try_free: CAS on the full word               |
// | QUEUED(dead), in no cell  | any reaper     | try_free: CAS on the full word               |
//
// A word is an integer; or, in a test, what `shared()` makes accesses of that somebody watches: docs/interleavings.md.
//
// Concurrency: any call may run beside any other, as the table allows.
// Progress: each call is wait-free, one atomic access.
// If the caller dies here: the transition happened or it did not. [crash: allocate, clone, drop, push, pop]
#pragma once

#include <weir/platform.hpp>

#include <cstdint>

#pragma GCC visibility push(default)
namespace weir {

inline constexpr unsigned process_slot_count = 256;
inline constexpr unsigned port_id_count = 1024;
inline constexpr std::uint64_t incarnation_mask = (std::uint64_t{1} << 48) - 1;

/// In which of three ways a reference is somebody's.
enum class ReferenceState : std::uint8_t { free = 0, held = 1, queued = 2 };

/// Who owns a reference: the bits of a word that name a process slot and the low bits of its incarnation.
class Owner {
public:
    constexpr Owner() noexcept = default;
    constexpr Owner(std::uint8_t slot, std::uint64_t incarnation) noexcept
        : bits_(std::uint64_t{slot} << slot_shift | (incarnation & incarnation_low_mask) << incarnation_shift) {}

    [[nodiscard]] constexpr std::uint64_t bits() const noexcept { return bits_; }
    [[nodiscard]] constexpr std::uint8_t slot() const noexcept {
        return static_cast<std::uint8_t>(bits_ >> slot_shift);
    }
    friend constexpr bool operator==(Owner, Owner) noexcept = default;

    [[nodiscard]] static constexpr Owner of(std::uint64_t word) noexcept {
        Owner owner;
        owner.bits_ =
            word & (std::uint64_t{process_slot_count - 1} << slot_shift | incarnation_low_mask << incarnation_shift);
        return owner;
    }

private:
    static constexpr unsigned slot_shift = 3;
    static constexpr unsigned incarnation_shift = 21;
    static constexpr std::uint64_t incarnation_low_mask = 0x7ff;

    std::uint64_t bits_ = 0;
};

inline constexpr unsigned reference_port_shift = 11;
inline constexpr unsigned reference_generation_shift = 32;

/// What a word says: its state, whether that is FREE, the port that it is or was queued in, and its generation.
[[nodiscard]] constexpr ReferenceState reference_state(std::uint64_t word) noexcept {
    return static_cast<ReferenceState>(word & 7);
}
[[nodiscard]] constexpr bool is_free(std::uint64_t word) noexcept {
    return (word & 7) == 0;
}
[[nodiscard]] constexpr unsigned reference_port(std::uint64_t word) noexcept {
    return static_cast<unsigned>(word >> reference_port_shift) & (port_id_count - 1);
}
[[nodiscard]] constexpr std::uint32_t reference_generation(std::uint64_t word) noexcept {
    return static_cast<std::uint32_t>(word >> reference_generation_shift);
}

/// The word that follows `before`: of the next generation, in `state`, owned by `owner`, in or from port `port`.
[[nodiscard]] constexpr std::uint64_t next_reference(std::uint64_t before, ReferenceState state, Owner owner,
                                                     unsigned port) noexcept {
    const std::uint64_t generation = (before >> reference_generation_shift) + 1;
    return generation << reference_generation_shift | std::uint64_t{port} << reference_port_shift | owner.bits() |
           static_cast<std::uint64_t>(state);
}

static_assert(reference_state(next_reference(0, ReferenceState::queued, Owner(255, 2047), 1023)) ==
              ReferenceState::queued);
static_assert(reference_generation(next_reference(~std::uint64_t{0}, ReferenceState::free, Owner(), 0)) == 0);

/// The word as it is now.
template <class Word>
[[nodiscard]] inline std::uint64_t load_reference(const Word& word) noexcept {
    // (1) seq_cst: whoever sees a transition sees all that its maker did before it; and a waiting allocation that set
    // the waiters' bit does not look here before that; pairs with (2), (3), (4), (5), (6), (7), and (1) in
    // event_count.hpp
    return shared(word).load(std::memory_order_seq_cst);
}

/// FREE -> HELD(me), for who takes a buffer or a further reference of one. False: the word is not `seen` any more.
template <class Word>
[[nodiscard]] inline bool try_hold(Word& word, std::uint64_t seen, Owner me) noexcept {
    // (2) acq_rel, on failure acquire: what the last holder did with the buffer is over before ours begins; pairs with
    // (1), (3), (6), (7)
    return shared(word).compare_exchange_strong(seen, next_reference(seen, ReferenceState::held, me, 0),
                                                std::memory_order_acq_rel, std::memory_order_acquire);
}

/// QUEUED -> HELD(me), for who pops. False: another was faster.
template <class Word>
[[nodiscard]] inline bool try_claim(Word& word, std::uint64_t seen, Owner me) noexcept {
    // (3) acq_rel, on failure acquire: the message's bytes are there, and a loser clears a cell that was claimed before;
    // pairs with (1), (2), (4)
    return shared(word).compare_exchange_strong(seen,
                                                next_reference(seen, ReferenceState::held, me, reference_port(seen)),
                                                std::memory_order_acq_rel, std::memory_order_acquire);
}

/// Returns the new word. 0, and nothing is changed: the word is not held by `me`, as in set_free().
template <class Word>
inline std::uint64_t set_queued(Word& word, Owner me, unsigned port) noexcept {
    // relaxed: the word is ours alone while it is HELD
    const std::uint64_t before = shared(word).load(std::memory_order_relaxed);
    if (reference_state(before) != ReferenceState::held || Owner::of(before) != me) [[unlikely]] {
        return 0;
    }
    const std::uint64_t queued = next_reference(before, ReferenceState::queued, me, port);
    // (4) release: who claims the message by this word sees its bytes; pairs with (1), (3)
    shared(word).store(queued, std::memory_order_release);
    return queued;
}

/// QUEUED(me) -> HELD(me), for who queued it and found no room.
template <class Word>
inline void set_held(Word& word, Owner me) noexcept {
    // relaxed: the word is ours alone, no cell names it
    const std::uint64_t before = shared(word).load(std::memory_order_relaxed);
    // (5) release: keeps the order of this word's transitions for who reads it; pairs with (1)
    shared(word).store(next_reference(before, ReferenceState::held, me, 0), std::memory_order_release);
}

/// False, and nothing is changed: the word is not held by `me`. Its membership was ended (by leave(), or by a reaper that
/// was told that it is dead) while it still held the buffer, or somebody wrote what no operation writes.
template <class Word>
inline bool set_free(Word& word, Owner me) noexcept {
    // relaxed: the word is ours alone while it is HELD
    const std::uint64_t before = shared(word).load(std::memory_order_relaxed);
    if (reference_state(before) != ReferenceState::held || Owner::of(before) != me) [[unlikely]] {
        return false;
    }
    // (6) seq_cst: the next holder comes after all that we did with the buffer; and of two who drop the last two
    // references at once, one sees the other's word FREE; pairs with (1), (2), and (2), (4) in event_count.hpp
    shared(word).store(next_reference(before, ReferenceState::free, Owner(), 0), std::memory_order_seq_cst);
    return true;
}

/// For a reaper.
template <class Word>
[[nodiscard]] inline bool try_free(Word& word, std::uint64_t seen) noexcept {
    // (7) seq_cst, on failure acquire: as (6), for the dead owner; pairs with (1), (2), and (2), (4) in event_count.hpp
    return shared(word).compare_exchange_strong(seen, next_reference(seen, ReferenceState::free, Owner(), 0),
                                                std::memory_order_seq_cst, std::memory_order_acquire);
}

} // namespace weir
#pragma GCC visibility pop
