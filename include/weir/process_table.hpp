// process_table.hpp (layer 2): who is a member, and under which incarnation.
//
// The table has 256 slots, one word each: {incarnation 48, alive 1}. A process takes a free slot and owns everything
// that it holds under {slot, incarnation}; when it is gone, the slot's next owner has the next incarnation, so that a
// late reaper can tell the two apart. All-zero bytes are an empty table.
//
//     weir::ProcessTable table(memory);
//     const weir::Membership me = table.join();       // {slot, incarnation}
//     ...
//     weir::leave(me, pools, ports);                   // reap.hpp: gives back whatever is still held
//
// The table does not find out who is dead. The domain does, by a file lock that the kernel releases; who uses this
// header alone says so itself when it calls reap().
//
// join || join || end || is_alive: yes.
// Progress: lock-free; join() fails at most once for each slot, because another took it.
// Source: incarnations are the epochs of fencing tokens; the order of the steps is the model slots.pml's.
#pragma once

#include <weir/error.hpp>
#include <weir/platform.hpp>
#include <weir/reference.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace weir {

/// What lies in shared memory: {incarnation 48, alive 1} for each slot.
struct ProcessTableState {
    std::uint64_t entries[process_slot_count];
};
static_assert(sizeof(ProcessTableState) == process_slot_count * sizeof(std::uint64_t));

struct Membership;

/// A process-local view of a process table in shared memory. Cheap to copy.
class ProcessTable {
public:
    [[nodiscard]] static constexpr std::size_t bytes() noexcept { return sizeof(ProcessTableState); }

    /// Views `memory` (aligned to a cache line, at least bytes(); zeroed when the table is new).
    /// Throws: misaligned, invalid_size.
    /// If the caller dies here: nothing is left. [crash: none, it only looks]
    explicit ProcessTable(std::span<std::byte> memory);

    /// Takes a free slot.
    /// Throws: table_full.
    /// If the caller dies here: the slot is free, or it is taken by a dead process that can be reaped. [crash: join]
    [[nodiscard]] Membership join();

    /// Takes slot `slot`, if it is free: for who has a right to it already, by a lock.
    /// Progress: wait-free.
    /// If the caller dies here: as in join(). [crash: join]
    [[nodiscard]] std::optional<Membership> try_join(std::uint8_t slot) noexcept;

    /// Whether the entry still says that this incarnation is alive. A process that died stays alive here until it is
    /// reaped.
    [[nodiscard]] bool is_alive(std::uint8_t slot, std::uint64_t incarnation) const noexcept {
        return load_entry(slot) == alive_entry(incarnation);
    }

    /// What a slot's word says.
    struct Entry {
        std::uint64_t incarnation;
        bool alive;
    };
    /// The slot's owner, or who was it last.
    /// Progress: wait-free.
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] Entry entry(std::uint8_t slot) const noexcept {
        const std::uint64_t word = load_entry(slot);
        return {word >> 1, (word & 1) != 0};
    }

    /// The last step of reaping (C) and of leaving: {ALIVE, incarnation} -> {FREE, incarnation + 1}. False: another
    /// reaper was faster.
    /// Progress: wait-free.
    /// If the caller dies here: the entry is ended or it is not; another reaper does it again. [crash: leave, reap_one]
    bool end(std::uint8_t slot, std::uint64_t incarnation) noexcept {
        std::uint64_t expected = alive_entry(incarnation);
        // (1) seq_cst, on failure acquire: the slot's next owner comes after all that was reaped, and the waiters' bits
        // are looked at after this; a compare-and-swap, because a store by a late second reaper would free a newcomer's
        // entry; pairs with (2), (3), and (2) in event_count.hpp
        return shared(state_->entries[slot])
            .compare_exchange_strong(expected, alive_entry(incarnation) + 1, std::memory_order_seq_cst,
                                     std::memory_order_acquire);
    }

    /// Names each broken invariant; empty when the table is sound.
    /// Progress: wait-free, a pass over the slots.
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] std::vector<std::string> check() const;

private:
    [[nodiscard]] static constexpr std::uint64_t alive_entry(std::uint64_t incarnation) noexcept {
        return (incarnation & incarnation_mask) << 1 | 1;
    }

    [[nodiscard]] std::uint64_t load_entry(std::uint8_t slot) const noexcept {
        // (2) seq_cst: who sees that an incarnation ended sees all that was reaped of it; and who is about to sleep looks
        // here after it set the waiters' bit; pairs with (1), (3), and (1) in event_count.hpp
        return shared(state_->entries[slot]).load(std::memory_order_seq_cst);
    }

    ProcessTableState* state_;
};

/// A process's place in a table: the identity under which it holds references. It is a name, not a handle: a parent may
/// join for a child that it is about to fork, which then opens pools and ports with it; who inherits one by fork() and is
/// not meant by it must not use it. What is opened with it tells the two apart (fork_guard.hpp).
struct Membership {
    ProcessTable table;
    std::uint8_t slot;
    std::uint64_t incarnation;

    [[nodiscard]] Owner owner() const noexcept { return {slot, incarnation}; }
    [[nodiscard]] bool is_alive() const noexcept { return table.is_alive(slot, incarnation); }
};

inline std::optional<Membership> ProcessTable::try_join(std::uint8_t slot) noexcept {
    // relaxed: a look whether the slot is free; the compare-and-swap decides
    std::uint64_t seen = shared(state_->entries[slot]).load(std::memory_order_relaxed);
    // (3) acq_rel: what was reaped of the slot's last owner happened before we use it; pairs with (1), (2)
    if ((seen & 1) == 0 &&
        shared(state_->entries[slot])
            .compare_exchange_strong(seen, seen | 1, std::memory_order_acq_rel, std::memory_order_relaxed)) {
        return Membership{*this, slot, seen >> 1};
    }
    return std::nullopt;
}

inline Membership ProcessTable::join() {
    for (unsigned slot = 0; slot < process_slot_count; ++slot) {
        if (const std::optional<Membership> taken = try_join(static_cast<std::uint8_t>(slot))) {
            return *taken;
        }
    }
    throw_error(errc::table_full,
                "all 256 slots of the process table are taken; reap the dead, or use a second domain");
}

} // namespace weir
#pragma GCC visibility pop
