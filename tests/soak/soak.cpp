// The soak: separately started processes in a named domain, killed, stopped, continued and restarted at random, and a
// ledger of every message outside of the library (docs/soak.md).
//
//     soak [--kills N] [--minutes M] [--seed S]
//
// It ends after N kills or M minutes, whatever comes first, prints the balance and the seed, and returns non-zero where a
// message is unaccounted for or the domain is not sound.
#include "killer.hpp"
#include "ledger.hpp"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>

namespace {

using namespace soak;

constexpr int pipe_bytes = 1 << 20;
constexpr std::int64_t second_ns = 1'000'000'000;
constexpr std::int64_t silence_max_ns = 300 * second_ns;

volatile int is_over = 0;

struct Options {
    std::uint64_t kill_count = ~std::uint64_t{0};
    double minutes = 24 * 60;
    std::uint64_t seed = test::seed();
    std::int64_t progress_ns = 10 * second_ns;
};

[[noreturn]] void give_up(const char* what) {
    std::fprintf(stderr, "soak: %s: %s\n", what, std::strerror(errno));
    std::exit(2);
}

/// The pipe of one seat.
struct Pipe {
    int read_end = -1;
    int write_end = -1;
    bool is_open = true;

    [[nodiscard]] static Pipe make() {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) != 0) {
            give_up("pipe2");
        }
        fcntl(ends[0], F_SETFL, O_NONBLOCK);
        fcntl(ends[1], F_SETPIPE_SZ, pipe_bytes); // where that is not allowed, the smaller ones do
        return {ends[0], ends[1]};
    }
};

std::vector<Seat> plan_seats() {
    std::vector<Seat> seats;
    const auto add = [&seats](Role role, unsigned count, bool has_steady) {
        for (unsigned number = 0; number < count; ++number) {
            seats.push_back({role, has_steady && number == 0, -1});
        }
    };
    add(Role::producer, 4, true);
    add(Role::worker, 4, true);
    add(Role::collector, 5, true);
    add(Role::reaper, 1, false);
    add(Role::visitor, 3, false);
    add(Role::founder, 6, false);
    return seats;
}

class Soak {
public:
    explicit Soak(const Options& options)
        : options_(options), domain_("soak." + std::to_string(getpid())), ledger_(port_rules()) {}

    /// Whether all is well.
    [[nodiscard]] bool run() {
        start_killer();
        read_until_all_ended();
        int status = 0;
        while (waitpid(killer_, &status, 0) < 0 && errno == EINTR) {
        }
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            complain("the killer did not end well: a life failed");
        }
        progress();
        std::vector<Ledger::PortTotals> totals(port_count);
        look_at_domain(totals);
        look_at_side_domain();
        ledger_.settle(totals);
        report(totals);
        return complaints_.empty() && ledger_.fault_count() == 0;
    }

    /// What is left of the domains, whatever happened.
    void remove_names() {
        for (const std::string& name : {domain_, side_domain(domain_)}) {
            weir::Domain::RemoveOptions options;
            options.force = true;
            options.lock_file = true;
            weir::Domain::remove(name, options);
        }
    }

private:
    [[nodiscard]] static std::vector<Ledger::PortRules> port_rules() {
        std::vector<Ledger::PortRules> rules;
        for (const PortPlan& plan : port_plans) {
            rules.push_back({plan.name, plan.options.when_full == weir::WhenFull::drop_oldest});
        }
        return rules;
    }

    void complain(const std::string& what) { complaints_.push_back(what); }

    void start_killer() {
        KillPlan plan;
        plan.domain = domain_;
        plan.seed = options_.seed;
        plan.kill_count = options_.kill_count;
        start_ns_ = weir::monotonic_ns();
        plan.end_ns = start_ns_ + static_cast<std::int64_t>(options_.minutes * 60.0 * static_cast<double>(second_ns));
        plan.is_over = &is_over;
        plan.seats = plan_seats();
        for (Seat& seat : plan.seats) {
            pipes_.push_back(Pipe::make());
            seat.diary = pipes_.back().write_end;
        }
        std::fflush(nullptr);
        const pid_t bookkeeper = getpid();
        killer_ = fork();
        if (killer_ < 0) {
            give_up("fork");
        }
        if (killer_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != bookkeeper) {
                _exit(1);
            }
            for (const Pipe& pipe : pipes_) {
                close(pipe.read_end);
            }
            _exit(run_killer(plan) ? 0 : 1);
        }
        for (const Pipe& pipe : pipes_) {
            close(pipe.write_end);
        }
    }

    /// Everything that a pipe holds; true where that was anything.
    bool read_pipe(Pipe& pipe) {
        bool has_read = false;
        for (;;) {
            const ssize_t count = read(pipe.read_end, buffer_.data(), buffer_.size() * sizeof(Record));
            if (count > 0) {
                has_read = true;
                if (count % static_cast<ssize_t>(sizeof(Record)) != 0) {
                    complain("a pipe holds half a record");
                }
                ledger_.take(std::span(buffer_).first(static_cast<std::size_t>(count) / sizeof(Record)));
                if (count < static_cast<ssize_t>(buffer_.size() * sizeof(Record))) {
                    return has_read;
                }
            } else if (count < 0 && errno == EINTR) {
                continue;
            } else {
                if (count == 0) {
                    pipe.is_open = false;
                    close(pipe.read_end);
                }
                return has_read;
            }
        }
    }

    void read_until_all_ended() {
        std::int64_t next_progress_ns = start_ns_ + options_.progress_ns;
        std::int64_t last_heard_ns = start_ns_;
        for (bool is_any_open = true; is_any_open;) {
            bool has_read = false;
            is_any_open = false;
            for (Pipe& pipe : pipes_) {
                has_read |= pipe.is_open && read_pipe(pipe);
                is_any_open |= pipe.is_open;
            }
            ledger_.end_round();
            const std::int64_t now_ns = weir::monotonic_ns();
            if (has_read) {
                last_heard_ns = now_ns;
            } else if (now_ns - last_heard_ns > silence_max_ns) {
                complain("nothing was heard of anybody for " + std::to_string(silence_max_ns / second_ns) + " s");
                kill(killer_, SIGKILL);
                return;
            }
            if (now_ns >= next_progress_ns) {
                progress();
                next_progress_ns = now_ns + options_.progress_ns;
            }
            if (is_over != 0 && !was_told_) {
                was_told_ = true;
                kill(killer_, SIGUSR1);
            }
            usleep(2000);
        }
    }

    void progress() {
        const double seconds = static_cast<double>(weir::monotonic_ns() - start_ns_) / static_cast<double>(second_ns);
        const Ledger::Lives& lives = ledger_.lives();
        std::printf("soak: %.0f s, %" PRIu64 " kills (%.0f a second), %" PRIu64 " stops, %" PRIu64
                    " messages pushed, %" PRIu64 " open, %" PRIu64 " faults\n",
                    seconds, lives.killed, static_cast<double>(lives.killed) / seconds, lives.stopped,
                    ledger_.pushed_count(), ledger_.open_count(), ledger_.fault_count());
        std::fflush(stdout);
    }

    /// Reaps, pops what is still queued, and looks whether all is as it was before anybody came.
    void look_at_domain(std::vector<Ledger::PortTotals>& totals) {
        const weir::DomainNames names(geteuid(), domain_);
        {
            weir::Domain domain = weir::Domain::join(domain_);
            for (unsigned number = 0; number < port_count; ++number) {
                drain(domain, number);
                const weir::Port port = domain.port(port_plans[number].name, port_plans[number].options);
                const weir::PortCounters in = port.counters(weir::PortEnd::producer);
                totals[number] = {in.messages, port.counters(weir::PortEnd::consumer).messages, in.dropped};
            }
            std::uint32_t buffer_count = 0;
            for (const PoolPlan& plan : pool_plans) {
                buffer_count += domain.pool(plan.name, plan.options).buffer_count();
            }
            check(domain, buffer_count);
            expect_files(names, 2 + 2 * pool_plans.size() + port_count, "while one is a member");
            domain.leave();
        }
        weir::Domain::remove(domain_); // it was joined to be kept
        expect_files(names, 1, "after it was removed");
    }

    void look_at_side_domain() {
        weir::Domain domain = weir::Domain::join(side_domain(domain_));
        std::uint32_t buffer_count = 0;
        std::uint32_t queued_count = 0;
        for (const std::string& name : domain.port_names()) {
            weir::Consumer in = domain.consumer(name);
            while (in.try_pop()) {
                ++queued_count;
            }
        }
        for (const std::string& name : domain.pool_names()) {
            buffer_count += domain.pool(name).buffer_count();
        }
        check(domain, buffer_count);
        domain.leave();
        expect_files(weir::DomainNames(geteuid(), side_domain(domain_)), 1, "after the last has left");
    }

    void drain(weir::Domain& domain, unsigned number) {
        weir::Consumer in = domain.consumer(port_plans[number].name, port_plans[number].options);
        for (;;) {
            std::array<Record, 3> records{};
            records[0].event = Event::pop_begun;
            records[0].time_ns = weir::monotonic_ns();
            const weir::BufferPtr buffer = in.try_pop();
            if (!buffer) {
                break;
            }
            const std::optional<MessageId> message = read_message(buffer);
            if (!message) {
                complain(std::string("a torn message was left in ") + port_plans[number].name);
                continue;
            }
            records[1].event = Event::pop_ended;
            records[2].event = Event::popped;
            records[2].message = *message;
            records[2].time_ns = weir::monotonic_ns();
            for (Record& record : records) {
                record.port = static_cast<std::uint8_t>(number);
                record.count = 1;
            }
            ledger_.take(records);
            ++drained_[number];
        }
        if (in.last_error()) {
            complain(std::string("popping what was left in ") + port_plans[number].name + ": " +
                     in.last_error().message());
        }
    }

    void check(weir::Domain& domain, std::uint32_t buffer_count) {
        weir::DomainCensus census;
        for (const std::string& broken : domain.check(&census)) {
            complain(domain.name() + ": " + broken);
        }
        if (census.free_count != buffer_count || census.held_reference_count != 0 ||
            census.queued_reference_count != 0) {
            complain(domain.name() + ": of " + std::to_string(buffer_count) + " buffers, " +
                     std::to_string(census.free_count) + " are free, " + std::to_string(census.held_reference_count) +
                     " references held and " + std::to_string(census.queued_reference_count) + " queued");
        }
        if (domain.members().size() != 1) {
            complain(domain.name() + ": " + std::to_string(domain.members().size() - 1) +
                     " members are there that were not reaped");
        }
    }

    void expect_files(const weir::DomainNames& names, std::size_t count, const char* when) {
        const std::vector<std::string> files = weir::list_segments(names.prefix());
        if (files.size() != count) {
            std::string text = names.domain() + ": " + std::to_string(files.size()) + " names in /dev/shm and not " +
                               std::to_string(count) + ", " + when + ":";
            for (const std::string& file : files) {
                text += " " + file;
            }
            complain(text);
        }
    }

    void report(const std::vector<Ledger::PortTotals>& totals) {
        std::printf("\n%-8s%12s%12s%10s%10s%10s%12s%12s%12s%12s\n", "port", "pushed", "popped", "drained", "dropped",
                    "refused", "in doubt", "of it there", "dead had it", "unaccounted");
        std::uint64_t unaccounted = 0;
        for (unsigned number = 0; number < port_count; ++number) {
            const Ledger::PortBalance& balance = ledger_.balance(number);
            std::printf("%-8s%12" PRIu64 "%12" PRIu64 "%10" PRIu64 "%10" PRIu64 "%10" PRIu64 "%12" PRIu64 "%12" PRIu64
                        "%12" PRIu64 "%12" PRIu64 "\n",
                        port_plans[number].name, balance.pushed, balance.popped - drained_[number], drained_[number],
                        totals[number].dropped, balance.refused, balance.doubtful, balance.doubtful_sure,
                        balance.claimed_by_dead, balance.unaccounted);
            unaccounted += balance.unaccounted;
        }
        const Ledger::Lives& lives = ledger_.lives();
        std::printf(
            "\n%" PRIu64 " processes were started (%" PRIu64 " executed anew); %" PRIu64 " memberships, and %" PRIu64
            " times joining was busy up to its deadline.\n%" PRIu64 " processes left by themselves, %" PRIu64
            " were stopped; the reapers reaped %" PRIu64 ", the others the rest. Killed:",
            lives.started, lives.executed, lives.joined, lives.refused, lives.left, lives.stopped, lives.reaped);
        for (const auto& [at, count] : lives.killed_at) {
            std::printf(" %" PRIu64 " %s;", count, at.c_str());
        }
        std::printf("\n");
        std::vector<std::string> faults = ledger_.faults();
        std::ranges::copy(complaints_, std::back_inserter(faults));
        for (const std::string& line : faults) {
            std::printf("FAULT: %s\n", line.c_str());
        }
        std::printf("\nseed %" PRIu64 ": %" PRIu64 " kills, %" PRIu64 " messages, %" PRIu64 " unaccounted for, %" PRIu64
                    " faults\n",
                    options_.seed, lives.killed, ledger_.pushed_count(), unaccounted,
                    ledger_.fault_count() + complaints_.size());
    }

    const Options& options_;
    std::string domain_;
    Ledger ledger_;
    std::vector<Pipe> pipes_;
    std::vector<Record> buffer_{pipe_bytes / sizeof(Record) * 2};
    std::array<std::uint64_t, port_count> drained_{};
    std::vector<std::string> complaints_;
    std::int64_t start_ns_ = 0;
    pid_t killer_ = -1;
    bool was_told_ = false;
};

Options options_of(int argument_count, char** arguments) {
    Options options;
    for (int place = 1; place < argument_count; place += 2) {
        const std::string name = arguments[place];
        const char* value = place + 1 < argument_count ? arguments[place + 1] : nullptr;
        if (value != nullptr && name == "--kills") {
            options.kill_count = std::strtoull(value, nullptr, 10);
        } else if (value != nullptr && name == "--minutes") {
            options.minutes = std::strtod(value, nullptr);
        } else if (value != nullptr && name == "--seed") {
            options.seed = std::strtoull(value, nullptr, 0);
        } else {
            std::fprintf(stderr, "usage: soak [--kills N] [--minutes M] [--seed S]\n");
            std::exit(2);
        }
    }
    return options;
}

} // namespace

int main(int argument_count, char** arguments) {
    if (argument_count > 1 && std::strcmp(arguments[1], "--life") == 0) {
        soak::live(soak::life_of(argument_count, arguments));
        return 0;
    }
    const Options options = options_of(argument_count, arguments);
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
        std::signal(signal, [](int) { is_over = 1; });
    }
    std::printf("soak: seed %" PRIu64 "\n", options.seed);
    Soak soak(options);
    bool is_well = false;
    try {
        is_well = soak.run();
    } catch (const std::exception& error) {
        std::printf("soak: FAULT: %s (seed %" PRIu64 ")\n", error.what(), options.seed);
    }
    soak.remove_names();
    return is_well ? 0 : 1;
}
