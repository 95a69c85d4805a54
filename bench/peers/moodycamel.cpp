// moodycamel's ConcurrentQueue, between threads: it allocates as it goes. It has no bound, and keeps the order of each producer
// but not between producers.
#include "queue_peer.hpp"

#include <concurrentqueue/concurrentqueue.h>

namespace {

/// Each thread has its tokens, as its documentation advises.
class ConcurrentQueue {
    using Queue = moodycamel::ConcurrentQueue<std::uint32_t>;

public:
    static constexpr bench::Ends ends = bench::Ends::many;
    static constexpr bench::Between between = bench::Between::threads;
    static constexpr bool keeps_order = false;
    static std::size_t bytes() { return sizeof(Queue); }
    static void format(std::span<std::byte> memory) { new (memory.data()) Queue(bench::queue_capacity); }
    explicit ConcurrentQueue(std::span<std::byte> memory)
        : queue_(bench::object_in<Queue>(memory)), producer_(*queue_), consumer_(*queue_) {}
    bool try_push(std::uint32_t value) { return queue_->enqueue(producer_, value); }
    bool try_pop(std::uint32_t& value) { return queue_->try_dequeue(consumer_, value); }

private:
    Queue* queue_;
    moodycamel::ProducerToken producer_;
    moodycamel::ConsumerToken consumer_;
};

const bench::QueuePeer<ConcurrentQueue> concurrent_queue("moodycamel");

} // namespace
