// The weir command.

#include "demo.hpp"
#include "demo_plan.hpp"
#include "demo_stages.hpp"
#include "text.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <string>

namespace {

constexpr int exit_fine = 0;
constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

constexpr const char* weir_notes = "Example:\n"
                                   "  weir demo --kill    stream files through processes, and kill each of them";

constexpr const char* demo_notes = "Three producer programs read the files into buffers of 64 KiB and push them\n"
                                   "into a port; two workers take them, checksum them in place and push the same\n"
                                   "buffers on; a collector writes copies, compared with the originals by SHA-256.\n\n"
                                   "Exit status: 0 all is well, 1 a byte differs or something broke, 2 wrong usage\n\n"
                                   "Examples:\n"
                                   "  weir demo                                  the system's largest libraries\n"
                                   "  weir demo --kill                           the same, and each is killed\n"
                                   "  weir demo --keep copies video.mp4 map.osm  your files, and keep the copies";

bool has_verb(const CLI::App& app, const std::string& name) {
    return !app.get_subcommands([&name](const CLI::App* verb) { return verb->get_name() == name; }).empty();
}

} // namespace

int main(int argument_count, char** arguments) {
    CLI::App app("weir: buffers between processes, in shared memory, without locks or copies.", "weir");
    app.set_version_flag("--version", "weir " WEIR_VERSION);
    app.require_subcommand(1);
    app.footer(weir_notes);

    weir::demo::DemoOptions options;
    CLI::App* demo = app.add_subcommand("demo", "Stream files through processes without copies");
    demo->add_option("FILE", options.files, "Files to stream; by default the largest of\nthe system's library folder")
        ->type_name("");
    CLI::Option* kill = demo->add_flag(
        "--kill", options.kill, "Kill each in turn half-way (SIGKILL), start it\nagain, and tell what it had claimed");
    std::string bytes_max;
    demo->add_option("--bytes-max", bytes_max, "Stream no more than this in all, as 64MB")->type_name("N");
    demo->add_option("--keep", options.keep, "Write the copies to this folder, new or empty,\nand keep them")
        ->type_name("DIR");
    demo->add_option("--seed", options.seed, "In which order --kill takes them, and when")->type_name("N")->needs(kill);
    demo->footer(demo_notes);

    weir::demo::StageOptions stage_options;
    CLI::App* stage = app.add_subcommand(weir::demo::stage_verb)->group(""); // hidden: the demo starts it
    stage->add_option("ROLE", stage_options.role)
        ->required()
        ->check(CLI::IsMember({"producer", "worker", "collector"}));
    stage->add_option("NUMBER", stage_options.number)->required();
    stage->add_option("LIFE", stage_options.life)->required();
    stage->add_option("REPORT", stage_options.report)->required();
    stage->add_option("DOMAIN", stage_options.domain)->required();

    if (argument_count < 2) {
        fmt::print(stderr, "{}", app.help());
        return exit_usage;
    }
    const std::string first = arguments[1];
    if (first != "-h" && first != "--help" && first != "--version" && !has_verb(app, first)) {
        fmt::print(stderr, "weir: there is no verb {}; weir --help lists what there is\n", first);
        return exit_usage;
    }
    try {
        app.parse(argument_count, arguments);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? exit_fine : exit_usage;
    }
    if (!bytes_max.empty()) {
        options.bytes_max = weir::tool::parsed_size(bytes_max);
        if (options.bytes_max.value_or(0) == 0) {
            fmt::print(stderr, "weir: --bytes-max {} is no size; write for example 500000, 64MB or 2G\n", bytes_max);
            return exit_usage;
        }
    }
    try {
        if (*stage) {
            return weir::demo::run_stage(stage_options);
        }
        const int status = weir::demo::run_demo(options);
        if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
            fmt::print(stderr, "weir: cannot write the results to the standard output\n");
            return exit_failed;
        }
        return status;
    } catch (const weir::demo::UsageError& error) {
        fmt::print(stderr, "weir: {}\n", error.what());
        return exit_usage;
    } catch (const std::exception& error) {
        fmt::print(stderr, "weir: {}\n", error.what());
        return exit_failed;
    }
}
