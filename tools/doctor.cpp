// weir doctor: its arguments, and what it prints.

#include "colour.hpp"
#include "doctor_domains.hpp"
#include "doctor_machine.hpp"
#include "domains.hpp"
#include "text.hpp"
#include "verb.hpp"

#include <weir/segment.hpp>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include <unistd.h>

namespace weir::tool {

namespace {

constexpr const char* doctor_notes = "It tries what weir needs of this machine, and looks at domains from outside: at\n"
                                     "what the dead left, and at locks that somebody keeps. It changes nothing.\n\n"
                                     "Each finding is fine, a note (something could be better), a warning (it will\n"
                                     "not always work) or a problem (it does not work), with what to do.\n\n"
                                     "Exit status: 0 no problem, 1 a problem, 2 wrong usage\n\n"
                                     "Examples:\n"
                                     "  weir doctor                 this machine, and all of your domains\n"
                                     "  weir doctor camera          this machine, and domain camera\n"
                                     "  weir doctor --json          the same for programs";

struct Arguments {
    std::vector<std::string> domains;
    bool json = false;
};

const char* name_of(Level level) {
    switch (level) {
    case Level::fine: return "fine";
    case Level::note: return "note";
    case Level::warning: return "warning";
    case Level::problem: break;
    }
    return "problem";
}

std::string painted(const Colour& colour, Level level) {
    const std::string name = fmt::format("{:<8}", name_of(level));
    switch (level) {
    case Level::fine: return colour.good(name);
    case Level::note: return colour.bold(name);
    case Level::warning: return colour.warn(name);
    case Level::problem: break;
    }
    return colour.bad(name);
}

std::string title_of(const Finding& finding) {
    if (finding.domain.empty()) {
        return finding.check == "domains" ? "domains" : "this machine";
    }
    return "domain " + finding.domain +
           (finding.user == geteuid() ? std::string() : " of user " + user_name(finding.user));
}

std::size_t count_of(const Findings& findings, Level level) {
    return static_cast<std::size_t>(std::ranges::count(findings, level, &Finding::level));
}

void print_for_people(const Findings& findings) {
    const Colour colour(stdout);
    std::string title;
    for (const Finding& finding : findings) {
        if (const std::string own = title_of(finding); own != title) {
            fmt::print("{}{}\n", title.empty() ? "" : "\n", colour.bold(own));
            title = own;
        }
        fmt::print("  {} {}\n", painted(colour, finding.level), printable(finding.what));
        if (!finding.to_do.empty()) {
            fmt::print("           {} {}\n", colour.dim("to do:"), printable(finding.to_do));
        }
    }
    fmt::print("\n{}, {}, {}\n", counted(count_of(findings, Level::problem), "problem"),
               counted(count_of(findings, Level::warning), "warning"),
               counted(count_of(findings, Level::note), "note"));
}

void print_for_machines(const Findings& findings) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Finding& finding : findings) {
        nlohmann::ordered_json one{{"level", name_of(finding.level)}, {"check", finding.check}, {"what", finding.what}};
        if (!finding.to_do.empty()) {
            one["to_do"] = finding.to_do;
        }
        if (!finding.domain.empty()) {
            one["domain"] = finding.domain;
            one["user"] = finding.user;
        }
        list.push_back(std::move(one));
    }
    const nlohmann::ordered_json report{
        {"findings", std::move(list)},
        {"problem_count", count_of(findings, Level::problem)},
        {"warning_count", count_of(findings, Level::warning)},
        {"note_count", count_of(findings, Level::note)},
    };
    // What processes call themselves may be no UTF-8.
    fmt::print("{}\n", report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

int run_doctor(const Arguments& given) {
    for (const std::string& name : given.domains) {
        try {
            check_name("domain", name);
        } catch (const std::system_error& error) {
            throw UsageError(error.what());
        }
    }
    Findings findings = look_at_machine();
    std::ranges::move(look_at_domains(given.domains), std::back_inserter(findings));
    given.json ? print_for_machines(findings) : print_for_people(findings);
    return count_of(findings, Level::problem) > 0 ? exit_failed : exit_fine;
}

} // namespace

Verb add_doctor(CLI::App& weir) {
    const auto given = std::make_shared<Arguments>();
    CLI::App* app = weir.add_subcommand("doctor", "Say what is wrong here, and what to do about it");
    app->add_option("DOMAIN", given->domains,
                    "Look at these domains alone; by default at all\nof yours, as root at everybody's")
        ->type_name("");
    app->add_flag("--json", given->json, "For programs");
    app->footer(doctor_notes);
    return {app, [given] { return run_doctor(*given); }};
}

} // namespace weir::tool
