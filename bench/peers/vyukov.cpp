// The bounded queue of Dmitry Vyukov (2010), as the benchmarks write it.
#include "../vyukov_queue.hpp"

#include "queue_peer.hpp"

namespace {

class Vyukov {
public:
    static constexpr bench::Ends ends = bench::Ends::many;
    static constexpr bench::Between between = bench::Between::processes;
    static std::size_t bytes() { return bench::VyukovQueue::bytes(bench::queue_capacity); }
    static void format(std::span<std::byte> memory) { bench::VyukovQueue(memory, bench::queue_capacity).format(); }
    explicit Vyukov(std::span<std::byte> memory) : queue_(memory, bench::queue_capacity) {}
    bool try_push(std::uint32_t value) { return queue_.try_push(value); }
    bool try_pop(std::uint32_t& value) { return queue_.try_pop(value); }

private:
    bench::VyukovQueue queue_;
};

const bench::QueuePeer<Vyukov> vyukov("vyukov");

} // namespace
