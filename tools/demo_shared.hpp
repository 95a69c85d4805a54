// What the demo's programs share: a domain with a pool and two ports, and a segment of their own, the board.
#pragma once

#include "demo_plan.hpp"
#include "sha256.hpp"

#include <weir/weir.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace weir::demo {

inline constexpr unsigned worker_count = 2;
/// The producers, the workers and the collector; with --kill each is killed and started again once.
inline constexpr unsigned role_count = producer_count + worker_count + 1;
inline constexpr unsigned process_count_max = 2 * role_count;

inline constexpr std::string_view pool_name = "chunks";
inline constexpr std::string_view loaded_port_name = "loaded";   ///< from the producers to the workers
inline constexpr std::string_view checked_port_name = "checked"; ///< from the workers to the collector
inline constexpr PoolOptions pool_options{.buffer_bytes = 65'536, .buffer_count = 64};
/// Who is killed is started again, so nobody gives up because the other end is gone for a moment.
inline constexpr PortOptions port_options{.capacity = 32, .when_unconsumed = WhenUnconsumed::fill};

/// Stands at the front of each buffer; a chunk of a file follows. The producer writes it, except for what the worker adds.
struct ChunkHeader {
    std::uint32_t part;
    std::uint32_t producer;
    std::uint64_t chunk;                ///< its number in the part
    std::uint64_t sequence;             ///< its number among the messages of its producer
    std::uint64_t payload_offset_bytes; ///< where the producer wrote the buffer
    std::uint32_t data_bytes;
    std::uint8_t life;          ///< how often its producer had been started before
    std::uint8_t is_sent_again; ///< a producer that was killed may have pushed it
    std::uint16_t worker;
    std::uint32_t checksum;          ///< the worker's, over the chunk
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
    std::uint64_t offsets_checked;
    std::uint64_t offsets_moved;
    std::uint32_t resumed_of_producer; ///< of a producer that was started again: its number and 1
    std::uint64_t resumed_sequence;    ///< and the message that it went on with
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
    tool::Sha256Digest wanted; ///< the producer's, when the last chunk has arrived
    tool::Sha256Digest digest; ///< of the copy, where nothing is missing
};
static_assert(std::is_trivially_copyable_v<PartResult>);

/// What became of a message at the collector.
enum class Arrival : std::uint8_t {
    none,
    begun,   ///< a collector has begun to write it
    written, ///< it is in the copy
    repeated ///< and it came a second time, from a producer that was started again
};

inline constexpr std::uint64_t gate_open = std::numeric_limits<std::uint64_t>::max();

struct BoardState {
    std::uint64_t part_count;
    std::uint64_t message_count;
    std::uint64_t digest_count; ///< of chunks: all with --kill, else none
    std::uint64_t text_bytes;   ///< the packed plan
    std::uint64_t output_bytes; ///< the name of the folder for the copies
    std::uint32_t has_kill;
    std::uint32_t gate_event;
    std::uint64_t sent_count; ///< messages that producers wanted to send
    std::uint64_t gate_limit; ///< and may send; gate_open when all kills are over
    /// How many of its messages each producer has pushed, written after each push: where its successor goes on.
    std::uint64_t pushed_counts[producer_count];
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

/// The segment of the demo's own: what is to be done, how far everybody is, and what came of it. It outlives who is
/// killed. Its name begins as those of the domain's files do, so whoever removes these removes it too.
class Board {
public:
    static Board create(const Plan& plan, const std::string& domain, const std::string& output, bool has_kill) {
        const std::string text = pack(plan);
        const BoardState sizes{.part_count = plan.parts.size(),
                               .message_count = plan.message_count,
                               .digest_count = has_kill ? plan.message_count : 0,
                               .text_bytes = text.size(),
                               .output_bytes = output.size(),
                               .has_kill = has_kill ? 1U : 0U,
                               .gate_event = 0,
                               .sent_count = 0,
                               .gate_limit = gate_open,
                               .pushed_counts = {},
                               .reports = {}};
        Segment segment = Segment::create(name(domain), bytes(sizes)); // private to this demo, so untyped
        *reinterpret_cast<BoardState*>(segment.bytes().data()) = sizes;
        Board board(std::move(segment));
        std::memcpy(board.text_.data(), text.data(), text.size());
        std::memcpy(board.output_.data(), output.data(), output.size());
        return board;
    }
    static Board open(const std::string& domain) { return Board(Segment::open(name(domain))); }

    [[nodiscard]] BoardState& state() const noexcept { return *state_; }
    [[nodiscard]] bool has_kill() const noexcept { return state_->has_kill != 0; }
    [[nodiscard]] std::span<PartResult> results() const noexcept { return results_; }
    [[nodiscard]] std::span<tool::Sha256Digest> chunk_digests() const noexcept { return digests_; }
    [[nodiscard]] Plan plan() const { return unpack(text_of(text_)); }
    [[nodiscard]] std::string output() const { return std::string(text_of(output_)); }

    [[nodiscard]] Arrival arrival(std::uint64_t message) const noexcept {
        // acquire: after it, what was written for that message before
        return Arrival{shared(arrivals_[message]).load(std::memory_order_acquire)};
    }
    void set_arrival(std::uint64_t message, Arrival arrival) const noexcept {
        // release: before it, what is written for that message; a collector may be killed in between
        shared(arrivals_[message]).store(static_cast<std::uint8_t>(arrival), std::memory_order_release);
    }

private:
    explicit Board(Segment segment)
        : segment_(std::move(segment)), cursor_(segment_.bytes()),
          state_(reinterpret_cast<BoardState*>(cursor_.take(sizeof(BoardState)).data())),
          results_(take<PartResult>(state_->part_count)), digests_(take<tool::Sha256Digest>(state_->digest_count)),
          arrivals_(take<std::uint8_t>(state_->message_count)), text_(take<char>(state_->text_bytes)),
          output_(take<char>(state_->output_bytes)) {}

    [[nodiscard]] static std::string name(const std::string& domain) {
        return DomainNames(geteuid(), domain).prefix() + "board";
    }
    [[nodiscard]] static std::size_t bytes(const BoardState& sizes) {
        std::size_t sum = 0;
        for (const std::size_t piece :
             {sizeof(BoardState), sizes.part_count * sizeof(PartResult),
              sizes.digest_count * sizeof(tool::Sha256Digest), std::size_t{sizes.message_count},
              std::size_t{sizes.text_bytes}, std::size_t{sizes.output_bytes}}) {
            sum += round_up(piece, cache_line_bytes);
        }
        return sum;
    }
    template <class Item>
    [[nodiscard]] std::span<Item> take(std::uint64_t count) {
        return {reinterpret_cast<Item*>(cursor_.take(count * sizeof(Item)).data()), count};
    }
    [[nodiscard]] static std::string_view text_of(std::span<const char> text) noexcept {
        return {text.data(), text.size()};
    }

    Segment segment_;
    SegmentCursor cursor_;
    BoardState* state_;
    std::span<PartResult> results_;
    std::span<tool::Sha256Digest> digests_;
    std::span<std::uint8_t> arrivals_;
    std::span<char> text_;
    std::span<char> output_;
};

} // namespace weir::demo
