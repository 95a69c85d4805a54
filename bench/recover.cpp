// How soon a domain goes on after a kill. A producer and a consumer, at work as fast as they can, are strangers to another
// pair of the same domain and the same pool, which sends a message every 100 us. One of the first two is killed at a random
// moment. From the kill on is measured:
//
// - until the survivor knows that the stream has ended (or, where its consumer died, that its port is closed);
// - until the dead one is reaped: its references are dropped, and its messages kept (in the end all buffers are free);
// - until the first message of the same program, started again as soon as its parent is told of its end: fork(), join, which
//   reaps, attach, allocate, push, pop;
// - the longest time between two messages of the strangers, who wait for nobody, beside the longest one in as long a time
//   before the kill.
//
// The death is found out by a PeerWatch of a further member, or only by who waits and looks for the dead once in a re-check
// interval (100 ms), or by the program that is started again.
#include "harness.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

using namespace std::chrono_literals;

enum class Victim { producer, consumer };
enum class Finding { by_watch, by_recheck, by_restart };

enum Phase : std::uint32_t { starting, before, after, over };

constexpr std::uint32_t buffer_count = 256;
constexpr unsigned process_count = 4;

/// What the processes tell each other beside the domain.
struct Shared {
    std::atomic<std::uint32_t> ready_count, stops;
    std::atomic<std::int64_t> known_ns;     ///< when the survivor knew
    std::atomic<std::int64_t> restarted_ns; ///< when the first message of the second life was there
    std::atomic<std::uint32_t> phase;
    std::array<std::int64_t, 4> gap_max_ns; ///< of the strangers, by phase
};

/// Processes of the benchmark's own, which are all gone at its end.
class Children {
public:
    Children() = default;
    Children(const Children&) = delete;
    Children& operator=(const Children&) = delete;
    ~Children() {
        for (const pid_t child : running_) {
            kill(child, SIGKILL);
        }
        while (!running_.empty()) {
            collect(running_.back());
        }
    }

    template <class Body>
    pid_t start(unsigned number, Body&& body) {
        const pid_t child = fork();
        bench::require(child >= 0, "cannot fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            alarm(100);
            try {
                bench::pin(number);
                body();
            } catch (const std::exception& error) {
                std::fprintf(stderr, "recover: process %u: %s\n", number, error.what());
                _exit(1);
            }
            _exit(0);
        }
        running_.push_back(child);
        return child;
    }

    /// Waits for one's end; returns its wait status.
    int collect(pid_t child) {
        int status = 0;
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
        std::erase(running_, child);
        return status;
    }
    void collect_all() {
        while (!running_.empty()) {
            bench::require(collect(running_.back()) == 0, "a process has failed");
        }
    }

private:
    std::vector<pid_t> running_;
};

struct Times {
    double known_ns = 0, reaped_ns = 0, restarted_ns = 0;
    double gap_before_ns = 0, gap_after_ns = 0;
};

class Scene {
public:
    Scene(Victim victim, Finding finding) : victim_(victim), finding_(finding) {
        void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        bench::require(memory != MAP_FAILED, "no memory");
        shared_ = new (memory) Shared{};
    }
    Scene(const Scene&) = delete;
    Scene& operator=(const Scene&) = delete;
    ~Scene() { munmap(shared_, sizeof(Shared)); }

    Times play(std::chrono::nanoseconds before_kill, std::chrono::nanoseconds window) {
        weir::Domain domain = weir::Domain::join(name_.text());
        weir::BufferPool pool = domain.pool("pool", {.buffer_bytes = 64, .buffer_count = buffer_count});
        weir::Port work = domain.port("work", work_options());
        static_cast<void>(domain.port("strangers", {.capacity = 64}));
        Children children;
        const pid_t consumer = children.start(1, [this] { consume(1); });
        const pid_t producer = children.start(0, [this] { produce(1); });
        children.start(3, [this] { consume_as_stranger(); });
        children.start(2, [this] { produce_as_stranger(); });
        wait_for([&] { return shared_->ready_count == process_count; });

        shared_->phase = before;
        std::this_thread::sleep_for(before_kill);
        const pid_t victim = victim_ == Victim::producer ? producer : consumer;
        const weir::MemberInfo member = member_of(domain, victim);
        weir::PeerWatch watch(domain);
        shared_->phase = after;
        const std::int64_t killed_ns = weir::monotonic_ns();
        kill(victim, SIGKILL);
        if (finding_ == Finding::by_restart) {
            // As a supervisor does, which is told of the end. A newcomer that looked before it would find a living process.
            siginfo_t ended;
            while (waitid(P_PID, static_cast<id_t>(victim), &ended, WEXITED | WNOWAIT) != 0) {
                bench::require(errno == EINTR, "waitid");
            }
            children.start(victim_ == Victim::producer ? 0 : 1,
                           [this] { victim_ == Victim::producer ? produce(2) : consume(2); });
        } else if (finding_ == Finding::by_watch) {
            pollfd wanted{watch.descriptor(), POLLIN, 0};
            while (poll(&wanted, 1, -1) != 1) {
                bench::require(errno == EINTR, "poll");
            }
            static_cast<void>(watch.handle());
        }
        Times times;
        wait_for([&] { return !is_there(domain, member); });
        times.reaped_ns = static_cast<double>(weir::monotonic_ns() - killed_ns);
        if (finding_ == Finding::by_restart) {
            wait_for([&] { return shared_->restarted_ns != 0; });
            times.restarted_ns = static_cast<double>(shared_->restarted_ns - killed_ns);
        } else {
            wait_for([&] { return shared_->known_ns != 0; });
            times.known_ns = static_cast<double>(shared_->known_ns - killed_ns);
        }
        const std::int64_t left_ns = killed_ns + window.count() - weir::monotonic_ns();
        std::this_thread::sleep_for(std::chrono::nanoseconds(std::max<std::int64_t>(left_ns, 0)));
        shared_->phase = over;
        shared_->stops = 1;
        bench::require(WIFSIGNALED(children.collect(victim)), "the victim has ended by itself");
        children.collect_all();

        times.gap_before_ns = static_cast<double>(shared_->gap_max_ns[before]);
        times.gap_after_ns = static_cast<double>(shared_->gap_max_ns[after]);
        static_cast<void>(domain.reap());
        {
            weir::Consumer rest(work);
            while (rest.try_pop()) {
            }
        }
        bench::require(pool.free_count() == buffer_count, "buffers are lost");
        bench::require(domain.check().empty(), "the domain is broken");
        return times;
    }

private:
    [[nodiscard]] weir::PortOptions work_options() const {
        // A producer whose consumer is started again goes on meanwhile.
        return {.capacity = 64,
                .when_unconsumed =
                    finding_ == Finding::by_restart ? weir::WhenUnconsumed::fill : weir::WhenUnconsumed::close};
    }

    template <class Condition>
    static void wait_for(Condition&& condition) {
        const std::int64_t deadline_ns = weir::monotonic_ns() + 30'000'000'000;
        while (!condition()) {
            bench::require(weir::monotonic_ns() < deadline_ns, "what was waited for did not come");
            std::this_thread::sleep_for(50us);
        }
    }

    [[nodiscard]] static weir::MemberInfo member_of(const weir::Domain& domain, pid_t process) {
        for (const weir::MemberInfo& member : domain.members()) {
            if (member.process.pid == process) {
                return member;
            }
        }
        throw std::runtime_error("the victim is no member");
    }
    [[nodiscard]] static bool is_there(const weir::Domain& domain, const weir::MemberInfo& wanted) {
        const std::vector<weir::MemberInfo> members = domain.members();
        return std::any_of(members.begin(), members.end(), [&](const weir::MemberInfo& member) {
            return member.slot == wanted.slot && member.incarnation == wanted.incarnation;
        });
    }

    void produce(std::uint64_t life) {
        weir::Domain domain = weir::Domain::join(name_.text());
        weir::BufferPool pool = domain.pool("pool");
        weir::Producer producer = domain.producer("work");
        bool is_first = true;
        while (shared_->stops == 0) {
            weir::BufferPtr buffer = pool.allocate();
            bench::write_word(buffer, life);
            const weir::PushResult result = producer.push(std::move(buffer));
            if (result == weir::PushResult::closed) {
                shared_->known_ns = weir::monotonic_ns();
                return;
            }
            bench::require(result == weir::PushResult::ok, "cannot push");
            shared_->ready_count += is_first && life == 1 ? 1 : 0;
            is_first = false;
        }
    }

    void consume(std::uint64_t life) {
        weir::Domain domain = weir::Domain::join(name_.text());
        weir::Consumer consumer = domain.consumer("work");
        std::uint64_t producer_life = 0;
        for (;;) {
            weir::BufferPtr buffer = consumer.pop();
            if (!buffer) {
                bench::require(!consumer.last_error(), "cannot pop");
                if (finding_ == Finding::by_restart && shared_->stops == 0) {
                    // The next life may have reopened the stream already.
                    static_cast<void>(consumer.wait_for_producer(1s));
                    continue;
                }
                shared_->known_ns = weir::monotonic_ns();
                return;
            }
            const std::uint64_t from = bench::read_word(buffer);
            bench::require(from >= producer_life, "a message of the dead comes after one of the living");
            if (producer_life == 0 && life == 1) {
                ++shared_->ready_count;
            } else if ((producer_life == 0 && life == 2) || from > producer_life) {
                shared_->restarted_ns = weir::monotonic_ns();
            }
            producer_life = from;
        }
    }

    void produce_as_stranger() {
        weir::Domain domain = weir::Domain::join(name_.text());
        weir::BufferPool pool = domain.pool("pool");
        weir::Producer producer = domain.producer("strangers");
        ++shared_->ready_count;
        for (std::uint64_t number = 0; shared_->stops == 0; ++number) {
            std::this_thread::sleep_for(100us);
            weir::BufferPtr buffer = pool.allocate();
            bench::write_word(buffer, number);
            bench::require(producer.push(std::move(buffer)) == weir::PushResult::ok, "cannot push");
        }
    }

    void consume_as_stranger() {
        weir::Domain domain = weir::Domain::join(name_.text());
        weir::Consumer consumer = domain.consumer("strangers");
        std::uint64_t expected = 0;
        std::int64_t last_ns = 0;
        while (weir::BufferPtr buffer = consumer.pop()) {
            const std::int64_t now_ns = weir::monotonic_ns();
            bench::require(bench::read_word(buffer) == expected++, "a stranger's message is not what was expected");
            if (last_ns == 0) {
                ++shared_->ready_count;
            } else {
                std::int64_t& most = shared_->gap_max_ns[shared_->phase];
                most = std::max(most, now_ns - last_ns);
            }
            last_ns = now_ns;
        }
        bench::require(consumer.stream_end() == weir::StreamEnd::closed, "a stranger is gone");
    }

    Victim victim_;
    Finding finding_;
    bench::DomainName name_;
    Shared* shared_;
};

void measure_recovery(bench::Results& results, Victim victim, Finding finding) {
    // The same moments in each run, which meet the processes at others of theirs.
    static std::mt19937_64 random(1);
    // As long as it takes at most until the death is found out.
    const auto window = finding == Finding::by_recheck ? 110ms : 40ms;
    std::vector<double> known, reaped, restarted, gap_before, gap_after;
    for (std::uint64_t kill_number = 0; kill_number < bench::scaled(5, 1); ++kill_number) {
        const std::chrono::nanoseconds further(std::uniform_int_distribution<std::int64_t>(0, 20'000'000)(random));
        const Times times = Scene(victim, finding).play(window + further, window);
        known.push_back(times.known_ns);
        reaped.push_back(times.reaped_ns);
        restarted.push_back(times.restarted_ns);
        gap_before.push_back(times.gap_before_ns);
        gap_after.push_back(times.gap_after_ns);
    }
    const auto report = [&](const std::string& what, const std::vector<double>& times_ns) {
        results[what + "_ns"] = bench::median(times_ns);
        results[what + "_max_ns"] = *std::max_element(times_ns.begin(), times_ns.end());
    };
    if (finding == Finding::by_restart) {
        report("restarted", restarted);
    } else {
        report("known", known);
    }
    report("reaped", reaped);
    report("gap_before", gap_before);
    report("gap_after", gap_after);
    results["process_count"] = process_count;
    results["processor_count"] = bench::processor_count();
}

const bool registered = [] {
    for (const Victim victim : {Victim::producer, Victim::consumer}) {
        for (const Finding finding : {Finding::by_watch, Finding::by_recheck, Finding::by_restart}) {
            const std::string name = std::string("recover/") +
                                     (victim == Victim::producer ? "producer/" : "consumer/") +
                                     (finding == Finding::by_watch     ? "watch"
                                      : finding == Finding::by_recheck ? "recheck"
                                                                       : "restart");
            bench::Registration(name, "reaped_ns",
                                [=](bench::Results& results) { measure_recovery(results, victim, finding); });
        }
    }
    return true;
}();

} // namespace
