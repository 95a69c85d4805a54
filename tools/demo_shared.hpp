// What the demo's processes share: one anonymous segment, in which everything lies.
#pragma once

#include "demo_plan.hpp"
#include "sha256.hpp"

#include <weir/weir.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

namespace weir::demo {

inline constexpr unsigned worker_count = 2;
/// The producers, the workers, one that takes a killed worker's place, and the collector.
inline constexpr unsigned process_count_max = producer_count + worker_count + 1 + 1;

inline constexpr BufferPoolOptions pool_options{.buffer_bytes = 65'536, .buffer_count = 64};
inline constexpr PortOptions loaded_port_options{.capacity = 32, .port_id = 0};
inline constexpr PortOptions checked_port_options{.capacity = 32, .port_id = 1};

/// Stands at the front of each buffer; a chunk of a file follows. The producer writes it, except for what the worker adds.
struct ChunkHeader {
    std::uint32_t part;
    std::uint32_t producer;
    std::uint64_t chunk;                ///< its number in the part
    std::uint64_t sequence;             ///< its number among the messages of its producer
    std::uint64_t payload_offset_bytes; ///< where the producer wrote the buffer
    std::uint64_t data_bytes;
    std::uint32_t checksum; ///< the worker's, over the chunk
    std::uint32_t worker;
    tool::Sha256Digest chunk_digest; ///< with --kill
    tool::Sha256Digest part_digest;  ///< in the last chunk of a part
};
static_assert(std::is_trivially_copyable_v<ChunkHeader>);

inline constexpr std::size_t chunk_header_bytes = 128;
static_assert(sizeof(ChunkHeader) <= chunk_header_bytes);
inline constexpr std::uint64_t chunk_bytes = pool_options.buffer_bytes - chunk_header_bytes;

/// What a process says about itself. It alone writes, the parent reads.
struct alignas(cache_line_bytes) ProcessReport {
    std::uint64_t messages; ///< passed on, or by the collector written
    std::uint64_t bytes;    ///< of files
    std::uint64_t waits;    ///< how often it found no free buffer, no room, or no message
    std::uint64_t in_hand;  ///< messages that a worker has taken and is not yet passing on
    std::uint64_t offsets_checked;
    std::uint64_t offsets_moved;
    std::int64_t first_ns;
    std::int64_t last_ns;
    std::uint64_t compared_bytes;
    std::int64_t compared_ns;
    char failure[512]; ///< why it gave up
};

enum class Verdict : std::uint8_t { unknown, equal, equal_except_missing, differs };

/// What the collector found out about a part.
struct PartResult {
    Verdict verdict;
    tool::Sha256Digest digest; ///< of the copy, where nothing is missing
};
static_assert(std::is_trivially_copyable_v<PartResult>);

/// What is shared beside the pool and the ports.
struct Board {
    std::uint64_t sent_count; ///< messages that producers were allowed to send
    std::uint64_t gate_limit; ///< with --kill they stop here until the killed worker is replaced
    std::uint32_t gate_is_open;
    std::uint32_t gate_event;
    ProcessReport reports[process_count_max];
};

/// Adds to a number that the calling process alone writes.
template <class Number>
void add(Number& number, std::type_identity_t<Number> amount) noexcept {
    // relaxed: numbers for people to read
    shared(number).store(shared(number).load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

template <class Number>
void set(Number& number, std::type_identity_t<Number> value) noexcept {
    // relaxed: numbers for people to read
    shared(number).store(value, std::memory_order_relaxed);
}

template <class Number>
[[nodiscard]] Number read(const Number& number) noexcept {
    // relaxed: numbers for people to read
    return shared(number).load(std::memory_order_relaxed);
}

/// The segment and where things lie in it. Made once, before the processes are.
class SharedMemory {
public:
    explicit SharedMemory(const Plan& plan)
        : segment_(Segment::anonymous(bytes(plan))), cursor_(segment_.bytes()),
          payload_(take(BufferPool::payload_bytes(pool_options))),
          control_(take(BufferPool::control_bytes(pool_options))), loaded_(take(Port::bytes(loaded_port_options))),
          checked_(take(Port::bytes(checked_port_options))), table_(take(ProcessTable::bytes())),
          board_(reinterpret_cast<Board*>(take(sizeof(Board)).data())),
          results_(reinterpret_cast<PartResult*>(take(plan.parts.size() * sizeof(PartResult)).data()),
                   plan.parts.size()),
          arrived_(reinterpret_cast<std::uint8_t*>(take(plan.message_count).data()), plan.message_count) {
        BufferPool::format(control_, pool_options);
        Port::format(loaded_, loaded_port_options);
        Port::format(checked_, checked_port_options);
    }

    [[nodiscard]] std::size_t size_bytes() const noexcept { return segment_.bytes().size(); }
    [[nodiscard]] ProcessTable table() const noexcept { return table_; }
    [[nodiscard]] Board& board() const noexcept { return *board_; }
    [[nodiscard]] std::span<PartResult> results() const noexcept { return results_; }
    /// How often each message of the plan arrived at the collector.
    [[nodiscard]] std::span<std::uint8_t> arrived() const noexcept { return arrived_; }

    [[nodiscard]] BufferPool pool(const Membership& me) const { return {control_, payload_, me}; }
    /// From the producers to the workers.
    [[nodiscard]] Port loaded(const Membership& me, const BufferPool& pool) const {
        return {loaded_, me, SharedBufferAllocator(pool)};
    }
    /// From the workers to the collector.
    [[nodiscard]] Port checked(const Membership& me, const BufferPool& pool) const {
        return {checked_, me, SharedBufferAllocator(pool)};
    }

private:
    [[nodiscard]] static std::size_t bytes(const Plan& plan) {
        std::size_t sum = 0;
        for (const std::size_t piece :
             {BufferPool::payload_bytes(pool_options), BufferPool::control_bytes(pool_options),
              Port::bytes(loaded_port_options), Port::bytes(checked_port_options), ProcessTable::bytes(), sizeof(Board),
              plan.parts.size() * sizeof(PartResult), std::size_t{plan.message_count}}) {
            sum += round_up(piece, cache_line_bytes);
        }
        return sum;
    }

    [[nodiscard]] std::span<std::byte> take(std::size_t piece_bytes) { return cursor_.take(piece_bytes); }

    Segment segment_;
    SegmentCursor cursor_;
    std::span<std::byte> payload_; ///< first, because it starts on a page then
    std::span<std::byte> control_;
    std::span<std::byte> loaded_;
    std::span<std::byte> checked_;
    ProcessTable table_;
    Board* board_;
    std::span<PartResult> results_;
    std::span<std::uint8_t> arrived_;
};

} // namespace weir::demo
