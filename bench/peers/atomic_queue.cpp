// atomic_queue's AtomicQueue of 32-bit values, in its usual form and with one producer and one consumer. Zero is its empty
// element, so that a value goes as its successor. It does not keep the order where a thread is stopped between its two steps for
// as long as the others take for a lap: an element of the next lap then takes the place of its own.
#include "queue_peer.hpp"

#include <atomic_queue/atomic_queue.h>

namespace {

template <bench::Ends which>
class AtomicQueue {
    using Queue = atomic_queue::AtomicQueue<std::uint32_t, bench::queue_capacity, 0U, true, true, false,
                                            which == bench::Ends::one>;

public:
    static constexpr bench::Ends ends = which;
    static constexpr bench::Between between = bench::Between::processes;
    static constexpr bool keeps_order = which == bench::Ends::one;
    static std::size_t bytes() { return sizeof(Queue); }
    static void format(std::span<std::byte> memory) { new (memory.data()) Queue; }
    explicit AtomicQueue(std::span<std::byte> memory) : queue_(bench::object_in<Queue>(memory)) {}
    bool try_push(std::uint32_t value) { return queue_->try_push(value + 1); }
    bool try_pop(std::uint32_t& value) {
        if (!queue_->try_pop(value)) {
            return false;
        }
        --value;
        return true;
    }

private:
    Queue* queue_;
};

const bench::QueuePeer<AtomicQueue<bench::Ends::many>> many("atomic_queue");
const bench::QueuePeer<AtomicQueue<bench::Ends::one>> one("atomic_queue_spsc");

} // namespace
