// Concurrency Kit's ck_ring of pointers, with many producers and consumers and with one of each. Its capacity is one less.
#include "queue_peer.hpp"

// A header of C, where `false` is a null pointer too.
#define false 0
#include <ck_ring.h>
#undef false

namespace {

struct Memory {
    ck_ring_t ring;
    alignas(weir::cache_line_bytes) ck_ring_buffer_t values[bench::queue_capacity];
};

template <bench::Ends which>
class CkRing {
public:
    static constexpr bench::Ends ends = which;
    static constexpr bench::Between between = bench::Between::processes;
    static std::size_t bytes() { return sizeof(Memory); }
    static void format(std::span<std::byte> memory) {
        ck_ring_init(&(new (memory.data()) Memory)->ring, bench::queue_capacity);
    }
    explicit CkRing(std::span<std::byte> memory) : memory_(bench::object_in<Memory>(memory)) {}
    bool try_push(std::uint32_t number) {
        const auto* value = reinterpret_cast<const void*>(std::uintptr_t{number});
        if constexpr (which == bench::Ends::many) {
            return ck_ring_enqueue_mpmc(&memory_->ring, memory_->values, value);
        } else {
            return ck_ring_enqueue_spsc(&memory_->ring, memory_->values, value);
        }
    }
    bool try_pop(std::uint32_t& number) {
        void* value = nullptr;
        bool is_ok = false;
        if constexpr (which == bench::Ends::many) {
            is_ok = ck_ring_dequeue_mpmc(&memory_->ring, memory_->values, &value);
        } else {
            is_ok = ck_ring_dequeue_spsc(&memory_->ring, memory_->values, &value);
        }
        number = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(value));
        return is_ok;
    }

private:
    Memory* memory_;
};

const bench::QueuePeer<CkRing<bench::Ends::many>> many("ck_ring_mpmc");
const bench::QueuePeer<CkRing<bench::Ends::one>> one("ck_ring_spsc");

} // namespace
