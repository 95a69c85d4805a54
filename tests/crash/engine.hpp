// engine.hpp: run one operation in a forked child by single instructions, and kill or freeze it anywhere.
//
// The engine knows nothing of the library. A child is forked, prepares itself at full speed, stops right
// before its operation, and is single-stepped from there with ptrace; so what is tested is what ships,
// optimised builds included, with no hooks in it. The state that processes share is memory mapped MAP_SHARED
// before the fork: the tracer reads it through its own mapping, while the child stands still.
//
//     crash::Trace trace = crash::record(task, mailbox, watched, hooks);    // one pass: each step, each change
//     for (crash::Point point : crash::plan(trace, crash::PlanOptions{})) { // a death in each class, and others
//         reset_the_shared_memory();
//         crash::Child victim = crash::Child::start(task, mailbox);
//         crash::reach(victim, trace, point, watched, hooks);  // a fresh child, stopped at just that step
//         victim.kill();                                       // or leave it, and finish() it later
//         crash::run_apart(other_mailbox, survivors_work);     // in a process of its own, under a watchdog
//     }
//
// Steps. `Trace::pc[s]` is the instruction that comes next after s steps; step s+1 executes it. pc[0] is the
// call of the operation, and the last one is the instruction behind that call. A repeated string instruction
// counts once for each repetition, as the processor's trap flag has it.
//
// Classes. A death differs from another only in what others can see: the shared bytes, and kernel objects. A
// class is a maximal run of steps with the same visible state. A step that makes a system call ends a class
// too, since it may have changed something in the kernel. A step that sleeps inside its system call is a
// point of its own (Point::asleep).
//
// The clock is read in a page of the kernel's (the vDSO), which tries again when time went on meanwhile; so
// under single steps it takes another number of them each time. A call into that page is one step.
//
// Reaching a step. Single steps cost some 5 to 20 microseconds, mostly the trap. So a replay runs at full
// speed up to a hardware breakpoint on an instruction that the recorded pass met rarely, and steps only the
// rest. Every replay is compared with the recording (next instruction and visible state); one that differs is
// counted as diverged, never as passed.
//
// Nothing stays behind: children die with their tracer (PR_SET_PDEATHSIG, PTRACE_O_EXITKILL), and each wait
// for a child has a watchdog. x86-64 only: `supported()` says why not elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

namespace crash {

// Whether this machine can single-step a child; if not, `why` says what is missing.
bool supported(std::string& why);

// How long a child may go without any progress before it counts as hanging.
void set_watchdog(int seconds);

// --------------------------------------------------------------------------------------------------------
// Shared memory

// An anonymous shared mapping that children inherit. Each worker of run_jobs() gets its own pages at the same
// address.
class Region {
public:
    explicit Region(std::size_t size);
    ~Region();
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

    std::byte* data() const { return data_; }
    std::size_t size() const { return size_; }

    // Gives this process fresh, zeroed pages at the same address, apart from those of the process it was
    // forked from.
    void make_own();

    // Gives the pages back, so that the next use finds zeros without anyone writing them.
    void clear();

private:
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

// Shared bytes whose change makes a difference to others.
struct Span {
    const void* begin;
    std::size_t size;
};
using Watched = std::vector<Span>;

std::uint64_t hash_of(const Watched& watched);

// What a child tells, in shared memory outside of what is watched. Zeroed bytes are an empty one.
struct Mailbox {
    static constexpr std::size_t value_count = 48;

    std::uint32_t phase;  // see Phase
    std::uint32_t failed; // number of findings
    std::uint64_t values[value_count];
    char findings[1400]; // one a line, cut when it is full

    // Notes a finding; the format is printf's.
    void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
    bool expect(bool holds, const char* what) {
        if (!holds) {
            fail("%s", what);
        }
        return holds;
    }
};

namespace phase {
constexpr std::uint32_t preparing = 0;
constexpr std::uint32_t inside = 1;   // the operation
constexpr std::uint32_t returned = 2; // the operation is over
constexpr std::uint32_t finished = 3; // all is over, the child exits
} // namespace phase

// --------------------------------------------------------------------------------------------------------
// Children

// In a child, at any place: its part is over, and nothing is given back.
[[noreturn]] void leave_child(Mailbox& mailbox);

// What a child does. Each part runs in the child; the operation is what is stepped.
struct Task {
    std::function<void(Mailbox&)> prepare;
    std::function<void(Mailbox&)> operation;
    std::function<void(Mailbox&)> afterwards;
};

enum class Stop {
    stepped,    // stands inside the operation
    returned,   // stands right behind the operation
    blocked,    // sleeps in a system call
    exited,     // is gone, having finished its part
    crashed,    // died or was about to die of a signal
    timed_out,  // the watchdog
    step_limit, // more steps than allowed
};
const char* name_of(Stop stop);

// A forked process under ptrace. Killed and waited for when the handle goes.
class Child {
public:
    // Forks; returns with the child standing right before its operation. If it did not get there, stop() says
    // why.
    static Child start(const Task& task, Mailbox& mailbox);

    ~Child();
    Child(Child&& other) noexcept;
    Child& operator=(Child&& other) noexcept;

    pid_t pid() const { return pid_; }
    Stop stop() const { return stop_; }
    int signal() const { return signal_; }
    Mailbox& mailbox() const { return *mailbox_; }
    bool alive() const { return pid_ > 0; }

    std::uintptr_t pc() const;

    // One instruction. `patient`: the instruction may sleep in the kernel; then Stop::blocked comes back
    // while it still does, and resume_wait() waits on.
    Stop step(bool patient = false);

    // After a step: where it led into the kernel's page, runs until it is back. Returns whether it did.
    bool leave_kernel_page();

    // Runs to an instruction, by a hardware breakpoint; `arrivals` counts how often it must be met.
    Stop run_to(std::uintptr_t address, std::uint32_t arrivals, bool patient = false);

    // Runs until one of up to four 64-bit words was just read or written; `which` says which (the lowest one, where
    // an instruction touched several). Stop::returned when the operation is over.
    Stop run_to_access(const std::vector<const std::uint64_t*>& words, std::size_t& which);

    // Runs at full speed to right behind the operation. Stop::blocked when it sleeps and `patient`.
    Stop run_to_return(bool patient = false);

    // Lets the child do the rest, and waits until it is gone. Stop::blocked when it sleeps and `patient`.
    Stop finish(bool patient = false);

    // After Stop::blocked: waits until it sleeps no more.
    Stop resume_wait();

    // SIGKILL, and waits until the kernel has let go of it.
    void kill();

private:
    Child() = default;
    Stop wait_stop(bool patient);
    void clear_breakpoint();

    pid_t pid_ = -1;
    Mailbox* mailbox_ = nullptr;
    Stop stop_ = Stop::exited;
    int signal_ = 0;
    bool breakpoint_ = false; // a debug register is in use
    bool whole_ = false;      // on its way to the end, not to be stopped behind the operation
};

// What to do from outside during a pass.
struct Hooks {
    // The child sleeps in a system call at this step; do what wakes it. Without it, a sleeping child is an
    // error.
    std::function<void()> on_blocked;
    // Called when the child stands behind its step `interrupt_step` (from 1 on): others get ahead of it there.
    std::uint32_t interrupt_step = 0;
    std::function<void()> on_interrupt;
    // Recording ends where this holds first; it is asked for each new class.
    std::function<bool()> until;
};

// Runs `work` in a forked process of its own at full speed. Findings go to its mailbox, and so does a crash
// or a hang. Returns whether there were none.
bool run_apart(Mailbox& mailbox, const std::function<void(Mailbox&)>& work);

// Steps a fresh child through its whole operation and then lets it finish. Returns the number of its
// instructions; more than `limit`, a crash or a hang are findings in its mailbox.
std::uint64_t count_steps(const Task& task, Mailbox& mailbox, std::uint64_t limit);

// Runs a fresh child through its operation and counts how often it reads or writes any of up to four words. More than
// `limit` is a finding in its mailbox.
std::uint64_t count_accesses(const Task& task, Mailbox& mailbox, const std::vector<const std::uint64_t*>& words,
                             std::uint64_t limit);

// --------------------------------------------------------------------------------------------------------
// Recording and replaying

struct Change {
    std::uint32_t step; // the visible state differs after this step (1 is the first instruction)
    std::uintptr_t pc;  // of the instruction that did it
    bool bytes;         // shared bytes changed
    long system_call;   // its number, or -1
};

struct StepClass {
    std::uint32_t first; // number of steps after which the class begins
    std::uint32_t last;  // and ends, inclusive
    std::uint64_t hash;  // of the watched bytes
};

// A place to stop at: after so many steps; or asleep inside the next one.
struct Point {
    std::uint32_t step;
    bool asleep;
};

struct Trace {
    std::vector<std::uintptr_t> pc;
    std::vector<Change> changes;
    std::vector<StepClass> classes;
    std::vector<std::uint32_t> sleeps; // the number of steps before each that slept
    std::vector<std::uint32_t> clocks; // the number of steps before each that called into the kernel's page
    bool ended = false;                // by Hooks::until
    std::string error;                 // empty: recorded

    std::uint32_t steps() const { return pc.empty() ? 0 : static_cast<std::uint32_t>(pc.size() - 1); }
    std::size_t class_of(std::uint32_t step) const;

    // For each step, the cheapest start of single-stepping towards it.
    struct Approach {
        std::uint32_t step;     // run to here by a breakpoint; 0: none
        std::uint32_t arrivals; // so often is pc[step] met on the way
    };
    std::vector<Approach> approach;
};

constexpr std::uint32_t steps_limit_default = 2'000'000;

Trace record(const Task& task, Mailbox& mailbox, const Watched& watched, const Hooks& hooks,
             std::uint32_t steps_limit = steps_limit_default);

// Brings a child that stands before its operation to a point of the recorded pass. Returns an empty string
// when it stands there in the recorded state, otherwise what was different.
std::string reach(Child& child, const Trace& trace, Point point, const Watched& watched, const Hooks& hooks);

// Steps until `there()` holds (looked at after every step; the child stands still then). Returns the number
// of steps, or -1 when the operation returned before.
std::int64_t step_until(Child& child, const std::function<bool()>& there,
                        std::uint32_t steps_limit = steps_limit_default);

struct PlanOptions {
    std::uint32_t every_step_below = 0; // all steps of an operation that has fewer
    std::uint32_t class_steps = 2;      // of each class: the first and the last; 1: the first; 0: none
    std::uint32_t random_steps = 40;
    std::uint64_t seed = 1;
};

// Steps of each class, each sleep, and seeded random steps; ascending, none twice.
std::vector<Point> plan(const Trace& trace, const PlanOptions& options);

// --------------------------------------------------------------------------------------------------------
// Many runs

struct JobResult {
    std::string text;       // empty when it passed
    std::int64_t value = 0; // the job's own
};

// Runs jobs 0..count-1 on `workers` processes, each bound to a processor of its own. `begin` runs once in each
// worker before its jobs. A worker that dies is a finding of the job it was at, and the others' jobs go on.
// With `stop_at_first`, no job is begun after one had a finding; those not run have an empty text and value -1.
std::vector<JobResult> run_jobs(std::size_t count, unsigned workers, const std::function<void()>& begin,
                                const std::function<JobResult(std::size_t)>& job, bool stop_at_first = false);

// The processors this process may use.
unsigned processor_count();

// A tracer and its child take turns, so they are fastest on one processor: binds this process and its children
// to the number-th of those it was started with.
void bind_to_processor(unsigned number);

// Instructions of this program as "function (file:line)", by addr2line where it is there, else as offsets.
std::vector<std::string> symbolise(const std::vector<std::uintptr_t>& addresses);

// A small seeded generator (splitmix64): the same numbers with every compiler.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next();
    std::uint64_t below(std::uint64_t bound) { return next() % bound; }

private:
    std::uint64_t state_;
};

} // namespace crash
