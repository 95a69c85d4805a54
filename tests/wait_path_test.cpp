// Which system call workers sleep in: a demanded path makes its own and no other's, for which the kernel itself vouches by a
// filter that kills who makes another; and where a call is refused, the next path does the same work.
#include "catch.hpp"
#include "domain_testing.hpp"

#include <weir/block.hpp>
#include <weir/domain.hpp>
#include <weir/scheduler.hpp>

#include <array>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <stdexcept>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

using namespace weir;
using test::Child;
using test::fail_child;
using test::Name;

namespace {

// Of all architectures since Linux 5.1; the headers at hand may be older.
constexpr std::uint32_t call_io_uring_setup = 425;
constexpr std::uint32_t call_io_uring_enter = 426;
constexpr std::uint32_t call_io_uring_register = 427;
constexpr std::uint32_t call_futex_waitv = 449;
constexpr std::uint32_t register_files = 2; // operations of io_uring_register()
constexpr std::uint32_t register_probe = 8;

constexpr int skipped = 77;

// --- Filters ---------------------------------------------------------------------------------------------------------

struct Rule {
    std::uint32_t call;
    std::uint32_t action;
    std::optional<std::uint32_t> operation = {}; ///< only where the call's second argument is that
};

constexpr std::uint32_t end_process = SECCOMP_RET_KILL_PROCESS;
constexpr std::uint32_t refuse(int error) {
    return SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error);
}

using Rules = std::vector<Rule>;

/// Puts this process and its later threads under the rules, for good.
void obey(const Rules& rules) {
    constexpr auto load = static_cast<std::uint16_t>(BPF_LD | BPF_W | BPF_ABS);
    constexpr auto jump_if_equal = static_cast<std::uint16_t>(BPF_JMP | BPF_JEQ | BPF_K);
    constexpr auto end = static_cast<std::uint16_t>(BPF_RET | BPF_K);
    constexpr std::uint32_t place_of_call = offsetof(seccomp_data, nr);
    constexpr std::uint32_t place_of_operation = offsetof(seccomp_data, args) + sizeof(std::uint64_t); // little-endian
    std::vector<sock_filter> program;
    for (const Rule& rule : rules) {
        const std::uint8_t rest = rule.operation ? 3 : 1;
        program.push_back({load, 0, 0, place_of_call});
        program.push_back({jump_if_equal, 0, rest, rule.call});
        if (rule.operation) {
            program.push_back({load, 0, 0, place_of_operation});
            program.push_back({jump_if_equal, 0, 1, *rule.operation});
        }
        program.push_back({end, 0, 0, rule.action});
    }
    program.push_back({end, 0, 0, SECCOMP_RET_ALLOW});
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
        _exit(skipped);
    }
}

/// A process under the rules. It fails by an exception, too.
template <class Body>
Child under(const Rules& rules, Body&& body) {
    return Child([&] {
        unsetenv("WEIR_WAIT_PATH"); // unless the body says otherwise
        obey(rules);
        try {
            body();
        } catch (const std::exception& error) {
            fail_child("%s", error.what());
        }
    });
}

/// False: the process could not be put under rules, so there is nothing to see.
bool has_succeeded(Child& child) {
    const test::ChildEnd end = child.wait();
    if (WIFEXITED(end.status) && WEXITSTATUS(end.status) == skipped) {
        WARN("skipped: system calls cannot be filtered here");
        return false;
    }
    INFO(end.said);
    REQUIRE(end.signal() == 0);
    REQUIRE(end.succeeded());
    return true;
}

void expect(bool holds, const char* what) {
    if (!holds) {
        fail_child("FAILED: %s", what);
    }
}

// --- Two processes with two workers each -----------------------------------------------------------------------------

constexpr std::uint32_t number_count = 50;
constexpr PoolOptions pool_options{.buffer_bytes = 64, .buffer_count = 16};
constexpr PortOptions port_options{.capacity = 4};

/// A file that holds the numbers in order.
class NumberFile {
public:
    NumberFile() : descriptor_(memfd_create("numbers", MFD_CLOEXEC)) {
        for (std::uint32_t number = 0; number < number_count; ++number) {
            REQUIRE(write(descriptor_, &number, sizeof number) == sizeof number);
        }
    }
    NumberFile(const NumberFile&) = delete;
    NumberFile& operator=(const NumberFile&) = delete;
    ~NumberFile() { close(descriptor_); }
    [[nodiscard]] int descriptor() const { return descriptor_; }

private:
    int descriptor_;
};

/// Reads a number now and then, so that all others have fallen asleep, and sends it.
class NumberSource final : public Block {
public:
    NumberSource(BufferPool pool, int file) : pool_(*this, std::move(pool)), file_(file) {}

    OutputPort out{*this, "out"};

    WorkResult work() override {
        if (!out.is_ready()) {
            return WorkResult::need_output;
        }
        if (buffer_) {
            return request_.is_done ? send() : WorkResult::need_input;
        }
        if (sent_count_ == number_count) {
            return WorkResult::done;
        }
        if (monotonic_ns() < due_ns_) {
            wake_at(due_ns_);
            return WorkResult::need_input;
        }
        buffer_ = pool_.try_allocate();
        if (!buffer_) {
            return WorkResult::need_output;
        }
        buffer_.resize(sizeof(std::uint32_t));
        request_.descriptor = file_;
        request_.offset = std::int64_t{sent_count_} * std::int64_t{sizeof(std::uint32_t)};
        request_.bytes = buffer_.bytes();
        request_.pool = &pool_.pool().view();
        submit(request_);
        return WorkResult::need_input;
    }

private:
    WorkResult send() {
        if (request_.result != sizeof(std::uint32_t)) {
            throw std::runtime_error("read " + std::to_string(request_.result));
        }
        out.push(std::move(buffer_));
        ++sent_count_;
        due_ns_ = deadline_after(1'000'000);
        return WorkResult::progress;
    }

    PoolPort pool_;
    int file_;
    IoRequest request_;
    BufferPtr buffer_;
    std::uint32_t sent_count_ = 0;
    DeadlineNs due_ns_ = 0;
};

class Relay final : public Block {
public:
    InputPort in{*this, "in"};
    OutputPort out{*this, "out"};

    WorkResult work() override {
        if (!out.is_ready()) {
            return WorkResult::need_output;
        }
        BufferPtr buffer = in.try_pop();
        if (!buffer) {
            return WorkResult::need_input;
        }
        out.push(std::move(buffer));
        return WorkResult::progress;
    }
};

class NumberSink final : public Block {
public:
    InputPort in{*this, "in"};
    std::uint32_t received_count = 0;

    void start() override { has_started = true; }
    bool has_started = false;

    WorkResult work() override {
        const BufferPtr buffer = in.try_pop();
        if (!buffer) {
            return WorkResult::need_input;
        }
        if (test::read_number<std::uint32_t>(buffer) != received_count) {
            throw std::runtime_error("number " + std::to_string(received_count) + " is missing");
        }
        ++received_count;
        return WorkResult::progress;
    }
};

/// What a scheduler is given, and what has to come of it.
struct Wish {
    SchedulerOptions options = {};
    const char* environment = nullptr;
    WaitPath path = WaitPath::automatic; ///< that is taken; automatic: does not matter
    std::vector<std::string> notes = {}; ///< what it says about those that it would have liked better

    [[nodiscard]] SchedulerOptions prepared() const {
        if (environment != nullptr) {
            setenv("WEIR_WAIT_PATH", environment, 1);
        }
        SchedulerOptions made = options;
        made.worker_count = 2;
        made.spin_count = 0;
        return made;
    }
};

void expect_path(const Scheduler& scheduler, const Wish& wish) {
    const SchedulerCounters counters = scheduler.counters();
    const bool is_io_uring = wish.path == WaitPath::io_uring;
    const bool is_waitv = wish.path == WaitPath::futex_waitv;
    expect(scheduler.wait_path() == wish.path, std::string(to_string(scheduler.wait_path())).c_str());
    expect(counters.sleeps > 0, "it has slept");
    expect((counters.io_uring_enters > 0) == is_io_uring, "io_uring_enter");
    expect((counters.futex_waitvs > 0) == is_waitv, "futex_waitv");
    expect((counters.futex_waits > 0) == (!is_io_uring && !is_waitv), "futex");
    expect(is_io_uring || counters.fixed_requests == 0, "registered buffers");
    const std::string notes = scheduler.notes();
    for (const std::string& note : wish.notes) {
        expect(notes.find(note) != std::string::npos, ("notes: " + notes).c_str());
    }
    if (wish.notes.empty()) {
        expect(notes.find("is not to be had") == std::string::npos, ("notes: " + notes).c_str());
    }
}

void run_first(const Name& name, int file, const Wish& wish) {
    Domain domain = Domain::join(name);
    Scheduler scheduler(domain, wish.prepared());
    auto& source = scheduler.add<NumberSource>(domain.pool("numbers"), file);
    auto& relay = scheduler.add<Relay>();
    scheduler.connect(source.out, relay.in, {.capacity = port_options.capacity});
    relay.out.bind("between", {.port = port_options});
    scheduler.run();
    expect(scheduler.counters().requests == number_count, "its requests");
    expect_path(scheduler, wish);
}

void run_second(const Name& name, const Wish& wish) {
    Domain domain = Domain::join(name);
    Scheduler scheduler(domain, wish.prepared());
    auto& relay = scheduler.add<Relay>();
    auto& sink = scheduler.add<NumberSink>();
    relay.in.bind("between", {.port = port_options});
    scheduler.connect(relay.out, sink.in, {.capacity = port_options.capacity});
    scheduler.run();
    expect(sink.received_count == number_count, "all numbers");
    expect_path(scheduler, wish);
}

/// File, two workers, another process, and two workers there.
void run_graph(const Wish& wish, const Rules& rules) {
    const NumberFile file;
    const Name name;
    Domain domain = Domain::join(name);
    const BufferPool numbers = domain.pool("numbers", pool_options);
    Child first = under(rules, [&] { run_first(name, file.descriptor(), wish); });
    Child second = under(rules, [&] { run_second(name, wish); });
    if (has_succeeded(first) && has_succeeded(second)) {
        CHECK(numbers.free_count() == pool_options.buffer_count);
        CHECK(test::check(domain) == "");
    }
}

/// One scheduler with a timer alone, which is enough to sleep.
void run_timer(const Name& name, WaitPath path) {
    class Timer final : public Block {
        WorkResult work() override {
            if (due_ns_ == 0) {
                due_ns_ = deadline_after(1'000'000);
            }
            wake_at(due_ns_);
            return monotonic_ns() < due_ns_ ? WorkResult::need_input : WorkResult::done;
        }
        DeadlineNs due_ns_ = 0;
    };
    Scheduler scheduler(Domain::join(name), {.wait_path = path});
    scheduler.add<Timer>();
    scheduler.run();
}

/// Whether this kernel, and what surrounds us, has the path.
bool is_to_be_had(WaitPath path) {
    const Name name;
    Child child([&] {
        unsetenv("WEIR_WAIT_PATH");
        try {
            run_timer(name, path);
        } catch (const std::exception& error) {
            fail_child("%s", error.what());
        }
    });
    const test::ChildEnd end = child.wait();
    if (!end.succeeded()) {
        WARN("skipped: " << to_string(path) << " is not to be had here: " << end.said);
    }
    return end.succeeded();
}

Rules all_but(WaitPath path) {
    Rules rules;
    if (path != WaitPath::io_uring) {
        rules.insert(rules.end(), {{call_io_uring_setup, end_process},
                                   {call_io_uring_enter, end_process},
                                   {call_io_uring_register, end_process}});
    }
    if (path != WaitPath::futex_waitv) {
        rules.push_back({call_futex_waitv, end_process});
    }
    return rules;
}

const std::string no_io_uring = "io_uring is not to be had";
const std::string no_waitv = "futex_waitv is not to be had";

} // namespace

TEST_CASE("a demanded wait path makes its own system call and no other path's", "[wait_path]") {
    const WaitPath path = GENERATE(WaitPath::io_uring, WaitPath::futex_waitv, WaitPath::recheck);
    const bool by_environment = GENERATE(false, true);
    CAPTURE(to_string(path), by_environment);
    if (is_to_be_had(path)) {
        const std::string text(to_string(path));
        Wish wish{.path = path};
        by_environment ? static_cast<void>(wish.environment = text.c_str())
                       : static_cast<void>(wish.options.wait_path = path);
        run_graph(wish, all_but(path));
    }
}

TEST_CASE("who sleeps on a wait path makes its system call, and is killed where that kills", "[wait_path]") {
    const auto [path, call] =
        GENERATE(std::pair(WaitPath::io_uring, call_io_uring_setup), std::pair(WaitPath::io_uring, call_io_uring_enter),
                 std::pair(WaitPath::futex_waitv, call_futex_waitv));
    CAPTURE(to_string(path), call);
    if (is_to_be_had(path)) {
        const Name name;
        Child child = under({{call, end_process}}, [&name, path = path] { run_timer(name, path); });
        const test::ChildEnd end = child.wait();
        if (WIFEXITED(end.status) && WEXITSTATUS(end.status) == skipped) {
            WARN("skipped: system calls cannot be filtered here");
            return;
        }
        INFO(end.said);
        CHECK(end.signal() == SIGSYS);
    }
}

TEST_CASE("the best wait path is taken unless one is demanded", "[wait_path]") {
    const char* const environment = GENERATE(static_cast<const char*>(nullptr), "", "automatic");
    if (is_to_be_had(WaitPath::io_uring)) {
        run_graph({.environment = environment, .path = WaitPath::io_uring}, all_but(WaitPath::io_uring));
    }
}

TEST_CASE("where io_uring is forbidden, workers sleep in futex_waitv and say so", "[wait_path]") {
    // As containers and the administrator forbid it, old kernels have none, and old kernels have one without futexes; and one
    // that turns out to be no good only when it is set up.
    const Rules rules = GENERATE(values<Rules>({
        {{call_io_uring_setup, refuse(EPERM)}},
        {{call_io_uring_setup, refuse(ENOSYS)}},
        {{call_io_uring_setup, refuse(ENOMEM)}},
        {{call_io_uring_register, refuse(EINVAL), register_probe}},
        {{call_io_uring_enter, refuse(EPERM)}},
    }));
    if (is_to_be_had(WaitPath::futex_waitv)) {
        run_graph({.path = WaitPath::futex_waitv, .notes = {no_io_uring}}, rules);
    }
}

TEST_CASE("where io_uring fails when workers set it up, they sleep in futex_waitv and say so", "[wait_path]") {
    if (is_to_be_had(WaitPath::io_uring) && is_to_be_had(WaitPath::futex_waitv)) {
        run_graph({.path = WaitPath::futex_waitv, .notes = {"io_uring_register_files"}},
                  {{call_io_uring_register, refuse(EPERM), register_files}});
    }
}

TEST_CASE("where futex_waitv is forbidden too, workers look again and say so", "[wait_path]") {
    const int error = GENERATE(EPERM, ENOSYS);
    CAPTURE(error);
    run_graph({.path = WaitPath::recheck, .notes = {no_io_uring, no_waitv}},
              {{call_io_uring_setup, refuse(EPERM)}, {call_futex_waitv, refuse(error)}});
}

TEST_CASE("a demanded wait path that is forbidden is an error at the start, and loses nothing", "[wait_path]") {
    struct Case {
        WaitPath path;
        Rule rule;
        std::string advice;
    };
    const Case refused = GENERATE(values<Case>({
        {WaitPath::io_uring, {call_io_uring_setup, refuse(EPERM)}, "WEIR_WAIT_PATH"},
        {WaitPath::io_uring, {call_io_uring_setup, refuse(ENOSYS)}, "WEIR_WAIT_PATH"},
        {WaitPath::io_uring, {call_io_uring_register, refuse(EINVAL), register_probe}, "WEIR_WAIT_PATH"},
        {WaitPath::io_uring, {call_io_uring_enter, refuse(EPERM)}, "WEIR_WAIT_PATH"},
        {WaitPath::futex_waitv, {call_futex_waitv, refuse(EPERM)}, "WEIR_WAIT_PATH"},
        {WaitPath::futex_waitv, {call_futex_waitv, refuse(ENOSYS)}, "WEIR_WAIT_PATH"},
    }));
    const bool by_environment = GENERATE(false, true);
    CAPTURE(to_string(refused.path), refused.rule.call, refused.rule.action, by_environment);
    if (!is_to_be_had(refused.path)) {
        return;
    }
    const std::string text(to_string(refused.path));
    Wish wish;
    by_environment ? static_cast<void>(wish.environment = text.c_str())
                   : static_cast<void>(wish.options.wait_path = refused.path);
    const Name name;
    Domain domain = Domain::join(name);
    BufferPool numbers = domain.pool("numbers", pool_options);
    std::optional<Producer> queued = domain.producer("between", port_options);
    for (std::uint32_t number = 0; number < port_options.capacity; ++number) {
        BufferPtr buffer = numbers.try_allocate_by_scan();
        REQUIRE(buffer);
        test::write_number(buffer, number);
        REQUIRE(queued->try_push(std::move(buffer)) == PushResult::ok);
    }
    queued.reset();
    Child child = under({refused.rule}, [&] {
        Domain own = Domain::join(name);
        {
            Scheduler scheduler(own, wish.prepared());
            auto& relay = scheduler.add<Relay>();
            auto& sink = scheduler.add<NumberSink>();
            relay.in.bind("between");
            scheduler.connect(relay.out, sink.in);
            for (const unsigned times : {1U, 2U}) {
                try {
                    scheduler.start();
                    fail_child("FAILED: it started, time %u", times);
                } catch (const std::system_error& error) {
                    const std::string what = error.what();
                    expect(what.find(refused.advice) != std::string::npos, what.c_str());
                }
                expect(!scheduler.is_running(), "it does not run");
            }
            scheduler.wait();
            expect(!sink.has_started && scheduler.counters().work_calls == 0, "no block was called");
        }
        // What can be had takes it from there.
        unsetenv("WEIR_WAIT_PATH");
        Scheduler scheduler(own, {.wait_path = WaitPath::recheck});
        auto& sink = scheduler.add<NumberSink>();
        sink.in.bind("between");
        scheduler.run();
        expect(sink.received_count == port_options.capacity, "all that was queued");
    });
    if (has_succeeded(child)) {
        CHECK(numbers.free_count() == pool_options.buffer_count);
        CHECK(test::check(domain) == "");
    }
}

TEST_CASE("a WEIR_WAIT_PATH that names no path is an error", "[wait_path]") {
    const char* const environment = GENERATE("uring", "io_uring ", "IO_URING", "0");
    const Name name;
    Domain domain = Domain::join(name);
    Child child = under({}, [&] {
        Domain own = Domain::join(name);
        setenv("WEIR_WAIT_PATH", environment, 1);
        try {
            const Scheduler scheduler(own);
            fail_child("FAILED: it was made");
        } catch (const std::invalid_argument& error) {
            const std::string what = error.what();
            expect(what.find(environment) != std::string::npos && what.find("recheck") != std::string::npos,
                   what.c_str());
        }
    });
    static_cast<void>(has_succeeded(child));
}
