// weir reap: gives back what dead members held.

#include "domains.hpp"
#include "text.hpp"
#include "verb.hpp"

#include <weir/domain.hpp>

#include <fmt/format.h>

#include <memory>

namespace weir::tool {

namespace {

constexpr const char* notes = "Members do this by themselves, and so does whoever joins. Messages that the\n"
                              "dead had pushed stay in their ports. A process that is only stopped is not dead.\n"
                              "\n"
                              "Exit status: 0 fine, also where nobody was dead; 1 somebody could not be reaped,\n"
                              "or a domain is not there; 2 wrong usage\n"
                              "\n"
                              "Example:\n"
                              "  weir reap camera";

int run(const DomainListArguments& given) {
    int status = exit_fine;
    for (const DomainName& domain : find_domains(given)) {
        Domain::ReapOptions options;
        options.user = domain.user;
        try {
            const ReapReport report = Domain::reap(domain.name, options);
            if (report.dead_count == 0) {
                fmt::print("{}: nobody is dead\n", domain.name);
            } else {
                fmt::print("{}: reaped {} of {} dead: {} freed, {} kept, {} removed\n", domain.name, report.ended_count,
                           report.dead_count, counted(report.freed_reference_count, "reference"),
                           counted(report.kept_message_count, "message"),
                           counted(report.removed_segment_count, "half-made segment"));
            }
            if (report.error) {
                fmt::print(stderr, "weir: {}: {}: {}\n", domain.name, report.error.message(), report.note);
                status = exit_failed;
            }
        } catch (const std::system_error& error) {
            if (given.names.empty() && error.code() == errc::not_found) {
                continue; // it went away since it was listed
            }
            fmt::print(stderr, "weir: {}\n", describe_trouble(domain, error));
            status = exit_failed;
        }
    }
    return status;
}

} // namespace

Verb add_reap(CLI::App& weir) {
    const auto given = std::make_shared<DomainListArguments>();
    CLI::App* app = weir.add_subcommand("reap", "Give back what dead members of domains held");
    app->add_option("DOMAIN", given->names, "These; all of the user's unless given")->type_name("");
    add_user_option(*app, given->user);
    app->footer(notes);
    return {app, [given] { return run(*given); }};
}

} // namespace weir::tool
