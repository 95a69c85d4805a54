#include "top_model.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace weir::top {

namespace {

/// A counter that went backwards counts as one that did not move.
std::uint64_t difference(std::uint64_t now, std::uint64_t before) {
    return now > before ? now - before : 0;
}

/// One domain's two looks.
class Comparison {
public:
    Comparison(const DomainSnapshot& now, const DomainSnapshot* before)
        : now_(now),
          before_(before != nullptr && before->registry_id == now.registry_id && now.taken_ns > before->taken_ns
                      ? before
                      : nullptr) {}

    void add_to(Model& model) const;

private:
    [[nodiscard]] Rate rate(std::uint64_t count) const {
        return static_cast<double>(count) * 1e9 / static_cast<double>(now_.taken_ns - before_->taken_ns);
    }
    [[nodiscard]] const ObservedPort* port_before(const ObservedPort& port) const;
    [[nodiscard]] MemberLife life_of(std::uint8_t slot, std::uint64_t incarnation) const;

    struct Attached {
        std::uint32_t handle_count = 0;
        std::uint32_t dead_count = 0; ///< of these, members that are dead and not reaped
    };
    [[nodiscard]] Attached attached(const ObservedEnd& end) const;
    [[nodiscard]] State state_of(const ObservedPort& port, const ObservedPort* before) const;
    [[nodiscard]] PortRow row_of(const ObservedPort& port) const;

    [[nodiscard]] std::uint64_t moved(const ObservedMember& member, const ObservedEnd& end,
                                      const ObservedEnd& before) const;
    [[nodiscard]] bool waits_on(const ObservedMember& member, const ObservedEnd& end) const;
    [[nodiscard]] ProcessRow row_of(const ObservedMember& member) const;

    const DomainSnapshot& now_;
    const DomainSnapshot* before_;
};

const ObservedPort* Comparison::port_before(const ObservedPort& port) const {
    if (before_ == nullptr) {
        return nullptr;
    }
    // Mostly it is in the same place: ports are only added.
    const auto place = static_cast<std::size_t>(&port - now_.ports.data());
    if (place < before_->ports.size() && before_->ports[place].name == port.name) {
        return &before_->ports[place];
    }
    const auto found = std::ranges::find(before_->ports, port.name, &ObservedPort::name);
    return found == before_->ports.end() ? nullptr : &*found;
}

MemberLife Comparison::life_of(std::uint8_t slot, std::uint64_t incarnation) const {
    const auto member = std::ranges::find_if(now_.members, [slot, incarnation](const ObservedMember& one) {
        return one.slot == slot && one.incarnation == incarnation;
    });
    return member == now_.members.end() ? MemberLife::unknown : member->life;
}

Comparison::Attached Comparison::attached(const ObservedEnd& end) const {
    Attached result;
    for (const PortHandles& handles : end.handles) {
        if (handles.is_alive) {
            result.handle_count += handles.handle_count;
            const bool is_dead = life_of(handles.slot, handles.incarnation) == MemberLife::dead;
            result.dead_count += is_dead ? handles.handle_count : 0;
        }
    }
    return result;
}

State Comparison::state_of(const ObservedPort& port, const ObservedPort* before) const {
    const Attached producers = attached(port.producers);
    const Attached consumers = attached(port.consumers);
    if (!port.producers.was_attached && !port.consumers.was_attached) {
        return {"unused", Concern::idle};
    }
    if (consumers.dead_count > 0) {
        return {consumers.dead_count == consumers.handle_count ? "consumers dead" : "a consumer dead", Concern::bad};
    }
    if (producers.dead_count > 0) {
        return {producers.dead_count == producers.handle_count ? "producers dead" : "a producer dead", Concern::bad};
    }
    if (port.producers.state == StreamEnd::died) {
        return {"producers died", Concern::bad};
    }
    if (port.consumers.state == StreamEnd::died) {
        return {"consumers died", Concern::bad};
    }
    if (port.producers.state == StreamEnd::closed) {
        return port.depth == 0 ? State{"ended", Concern::idle} : State{"ended, not empty", Concern::warning};
    }
    if (port.consumers.state == StreamEnd::closed || consumers.handle_count == 0) {
        return {"nobody consumes", Concern::warning};
    }
    if (producers.handle_count == 0) {
        return {"nobody produces", Concern::idle};
    }
    if (before != nullptr) {
        const bool is_taken_from = port.consumers.counters.messages > before->consumers.counters.messages;
        const bool is_put_into = port.producers.counters.messages > before->producers.counters.messages;
        if (!is_taken_from && port.depth > 0 && before->depth > 0) {
            return {"stuck", Concern::bad};
        }
        if (!is_taken_from && !is_put_into) {
            return {"idle", Concern::idle};
        }
    }
    return port.depth >= port.options.capacity ? State{"full", Concern::warning} : State{"flows", Concern::good};
}

PortRow Comparison::row_of(const ObservedPort& port) const {
    const ObservedPort* before = port_before(port);
    PortRow row;
    row.domain = now_.name;
    row.name = port.name;
    row.depth = port.depth;
    row.capacity = port.options.capacity;
    row.high_water_mark = std::max(port.producers.counters.high_water_mark, port.consumers.counters.high_water_mark);
    row.producer_count = attached(port.producers).handle_count;
    row.consumer_count = attached(port.consumers).handle_count;
    row.state = state_of(port, before);
    if (before != nullptr) {
        const auto rate_of = [this](const ObservedEnd& now, const ObservedEnd& then,
                                    std::uint64_t PortCounters::*counter) {
            return rate(difference(now.counters.*counter, then.counters.*counter));
        };
        row.in = rate_of(port.producers, before->producers, &PortCounters::messages);
        row.out = rate_of(port.consumers, before->consumers, &PortCounters::messages);
        row.bytes = rate_of(port.producers, before->producers, &PortCounters::bytes);
        row.full = rate_of(port.producers, before->producers, &PortCounters::stalls);
        row.empty = rate_of(port.consumers, before->consumers, &PortCounters::stalls);
        row.producer_waits = rate_of(port.producers, before->producers, &PortCounters::waits);
        row.consumer_waits = rate_of(port.consumers, before->consumers, &PortCounters::waits);
        row.dropped = rate_of(port.producers, before->producers, &PortCounters::dropped);
    }
    return row;
}

/// The messages that a member moved through an end. Its lines go on from who had them before, so that a line that it has
/// taken in between would count for it: whoever opened handles meanwhile has moved nothing yet, and nobody has moved more
/// than all.
std::uint64_t Comparison::moved(const ObservedMember& member, const ObservedEnd& end, const ObservedEnd& before) const {
    const auto handles_in = [&member](const ObservedEnd& of) {
        return std::ranges::find_if(of.handles, [&member](const PortHandles& handles) {
            return handles.slot == member.slot && handles.incarnation == member.incarnation;
        });
    };
    const auto now = handles_in(end);
    const auto then = handles_in(before);
    if (now == end.handles.end() || then == before.handles.end() || now->handle_count != then->handle_count) {
        return 0;
    }
    return std::min(difference(now->counters.messages, then->counters.messages),
                    difference(end.counters.messages, before.counters.messages));
}

/// Who sleeps on an end is known where one member alone is attached to it.
bool Comparison::waits_on(const ObservedMember& member, const ObservedEnd& end) const {
    const PortHandles* only = nullptr;
    for (const PortHandles& handles : end.handles) {
        if (handles.is_alive) {
            if (only != nullptr) {
                return false;
            }
            only = &handles;
        }
    }
    return end.is_waited_on && only != nullptr && only->slot == member.slot && only->incarnation == member.incarnation;
}

ProcessRow Comparison::row_of(const ObservedMember& member) const {
    ProcessRow row;
    row.domain = now_.name;
    row.process = member.process;
    row.slot = member.slot;
    row.member_life = member.life;
    switch (member.life) {
    case MemberLife::alive: row.life = {"alive", Concern::none}; break;
    case MemberLife::dead: row.life = {"dead", Concern::bad}; break;
    case MemberLife::unknown: row.life = {"unknown", Concern::warning}; break;
    }
    for (const ObservedPool& pool : now_.pools) {
        for (const ObservedHolder& holder : pool.holders) {
            // Others of this slot have left, or are dead and reaped.
            if (holder.owner == Owner(member.slot, member.incarnation)) {
                row.held_count += holder.held_count;
                row.queued_count += holder.queued_count;
            }
        }
    }
    std::uint64_t pushed = 0;
    std::uint64_t popped = 0;
    for (const ObservedPort& port : now_.ports) {
        if (const ObservedPort* before = port_before(port); before != nullptr) {
            pushed += moved(member, port.producers, before->producers);
            popped += moved(member, port.consumers, before->consumers);
        }
        if (member.life != MemberLife::dead) {
            const char* separator = row.waits_for.empty() ? "" : ", ";
            if (waits_on(member, port.producers)) {
                row.waits_for += fmt::format("{}push {}", separator, port.name);
            } else if (waits_on(member, port.consumers)) {
                row.waits_for += fmt::format("{}pop {}", separator, port.name);
            }
        }
    }
    if (before_ != nullptr) {
        row.pushed = rate(pushed);
        row.popped = rate(popped);
    }
    return row;
}

void Comparison::add_to(Model& model) const {
    DomainRow domain;
    domain.name = now_.name;
    domain.is_there = true;
    domain.shared_bytes = now_.control_bytes + now_.payload_bytes;
    domain.notes = now_.notes;
    for (const ObservedMember& member : now_.members) {
        switch (member.life) {
        case MemberLife::alive: ++domain.alive_count; break;
        case MemberLife::dead: ++domain.dead_count; break;
        case MemberLife::unknown: ++domain.unknown_count; break;
        }
        model.processes.push_back(row_of(member));
    }
    for (const ObservedPool& pool : now_.pools) {
        domain.buffer_count += pool.options.buffer_count;
        domain.free_count += pool.free_count;
        domain.held_count += pool.held_count;
        domain.queued_count += pool.queued_count;
        model.pools.push_back({now_.name, pool.name, pool.options.buffer_bytes, pool.options.buffer_count,
                               pool.free_count, pool.held_count, pool.queued_count});
    }
    for (const ObservedPort& port : now_.ports) {
        model.ports.push_back(row_of(port));
    }
    if (domain.alive_count + domain.unknown_count == 0) {
        domain.notes.emplace_back(domain.dead_count > 0
                                      ? "all members are dead; what they left stays until somebody joins"
                                      : "nobody is a member; its files stay until somebody joins");
    }
    model.domains.push_back(std::move(domain));
}

} // namespace

void add_domain(Model& model, const DomainSnapshot& now, const DomainSnapshot* before) {
    Comparison(now, before).add_to(model);
}

void add_missing_domain(Model& model, const std::string& name, const std::string& note) {
    DomainRow domain;
    domain.name = name;
    domain.notes.push_back(note);
    model.domains.push_back(std::move(domain));
}

} // namespace weir::top
