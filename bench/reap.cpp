// Reaping: a process with thousands of buffers is killed for real, and another gives back what it held.
#include "harness.hpp"

#include <cerrno>
#include <vector>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr std::uint32_t buffer_count = 4'096;
constexpr std::uint32_t port_count = 16;
constexpr std::uint32_t port_capacity = 1'024;
constexpr std::uint32_t message_count = 2'048;

/// Half of the buffers are queued in the ports when their owner is killed, half are held by it.
[[noreturn]] void live_until_killed(const bench::SharedDomain& domain, int ready) {
    bench::SharedDomain::Member member = domain.join();
    std::vector<weir::BufferPtr> held;
    std::vector<weir::Producer> producers;
    for (const weir::Port& port : member.ports) {
        producers.emplace_back(port);
    }
    for (std::uint32_t number = 0; number < buffer_count; ++number) {
        weir::BufferPtr buffer = member.pools[0].try_allocate();
        if (buffer && number % 2 == 0) {
            static_cast<void>(producers[number / 2 % port_count].try_push(std::move(buffer)));
        } else {
            held.push_back(std::move(buffer));
        }
    }
    const char done = 1;
    static_cast<void>(!write(ready, &done, 1));
    for (;;) {
        pause();
    }
}

void wait_for(pid_t child) {
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
        bench::require(errno == EINTR, "the victim is gone");
    }
    bench::require(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the victim ended before it was killed");
}

void measure_dead_process(bench::Results& results) {
    bench::Trial trial(2);
    const std::vector<weir::PortOptions> ports(
        port_count, {.capacity = port_capacity, .when_unconsumed = weir::WhenUnconsumed::fill});
    const bench::SharedDomain domain({{.buffer_bytes = 64, .buffer_count = buffer_count}}, ports);
    trial.run([&](bench::Process& me) {
        bench::SharedDomain::Member member = domain.join();
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            constexpr unsigned death_count_max = 10;
            const auto death_count = static_cast<unsigned>(bench::scaled(death_count_max, 1));
            double reap_ns = 0, reap_max_ns = 0;
            for (unsigned death = 0; death < death_count; ++death) {
                int ready[2];
                bench::require(pipe(ready) == 0, "cannot make a pipe");
                const pid_t victim = fork();
                bench::require(victim >= 0, "cannot fork");
                if (victim == 0) {
                    live_until_killed(domain, ready[1]);
                }
                close(ready[1]);
                char done = 0;
                bench::require(read(ready[0], &done, 1) == 1, "the victim has failed");
                close(ready[0]);
                kill(victim, SIGKILL);
                wait_for(victim);

                // Slots 0 and 1 are the trial's processes.
                const weir::ProcessTable::Entry entry = member.me.table.entry(2);
                bench::require(entry.alive, "the victim is in another slot");
                const bench::Stopwatch stopwatch;
                const weir::ReapResult result =
                    weir::reap({member.me.table, 2, entry.incarnation}, member.buffers, member.ports);
                const double elapsed_ns = stopwatch.elapsed_ns();
                reap_ns += elapsed_ns / death_count;
                reap_max_ns = std::max(reap_max_ns, elapsed_ns);
                bench::require(!result.error && result.ended_entry, "reaping has failed");
                bench::require(result.freed_reference_count == buffer_count - message_count &&
                                   result.kept_message_count == message_count,
                               "reaping has freed or kept what it must not");
                std::uint32_t received_count = 0;
                for (const weir::Port& port : member.ports) {
                    weir::Consumer consumer(port);
                    while (consumer.try_pop()) {
                        ++received_count;
                    }
                }
                bench::require(received_count == message_count, "messages of the dead were lost");
            }
            me.record("reap_ns", reap_ns);
            me.record("reap_max_ns", reap_max_ns);
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
        member.leave();
    });
    domain.require_idle();
    results = trial.results();
}

const bench::Registration dead_process("reap/dead_process", "reap_ns", measure_dead_process);

} // namespace
