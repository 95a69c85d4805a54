#include "kill.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <random>

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace bench {

namespace {

constexpr unsigned end_max = 2;
constexpr unsigned origin_max = end_max + 1;                 // with a successor
constexpr std::uint64_t number_max = std::uint64_t{1} << 24; // of each producer

void sleep_us(unsigned us) {
    const timespec time{us / 1'000'000, static_cast<long>(us % 1'000'000) * 1'000};
    nanosleep(&time, nullptr);
}

} // namespace

struct KillLedger {
    struct alignas(weir::cache_line_bytes) Line {
        std::uint64_t begun;      // of a producer
        std::uint64_t moved;      // pushed or taken
        std::uint64_t vain_looks; // of a consumer
    };
    std::array<Line, origin_max> producers;
    std::array<Line, origin_max> consumers;
    alignas(weir::cache_line_bytes) std::uint32_t producers_stop;
    std::uint32_t consumers_stop;
    std::uint64_t garbled;
    std::array<std::array<std::uint8_t, number_max>, origin_max> notes;
};

SharedBytes::SharedBytes(std::size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    require(memory != MAP_FAILED, "no memory");
    bytes_ = {static_cast<std::byte*>(memory), bytes};
}

SharedBytes::~SharedBytes() {
    munmap(bytes_.data(), bytes_.size());
}

bool KillProducer::begin(std::uint64_t number) noexcept {
    weir::shared(ledger_->producers[origin_].begun).store(number + 1, std::memory_order_relaxed);
    return number < number_max && !is_stopped();
}

void KillProducer::finish(std::uint64_t count) noexcept {
    weir::shared(ledger_->producers[origin_].moved).store(count, std::memory_order_relaxed);
}

bool KillProducer::is_stopped() const noexcept {
    return weir::shared(ledger_->producers_stop).load(std::memory_order_relaxed) != 0;
}

void KillConsumer::note(std::uint32_t origin, std::uint64_t number) noexcept {
    if (origin >= origin_max || number >= number_max) {
        note_garbled();
        return;
    }
    weir::shared(ledger_->notes[origin][number]).fetch_add(1, std::memory_order_relaxed);
    move();
}

void KillConsumer::note_garbled() noexcept {
    weir::shared(ledger_->garbled).fetch_add(1, std::memory_order_relaxed);
    move();
}

void KillConsumer::move() noexcept {
    std::uint64_t& moved = ledger_->consumers[number_].moved;
    weir::shared(moved).store(moved + 1, std::memory_order_relaxed);
}

void KillConsumer::note_nothing() noexcept {
    std::uint64_t& looks = ledger_->consumers[number_].vain_looks;
    weir::shared(looks).store(looks + 1, std::memory_order_relaxed);
}

bool KillConsumer::is_stopped() const noexcept {
    return weir::shared(ledger_->consumers_stop).load(std::memory_order_relaxed) != 0;
}

namespace {

struct Outcome {
    bool blocked = false, failed = false;
    std::uint64_t lost = 0, doubled = 0, garbled = 0, leaked = 0;
    double pause_ns = 0;
    [[nodiscard]] bool went_on() const {
        return !blocked && !failed && lost == 0 && doubled == 0 && garbled == 0 && leaked == 0;
    }
};

/// One experiment.
class Experiment {
public:
    Experiment(const KillSetup& setup, KillLedger& ledger, std::mt19937& random)
        : setup_(setup), ledger_(ledger), random_(random) {}

    [[nodiscard]] Outcome run() {
        Outcome outcome;
        for (unsigned number = 0; number < setup_.consumer_count; ++number) {
            start(false, number);
        }
        for (unsigned number = 0; number < setup_.producer_count; ++number) {
            start(true, number);
        }
        if (!wait_until_all_moved(std::vector<std::uint64_t>(members_.size(), 0), 30'000)) {
            end_all();
            throw std::runtime_error("the participants of a kill did not begin");
        }
        sleep_us(std::uniform_int_distribution<unsigned>(0, setup_.kill_after_us)(random_));

        const std::size_t victim = std::uniform_int_distribution<std::size_t>(0, members_.size() - 1)(random_);
        const bool was_producer = members_[victim].is_producer;
        kill(members_[victim].process, SIGKILL);
        waitpid(members_[victim].process, nullptr, 0);
        members_[victim].process = 0;
        const Stopwatch since_kill;
        start(was_producer, was_producer ? setup_.producer_count : setup_.consumer_count);

        // More than what was underway has to arrive, and then everybody once more.
        const std::uint64_t arrived = arrivals();
        outcome.blocked = !wait_until_all_moved(moved(), setup_.watchdog_ms) ||
                          !wait([&] { return arrivals() - arrived >= setup_.arrivals_after; }, setup_.watchdog_ms);
        outcome.pause_ns = since_kill.elapsed_ns();
        outcome.blocked = outcome.blocked || !wait_until_all_moved(moved(), setup_.watchdog_ms);
        outcome.failed = has_failed();
        if (!outcome.blocked && !outcome.failed) {
            outcome.blocked = !stop_all();
        }
        end_all();
        if (outcome.blocked || outcome.failed) {
            return outcome;
        }
        read_ledger(outcome, !was_producer);
        outcome.garbled = ledger_.garbled;
        outcome.leaked = setup_.leaked ? setup_.leaked() : 0;
        return outcome;
    }

private:
    struct Member {
        bool is_producer;
        unsigned number;
        pid_t process;
    };

    void start(bool is_producer, unsigned number) {
        std::fflush(nullptr);
        const pid_t child = fork();
        require(child >= 0, "cannot fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            cpu_set_t set;
            CPU_ZERO(&set);
            CPU_SET(processor(is_producer ? 0 : 1), &set);
            sched_setaffinity(0, sizeof(set), &set);
            try {
                if (is_producer) {
                    KillProducer me(ledger_, number);
                    setup_.produce(me);
                } else {
                    KillConsumer me(ledger_, number);
                    setup_.consume(me);
                }
            } catch (const std::exception& error) {
                std::fprintf(stderr, "a participant of a kill: %s\n", error.what());
                _exit(1);
            }
            _exit(0);
        }
        members_.push_back({is_producer, number, child});
    }

    [[nodiscard]] std::vector<std::uint64_t> moved() const {
        std::vector<std::uint64_t> counts;
        for (const Member& member : members_) {
            const auto& lines = member.is_producer ? ledger_.producers : ledger_.consumers;
            counts.push_back(weir::shared(lines[member.number].moved).load(std::memory_order_relaxed));
        }
        return counts;
    }

    [[nodiscard]] std::uint64_t arrivals() const {
        std::uint64_t count = 0;
        for (const KillLedger::Line& line : ledger_.consumers) {
            count += weir::shared(line.moved).load(std::memory_order_relaxed);
        }
        return count;
    }

    /// How often each consumer that is alive has found nothing.
    [[nodiscard]] std::vector<std::uint64_t> vain_looks() const {
        std::vector<std::uint64_t> counts;
        for (const Member& member : members_) {
            if (!member.is_producer && member.process != 0) {
                counts.push_back(
                    weir::shared(ledger_.consumers[member.number].vain_looks).load(std::memory_order_relaxed));
            }
        }
        return counts;
    }

    template <class Condition>
    [[nodiscard]] bool wait(Condition&& condition, unsigned ms) const {
        const Stopwatch stopwatch;
        while (!condition()) {
            if (stopwatch.elapsed_ns() > ms * 1e6) {
                return false;
            }
            sleep_us(200);
        }
        return true;
    }

    [[nodiscard]] bool wait_until_all_moved(const std::vector<std::uint64_t>& before, unsigned ms) const {
        return wait(
            [&] {
                const std::vector<std::uint64_t> now = moved();
                for (std::size_t place = 0; place < now.size(); ++place) {
                    if (members_[place].process != 0 && now[place] <= before[place]) {
                        return false;
                    }
                }
                return true;
            },
            ms);
    }

    /// Whether somebody has ended by itself.
    [[nodiscard]] bool has_failed() {
        for (Member& member : members_) {
            if (member.process != 0 && waitpid(member.process, nullptr, WNOHANG) == member.process) {
                member.process = 0;
                return true;
            }
        }
        return false;
    }

    [[nodiscard]] bool ended(bool producers) {
        return wait(
            [&] {
                for (Member& member : members_) {
                    if (member.process != 0 && member.is_producer == producers) {
                        if (waitpid(member.process, nullptr, WNOHANG) != member.process) {
                            return false;
                        }
                        member.process = 0;
                    }
                }
                return true;
            },
            setup_.watchdog_ms + 10'000);
    }

    /// Lets the producers end, the consumers take what is left, and then end too.
    [[nodiscard]] bool stop_all() {
        weir::shared(ledger_.producers_stop).store(1, std::memory_order_relaxed);
        if (!ended(true)) {
            return false;
        }
        // Until all consumers have found nothing, and nothing has come for a while.
        for (std::uint64_t before = arrivals();;) {
            const std::vector<std::uint64_t> looks = vain_looks();
            const auto all_looked_in_vain = [&] {
                const std::vector<std::uint64_t> now = vain_looks();
                for (std::size_t place = 0; place < looks.size(); ++place) {
                    if (now[place] < looks[place] + 3) {
                        return false;
                    }
                }
                return true;
            };
            if (!wait(all_looked_in_vain, setup_.watchdog_ms)) {
                return false;
            }
            sleep_us(setup_.drain_ms * 1'000);
            const std::uint64_t now = arrivals();
            if (now == before) {
                break;
            }
            before = now;
        }
        weir::shared(ledger_.consumers_stop).store(1, std::memory_order_relaxed);
        return ended(false);
    }

    void end_all() {
        for (Member& member : members_) {
            if (member.process != 0) {
                kill(member.process, SIGKILL);
                waitpid(member.process, nullptr, 0);
                member.process = 0;
            }
        }
    }

    void read_ledger(Outcome& outcome, bool consumer_was_killed) const {
        std::uint64_t missing = 0;
        for (unsigned origin = 0; origin < origin_max; ++origin) {
            const KillLedger::Line& line = ledger_.producers[origin];
            for (std::uint64_t number = 0; number < line.begun && number < number_max; ++number) {
                const std::uint8_t notes = ledger_.notes[origin][number];
                missing += notes == 0 && number < line.moved;
                outcome.doubled += notes > 1;
            }
        }
        // A killed consumer may have taken one that it did not come to note.
        outcome.lost = missing - (consumer_was_killed && missing > 0 ? 1 : 0);
    }

    const KillSetup& setup_;
    KillLedger& ledger_;
    std::mt19937& random_;
    std::vector<Member> members_;
};

} // namespace

Results run_kills(const KillSetup& setup) {
    const SharedBytes memory(sizeof(KillLedger));
    KillLedger& ledger = *reinterpret_cast<KillLedger*>(memory.bytes().data());
    std::mt19937 random(4711);
    const auto kill_count = static_cast<unsigned>(scaled(setup.kill_count, 2));
    Results results{{"kill_count", kill_count},  {"went_on_count", 0},  {"blocked_count", 0},  {"losing_count", 0},
                    {"lost_messages_count", 0},  {"doubling_count", 0}, {"garbling_count", 0}, {"leaking_count", 0},
                    {"leaked_buffers_count", 0}, {"failed_count", 0},   {"pause_ns", 0},       {"experiment_ns", 0}};
    const Stopwatch stopwatch;
    bool is_clean = false;
    for (unsigned number = 0; number < kill_count; ++number) {
        if (!is_clean || setup.renews_always) {
            setup.renew();
        }
        // Gives the pages back: they are zeroes again.
        madvise(memory.bytes().data(), memory.bytes().size(), MADV_REMOVE);
        const Outcome outcome = Experiment(setup, ledger, random).run();
        is_clean = outcome.went_on();
        results["went_on_count"] += outcome.went_on();
        results["blocked_count"] += outcome.blocked;
        results["losing_count"] += outcome.lost > 0;
        results["lost_messages_count"] += static_cast<double>(outcome.lost);
        results["doubling_count"] += outcome.doubled > 0;
        results["garbling_count"] += outcome.garbled > 0;
        results["leaking_count"] += outcome.leaked > 0;
        results["leaked_buffers_count"] += static_cast<double>(outcome.leaked);
        results["failed_count"] += outcome.failed;
        if (!outcome.blocked && !outcome.failed) {
            results["pause_ns"] = std::max(results["pause_ns"], outcome.pause_ns);
        }
    }
    results["experiment_ns"] = stopwatch.elapsed_ns() / kill_count;
    return results;
}

} // namespace bench
