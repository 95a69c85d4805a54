// The engine, tried on a toy: a pair of counters that are to move together, with an intent word written
// ahead.
#include "engine.hpp"

#include "catch.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

using crash::Child;
using crash::Mailbox;
using crash::Stop;

struct Pair {
    std::uint64_t intent;
    std::uint64_t a;
    std::uint64_t b;
    std::uint32_t sleepers;
    std::uint32_t bell;
    std::uint64_t others;
};

void store(std::uint64_t& word, std::uint64_t value) {
    std::atomic_ref(word).store(value, std::memory_order_release);
}

// Right: a crash at any instruction leaves either the old pair, or an intent that says what both are to be.
void advance(Pair& pair) {
    const std::uint64_t next = pair.a + 1;
    store(pair.intent, next);
    store(pair.a, next);
    store(pair.b, next);
    store(pair.intent, 0);
}

// Wrong at one place: between its last two stores the intent is gone and b is not moved.
void advance_badly(Pair& pair) {
    const std::uint64_t next = pair.a + 1;
    store(pair.intent, next);
    store(pair.a, next);
    store(pair.intent, 0);
    store(pair.b, next);
}

void recover(Pair& pair) {
    if (const std::uint64_t intent = pair.intent; intent != 0) {
        store(pair.a, intent);
        store(pair.b, intent);
        store(pair.intent, 0);
    }
}

void sleep_on(std::uint32_t& word, std::uint32_t expected) {
    syscall(SYS_futex, &word, FUTEX_WAIT, expected, nullptr, nullptr, 0);
}

void wake_all(std::uint32_t& word) {
    syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

struct World {
    crash::Region region{16384};
    Mailbox& victim_box = *reinterpret_cast<Mailbox*>(region.data());
    Mailbox& survivor_box = *reinterpret_cast<Mailbox*>(region.data() + 4096);
    Mailbox& second_box = *reinterpret_cast<Mailbox*>(region.data() + 8192);
    Pair& pair = *reinterpret_cast<Pair*>(region.data() + 12288);
    crash::Watched watched{{&pair, sizeof pair}};

    crash::Task task(void (*operation)(Pair&)) {
        return {
            [this](Mailbox&) { REQUIRE(pair.a == 0); },
            [this, operation](Mailbox&) { operation(pair); },
            [this](Mailbox& box) { box.expect(pair.a == pair.b, "the counters differ at the victim's end"); },
        };
    }
};

void check_pair(Mailbox& box, Pair& pair) {
    recover(pair);
    box.expect(pair.a == pair.b, "the counters differ");
    box.expect(pair.a <= 1, "the operation happened more than once");
    const std::uint64_t before = pair.a;
    advance(pair);
    box.expect(pair.a == before + 1 && pair.b == before + 1, "the next operation does not work");
}

// Kills a fresh child at each point; returns the findings' points.
std::vector<crash::Point> kill_everywhere(World& world, void (*operation)(Pair&), const crash::Trace& trace,
                                          const std::vector<crash::Point>& points) {
    std::vector<crash::Point> bad;
    for (const crash::Point point : points) {
        world.region.clear();
        Child victim = Child::start(world.task(operation), world.victim_box);
        REQUIRE(crash::reach(victim, trace, point, world.watched, {}) == "");
        victim.kill();
        if (!crash::run_apart(world.survivor_box, [&](Mailbox& box) { check_pair(box, world.pair); })) {
            bad.push_back(point);
        }
    }
    return bad;
}

bool process_is_gone(pid_t pid) {
    for (;;) { // the test's watchdog ends it
        if (kill(pid, 0) != 0 && errno == ESRCH) {
            return true;
        }
        int status = 0;
        waitpid(pid, &status, WNOHANG);
        usleep(1000);
    }
}

} // namespace

TEST_CASE("one pass finds each change of the shared bytes, and nothing else, as a class") {
    World world;
    const crash::Trace trace = crash::record(world.task(advance), world.victim_box, world.watched, {});
    REQUIRE(trace.error == "");
    REQUIRE(trace.changes.size() == 4);
    REQUIRE(trace.classes.size() == 5);
    REQUIRE(trace.sleeps.empty());
    CHECK(trace.classes.front().first == 0);
    CHECK(trace.classes.back().last == trace.steps());
    for (std::size_t i = 0; i < trace.changes.size(); i++) {
        CHECK(trace.changes[i].bytes);
        CHECK(trace.changes[i].system_call == -1);
        CHECK(trace.changes[i].step == trace.classes[i + 1].first);
        CHECK(trace.classes[i].last + 1 == trace.classes[i + 1].first);
        CHECK(trace.class_of(trace.changes[i].step) == i + 1);
    }
    CHECK(world.pair.a == 1);
    CHECK(world.pair.b == 1);
}

TEST_CASE("two passes of one operation take the same steps") {
    World world;
    const crash::Trace first = crash::record(world.task(advance), world.victim_box, world.watched, {});
    world.region.clear();
    const crash::Trace second = crash::record(world.task(advance), world.victim_box, world.watched, {});
    CHECK(first.pc == second.pc);
    world.region.clear();
    CHECK(crash::count_steps(world.task(advance), world.victim_box, 10'000) == first.steps());
    CHECK(world.victim_box.failed == 0);
}

TEST_CASE("the right toy survives a kill at every instruction") {
    World world;
    const crash::Trace trace = crash::record(world.task(advance), world.victim_box, world.watched, {});
    const auto points = crash::plan(trace, {.every_step_below = 2000, .class_steps = 2, .random_steps = 0, .seed = 1});
    REQUIRE(points.size() == trace.steps() + 1);
    CHECK(kill_everywhere(world, advance, trace, points).empty());
}

TEST_CASE("the toy's seeded bug is found, in its class and in no other") {
    World world;
    const crash::Trace trace = crash::record(world.task(advance_badly), world.victim_box, world.watched, {});
    REQUIRE(trace.error == "");
    const auto every_step =
        crash::plan(trace, {.every_step_below = 2000, .class_steps = 2, .random_steps = 0, .seed = 1});
    const auto bad = kill_everywhere(world, advance_badly, trace, every_step);
    const crash::StepClass wrong = trace.classes[3]; // behind the third store
    REQUIRE(bad.size() == wrong.last - wrong.first + 1);
    CHECK(bad.front().step == wrong.first);
    CHECK(bad.back().step == wrong.last);

    // and the plan by classes, without a single random step, finds it too
    const auto by_class = crash::plan(trace, {.every_step_below = 0, .class_steps = 1, .random_steps = 0, .seed = 1});
    CHECK(by_class.size() < every_step.size());
    CHECK_FALSE(kill_everywhere(world, advance_badly, trace, by_class).empty());
}

TEST_CASE("random steps come from the seed, and none comes twice") {
    crash::Trace trace;
    trace.pc.resize(5001);
    trace.classes = {{0, 5000, 0}};
    const auto steps_of = [&](std::uint64_t seed) {
        std::vector<std::uint32_t> steps;
        for (const crash::Point point :
             crash::plan(trace, {.every_step_below = 2000, .class_steps = 2, .random_steps = 200, .seed = seed})) {
            steps.push_back(point.step);
        }
        return steps;
    };
    const auto steps = steps_of(7);
    CHECK(steps.size() == 202);
    CHECK(std::is_sorted(steps.begin(), steps.end()));
    CHECK(std::adjacent_find(steps.begin(), steps.end()) == steps.end());
    CHECK(steps == steps_of(7));
    CHECK(steps != steps_of(8));
}

TEST_CASE("a replay over a breakpoint stands where the recorded pass stood, loops and copies included") {
    World world;
    auto* text = reinterpret_cast<char*>(world.region.data() + 12288 + 256);
    const crash::Watched watched{{text, 512}};
    const crash::Task task{
        [text](Mailbox&) { std::fill(text + 64, text + 77, 'x'); },
        [text](Mailbox&) {
            for (int round = 0; round < 5; round++) {
                for (int i = 0; i < 8; i++) {
                    text[round * 8 + i] = static_cast<char>('a' + i);
                }
                // a repeated string instruction: one step for each repetition
                const char* from = text + 64;
                char* to = text + 128 + round * 16;
                std::size_t count = 13;
                asm volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
            }
        },
        {},
    };
    const crash::Trace trace = crash::record(task, world.victim_box, watched, {});
    REQUIRE(trace.error == "");
    REQUIRE(trace.changes.size() == 5 * (8 + 13));
    std::uint32_t by_breakpoint = 0;
    for (std::uint32_t step = 0; step <= trace.steps(); step += 3) {
        world.region.clear();
        Child child = Child::start(task, world.victim_box);
        REQUIRE(crash::reach(child, trace, {step, false}, watched, {}) == "");
        by_breakpoint += trace.approach[step].step > 0 ? 1u : 0u;
    }
    CHECK(by_breakpoint > trace.steps() / 6);
}

TEST_CASE("a replay that runs differently is noticed") {
    World world;
    const crash::Task task{
        {},
        [&world](Mailbox&) {
            if (world.pair.b == 0) {
                advance(world.pair);
            } else {
                store(world.pair.a, 17);
                advance(world.pair);
            }
        },
        {},
    };
    const crash::Trace trace = crash::record(task, world.victim_box, world.watched, {});
    world.region.clear();
    world.pair.b = 1;
    Child child = Child::start(task, world.victim_box);
    CHECK(crash::reach(child, trace, {trace.steps() - 2, false}, world.watched, {}) != "");
}

TEST_CASE("a frozen child stands still, and goes on where it stood") {
    World world;
    const crash::Trace trace = crash::record(world.task(advance), world.victim_box, world.watched, {});
    world.region.clear();
    Child victim = Child::start(world.task(advance), world.victim_box);
    REQUIRE(crash::reach(victim, trace, {trace.changes[1].step, false}, world.watched, {}) == "");
    CHECK(world.pair.a == 1);
    CHECK(world.pair.b == 0);
    CHECK(crash::run_apart(world.survivor_box, [&](Mailbox& box) {
        box.expect(world.pair.intent == 1 && world.pair.b == 0, "the survivor sees the victim between its stores");
    }));
    CHECK(world.pair.b == 0);
    CHECK(victim.run_to_return() == Stop::returned);
    CHECK(world.pair.b == 1);
    CHECK(world.pair.intent == 0);
    CHECK(victim.finish() == Stop::exited);
    CHECK(world.victim_box.failed == 0);
}

TEST_CASE("what a frozen child finds wrong when it goes on is reported") {
    World world;
    const crash::Trace trace = crash::record(world.task(advance), world.victim_box, world.watched, {});
    world.region.clear();
    Child victim = Child::start(world.task(advance), world.victim_box);
    REQUIRE(crash::reach(victim, trace, {trace.changes[2].step, false}, world.watched, {}) == "");
    world.pair.b = 5;
    CHECK(victim.finish() == Stop::exited);
    CHECK(world.victim_box.failed == 1);
    CHECK(std::string(world.victim_box.findings) == "the counters differ at the victim's end\n");
}

TEST_CASE("one child is frozen at one step while another is killed at another") {
    World world;
    const crash::Trace trace = crash::record(world.task(advance), world.victim_box, world.watched, {});
    world.region.clear();
    Child frozen = Child::start(world.task(advance), world.victim_box);
    Child killed = Child::start(world.task(advance), world.second_box);
    REQUIRE(crash::step_until(frozen, [&] { return world.pair.a == 1; }) > 0);
    REQUIRE(crash::step_until(killed, [&] { return world.pair.intent == 2; }) > 0);
    killed.kill();
    CHECK_FALSE(killed.alive());
    CHECK(world.pair.intent == 2);
    CHECK(frozen.finish() == Stop::exited);
    CHECK(world.pair.intent == 0);
    CHECK(world.pair.b == 1);
}

TEST_CASE("a sleep inside a system call is a point of its own, and the hook wakes the sleeper") {
    World world;
    const crash::Task task{
        {},
        [&world](Mailbox&) {
            std::atomic_ref(world.pair.sleepers).store(1);
            while (std::atomic_ref(world.pair.bell).load() == 0) {
                sleep_on(world.pair.bell, 0);
            }
            std::atomic_ref(world.pair.sleepers).store(0);
        },
        [&world](Mailbox& box) { box.expect(world.pair.bell == 1, "woken without the bell"); },
    };
    crash::Hooks hooks;
    hooks.on_blocked = [&world] {
        std::atomic_ref(world.pair.bell).store(1);
        wake_all(world.pair.bell);
    };
    const crash::Trace trace = crash::record(task, world.victim_box, world.watched, hooks);
    REQUIRE(trace.error == "");
    REQUIRE(trace.sleeps.size() == 1);
    REQUIRE(trace.classes.size() == 4); // before, noted as a sleeper, woken, over
    CHECK(trace.changes[1].system_call == SYS_futex);

    int asleep = 0;
    for (const crash::Point point :
         crash::plan(trace, {.every_step_below = 2000, .class_steps = 2, .random_steps = 0, .seed = 1})) {
        world.region.clear();
        Child child = Child::start(task, world.victim_box);
        REQUIRE(crash::reach(child, trace, point, world.watched, hooks) == "");
        asleep += point.asleep ? 1 : 0;
        CHECK(child.stop() == (point.asleep ? Stop::blocked : Stop::stepped));
        if (point.step % 2 == 0 && !point.asleep) { // goes on, and is woken
            Stop stop = child.finish(true);
            if (stop == Stop::blocked) {
                hooks.on_blocked();
                child.resume_wait();
                stop = child.finish();
            }
            CHECK(stop == Stop::exited);
            CHECK(world.victim_box.failed == 0);
        }
        child.kill();
    }
    CHECK(asleep == 1);
}

TEST_CASE("a crash inside the operation, or before it, is a finding and not the harness's end") {
    World world;
    const crash::Task crashing{{}, [](Mailbox&) { raise(SIGSEGV); }, {}};
    const crash::Trace trace = crash::record(crashing, world.victim_box, world.watched, {});
    CHECK(trace.error.find("signal 11") != std::string::npos);

    const crash::Task unprepared{[](Mailbox&) { std::abort(); }, [](Mailbox&) {}, {}};
    const crash::Trace none = crash::record(unprepared, world.victim_box, world.watched, {});
    CHECK(none.error.find("did not reach its operation") != std::string::npos);

    CHECK_FALSE(crash::run_apart(world.survivor_box, [](Mailbox&) { raise(SIGBUS); }));
    CHECK(std::string(world.survivor_box.findings).find("signal 7") != std::string::npos);
    CHECK_FALSE(crash::run_apart(world.survivor_box, [](Mailbox&) { std::exit(0); }));
}

TEST_CASE("an operation without an end runs into its bound") {
    World world;
    const crash::Task endless{{},
                              [&world](Mailbox&) {
                                  while (std::atomic_ref(world.pair.bell).load() == 0) {
                                  }
                              },
                              {}};
    CHECK(crash::count_steps(endless, world.victim_box, 5000) == 5001);
    CHECK(world.victim_box.failed == 1);
    CHECK(crash::record(endless, world.victim_box, world.watched, {}, 3000).error != "");

    crash::set_watchdog(2);
    CHECK_FALSE(crash::run_apart(world.survivor_box, endless.operation));
    CHECK(std::string(world.survivor_box.findings).find("hangs") != std::string::npos);
    Child child = Child::start(endless, world.victim_box);
    CHECK(child.run_to_return() == Stop::timed_out);
    crash::set_watchdog(60);
}

TEST_CASE("jobs run on several workers, each with shared memory of its own, and outlive a worker's death") {
    World world;
    const auto results = crash::run_jobs(
        60, 2, [&] { world.region.make_own(); },
        [&](std::size_t job) -> crash::JobResult {
            world.pair.a = job;
            if (job == 13) {
                raise(SIGKILL);
            }
            if (!crash::run_apart(world.survivor_box, [&](Mailbox& box) {
                    usleep(200);
                    box.expect(world.pair.a == job, "another worker's memory");
                })) {
                return {world.survivor_box.findings, 0};
            }
            return {job == 17 ? "finding of 17" : "", static_cast<std::int64_t>(3 * job)};
        });
    REQUIRE(results.size() == 60);
    for (std::size_t job = 0; job < results.size(); job++) {
        if (job == 13) {
            CHECK(results[job].text.find("signal 9") != std::string::npos);
        } else {
            CHECK(results[job].text == (job == 17 ? "finding of 17" : ""));
            CHECK(results[job].value == static_cast<std::int64_t>(3 * job));
        }
    }
    CHECK(world.pair.a == 0);
}

TEST_CASE("after the first finding no further job is begun, where that is asked for") {
    World world;
    const auto results = crash::run_jobs(
        1000, 2, [&] { world.region.make_own(); },
        [&](std::size_t job) -> crash::JobResult {
            usleep(100);
            return {job == 5 ? "found" : "", 1};
        },
        true);
    CHECK(results[5].text == "found");
    CHECK(results.front().value == 1);
    CHECK(results.back().value == -1);
    CHECK(results.back().text == "");
}

TEST_CASE("others get ahead of a child at one step, in the recorded pass and in each replay") {
    World world;
    const auto task = world.task(advance);
    crash::Hooks hooks;
    const crash::Trace alone = crash::record(task, world.victim_box, world.watched, hooks);
    hooks.interrupt_step = alone.changes[1].step; // behind the store of a
    hooks.on_interrupt = [&world] { store(world.pair.others, 9); };
    world.region.clear();
    const crash::Trace trace = crash::record(task, world.victim_box, world.watched, hooks);
    REQUIRE(trace.error == "");
    CHECK(trace.pc == alone.pc);
    for (std::uint32_t step = 0; step <= trace.steps(); step++) {
        world.region.clear();
        Child child = Child::start(task, world.victim_box);
        REQUIRE(crash::reach(child, trace, {step, false}, world.watched, hooks) == "");
        CHECK(world.pair.others == (step < hooks.interrupt_step ? 0 : 9));
    }
}

TEST_CASE("looks at a word are counted, and too many are a finding") {
    World world;
    const crash::Task looks{{},
                            [&world](Mailbox&) {
                                for (int i = 0; i < 30; ++i) {
                                    static_cast<void>(std::atomic_ref(world.pair.a).load());
                                }
                            },
                            {}};
    CHECK(crash::count_accesses(looks, world.victim_box, {&world.pair.a, &world.pair.b}, 30) == 30);
    CHECK(world.victim_box.failed == 0);
    CHECK(crash::count_accesses(looks, world.victim_box, {&world.pair.a}, 29) == 30);
    CHECK(world.victim_box.failed == 1);
}

TEST_CASE("a child runs from one access of a word to the next") {
    World world;
    Child child = Child::start(world.task(advance), world.victim_box);
    std::vector<std::size_t> accesses;
    std::size_t which = 9;
    while (child.run_to_access({&world.pair.intent, &world.pair.a, &world.pair.b}, which) == Stop::stepped) {
        accesses.push_back(which);
        if (accesses.size() == 3) { // a was read, and a and the intent were written just now
            CHECK(world.pair.a == 1);
            CHECK(world.pair.b == 0);
        }
    }
    CHECK(child.stop() == Stop::returned);
    CHECK(accesses == std::vector<std::size_t>{1, 0, 1, 2, 0});
}

TEST_CASE("a killed harness leaves no child behind") {
    World world;
    prctl(PR_SET_CHILD_SUBREAPER, 1); // its children become ours, so that we see them go
    auto& child_pid = *reinterpret_cast<std::uint32_t*>(&world.pair.bell);
    auto& survivor_pid = *reinterpret_cast<std::uint32_t*>(&world.pair.sleepers);
    const pid_t harness = fork();
    if (harness == 0) {
        Child child = Child::start(world.task(advance), world.victim_box);
        child.step();
        std::atomic_ref(child_pid).store(static_cast<std::uint32_t>(child.pid()));
        crash::run_apart(world.survivor_box, [&](Mailbox&) {
            std::atomic_ref(survivor_pid).store(static_cast<std::uint32_t>(getpid()));
            for (;;) {
                pause();
            }
        });
        _exit(0);
    }
    while (std::atomic_ref(survivor_pid).load() == 0 || std::atomic_ref(child_pid).load() == 0) {
        usleep(1000);
    }
    kill(harness, SIGKILL);
    int status = 0;
    while (waitpid(harness, &status, 0) == -1 && errno == EINTR) {
    }
    CHECK(WIFSIGNALED(status));
    CHECK(process_is_gone(static_cast<pid_t>(child_pid)));
    CHECK(process_is_gone(static_cast<pid_t>(survivor_pid)));
}

TEST_CASE("a changing instruction is named by its function") {
    World world;
    const crash::Trace trace = crash::record(world.task(advance), world.victim_box, world.watched, {});
    std::vector<std::uintptr_t> addresses;
    for (const crash::Change& change : trace.changes) {
        addresses.push_back(change.pc);
    }
    const auto names = crash::symbolise(addresses);
    REQUIRE(names.size() == 4);
    for (const std::string& name : names) {
        CHECK(name != "");
    }
}
