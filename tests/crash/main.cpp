// The kill harness's program: plans the runs of each case, does them on all processors, and reports.
#include "harness.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

namespace {

using crash::Case;
using crash::Child;
using crash::JobResult;
using crash::PairCase;
using crash::Point;
using crash::Stop;
using crash::Trace;

constexpr std::uint64_t count_factor_max = 20; // a survivor's instructions beside a frozen process, to those alone
constexpr std::uint32_t every_step_below = 2000;
constexpr unsigned frozen_variation = 256; // nobody dies, see World::reset
constexpr unsigned way_count = 16;         // the survivors' ways of going about it, see World::judge_all

struct Options {
    bool full = false;
    bool stop_at_first = false;
    bool verbose = false;
    std::uint64_t seed = 20261123;
    std::uint32_t kill_steps = 40;   // random ones, beside each class
    std::uint32_t frozen_steps = 30; // for each script
    std::uint32_t kill_class_steps = 2;
    std::uint32_t frozen_class_steps = 2;
    std::uint32_t pair_runs = 64;
    std::uint32_t interleaved_runs = 60;
    std::uint32_t counted_points = 3; // for each case
    std::uint32_t cell_steps = 6;     // random ones where others' looks at cells are counted, beside each class
    unsigned jobs = 0;
    std::vector<std::string> cases;
    std::string json;
    std::string at; // one run alone: kill:STEP[:VARIATION], asleep:STEP[:VARIATION] or frozen:SCRIPT:STEP
};

enum class Kind { kill, frozen, counted, cells, duel, pair, interleaved };

struct Job {
    Kind kind;
    std::size_t which; // of the cases, or of the pairs
    Point point;
    unsigned variation; // kill: the survivors' way; frozen: the script; duel: which; pairs: the first's operation
    std::size_t second; // pairs: the second's operation
    std::uint32_t second_step; // pair: where it is killed; interleaved: the seed
};

struct Tally {
    Trace trace;
    std::vector<std::string> findings;
    std::uint64_t kills = 0;
    std::uint64_t outcomes[3] = {}; // not happened, in part, done
    std::uint64_t frozen = 0;
    std::uint64_t counted = 0;
    std::uint64_t factor_max_percent = 0;
    std::uint64_t cell_access_max = 0;
};

std::string where(const Trace& trace, Point point) {
    std::string text = std::string(point.asleep ? "asleep in" : "after") + " step " + std::to_string(point.step) +
                       " of " + std::to_string(trace.steps());
    return text;
}

// ---- single runs ----------------------------------------------------------------------------------------

// What a replay must show as it was recorded.
crash::Watched compared(const Case& one) {
    return one.others_run ? crash::Watched{} : one.watched;
}

JobResult run_kill(const Case& one, const Trace& trace, Point point, unsigned variation) {
    one.reset(variation);
    Child child = Child::start(one.task, *one.mailbox);
    std::string text = crash::reach(child, trace, point, compared(one), one.hooks);
    if (!text.empty()) {
        return {text, -2};
    }
    text += one.invariant();
    const int stage = one.stage();
    child.kill();
    text += one.judge_death(variation);
    return {text, stage};
}

std::string finish_and_judge(const Case& one, Child& child) {
    std::string text;
    if (child.finish(true) == Stop::blocked) {
        text += "the victim, going on, sleeps though it has something to do\n";
        child.kill();
    }
    if (one.mailbox->failed != 0) {
        text += std::string("the victim, going on: ") + one.mailbox->findings;
    }
    text += one.invariant();
    text += one.judge_life();
    return text;
}

JobResult run_frozen(const Case& one, const Trace& trace, Point point, std::size_t script) {
    one.reset(frozen_variation);
    Child child = Child::start(one.task, *one.mailbox);
    std::string text = crash::reach(child, trace, point, compared(one), one.hooks);
    if (!text.empty()) {
        return {text, -2};
    }
    text += one.invariant();
    text += one.scripts[script].act();
    text += one.invariant();
    text += finish_and_judge(one, child);
    return {text, 0};
}

JobResult run_counted(const crash::Cases& cases, const Case& one, const Trace& trace, Point point,
                      const std::vector<std::uint64_t>& alone) {
    one.reset(frozen_variation);
    Child child = Child::start(one.task, *one.mailbox);
    std::string text = crash::reach(child, trace, point, compared(one), one.hooks);
    if (!text.empty()) {
        return {text, -2};
    }
    std::uint64_t percent_max = 0;
    for (const std::size_t i : one.counted) {
        const std::uint64_t limit = alone[i] * count_factor_max;
        const std::uint64_t steps = crash::count_steps(cases.counted[i].second(), *cases.counted_mailbox, limit);
        percent_max = std::max(percent_max, steps * 100 / alone[i]);
        if (cases.counted_mailbox->failed != 0) {
            text += "a survivor's " + cases.counted[i].first + ": " + cases.counted_mailbox->findings;
        }
    }
    text += finish_and_judge(one, child);
    return {text, static_cast<std::int64_t>(percent_max)};
}

// What the library promises an operation that runs alone: no more than 2n + 64 steps in a ring of n cells. Each of these
// steps looks at a cell at least once, so the looks are counted, by the processor.
constexpr std::uint64_t cell_access_limit(std::uint64_t cell_count) {
    return 2 * cell_count + 64;
}

JobResult run_cells(const crash::Cases& cases, const Case& one, const Trace& trace, Point point) {
    one.reset(frozen_variation);
    Child child = Child::start(one.task, *one.mailbox);
    std::string text = crash::reach(child, trace, point, compared(one), one.hooks);
    if (!text.empty()) {
        return {text, -2};
    }
    std::uint64_t access_max = 0;
    for (const std::size_t i : one.counted) {
        access_max = std::max(access_max, crash::count_accesses(cases.counted[i].second(), *cases.counted_mailbox,
                                                                one.cells, cell_access_limit(one.cells.size())));
        if (cases.counted_mailbox->failed != 0) {
            text += "a survivor's " + cases.counted[i].first + ": " + cases.counted_mailbox->findings;
        }
    }
    text += finish_and_judge(one, child);
    return {text, static_cast<std::int64_t>(access_max)};
}

// The counted operations' instructions where nobody is frozen. Empty where one fails, which `text` tells.
std::vector<std::uint64_t> count_alone(const crash::Cases& cases, std::string& text) {
    std::vector<std::uint64_t> alone;
    cases.reset_for_counting();
    for (const auto& [name, task] : cases.counted) {
        alone.push_back(crash::count_steps(task(), *cases.counted_mailbox, crash::steps_limit_default));
        if (cases.counted_mailbox->failed != 0) {
            text += name + " alone: " + cases.counted_mailbox->findings;
        }
    }
    return text.empty() ? alone : std::vector<std::uint64_t>{};
}

bool step_so_far(Child& child, std::uint32_t steps) {
    for (std::uint32_t step = 0; step < steps; ++step) {
        if (child.step() != Stop::stepped) {
            return false;
        }
    }
    return true;
}

JobResult run_duel(const Case& one, std::size_t duel) {
    one.reset(frozen_variation);
    Child child = Child::start(one.task, *one.mailbox);
    if (child.stop() != Stop::stepped) {
        return {std::string("the child did not start: ") + crash::name_of(child.stop()), -2};
    }
    std::string text = one.duels[duel].fight(child);
    text += finish_and_judge(one, child);
    return {text, 0};
}

std::string finish_first(const PairCase& pair, Child& child, const char* who, const crash::Mailbox& mailbox) {
    std::string text;
    if (child.finish(true) == Stop::blocked) {
        text += std::string(who) + ", going on, sleeps\n";
        child.kill();
    }
    if (mailbox.failed != 0) {
        text += std::string(who) + ", going on: " + mailbox.findings;
    }
    return text + pair.invariant();
}

JobResult run_pair(const PairCase& pair, const Job& job) {
    pair.reset();
    Child frozen = Child::start(pair.first_task(job.variation), *pair.first_mailbox);
    step_so_far(frozen, job.point.step); // where it comes to its end before, it is frozen there
    Child killed = Child::start(pair.second_task(job.second), *pair.second_mailbox);
    step_so_far(killed, job.second_step);
    std::string text = pair.invariant();
    killed.kill();
    text += pair.act_beside_death(job.second);
    text += pair.invariant();
    text += finish_first(pair, frozen, "the frozen one", *pair.first_mailbox);
    text += pair.judge();
    return {text, 0};
}

JobResult run_interleaved(const PairCase& pair, const Job& job) {
    pair.reset();
    Child first = Child::start(pair.first_task(job.variation), *pair.first_mailbox);
    Child second = Child::start(pair.second_task(job.second), *pair.second_mailbox);
    crash::Random random(job.second_step);
    std::string text;
    while (text.empty() && (first.stop() == Stop::stepped || second.stop() == Stop::stepped)) {
        Child& next =
            second.stop() != Stop::stepped || (first.stop() == Stop::stepped && random.below(2) == 0) ? first : second;
        // turns of one instruction, of some, and of many
        const std::uint32_t turn = 1 + static_cast<std::uint32_t>(random.below(std::uint64_t{1} << random.below(8)));
        step_so_far(next, turn);
        text += pair.invariant();
    }
    text += finish_first(pair, first, "the first", *pair.first_mailbox);
    text += finish_first(pair, second, "the second", *pair.second_mailbox);
    text += pair.judge();
    return {text, 0};
}

// ---- planning -------------------------------------------------------------------------------------------

std::vector<Point> points_of(const Trace& trace, const Options& options, std::uint32_t class_steps,
                             std::uint32_t random_steps, std::uint64_t salt) {
    return crash::plan(trace, {.every_step_below = options.full ? every_step_below : 0,
                               .class_steps = class_steps,
                               .random_steps = random_steps,
                               .seed = options.seed * 1000003 + salt});
}

// The same for a case whether it runs alone or among others.
std::uint64_t salt_of(const std::string& name) {
    std::uint64_t salt = 0;
    for (const char c : name) {
        salt = salt * 131 + static_cast<unsigned char>(c);
    }
    return salt % 1'000'000;
}

bool record_case(const Case& one, Tally& tally) {
    if (!one.broken.empty()) {
        tally.findings.push_back("its starting state cannot be made: " + one.broken);
        return false;
    }
    one.reset(frozen_variation);
    tally.trace = crash::record(one.task, *one.mailbox, one.watched, one.hooks);
    if (!tally.trace.error.empty()) {
        tally.findings.push_back(tally.trace.error);
        return false;
    }
    const std::string text = one.invariant() + one.judge_life();
    if (!text.empty()) {
        tally.findings.push_back("undisturbed: " + text);
        return false;
    }
    return true;
}

void plan_case(const Case& one, const Tally& tally, std::size_t which, const Options& options, std::vector<Job>& jobs) {
    const Trace& trace = tally.trace;
    const std::uint64_t salt = salt_of(one.name);
    auto variation = static_cast<unsigned>(salt);
    for (const Point point : points_of(trace, options, options.kill_class_steps, options.kill_steps, salt)) {
        jobs.push_back({Kind::kill, which, point, variation++ % way_count, 0, 0});
    }
    for (std::size_t script = 0; script < one.scripts.size(); ++script) {
        for (const Point point :
             points_of(trace, options, options.frozen_class_steps, options.frozen_steps, salt * 100 + script)) {
            // who sleeps is woken by what the others do, or it sleeps on by right
            if (!point.asleep || one.hooks.on_blocked) {
                jobs.push_back({Kind::frozen, which, point, static_cast<unsigned>(script), 0, 0});
            }
        }
    }
    if (!one.counted.empty()) {
        // the first step of each class, or of some classes
        const std::size_t stride = std::max<std::size_t>(1, trace.classes.size() / options.counted_points);
        for (std::size_t i = 0; i < trace.classes.size(); i += stride) {
            jobs.push_back({Kind::counted, which, {trace.classes[i].first, false}, 0, 0, 0});
        }
    }
    if (!one.counted.empty() && !one.cells.empty()) {
        for (const Point point :
             points_of(trace, options, std::min(options.frozen_class_steps, 1U), options.cell_steps, salt * 100 + 99)) {
            if (!point.asleep) {
                jobs.push_back({Kind::cells, which, point, 0, 0, 0});
            }
        }
    }
    for (std::size_t duel = 0; duel < one.duels.size(); ++duel) {
        jobs.push_back({Kind::duel, which, {0, false}, static_cast<unsigned>(duel), 0, 0});
    }
}

void plan_pairs(const PairCase& pair, std::size_t which, const Options& options, std::vector<Job>& jobs) {
    // The operations' lengths are not recorded for this starting state; a step behind the end is the end.
    std::vector<std::uint32_t> steps;
    for (std::size_t i = 0; i < pair.operations.size(); ++i) {
        pair.reset();
        steps.push_back(static_cast<std::uint32_t>(
            crash::count_steps(pair.second_task(i), *pair.second_mailbox, crash::steps_limit_default)));
    }
    crash::Random random(options.seed);
    // A grid: each operation frozen with each other killed, equally often; where, is random.
    for (std::uint32_t run = 0; run < options.pair_runs; ++run) {
        const std::size_t frozen = run / steps.size() % steps.size();
        const std::size_t killed = run % steps.size();
        const auto frozen_step = static_cast<std::uint32_t>(random.below(steps[frozen] + 1));
        const auto killed_step = static_cast<std::uint32_t>(random.below(steps[killed] + 1));
        jobs.push_back({Kind::pair, which, {frozen_step, false}, static_cast<unsigned>(frozen), killed, killed_step});
    }
    for (std::uint32_t run = 0; run < options.interleaved_runs; ++run) {
        const auto first = static_cast<unsigned>(random.below(steps.size()));
        const std::size_t second = random.below(steps.size());
        const auto seed = static_cast<std::uint32_t>(random.next());
        jobs.push_back({Kind::interleaved, which, {0, false}, first, second, seed});
    }
}

// ---- reporting ------------------------------------------------------------------------------------------

void check_stages(const Case& one, Tally& tally, const std::vector<std::pair<Point, std::int64_t>>& stages) {
    // In the order of steps: it never goes back, begins with "not happened", and ends with "done".
    std::int64_t last = 0;
    for (const auto& [point, stage] : stages) {
        const int done = std::max(one.stages - 1, 0);
        if (one.stages != 0 && (stage < last || stage > done)) {
            tally.findings.push_back("killed " + where(tally.trace, point) +
                                     (stage < 0 ? ": the operation neither happened nor did not"
                                                : ": what others see went back, to stage " + std::to_string(stage)));
        }
        if (one.stages != 0 &&
            ((point.step == 0 && stage != 0) || (point.step == tally.trace.steps() && stage != done))) {
            tally.findings.push_back("killed " + where(tally.trace, point) + ": the operation is at stage " +
                                     std::to_string(stage));
        }
        last = std::max(last, stage);
        if (one.stages != 0) {
            tally.outcomes[stage <= 0 && done > 0 ? 0 : stage < done ? 1 : 2]++;
        }
    }
}

std::string json_text(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 32) {
            out += ' ';
        } else {
            out += c;
        }
    }
    return out + "\"";
}

void print_changes(const Case& one, const Trace& trace) {
    std::vector<std::uintptr_t> addresses;
    for (const crash::Change& change : trace.changes) {
        addresses.push_back(change.pc);
    }
    const std::vector<std::string> names = crash::symbolise(addresses);
    std::printf("%s: what others see changes after step\n", one.name.c_str());
    for (std::size_t i = 0; i < names.size(); ++i) {
        const crash::Change& change = trace.changes[i];
        std::printf("  %6u  %s", change.step, names[i].c_str());
        if (change.system_call >= 0) {
            std::printf(", system call %ld%s", change.system_call, change.bytes ? "" : ", no bytes");
        }
        std::printf("\n");
    }
}

int run(const Options& options) {
    std::string why;
    if (!crash::supported(why)) {
        std::printf("skipped: %s\n", why.c_str());
        return 77;
    }
    const unsigned workers = options.jobs != 0 ? options.jobs : crash::processor_count();
    crash::bind_to_processor(0);
    crash::Cases cases = crash::make_cases(options.cases);
    std::vector<Tally> tallies(cases.single.size());
    std::vector<Tally> pair_tallies(cases.pairs.size());
    std::vector<Job> jobs;
    std::string not_counted;
    const std::vector<std::uint64_t> alone = count_alone(cases, not_counted);
    if (alone.empty()) {
        std::printf("%s\n", not_counted.c_str());
        return 1;
    }
    for (std::size_t i = 0; i < cases.single.size(); ++i) {
        if (record_case(cases.single[i], tallies[i])) {
            plan_case(cases.single[i], tallies[i], i, options, jobs);
        }
        if (options.verbose) {
            print_changes(cases.single[i], tallies[i].trace);
        }
    }
    for (std::size_t i = 0; i < cases.pairs.size(); ++i) {
        if (cases.pairs[i].broken.empty()) {
            plan_pairs(cases.pairs[i], i, options, jobs);
        } else {
            pair_tallies[i].findings.push_back("its starting state cannot be made: " + cases.pairs[i].broken);
        }
    }
    if (!options.at.empty()) {
        char kind[16] = {};
        unsigned first = 0;
        unsigned second = 0;
        std::sscanf(options.at.c_str(), "%15[a-z]:%u:%u", kind, &first, &second);
        const bool frozen = std::strcmp(kind, "frozen") == 0;
        jobs = {frozen ? Job{Kind::frozen, 0, {second, false}, first, 0, 0}
                       : Job{Kind::kill, 0, {first, std::strcmp(kind, "asleep") == 0}, second, 0, 0}};
    }
    if (options.stop_at_first) {
        // whatever finds something is to find it soon: all kinds of runs mixed
        crash::Random random(options.seed);
        for (std::size_t i = jobs.size(); i > 1; --i) {
            std::swap(jobs[i - 1], jobs[random.below(i)]);
        }
    }

    const auto job_run = [&](std::size_t index) -> JobResult {
        const Job& job = jobs[index];
        switch (job.kind) {
        case Kind::kill: return run_kill(cases.single[job.which], tallies[job.which].trace, job.point, job.variation);
        case Kind::frozen:
            return run_frozen(cases.single[job.which], tallies[job.which].trace, job.point, job.variation);
        case Kind::counted:
            return run_counted(cases, cases.single[job.which], tallies[job.which].trace, job.point, alone);
        case Kind::cells: return run_cells(cases, cases.single[job.which], tallies[job.which].trace, job.point);
        case Kind::duel: return run_duel(cases.single[job.which], job.variation);
        case Kind::pair: return run_pair(cases.pairs[job.which], job);
        case Kind::interleaved: return run_interleaved(cases.pairs[job.which], job);
        }
        return {};
    };
    cases.end_setup();
    const std::vector<JobResult> results =
        crash::run_jobs(jobs.size(), workers, cases.begin_worker, job_run, options.stop_at_first);

    std::vector<std::vector<std::pair<Point, std::int64_t>>> stages(cases.single.size());
    for (std::size_t index = 0; index < jobs.size(); ++index) {
        const Job& job = jobs[index];
        const JobResult& result = results[index];
        if (result.value == -1 && result.text.empty() && options.stop_at_first) {
            continue; // not run
        }
        const bool is_pair = job.kind == Kind::pair || job.kind == Kind::interleaved;
        Tally& tally = is_pair ? pair_tallies[job.which] : tallies[job.which];
        std::string what;
        switch (job.kind) {
        case Kind::kill:
            ++tally.kills;
            if (result.value != -2) {
                stages[job.which].emplace_back(job.point, result.value);
            }
            what = "killed " + where(tally.trace, job.point) + ", way " + std::to_string(job.variation);
            break;
        case Kind::frozen:
            ++tally.frozen;
            what = "frozen " + where(tally.trace, job.point) +
                   ", while others: " + cases.single[job.which].scripts[job.variation].name;
            break;
        case Kind::counted:
            ++tally.counted;
            tally.factor_max_percent =
                std::max(tally.factor_max_percent, static_cast<std::uint64_t>(std::max<std::int64_t>(result.value, 0)));
            what = "frozen " + where(tally.trace, job.point) + ", others counted";
            break;
        case Kind::cells:
            ++tally.counted;
            tally.cell_access_max =
                std::max(tally.cell_access_max, static_cast<std::uint64_t>(std::max<std::int64_t>(result.value, 0)));
            what = "frozen " + where(tally.trace, job.point) + ", others' looks at cells counted";
            break;
        case Kind::duel:
            ++tally.frozen;
            what = "against an opponent: " + cases.single[job.which].duels[job.variation].name;
            break;
        case Kind::pair:
            ++tally.kills;
            what = cases.pairs[job.which].operations[job.variation] + " frozen after step " +
                   std::to_string(job.point.step) + ", " + cases.pairs[job.which].operations[job.second] +
                   " killed after step " + std::to_string(job.second_step);
            break;
        case Kind::interleaved:
            ++tally.frozen;
            what = cases.pairs[job.which].operations[job.variation] + " and " +
                   cases.pairs[job.which].operations[job.second] + " in turns, seed " + std::to_string(job.second_step);
            break;
        }
        if (!result.text.empty()) {
            tally.findings.push_back(what + ": " + result.text);
        }
    }

    std::size_t findings = 0;
    std::uint64_t runs = 0;
    std::FILE* json = options.json.empty() ? nullptr : std::fopen(options.json.c_str(), "w");
    if (json != nullptr) {
        std::fprintf(json, "{\"seed\": %" PRIu64 ", \"cases\": [", options.seed);
    }
    std::printf("%-19s %6s %7s %6s  %-17s %6s %7s %8s\n", "case", "steps", "classes", "kills", "not/part/done",
                "frozen", "slowest", "findings");
    bool first = true;
    const auto report = [&](const std::string& name, const std::string& what, const Tally& tally) {
        char outcomes[64];
        std::snprintf(outcomes, sizeof outcomes, "%" PRIu64 "/%" PRIu64 "/%" PRIu64, tally.outcomes[0],
                      tally.outcomes[1], tally.outcomes[2]);
        if (tally.outcomes[0] + tally.outcomes[1] + tally.outcomes[2] == 0) {
            std::snprintf(outcomes, sizeof outcomes, "-");
        }
        char slowest[32] = "";
        if (tally.counted != 0) {
            std::snprintf(slowest, sizeof slowest, "%" PRIu64 ".%02" PRIu64 "x", tally.factor_max_percent / 100,
                          tally.factor_max_percent % 100);
        }
        std::printf("%-19s %6u %7zu %6" PRIu64 "  %-17s %6" PRIu64 " %7s %8zu\n", name.c_str(), tally.trace.steps(),
                    tally.trace.classes.size(), tally.kills, outcomes, tally.frozen + tally.counted, slowest,
                    tally.findings.size());
        findings += tally.findings.size();
        runs += tally.kills + tally.frozen + tally.counted;
        if (json != nullptr) {
            std::fprintf(
                json,
                "%s\n  {\"name\": %s, \"what\": %s, \"steps\": %u, \"classes\": %zu, \"kills\": %" PRIu64
                ", \"not_happened\": %" PRIu64 ", \"in_part\": %" PRIu64 ", \"done\": %" PRIu64 ", \"frozen\": %" PRIu64
                ", \"slowest_percent\": %" PRIu64 ", \"cell_accesses\": %" PRIu64 ", \"findings\": [",
                first ? "" : ",", json_text(name).c_str(), json_text(what).c_str(), tally.trace.steps(),
                tally.trace.classes.size(), tally.kills, tally.outcomes[0], tally.outcomes[1], tally.outcomes[2],
                tally.frozen + tally.counted, tally.factor_max_percent, tally.cell_access_max);
            for (std::size_t i = 0; i < tally.findings.size(); ++i) {
                std::fprintf(json, "%s%s", i == 0 ? "" : ", ", json_text(tally.findings[i]).c_str());
            }
            std::fprintf(json, "]}");
        }
        first = false;
    };
    for (std::size_t i = 0; i < cases.single.size(); ++i) {
        std::ranges::sort(stages[i], {}, [](const auto& one) { return std::pair(one.first.step, one.first.asleep); });
        if (options.at.empty()) {
            check_stages(cases.single[i], tallies[i], stages[i]);
        }
        report(cases.single[i].name, cases.single[i].what, tallies[i]);
    }
    for (std::size_t i = 0; i < cases.pairs.size(); ++i) {
        report(cases.pairs[i].name, cases.pairs[i].what, pair_tallies[i]);
    }
    if (json != nullptr) {
        std::fprintf(json, "\n]}\n");
        std::fclose(json);
    }
    const auto print_findings = [](const std::string& name, const Tally& tally) {
        for (std::size_t i = 0; i < tally.findings.size() && i < 5; ++i) {
            std::printf("\n%s: %s\n", name.c_str(), tally.findings[i].c_str());
        }
    };
    for (std::size_t i = 0; i < cases.single.size(); ++i) {
        print_findings(cases.single[i].name, tallies[i]);
    }
    for (std::size_t i = 0; i < cases.pairs.size(); ++i) {
        print_findings(cases.pairs[i].name, pair_tallies[i]);
    }
    std::printf("%" PRIu64 " runs, seed %" PRIu64 ", %zu findings\n", runs, options.seed, findings);
    return findings == 0 ? 0 : 1;
}

[[noreturn]] void usage(const char* program) {
    std::fprintf(
        stderr,
        "usage: %s [--list] [--full] [--few] [--cases A,B] [--seed N] [--jobs N] [--kill-steps N] [--frozen-steps N]\n"
        "       [--pair-runs N] [--interleaved-runs N] [--json FILE] [--stop-at-first] [--verbose]\n"
        "       [--at kill:STEP[:WAY] | asleep:STEP[:WAY] | frozen:SCRIPT:STEP]\n",
        program);
    std::exit(2);
}

} // namespace

int main(int argument_count, char** arguments) {
    Options options;
    for (int i = 1; i < argument_count; ++i) {
        const std::string argument = arguments[i];
        const auto value = [&]() -> const char* {
            if (i + 1 == argument_count) {
                usage(arguments[0]);
            }
            return arguments[++i];
        };
        const auto number = [&] {
            return static_cast<std::uint32_t>(std::min<unsigned long>(std::strtoul(value(), nullptr, 10), UINT32_MAX));
        };
        if (argument == "--list") {
            for (const std::string& name : crash::case_names()) {
                std::printf("%s\n", name.c_str());
            }
            return 0;
        } else if (argument == "--full") {
            options.full = true;
            options.kill_steps = 200;
            options.frozen_steps = 200;
            options.pair_runs = 2560;
            options.cell_steps = 200;
            options.interleaved_runs = 600;
            options.counted_points = UINT32_MAX;
        } else if (argument == "--cases") {
            std::string names = value();
            for (std::size_t begin = 0; begin <= names.size();) {
                const std::size_t end = std::min(names.find(',', begin), names.size());
                options.cases.push_back(names.substr(begin, end - begin));
                begin = end + 1;
            }
        } else if (argument == "--seed") {
            options.seed = std::strtoull(value(), nullptr, 10);
        } else if (argument == "--jobs") {
            options.jobs = number();
        } else if (argument == "--kill-steps") {
            options.kill_steps = number();
        } else if (argument == "--frozen-steps") {
            options.frozen_steps = number();
        } else if (argument == "--few") {
            // for where steps are many and slow: a sample of everything
            options.kill_class_steps = 1;
            options.kill_steps = 8;
            options.frozen_class_steps = 0;
            options.frozen_steps = 8;
            options.pair_runs = 20;
            options.interleaved_runs = 8;
            options.counted_points = 1;
            options.cell_steps = 2;
        } else if (argument == "--pair-runs") {
            options.pair_runs = number();
        } else if (argument == "--interleaved-runs") {
            options.interleaved_runs = number();
        } else if (argument == "--counted-points") {
            options.counted_points = std::max(1U, number());
        } else if (argument == "--json") {
            options.json = value();
        } else if (argument == "--at") {
            options.at = value();
        } else if (argument == "--stop-at-first") {
            options.stop_at_first = true;
        } else if (argument == "--verbose") {
            options.verbose = true;
        } else {
            usage(arguments[0]);
        }
    }
    const std::vector<std::string> names = crash::case_names();
    for (const std::string& wanted : options.cases) {
        if (std::find(names.begin(), names.end(), wanted) == names.end()) {
            std::fprintf(stderr, "there is no case %s; --list names them\n", wanted.c_str());
            return 2;
        }
    }
    return run(options);
}
