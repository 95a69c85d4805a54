// What the parts of the soak share: the plan of its domain, its messages, and the records of its ledger.
//
// Three kinds of processes. The bookkeeper (soak.cpp) starts the killer and reads the ledger (ledger.hpp). The killer
// (killer.cpp) starts, stops, continues and kills lives, at random. A life (lives.cpp) is a program that joins the domain by
// its name, pushes and pops, and notes in a pipe of its seat what it is about to do and what came of it. The pipe outlives
// the life, so what it has noted is never lost; the library knows nothing of it.
#pragma once

#include "../testing.hpp"

#include <weir/domain.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace soak {

// --- The domain ------------------------------------------------------------------------------------------------------

enum PortNumber : std::uint8_t { raw, cooked, copies, latest, direct, port_count };

struct PortPlan {
    const char* name;
    weir::PortOptions options;
};
inline constexpr std::array<PortPlan, port_count> port_plans{{
    {"raw", {.capacity = 64}},
    {"cooked", {.capacity = 32, .when_unconsumed = weir::WhenUnconsumed::fill, .time_stamps = true}},
    {"copies", {.capacity = 16, .when_full = weir::WhenFull::refuse, .when_unconsumed = weir::WhenUnconsumed::fill}},
    {"latest",
     {.capacity = 8, .when_full = weir::WhenFull::drop_oldest, .when_unconsumed = weir::WhenUnconsumed::fill}},
    {"direct", {.capacity = 2}},
}};

struct PoolPlan {
    const char* name;
    weir::PoolOptions options;
};
inline constexpr std::array<PoolPlan, 3> pool_plans{{
    {"small", {.buffer_bytes = 64, .buffer_count = 96}},
    {"large", {.buffer_bytes = 512, .buffer_count = 48, .references_per_buffer = 12}},
    {"few", {.buffer_bytes = 256, .buffer_count = 8}},
}};

inline constexpr std::int64_t recheck_interval_ns = 5'000'000;
inline constexpr unsigned batch_max = 8;

// --- Messages --------------------------------------------------------------------------------------------------------

/// Who allocated it, and the number that it gave it.
using MessageId = std::uint64_t;

[[nodiscard]] constexpr MessageId message_id(std::uint32_t life, std::uint32_t number) {
    return std::uint64_t{life} << 32 | number;
}
[[nodiscard]] std::string name_of(MessageId message);

/// Fills all of the buffer's message with its id and a pattern that the id decides.
void write_message(weir::BufferPtr& buffer, MessageId message);
/// The id; none, where the message is torn.
[[nodiscard]] std::optional<MessageId> read_message(const weir::BufferPtr& buffer);

// --- The ledger's records --------------------------------------------------------------------------------------------

enum class Event : std::uint8_t {
    started,    ///< by the killer; `detail`: whether it is executed anew
    ended,      ///< by the killer; `detail`: an End
    stopped,    ///< by the killer
    joining,    ///<
    joined,     ///<
    leaving,    ///<
    left,       ///<
    push_begun, ///< `message` is place `detail` of `count` that are pushed to `port`, in this order
    push_ended, ///< the first `count` of them were pushed
    pop_begun,  ///< at most `count` are popped from `port`
    pop_ended,  ///< `count` were, and follow
    popped,     ///< `message`
    reaped,     ///< `count` dead processes, by hand
    refused,    ///< joining took too long: errc::busy
    failed,     ///< a life found something wrong, and has said so
};

enum class End : std::uint8_t { killed, by_itself, failed };

struct Record {
    std::int64_t time_ns = 0; ///< CLOCK_MONOTONIC
    MessageId message = 0;
    std::uint32_t life = 0;
    Event event = Event::started;
    std::uint8_t port = 0;
    std::uint8_t count = 0;
    std::uint8_t detail = 0;
};
static_assert(sizeof(Record) == 24);

/// Notes records, several at a time with one write, which is atomic.
class Diary {
public:
    Diary(int descriptor, std::uint32_t life) : descriptor_(descriptor), life_(life) {}

    void add(Event event, unsigned port = 0, std::size_t count = 0, unsigned detail = 0, MessageId message = 0);
    /// Nothing that was added is noted before this.
    void flush();

    [[nodiscard]] std::uint32_t life() const { return life_; }

private:
    static constexpr std::size_t record_max = 64;
    static_assert(record_max * sizeof(Record) <= 4096, "what a pipe takes at once");

    int descriptor_;
    std::uint32_t life_;
    std::size_t count_ = 0;
    std::array<Record, record_max> records_{};
};

// --- Lives -----------------------------------------------------------------------------------------------------------

enum class Role : std::uint8_t { producer, worker, collector, reaper, visitor, founder };
[[nodiscard]] const char* name_of(Role role);

struct Life {
    std::string domain;
    Role role = Role::producer;
    std::uint32_t number = 0;
    std::uint64_t seed = 0;
    int diary = -1;
    bool is_steady = false; ///< lives on, and waits for nothing without a deadline
};

/// Does what the role does until it is killed, or SIGTERM asks it to leave.
void live(const Life& life);

/// The domain that founders make and remove all the time.
[[nodiscard]] inline std::string side_domain(const std::string& domain) {
    return domain + ".side";
}

} // namespace soak
