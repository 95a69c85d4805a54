// The weir command.

#include "complete.hpp"
#include "verb.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace {

using namespace weir::tool;

constexpr const char* notes = "Examples:\n"
                              "  weir demo --kill         stream files through processes, and kill each of them\n"
                              "  tar c DIR | weir send x  and elsewhere: weir recv x | tar x";

bool has_verb(const CLI::App& app, const std::string& name) {
    return !app.get_subcommands([&name](const CLI::App* verb) { return verb->get_name() == name; }).empty();
}

int run(const Verb& verb) {
    try {
        const int status = verb.run();
        if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
            fmt::print(stderr, "weir: cannot write the results to the standard output\n");
            return exit_failed;
        }
        return status;
    } catch (const UsageError& error) {
        fmt::print(stderr, "weir: {}\n", error.what());
        return exit_usage;
    } catch (const std::exception& error) {
        fmt::print(stderr, "weir: {}\n", error.what());
        return exit_failed;
    }
}

} // namespace

int main(int argument_count, char** arguments) {
    CLI::App app("weir: buffers between processes, in shared memory, without locks or copies.", "weir");
    app.set_version_flag("--version", "weir " WEIR_VERSION);
    app.require_subcommand(1);
    app.footer(notes);
    const std::vector<Verb> verbs{
        add_ls(app),     add_stat(app), add_top(app),        add_graph(app), add_metrics(app),
        add_send(app),   add_recv(app), add_check(app),      add_reap(app),  add_rm(app),
        add_doctor(app), add_demo(app), add_demo_stage(app),
    };

    if (argument_count < 2) {
        fmt::print(stderr, "{}", app.help());
        return exit_usage;
    }
    const std::string first = arguments[1];
    if (first == complete_verb) {
        for (const std::string& candidate : candidates(app, {arguments + 2, arguments + argument_count})) {
            fmt::print("{}\n", candidate);
        }
        return exit_fine;
    }
    if (first != "-h" && first != "--help" && first != "--version" && !has_verb(app, first)) {
        fmt::print(stderr, "weir: there is no verb {}; weir --help lists what there is\n", first);
        return exit_usage;
    }
    try {
        app.parse(argument_count, arguments);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? exit_fine : exit_usage;
    }
    for (const Verb& verb : verbs) {
        if (verb.app->parsed()) {
            return run(verb);
        }
    }
    return exit_usage; // not reached: one verb is required
}
