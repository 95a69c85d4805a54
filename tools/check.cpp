// weir check: each broken invariant of a domain, live or from copies of its files.

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
    bool idle = false;
    bool json = false;
};

constexpr const char* notes = "A domain at work is checked too: what is named is broken, whatever happens\n"
                              "meanwhile. With --idle, what a push or a pop leaves for a moment counts too.\n"
                              "For a post mortem, cp /dev/shm/weir+UID+DOMAIN+* DIR; *.payload is not needed.\n\n"
                              "Exit status: 0 sound, 1 broken or not to be read, 2 wrong usage\n\n"
                              "Examples:\n"
                              "  weir check camera\n"
                              "  weir check --from crash-copies camera";

std::string line_of(const DomainCensus& census, const DomainSnapshot& domain) {
    std::string text = fmt::format("{} free, {} held, {} queued", counted(census.free_count, "buffer"),
                                   counted(census.held_reference_count, "reference"),
                                   grouped(census.queued_reference_count -
                                           std::min(census.unsent_reference_count, census.queued_reference_count)));
    if (census.unsent_reference_count > 0) {
        text += fmt::format(", {} in the middle of a push", grouped(census.unsent_reference_count));
    }
    std::string dead;
    for (const ObservedMember& member : domain.members) {
        if (member.life == MemberLife::dead) {
            dead += (dead.empty() ? "" : ", ") + label_of(&member, member.slot);
        }
    }
    return dead.empty() ? text : text + fmt::format("; dead and not reaped yet: {} (weir reap {})", dead, domain.name);
}

/// What the numbers in the messages stand for.
void print_legend(const DomainSnapshot& domain) {
    std::string ports;
    for (const ObservedPort& port : domain.ports) {
        ports += fmt::format("{}{} {}", ports.empty() ? "" : ", ", port.options.port_id, port.name);
    }
    std::string pools;
    for (const ObservedPool& pool : domain.pools) {
        pools += fmt::format("{}{} to {} {}", pools.empty() ? "" : ", ", pool.options.first_buffer,
                             pool.options.first_buffer + pool.options.buffer_count - 1, pool.name);
    }
    fmt::print("  ports: {}\n  buffers: {}\n", ports.empty() ? "none" : ports, pools.empty() ? "none" : pools);
}

int run(const Arguments& given) {
    const std::vector<DomainName> chosen = find_domains(given.domains);
    int status = chosen.empty() ? exit_failed : exit_fine;
    Json report = Json::array();
    for (const DomainName& domain : chosen) {
        std::vector<std::string> broken;
        DomainCensus census;
        DomainSnapshot seen;
        try {
            DomainObserver observer(domain.name, given.domains.observer_options(domain.user));
            seen = observer.look(false);
            broken = observer.check(&census, given.idle ? CheckMode::quiet : CheckMode::live);
        } catch (const std::system_error& error) {
            if (given.domains.names.empty() && error.code() == errc::not_found) {
                continue; // it went away since it was listed
            }
            fmt::print(stderr, "weir: {}\n", describe_trouble(domain, error));
            status = exit_failed;
            continue;
        }
        status = broken.empty() ? status : exit_failed;
        if (given.json) {
            report.push_back({
                {"domain", domain.name},
                {"user", domain.user},
                {"is_sound", broken.empty()},
                {"broken", broken},
                {"free_buffers", census.free_count},
                {"held_references", census.held_reference_count},
                {"queued_references", census.queued_reference_count},
                {"unsent_references", census.unsent_reference_count},
            });
            continue;
        }
        fmt::print("{}: {} ({})\n", domain.name, broken.empty() ? "sound" : "broken", line_of(census, seen));
        for (const std::string& what : broken) {
            fmt::print("  {}\n", what);
        }
        if (!broken.empty()) {
            print_legend(seen);
        }
    }
    if (given.json) {
        fmt::print("{}\n", report.dump(2));
    }
    return status;
}

} // namespace

Verb add_check(CLI::App& weir) {
    const auto given = std::make_shared<Arguments>();
    CLI::App* app = weir.add_subcommand("check", "Name each broken invariant of domains");
    app->add_option("DOMAIN", given->domains.names, "These; all of the user's unless given")->type_name("");
    add_user_option(*app, given->domains.user);
    add_from_option(*app, given->domains.folder);
    app->add_flag("--idle", given->idle, "Nobody is in the middle of anything");
    app->add_flag("--json", given->json, "For programs");
    app->footer(notes);
    return {app, [given] { return run(*given); }};
}

} // namespace weir::tool
