// xenium's vyukov_bounded_queue in its weak form. It allocates its cells by itself: they are put behind it into the shared
// memory, which forked processes have at the same address.
#include "queue_peer.hpp"

#include <cstdlib>
#include <xenium/vyukov_bounded_queue.hpp>

namespace {

/// Where the cells go while a queue is made.
thread_local std::span<std::byte> cell_memory;

using Queue = xenium::vyukov_bounded_queue<std::uint32_t>;

constexpr std::size_t cells_offset = weir::round_up(sizeof(Queue), weir::cache_line_bytes);

class Xenium {
public:
    static constexpr bench::Ends ends = bench::Ends::many;
    static constexpr bench::Between between = bench::Between::processes;
    static std::size_t bytes() { return cells_offset + 4096 + bench::queue_capacity * weir::cache_line_bytes; }
    static void format(std::span<std::byte> memory) {
        cell_memory = memory.subspan(cells_offset);
        new (memory.data()) Queue(bench::queue_capacity);
        bench::require(cell_memory.empty(), "the cells went somewhere else");
    }
    explicit Xenium(std::span<std::byte> memory) : queue_(bench::object_in<Queue>(memory)) {}
    bool try_push(std::uint32_t value) { return queue_->try_push_weak(value); }
    bool try_pop(std::uint32_t& value) { return queue_->try_pop_weak(value); }

private:
    Queue* queue_;
};

const bench::QueuePeer<Xenium> xenium_weak("xenium_weak");

} // namespace

// Of the whole program, but other arrays are not affected.
void* operator new[](std::size_t bytes) {
    if (!cell_memory.empty()) {
        bench::require(bytes <= cell_memory.size(), "too little memory for the cells");
        return std::exchange(cell_memory, {}).data();
    }
    void* memory = std::malloc(bytes != 0 ? bytes : 1);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    return memory;
}
void operator delete[](void* memory) noexcept {
    std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
    std::free(memory);
}
