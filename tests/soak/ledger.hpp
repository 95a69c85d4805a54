// The soak's accounts: what was pushed and popped, by the records that the lives left behind.
//
// A push that returned ok is popped exactly once. A push that was refused is not popped. A push in the middle of which its
// life was killed goes either way; of a killed batch, a prefix was pushed. What was pushed and never arrived was claimed by
// somebody who was killed in the middle of a pop, and each such pop explains as many messages as it asked for, if they can
// have been claimed while it lasted: as a port is first in, first out, a message was claimed after all that were pushed
// before it, and before all that were pushed after it. In a port that drops the oldest, what its counters call dropped
// need not arrive. Each consumer gets what a producer pushed into a port in the order in which it was pushed.
//
// Records of one pipe come in order, but pipes are read one after the other. A push is noted before it begins, so a round
// that reads all pipes to their ends, after a record of its pop was read, has the push: hence what a round reads is settled
// after the next one, but for the begun pushes.
#pragma once

#include "soak.hpp"

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace soak {

/// When somebody was killed in the middle of a pop of at most `count` messages.
struct KilledPop {
    std::int64_t begun_ns = 0;
    std::int64_t ended_ns = 0;
    unsigned count = 0;
};

/// A message that did not arrive, and when it can have been claimed.
struct Missing {
    MessageId message = 0;
    std::int64_t earliest_ns = 0;
    std::int64_t latest_ns = 0;
};

/// Gives each missing message a killed pop that can have claimed it; those for which there is none.
[[nodiscard]] std::vector<Missing> unexplained(std::vector<Missing> missing, const std::vector<KilledPop>& pops);

class Ledger {
public:
    struct PortRules {
        std::string name;
        bool drops = false; ///< the oldest, when it is full
    };
    explicit Ledger(std::vector<PortRules> ports);

    /// Takes all that a pipe had, in order.
    void take(std::span<const Record> records);
    /// All pipes were read.
    void end_round();

    /// What a port's own counters say in the end.
    struct PortTotals {
        std::uint64_t pushed = 0;
        std::uint64_t popped = 0;
        std::uint64_t dropped = 0;
    };
    /// When all have ended and all is read, what was still queued popped and noted too: looks for what is missing.
    void settle(std::span<const PortTotals> totals);

    /// What is wrong; empty when every message is accounted for.
    [[nodiscard]] const std::vector<std::string>& faults() const { return faults_; }
    /// How many there are; of many of a kind, only the first ones are told.
    [[nodiscard]] std::uint64_t fault_count() const { return fault_count_; }

    struct PortBalance {
        std::uint64_t pushed = 0;        ///< the call returned, and it was
        std::uint64_t refused = 0;       ///< the call returned, and it was not
        std::uint64_t popped = 0;        ///< all that arrived
        std::uint64_t doubtful = 0;      ///< their pusher was killed in the middle of the call
        std::uint64_t doubtful_sure = 0; ///< of these: popped, or in front of a popped one in its batch
        std::uint64_t forgotten = 0;     ///< surely pushed into a port that drops, and not popped for long
        std::uint64_t claimed_by_dead = 0;
        std::uint64_t unaccounted = 0;
        std::uint64_t killed_push_count = 0;
        std::uint64_t killed_pop_count = 0;
        std::uint64_t killed_pop_messages = 0; ///< that they asked for
    };
    [[nodiscard]] const PortBalance& balance(unsigned port) const { return ports_.at(port).balance; }
    [[nodiscard]] std::uint64_t pushed_count() const;
    [[nodiscard]] std::uint64_t open_count() const { return pushes_.size(); }

    struct Lives {
        std::uint64_t started = 0;
        std::uint64_t executed = 0; ///< of these, as programs of their own
        std::uint64_t left = 0;
        std::uint64_t stopped = 0;
        std::uint64_t joined = 0;
        std::uint64_t refused = 0; ///< memberships, because others took too long
        std::uint64_t reaped = 0;  ///< by hand
        std::uint64_t killed = 0;
        std::map<std::string, std::uint64_t> killed_at; ///< what they were about
    };
    [[nodiscard]] const Lives& lives() const { return lives_; }

private:
    enum class State : std::uint8_t { begun, pushed, doubtful };

    struct Push {
        std::int64_t begun_ns = 0;
        std::int64_t ended_ns = 0;
        std::int64_t popped_ns = 0; ///< 0: it was not
        std::int64_t pop_begun_ns = 0;
        std::uint32_t life = 0;
        std::uint32_t order = 0; ///< of its life's, into its port
        std::uint64_t batch = 0;
        State state = State::begun;
    };
    struct Batch {
        std::uint64_t number = 0;
        unsigned port = 0;
        std::vector<MessageId> messages;
    };
    struct Living {
        Event last = Event::started;
        std::uint32_t orders[16]{};
        std::deque<Batch> batches; ///< begun, and not ended
        std::optional<Record> pop; ///< begun, and not ended
        /// The last that it popped, by port and pusher.
        std::unordered_map<std::uint64_t, std::uint32_t> last_orders;
    };
    struct PortAccount {
        PortRules rules;
        PortBalance balance;
        std::vector<KilledPop> killed_pops;
        // By when a message was pushed, in steps of time_step_ns:
        std::vector<std::int64_t> first_popped_ns;   ///< the end of the earliest pop of one whose push began then
        std::vector<std::int64_t> last_pop_begun_ns; ///< the begin of the latest pop of one whose push had ended then
    };

    static constexpr std::int64_t time_step_ns = 1'000'000;
    static constexpr std::int64_t forget_interval_ns = 60'000'000'000;
    static constexpr std::size_t told_max = 40;

    [[gnu::format(printf, 2, 3)]] void fault(const char* format, ...);
    [[nodiscard]] static std::uint64_t key_of(MessageId message, unsigned port) { return message << 4 | port; }
    [[nodiscard]] static MessageId message_of(std::uint64_t key) { return key >> 4; }
    [[nodiscard]] static unsigned port_of(std::uint64_t key) { return static_cast<unsigned>(key & 15); }
    [[nodiscard]] std::size_t step_of(std::int64_t time_ns);
    [[nodiscard]] bool is_port(const Record& record);

    void begin_push(const Record& record);
    void settle_record(const Record& record);
    void end_push(Living& life, const Record& record);
    void pop(Living& life, const Record& record);
    void end_life(const Record& record);
    void count_killed(const Living& life);
    void doubt(const Batch& batch, std::int64_t ended_ns);
    void prove_prefix(std::uint64_t batch, MessageId popped);
    /// Both ends are known: nothing more is to come of it.
    void close(std::uint64_t key, const Push& push);
    /// Of a port that drops, most messages never arrive: in the long run they would fill the memory.
    void forget_dropped(std::int64_t now_ns);
    void settle_port(unsigned number, const PortTotals& totals, std::vector<Missing> missing);

    std::vector<PortAccount> ports_;
    std::unordered_map<std::uint64_t, Push> pushes_; ///< those that are not closed, by message and port
    std::unordered_map<std::uint64_t, Batch> doubtful_batches_;
    std::unordered_map<std::uint32_t, Living> living_;
    std::vector<Record> arrived_;
    std::vector<Record> due_;
    std::uint64_t batch_count_ = 0;
    std::int64_t start_ns_ = 0;
    std::int64_t next_forget_ns_ = 0;
    Lives lives_;
    std::vector<std::string> faults_;
    std::uint64_t fault_count_ = 0;
};

} // namespace soak
