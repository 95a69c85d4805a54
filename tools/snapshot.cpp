#include "snapshot.hpp"

#include "verb.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace weir::tool {

namespace {

Json json_of(const PortCounters& counters) {
    return {
        {"messages", counters.messages},
        {"bytes", counters.bytes},
        {"stalls", counters.stalls},
        {"waits", counters.waits},
        {"wakes", counters.wakes},
        {"dropped", counters.dropped},
        {"high_water_mark", counters.high_water_mark},
    };
}

Json json_of(const ObservedEnd& end) {
    Json handles = Json::array();
    for (const PortHandles& one : end.handles) {
        handles.push_back({
            {"slot", one.slot},
            {"incarnation", one.incarnation},
            {"is_alive", one.is_alive},
            {"handle_count", one.handle_count},
            {"counters", json_of(one.counters)},
        });
    }
    return {
        {"state", state_of(end)},
        {"is_waited_on", end.is_waited_on},
        {"counters", json_of(end.counters)},
        {"handles", handles},
    };
}

} // namespace

std::string_view name_of(MemberLife life) noexcept {
    switch (life) {
    case MemberLife::alive: return "alive";
    case MemberLife::dead: return "dead";
    case MemberLife::unknown: break;
    }
    return "unknown";
}

std::string_view state_of(const ObservedEnd& end) noexcept {
    switch (end.state) {
    case StreamEnd::open: return end.was_attached ? "open" : "unused";
    case StreamEnd::closed: return "closed";
    case StreamEnd::died: break;
    }
    return "died";
}

const ObservedMember* find_member(const DomainSnapshot& domain, std::uint8_t slot, std::uint64_t incarnation) noexcept {
    const auto found = std::ranges::find_if(domain.members, [slot, incarnation](const ObservedMember& member) {
        return member.slot == slot && member.incarnation == incarnation;
    });
    return found == domain.members.end() ? nullptr : &*found;
}

const ObservedMember* find_member(const DomainSnapshot& domain, Owner owner) noexcept {
    const auto found = std::ranges::find_if(domain.members, [owner](const ObservedMember& member) {
        return Owner(member.slot, member.incarnation) == owner;
    });
    return found == domain.members.end() ? nullptr : &*found;
}

std::string label_of(const ObservedMember* member, std::uint8_t slot) {
    return member == nullptr ? fmt::format("slot {}", slot)
                             : fmt::format("{}({})", member->process.name, member->process.pid);
}

MemberReferences references_of(const DomainSnapshot& domain, const ObservedMember& member) noexcept {
    MemberReferences sum;
    for (const ObservedPool& pool : domain.pools) {
        for (const ObservedHolder& holder : pool.holders) {
            if (holder.owner == Owner(member.slot, member.incarnation)) {
                sum.held_count += holder.held_count;
                sum.queued_count += holder.queued_count;
            }
        }
    }
    return sum;
}

Json json_of(const DomainSnapshot& domain) {
    Json members = Json::array();
    for (const ObservedMember& member : domain.members) {
        const MemberReferences references = references_of(domain, member);
        members.push_back({
            {"slot", member.slot},
            {"incarnation", member.incarnation},
            {"life", name_of(member.life)},
            {"pid", member.process.pid},
            {"pid_namespace", member.process.pid_namespace},
            {"name", member.process.name},
            {"joined_ns", member.joined_ns},
            {"held_references", references.held_count},
            {"queued_references", references.queued_count},
        });
    }
    Json pools = Json::array();
    for (const ObservedPool& pool : domain.pools) {
        Json holders = Json::array();
        for (const ObservedHolder& holder : pool.holders) {
            const ObservedMember* member = find_member(domain, holder.owner);
            holders.push_back({
                {"slot", holder.slot},
                {"pid", member == nullptr ? Json() : Json(member->process.pid)},
                {"held_references", holder.held_count},
                {"queued_references", holder.queued_count},
            });
        }
        pools.push_back({
            {"name", pool.name},
            {"buffer_bytes", pool.options.buffer_bytes},
            {"buffer_count", pool.options.buffer_count},
            {"references_per_buffer", pool.options.references_per_buffer},
            {"first_buffer", pool.options.first_buffer},
            {"free_buffers", pool.free_count},
            {"held_references", pool.held_count},
            {"queued_references", pool.queued_count},
            {"holders", holders},
        });
    }
    Json ports = Json::array();
    for (const ObservedPort& port : domain.ports) {
        ports.push_back({
            {"name", port.name},
            {"number", port.options.port_id},
            {"capacity", port.options.capacity},
            {"when_full", name_of(port.options.when_full)},
            {"when_unconsumed", name_of(port.options.when_unconsumed)},
            {"time_stamps", port.options.time_stamps},
            {"depth", port.depth},
            {"producers", json_of(port.producers)},
            {"consumers", json_of(port.consumers)},
        });
    }
    return {
        {"domain", domain.name},
        {"user", domain.user},
        {"registry_id", fmt::format("{:016x}", domain.registry_id)},
        {"is_kept", domain.is_kept},
        {"group", domain.owner.group},
        {"mode", fmt::format("{:04o}", domain.owner.mode)},
        {"taken_monotonic_ns", domain.taken_ns},
        {"control_bytes", domain.control_bytes},
        {"payload_bytes", domain.payload_bytes},
        {"members", members},
        {"pools", pools},
        {"ports", ports},
        {"notes", domain.notes},
    };
}

void print_json(const std::vector<DomainSnapshot>& domains) {
    Json all = Json::array();
    for (const DomainSnapshot& domain : domains) {
        all.push_back(json_of(domain));
    }
    fmt::print("{}\n", all.dump(2));
}

int show_snapshots(const DomainListArguments& arguments,
                   const std::function<void(const std::vector<DomainSnapshot>&)>& show) {
    std::vector<DomainSnapshot> seen;
    int status = exit_fine;
    for (const DomainName& domain : find_domains(arguments)) {
        try {
            seen.push_back(DomainObserver(domain.name, arguments.observer_options(domain.user)).look());
        } catch (const std::system_error& error) {
            if (arguments.names.empty() && error.code() == errc::not_found) {
                continue; // it went away since it was listed
            }
            fmt::print(stderr, "weir: {}\n", describe_trouble(domain, error));
            status = exit_failed;
            continue;
        }
        for (const std::string& note : seen.back().notes) {
            fmt::print(stderr, "weir: {}: {}\n", domain.name, note);
            status = exit_failed;
        }
    }
    show(seen);
    return status;
}

} // namespace weir::tool
