// Domains: joining, how soon a death is known, reaping in a named domain, and what members cost that do nothing.
#include "harness.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

void collect(pid_t child) {
    while (waitpid(child, nullptr, 0) < 0) {
        bench::require(errno == EINTR, "a child is gone");
    }
}

/// A process that does `body`, says that it is ready, and waits to be killed.
template <class Body>
pid_t start_victim(Body&& body) {
    int ready[2];
    bench::require(pipe(ready) == 0, "cannot make a pipe");
    const pid_t victim = fork();
    bench::require(victim >= 0, "cannot fork");
    if (victim == 0) {
        body([&] {
            static_cast<void>(!write(ready[1], "r", 1));
            for (;;) {
                pause();
            }
        });
        _exit(1);
    }
    close(ready[1]);
    char done = 0;
    const bool is_ready = read(ready[0], &done, 1) == 1;
    close(ready[0]);
    bench::require(is_ready, "the victim has failed");
    return victim;
}

double spawn_ns() {
    const bench::Stopwatch stopwatch;
    const pid_t child = fork();
    bench::require(child >= 0, "cannot fork");
    if (child == 0) {
        execl("/bin/true", "true", static_cast<char*>(nullptr));
        _exit(127);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
        bench::require(errno == EINTR, "a child is gone");
    }
    bench::require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "/bin/true has failed");
    return stopwatch.elapsed_ns();
}

void measure_join(bench::Results& results) {
    const bench::DomainName name;
    const weir::Domain stays = weir::Domain::join(name.text());
    std::vector<double> joins, spawns, leaves;
    for (std::uint64_t round = 0; round < bench::scaled(100, 2); ++round) {
        spawns.push_back(spawn_ns());
        const bench::Stopwatch stopwatch;
        weir::Domain domain = weir::Domain::join(name.text());
        joins.push_back(stopwatch.elapsed_ns());
        const bench::Stopwatch leaving;
        domain.leave();
        leaves.push_back(leaving.elapsed_ns());
    }
    results["join_ns"] = bench::median(joins);
    results["leave_ns"] = bench::median(leaves);
    results["spawn_ns"] = bench::median(spawns);
}

struct Size {
    std::uint32_t buffer_count;
    std::uint32_t port_count;
    std::uint32_t port_capacity;
    std::uint32_t message_count; ///< as many are queued when their owner is killed, and as many are held by it
};

/// From the lock's release to the end of reaping, by a member that has mapped everything before.
double reap_ns(const std::string& name, weir::Domain& survivor, const Size& size) {
    const pid_t victim = start_victim([&](auto&& ready) {
        weir::Domain domain = weir::Domain::join(name);
        weir::BufferPool pool = domain.pool("pool");
        std::vector<weir::Producer> producers;
        for (std::uint32_t number = 0; number < size.port_count; ++number) {
            producers.push_back(domain.producer("port" + std::to_string(number)));
        }
        std::vector<weir::BufferPtr> held;
        for (std::uint32_t number = 0; number < size.message_count; ++number) {
            bench::require(producers[number % size.port_count].try_push(pool.allocate()) == weir::PushResult::ok,
                           "no room");
            held.push_back(pool.allocate());
        }
        ready();
    });
    bench::require(survivor.reap().dead_count == 0, "the victim lives");
    kill(victim, SIGKILL);
    collect(victim);
    const bench::Stopwatch stopwatch;
    const weir::ReapReport report = survivor.reap();
    const double elapsed_ns = stopwatch.elapsed_ns();
    bench::require(!report.error && report.ended_count == 1 && report.freed_reference_count == size.message_count &&
                       report.kept_message_count == size.message_count,
                   "reaping has freed or kept what it must not");
    std::uint32_t received_count = 0;
    for (std::uint32_t number = 0; number < size.port_count; ++number) {
        weir::Consumer consumer = survivor.consumer("port" + std::to_string(number));
        while (consumer.try_pop()) {
            ++received_count;
        }
    }
    bench::require(received_count == size.message_count, "messages of the dead were lost");
    return elapsed_ns;
}

double reap_ns(const Size& size, std::uint64_t death_count) {
    const bench::DomainName name;
    weir::Domain survivor = weir::Domain::join(name.text());
    weir::BufferPool pool = survivor.pool("pool", {.buffer_bytes = 64, .buffer_count = size.buffer_count});
    for (std::uint32_t number = 0; number < size.port_count; ++number) {
        static_cast<void>(
            survivor.port("port" + std::to_string(number),
                          {.capacity = size.port_capacity, .when_unconsumed = weir::WhenUnconsumed::fill}));
    }
    std::vector<double> times;
    for (std::uint64_t death = 0; death < death_count; ++death) {
        times.push_back(reap_ns(name.text(), survivor, size));
    }
    bench::require(pool.free_count() == size.buffer_count, "buffers are lost");
    bench::require(survivor.check().empty(), "the domain is broken");
    return bench::median(times);
}

void measure_reap(bench::Results& results) {
    results["reap_ns"] = reap_ns({4'096, 16, 1'024, 2'048}, bench::scaled(10, 1));
}

void measure_reap_largest(bench::Results& results) {
    const bool tiny = bench::is_tiny();
    results["reap_ns"] = reap_ns({tiny ? 65'536U : 1'048'576U, tiny ? 16U : 1'024U, 65'536, 4'096}, 1);
}

/// An observer's check of the largest domain, from opening it on: a third of the buffers held, a third in ports.
void measure_check(bench::Results& results) {
    const bool tiny = bench::is_tiny();
    const std::uint32_t buffer_count = tiny ? 4'096 : 1'048'576;
    const std::uint32_t port_count = 16;
    const std::uint32_t port_capacity = tiny ? 256 : 65'536;
    const bench::DomainName name;
    weir::Domain domain = weir::Domain::join(name.text());
    weir::BufferPool pool = domain.pool("pool", {.buffer_bytes = 64, .buffer_count = buffer_count});
    std::vector<weir::Producer> producers;
    for (std::uint32_t number = 0; number < port_count; ++number) {
        producers.push_back(
            domain.producer("port" + std::to_string(number),
                            {.capacity = port_capacity, .when_unconsumed = weir::WhenUnconsumed::fill}));
    }
    std::vector<weir::BufferPtr> held;
    for (std::uint32_t number = 0; number < buffer_count / 3; ++number) {
        bench::require(producers[number % port_count].push(pool.allocate()) == weir::PushResult::ok, "no room");
        held.push_back(pool.allocate());
    }
    std::vector<double> checks, looks;
    for (std::uint64_t round = 0; round < bench::scaled(5, 1); ++round) {
        const bench::Stopwatch stopwatch;
        weir::DomainObserver observer(name.text());
        weir::DomainCensus census;
        const bool is_sound = observer.check(&census).empty();
        checks.push_back(stopwatch.elapsed_ns());
        bench::require(is_sound && census.held_reference_count == held.size() &&
                           census.queued_reference_count == held.size(),
                       "the check counted wrong");
        const bench::Stopwatch looking;
        const weir::DomainSnapshot seen = observer.look();
        looks.push_back(looking.elapsed_ns());
        bench::require(seen.pools[0].queued_count == held.size(), "the look counted wrong");
    }
    results["check_ns"] = bench::median(checks);
    results["look_ns"] = bench::median(looks);
}

/// From SIGKILL to a peer's knowing: one that waits in pop() for the end of the stream, and one that watches pidfds.
void measure_death(bench::Results& results) {
    const bench::DomainName name;
    weir::Domain domain = weir::Domain::join(name.text());
    weir::Consumer in = domain.consumer("raw", {.capacity = 8});
    std::vector<double> by_recheck, by_watch, interval_shares;
    constexpr double interval_ns = 100'000'000; // the default
    for (std::uint64_t round = 0; round < bench::scaled(20, 1); ++round) {
        const auto attach = [&](auto&& ready) {
            weir::Domain inner = weir::Domain::join(name.text());
            const weir::Producer out = inner.producer("raw");
            ready();
        };
        {
            const pid_t victim = start_victim(attach);
            std::int64_t killed_ns = 0;
            // The waiter has to be asleep when the death comes, at any point of its interval.
            std::thread killer([&, delay_ms = 7 * (round % 15)] {
                std::this_thread::sleep_for(std::chrono::milliseconds(5 + delay_ms));
                killed_ns = weir::monotonic_ns();
                kill(victim, SIGKILL);
            });
            bench::require(!in.pop() && in.stream_end() == weir::StreamEnd::died, "the stream has not ended");
            const std::int64_t known_ns = weir::monotonic_ns();
            killer.join();
            by_recheck.push_back(static_cast<double>(known_ns - killed_ns));
            collect(victim);
        }
        {
            const pid_t victim = start_victim(attach);
            weir::PeerWatch watch(domain);
            bench::require(watch.watched_count() == 1, "the victim is not watched");
            const bench::Stopwatch stopwatch;
            kill(victim, SIGKILL);
            pollfd wanted{watch.descriptor(), POLLIN, 0};
            while (poll(&wanted, 1, -1) != 1) {
                bench::require(errno == EINTR, "poll");
            }
            const weir::ReapReport report = watch.handle();
            by_watch.push_back(stopwatch.elapsed_ns());
            bench::require(report.ended_count == 1, "the victim was not found dead");
            bench::require(in.stream_end() == weir::StreamEnd::died, "the stream has not ended");
            collect(victim);
        }
    }
    results["recheck_max_ns"] = *std::max_element(by_recheck.begin(), by_recheck.end());
    results["recheck_ns"] = bench::median(by_recheck);
    results["interval_ns"] = interval_ns;
    results["watch_ns"] = bench::median(by_watch);
    results["watch_max_ns"] = *std::max_element(by_watch.begin(), by_watch.end());
}

// --- Idle members ----------------------------------------------------------------------------------------------------

constexpr unsigned idle_member_count = 250;
constexpr std::int64_t idle_interval_ns = 50'000'000;

/// Members that all wait for a message that never comes, each in a thread of its own.
[[noreturn]] void live_idly(const std::string& name) {
    weir::JoinOptions options;
    options.recheck_interval_ns = idle_interval_ns;
    std::vector<weir::Domain> members;
    std::vector<weir::Consumer> consumers;
    for (unsigned number = 0; number < idle_member_count; ++number) {
        members.push_back(weir::Domain::join(name, options));
        consumers.push_back(members.back().consumer("raw", {.capacity = 8}));
    }
    const weir::Producer keeps_open = members.front().producer("raw");
    std::vector<std::thread> threads;
    raise(SIGSTOP); // from here on system calls are counted
    for (weir::Consumer& consumer : consumers) {
        threads.emplace_back([&consumer] { static_cast<void>(consumer.pop()); });
    }
    for (;;) {
        pause();
    }
}

/// How many liveness checks 250 idle members make for each member and interval, counted as system calls.
void measure_idle(bench::Results& results) {
    const bench::DomainName name;
    const pid_t child = fork();
    bench::require(child >= 0, "cannot fork");
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        live_idly(name.text());
    }
    int status = 0;
    bench::require(waitpid(child, &status, 0) == child && WIFSTOPPED(status), "the members did not come up");
    ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL);
    ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
    std::uint64_t check_count = 0, wait_count = 0;
    // Counting starts when all threads have had their first look, an interval or two later.
    const std::int64_t begin_ns = weir::monotonic_ns() + 4 * idle_interval_ns;
    const std::int64_t end_ns = begin_ns + static_cast<std::int64_t>(bench::scaled(40, 4)) * idle_interval_ns;
    std::int64_t now_ns = 0;
    while ((now_ns = weir::monotonic_ns()) < end_ns) {
        const pid_t thread = waitpid(-1, &status, __WALL);
        bench::require(thread > 0 && WIFSTOPPED(status), "the members have ended");
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            __ptrace_syscall_info info{};
            ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof(info), &info);
            if (info.op == PTRACE_SYSCALL_INFO_ENTRY && now_ns >= begin_ns) {
                check_count += info.entry.nr == SYS_fcntl && info.entry.args[1] == F_OFD_GETLK ? 1 : 0;
                wait_count += info.entry.nr == SYS_futex ? 1 : 0;
            }
        }
        ptrace(PTRACE_SYSCALL, thread, nullptr, nullptr);
    }
    kill(child, SIGKILL);
    while (waitpid(-1, &status, __WALL) > 0) {
    }
    const double intervals = static_cast<double>(end_ns - begin_ns) / static_cast<double>(idle_interval_ns);
    bench::require(check_count > 0, "nobody has looked for the dead");
    results["checks_count"] = static_cast<double>(check_count) / (intervals * idle_member_count);
    results["waits_count"] = static_cast<double>(wait_count) / (intervals * idle_member_count);
    results["time_ns"] = static_cast<double>(end_ns - begin_ns);
}

const bench::Registration join("domain/join", "join_ns", measure_join);
const bench::Registration reap("domain/reap", "reap_ns", measure_reap);
const bench::Registration reap_largest("domain/reap_largest", "reap_ns", measure_reap_largest);
const bench::Registration check("domain/check", "check_ns", measure_check);
const bench::Registration death("domain/death", "recheck_ns", measure_death);
const bench::Registration idle("domain/idle", "time_ns", measure_idle);

} // namespace
