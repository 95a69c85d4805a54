// weir rm: takes a domain's names away, and what is queued in it with them.

#include "domains.hpp"
#include "text.hpp"
#include "verb.hpp"

#include <weir/domain.hpp>

#include <fmt/format.h>

#include <filesystem>
#include <memory>

namespace weir::tool {

namespace {

struct Arguments {
    DomainListArguments domains;
    bool force = false;
};

constexpr const char* notes = "A domain whose members left is gone already; this is for what dead ones left.\n"
                              "What is queued is lost. By --force also a domain in use: its members go on with\n"
                              "what they have mapped, but find nothing new, and cannot reap.\n"
                              "\n"
                              "Exit status: 0 removed, 1 not there, or in use, 2 wrong usage\n"
                              "\n"
                              "Example:\n"
                              "  weir rm camera";

int run(const Arguments& given) {
    int status = exit_fine;
    for (const DomainName& domain : find_domains(given.domains)) {
        Domain::RemoveOptions options;
        options.user = domain.user;
        options.force = given.force;
        options.lock_file = true;
        try {
            const bool had_lock_file =
                std::filesystem::exists(segment_path(DomainNames(domain.user, domain.name).lock()));
            if (Domain::remove(domain.name, options)) {
                fmt::print("{}: removed\n", domain.name);
            } else if (had_lock_file) {
                fmt::print("{}: only its lock file was left; removed\n", domain.name);
            } else {
                fmt::print(stderr, "weir: there is no domain {} of user {}: {}\n", domain.name, user_name(domain.user),
                           describe_domains(domain.user));
                status = exit_failed;
            }
        } catch (const std::system_error& error) {
            fmt::print(stderr, "weir: {}{}\n", describe_trouble(domain, error),
                       error.code() == errc::busy ? fmt::format("; weir ls {} shows who", domain.name) : "");
            status = exit_failed;
        }
    }
    return status;
}

} // namespace

Verb add_rm(CLI::App& weir) {
    const auto given = std::make_shared<Arguments>();
    CLI::App* app = weir.add_subcommand("rm", "Remove domains that nobody is in");
    app->add_option("DOMAIN", given->domains.names, "These")->type_name("")->required();
    add_user_option(*app, given->domains.user);
    app->add_flag("-f,--force", given->force, "Also while processes are in them");
    app->footer(notes);
    return {app, [given] { return run(*given); }};
}

} // namespace weir::tool
