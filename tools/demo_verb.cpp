// weir demo: its arguments.

#include "demo.hpp"
#include "demo_stages.hpp"
#include "text.hpp"
#include "verb.hpp"

#include <fmt/format.h>

#include <memory>
#include <string>

namespace weir::tool {

namespace {

constexpr const char* demo_notes = "Three producer programs read the files into buffers of 64 KiB and push them\n"
                                   "into a port; two workers take them, checksum them in place and push the same\n"
                                   "buffers on; a collector writes copies, compared with the originals by SHA-256.\n\n"
                                   "Exit status: 0 all is well, 1 a byte differs or something broke, 2 wrong usage\n\n"
                                   "Examples:\n"
                                   "  weir demo                                  the system's largest libraries\n"
                                   "  weir demo --kill                           the same, and each is killed\n"
                                   "  weir demo --keep copies video.mp4 map.osm  your files, and keep the copies";

struct Arguments {
    demo::DemoOptions options;
    std::string bytes_max;
};

} // namespace

Verb add_demo(CLI::App& weir) {
    const auto given = std::make_shared<Arguments>();
    demo::DemoOptions& options = given->options;
    CLI::App* app = weir.add_subcommand("demo", "Stream files through processes without copies");
    app->add_option("FILE", options.files, "Files; the system's largest libraries unless given")->type_name("");
    CLI::Option* kill = app->add_flag("--kill", options.kill, "Kill each in turn half-way, and start it again");
    app->add_option("--bytes-max", given->bytes_max, "Stream no more than this in all, as 64MB")->type_name("N");
    app->add_option("--keep", options.keep, "Keep the copies, in this folder, new or empty")->type_name("DIR");
    app->add_option("--seed", options.seed, "In which order --kill takes them, and when")->type_name("N")->needs(kill);
    app->footer(demo_notes);
    return {app, [given] {
                if (!given->bytes_max.empty()) {
                    given->options.bytes_max = parsed_size(given->bytes_max);
                    if (given->options.bytes_max.value_or(0) == 0) {
                        throw UsageError(fmt::format("--bytes-max {} is no size; write for example 500000, 64MB or 2G",
                                                     given->bytes_max));
                    }
                }
                return demo::run_demo(given->options);
            }};
}

Verb add_demo_stage(CLI::App& weir) {
    const auto options = std::make_shared<demo::StageOptions>();
    CLI::App* app = weir.add_subcommand(demo::stage_verb)->group("");
    app->add_option("ROLE", options->role)->required()->check(CLI::IsMember({"producer", "worker", "collector"}));
    app->add_option("NUMBER", options->number)->required();
    app->add_option("LIFE", options->life)->required();
    app->add_option("REPORT", options->report)->required();
    app->add_option("DOMAIN", options->domain)->required();
    return {app, [options] { return demo::run_stage(*options); }};
}

} // namespace weir::tool
