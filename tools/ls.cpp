// weir ls: which domains there are; of named ones, who is in them, and who holds what.

#include "domains.hpp"
#include "snapshot.hpp"
#include "text.hpp"
#include "verb.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

namespace weir::tool {

namespace {

struct Arguments {
    DomainListArguments domains;
    bool json = false;
};

constexpr const char* notes = "It looks read-only, and is no member meanwhile.\n\n"
                              "Exit status: 0 fine, 1 a domain is not there or cannot be read, 2 wrong usage\n\n"
                              "Examples:\n"
                              "  weir ls                  the domains\n"
                              "  weir ls camera           processes, pools and ports of one\n"
                              "  weir ls --json | jq '.[].members[].pid'";

std::string member_counts(const DomainSnapshot& domain) {
    std::size_t dead_count = 0;
    for (const ObservedMember& member : domain.members) {
        dead_count += member.life == MemberLife::dead ? 1 : 0;
    }
    const std::size_t alive_count = domain.members.size() - dead_count;
    return dead_count == 0 ? fmt::format("{}", alive_count) : fmt::format("{} + {} dead", alive_count, dead_count);
}

/// One line for each domain.
std::string summary_of(const std::vector<DomainSnapshot>& domains, bool with_user) {
    std::vector<std::string> heads{"DOMAIN", ">MEMBERS",  ">POOLS", ">BUFFERS", ">FREE",
                                   ">PORTS", ">MESSAGES", ">SIZE",  ""};
    if (with_user) {
        heads.insert(heads.begin() + 1, "USER");
    }
    Table table(heads);
    for (const DomainSnapshot& domain : domains) {
        std::uint64_t buffer_count = 0;
        std::uint64_t free_count = 0;
        std::uint64_t message_count = 0;
        for (const ObservedPool& pool : domain.pools) {
            buffer_count += pool.options.buffer_count;
            free_count += pool.free_count;
        }
        for (const ObservedPort& port : domain.ports) {
            message_count += port.depth;
        }
        const bool is_left_over = std::ranges::none_of(
            domain.members, [](const ObservedMember& member) { return member.life != MemberLife::dead; });
        std::vector<std::string> row{
            domain.name,
            member_counts(domain),
            grouped(domain.pools.size()),
            grouped(buffer_count),
            grouped(free_count),
            grouped(domain.ports.size()),
            grouped(message_count),
            sized(domain.control_bytes + domain.payload_bytes),
            is_left_over     ? "nobody is in it"
            : domain.is_kept ? "kept"
                             : "",
        };
        if (with_user) {
            row.insert(row.begin() + 1, user_name(domain.user));
        }
        table.add(std::move(row));
    }
    return table.text();
}

std::string members_of(const DomainSnapshot& domain) {
    Table table({">PID", ">SLOT", "NAME", "LIFE", ">HOLDS", ">QUEUED", "PRODUCES", "CONSUMES"});
    for (const ObservedMember& member : domain.members) {
        const MemberReferences references = references_of(domain, member);
        const auto ports_of = [&domain, &member](ObservedEnd ObservedPort::*end) {
            std::string names;
            for (const ObservedPort& port : domain.ports) {
                for (const PortHandles& handles : (port.*end).handles) {
                    if (handles.slot == member.slot && handles.incarnation == member.incarnation) {
                        names += (names.empty() ? "" : " ") + port.name;
                    }
                }
            }
            return names.empty() ? std::string("-") : names;
        };
        table.add({fmt::format("{}", member.process.pid), fmt::format("{}", member.slot), member.process.name,
                   std::string(name_of(member.life)), grouped(references.held_count), grouped(references.queued_count),
                   ports_of(&ObservedPort::producers), ports_of(&ObservedPort::consumers)});
    }
    return table.text();
}

std::string pools_of(const DomainSnapshot& domain) {
    Table table({"POOL", ">BUFFER", ">COUNT", ">FREE", "HELD BY", "PUSHED BY, IN PORTS"});
    for (const ObservedPool& pool : domain.pools) {
        const auto holders_of = [&domain, &pool](std::uint32_t ObservedHolder::*count) {
            std::string text;
            for (const ObservedHolder& holder : pool.holders) {
                if (holder.*count > 0) {
                    text +=
                        fmt::format("{}{} {}", text.empty() ? "" : ", ",
                                    label_of(find_member(domain, holder.owner), holder.slot), grouped(holder.*count));
                }
            }
            return text.empty() ? std::string("-") : text;
        };
        table.add({pool.name, sized(pool.options.buffer_bytes), grouped(pool.options.buffer_count),
                   grouped(pool.free_count), holders_of(&ObservedHolder::held_count),
                   holders_of(&ObservedHolder::queued_count)});
    }
    return table.text();
}

std::string ports_of(const DomainSnapshot& domain) {
    Table table({"PORT", ">DEPTH", ">CAPACITY", "WHEN FULL", "PRODUCERS", "CONSUMERS"});
    for (const ObservedPort& port : domain.ports) {
        const auto handles_of = [&domain](const ObservedEnd& end) {
            std::string text;
            for (const PortHandles& handles : end.handles) {
                const ObservedMember* member = find_member(domain, handles.slot, handles.incarnation);
                if (member != nullptr) {
                    text += (text.empty() ? "" : ", ") + label_of(member, handles.slot);
                }
            }
            return text.empty() ? std::string(state_of(end)) : text;
        };
        table.add({port.name, grouped(port.depth), grouped(port.options.capacity),
                   std::string(name_of(port.options.when_full)), handles_of(port.producers),
                   handles_of(port.consumers)});
    }
    return table.text();
}

void print_details(const DomainSnapshot& domain) {
    fmt::print("domain {} of {}{}: {} of shared memory\n", domain.name, user_name(domain.user),
               domain.is_kept ? ", kept" : "", sized(domain.control_bytes + domain.payload_bytes));
    fmt::print("{}", domain.members.empty() ? "  nobody is in it\n" : members_of(domain));
    if (!domain.pools.empty()) {
        fmt::print("\n{}", pools_of(domain));
    }
    if (!domain.ports.empty()) {
        fmt::print("\n{}", ports_of(domain));
    }
}

void print(const Arguments& given, const std::vector<DomainSnapshot>& seen) {
    if (given.json) {
        print_json(seen);
    } else if (given.domains.names.empty()) {
        fmt::print("{}", seen.empty() ? "" : summary_of(seen, given.domains.all_users));
    } else {
        for (const DomainSnapshot& domain : seen) {
            fmt::print("{}", &domain == &seen.front() ? "" : "\n");
            print_details(domain);
        }
    }
}

} // namespace

Verb add_ls(CLI::App& weir) {
    const auto given = std::make_shared<Arguments>();
    CLI::App* app = weir.add_subcommand("ls", "List domains, or who is in one and holds what");
    app->add_option("DOMAIN", given->domains.names, "Show processes, pools and ports of these")->type_name("");
    add_user_option(*app, given->domains.user);
    add_from_option(*app, given->domains.folder);
    app->add_flag("--all-users", given->domains.all_users, "Domains of all users");
    app->add_flag("--json", given->json, "For programs: everything, as a list of domains");
    app->footer(notes);
    return {app, [given] {
                return show_snapshots(given->domains,
                                      [&given](const std::vector<DomainSnapshot>& seen) { print(*given, seen); });
            }};
}

} // namespace weir::tool
