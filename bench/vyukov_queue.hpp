// vyukov_queue.hpp: the bounded MPMC queue of Dmitry Vyukov (2010), as he published it, for comparison with the ring.
//
// Each cell has a sequence number and the data; enqueue and dequeue positions are shared, each in a line of its own, and
// moved by a compare-and-swap. A process that is killed between that and the store of the cell's sequence number blocks
// all others for good: this queue is the limit that a crash-proof one is measured by, not a replacement for it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace bench {

template <class Data>
class BasicVyukovQueue {
public:
    struct Cell {
        std::atomic<std::size_t> sequence;
        Data data;
    };
    struct alignas(64) Positions {
        std::atomic<std::size_t> enqueue;
        alignas(64) std::atomic<std::size_t> dequeue;
    };
    static_assert(sizeof(Positions) == 128);
    static_assert(std::atomic<std::size_t>::is_always_lock_free, "it has to work between processes");

    [[nodiscard]] static constexpr std::size_t bytes(std::size_t capacity) noexcept {
        return sizeof(Positions) + capacity * sizeof(Cell);
    }

    /// Views `memory`, which format() has prepared. `capacity` is a power of two.
    BasicVyukovQueue(std::span<std::byte> memory, std::size_t capacity) noexcept
        : positions_(reinterpret_cast<Positions*>(memory.data())),
          cells_(reinterpret_cast<Cell*>(memory.data() + sizeof(Positions))), mask_(capacity - 1) {}

    void format() noexcept {
        for (std::size_t index = 0; index <= mask_; ++index) {
            cells_[index].sequence.store(index, std::memory_order_relaxed);
        }
    }

    [[nodiscard]] bool try_push(Data data) noexcept {
        std::size_t position = positions_->enqueue.load(std::memory_order_relaxed);
        for (;;) {
            Cell& cell = cells_[position & mask_];
            const std::size_t sequence = cell.sequence.load(std::memory_order_acquire);
            const auto difference = static_cast<std::ptrdiff_t>(sequence - position);
            if (difference == 0) {
                if (positions_->enqueue.compare_exchange_weak(position, position + 1, std::memory_order_relaxed)) {
                    cell.data = data;
                    cell.sequence.store(position + 1, std::memory_order_release);
                    return true;
                }
            } else if (difference < 0) {
                return false;
            } else {
                position = positions_->enqueue.load(std::memory_order_relaxed);
            }
        }
    }

    [[nodiscard]] bool try_pop(Data& data) noexcept {
        std::size_t position = positions_->dequeue.load(std::memory_order_relaxed);
        for (;;) {
            Cell& cell = cells_[position & mask_];
            const std::size_t sequence = cell.sequence.load(std::memory_order_acquire);
            const auto difference = static_cast<std::ptrdiff_t>(sequence - (position + 1));
            if (difference == 0) {
                if (positions_->dequeue.compare_exchange_weak(position, position + 1, std::memory_order_relaxed)) {
                    data = cell.data;
                    cell.sequence.store(position + mask_ + 1, std::memory_order_release);
                    return true;
                }
            } else if (difference < 0) {
                return false;
            } else {
                position = positions_->dequeue.load(std::memory_order_relaxed);
            }
        }
    }

private:
    Positions* positions_;
    Cell* cells_;
    std::size_t mask_;
};

using VyukovQueue = BasicVyukovQueue<std::uint32_t>;

} // namespace bench
