// oneTBB's concurrent_bounded_queue, between threads: it allocates as it goes.
#include "queue_peer.hpp"

#include <oneapi/tbb/concurrent_queue.h>

namespace {

class TbbQueue {
    using Queue = oneapi::tbb::concurrent_bounded_queue<std::uint32_t>;

public:
    static constexpr bench::Ends ends = bench::Ends::many;
    static constexpr bench::Between between = bench::Between::threads;
    static std::size_t bytes() { return sizeof(Queue); }
    static void format(std::span<std::byte> memory) {
        (new (memory.data()) Queue)->set_capacity(bench::queue_capacity);
    }
    explicit TbbQueue(std::span<std::byte> memory) : queue_(bench::object_in<Queue>(memory)) {}
    bool try_push(std::uint32_t value) { return queue_->try_push(value); }
    bool try_pop(std::uint32_t& value) { return queue_->try_pop(value); }

private:
    Queue* queue_;
};

const bench::QueuePeer<TbbQueue> tbb_queue("onetbb");

} // namespace
