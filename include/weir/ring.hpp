// ring.hpp (layer 2): Ring, a lock-free FIFO of small values between any number of producers and consumers.
//
// It lives in plain shared memory, in which all-zero bytes are an empty ring, and it works between processes that may
// be killed at any instruction: each value goes in or out by one step on its cell (a compare-and-swap, or a store where nobody
// else can change it), so it happened or it did not.
//
//     alignas(64) std::byte memory[weir::Ring::bytes(8)] = {};   // or a shared mapping
//     weir::Ring ring(memory, 8);
//     weir::RingProducer producer(ring);
//     weir::RingConsumer consumer(ring);
//     producer.try_push(42);                                     // 28-bit values
//     std::uint32_t value;
//     if (consumer.try_pop(value) == weir::RingStatus::ok) { ... }
//
// A cell has 64 bits: turn (36) and value (28). Position p lives in cell p mod n on lap p / n; the turn is 2 * lap while
// the cell is empty for that lap and 2 * lap + 1 while it is filled. The turns are the truth. The two words `tail_hint`
// and `head_hint` are hints: positions that every handle publishes once in a while, so that a new or a late handle finds
// its place at once. A handle begins at the hint, keeps its own position, goes on from the later of that and the hint
// where the cell at its own is not what it wants, and moves it to
// *proven* positions only: a cell that is d > 0 turns ahead of the wanted one proves that the end lies at least
// ((d - 1) / 2) * n + 1 further. (A jump of a whole lap on seeing the next lap would skip what is in between.)
//
// Why the hint need not be read first: a handle's own position p is proven, so the true end is at p or later. Only who
// moves the end past p changes the cell of p from what it is for p's lap. So, whatever the others do meanwhile: a cell
// that is still empty for p's lap says that the tail is p (or for a consumer, that nothing is in the ring), and one that
// is filled for p's lap holds the oldest item. Where another was faster, the cell is ahead, or the compare-and-swap fails,
// and then the hint is read.
//
// An end that one handle has for itself may be exclusive: nobody else can change the cell that it works on, so it stores
// where a shared end compares and swaps. What a death leaves is the same; the other end may be shared. But who sleeps until
// the other end has done something (EventCount) needs it to be a shared one: a store may become visible only after the look
// at who waits, and then nobody is woken.
//
// A batch asks for the lines of its cells before it touches the first, and a shared end takes two cells in one step where
// the processor can (cmpxchg16b), which is what both would be one after the other with nothing in between.
//
// Turns wrap after 2^36, which is 2^35 laps; they are compared by their difference only. A process that is stopped in
// front of its compare-and-swap, or leaves its handle unused, for exactly that many laps meets an equal cell; improbable,
// not impossible.
//
// | at the same time             | allowed                                            |
// | push || push || pop          | yes, from different handles, threads and processes |
// | a handle || itself           | no: a handle belongs to one thread at a time       |
// | check(), depth() || anything | yes: they only read                                |
//
// Progress: lock-free. A call that runs alone ends within 2n + 64 steps, a batch within so many a value; of several, one
// always completes.
// If the caller dies here: the cell's compare-and-swap happened or it did not; the others see a message more or not,
// and no operation waits for the dead. [crash: ring_push, ring_pop]
// The memory is not trusted: turns that no operation writes are reported as RingStatus::corrupt. A batch ends in front of
// them; a single push or pop then says so.
//
// The port (port.hpp) is built on find_room, fill, find_item and clear, and decides by itself when an item is taken.
//
// Source: the per-cell turns go back to Vyukov's bounded MPMC queue (2010); here the cell carries the value too, so that
// no operation has a middle in which it can die.
#pragma once

#include <weir/error.hpp>
#include <weir/platform.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#pragma GCC visibility push(default)
namespace weir {

inline constexpr unsigned ring_value_bits = 28;
inline constexpr std::uint32_t ring_value_max = (std::uint32_t{1} << ring_value_bits) - 1;
inline constexpr std::uint32_t ring_capacity_min = 2;
inline constexpr std::uint32_t ring_capacity_max = 65'536;

/// What an operation on a ring came to.
enum class RingStatus : std::uint8_t { ok, full, empty, corrupt };

/// What lies in shared memory in front of the cells. (A word is an integer; or, in a test, what `shared()` makes accesses
/// of that somebody watches: docs/interleavings.md.)
template <class Word>
struct BasicRingState {
    alignas(cache_line_bytes) Word tail_hint;
    alignas(cache_line_bytes) Word head_hint;
};
using RingState = BasicRingState<std::uint64_t>;
static_assert(sizeof(RingState) == 2 * cache_line_bytes);
static_assert(offsetof(RingState, head_hint) - offsetof(RingState, tail_hint) == cache_line_bytes);

/// A process-local view of a ring in shared memory. Cheap to copy.
template <class Word>
class BasicRing {
public:
    /// What lies in front of the cells.
    using State = BasicRingState<Word>;

    /// The bytes of shared memory that a ring of `capacity` values needs.
    [[nodiscard]] static constexpr std::size_t bytes(std::uint32_t capacity) noexcept {
        return sizeof(State) + round_up(capacity * sizeof(Word), cache_line_bytes);
    }

    /// Views `memory` (aligned to a cache line, at least bytes(capacity); zeroed when the ring is new).
    /// Throws: invalid_capacity, misaligned, invalid_size.
    BasicRing(std::span<std::byte> memory, std::uint32_t capacity);

    [[nodiscard]] std::uint32_t capacity() const noexcept { return static_cast<std::uint32_t>(mask_ + 1); }

    /// The value of a filled cell's word.
    [[nodiscard]] static constexpr std::uint32_t value(std::uint64_t cell) noexcept {
        return static_cast<std::uint32_t>(cell) & ring_value_max;
    }
    [[nodiscard]] static constexpr bool is_filled(std::uint64_t cell) noexcept {
        return (cell >> ring_value_bits & 1) != 0;
    }

    /// The cell of `position` as it is now.
    [[nodiscard]] std::uint64_t load_cell(std::uint64_t position) const noexcept {
        // (1) seq_cst: what was written before the cell changed is seen, the message's bytes or the taker's last use;
        // and who is about to sleep looks here after it set the waiters' bit; pairs with (2), (3), (7), (8), (9), (10), and (1) in
        // event_count.hpp
        return shared(cells_[position & mask_]).load(std::memory_order_seq_cst);
    }

    /// Fills the empty cell of `position`. False: another was faster.
    [[nodiscard]] bool fill(std::uint64_t position, std::uint32_t value) noexcept {
        std::uint64_t expected = empty_cell(position);
        // (2) seq_cst, on failure acquire: hands over the message, and then the waiters' bit is looked at; a loser has
        // seen what the winner did; pairs with (1), (3), (8), (10), and (2) in event_count.hpp
        return shared(cells_[position & mask_])
            .compare_exchange_strong(expected, expected | filled_bit | value, std::memory_order_seq_cst,
                                     std::memory_order_acquire);
    }

    /// As fill(), for the only producer: nobody else fills a cell meanwhile. False: the cell is not empty for `position`.
    [[nodiscard]] bool fill_alone(std::uint64_t position, std::uint32_t value) noexcept {
        Word& cell = cells_[position & mask_];
        const std::uint64_t empty = empty_cell(position);
        // (6) acquire: the taker's last use of what the value stands for is over; pairs with (3), (8), (10)
        if (shared(cell).load(std::memory_order_acquire) != empty) {
            return false;
        }
        // (7) release: hands over what the value stands for; pairs with (1)
        shared(cell).store(empty | filled_bit | value, std::memory_order_release);
        return true;
    }

    /// Whether two cells can be changed in one step.
    static constexpr bool has_pairs = SharedPair::is_available && std::is_same_v<Word, std::uint64_t>;

    /// Fills the empty cells of `position`, which is even, and of the next one, in one step. False: one
    /// was not empty.
    [[nodiscard]] bool fill_pair(std::uint64_t position, std::uint32_t first, std::uint32_t second) noexcept {
        const std::uint64_t empty = empty_cell(position);
        // (9) seq_cst, on failure acquire: as (2), for two cells; pairs with (1), (3), (8), (10), and (2) in event_count.hpp
        return SharedPair(cells_[position & mask_])
            .compare_exchange_strong({empty, empty}, {empty | filled_bit | first, empty | filled_bit | second},
                                     std::memory_order_seq_cst, std::memory_order_acquire);
    }

    /// Asks for the line of cells that lies `lines` behind the one of `position`, for who will change them soon.
    void prefetch_line_after(std::uint64_t position, unsigned lines) const noexcept {
        prefetch_for_write(&cells_[(position + lines * line_cells) & mask_]);
    }

    /// How many of `wanted` cells from `position` on a batch goes for: all, or half of them, or a quarter, and so on until it
    /// is a line or `least` at most, of which is_ready(position) of the last one is true. Cells are filled and emptied in the
    /// order of their positions, so that one speaks for those before it. Asks for all their lines at once. Where there is no
    /// more than a line it looks again after a pause: who is that close to the other end takes its line away for each cell;
    /// and then once more after find_end(), which moves `position` to where others have left the end.
    template <class IsReady, class FindEnd>
    [[nodiscard]] std::size_t begin_batch(const std::uint64_t& position, std::size_t wanted, std::size_t least,
                                          IsReady&& is_ready, FindEnd&& find_end) const noexcept {
        const std::size_t enough = std::max(line_cells, least);
        const auto ready_count = [&] {
            std::size_t count = wanted;
            while (count > enough && !is_ready(position + count - 1)) {
                count = std::max(count / 2, least);
            }
            return count;
        };
        std::size_t count = ready_count();
        if (count <= line_cells) {
            cpu_relax();
            count = ready_count();
        }
        if (count <= line_cells) {
            find_end();
            count = ready_count();
        }
        for (std::size_t offset = 0; offset < count; offset += line_cells) {
            prefetch_for_write(&cells_[(position + offset) & mask_]);
        }
        return count;
    }

    /// Empties the cell of `position`, which held `cell`, for the next lap. False: another was faster.
    bool clear(std::uint64_t position, std::uint64_t cell) noexcept {
        // (3) seq_cst, on failure acquire: hands the room over, and then the waiters' bit is looked at; a loser has seen
        // what the winner did; pairs with (1), (2), (6), (9), and (2) in event_count.hpp
        return shared(cells_[position & mask_])
            .compare_exchange_strong(cell, (cell & ~std::uint64_t{ring_value_max}) + filled_bit,
                                     std::memory_order_seq_cst, std::memory_order_acquire);
    }

    /// Empties the cells of `position`, which is even, and of the next one, which held `first` and `second`, in one step.
    /// False: another was faster.
    [[nodiscard]] bool clear_pair(std::uint64_t position, std::uint64_t first, std::uint64_t second) noexcept {
        const std::uint64_t empty = (first & ~std::uint64_t{ring_value_max}) + filled_bit;
        // (10) seq_cst, on failure acquire: as (3), for two cells; pairs with (1), (2), (6), (9), and (2) in
        // event_count.hpp
        return SharedPair(cells_[position & mask_])
            .compare_exchange_strong({first, second}, {empty, empty}, std::memory_order_seq_cst,
                                     std::memory_order_acquire);
    }

    /// As clear(), for the only consumer: nobody else empties a cell meanwhile.
    void clear_alone(std::uint64_t position, std::uint64_t cell) noexcept {
        // (8) release: hands the room over; pairs with (1), (2), (6), (9)
        shared(cells_[position & mask_])
            .store((cell & ~std::uint64_t{ring_value_max}) + filled_bit, std::memory_order_release);
    }

    /// Moves `position` to the tail and says whether there is room (ok, full, corrupt). `is_taken(cell)` tells whether
    /// the item that last lap left in `cell` has been taken though the cell was not cleared; then it is cleared here.
    template <class IsTaken>
    [[nodiscard]] RingStatus find_room(std::uint64_t& position, IsTaken&& is_taken) noexcept {
        return load_cell(position) == empty_cell(position) ? RingStatus::ok : search_room(position, is_taken);
    }

    /// The other cases of find_room().
    template <class IsTaken>
    [[nodiscard]] RingStatus search_room(std::uint64_t& position, IsTaken&& is_taken) noexcept {
        position = later(position, load_hint(state_->tail_hint));
        Search search(*this, state_->tail_hint);
        for (;;) {
            const std::uint64_t cell = load_cell(position);
            const std::int64_t ahead = turns_ahead(cell, empty_cell(position));
            if (ahead == 0) {
                return cell == empty_cell(position) ? RingStatus::ok : RingStatus::corrupt;
            }
            if (ahead > 0) {
                if (!search.advance(position, ahead)) {
                    return RingStatus::corrupt;
                }
            } else if (ahead < -1) {
                return RingStatus::corrupt;
            } else if (is_taken(cell)) {
                clear(position, cell);
            } else if (load_cell(position) == cell) {
                // Read again: only if the cell did not change was its item in the ring when is_taken() looked.
                return RingStatus::full;
            }
        }
    }

    /// Moves `position` to the head and says whether there is an item (ok, empty, corrupt), whose cell it returns.
    [[nodiscard]] RingStatus find_item(std::uint64_t& position, std::uint64_t& cell) noexcept {
        cell = load_cell(position);
        if (is_item_of(position, cell)) [[likely]] {
            return RingStatus::ok;
        }
        return cell == empty_cell(position) ? RingStatus::empty : search_item(position, cell);
    }

    /// The usual cases of find_item(), for who keeps the position and the cell in registers.
    [[nodiscard]] bool is_item_of(std::uint64_t position, std::uint64_t cell) const noexcept {
        return (cell & ~std::uint64_t{ring_value_max}) == (empty_cell(position) | filled_bit);
    }
    [[nodiscard]] bool is_empty_of(std::uint64_t position, std::uint64_t cell) const noexcept {
        return cell == empty_cell(position);
    }

    /// The other cases of find_item(): what was read at `position` is neither its item nor empty for it.
    [[nodiscard]] RingStatus search_item(std::uint64_t& position, std::uint64_t& cell) const noexcept;

    /// The cells of a cache line.
    static constexpr std::size_t line_cells = cache_line_bytes / sizeof(Word);

    /// Whether a handle that has come to `position` by one operation does what it does once in a while, such as to publish
    /// a hint: once for each line of cells.
    [[nodiscard]] static constexpr bool is_line_begin(std::uint64_t position) noexcept {
        return position % line_cells == 0;
    }
    /// Publishes where an end is; for its handles, at each line's beginning.
    void hint_tail(std::uint64_t position) noexcept { publish(state_->tail_hint, position); }
    void hint_head(std::uint64_t position) noexcept { publish(state_->head_hint, position); }

    /// Where a new handle begins.
    [[nodiscard]] std::uint64_t tail_hint() const noexcept { return load_hint(state_->tail_hint); }
    [[nodiscard]] std::uint64_t head_hint() const noexcept { return load_hint(state_->head_hint); }

    /// Publishes `position` now, if it is later than the hint; for the end of a batch, and for a handle that goes.
    void publish_tail(std::uint64_t position) noexcept { publish_later(state_->tail_hint, position); }
    void publish_head(std::uint64_t position) noexcept { publish_later(state_->head_hint, position); }

    /// About how many items there are, from the hints.
    [[nodiscard]] std::uint64_t size_hint(std::uint64_t tail_position) const noexcept {
        // relaxed: a number for people to read
        const std::uint64_t head = shared(state_->head_hint).load(std::memory_order_relaxed);
        const std::uint64_t size = tail_position - head;
        return size <= mask_ + 1 ? size : 0;
    }

    /// How many items there are: about, while it is in use. Reads the cells between the hints and the ends.
    [[nodiscard]] std::uint64_t depth() const noexcept;

    /// Names each broken invariant; empty when it is sound. What it names is broken whatever others do meanwhile; in a ring
    /// that never stands still for as long as it takes to read it, cells are looked at one by one, and not together.
    [[nodiscard]] std::vector<std::string> check() const;

private:
    static constexpr std::uint64_t filled_bit = std::uint64_t{1} << ring_value_bits;

    [[nodiscard]] std::vector<std::uint64_t> load_cells() const;

    [[nodiscard]] std::uint64_t empty_cell(std::uint64_t position) const noexcept {
        return position >> capacity_log2_ << (ring_value_bits + 1);
    }

    /// By how many turns `cell` is ahead of `wanted`; a 36-bit difference with its sign.
    [[nodiscard]] static constexpr std::int64_t turns_ahead(std::uint64_t cell, std::uint64_t wanted) noexcept {
        return static_cast<std::int64_t>((cell & ~std::uint64_t{ring_value_max}) - wanted) >> ring_value_bits;
    }

    [[nodiscard]] static std::uint64_t later(std::uint64_t position, std::uint64_t hint) noexcept {
        return static_cast<std::int64_t>(hint - position) > 0 ? hint : position;
    }

    /// The way from a handle's position to the ring's end. Bytes that no operation writes could send it around in
    /// circles: where it took more steps than an end can be away from the hint while the hint stands still, it stops.
    class Search {
    public:
        Search(const BasicRing& ring, const Word& hint) noexcept
            : ring_(&ring), hint_(&hint), seen_hint_(load_hint(hint)) {}

        [[nodiscard]] bool advance(std::uint64_t& position, std::int64_t ahead) noexcept {
            const std::uint64_t laps = (static_cast<std::uint64_t>(ahead) - 1) / 2;
            position += (laps << ring_->capacity_log2_) + 1;
            if (++step_count_ <= 2 * std::uint64_t{ring_->capacity()} + 64) {
                return true;
            }
            const std::uint64_t hint = load_hint(*hint_);
            const bool others_moved = hint != seen_hint_;
            seen_hint_ = hint;
            step_count_ = 0;
            return others_moved;
        }

    private:
        const BasicRing* ring_;
        const Word* hint_;
        std::uint64_t seen_hint_;
        std::uint64_t step_count_ = 0;
    };

    [[nodiscard]] static std::uint64_t load_hint(const Word& hint) noexcept {
        // (4) acquire: a position learnt from a hint brings along what it skipped; pairs with (5)
        return shared(hint).load(std::memory_order_acquire);
    }

    static void publish(Word& hint, std::uint64_t position) noexcept {
        // (5) release: all that lies before the position happened before; pairs with (4)
        shared(hint).store(position, std::memory_order_release);
    }

    static void publish_later(Word& hint, std::uint64_t position) noexcept {
        if (later(position, load_hint(hint)) == position) {
            publish(hint, position);
        }
    }

    State* state_;
    Word* cells_;
    std::uint64_t mask_;
    unsigned capacity_log2_;
};

/// Its other members are compiled in the library, lib/ring.cpp.
using Ring = BasicRing<std::uint64_t>;

/// How many handles an end of a ring has at a time, in all processes.
enum class RingEnd : std::uint8_t {
    shared, ///< any number
    exclusive, ///< one, which then stores where it would compare and swap; of a dead one's successors, one. Not for what an
               ///< EventCount tells of: the store may come after the look at who waits
};

/// How far a handle looks now and then, to see whether the other end is far away, and how many lines ahead it then asks for:
/// a compare-and-swap waits for its line, a store does not (docs/performance.md).
inline constexpr std::uint64_t ring_far_cells = 64;
template <RingEnd end>
inline constexpr unsigned ring_lines_ahead = end == RingEnd::exclusive ? 3 : 1;

/// What handles are copied like: of an exclusive end's there is one.
template <RingEnd end>
struct RingHandleCopies {};
template <>
struct RingHandleCopies<RingEnd::exclusive> {
    RingHandleCopies() = default;
    RingHandleCopies(RingHandleCopies&&) = default;
    RingHandleCopies& operator=(RingHandleCopies&&) = default;
};

/// One thread's handle for pushing into a ring that is used alone.
template <RingEnd end, class Word = std::uint64_t>
class BasicRingProducer : RingHandleCopies<end> {
public:
    explicit BasicRingProducer(BasicRing<Word> ring) noexcept : ring_(ring), position_(ring.tail_hint()) {}

    /// Progress: lock-free.
    /// Returns ok, full or corrupt. `value` is at most ring_value_max.
    /// If the caller dies here: the value is in the ring or it is not. [crash: ring_push]
    [[nodiscard]] RingStatus try_push(std::uint32_t value) noexcept {
        WEIR_ASSERT(value <= ring_value_max, "a ring carries 28-bit values");
        // Not even a look at the cell comes before its compare-and-swap, while there was room the last time: a consumer that
        // polls the cell would take its line away in between.
        while (looks_first_ || !fill(value)) {
            const RingStatus status = find_room();
            looks_first_ = status != RingStatus::ok;
            if (looks_first_) {
                return status;
            }
        }
        if (Ring::is_line_begin(++position_)) {
            begin_line();
        }
        return RingStatus::ok;
    }

    /// Pushes the first ones of the values: all for which there is room where they are a line of cells or fewer (8); else
    /// all, or about a half, a quarter and so on of them, as far as there is room for so many. 0 only where it is full or
    /// corrupt, or there is no room for `least`, at most as many as there are values or cells. (Fewer than `least` where another
    /// producer was faster.) Where both ends are busy, `least` keeps them out of each other's lines; together the two
    /// ends' must be no more than the capacity and one, or each may wait for the other for ever.
    /// Progress: lock-free.
    /// Returns how many.
    /// If the caller dies here: a prefix of the values is in the ring. [crash: ring_push_batch]
    [[nodiscard]] std::size_t try_push(std::span<const std::uint32_t> values, std::size_t least = 1) noexcept {
        WEIR_ASSERT((least <= values.size() && least <= ring_.capacity()) || least == 1,
                    "a batch pushes no more values than it is given, or than the ring has cells");
        if (least > 1 && !is_room_for(least)) {
            return 0;
        }
        const std::uint64_t seen_at = position_;
        std::size_t count = 0;
        if (values.size() > ring_.line_cells) {
            values = values.first(ring_.begin_batch(
                position_, values.size(), least, [this](std::uint64_t position) { return is_room(position); },
                [this] { find_tail(); }));
        }
        // Where others have left it behind, it took for room what lies behind the tail. (Looked at now that its line was asked for.)
        if (least > 1 && (position_ != seen_at || !is_room(position_)) &&
            (find_room() != RingStatus::ok || !is_room_for(least))) {
            return 0;
        }
        if (values.size() > ring_.line_cells) {
            if constexpr (end == RingEnd::shared && BasicRing<Word>::has_pairs) {
                if (position_ % 2 != 0 && try_push(values[0]) == RingStatus::ok) {
                    count = 1;
                }
                count += push_pairs(values.subspan(count));
            }
        }
        while (count < values.size() && try_push(values[count]) == RingStatus::ok) {
            ++count;
        }
        return count;
    }

private:
    [[nodiscard]] bool is_room(std::uint64_t position) const noexcept {
        return ring_.is_empty_of(position, ring_.load_cell(position));
    }

    // Out of line: the usual case of a push and of a batch stays short.
    [[nodiscard, gnu::noinline]] RingStatus find_room() noexcept {
        return ring_.search_room(position_, [](std::uint64_t) { return false; });
    }

    /// Where others have left it behind, they have published where they are. Asks the hint, and not the cell, whose line the
    /// other end may be working on.
    void find_tail() noexcept {
        if (static_cast<std::int64_t>(ring_.tail_hint() - position_) > 0) {
            static_cast<void>(find_room());
        }
    }

    /// Whether there is room for `least` values. Others may have left this handle behind, and may do so again while it looks
    /// for the tail: only there is too little too little.
    [[nodiscard]] bool is_room_for(std::size_t least) noexcept {
        while (!is_room(position_ + least - 1)) {
            const std::uint64_t looked_from = position_;
            if (find_room() != RingStatus::ok || position_ == looked_from) {
                return false;
            }
        }
        return true;
    }

    /// Publishes where it is, and asks for a line ahead while the other end is far away: close to it, that would take a line
    /// away from who is working on it.
    void begin_line() noexcept {
        ring_.hint_tail(position_);
        if (position_ % ring_far_cells == 0) {
            is_far_ = is_room(position_ + ring_far_cells);
        }
        if (is_far_) {
            ring_.prefetch_line_after(position_, ring_lines_ahead<end>);
        }
    }

    /// Two by two, from an even position on, as long as that works: half as many locked instructions.
    [[nodiscard]] std::size_t push_pairs(std::span<const std::uint32_t> values) noexcept {
        WEIR_ASSERT(std::ranges::all_of(values, [](std::uint32_t value) { return value <= ring_value_max; }),
                    "a ring carries 28-bit values");
        std::size_t count = 0;
        while (position_ % 2 == 0 && count + 2 <= values.size() &&
               ring_.fill_pair(position_, values[count], values[count + 1])) {
            count += 2;
            position_ += 2;
        }
        if (count > 0) {
            ring_.hint_tail(position_);
        }
        return count;
    }

    [[nodiscard]] bool fill(std::uint32_t value) noexcept {
        if constexpr (end == RingEnd::exclusive) {
            return ring_.fill_alone(position_, value);
        } else {
            return ring_.fill(position_, value);
        }
    }

    BasicRing<Word> ring_;
    std::uint64_t position_;
    bool looks_first_ = false; ///< the ring was full
    bool is_far_ = false;      ///< there was room for long
};

/// One thread's handle for popping from a ring that is used alone.
template <RingEnd end, class Word = std::uint64_t>
class BasicRingConsumer : RingHandleCopies<end> {
public:
    explicit BasicRingConsumer(BasicRing<Word> ring) noexcept : ring_(ring), position_(ring.head_hint()) {}

    /// Progress: lock-free.
    /// Returns ok with the oldest value in `value`, or empty or corrupt.
    /// If the caller dies here: the value is still in the ring, or it was taken. [crash: ring_pop]
    [[nodiscard]] RingStatus try_pop(std::uint32_t& value) noexcept {
        for (;;) {
            std::uint64_t cell = 0;
            const RingStatus status = ring_.find_item(position_, cell);
            if (status != RingStatus::ok) {
                return status;
            }
            if (clear(cell)) {
                if (Ring::is_line_begin(++position_)) {
                    begin_line();
                }
                value = Ring::value(cell);
                return RingStatus::ok;
            }
        }
    }

    /// Pops values: all that there are where they may be a line of cells or fewer (8); else as many as fit, or about a half,
    /// a quarter and so on of that, as far as there are so many. 0 only where it is empty or corrupt, or there are fewer than
    /// `least`, which is at most as many as fit or cells. (Fewer than `least` where another consumer was faster.) As for the
    /// producer's; and who takes what is left at the end asks for 1.
    /// Progress: lock-free.
    /// Returns how many.
    /// If the caller dies here: a prefix of the values was taken. [crash: ring_pop_batch]
    [[nodiscard]] std::size_t try_pop(std::span<std::uint32_t> values, std::size_t least = 1) noexcept {
        WEIR_ASSERT((least <= values.size() && least <= ring_.capacity()) || least == 1,
                    "a batch pops no more values than fit, or than the ring has cells");
        if (least > 1 && !has_items(least)) {
            return 0;
        }
        const std::uint64_t seen_at = position_;
        std::size_t count = 0;
        if (values.size() > ring_.line_cells) {
            values = values.first(ring_.begin_batch(
                position_, values.size(), least, [this](std::uint64_t position) { return is_item(position); },
                [this] { find_head(); }));
        }
        // As in the producer's.
        if (least > 1 && (position_ != seen_at || !is_item(position_)) &&
            (find_item() != RingStatus::ok || !has_items(least))) {
            return 0;
        }
        if (values.size() > ring_.line_cells) {
            if constexpr (end == RingEnd::shared && BasicRing<Word>::has_pairs) {
                if (position_ % 2 != 0 && try_pop(values[0]) == RingStatus::ok) {
                    count = 1;
                }
                count += pop_pairs(values.subspan(count));
            }
        }
        while (count < values.size() && try_pop(values[count]) == RingStatus::ok) {
            ++count;
        }
        return count;
    }

private:
    [[nodiscard]] bool is_item(std::uint64_t position) const noexcept {
        return ring_.is_item_of(position, ring_.load_cell(position));
    }

    [[gnu::noinline]] RingStatus find_item() noexcept { // as the producer's
        std::uint64_t cell = 0;
        return ring_.find_item(position_, cell);
    }

    /// As the producer's find_tail().
    void find_head() noexcept {
        if (static_cast<std::int64_t>(ring_.head_hint() - position_) > 0) {
            static_cast<void>(find_item());
        }
    }

    /// As the producer's is_room_for().
    [[nodiscard]] bool has_items(std::size_t least) noexcept {
        while (!is_item(position_ + least - 1)) {
            const std::uint64_t looked_from = position_;
            if (find_item() != RingStatus::ok || position_ == looked_from) {
                return false;
            }
        }
        return true;
    }

    /// As the producer's.
    void begin_line() noexcept {
        ring_.hint_head(position_);
        if (position_ % ring_far_cells == 0) {
            is_far_ = is_item(position_ + ring_far_cells);
        }
        if (is_far_) {
            ring_.prefetch_line_after(position_, ring_lines_ahead<end>);
        }
    }

    /// Two by two, as push_pairs() does.
    [[nodiscard]] std::size_t pop_pairs(std::span<std::uint32_t> values) noexcept {
        std::size_t count = 0;
        while (position_ % 2 == 0 && count + 2 <= values.size()) {
            const std::uint64_t first = ring_.load_cell(position_);
            const std::uint64_t second = ring_.load_cell(position_ + 1);
            if (!ring_.is_item_of(position_, first) || !ring_.is_item_of(position_ + 1, second) ||
                !ring_.clear_pair(position_, first, second)) {
                break;
            }
            values[count] = Ring::value(first);
            values[count + 1] = Ring::value(second);
            count += 2;
            position_ += 2;
        }
        if (count > 0) {
            ring_.hint_head(position_);
        }
        return count;
    }

    [[nodiscard]] bool clear(std::uint64_t cell) noexcept {
        if constexpr (end == RingEnd::exclusive) {
            ring_.clear_alone(position_, cell);
            return true;
        } else {
            return ring_.clear(position_, cell);
        }
    }

    BasicRing<Word> ring_;
    std::uint64_t position_;
    bool is_far_ = false; ///< there were values for long
};

/// Handles on ends that others may use too, and on ends that are one handle's own.
using RingProducer = BasicRingProducer<RingEnd::shared>;
using RingConsumer = BasicRingConsumer<RingEnd::shared>;
using ExclusiveRingProducer = BasicRingProducer<RingEnd::exclusive>;
using ExclusiveRingConsumer = BasicRingConsumer<RingEnd::exclusive>;

} // namespace weir
#pragma GCC visibility pop
