// moodycamel's ReaderWriterQueue, between threads: it holds pointers of its process.
#include "queue_peer.hpp"

#include <readerwriterqueue/readerwriterqueue.h>

namespace {

class ReaderWriterQueue {
    using Queue = moodycamel::ReaderWriterQueue<std::uint32_t>;

public:
    static constexpr bench::Ends ends = bench::Ends::one;
    static constexpr bench::Between between = bench::Between::threads;
    static std::size_t bytes() { return sizeof(Queue); }
    static void format(std::span<std::byte> memory) { new (memory.data()) Queue(bench::queue_capacity); }
    explicit ReaderWriterQueue(std::span<std::byte> memory) : queue_(bench::object_in<Queue>(memory)) {}
    bool try_push(std::uint32_t value) { return queue_->try_enqueue(value); }
    bool try_pop(std::uint32_t& value) { return queue_->try_dequeue(value); }

private:
    Queue* queue_;
};

const bench::QueuePeer<ReaderWriterQueue> reader_writer_queue("readerwriterqueue");

} // namespace
