// DPDK: rte_ring of 32-bit values in shared memory, with many producers and consumers, with one of each, and in bulks of
// 64; and rte_mempool with its cache of a core, for which DPDK's environment is set up in the process that measures it.
// That is without huge pages and without devices.
#include "../port_stream.hpp"
#include "queue_peer.hpp"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_ring_elem.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

using bench::Ends;

template <Ends which>
class RteRing {
public:
    static constexpr Ends ends = which;
    static constexpr bench::Between between = bench::Between::processes;
    static std::size_t bytes() {
        return static_cast<std::size_t>(rte_ring_get_memsize_elem(sizeof(std::uint32_t), bench::queue_capacity));
    }
    static void format(std::span<std::byte> memory) {
        constexpr unsigned flags = which == Ends::many ? 0 : RING_F_SP_ENQ | RING_F_SC_DEQ;
        bench::require(rte_ring_init(bench::object_in<rte_ring>(memory), "bench", bench::queue_capacity, flags) == 0,
                       "no rte_ring");
    }
    explicit RteRing(std::span<std::byte> memory) : ring_(bench::object_in<rte_ring>(memory)) {}
    bool try_push(std::uint32_t value) {
        if constexpr (which == Ends::many) {
            return rte_ring_mp_enqueue_elem(ring_, &value, sizeof(value)) == 0;
        } else {
            return rte_ring_sp_enqueue_elem(ring_, &value, sizeof(value)) == 0;
        }
    }
    bool try_pop(std::uint32_t& value) {
        if constexpr (which == Ends::many) {
            return rte_ring_mc_dequeue_elem(ring_, &value, sizeof(value)) == 0;
        } else {
            return rte_ring_sc_dequeue_elem(ring_, &value, sizeof(value)) == 0;
        }
    }
    /// All or none.
    bool try_push_all(std::span<const std::uint32_t> values) {
        const auto count = static_cast<unsigned>(values.size());
        if constexpr (which == Ends::many) {
            return rte_ring_mp_enqueue_bulk_elem(ring_, values.data(), sizeof(values[0]), count, nullptr) != 0;
        } else {
            return rte_ring_sp_enqueue_bulk_elem(ring_, values.data(), sizeof(values[0]), count, nullptr) != 0;
        }
    }
    std::size_t try_pop_some(std::span<std::uint32_t> values) {
        const auto count = static_cast<unsigned>(values.size());
        if constexpr (which == Ends::many) {
            return rte_ring_mc_dequeue_burst_elem(ring_, values.data(), sizeof(values[0]), count, nullptr);
        } else {
            return rte_ring_sc_dequeue_burst_elem(ring_, values.data(), sizeof(values[0]), count, nullptr);
        }
    }

private:
    rte_ring* ring_;
};

const bench::QueuePeer<RteRing<Ends::many>> many("rte_ring_mpmc");
const bench::QueuePeer<RteRing<Ends::one>> one("rte_ring_spsc");

/// Values go and come 64 at a time.
template <class Queue>
class Batched {
public:
    static void format(std::span<std::byte> memory) { Queue::format(memory); }
    explicit Batched(std::span<std::byte> memory) : queue_(memory) {}
    bool try_push(std::uint32_t value) {
        if (out_count_ == out_.size() && !flush()) {
            return false;
        }
        out_[out_count_++] = value;
        if (value == bench::stream_end) [[unlikely]] {
            bench::until_true<bench::Backoff>([&] { return flush(); });
        }
        return true;
    }
    bool try_pop(std::uint32_t& value) {
        if (next_ == in_count_) {
            next_ = 0;
            in_count_ = queue_.try_pop_some(in_);
            if (in_count_ == 0) {
                return false;
            }
        }
        value = in_[next_++];
        return true;
    }

private:
    bool flush() {
        if (!queue_.try_push_all(std::span(out_).first(out_count_))) {
            return false;
        }
        out_count_ = 0;
        return true;
    }

    Queue queue_;
    std::array<std::uint32_t, bench::batch_max> out_{}, in_{};
    std::size_t out_count_ = 0, in_count_ = 0, next_ = 0;
};

/// Beside bulks of rte_ring: the ring in batches, with shared ends and with exclusive ones, and the port, whose messages are
/// whole buffers.
void measure_bulk(bench::Results& results) {
    const bench::StreamShape shape{1, 1, bench::scaled(1'000'000, 2'000)};
    bench::Trial trial(2);
    auto& streams = trial.share<std::array<bench::Stream, 6>>();
    auto& port_ns = trial.share<double>();
    std::array<std::span<std::byte>, 3> rings;
    for (std::span<std::byte>& memory : rings) {
        memory = trial.share_bytes(bench::RingQueue::bytes());
    }
    std::array<std::span<std::byte>, 3> rte_rings;
    for (std::span<std::byte>& memory : rte_rings) {
        memory = trial.share_bytes(RteRing<Ends::many>::bytes());
    }
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = 256}}, {{.capacity = 256}});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        me.record("pingpong_before_ns", me.ping_pong());
        double weir_ns = bench::run_queue<Batched<bench::RingQueue>>(me, streams[0], shape, rings[0]);
        double peer_ns = bench::run_queue<Batched<RteRing<Ends::many>>>(me, streams[1], shape, rte_rings[0]);
        const double exclusive_ns = bench::run_queue<Batched<RteRing<Ends::one>>>(me, streams[2], shape, rte_rings[1]);
        const double weir_exclusive_ns =
            bench::run_queue<Batched<bench::ExclusiveRingQueue>>(me, streams[5], shape, rings[2]);
        peer_ns += bench::run_queue<Batched<RteRing<Ends::many>>>(me, streams[3], shape, rte_rings[2]);
        weir_ns += bench::run_queue<Batched<bench::RingQueue>>(me, streams[4], shape, rings[1]);
        const double message_ns = bench::run_port_stream(me, member, bench::batch_max);
        if (!me.is_first()) {
            port_ns = message_ns;
        }
        me.record("pingpong_after_ns", me.ping_pong());
        me.record("weir_ns", weir_ns / 2);
        me.record("peer_ns", peer_ns / 2);
        me.record("peer_exclusive_ns", exclusive_ns);
        me.record("weir_exclusive_ns", weir_exclusive_ns);
        me.record("port_batch_64_ns", port_ns);
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

const bench::Registration bulk("peers/bulk/rte_ring", "peer_ns", measure_bulk);

// --- rte_mempool ------------------------------------------------------------------------------------------------------

constexpr unsigned buffer_count = 4096;
constexpr unsigned cache_count = 256;

rte_mempool* make_mempool() {
    // It makes a directory of this name all the same, which is removed at once.
    const std::string directory = "weir-bench-" + std::to_string(getpid());
    std::vector<std::string> arguments{"bench", "--no-huge", "--no-pci", "--no-telemetry", "--no-shconf"};
    arguments.insert(arguments.end(), {"-m", "64", "--log-level=error", "--file-prefix", directory});
    arguments.insert(arguments.end(), {"--lcores", "0@" + std::to_string(bench::processor(0))});
    std::vector<char*> pointers;
    std::transform(arguments.begin(), arguments.end(), std::back_inserter(pointers),
                   [](std::string& text) { return text.data(); });
    if (rte_eal_init(static_cast<int>(pointers.size()), pointers.data()) < 0) {
        throw std::runtime_error(std::string("DPDK's environment: ") + rte_strerror(rte_errno));
    }
    rmdir(rte_eal_get_runtime_dir());
    rte_mempool* pool = rte_mempool_create("bench", buffer_count, 64, cache_count, 0, nullptr, nullptr, nullptr,
                                           nullptr, SOCKET_ID_ANY, 0);
    if (pool == nullptr) {
        throw std::runtime_error(std::string("no rte_mempool: ") + rte_strerror(rte_errno));
    }
    return pool;
}

/// Ns for both.
template <class Allocate, class Drop>
double allocate_and_drop(std::uint64_t count, Allocate&& allocate, Drop&& drop) {
    const bench::Stopwatch stopwatch;
    for (std::uint64_t number = 0; number < count; ++number) {
        auto buffer = allocate();
        benchmark::DoNotOptimize(buffer);
        drop(buffer);
    }
    return stopwatch.elapsed_ns() / static_cast<double>(count);
}

/// On one core, in slices that take turns.
void measure_mempool(bench::Results& results) {
    constexpr unsigned slice_count = 20;
    bench::Trial trial(2);
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = buffer_count}}, {});
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        rte_mempool* mempool = me.is_first() ? make_mempool() : nullptr;
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            const std::uint64_t count = bench::scaled(100'000, 100);
            double weir_ns = 0, peer_ns = 0;
            for (unsigned slice = 0; slice <= slice_count; ++slice) {
                const double slice_weir_ns = allocate_and_drop(
                    count,
                    [&] {
                        weir::BufferPtr buffer = member.pools[0].try_allocate();
                        bench::require(static_cast<bool>(buffer), "no buffer");
                        return buffer;
                    },
                    [](weir::BufferPtr& buffer) { buffer.reset(); });
                const double slice_peer_ns = allocate_and_drop(
                    count,
                    [&] {
                        void* buffer = nullptr;
                        bench::require(rte_mempool_get(mempool, &buffer) == 0, "no buffer");
                        return buffer;
                    },
                    [&](void* buffer) { rte_mempool_put(mempool, buffer); });
                if (slice > 0) { // the first warms up
                    weir_ns += slice_weir_ns / slice_count;
                    peer_ns += slice_peer_ns / slice_count;
                }
            }
            bench::require(rte_mempool_avail_count(mempool) == buffer_count, "not all buffers are back");
            me.record("weir_ns", weir_ns);
            me.record("peer_ns", peer_ns);
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

const bench::Registration mempool("peers/allocate/rte_mempool", "peer_ns", measure_mempool);

} // namespace
