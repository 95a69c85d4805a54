// Workers that sleep: how soon they wake, and what costs nothing while nothing moves: an idle scheduler, and many blocks
// beside the one that is active.
#include "graph.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

namespace {

// --- Wake-ups --------------------------------------------------------------------------------------------------------

class Nothing final : public weir::Block {
public:
    weir::WorkResult work() override { return weir::WorkResult::done; }
};

/// Whether workers can sleep so on this machine; says why not.
bool can_wait(weir::WaitPath path) {
    std::fflush(nullptr);
    const pid_t child = fork();
    bench::require(child >= 0, "cannot fork");
    if (child == 0) {
        int status = 0;
        try {
            const bench::DomainName name;
            const weir::Domain domain = weir::Domain::join(name.text());
            weir::Scheduler scheduler(domain, {.wait_path = path});
            scheduler.add<Nothing>();
            scheduler.run();
        } catch (const std::exception& error) {
            std::fprintf(stderr, "not measured, %s: %s\n", std::string(weir::to_string(path)).c_str(), error.what());
            status = 1;
        }
        _exit(status);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
        bench::require(errno == EINTR, "a child is gone");
    }
    return status == 0;
}

/// Pops a token, and pushes it to the other player.
class Player final : public weir::Block {
public:
    /// The first player brings the token, and takes it out of the game after `round_count` rounds.
    Player(weir::BufferPtr&& token, std::uint64_t round_count, std::vector<double>& rounds_ns)
        : token_(std::move(token)), round_count_(round_count), rounds_ns_(rounds_ns), is_first_(token_) {}

    weir::InputPort in{*this};
    weir::OutputPort out{*this};

    weir::WorkResult work() override {
        if (!out.is_ready()) {
            return weir::WorkResult::need_output;
        }
        if (!token_) {
            token_ = in.try_pop();
            if (!token_) {
                return weir::WorkResult::need_input;
            }
            bench::require(bench::read_word(token_) == word_, "the token is not the one that was expected");
            if (is_first_) {
                rounds_ns_.push_back(static_cast<double>(weir::monotonic_ns() - pushed_ns_));
                if (rounds_ns_.size() == round_count_) {
                    token_.reset();
                    return weir::WorkResult::done;
                }
            }
        }
        bench::write_word(token_, word_ + 1);
        word_ += 2;
        pushed_ns_ = is_first_ ? weir::monotonic_ns() : 0;
        out.push(std::move(token_));
        return weir::WorkResult::progress;
    }

    /// Which word comes first.
    void expect(std::uint64_t word) noexcept { word_ = word; }

private:
    weir::BufferPtr token_;
    std::uint64_t round_count_;
    std::vector<double>& rounds_ns_;
    bool is_first_;
    std::uint64_t word_ = 0;
    std::int64_t pushed_ns_ = 0;
};

/// Rounds of two processes that sleep on a bare futex; the time of each goes to `rounds_ns`, in process 0.
void play_futex(bench::Process& me, std::uint32_t& word, std::uint32_t& value, std::uint64_t round_count,
                std::vector<double>& rounds_ns) {
    me.in_step();
    const auto wait_for = [&word](std::uint32_t wanted) {
        for (std::uint32_t seen = 0; (seen = weir::shared(word).load(std::memory_order_acquire)) != wanted;) {
            weir::futex_wait(word, seen, weir::deadline_never);
        }
    };
    const auto write = [&word](std::uint32_t wanted) {
        weir::shared(word).store(wanted, std::memory_order_release);
        weir::futex_wake(word, 1);
    };
    for (std::uint64_t round = 0; round < round_count; ++round, value += 2) {
        if (me.is_first()) {
            const bench::Stopwatch stopwatch;
            write(value + 1);
            wait_for(value + 2);
            rounds_ns.push_back(stopwatch.elapsed_ns());
        } else {
            wait_for(value + 1);
            write(value + 2);
        }
    }
    me.in_step();
}

/// The same with a worker in each process that sleeps at once. Returns how often process 0's slept for each round.
double play_scheduled(bench::Process& me, const weir::Domain& domain, weir::WaitPath path, const std::string& game,
                      std::uint64_t round_count, std::vector<double>& rounds_ns) {
    weir::Domain member = domain;
    weir::SchedulerOptions options = bench::one_worker();
    options.wait_path = path;
    options.spin_count = 0;
    weir::Scheduler scheduler(domain, options);
    weir::BufferPtr token;
    if (me.is_first()) {
        token = member.pool("pool").allocate();
        token.resize(sizeof(std::uint64_t));
    }
    const std::size_t round_count_before = rounds_ns.size();
    auto& player = scheduler.add<Player>(std::move(token), round_count_before + round_count, rounds_ns);
    const weir::BindOptions binding{.port = {.capacity = 4}};
    const std::string there = "there" + game, back = "back" + game;
    player.in.bind(me.is_first() ? back : there, binding);
    player.out.bind(me.is_first() ? there : back, binding);
    player.expect(me.is_first() ? 0 : 1);
    me.in_step();
    scheduler.start();
    bench::require(scheduler.wait_path() == path, "the workers do not sleep as demanded");
    scheduler.wait();
    me.in_step();
    return static_cast<double>(scheduler.counters().sleeps) / static_cast<double>(round_count);
}

template <weir::WaitPath path>
void measure_wake_up(bench::Results& results) {
    bench::Trial trial(2);
    auto& word = trial.share<std::uint32_t>();
    bench::Home home({.buffer_bytes = 64, .buffer_count = 4});
    trial.run([&](bench::Process& me) {
        const weir::Domain domain = home.join();
        // Re-checks take up to an interval each.
        const std::uint64_t round_count = bench::scaled(path == weir::WaitPath::recheck ? 200 : 1'000, 10);
        std::uint32_t value = 0;
        std::vector<double> futex_ns, scheduled_ns;
        double sleeps = 0;
        me.record("pingpong_before_ns", me.ping_pong());
        constexpr unsigned turn_count = 3;
        for (unsigned turn = 0; turn < turn_count; ++turn) {
            play_futex(me, word, value, round_count, futex_ns);
            sleeps += play_scheduled(me, domain, path, std::to_string(turn), round_count, scheduled_ns) / turn_count;
        }
        play_futex(me, word, value, round_count, futex_ns);
        me.record("pingpong_after_ns", me.ping_pong());
        if (me.is_first()) {
            me.record("wake_up_ns", bench::median(scheduled_ns) / 2);
            me.record("futex_ns", bench::median(futex_ns) / 2);
            me.record("sleeps_count", sleeps);
        }
    });
    home.require_idle();
    results = trial.results();
    bench::require(results["sleeps_count"] > 0.5, "the workers did not sleep for each message");
}

// --- Idle workers ----------------------------------------------------------------------------------------------------

/// Waits for messages that never come, for room that there never is, or for a buffer that is never free.
class Idler final : public weir::Block {
public:
    explicit Idler(const weir::BufferPool& pool) : pool_(*this, pool) {}

    weir::WorkResult work() override {
        if (weir::BufferPtr buffer = pool_.try_allocate()) {
            throw std::runtime_error("a buffer is free");
        }
        return weir::WorkResult::need_output;
    }

private:
    weir::PoolPort pool_;
};

class Taker final : public weir::Block {
public:
    weir::InputPort in{*this};

    weir::WorkResult work() override {
        const weir::BufferPtr buffer = in.try_pop();
        bench::require(!buffer, "a message from nowhere");
        return weir::WorkResult::need_input;
    }
};

class Filler final : public weir::Block {
public:
    explicit Filler(std::vector<weir::BufferPtr>&& buffers) : buffers_(std::move(buffers)) {}

    weir::OutputPort out{*this};

    weir::WorkResult work() override {
        if (!out.is_ready()) {
            return weir::WorkResult::need_output;
        }
        bench::require(!buffers_.empty(), "there is more room than in the port");
        out.push(std::move(buffers_.back()));
        buffers_.pop_back();
        return weir::WorkResult::progress;
    }

private:
    std::vector<weir::BufferPtr> buffers_;
};

/// The number of context switches of each thread of this process, by its number.
std::map<std::string, double> context_switches() {
    std::map<std::string, double> switches;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
        std::ifstream status(entry.path() / "status");
        double& count = switches[entry.path().filename().string()];
        for (std::string line; std::getline(status, line);) {
            for (const std::string field : {"voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"}) {
                if (line.starts_with(field)) {
                    count += std::stod(line.substr(field.size()));
                }
            }
        }
    }
    return switches;
}

/// How often a second each thread of an idle scheduler with 100 blocks wakes up. All in one worker, which then has more to
/// watch than most, and all in two.
template <weir::WaitPath path>
void measure_idle(bench::Results& results) {
    constexpr unsigned kind_count = 4, block_count = 100;
    bench::Trial trial(1);
    // Two fill a port, and one waits before it; there are no others.
    constexpr unsigned messages_per_filler = 3;
    bench::Home home({.buffer_bytes = 64, .buffer_count = block_count / kind_count * messages_per_filler});
    const auto seconds = std::chrono::milliseconds(bench::scaled(3'000, 300));
    const auto settles = std::chrono::milliseconds(bench::scaled(1'000, 100));
    trial.run([&](bench::Process& me) {
        weir::Domain domain = home.join();
        weir::BufferPool pool = domain.pool("pool");
        for (unsigned worker_count = 1; worker_count <= 2; ++worker_count) {
            const std::map<std::string, double> others = context_switches();
            weir::SchedulerOptions options = bench::two_workers();
            options.worker_count = worker_count;
            options.wait_path = path;
            std::vector<weir::Producer> producers;
            std::vector<weir::Consumer> consumers;
            weir::Scheduler scheduler(domain, options);
            const weir::BindOptions binding{.port = {.capacity = 2}};
            for (unsigned number = 0; number < block_count / kind_count; ++number) {
                // What comes in never does; what goes out fills its port, and a block behind another gets nothing.
                const std::string port = std::to_string(worker_count) + "." + std::to_string(number);
                producers.push_back(domain.producer("in" + port, binding.port));
                consumers.push_back(domain.consumer("out" + port, binding.port));
                auto& map = scheduler.add<bench::AddOne>(1U);
                map.in.bind("in" + port, binding);
                scheduler.connect(map.out, scheduler.add<Taker>().in);
                std::vector<weir::BufferPtr> buffers;
                for (unsigned message = 0; message < messages_per_filler; ++message) {
                    buffers.push_back(pool.allocate());
                }
                scheduler.add<Filler>(std::move(buffers)).out.bind("out" + port, binding);
                scheduler.add<Idler>(pool);
            }
            scheduler.start();
            bench::require(scheduler.wait_path() == path, "the workers do not sleep as demanded");
            std::this_thread::sleep_for(settles);
            const bench::Stopwatch stopwatch;
            const std::map<std::string, double> before = context_switches();
            const weir::SchedulerCounters counters_before = scheduler.counters();
            std::this_thread::sleep_for(seconds);
            const std::map<std::string, double> after = context_switches();
            const weir::SchedulerCounters counters_after = scheduler.counters();
            const double elapsed_s = stopwatch.elapsed_ns() * 1e-9;
            bench::require(scheduler.is_running(), "the scheduler has ended");
            double most = 0;
            unsigned thread_count = 0;
            for (const auto& [thread, count] : after) {
                if (!others.contains(thread)) {
                    ++thread_count;
                    most = std::max(most, (count - before.at(thread)) / elapsed_s);
                }
            }
            bench::require(thread_count >= worker_count, "the workers were not found");
            const std::string of_workers = worker_count == 1 ? "one_worker" : "two_workers";
            me.record(of_workers + "_switches_count", most);
            me.record(of_workers + "_sleeps_count",
                      static_cast<double>(counters_after.sleeps - counters_before.sleeps) / elapsed_s / worker_count);
            me.record(of_workers + "_calls_count",
                      static_cast<double>(counters_after.work_calls - counters_before.work_calls) / elapsed_s);
            scheduler.stop();
            scheduler.wait();
            for (weir::Consumer& consumer : consumers) {
                while (consumer.try_pop()) {
                }
            }
        }
        me.record("time_ns", static_cast<double>(std::chrono::nanoseconds(seconds).count()));
    });
    home.require_idle();
    results = trial.results();
}

// --- Many blocks -----------------------------------------------------------------------------------------------------

/// One of a ring of blocks, in which a single message goes round.
class Link final : public weir::Block {
public:
    explicit Link(weir::BufferPtr&& token, std::uint64_t lap_count)
        : token_(std::move(token)), is_first_(token_), span_(std::max<std::uint64_t>(lap_count / 8, 1), lap_count) {}

    weir::InputPort in{*this};
    weir::OutputPort out{*this};

    weir::WorkResult work() override {
        if (!out.is_ready()) {
            return weir::WorkResult::need_output;
        }
        if (!token_) {
            token_ = in.try_pop();
            if (!token_) {
                return weir::WorkResult::need_input;
            }
            if (is_first_ && span_.note(++lap_)) {
                hop_count_ = bench::read_word(token_);
                token_.reset();
                return weir::WorkResult::done;
            }
        }
        bench::write_word(token_, bench::read_word(token_) + 1);
        out.push(std::move(token_));
        return weir::WorkResult::progress;
    }

    [[nodiscard]] double lap_ns() const { return span_.item_ns(); }
    [[nodiscard]] std::uint64_t hop_count() const noexcept { return hop_count_; }

private:
    weir::BufferPtr token_;
    bool is_first_;
    std::uint64_t lap_ = 0, hop_count_ = 0;
    bench::Span span_;
};

struct Crowd {
    std::uint32_t block_count;
    std::uint32_t spin_count;
    std::uint64_t hop_count;
    weir::WaitPath path;
};

/// One hop, in ns: block i is worker (i mod 2)'s, so that each hop wakes the other worker.
double hop_ns(const std::string& name, const Crowd& crowd) {
    weir::Domain domain = weir::Domain::join(name);
    weir::BufferPool pool = domain.pool("pool", {.buffer_bytes = 64, .buffer_count = 4});
    double lap_ns = 0;
    {
        weir::SchedulerOptions options = bench::two_workers();
        options.spin_count = crowd.spin_count;
        options.wait_path = crowd.path;
        weir::Scheduler scheduler(domain, options);
        const std::uint64_t lap_count = std::max<std::uint64_t>(crowd.hop_count / crowd.block_count, 2);
        std::vector<Link*> links;
        for (std::uint32_t number = 0; number < crowd.block_count; ++number) {
            weir::BufferPtr token;
            if (number == 0) {
                token = pool.try_allocate();
                token.resize(sizeof(std::uint64_t));
                bench::write_word(token, 0);
            }
            links.push_back(&scheduler.add<Link>(std::move(token), lap_count));
            scheduler.assign(*links.back(), number % 2);
        }
        for (std::uint32_t number = 0; number < crowd.block_count; ++number) {
            scheduler.connect(links[number]->out, links[(number + 1) % crowd.block_count]->in, {.capacity = 2});
        }
        scheduler.run();
        bench::require(scheduler.wait_path() == crowd.path, "the workers do not sleep as demanded");
        bench::require(links[0]->hop_count() == lap_count * crowd.block_count, "the token has left the ring");
        lap_ns = links[0]->lap_ns();
    }
    bench::require(pool.free_count() == 4, "the token is lost");
    return lap_ns / crowd.block_count;
}

void measure_many_blocks(bench::Results& results) {
    const auto many = static_cast<std::uint32_t>(bench::scaled(1'000, 50));
    const std::array<std::uint32_t, 4> block_counts{2, many, many, 2};
    const std::array<bench::DomainName, 2 * block_counts.size()> names;
    bench::Trial trial(2);
    trial.run([&](bench::Process& me) {
        me.record("pingpong_before_ns", me.ping_pong());
        if (me.is_first()) {
            std::size_t domain_count = 0;
            for (const std::uint32_t spin_count : {weir::SchedulerOptions{}.spin_count, 0U}) {
                double few_ns = 0, many_ns = 0;
                for (const std::uint32_t block_count : block_counts) {
                    (block_count == 2 ? few_ns : many_ns) +=
                        hop_ns(names[domain_count++].text(),
                               {block_count, spin_count, bench::scaled(8'000, 200), weir::WaitPath::io_uring});
                }
                const std::string suffix = spin_count == 0 ? "_asleep_ns" : "_ns";
                me.record("hop_of_few" + suffix, few_ns / 2);
                me.record("hop_of_many" + suffix, many_ns / 2);
            }
        }
        me.in_step();
        me.record("pingpong_after_ns", me.ping_pong());
    });
    results = trial.results();
}

/// What is measured on each path on which workers can sleep here.
template <weir::WaitPath path>
class PathRegistration {
public:
    PathRegistration(const char* wake_up_name, const char* idle_name) {
        if (can_wait(path)) {
            wake_up_.emplace(wake_up_name, "wake_up_ns", measure_wake_up<path>);
            idle_.emplace(idle_name, "time_ns", measure_idle<path>);
            if constexpr (path == weir::WaitPath::io_uring) {
                many_blocks_.emplace("sleep/many_blocks", "hop_of_many_ns", measure_many_blocks);
            }
        }
    }

private:
    std::optional<bench::Registration> wake_up_, idle_, many_blocks_;
};

const PathRegistration<weir::WaitPath::io_uring> io_uring("sleep/wake_up/io_uring", "sleep/idle/io_uring");
const PathRegistration<weir::WaitPath::futex_waitv> futex_waitv("sleep/wake_up/futex_waitv", "sleep/idle/futex_waitv");
const PathRegistration<weir::WaitPath::recheck> recheck("sleep/wake_up/recheck", "sleep/idle/recheck");

} // namespace
