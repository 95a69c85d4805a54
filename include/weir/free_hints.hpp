// free_hints.hpp (layer 2): FreeHints, where a free buffer can probably be found.
//
// Nothing here is true. Whether a buffer is free is decided by its reference words alone (reference.hpp); this
// structure only keeps the search for one short. A hint may be stale (the buffer is in use: one failed look) or lost
// (its keeper was killed: reaping and a waiting allocation's full scan find the buffer again).
//
//     weir::FreeHints hints(memory, buffer_count, my_slot);
//     hints.offer(index);                                          // index was dropped
//     hints.find([&](std::uint32_t index) { return try_take(index); });
//
// Three places, in the order in which they are looked at:
// - lanes: a stack of 31 candidates in two cache lines. What was freed last comes out first and is warm in the cache. A
//   process slot has 4 lanes; a thread takes one for itself at its first call, so that lanes are written with plain
//   stores. They lie in shared memory, so that others can look into them: a hint hoarded by a process that sleeps can
//   still be used. Threads beyond the fourth of a process work on the bitmap directly.
// - the bitmap: one bit a buffer, with two levels of summary above, so that the lowest index is found in three steps
//   however large the pool is. Lanes take from it and return to it in groups of up to 16.
// - other processes' lanes, 16 at most in one search, the next ones in the next.
//
// Anything || anything: yes; format(): nothing beside it.
// Progress: lock-free; a search ends within a fixed number of steps.
// If the caller dies here: at most 47 hints are lost until its slot is reaped. [crash: allocate, allocate_contended, drop]
// Source: per-thread caches in front of shared free lists are Bonwick's magazines (2001).
#pragma once

#include <weir/platform.hpp>
#include <weir/reference.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <span>

#pragma GCC visibility push(default)
namespace weir {

namespace detail {
/// Its address tells threads of one process apart; one object in a program and the shared libraries that it uses, whatever
/// the visibility that they are compiled with.
[[gnu::visibility("default")]] inline thread_local char thread_token = 0;
} // namespace detail

/// One process's view of the hints of a pool.
class FreeHints {
public:
    static constexpr unsigned lanes_per_slot = 4;
    static constexpr std::uint32_t lane_candidate_max = 31;
    static constexpr unsigned group_max = 16;

    [[nodiscard]] static constexpr std::size_t bytes(std::uint32_t buffer_count) noexcept {
        const Layout layout(buffer_count);
        return layout.word_count_total * sizeof(std::uint64_t);
    }

    /// Views `memory` (aligned to a cache line, at least bytes(buffer_count)) on behalf of process slot `slot`.
    FreeHints(std::span<std::byte> memory, std::uint32_t buffer_count, std::uint8_t slot) noexcept
        : layout_(buffer_count), buffer_count_(buffer_count), words_(reinterpret_cast<std::uint64_t*>(memory.data())),
          lanes_(reinterpret_cast<Lane*>(words_ + Layout::lanes_used_words)),
          own_lanes_(lanes_ + std::size_t{slot} * lanes_per_slot), foreign_lane_cursor_(slot * lanes_per_slot) {}

    /// Says of every buffer of new memory that it is free.
    void format() noexcept {
        for (std::uint32_t first = 0; first < buffer_count_; first += 64) {
            const std::uint32_t count = std::min<std::uint32_t>(64, buffer_count_ - first);
            offer_group(first / 64, count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1);
        }
    }

    /// Says that a buffer is probably free, if this thread's lane has room for it: the usual case, as pop().
    [[nodiscard]] bool try_push(std::uint32_t index) noexcept {
        Lane* lane = own_lane();
        const std::uint32_t count = lane != nullptr ? lane->load_count() : lane_candidate_max;
        if (count == lane_candidate_max) [[unlikely]] {
            return false;
        }
        lane->store_candidate(count, index);
        lane->store_count(count + 1);
        return true;
    }

    /// Says that a buffer is probably free.
    void offer(std::uint32_t index) noexcept {
        Lane* lane = own_or_new_lane();
        if (lane == nullptr) {
            offer_group(index / 64, std::uint64_t{1} << index % 64);
            return;
        }
        if (lane->load_count() == lane_candidate_max) {
            spill(*lane);
        }
        const std::uint32_t count = lane->load_count();
        lane->store_candidate(count, index);
        lane->store_count(count + 1);
    }

    /// Says of up to 64 buffers, the set bits of `mask` from buffer `64 * word` on, that they are probably free. It mends
    /// the levels above where somebody died before he could.
    void offer_group(std::uint32_t word, std::uint64_t mask) noexcept {
        // (1) seq_cst: the bits are there before the level above says so; pairs with (2), (4)
        shared(level(0)[word]).fetch_or(mask, std::memory_order_seq_cst);
        raise_summary(0, word);
    }

    static constexpr std::uint32_t none = ~std::uint32_t{0};

    /// Does nothing with a candidate that is looked at next.
    struct ExpectNothing {
        void operator()(std::uint32_t) const noexcept {}
    };

    /// What this thread freed last, or `none`: the usual case, a few instructions on a warm line.
    [[nodiscard]] std::uint32_t pop() noexcept {
        Lane* lane = own_lane();
        if (lane == nullptr) [[unlikely]] {
            return none;
        }
        const std::uint32_t count = lane->load_count();
        if (count == 0) [[unlikely]] {
            return none;
        }
        lane->store_count(count - 1);
        const std::uint32_t index = lane->load_candidate(count - 1);
        return index < buffer_count_ ? index : none;
    }

    /// Calls try_take(index) for one candidate after the other until one returns true; that one, or `none`.
    /// expect(index) is called for candidates that will soon be tried.
    template <class TryTake, class Expect = ExpectNothing>
    [[nodiscard]] std::uint32_t find(TryTake&& try_take, Expect&& expect = {}) noexcept {
        Lane* lane = own_or_new_lane();
        unsigned candidate_count = 0;
        for (unsigned round = 0; round < search_round_max; ++round) {
            if (lane != nullptr) {
                // try_take() itself may offer: the count is read anew in each turn.
                while (const std::uint32_t count = lane->load_count()) {
                    lane->store_count(count - 1);
                    const std::uint32_t index = lane->load_candidate(count - 1);
                    if (index < buffer_count_ && try_take(index)) {
                        return index;
                    }
                    if (++candidate_count == candidate_max) {
                        return none;
                    }
                }
                if (!refill(*lane, expect)) {
                    return find_elsewhere(lane, try_take);
                }
            } else {
                std::uint32_t word = 0;
                const std::uint64_t taken = take_group(1, word);
                if (taken == 0) {
                    return find_elsewhere(lane, try_take);
                }
                const std::uint32_t index = word * 64 + static_cast<std::uint32_t>(std::countr_zero(taken));
                if (try_take(index)) {
                    return index;
                }
            }
        }
        return none;
    }

private:
    static constexpr unsigned search_round_max = 64;
    static constexpr unsigned candidate_max = 1024;
    static constexpr unsigned foreign_lane_max = 16;

    static constexpr std::size_t lane_lines = 2;

    /// All accesses to a lane are relaxed: it holds hints, and only its thread writes it.
    struct alignas(cache_line_bytes) Lane {
        std::uint32_t count;
        std::array<std::uint32_t, lane_candidate_max> candidates;

        [[nodiscard]] std::uint32_t load_count() const noexcept {
            // relaxed: a hint; the bytes are not trusted, so it is bounded here
            return std::min(shared(count).load(std::memory_order_relaxed), lane_candidate_max);
        }
        void store_count(std::uint32_t value) noexcept {
            // relaxed: a hint
            shared(count).store(value, std::memory_order_relaxed);
        }
        [[nodiscard]] std::uint32_t load_candidate(std::uint32_t place) const noexcept {
            // relaxed: a hint; the caller checks its bounds
            return shared(candidates[place]).load(std::memory_order_relaxed);
        }
        void store_candidate(std::uint32_t place, std::uint32_t index) noexcept {
            // relaxed: a hint
            shared(candidates[place]).store(index, std::memory_order_relaxed);
        }
    };
    static_assert(sizeof(Lane) == lane_lines * cache_line_bytes);

    static constexpr unsigned lane_count = process_slot_count * lanes_per_slot;

    /// Which words are where: the bits of used lanes, the lanes, and the levels of the bitmap, each from a line of its own.
    struct Layout {
        static constexpr std::size_t line_words = cache_line_bytes / sizeof(std::uint64_t);
        static constexpr std::size_t lanes_used_words = lane_count / 64;
        static constexpr std::size_t level_count = 3;

        constexpr explicit Layout(std::uint32_t buffer_count) noexcept {
            std::size_t offset = lanes_used_words + lane_count * lane_lines * line_words;
            std::size_t words = buffer_count;
            for (std::size_t index = 0; index < level_count; ++index) {
                words = (words + 63) / 64;
                level_words[index] = words;
                level_offsets[index] = offset;
                offset += round_up(words, line_words);
            }
            word_count_total = offset;
        }

        std::array<std::size_t, level_count> level_words{};
        std::array<std::size_t, level_count> level_offsets{};
        std::size_t word_count_total = 0;
    };

    [[nodiscard]] std::uint64_t* level(std::size_t index) noexcept { return words_ + layout_.level_offsets[index]; }

    /// This thread's lane, where it is the first one of the process, which is the usual case; else null.
    [[nodiscard]] Lane* own_lane() noexcept {
        // relaxed: only this thread ever writes its own token
        return lane_threads_[0].load(std::memory_order_relaxed) == &detail::thread_token ? own_lanes_ : nullptr;
    }

    /// This thread's lane; it takes one if it has none. Null: there is none left.
    [[nodiscard]] Lane* own_or_new_lane() noexcept {
        const void* me = &detail::thread_token;
        for (unsigned number = 0; number < lanes_per_slot; ++number) {
            // relaxed: as in own_lane(); the lane itself holds hints
            const void* thread = lane_threads_[number].load(std::memory_order_relaxed);
            if (thread == me) {
                return &own_lanes_[number];
            }
            // relaxed: a thread takes a lane for good, nothing else depends on it
            if (thread == nullptr &&
                lane_threads_[number].compare_exchange_strong(thread, me, std::memory_order_relaxed)) {
                const auto lane = static_cast<std::size_t>(&own_lanes_[number] - lanes_);
                // relaxed: tells others where to look
                shared(words_[lane / 64]).fetch_or(std::uint64_t{1} << lane % 64, std::memory_order_relaxed);
                return &own_lanes_[number];
            }
        }
        return nullptr;
    }

    /// Returns the oldest candidates of a full lane to the bitmap
    void spill(Lane& lane) noexcept {
        std::array<std::uint32_t, group_max> oldest{};
        for (std::uint32_t place = 0; place < group_max; ++place) {
            oldest[place] = lane.load_candidate(place);
        }
        for (std::uint32_t place = group_max; place < lane_candidate_max; ++place) {
            lane.store_candidate(place - group_max, lane.load_candidate(place));
        }
        lane.store_count(lane_candidate_max - group_max);
        std::sort(oldest.begin(), oldest.end());
        for (std::size_t first = 0; first < oldest.size();) {
            const std::uint32_t word = oldest[first] / 64;
            std::uint64_t mask = 0;
            for (; first < oldest.size() && oldest[first] / 64 == word; ++first) {
                mask |= std::uint64_t{1} << oldest[first] % 64;
            }
            if (word < layout_.level_words[0]) {
                offer_group(word, mask);
            }
        }
    }

    /// Moves a group from the bitmap into an empty lane, lowest index on top.
    template <class Expect>
    [[nodiscard]] bool refill(Lane& lane, Expect& expect) noexcept {
        std::uint32_t word = 0;
        std::uint64_t taken = take_group(group_max, word);
        if (taken == 0) {
            return false;
        }
        const auto total = static_cast<std::uint32_t>(std::popcount(taken));
        for (std::uint32_t place = total; place > 0; --place, taken &= taken - 1) {
            const std::uint32_t index = word * 64 + static_cast<std::uint32_t>(std::countr_zero(taken));
            lane.store_candidate(place - 1, index);
            expect(index);
        }
        lane.store_count(total);
        return true;
    }

    /// Takes up to `count_max` bits, the lowest, out of one word of the bitmap. 0: it is empty.
    [[nodiscard]] std::uint64_t take_group(unsigned count_max, std::uint32_t& word) noexcept {
        std::uint64_t* summary = level(2);
        for (std::size_t top = 0; top < layout_.level_words[2]; ++top) {
            for (unsigned attempt = 0; attempt < search_round_max; ++attempt) {
                // relaxed: hints; whoever takes a bit checks the buffer itself
                const std::uint64_t top_bits = shared(summary[top]).load(std::memory_order_relaxed);
                if (top_bits == 0) {
                    break;
                }
                const std::size_t middle = top * 64 + static_cast<std::size_t>(std::countr_zero(top_bits));
                if (middle >= layout_.level_words[1]) {
                    break;
                }
                // relaxed: hints
                const std::uint64_t middle_bits = shared(level(1)[middle]).load(std::memory_order_relaxed);
                if (middle_bits == 0) {
                    lower_summary(2, middle);
                    continue;
                }
                const std::size_t low = middle * 64 + static_cast<std::size_t>(std::countr_zero(middle_bits));
                if (low >= layout_.level_words[0]) {
                    break;
                }
                const std::uint64_t taken = take_lowest(level(0)[low], count_max, low);
                if (taken != 0) {
                    word = static_cast<std::uint32_t>(low);
                    return taken;
                }
                lower_summary(1, low);
            }
        }
        return 0;
    }

    [[nodiscard]] std::uint64_t take_lowest(std::uint64_t& bits, unsigned count_max, std::size_t word) noexcept {
        // relaxed: hints
        std::uint64_t rest = shared(bits).load(std::memory_order_relaxed);
        std::uint64_t mask = 0;
        for (unsigned count = 0; count < count_max && rest != 0; ++count) {
            mask |= rest & (~rest + 1);
            rest &= rest - 1;
        }
        if (mask == 0) {
            return 0;
        }
        // relaxed: hints; each bit goes to one taker
        const std::uint64_t before = shared(bits).fetch_and(~mask, std::memory_order_relaxed);
        // Where this emptied the word, the summary goes on naming it until somebody looks in vain: most words are refilled
        // before that, and so nobody writes to the summary.
        const std::uint64_t valid = word + 1 == layout_.level_words[0] && buffer_count_ % 64 != 0
                                        ? (std::uint64_t{1} << buffer_count_ % 64) - 1
                                        : ~std::uint64_t{0};
        return before & mask & valid;
    }

    /// Word `word` of level `from` is not empty: sees to it that all levels above say so.
    void raise_summary(std::size_t from, std::size_t word) noexcept {
        for (std::size_t above = from + 1; above < Layout::level_count; ++above) {
            const std::uint64_t bit = std::uint64_t{1} << word % 64;
            word /= 64;
            std::uint64_t& summary = level(above)[word];
            // (2) seq_cst: looked at after the level below was set; where a lowering comes later, it sees that; pairs with
            // (1), (3)
            if ((shared(summary).load(std::memory_order_seq_cst) & bit) == 0) {
                // (3) seq_cst: as (1), for the level above this one; pairs with (2), (4)
                shared(summary).fetch_or(bit, std::memory_order_seq_cst);
            }
        }
    }

    /// Word `word` of the level below `above` looked empty: says so, and looks again, because it may have been raised.
    void lower_summary(std::size_t above, std::size_t word) noexcept {
        // (4) seq_cst: the bit is gone before the word is looked at again; a raise in between is seen here, or sees that
        // the bit is gone; pairs with (1), (3), (5)
        shared(level(above)[word / 64]).fetch_and(~(std::uint64_t{1} << word % 64), std::memory_order_seq_cst);
        // (5) seq_cst: as (4); pairs with (4)
        if (shared(level(above - 1)[word]).load(std::memory_order_seq_cst) != 0) {
            raise_summary(above - 1, word);
        }
    }

    template <class TryTake>
    [[nodiscard]] std::uint32_t find_elsewhere(const Lane* own, TryTake& try_take) noexcept {
        // Each search goes on where the last one stopped, so that every lane gets its turn.
        // relaxed: where a search begins does not matter
        const unsigned begin = foreign_lane_cursor_.load(std::memory_order_relaxed);
        unsigned looked_count = 0;
        for (unsigned step = 0; step < lane_count && looked_count < foreign_lane_max; ++step) {
            const unsigned number = (begin + step) % lane_count;
            // relaxed: hints
            const std::uint64_t used = shared(words_[number / 64]).load(std::memory_order_relaxed) >> number % 64;
            if (used == 0) {
                step += 63 - number % 64; // none in the rest of this word
                continue;
            }
            const Lane& lane = lanes_[number];
            if ((used & 1) == 0 || &lane == own) {
                continue;
            }
            if (++looked_count == foreign_lane_max) {
                // relaxed: as above
                foreign_lane_cursor_.store(number + 1, std::memory_order_relaxed);
            }
            for (std::uint32_t count = lane.load_count(); count > 0; --count) {
                const std::uint32_t index = lane.load_candidate(count - 1);
                if (index < buffer_count_ && try_take(index)) {
                    return index;
                }
            }
        }
        return none;
    }

    Layout layout_;
    std::uint32_t buffer_count_;
    std::uint64_t* words_;
    Lane* lanes_;
    Lane* own_lanes_;
    std::atomic<unsigned> foreign_lane_cursor_;
    std::array<std::atomic<const void*>, lanes_per_slot> lane_threads_{};
};

} // namespace weir
#pragma GCC visibility pop
