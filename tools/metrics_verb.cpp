// weir metrics: its arguments, and which domains it reads.

#include "domains.hpp"
#include "metrics.hpp"
#include "output_file.hpp"
#include "verb.hpp"

#include <weir/error.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace weir::tool {

namespace {

constexpr const char* metrics_notes = "FILE is replaced at one instant, with mode 0644, as the textfile collector of\n"
                                      "Prometheus's node_exporter needs it. A domain that was named and is not there\n"
                                      "has weir_domain_up 0; the others are written all the same.\n\n"
                                      "Exit status: 0 all is well, 1 something could not be done, 2 wrong usage\n\n"
                                      "Examples:\n"
                                      "  weir metrics\n"
                                      "  weir metrics -o /var/lib/prometheus/node-exporter/weir.prom   once a minute";

struct MetricsArguments {
    DomainListArguments domains;
    std::string output;
};

/// Those that are meant, sorted, each once. That there is none is nothing to say every minute.
std::vector<DomainName> wanted(const DomainListArguments& given) {
    if (given.all_users && (!given.names.empty() || !given.user.empty())) {
        throw UsageError("--all-users is about all domains of all; leave DOMAIN and --user out");
    }
    std::vector<DomainName> domains;
    if (!given.names.empty()) {
        domains = find_domains(given);
        std::ranges::sort(domains, {}, &DomainName::name);
        domains.erase(std::unique(domains.begin(), domains.end()), domains.end());
        return domains;
    }
    domains = list_domains();
    std::erase_if(domains, [&given, user = user_of(given.user)](const DomainName& domain) {
        return !domain.has_registry || (!given.all_users && domain.user != user);
    });
    return domains;
}

/// Throws: as DomainObserver; not_found also where it ended meanwhile.
DomainSnapshot read_domain(const DomainName& domain) {
    DomainObserver::Options options;
    options.user = domain.user;
    DomainObserver observer(domain.name, options);
    DomainSnapshot seen = observer.look();
    if (!observer.is_current()) {
        throw_error(errc::not_found, "it ended just now");
    }
    return seen;
}

int run_metrics(const MetricsArguments& given) {
    int status = exit_fine;
    std::vector<DomainReading> readings;
    for (const DomainName& domain : wanted(given.domains)) {
        DomainReading reading{domain, {}};
        try {
            reading.seen = read_domain(domain);
            for (const std::string& note : reading.seen->notes) {
                fmt::print(stderr, "weir: {}: {}\n", domain.name, note);
                status = exit_failed;
            }
        } catch (const std::system_error& error) {
            if (given.domains.names.empty() && error.code() == errc::not_found) {
                continue; // it ended after it was listed
            }
            fmt::print(stderr, "weir: {}\n", describe_trouble(domain, error));
            status = exit_failed;
        }
        readings.push_back(std::move(reading));
    }
    write_output(given.output, metrics_text(readings), 0644);
    return status;
}

} // namespace

Verb add_metrics(CLI::App& weir) {
    const auto given = std::make_shared<MetricsArguments>();
    CLI::App* app = weir.add_subcommand("metrics", "Write counters as OpenMetrics text, for Prometheus");
    app->add_option("DOMAIN", given->domains.names, "Which ones; all of the user's unless given")->type_name("");
    add_user_option(*app, given->domains.user);
    app->add_flag("--all-users", given->domains.all_users, "The domains of all users, for root");
    app->add_option("-o", given->output, "Write to this file, not to the standard output")->type_name("FILE");
    app->footer(metrics_notes);
    return {app, [given] { return run_metrics(*given); }};
}

} // namespace weir::tool
