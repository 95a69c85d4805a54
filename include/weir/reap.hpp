// reap.hpp (layer 5): reap(), which gives back what a dead process held, and the checks over a whole domain.
//
// Anyone may reap, several at once, and a reaper may itself be killed: reaping is idempotent, and doing it twice, at the
// same time, or being killed in the middle of it, equals doing it once. The caller says who is dead and must be right:
// of a process that is only stopped, buffers would be taken away that it still uses.
//
//     const weir::ProcessTable::Entry entry = table.entry(slot);       // first read the entry,
//     if (entry.alive && is_proven_dead(slot))                         // then establish that its owner is dead
//         weir::reap({table, slot, entry.incarnation}, buffers, ports);
//
// (A) In every port, each cell is looked at: a message of the dead that is queued in it is remembered, a cell whose
//     message was claimed is cleared. All of (A) ends before (B) begins.
// (B) In every pool, each reference word of the dead is freed by a compare-and-swap on the full word, except for those
//     that were remembered: they are messages. Lost hints are found again on the way.
// (C) The table's entry is ended, and then all who wait on the ports and pools are woken.
//
// Why it is sound: the dead pushes nothing more, so a message of its own was in its cell when (A) looked, unless somebody
// claimed it, and then its word changed and the compare-and-swap of (B) fails. (A) before (B) also ensures that no cell
// names a buffer that is about to be free. (C) wakes after it has ended the entry: a consumer that was woken before would
// still find its dead producer attached, and sleep on.
//
// reap || anything of others: yes; check_domain() || anything: yes, in CheckMode::live.
// Progress: lock-free, in time proportional to the cells and words.
// If the caller dies here: another reaper does what is left. [crash: reap_one, reap_two, reap_killed_reaper, two_at_once]
#pragma once

#include <weir/buffer_pool.hpp>
#include <weir/error.hpp>
#include <weir/port.hpp>
#include <weir/process_table.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#pragma GCC visibility push(default)
namespace weir {

/// What a reaper did.
struct ReapResult {
    std::error_code error; ///< reap_incomplete, other_parameters, used_after_fork: nothing was freed, the entry stays
    std::uint32_t freed_reference_count = 0;
    std::uint32_t kept_message_count = 0; ///< the dead one's messages that stay in their ports
    std::uint32_t cleared_cell_count = 0;
    bool ended_entry = false; ///< this reaper was the one that ended the entry
};

/// Gives back all that `dead` held. `buffers` and `ports` are all pools and all ports of the domain, each port under a
/// number of its own: where a cell names a buffer of another pool, or a reference of the dead another port, nothing is
/// freed (reap_incomplete); where two ports have one number, neither (other_parameters), nor in a forked child with
/// pools or ports that its parent opened (used_after_fork).
/// Returns: what it did, and why nothing, if so. Throws: std::bad_alloc alone.
/// Progress: lock-free.
/// If the caller dies here: another reaper does what is left. [crash: reap_one, reap_two, reap_killed_reaper]
[[nodiscard]] ReapResult reap(const Membership& dead, const SharedBufferAllocator& buffers,
                              std::span<const Port> ports);

/// Ends one's own membership: gives back whatever it still holds, and frees its slot. Its handles must be gone.
/// Returns: as reap(). Throws: std::bad_alloc alone.
/// Progress: lock-free.
/// If the caller dies here: it is reaped like any other. [crash: leave]
ReapResult leave(const Membership& membership, const SharedBufferAllocator& buffers, std::span<const Port> ports);

/// Frees what `membership`, the caller's own, still holds in one pool, and returns how many references. Its handles are
/// gone, so that none is between claim and clear; its messages stay in their ports.
/// Progress: wait-free, one pass over the pool's words.
/// If the caller dies here: the rest is reaped. [crash: domain_leave]
std::uint32_t free_held(BufferPoolView& pool, const Membership& membership) noexcept;

/// Whether somebody may be in the middle of something.
enum class CheckMode : std::uint8_t {
    quiet, ///< nobody is, and the dead were reaped: what a push or a pop leaves for a moment is broken too
    live,  ///< anybody may be, and the dead may wait to be reaped: what is named is broken whatever they do meanwhile
};

/// What is in a domain: exact in a quiet one.
struct DomainCensus {
    std::uint32_t free_count = 0; ///< buffers
    std::uint32_t held_reference_count = 0;
    std::uint32_t queued_reference_count = 0; ///< references in ports
    std::uint32_t unsent_reference_count = 0; ///< of these, marked as queued by who is just pushing, or died there
};

/// Names each broken invariant of a domain: all check()s, and that each queued reference is in exactly one cell of its port;
/// in CheckMode::live, where its owner has not ended, in one cell at most. Empty when it is sound.
[[nodiscard]] std::vector<std::string> check_domain(const ProcessTable& table, const SharedBufferAllocator& buffers,
                                                    std::span<const Port> ports, DomainCensus* census = nullptr,
                                                    CheckMode mode = CheckMode::quiet);

} // namespace weir
#pragma GCC visibility pop
