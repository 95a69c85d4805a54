#include "killer.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include <fcntl.h>
#include <sys/prctl.h>

namespace soak {

namespace {

constexpr std::int64_t ms = 1'000'000;
constexpr std::int64_t look_interval_ns = ms / 4;
constexpr std::int64_t leave_time_ns = 3'000 * ms;

enum class Phase : std::uint8_t { empty, running, stopped, dying };

struct Place {
    Seat seat;
    Phase phase = Phase::empty;
    pid_t pid = -1;
    std::uint32_t life = 0;
    clockid_t cpu_clock = 0;
    std::int64_t cpu_end_ns = 0; ///< after that much work, or at `next_ns`, something happens
    std::int64_t next_ns = 0;
    bool is_killed = false;
};

class Killer {
public:
    explicit Killer(const KillPlan& plan) : plan_(plan), random_(plan.seed) {
        for (const Seat& seat : plan.seats) {
            places_.push_back({.seat = seat});
        }
    }

    [[nodiscard]] bool run() {
        next_massacre_ns_ = weir::monotonic_ns() + 2000 * ms;
        while (!is_enough()) {
            collect_ended();
            const std::int64_t now_ns = weir::monotonic_ns();
            for (Place& place : places_) {
                look_at(place, now_ns);
            }
            if (now_ns >= next_massacre_ns_) {
                kill_many(now_ns);
            }
            const timespec pause{0, look_interval_ns};
            nanosleep(&pause, nullptr);
        }
        end_all();
        return !has_failed_;
    }

private:
    [[nodiscard]] bool is_enough() const {
        return has_failed_ || killed_count_ >= plan_.kill_count || weir::monotonic_ns() >= plan_.end_ns ||
               *plan_.is_over != 0;
    }

    void note(const Place& place, Event event, unsigned detail = 0) {
        Diary diary(place.seat.diary, place.life);
        diary.add(event, 0, 0, detail);
        diary.flush();
    }

    void look_at(Place& place, std::int64_t now_ns) {
        switch (place.phase) {
        case Phase::empty:
            if (now_ns >= place.next_ns) {
                start(place);
            }
            break;
        case Phase::running:
            if (now_ns >= place.next_ns || has_worked_enough(place)) {
                if (place.seat.is_steady || random_.one_in(8)) {
                    stop(place, now_ns);
                } else {
                    end(place);
                    // Now and then several at the same moment.
                    for (Place& other : places_) {
                        if (random_.one_in(60) && other.phase == Phase::running && !other.seat.is_steady) {
                            end(other);
                        }
                    }
                }
            }
            break;
        case Phase::stopped:
            if (now_ns >= place.next_ns) {
                if (!place.seat.is_steady && random_.one_in(3)) {
                    end(place);
                } else {
                    ::kill(place.pid, SIGCONT);
                    place.phase = Phase::running;
                    decide_end(place, now_ns);
                }
            }
            break;
        case Phase::dying: break;
        }
    }

    [[nodiscard]] static bool has_worked_enough(const Place& place) {
        timespec used{};
        return clock_gettime(place.cpu_clock, &used) == 0 &&
               used.tv_sec * 1'000'000'000 + used.tv_nsec >= place.cpu_end_ns;
    }

    /// By its own time, so that it dies in the midst of its work also where the machine has more to do than this.
    void decide_end(Place& place, std::int64_t now_ns) {
        std::int64_t work_ns = 0;
        switch (place.seat.is_steady ? 9U : random_.below(9U)) {
        case 0:
        case 1: work_ns = random_.below(ms); break; // while it starts or joins
        case 2:
        case 3:
        case 4:
        case 5: work_ns = ms + random_.below(4 * ms); break;
        case 6:
        case 7: work_ns = ms + random_.below(8 * ms); break;
        case 8: work_ns = random_.one_in(8) ? random_.below(100 * ms) : random_.below(10 * ms); break;
        default: work_ns = random_.below(60 * ms); break;
        }
        timespec used{};
        clock_gettime(place.cpu_clock, &used);
        place.cpu_end_ns = used.tv_sec * 1'000'000'000 + used.tv_nsec + work_ns;
        place.next_ns = now_ns + 30 * ms + 5 * work_ns;
    }

    void start(Place& place) {
        Life life;
        life.domain = plan_.domain;
        life.role = place.seat.role;
        life.number = ++life_count_;
        life.seed = random_.next();
        life.diary = place.seat.diary;
        life.is_steady = place.seat.is_steady;
        const bool is_executed = random_.one_in(8);
        place.life = life.number;
        note(place, Event::started, is_executed ? 1 : 0);
        const pid_t killer = getpid();
        const pid_t pid = fork();
        if (pid < 0) {
            std::fprintf(stderr, "soak: fork: %s\n", std::strerror(errno));
            has_failed_ = true;
            return;
        }
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != killer) {
                _exit(1);
            }
            if (is_executed) {
                execute(life);
            }
            live(life);
            _exit(0);
        }
        place.pid = pid;
        place.phase = Phase::running;
        place.is_killed = false;
        clock_getcpuclockid(pid, &place.cpu_clock);
        decide_end(place, weir::monotonic_ns());
    }

    [[noreturn]] static void execute(const Life& life) {
        const std::vector<std::string> texts = arguments_of(life);
        std::vector<char*> arguments;
        for (const std::string& text : texts) {
            arguments.push_back(const_cast<char*>(text.c_str()));
        }
        arguments.push_back(nullptr);
        fcntl(life.diary, F_SETFD, 0);
        execv("/proc/self/exe", arguments.data());
        std::fprintf(stderr, "soak: execv: %s\n", std::strerror(errno));
        _exit(1);
    }

    void stop(Place& place, std::int64_t now_ns) {
        if (::kill(place.pid, SIGSTOP) == 0) {
            note(place, Event::stopped);
            place.phase = Phase::stopped;
            place.next_ns = now_ns + random_.below(random_.one_in(4) ? 12 * recheck_interval_ns : recheck_interval_ns);
        }
    }

    void end(Place& place) {
        ::kill(place.pid, SIGKILL);
        place.phase = Phase::dying;
        place.is_killed = true;
    }

    /// All at once, so that nobody is left to reap; or about half of them.
    void kill_many(std::int64_t now_ns) {
        const bool is_everybody = random_.one_in(2);
        for (Place& place : places_) {
            if ((place.phase == Phase::running || place.phase == Phase::stopped) &&
                (is_everybody || (random_.one_in(2) && !place.seat.is_steady))) {
                end(place);
            }
        }
        next_massacre_ns_ = now_ns + 200 * ms + random_.below(6000 * ms);
    }

    void collect_ended() {
        int status = 0;
        for (pid_t pid = 0; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
            const auto place = std::ranges::find(places_, pid, &Place::pid);
            if (place == places_.end()) {
                continue;
            }
            End how = End::failed;
            if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && place->is_killed) {
                how = End::killed;
                ++killed_count_;
            } else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM && is_ending_) {
                how = End::killed; // before it could listen
                ++killed_count_;
            } else if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
                how = End::by_itself;
            } else {
                has_failed_ = true;
                if (WIFSIGNALED(status)) {
                    std::fprintf(stderr, "soak: life %u, a %s, was ended by signal %d%s\n", place->life,
                                 name_of(place->seat.role), WTERMSIG(status),
                                 WTERMSIG(status) == SIGALRM ? " (the watchdog)" : "");
                }
            }
            note(*place, Event::ended, static_cast<unsigned>(how));
            place->phase = Phase::empty;
            place->pid = -1;
            place->next_ns = random_.one_in(8) ? weir::monotonic_ns() + random_.below(5 * ms) : 0;
        }
    }

    void end_all() {
        is_ending_ = true;
        const std::int64_t deadline_ns = weir::monotonic_ns() + leave_time_ns;
        bool is_waiting = true;
        while (is_waiting) {
            collect_ended();
            // Who waits without a deadline for others that have left is woken by nothing else.
            const bool is_late = weir::monotonic_ns() >= deadline_ns;
            is_waiting = false;
            for (Place& place : places_) {
                if (place.pid <= 0) {
                    continue;
                }
                is_waiting = true;
                if (is_late) {
                    end(place);
                } else { // again and again: it may not have listened yet
                    ::kill(place.pid, SIGTERM);
                    ::kill(place.pid, SIGCONT);
                }
            }
            const timespec pause{0, ms};
            nanosleep(&pause, nullptr);
        }
    }

    const KillPlan& plan_;
    test::Random random_;
    std::vector<Place> places_;
    std::uint32_t life_count_ = 0;
    std::uint64_t killed_count_ = 0;
    std::int64_t next_massacre_ns_ = 0;
    bool is_ending_ = false;
    bool has_failed_ = false;
};

} // namespace

bool run_killer(const KillPlan& plan) {
    return Killer(plan).run();
}

std::vector<std::string> arguments_of(const Life& life) {
    return {"soak",
            "--life",
            life.domain,
            std::to_string(static_cast<unsigned>(life.role)),
            std::to_string(life.number),
            std::to_string(life.seed),
            std::to_string(life.diary),
            life.is_steady ? "1" : "0"};
}

Life life_of(int argument_count, char** arguments) {
    const auto number = [&](int place) -> std::uint64_t {
        return place < argument_count ? std::strtoull(arguments[place], nullptr, 10) : 0;
    };
    Life life;
    life.domain = argument_count > 2 ? arguments[2] : "";
    life.role = static_cast<Role>(number(3));
    life.number = static_cast<std::uint32_t>(number(4));
    life.seed = number(5);
    life.diary = static_cast<int>(number(6));
    life.is_steady = number(7) != 0;
    return life;
}

} // namespace soak
