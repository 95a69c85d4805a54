// weir stat: what was counted in domains, once.

#include "domains.hpp"
#include "snapshot.hpp"
#include "text.hpp"
#include "verb.hpp"

#include <fmt/format.h>

#include <memory>

namespace weir::tool {

namespace {

struct Arguments {
    DomainListArguments domains;
    bool json = false;
};

constexpr const char* notes = "IN and OUT count messages since the domain was made; FULL and EMPTY, how often a\n"
                              "producer found no room and a consumer nothing; WAITS, how often they slept.\n\n"
                              "Exit status: 0 fine, 1 a domain is not there or cannot be read, 2 wrong usage\n\n"
                              "Examples:\n"
                              "  weir stat camera\n"
                              "  weir stat --json camera | jq '.[].ports[].depth'";

std::string ports_of(const DomainSnapshot& domain) {
    Table table({"PORT", ">DEPTH", ">HIGH", ">CAPACITY", ">IN", ">OUT", ">BYTES OUT", ">FULL", ">EMPTY", ">WAITS IN",
                 ">OUT", ">DROPPED"});
    for (const ObservedPort& port : domain.ports) {
        const PortCounters& in = port.producers.counters;
        const PortCounters& out = port.consumers.counters;
        table.add({port.name, grouped(port.depth), grouped(in.high_water_mark), grouped(port.options.capacity),
                   grouped(in.messages), grouped(out.messages), sized(out.bytes), grouped(in.stalls),
                   grouped(out.stalls), grouped(in.waits), grouped(out.waits), grouped(in.dropped)});
    }
    return table.text();
}

std::string pools_of(const DomainSnapshot& domain) {
    Table table({"POOL", ">BUFFER", ">COUNT", ">FREE", ">REFERENCES HELD", ">QUEUED"});
    for (const ObservedPool& pool : domain.pools) {
        table.add({pool.name, sized(pool.options.buffer_bytes), grouped(pool.options.buffer_count),
                   grouped(pool.free_count), grouped(pool.held_count), grouped(pool.queued_count)});
    }
    return table.text();
}

void print(const DomainSnapshot& domain) {
    fmt::print("domain {}\n", domain.name);
    if (domain.ports.empty() && domain.pools.empty()) {
        fmt::print("  no ports and no pools\n");
        return;
    }
    if (!domain.ports.empty()) {
        fmt::print("{}", ports_of(domain));
    }
    if (!domain.pools.empty()) {
        fmt::print("{}{}", domain.ports.empty() ? "" : "\n", pools_of(domain));
    }
}

} // namespace

Verb add_stat(CLI::App& weir) {
    const auto given = std::make_shared<Arguments>();
    CLI::App* app = weir.add_subcommand("stat", "Print what was counted in domains, once");
    app->add_option("DOMAIN", given->domains.names, "These; all of the user's unless given")->type_name("");
    add_user_option(*app, given->domains.user);
    add_from_option(*app, given->domains.folder);
    app->add_flag("--json", given->json, "For programs: everything, as a list of domains");
    app->footer(notes);
    return {app, [given] {
                return show_snapshots(given->domains, [&given](const std::vector<DomainSnapshot>& seen) {
                    if (given->json) {
                        print_json(seen);
                        return;
                    }
                    for (const DomainSnapshot& domain : seen) {
                        fmt::print("{}", &domain == &seen.front() ? "" : "\n");
                        print(domain);
                    }
                });
            }};
}

} // namespace weir::tool
