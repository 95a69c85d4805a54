#include "demo.hpp"

#include "demo_output.hpp"
#include "demo_pipeline.hpp"
#include "demo_plan.hpp"
#include "demo_report.hpp"
#include "progress.hpp"
#include "text.hpp"

#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <random>

namespace weir::demo {

namespace {

struct Result {
    int ended_by_signal = 0;
    int status = 0;
};

Result run(const DemoOptions& options) {
    const Plan plan = make_plan(options.files, options.bytes_max, chunk_bytes);
    const Signals signals;
    const OutputFolder output(options.keep);
    output.require_room(plan.bytes);
    std::optional<std::uint32_t> kill_seed;
    if (options.kill) {
        kill_seed = options.seed ? *options.seed : std::random_device()();
    }
    Pipeline pipeline(plan, output.path(), signals, kill_seed);
    fmt::print("{}", describe_plan(plan, pipeline));
    std::fflush(stdout); // before fork(), so that no child prints it again

    const std::int64_t start_ns = monotonic_ns();
    {
        tool::Progress progress;
        pipeline.start();
        while (pipeline.run_on()) {
            if (progress.is_due()) {
                progress.show(describe_progress(plan, pipeline, start_ns));
            }
        }
    }
    if (pipeline.ended_by_signal() != 0) {
        return {.ended_by_signal = pipeline.ended_by_signal(), .status = 1};
    }
    if (!pipeline.failure().empty()) {
        fmt::print(stderr, "weir: {}\n", pipeline.failure());
        return {.ended_by_signal = 0, .status = 1};
    }
    const Report report(plan, pipeline);
    fmt::print("{}", report.tables());
    if (report.problems().empty()) {
        fmt::print("{}", report.verdict());
    }
    if (!output.is_temporary()) {
        fmt::print("the copies are in {}\n", tool::printable(output.path().native()));
    }
    std::fflush(stdout);
    for (const std::string& problem : report.problems()) {
        fmt::print(stderr, "weir: {}\n", problem);
    }
    return {.ended_by_signal = 0, .status = report.problems().empty() ? 0 : 1};
}

} // namespace

int run_demo(const DemoOptions& options) {
    const Result result = run(options);
    if (result.ended_by_signal != 0) {
        // Everything is cleaned up; who started us sees that the signal ended us.
        std::signal(result.ended_by_signal, SIG_DFL);
        std::raise(result.ended_by_signal);
    }
    return result.status;
}

} // namespace weir::demo
