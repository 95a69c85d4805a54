// port.hpp (layer 4): Port, Producer and Consumer: a named queue of buffer references between processes.
//
// A port carries references, never bytes: a push hands the buffer over where it lies, and a pop takes it. Any number of
// processes push and pop at both ends. format() prepares zeroed memory once; each process makes its own Port over it,
// with the pools that it knows, and then a Producer or a Consumer for each thread that uses an end.
//
//     weir::Port::format(memory, {.capacity = 32});                   // once
//     weir::Port port(memory, me, buffers);                            // in each process
//
//     weir::Producer out(port);
//     out.push(std::move(frame));                                      // waits for room
//
//     weir::Consumer in(port);
//     while (weir::BufferPtr frame = in.pop())                         // empty at the end of the stream
//         show(frame.bytes());
//
// The ring's cells and the buffers' reference words are the truth (docs/design.md, section 4). A message is handed over
// in two steps, and each has a reader who can finish it for the dead: a push stores QUEUED into its reference word and
// then fills a cell; a pop claims the reference word, which is where it takes effect, and then clears the cell. A filled
// cell whose reference word was claimed may be cleared by anyone, so nobody waits for a consumer that was killed there.
//
// A full port does as it was formatted: `wait` lets push() wait, `refuse` returns PushResult::full at once, `drop_oldest`
// makes room by taking the oldest message out, as a consumer would.
//
// End of stream: a port that has had a producer, has none attached any more, and is then found empty is at its end. The
// end is not sticky: a new producer reopens the port, and wait_for_producer() waits for one. A consumer that comes before the first producer waits. A producer
// whose last consumer is gone gets PushResult::closed (or goes on filling the port, as it was formatted); it looks when
// consumers came or went, before it sleeps, and every 256 pushes. Dead processes count as attached until they are
// reaped. Of several producers the first may be done before the last has come: who starts them keeps a Producer of its
// own until all are there.
//
// | at the same time                              | allowed                        |
// | different handles, any threads and processes  | yes                            |
// | one Producer or Consumer from two threads     | no                             |
// | making handles from one Port in many threads  | yes                            |
// | check(), counters() || anything                | yes: they only read            |
// | format() || anything                           | no                             |
//
// Counters: each handle counts in a line of its own, with plain stores. A line belongs to {slot, incarnation}; who takes
// it over from a dead one goes on from its totals. Where the 32 lines of an end are taken, handles share one.
//
// The memory is not trusted: what it says is checked against what the opener knows, and a contradiction is
// PushResult::failed, or an empty pop, with last_error().
//
// After fork() the handles are the parent's still. In the child, what they would do fails with used_after_fork: pushes are
// PushResult::failed, pops are empty, waits return at once, handles cannot be made from an inherited Port, and destructors
// change nothing in shared memory. The child joins, and opens its own Port.
#pragma once

#include <weir/buffer_pool.hpp>
#include <weir/error.hpp>
#include <weir/event_count.hpp>
#include <weir/fork_guard.hpp>
#include <weir/platform.hpp>
#include <weir/process_table.hpp>
#include <weir/reference.hpp>
#include <weir/ring.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace weir {

/// What a push into a full port does.
enum class WhenFull : std::uint8_t { wait, refuse, drop_oldest };
/// What a push does where the last consumer is gone.
enum class WhenUnconsumed : std::uint8_t { close, fill };
/// What a push came to.
enum class PushResult : std::uint8_t { ok, full, closed, failed };
/// Whether a stream goes on, and where not, why.
enum class StreamEnd : std::uint8_t {
    open,   ///< there is a producer, or a message, or there was no producer yet
    closed, ///< the last producer closed its end
    died    ///< the last producer died
};
/// The two ends of a port.
enum class PortEnd : std::uint8_t { producer = 0, consumer = 1 };

/// The policies' names, for people to read.
[[nodiscard]] constexpr const char* name_of(WhenFull policy) noexcept {
    switch (policy) {
    case WhenFull::wait: return "wait";
    case WhenFull::refuse: return "refuse";
    case WhenFull::drop_oldest: break;
    }
    return "drop_oldest";
}
[[nodiscard]] constexpr const char* name_of(WhenUnconsumed policy) noexcept {
    return policy == WhenUnconsumed::close ? "close" : "fill";
}

/// How a port is made.
struct PortOptions {
    std::uint32_t capacity = 0; ///< messages, a power of two, 2 to 65,536
    std::uint32_t port_id = 0;  ///< its number in the domain, below 1,024
    WhenFull when_full = WhenFull::wait;
    WhenUnconsumed when_unconsumed = WhenUnconsumed::close;
    bool time_stamps = false; ///< reading the clock costs more than the rest of a push
};

/// What a handle did, or all handles of one end together.
struct PortCounters {
    std::uint64_t messages = 0;        ///< pushed or popped
    std::uint64_t bytes = 0;           ///< of these messages
    std::uint64_t stalls = 0;          ///< how often it found the port full, or empty
    std::uint64_t waits = 0;           ///< how often it went to sleep
    std::uint64_t wakes = 0;           ///< wake-ups that it sent
    std::uint64_t dropped = 0;         ///< messages that it took out to make room
    std::uint64_t high_water_mark = 0; ///< the most messages seen in the port, sampled
};

/// What one member has of an end.
struct PortHandles {
    std::uint8_t slot = 0;
    std::uint64_t incarnation = 0;
    bool is_alive = false;          ///< it has neither left nor been reaped
    std::uint32_t handle_count = 0; ///< attached
    PortCounters counters;          ///< of lines of its own; they go on from who had the lines before
};

/// Where one handle counts.
struct alignas(cache_line_bytes) PortCounterLine {
    std::uint64_t owner;     ///< 0: nobody's; else incarnation << 9 | slot << 1 | 1
    std::uint64_t counts[7]; ///< in the order of PortCounters
};
static_assert(sizeof(PortCounterLine) == cache_line_bytes);
static_assert(sizeof(PortCounters) == sizeof(PortCounterLine::counts));

inline constexpr unsigned port_counter_line_count = 32;

/// What lies in shared memory in front of the ring.
struct PortState {
    static constexpr std::uint64_t magic_value = 0x3130'7472'6f70'6577; // "weport01"

    std::uint64_t magic;
    std::uint32_t capacity;
    std::uint32_t port_id;
    std::uint8_t when_full;
    std::uint8_t when_unconsumed;
    std::uint8_t time_stamps;
    /// What one end writes when it waits, comes or goes, and the other end looks at: [0] producers', [1] consumers'.
    struct alignas(cache_line_bytes) End {
        std::uint32_t waiting_event; ///< an event count that this end sleeps on
        std::uint32_t changes;       ///< how often this end was attached to or left
    } ends[2];
    /// One word for each process slot: incarnation 48, handle count 15, closed 1.
    alignas(cache_line_bytes) std::uint64_t members[2][process_slot_count];
    PortCounterLine counter_lines[2][port_counter_line_count];
    PortCounterLine shared_counters[2];
};
static_assert(offsetof(PortState, ends) == cache_line_bytes);
static_assert(sizeof(PortState::End) == cache_line_bytes);
static_assert(sizeof(PortState) % cache_line_bytes == 0);

/// One process's view of a port; what its producers and consumers work on.
/// Progress: lock-free, as Producer's and Consumer's operations, whose parts these are; what only looks is wait-free.
/// If the caller dies here: as there. [crash: push, pop, pop_behind_claim, attach, detach]
class PortView {
public:
    /// `recheck` is what a handle that waits does before each sleep. Both outlive the view.
    /// Throws: misaligned, wrong_kind, truncated, corrupt, not_a_member.
    PortView(std::span<std::byte> memory, const Membership& membership, PoolSource& pools, Recheck* recheck = nullptr);

    /// Whether a parent process made this view.
    [[nodiscard]] bool is_foreign() const noexcept { return stamp_.is_foreign(); }

    [[nodiscard]] const PortOptions& options() const noexcept { return options_; }
    [[nodiscard]] const Membership& membership() const noexcept { return membership_; }
    [[nodiscard]] PortState& state() const noexcept { return *state_; }
    /// The ring of messages.
    [[nodiscard]] Ring& ring() noexcept { return ring_; }
    [[nodiscard]] const Ring& ring() const noexcept { return ring_; }
    /// What `end` sleeps on.
    [[nodiscard]] EventCount waiting_event(PortEnd end) const noexcept {
        return EventCount(state_->ends[static_cast<unsigned>(end)].waiting_event);
    }

    /// What a cell names: a reference of a buffer and the low bits of its generation.
    struct Item {
        BufferPoolView* pool = nullptr;
        std::uint32_t index = 0;
        unsigned reference = 0;
        std::uint32_t generation_low = 0;

        [[nodiscard]] std::uint64_t& word() const noexcept { return pool->reference(index, reference); }
        [[nodiscard]] bool is_queued_as(std::uint64_t seen) const noexcept {
            return reference_state(seen) == ReferenceState::queued &&
                   (reference_generation(seen) & generation_mask) == generation_low;
        }
    };
    /// The pool of buffer number `id`, or null.
    [[nodiscard]] BufferPoolView* find_pool(std::uint32_t id) const noexcept {
        // (2) acquire: the pool that was found last, perhaps by another thread; pairs with (8) in port.cpp
        BufferPoolView* pool = last_pool_.load(std::memory_order_acquire);
        return pool != nullptr && id - pool->first_buffer() < pool->buffer_count() ? pool : find_other_pool(id);
    }

    /// Whether `pool` is the pool of the buffer with that number, for who has the pool from a BufferPtr.
    [[nodiscard]] bool has_pool(const BufferPoolView& pool, std::uint32_t index) const noexcept {
        // relaxed: only compared with a view that the caller has
        return last_pool_.load(std::memory_order_relaxed) == &pool || find_pool(pool.first_buffer() + index) == &pool;
    }

    /// Whether a cell names a buffer of the pool that was found last.
    [[nodiscard]] bool is_of_last_pool(std::uint64_t cell) const noexcept {
        // (3) acquire: as in find_pool(); pairs with (8) in port.cpp
        const BufferPoolView* pool = last_pool_.load(std::memory_order_acquire);
        return pool != nullptr &&
               (Ring::value(cell) >> (reference_bits + generation_bits)) - pool->first_buffer() < pool->buffer_count();
    }

    /// False: the cell names a buffer that this view has no pool for, or a reference that no buffer has.
    [[nodiscard]] bool decode(std::uint64_t cell, Item& item) const noexcept {
        const std::uint32_t value = Ring::value(cell);
        const std::uint32_t id = value >> (reference_bits + generation_bits);
        item.pool = find_pool(id);
        item.reference = value >> generation_bits & ((1U << reference_bits) - 1);
        item.generation_low = value & generation_mask;
        if (item.pool == nullptr || item.reference >= item.pool->references_per_buffer()) {
            return false;
        }
        item.index = id - item.pool->first_buffer();
        return true;
    }

    /// What a cell says of a reference but for its generation.
    [[nodiscard]] static std::uint32_t name_of(const BufferPoolView& pool, std::uint32_t index,
                                               unsigned reference) noexcept {
        return (pool.first_buffer() + index) << (reference_bits + generation_bits) | reference << generation_bits;
    }

    /// Why a push or a pop failed.
    struct Failure {
        errc cause{};
        const char* field = "";
    };
    static constexpr Failure inherited{errc::used_after_fork, "handle of the parent process"};

    /// Pushes a reference that this process holds, `word`, which cells call `name`. ok: it is a message at `position` - 1
    /// now. full, corrupt: it is held. `before_queued` is called once, while the buffer is still the caller's. With
    /// `looks_first`, which tells that the port was full the last time, it looks for room before it touches the buffer;
    /// without, it does not look at the cell before its compare-and-swap, because a consumer that polls the cell would take
    /// its line away in between.
    template <class BeforeQueued>
    [[nodiscard, gnu::always_inline]] RingStatus enqueue(std::uint64_t& position, std::uint64_t& word,
                                                         std::uint32_t name, bool& looks_first, Failure& failure,
                                                         BeforeQueued&& before_queued) noexcept {
        std::uint64_t at = position;
        if (looks_first) [[unlikely]] {
            const RingStatus status = search_room(position, failure);
            if (status != RingStatus::ok) {
                return status;
            }
            at = position;
            looks_first = false;
        }
        before_queued();
        const std::uint64_t queued = set_queued(word, membership_owner_, options_.port_id);
        if (queued == 0) [[unlikely]] {
            failure = {membership_.is_alive() ? errc::corrupt : errc::not_a_member, "reference word: owner"};
            return RingStatus::corrupt;
        }
        const std::uint32_t value = name | (reference_generation(queued) & generation_mask);
        while (!ring_.fill(at, value))
            [[unlikely]] {
                position = at;
                const RingStatus status = search_room(position, failure);
                if (status != RingStatus::ok) {
                    set_held(word, membership_owner_);
                    looks_first = true;
                    return status;
                }
                at = position;
            }
        position = at + 1;
        return RingStatus::ok;
    }

    /// Claims the oldest message for this process; `cell` is what was read at `position`. ok: `item` is its reference, and
    /// no cell names it any more. `cleared` tells whether room was made, which is so at times without a message too.
    [[nodiscard, gnu::always_inline]] RingStatus claim(std::uint64_t& position, std::uint64_t cell, Item& item,
                                                       bool& cleared, Failure& failure) noexcept {
        for (std::uint64_t at = position;; at = position, cell = ring_.load_cell(at)) {
            if (!ring_.is_item_of(at, cell)) [[unlikely]] {
                std::uint64_t found = cell;
                const RingStatus status =
                    ring_.is_empty_of(at, cell) ? RingStatus::empty : ring_.search_item(position, found);
                if (status != RingStatus::ok) {
                    return status_of(status, failure);
                }
                at = position;
                cell = found;
            }
            if (!decode(cell, item)) [[unlikely]] {
                failure = {errc::unknown_buffer, "ring cell: buffer"};
                return RingStatus::corrupt;
            }
            std::uint64_t& word = item.word();
            prefetch_for_write(&word);
            prefetch_for_read(item.pool->payload(item.index));
            const std::uint64_t seen = load_reference(word);
            if (ring_.load_cell(at) != cell) [[unlikely]] {
                continue; // read again: `seen` may be of the buffer's next use, which is not this message
            }
            const bool is_queued = item.is_queued_as(seen);
            const bool is_ours = __builtin_expect(is_queued, true) && try_claim(word, seen, membership_owner_);
            // Before the buffer is handed out: no reference is dropped or pushed on while a cell still names it.
            cleared |= ring_.clear(at, cell);
            position = at + 1;
            if (is_ours) [[likely]] {
                // The claim made the room: whoever cleared the cell for us may have been killed before it told anyone.
                cleared = true;
                return RingStatus::ok;
            }
        }
    }

    /// Asks for the lines of the messages that come next, each once, for who pops at `position`; `until` is how far that
    /// went before. A header's and a payload's line come from another core, which takes longer than a whole pop.
    void prefetch_items(std::uint64_t position, std::uint64_t& until) const noexcept {
        if (static_cast<std::int64_t>(until - position) < 0) {
            until = position;
        }
        for (Item item; until - position < prefetch_distance; ++until) {
            const std::uint64_t cell = ring_.load_cell(until);
            // A pool that is not mapped yet is mapped when its message is popped, and not for a hint.
            if (!ring_.is_item_of(until, cell) || !is_of_last_pool(cell) || !decode(cell, item)) {
                return;
            }
            prefetch_for_write(&item.word());
            prefetch_for_read(item.pool->payload(item.index));
        }
    }

    /// Whether there is a message, claiming none. Clears claimed cells on its way, and then sets `cleared`.
    [[nodiscard]] bool has_message(std::uint64_t& position, bool& cleared) noexcept;

    /// Whether `end` has a handle of a live member.
    [[nodiscard]] bool is_attached(PortEnd end) const noexcept { return look_at_members(end) == StreamEnd::open; }

    /// Whether this membership has a handle of `end`.
    [[nodiscard]] bool is_attached_by_us(PortEnd end) const noexcept;

    /// Counts a handle of this process in or out.
    /// Throws: not_a_member, table_full, used_after_fork.
    void attach(PortEnd end);
    void detach(PortEnd end) noexcept;

    /// Whether `end` had handles and has none that is alive now; then `found_nothing()` is asked, and only if it says
    /// yes and nobody came meanwhile, the end is closed or died.
    template <class FoundNothing>
    [[nodiscard]] StreamEnd stream_end(PortEnd end, FoundNothing&& found_nothing) const noexcept {
        const std::uint32_t changes = load_shared(changes_word(end));
        if (changes == 0) {
            return StreamEnd::open;
        }
        const StreamEnd result = look_at_members(end);
        return result == StreamEnd::open || !found_nothing() || load_shared(changes_word(end)) != changes
                   ? StreamEnd::open
                   : result;
    }

    /// How often `end` was attached to or left: when it has moved, a look at the members is worth it.
    [[nodiscard]] std::uint32_t changes(PortEnd end) const noexcept {
        // relaxed: a hint to look at the members
        return shared(changes_word(end)).load(std::memory_order_relaxed);
    }

    /// A line to count in, of this process's own or the shared one.
    [[nodiscard]] PortCounterLine& take_counter_line(PortEnd end, bool& is_own) noexcept;
    void give_back_counter_line(PortCounterLine& line, bool is_own) noexcept;
    [[nodiscard]] PortCounters counters(PortEnd end) const noexcept;
    /// Who is attached to `end`, or was when it died, by slot; a snapshot.
    [[nodiscard]] std::vector<PortHandles> handles(PortEnd end) const;

    /// What a handle that waits does before each sleep.
    void recheck() const noexcept {
        if (recheck_ != nullptr) {
            recheck_->recheck();
        }
    }

private:
    static constexpr unsigned reference_bits = 4;
    static constexpr std::uint64_t prefetch_distance = 8;
    static constexpr unsigned generation_bits = 4;
    static constexpr std::uint32_t generation_mask = (1U << generation_bits) - 1;
    static_assert(20 + reference_bits + generation_bits == ring_value_bits);

    [[nodiscard]] std::uint32_t& changes_word(PortEnd end) const noexcept {
        return state_->ends[static_cast<unsigned>(end)].changes;
    }
    [[nodiscard]] std::uint64_t& member_word(PortEnd end, unsigned slot) const noexcept {
        return state_->members[static_cast<unsigned>(end)][slot];
    }
    /// Moves `position` from where there is no room to the tail: ok, full, corrupt.
    [[nodiscard]] RingStatus search_room(std::uint64_t& position, Failure& failure) noexcept;

    [[nodiscard]] static RingStatus status_of(RingStatus status, Failure& failure) noexcept {
        // Full or empty is no failure, and an earlier one is over: an empty pop would look like it for ever.
        failure = status == RingStatus::corrupt ? Failure{errc::corrupt, "ring cell: turn"} : Failure{};
        return status;
    }

    [[nodiscard]] BufferPoolView* find_other_pool(std::uint32_t id) const noexcept;
    void count_change(PortEnd end) noexcept;
    [[nodiscard]] StreamEnd look_at_members(PortEnd end) const noexcept;

    template <class Word>
    [[nodiscard]] static Word load_shared(const Word& word) noexcept {
        // (1) seq_cst: sees all that a member did before it left; and who is about to sleep looks here after it set the
        // waiters' bit; pairs with (1), (2), (3), (4) in port.cpp, and (1) in event_count.hpp
        return shared(word).load(std::memory_order_seq_cst);
    }

    ForkStamp stamp_;
    Membership membership_;
    Owner membership_owner_;
    PortOptions options_;
    PortState* state_ = nullptr;
    Ring ring_;
    PoolSource* pools_;
    Recheck* recheck_;
    mutable std::atomic<BufferPoolView*> last_pool_{nullptr}; ///< most ports carry buffers of one pool
};

/// A process's handle on a port, from which its ends are made. Cheap to copy.
class Port {
public:
    /// The bytes of shared memory that a port needs.
    /// Throws: invalid_capacity.
    /// Progress: wait-free.
    /// If the caller dies here: nothing is left. [crash: none, it only reckons]
    [[nodiscard]] static std::size_t bytes(const PortOptions& options);

    /// Prepares zeroed memory, before anyone opens it.
    /// Progress: wait-free; nobody else has it yet.
    /// Throws: invalid_capacity, invalid_size, misaligned.
    /// If the caller dies here: the memory has no valid port in it, or it has. [crash: domain_create_port]
    static void format(std::span<std::byte> memory, const PortOptions& options);

    /// Opens a formatted port for one membership, in the process that will use it; `buffers` are the pools whose buffers
    /// may come along.
    /// Progress: wait-free, but for the memory that it allocates.
    /// Throws: misaligned, wrong_kind, truncated, corrupt, not_a_member, used_after_fork: a pool is the parent process's.
    /// If the caller dies here: nothing was changed. [crash: domain_open_port]
    Port(std::span<std::byte> memory, const Membership& membership, SharedBufferAllocator buffers);

    /// A further handle on a view that somebody owns.
    explicit Port(std::shared_ptr<PortView> view) noexcept : view_(std::move(view)) {}

    [[nodiscard]] const PortOptions& options() const noexcept { return view_->options(); }

    /// The counters of all handles of one end, the dead and closed ones included. None in a forked child.
    [[nodiscard]] PortCounters counters(PortEnd end) const noexcept {
        return view_->is_foreign() ? PortCounters{} : view_->counters(end);
    }

    /// Names each broken invariant; empty when it is sound. What it names is broken whatever others do meanwhile.
    /// Progress: wait-free, a pass over the cells and members.
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] std::vector<std::string> check() const;

    [[nodiscard]] const std::shared_ptr<PortView>& view() const noexcept { return view_; }

private:
    std::shared_ptr<PortView> view_;
};

namespace detail {

/// Counts what one handle does.
class PortCounter {
public:
    PortCounter(PortView& port, PortEnd end) noexcept : line_(&port.take_counter_line(end, is_own_)) {}

    void add(std::uint64_t PortCounters::*count, std::uint64_t amount) noexcept {
        std::uint64_t& word = at(count);
        if (is_own_) {
            // relaxed: numbers for people to read, written by this handle alone
            shared(word).store(shared(word).load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
        } else {
            // relaxed: numbers for people to read
            shared(word).fetch_add(amount, std::memory_order_relaxed);
        }
    }
    void add_message(std::uint64_t bytes) noexcept {
        std::uint64_t& message_count = at(&PortCounters::messages);
        std::uint64_t& byte_count = at(&PortCounters::bytes);
        if (is_own_) [[likely]] {
            // relaxed: as in add()
            shared(message_count)
                .store(shared(message_count).load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
            // relaxed: as in add()
            shared(byte_count)
                .store(shared(byte_count).load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
        } else {
            add(&PortCounters::messages, 1);
            add(&PortCounters::bytes, bytes);
        }
    }
    void raise_high_water_mark(std::uint64_t depth) noexcept {
        std::uint64_t& word = at(&PortCounters::high_water_mark);
        // relaxed: a number for people to read
        if (shared(word).load(std::memory_order_relaxed) < depth) {
            // relaxed: as above; a shared line may lose one of two marks
            shared(word).store(depth, std::memory_order_relaxed);
        }
    }
    void give_back(PortView& port) noexcept { port.give_back_counter_line(*line_, is_own_); }

private:
    [[nodiscard]] std::uint64_t& at(std::uint64_t PortCounters::*count) noexcept {
        // PortCounters is seven words in the order of the line's (pinned above).
        static constexpr PortCounters order{0, 1, 2, 3, 4, 5, 6};
        return line_->counts[order.*count];
    }

    bool is_own_ = false;
    PortCounterLine* line_;
};

} // namespace detail

/// One thread's handle for pushing. Its destructor closes the end.
class Producer {
public:
    /// Progress: lock-free, a pass over the counter lines.
    /// Throws: not_a_member, table_full, used_after_fork.
    /// If the caller dies here: the port has a producer that is dead, or it has not; reaping settles it. [crash: attach]
    explicit Producer(const Port& port, const WaitOptions& wait = {});
    Producer(Producer&& other) noexcept = default;
    Producer& operator=(Producer&&) = delete;
    /// If the caller dies here: the end is closed, or it is open and its owner dead. [crash: detach]
    ~Producer();

    /// Pushes the buffer; only on ok it is taken from the caller. A buffer of which this process has further copies goes
    /// with a further reference of its own.
    /// Progress: lock-free.
    /// Returns: ok; full (not with drop_oldest); closed: the last consumer is gone; failed: see last_error(),
    /// too_many_references and used_after_fork among them.
    /// If the caller dies here: the message is in the port once, or the buffer is free after reaping.
    /// [crash: push, push_full, push_full_again, push_overtaken, push_claimed_cell, push_drop_oldest]
    [[nodiscard]] PushResult try_push(BufferPtr&& buffer) noexcept {
        const PushResult result = push_quietly(buffer);
        if (result == PushResult::ok) {
            notify();
        } else if (result == PushResult::full) {
            counter_.add(&PortCounters::stalls, 1);
        }
        return result;
    }

    /// As try_push(), but waits for room in a port that was formatted to wait.
    /// Progress: blocking.
    /// If the caller dies here: as in try_push(). [crash: push, wait_for_room]
    PushResult push(BufferPtr&& buffer) noexcept { return push_until(std::move(buffer), deadline_never); }
    PushResult push_for(BufferPtr&& buffer, std::chrono::nanoseconds timeout) noexcept {
        return push_until(std::move(buffer), deadline_after(timeout.count()));
    }
    PushResult push_until(BufferPtr&& buffer, DeadlineNs deadline_ns) noexcept;

    /// Pushes as many of the buffers as there is room for, the first ones, with one notification.
    /// Returns how many; where it is fewer than all, last_result() says why.
    /// Progress: lock-free.
    /// If the caller dies here: a prefix of the buffers was pushed. [crash: push_batch]
    [[nodiscard]] std::size_t try_push(std::span<BufferPtr> buffers) noexcept;

    /// As try_push(), but waits until all are pushed, in a port that was formatted to wait.
    /// Progress: blocking.
    /// If the caller dies here: a prefix of the buffers was pushed. [crash: push_batch, wait_for_room]
    std::size_t push(std::span<BufferPtr> buffers) noexcept;

    /// try_push() again, for who waits for room in its own way: a port that is still full is not counted anew, and with
    /// `looks_at_consumers` closed is certain.
    /// Progress: lock-free.
    /// If the caller dies here: as in try_push(). [crash: push, push_full_again]
    [[nodiscard]] PushResult retry_push(BufferPtr&& buffer, bool looks_at_consumers) noexcept {
        const PushResult result = push_quietly(buffer, looks_at_consumers);
        if (result == PushResult::ok) {
            notify();
        }
        return result;
    }

    [[nodiscard]] PushResult last_result() const noexcept { return last_result_; }
    /// Why the last push that was PushResult::failed was so; pushes that succeed leave it as it is.
    [[nodiscard]] std::error_code last_error() const noexcept { return make_error_code(failure_.cause); }
    /// What was wrong: the field of the shared memory, where last_error() is corrupt or unknown_buffer.
    [[nodiscard]] const char* last_error_field() const noexcept { return failure_.field; }

    /// For who sleeps on several ports at once: the port, and that a sleep is counted.
    /// Progress: wait-free.
    /// If the caller dies here: a sleep is counted, or it is not. [crash: wait_for_room]
    [[nodiscard]] const std::shared_ptr<PortView>& view() const noexcept { return port_; }
    void count_wait() noexcept { counter_.add(&PortCounters::waits, 1); }

private:
    static constexpr std::uint32_t consumer_look_interval = 256;
    static constexpr std::uint64_t depth_sample_interval = 64;
    static constexpr unsigned contradiction_max = 8;

    [[nodiscard]] PushResult push_quietly(BufferPtr& buffer, bool looks_at_consumers = false) noexcept;
    [[nodiscard]] PushResult push_reference(BufferPoolView& pool, std::uint32_t index, unsigned reference) noexcept;
    [[nodiscard]] PushResult finish_push(BufferPtr& buffer, unsigned reference, PushResult result) noexcept;
    [[nodiscard]] bool is_closed(bool looks_at_consumers) noexcept;
    [[nodiscard]] bool look_at_consumers() noexcept;
    [[nodiscard]] PushResult push_dropping(BufferPoolView& pool, std::uint32_t index, unsigned reference) noexcept;
    void notify() noexcept;
    void before_sleep() noexcept {
        count_wait();
        port_->recheck();
    }

    std::shared_ptr<PortView> port_;
    WaitOptions wait_;
    detail::PortCounter counter_;
    std::uint64_t position_;
    std::uint64_t oldest_position_;
    std::uint64_t next_sequence_ = 0;
    std::uint32_t consumer_changes_ = 0;
    std::uint32_t unlooked_count_ = 0;
    bool is_closed_ = false;
    bool looks_first_ = false; ///< the port was full
    PushResult last_result_ = PushResult::ok;
    PortView::Failure failure_;
};

/// One thread's handle for popping. Its destructor closes the end.
class Consumer {
public:
    /// Progress: lock-free, a pass over the counter lines.
    /// Throws: not_a_member, table_full, used_after_fork.
    /// If the caller dies here: the port has a consumer that is dead, or it has not; reaping settles it. [crash: attach]
    explicit Consumer(const Port& port, const WaitOptions& wait = {});
    Consumer(Consumer&& other) noexcept = default;
    Consumer& operator=(Consumer&&) = delete;
    /// If the caller dies here: the end is closed, or it is open and its owner dead. [crash: detach]
    ~Consumer();

    /// The oldest message, or nothing: not now, or never (stream_end() tells), or last_error().
    /// Progress: lock-free.
    /// If the caller dies here: the message is still in the port, or it was taken and its buffer is free after reaping.
    /// [crash: pop, pop_behind_claim]
    [[nodiscard]] BufferPtr try_pop() noexcept {
        if (port_->is_foreign()) [[unlikely]] {
            failure_ = PortView::inherited;
            return {};
        }
        // Who polls looks at one cell; all else is for when it has changed.
        const std::uint64_t cell = port_->ring().load_cell(position_);
        if (port_->ring().is_empty_of(position_, cell)) {
            failure_ = {};
            counter_.add(&PortCounters::stalls, 1);
            return {};
        }
        bool cleared = false;
        BufferPtr buffer = pop_item(cell, cleared);
        if (cleared) {
            notify();
        }
        if (!buffer) [[unlikely]] {
            counter_.add(&PortCounters::stalls, 1);
        }
        return buffer;
    }

    /// Waits for a message. Empty: the end of the stream, or last_error().
    /// Progress: blocking.
    /// If the caller dies here: as in try_pop(). [crash: pop, wait]
    [[nodiscard]] BufferPtr pop() noexcept { return pop_until(deadline_never); }
    /// Empty also when the time is over; stream_end() tells.
    [[nodiscard]] BufferPtr pop_for(std::chrono::nanoseconds timeout) noexcept {
        return pop_until(deadline_after(timeout.count()));
    }
    [[nodiscard]] BufferPtr pop_until(DeadlineNs deadline_ns) noexcept;

    /// Takes as many messages as there are and `buffers` has room for, with one notification; returns how many.
    /// Progress: lock-free.
    /// If the caller dies here: a prefix was taken. [crash: pop_batch]
    [[nodiscard]] std::size_t try_pop(std::span<BufferPtr> buffers) noexcept;

    /// As try_pop(), but waits for the first one. 0: the end of the stream, or last_error().
    /// Progress: blocking.
    /// If the caller dies here: a prefix was taken. [crash: pop_batch, wait]
    [[nodiscard]] std::size_t pop(std::span<BufferPtr> buffers) noexcept;

    /// Whether the stream is at its end, and how it came to it. For an inherited handle in a forked child it is closed.
    /// Progress: lock-free.
    /// If the caller dies here: nothing was changed but claimed cells cleared. [crash: pop_behind_claim]
    [[nodiscard]] StreamEnd stream_end() noexcept {
        if (port_->is_foreign()) [[unlikely]] {
            failure_ = PortView::inherited;
            return StreamEnd::closed;
        }
        bool cleared = false;
        const StreamEnd result =
            port_->stream_end(PortEnd::producer, [&]() noexcept { return !port_->has_message(position_, cleared); });
        if (cleared) {
            notify();
        }
        return result;
    }

    /// Whether there is a message, by one look at one cell; one that another consumer has just claimed counts.
    /// Progress: wait-free.
    /// If the caller dies here: nothing was changed. [crash: pop]
    [[nodiscard]] bool may_have_message() const noexcept {
        return !port_->ring().is_empty_of(position_, port_->ring().load_cell(position_));
    }
    /// Whether there is a message, by a look at all that can be one.
    /// Progress: lock-free.
    /// If the caller dies here: nothing was changed but claimed cells cleared. [crash: pop_behind_claim]
    [[nodiscard]] bool has_message() noexcept {
        bool cleared = false;
        const bool has_one = port_->has_message(position_, cleared);
        if (cleared) {
            notify();
        }
        return has_one;
    }

    /// Waits until pop() has something to wait for: a producer is attached, or a message is there. False: the time is over.
    /// For who goes on after the end of a stream, with the producer's next life.
    /// Progress: blocking.
    /// If the caller dies here: nothing was changed but claimed cells cleared. [crash: wait, pop_behind_claim]
    [[nodiscard]] bool wait_for_producer(std::chrono::nanoseconds timeout) noexcept;

    /// Why the last pop that got no message failed; none, where there was just no message.
    [[nodiscard]] std::error_code last_error() const noexcept { return make_error_code(failure_.cause); }
    /// Which field of the shared memory was wrong, where last_error() is corrupt or unknown_buffer.
    [[nodiscard]] const char* last_error_field() const noexcept { return failure_.field; }

    /// As a Producer's.
    /// Progress: wait-free.
    /// If the caller dies here: a sleep is counted, or it is not. [crash: wait]
    [[nodiscard]] const std::shared_ptr<PortView>& view() const noexcept { return port_; }
    void count_wait() noexcept { counter_.add(&PortCounters::waits, 1); }

private:
    [[nodiscard]] BufferPtr pop_quietly(bool& cleared) noexcept {
        if (port_->is_foreign()) [[unlikely]] {
            failure_ = PortView::inherited;
            return {};
        }
        return pop_item(port_->ring().load_cell(position_), cleared);
    }
    /// `cell` is what was read at the handle's position.
    [[nodiscard]] BufferPtr pop_item(std::uint64_t cell, bool& cleared) noexcept;
    void notify() noexcept;
    void before_sleep() noexcept {
        count_wait();
        port_->recheck();
    }

    std::shared_ptr<PortView> port_;
    WaitOptions wait_;
    detail::PortCounter counter_;
    std::uint64_t position_;
    std::uint64_t prefetched_until_ = 0;
    PortView::Failure failure_;
};

inline bool Producer::is_closed(bool looks_at_consumers) noexcept {
    // A number that changed tells that a look is worth it; a consumer that died changes none, hence the interval.
    return looks_at_consumers || port_->changes(PortEnd::consumer) != consumer_changes_ ||
                   ++unlooked_count_ == consumer_look_interval
               ? look_at_consumers()
               : is_closed_;
}

[[gnu::always_inline]] inline PushResult Producer::push_reference(BufferPoolView& pool, std::uint32_t index,
                                                                  unsigned reference) noexcept {
    BufferHeader& header = pool.header(index);
    std::uint64_t bytes = 0;
    bool has_numbered = false;
    const auto before_queued = [&]() noexcept {
        bytes = header.size_bytes;
        // relaxed: where two clones are pushed for the first time at once, both number the message
        if (shared(header.is_numbered).load(std::memory_order_relaxed) == 0 || pool.is_only_reference(header)) {
            header.number(next_sequence_,
                          port_->options().time_stamps ? static_cast<std::uint64_t>(monotonic_ns()) : 0);
            has_numbered = true;
        }
    };
    const RingStatus status =
        port_->enqueue(position_, BufferPoolView::reference(header, reference),
                       PortView::name_of(pool, index, reference), looks_first_, failure_, before_queued);
    if (status != RingStatus::ok) {
        if (has_numbered) {
            // relaxed: the number that it was given goes to another message
            shared(header.is_numbered).store(0, std::memory_order_relaxed);
        }
        return status == RingStatus::full ? PushResult::full : PushResult::failed;
    }
    ++next_sequence_;
    counter_.add_message(bytes);
    if (Ring::is_line_begin(position_)) {
        port_->ring().hint_tail(position_);
        port_->ring().prefetch_line_after(position_, 1);
        if (position_ % depth_sample_interval == 0) {
            counter_.raise_high_water_mark(port_->ring().size_hint(position_));
        }
    }
    return PushResult::ok;
}

inline PushResult Producer::push_quietly(BufferPtr& buffer, bool looks_at_consumers) noexcept {
    if (!buffer || port_->is_foreign()) [[unlikely]] {
        failure_ = port_->is_foreign() ? PortView::inherited : PortView::Failure{errc::no_buffer, "BufferPtr"};
        return last_result_ = PushResult::failed;
    }
    if (is_closed(looks_at_consumers)) {
        return last_result_ = PushResult::closed;
    }
    BufferPoolView& pool = *buffer.pool();
    unsigned reference = buffer.reference();
    const bool is_copied = buffer.is_copied();
    if (!port_->has_pool(pool, buffer.index())) [[unlikely]] {
        failure_ = pool.is_foreign()
                       ? PortView::inherited
                       : PortView::Failure{errc::unknown_buffer, "the buffer's pool was not given to the port"};
        return last_result_ = PushResult::failed;
    }
    if (is_copied && !pool.try_clone(buffer.index(), reference)) {
        failure_ = {errc::too_many_references, "reference words"};
        return last_result_ = PushResult::failed;
    }
    const PushResult result = push_reference(pool, buffer.index(), reference);
    if (result == PushResult::ok && !is_copied) [[likely]] {
        buffer.forget();
        return last_result_ = PushResult::ok;
    }
    return finish_push(buffer, reference, result);
}

inline void Producer::notify() noexcept {
    if (port_->waiting_event(PortEnd::consumer).notify()) {
        counter_.add(&PortCounters::wakes, 1);
    }
}

inline BufferPtr Consumer::pop_item(std::uint64_t cell, bool& cleared) noexcept {
    PortView::Item item;
    if (port_->claim(position_, cell, item, cleared, failure_) != RingStatus::ok) [[unlikely]] {
        return {};
    }
    if (Ring::is_line_begin(position_)) {
        port_->ring().hint_head(position_);
    }
    port_->prefetch_items(position_, prefetched_until_);
    BufferPtr buffer(*item.pool, item.index, item.reference);
    counter_.add_message(buffer.message_bytes());
    return buffer;
}

inline void Consumer::notify() noexcept {
    if (port_->waiting_event(PortEnd::producer).notify()) {
        counter_.add(&PortCounters::wakes, 1);
    }
}

} // namespace weir
#pragma GCC visibility pop
