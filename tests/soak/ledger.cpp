#include "ledger.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <limits>

namespace soak {

namespace {

constexpr std::int64_t never_ns = std::numeric_limits<std::int64_t>::max();

/// Kuhn's matching, of messages to places in pops. Both are sorted by time, and pops are short, so few are looked at.
class Matching {
public:
    Matching(const std::vector<Missing>& missing, const std::vector<KilledPop>& pops)
        : missing_(missing), pops_(pops), takers_(pops.size()), seen_(pops.size()) {
        std::int64_t longest_ns = 0;
        for (const KilledPop& pop : pops) {
            longest_ns = std::max(longest_ns, pop.ended_ns - pop.begun_ns);
        }
        longest_ns_ = longest_ns;
    }

    [[nodiscard]] bool place(std::size_t message) {
        ++round_;
        return try_place(message);
    }

private:
    [[nodiscard]] bool try_place(std::size_t first_message) {
        // Depth first, without recursion: a chain may be as long as there are messages.
        struct Frame {
            std::size_t message;
            std::size_t pop;
            std::size_t taker;
        };
        std::vector<Frame> path{{first_message, first_pop(first_message), 0}};
        while (!path.empty()) {
            Frame& frame = path.back();
            const Missing& message = missing_[frame.message];
            if (frame.pop == pops_.size() || pops_[frame.pop].begun_ns > message.latest_ns) {
                path.pop_back();
                if (!path.empty()) {
                    ++path.back().taker;
                }
                continue;
            }
            const std::size_t pop = frame.pop;
            if (frame.taker == 0 && (pops_[pop].ended_ns < message.earliest_ns || seen_[pop] == round_)) {
                ++frame.pop;
                continue;
            }
            seen_[pop] = round_;
            if (takers_[pop].size() < pops_[pop].count) {
                takers_[pop].push_back(frame.message);
                // Each on the path takes the place of the one that moved on.
                for (std::size_t at = path.size() - 1; at > 0; --at) {
                    Frame& before = path[at - 1];
                    takers_[before.pop][before.taker] = before.message;
                }
                return true;
            }
            if (frame.taker == takers_[pop].size()) {
                ++frame.pop;
                frame.taker = 0;
                continue;
            }
            const std::size_t moved = takers_[pop][frame.taker];
            path.push_back({moved, first_pop(moved), 0});
        }
        return false;
    }

    [[nodiscard]] std::size_t first_pop(std::size_t message) const {
        const std::int64_t from_ns = missing_[message].earliest_ns - longest_ns_;
        return static_cast<std::size_t>(std::ranges::lower_bound(pops_, from_ns, {}, &KilledPop::begun_ns) -
                                        pops_.begin());
    }

    const std::vector<Missing>& missing_;
    const std::vector<KilledPop>& pops_;
    std::vector<std::vector<std::size_t>> takers_;
    std::vector<std::uint64_t> seen_;
    std::uint64_t round_ = 0;
    std::int64_t longest_ns_ = 0;
};

} // namespace

std::vector<Missing> unexplained(std::vector<Missing> missing, const std::vector<KilledPop>& pops) {
    std::vector<KilledPop> sorted = pops;
    std::ranges::sort(sorted, {}, &KilledPop::begun_ns);
    std::ranges::sort(missing, {}, &Missing::latest_ns);
    Matching matching(missing, sorted);
    std::vector<Missing> left;
    for (std::size_t number = 0; number < missing.size(); ++number) {
        if (!matching.place(number)) {
            left.push_back(missing[number]);
        }
    }
    return left;
}

Ledger::Ledger(std::vector<PortRules> ports) : start_ns_(weir::monotonic_ns()), next_forget_ns_(start_ns_) {
    for (PortRules& rules : ports) {
        ports_.emplace_back().rules = std::move(rules);
    }
}

void Ledger::fault(const char* format, ...) {
    if (++fault_count_ > told_max) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    char text[256];
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    faults_.emplace_back(text);
}

std::size_t Ledger::step_of(std::int64_t time_ns) {
    return static_cast<std::size_t>(std::max<std::int64_t>(time_ns - start_ns_, 0) / time_step_ns);
}

std::uint64_t Ledger::pushed_count() const {
    std::uint64_t count = 0;
    for (const PortAccount& port : ports_) {
        count += port.balance.pushed + port.balance.doubtful_sure;
    }
    return count;
}

bool Ledger::is_port(const Record& record) {
    if (record.port < ports_.size()) {
        return true;
    }
    fault("life %u notes port %u, which there is not", record.life, record.port);
    return false;
}

void Ledger::take(std::span<const Record> records) {
    for (const Record& record : records) {
        if (record.event == Event::push_begun && is_port(record)) {
            begin_push(record);
        }
        arrived_.push_back(record);
    }
}

void Ledger::end_round() {
    for (const Record& record : due_) {
        settle_record(record);
    }
    if (!due_.empty() && due_.back().time_ns >= next_forget_ns_) {
        forget_dropped(due_.back().time_ns);
        next_forget_ns_ = due_.back().time_ns + forget_interval_ns;
    }
    due_.clear();
    due_.swap(arrived_);
}

void Ledger::forget_dropped(std::int64_t now_ns) {
    std::erase_if(pushes_, [&](const auto& entry) {
        PortAccount& port = ports_[port_of(entry.first)];
        const Push& push = entry.second;
        if (!port.rules.drops || push.state != State::pushed || push.popped_ns != 0 ||
            push.ended_ns > now_ns - forget_interval_ns) {
            return false;
        }
        ++port.balance.forgotten; // should it arrive after all, that is a fault
        return true;
    });
}

void Ledger::begin_push(const Record& record) {
    Living& life = living_[record.life];
    if (record.detail == 0) {
        life.batches.push_back({++batch_count_, record.port, {}});
    }
    if (life.batches.empty() || life.batches.back().port != record.port ||
        life.batches.back().messages.size() != record.detail) {
        fault("life %u: a batch that does not begin with its first message", record.life);
        return;
    }
    Batch& batch = life.batches.back();
    batch.messages.push_back(record.message);
    Push push;
    push.begun_ns = record.time_ns;
    push.life = record.life;
    push.order = ++life.orders[record.port];
    push.batch = batch.number;
    if (!pushes_.emplace(key_of(record.message, record.port), push).second) {
        fault("message %s is pushed into %s again by life %u", name_of(record.message).c_str(),
              ports_[record.port].rules.name.c_str(), record.life);
    }
}

void Ledger::settle_record(const Record& record) {
    if (record.event == Event::started) {
        ++lives_.started;
        lives_.executed += record.detail;
        living_[record.life].last = Event::started;
        return;
    }
    if (record.event == Event::ended) {
        end_life(record);
        return;
    }
    if (record.event == Event::stopped) {
        ++lives_.stopped;
        return;
    }
    Living& life = living_[record.life];
    life.last = record.event;
    switch (record.event) {
    case Event::joined: ++lives_.joined; break;
    case Event::refused: ++lives_.refused; break;
    case Event::reaped: lives_.reaped += record.count; break;
    case Event::failed: fault("life %u failed", record.life); break;
    case Event::push_ended: end_push(life, record); break;
    case Event::pop_begun:
        life.pop = record;
        if (!is_port(record)) {
            life.pop.reset();
        }
        break;
    case Event::popped: pop(life, record); break;
    default: break;
    }
    // A pop's messages follow it in the same write.
    if (record.event != Event::pop_begun && record.event != Event::pop_ended && record.event != Event::popped) {
        life.pop.reset();
    }
}

void Ledger::end_push(Living& life, const Record& record) {
    if (life.batches.empty() || life.batches.front().port != record.port) {
        fault("life %u ends a push that it did not begin", record.life);
        return;
    }
    const Batch batch = std::move(life.batches.front());
    life.batches.pop_front();
    PortBalance& balance = ports_[record.port].balance;
    for (std::size_t place = 0; place < batch.messages.size(); ++place) {
        const std::uint64_t key = key_of(batch.messages[place], batch.port);
        const auto found = pushes_.find(key);
        if (found == pushes_.end()) {
            continue; // a fault already
        }
        Push& push = found->second;
        if (place < record.count) {
            ++balance.pushed;
            push.state = State::pushed;
            push.ended_ns = record.time_ns;
            if (push.popped_ns != 0) {
                close(key, push);
            }
            continue;
        }
        ++balance.refused;
        if (push.popped_ns != 0) {
            fault("message %s was popped from %s, but its push by life %u said that it was not pushed",
                  name_of(batch.messages[place]).c_str(), ports_[batch.port].rules.name.c_str(), record.life);
        }
        pushes_.erase(found);
    }
}

void Ledger::pop(Living& life, const Record& record) {
    if (!is_port(record)) {
        return;
    }
    PortAccount& port = ports_[record.port];
    const std::uint64_t key = key_of(record.message, record.port);
    const auto found = pushes_.find(key);
    ++port.balance.popped;
    if (!life.pop || life.pop->port != record.port) {
        fault("life %u popped from %s without having begun to", record.life, port.rules.name.c_str());
        return;
    }
    if (found == pushes_.end() || found->second.popped_ns != 0) {
        fault("message %s was popped from %s by life %u, and was not pushed, or had been popped before",
              name_of(record.message).c_str(), port.rules.name.c_str(), record.life);
        return;
    }
    Push& push = found->second;
    push.popped_ns = record.time_ns;
    push.pop_begun_ns = life.pop->time_ns;
    std::uint32_t& last_order = life.last_orders[std::uint64_t{push.life} << 4 | record.port];
    if (push.order <= last_order) {
        fault("message %s, number %u of life %u in %s, was popped by life %u after number %u",
              name_of(record.message).c_str(), push.order, push.life, port.rules.name.c_str(), record.life, last_order);
    }
    last_order = push.order;
    if (push.state == State::pushed) {
        close(key, push);
    } else if (push.state == State::doubtful) {
        prove_prefix(push.batch, record.message);
    }
}

void Ledger::close(std::uint64_t key, const Push& push) {
    PortAccount& port = ports_[port_of(key)];
    const auto at = [this](std::vector<std::int64_t>& steps, std::int64_t time_ns, std::int64_t fill) -> std::int64_t& {
        const std::size_t step = step_of(time_ns);
        if (steps.size() <= step) {
            steps.resize(step + 1, fill);
        }
        return steps[step];
    };
    std::int64_t& first_ns = at(port.first_popped_ns, push.begun_ns, never_ns);
    first_ns = std::min(first_ns, push.popped_ns);
    std::int64_t& last_ns = at(port.last_pop_begun_ns, push.ended_ns, 0);
    last_ns = std::max(last_ns, push.pop_begun_ns);
    pushes_.erase(key);
}

void Ledger::count_killed(const Living& life) {
    const char* at = "before joining";
    switch (life.last) {
    case Event::started: break;
    case Event::joining: at = "joining"; break;
    case Event::joined: at = "setting up"; break;
    case Event::leaving: at = "leaving"; break;
    case Event::left: at = "after leaving"; break;
    case Event::push_begun: at = "pushing"; break;
    case Event::pop_begun: at = "popping"; break;
    default: at = "at other work"; break;
    }
    ++lives_.killed;
    ++lives_.killed_at[at];
}

void Ledger::end_life(const Record& record) {
    Living& life = living_[record.life];
    const auto end = static_cast<End>(record.detail);
    if (end == End::killed) {
        count_killed(life);
    } else {
        ++lives_.left;
        if (end == End::failed) {
            fault("life %u ended by itself, with an error", record.life);
        }
        if (!life.batches.empty() || life.last == Event::pop_begun) {
            fault("life %u left in the middle of a call", record.life);
        }
    }
    for (const Batch& batch : life.batches) {
        ++ports_[batch.port].balance.killed_push_count;
        doubt(batch, record.time_ns);
    }
    if (life.pop && life.last == Event::pop_begun) {
        PortAccount& port = ports_[life.pop->port];
        port.killed_pops.push_back({life.pop->time_ns, record.time_ns, life.pop->count});
        ++port.balance.killed_pop_count;
        port.balance.killed_pop_messages += life.pop->count;
    }
    living_.erase(record.life);
}

void Ledger::doubt(const Batch& batch, std::int64_t ended_ns) {
    doubtful_batches_.emplace(batch.number, batch);
    MessageId last_popped = 0;
    bool is_popped = false;
    for (const MessageId message : batch.messages) {
        const auto found = pushes_.find(key_of(message, batch.port));
        if (found == pushes_.end()) {
            continue; // a fault already
        }
        ++ports_[batch.port].balance.doubtful;
        found->second.state = State::doubtful;
        found->second.ended_ns = ended_ns;
        if (found->second.popped_ns != 0) {
            last_popped = message;
            is_popped = true;
        }
    }
    if (is_popped) {
        prove_prefix(batch.number, last_popped);
    }
}

/// A message of a batch whose pusher was killed has arrived: all in front of it were pushed too.
void Ledger::prove_prefix(std::uint64_t batch_number, MessageId popped) {
    const Batch& batch = doubtful_batches_.at(batch_number);
    for (const MessageId message : batch.messages) {
        const auto found = pushes_.find(key_of(message, batch.port));
        if (found != pushes_.end() && found->second.state == State::doubtful) {
            ++ports_[batch.port].balance.doubtful_sure;
            found->second.state = State::pushed;
            if (found->second.popped_ns != 0) {
                close(found->first, found->second);
            }
        }
        if (message == popped) {
            return;
        }
    }
}

void Ledger::settle(std::span<const PortTotals> totals) {
    end_round();
    end_round();
    for (const auto& [number, life] : living_) {
        if (number != 0) { // 0 is who pops what is left
            fault("life %u did not end", number);
        }
    }
    std::vector<std::vector<Missing>> missing(ports_.size());
    for (PortAccount& port : ports_) {
        for (std::size_t step = port.first_popped_ns.size(); step > 1; --step) {
            port.first_popped_ns[step - 2] = std::min(port.first_popped_ns[step - 2], port.first_popped_ns[step - 1]);
        }
        for (std::size_t step = 1; step < port.last_pop_begun_ns.size(); ++step) {
            port.last_pop_begun_ns[step] = std::max(port.last_pop_begun_ns[step - 1], port.last_pop_begun_ns[step]);
        }
    }
    for (const auto& [key, push] : pushes_) {
        if (push.state == State::begun) {
            fault("a push of message %s was begun, and not ended", name_of(message_of(key)).c_str());
        }
        if (push.state != State::pushed || push.popped_ns != 0) {
            continue;
        }
        const PortAccount& port = ports_[port_of(key)];
        Missing one{message_of(key), push.begun_ns, never_ns};
        const std::size_t before = step_of(push.begun_ns);
        if (before > 0 && !port.last_pop_begun_ns.empty()) {
            one.earliest_ns =
                std::max(one.earliest_ns, port.last_pop_begun_ns[std::min(before, port.last_pop_begun_ns.size()) - 1]);
        }
        const std::size_t after = step_of(push.ended_ns) + 1;
        if (after < port.first_popped_ns.size()) {
            one.latest_ns = port.first_popped_ns[after];
        }
        missing[port_of(key)].push_back(one);
    }
    for (unsigned number = 0; number < ports_.size(); ++number) {
        settle_port(number, totals[number], std::move(missing[number]));
    }
}

void Ledger::settle_port(unsigned number, const PortTotals& totals, std::vector<Missing> missing) {
    PortAccount& port = ports_[number];
    PortBalance& balance = port.balance;
    const char* const name = port.rules.name.c_str();
    const auto check = [&](const char* what, std::uint64_t said, std::uint64_t least, std::uint64_t most) {
        if (said < least || said > most) {
            fault("%s: %s is %llu, and should be %llu to %llu", name, what, static_cast<unsigned long long>(said),
                  static_cast<unsigned long long>(least), static_cast<unsigned long long>(most));
        }
    };
    // A handle counts a message after it was pushed or popped, and may be killed in between.
    check("the counter of messages pushed", totals.pushed, balance.pushed, balance.pushed + balance.doubtful);
    check("the counter of messages popped", totals.popped, balance.popped,
          balance.popped + balance.killed_pop_messages);
    if (port.rules.drops) {
        const std::uint64_t unpopped = missing.size() + balance.forgotten;
        const std::uint64_t unproven = balance.doubtful - balance.doubtful_sure;
        const std::uint64_t claimed = balance.killed_pop_messages + balance.killed_push_count;
        check("the number of messages pushed and not popped", unpopped,
              totals.dropped - std::min(totals.dropped, unproven), totals.dropped + claimed);
        balance.claimed_by_dead = unpopped - std::min(unpopped, totals.dropped);
        balance.unaccounted = balance.claimed_by_dead - std::min(balance.claimed_by_dead, claimed);
        return;
    }
    check("the counter of messages dropped", totals.dropped, 0, 0);
    balance.claimed_by_dead = missing.size();
    for (const Missing& one : unexplained(std::move(missing), port.killed_pops)) {
        ++balance.unaccounted;
        --balance.claimed_by_dead;
        fault("message %s was pushed into %s at %lld ns, and never arrived; nobody who was killed can have claimed it",
              name_of(one.message).c_str(), name, static_cast<long long>(one.earliest_ns));
    }
}

} // namespace soak
