// harness.hpp: what the benchmarks stand on: real processes, each pinned to a processor, that go through the phases of
// a measurement in step, with the bare cache-line ping-pong as one of the phases.
//
// Each benchmark is one function that makes one repetition and fills in its results; Google Benchmark calls it as often
// as it is told to repeat, and writes the results as counters. What is compared in a ratio is measured in the same
// repetition, by the same processes, so that both meet the same weather; bench/run.py drops the repetitions during which
// the bare ping-pong changed, and makes medians of the others.
//
//     static void measure_something(bench::Results& results) {
//         bench::Trial trial(2);                                        // two processes, shared memory
//         auto& words = trial.share<Words>();
//         trial.run([&](bench::Process& me) {                           // in each, pinned
//             me.record("pingpong_before_ns", me.ping_pong());
//             me.record("something_ns", something(me, words));
//             me.record("pingpong_after_ns", me.ping_pong());
//         });
//         results = trial.results();
//     }
//     static const bench::Registration something("topic/something", measure_something);
//
// A process that finds something wrong (a value lost, an order broken) throws; the benchmark has failed then, and so has
// the whole program.
#pragma once

#include <weir/weir.hpp>

#include "histogram.hpp"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <pthread.h>
#include <sched.h>

namespace bench {

/// Whether the benchmarks only have to show that they run and verify.
[[nodiscard]] bool is_tiny() noexcept;
void set_tiny() noexcept;

/// Whether histograms go out whole, as labels of their benchmarks; for bench/run.py, which puts those of all repetitions
/// together.
void set_writes_histograms() noexcept;

/// Whether any benchmark has failed.
[[nodiscard]] bool has_failed() noexcept;

[[nodiscard]] inline std::uint64_t scaled(std::uint64_t full, std::uint64_t tiny) noexcept {
    return is_tiny() ? tiny : full;
}

/// The processors that this program may run on; process i of a trial is pinned to number i modulo their count.
[[nodiscard]] unsigned processor_count() noexcept;

/// What the kernel calls processor `number` modulo their count.
[[nodiscard]] unsigned processor(unsigned number) noexcept;

/// Keeps this process on that processor.
void pin(unsigned number);

/// Throws, in the words of who calls it.
inline void require(bool condition, const char* what) {
    if (!condition) [[unlikely]] {
        throw std::runtime_error(what);
    }
}

/// One turn of a loop that measures latency: no pause instruction, whose length would be measured too. Once in 16,384
/// looks it gives the processor away, so that the benchmarks also end on a single one.
class Spin {
public:
    void operator()() noexcept {
        if ((++look_count_ & 0x3fff) == 0) {
            sched_yield();
        }
    }

private:
    std::uint32_t look_count_ = 0;
};

/// One turn of a loop that waits for room or for an item in a stream: pauses, and gives the processor away every 64
/// looks in vain, because the one that is waited for may need it.
class Backoff {
public:
    void operator()() noexcept {
        weir::cpu_relax();
        if ((++look_count_ & 63) == 0) {
            sched_yield();
        }
    }

private:
    std::uint32_t look_count_ = 0;
};

/// Named numbers of one repetition.
using Results = std::map<std::string, double>;

class Trial;

/// One process of a trial, as it sees itself.
class Process {
public:
    Process(Trial& trial, unsigned number) noexcept : trial_(&trial), number_(number) {}

    [[nodiscard]] unsigned number() const noexcept { return number_; }
    [[nodiscard]] bool is_first() const noexcept { return number_ == 0; }

    /// Sleeps until all processes of the trial are here.
    void in_step() noexcept;

    /// The bare ping-pong between processes 0 and 1; all call it. Returns the one-way time in ns, in process 0.
    ///
    /// It is the classical one: a single 64-bit word in a line of its own, into which both write in turn the number that
    /// follows the other's. One way is one hand-over of the line: the store takes it exclusively, the other's spinning
    /// load fetches it.
    [[nodiscard]] double ping_pong();

    /// The same with a line for each direction, as two rings or two ports have them. A line that wanders back and forth
    /// moves to the reader for good on some processors, so that its answer costs no further transfer; with two lines each
    /// store has to take its line back first.
    [[nodiscard]] double ping_pong_on_two_lines();

    /// The same with processes that sleep until they are woken: store, futex wake, futex wait. Half of the median round
    /// trip.
    [[nodiscard]] double futex_ping_pong();

    /// `count` round trips of it, in ns, added to what there is.
    void futex_ping_pong(std::uint64_t count, std::vector<double>& round_trips_ns);

    /// Keeps a result; counts in process 0 only.
    void record(const std::string& name, double value);

private:
    Trial* trial_;
    unsigned number_;
    [[nodiscard]] double play_ping_pong(std::uint64_t& there, std::uint64_t& back);

    std::uint64_t ping_pong_value_ = 0;
    std::uint32_t futex_value_ = 0;
};

/// Shared memory and a number of processes that work on it.
class Trial {
public:
    explicit Trial(unsigned process_count);
    Trial(const Trial&) = delete;
    Trial& operator=(const Trial&) = delete;
    ~Trial() = default;

    /// Zeroed memory that all processes of the trial share.
    [[nodiscard]] std::span<std::byte> share_bytes(std::size_t bytes);
    template <class T>
    [[nodiscard]] T& share() {
        return *reinterpret_cast<T*>(share_bytes(sizeof(T)).data());
    }

    /// Forks the processes, runs `body` in each, and waits for all.
    /// Throws std::runtime_error with the reason when one of them failed.
    void run(const std::function<void(Process&)>& body);

    /// The same with threads of one process, for what only works between those.
    void run_threads(const std::function<void(Process&)>& body);

    [[nodiscard]] Results results() const;

private:
    friend class Process;

    struct Record {
        char name[64];
        double value;
    };
    struct Shared {
        pthread_barrier_t barrier;
        struct alignas(weir::cache_line_bytes) Line {
            std::uint64_t value;
        };
        Line ping_pong_words[2];
        alignas(weir::cache_line_bytes) std::uint32_t futex_word;
        alignas(weir::cache_line_bytes) std::uint32_t record_count;
        Record records[128];
        char failure[256];
    };

    /// One of the processes, or threads. Returns whether it succeeded.
    [[nodiscard]] bool play(unsigned number, const std::function<void(Process&)>& body) noexcept;
    void run_forked(unsigned count, const std::function<bool(unsigned)>& body);

    unsigned process_count_;
    std::vector<weir::Segment> segments_;
    Shared* shared_ = nullptr;
};

/// Of the payloads: the first page of each large buffer, or all of it.
enum class MapIn { first_pages, everything };

/// Pools and ports in shared memory, which processes join.
class SharedDomain {
public:
    SharedDomain(std::vector<weir::BufferPoolOptions> pools, std::vector<weir::PortOptions> ports);

    /// One process's membership, with views of everything. Its memory is mapped in before this returns: all control
    /// memory, and payload as told.
    struct Member {
        weir::Membership me;
        std::vector<weir::BufferPool> pools;
        weir::SharedBufferAllocator buffers;
        std::vector<weir::Port> ports;

        void leave();
    };
    [[nodiscard]] Member join(MapIn payload = MapIn::first_pages) const;

    /// Throws, where anything is not as it has to be when nobody uses the domain: invariants, and all buffers free.
    void require_idle() const;

private:
    std::vector<weir::BufferPoolOptions> pool_options_;
    std::vector<weir::PortOptions> port_options_;
    weir::Segment control_;
    weir::Segment payload_;
};

/// The name of a domain that is this benchmark's own, and gone at the end.
class DomainName {
public:
    DomainName();
    DomainName(const DomainName&) = delete;
    DomainName& operator=(const DomainName&) = delete;
    ~DomainName();
    [[nodiscard]] const std::string& text() const noexcept { return name_; }

private:
    std::string name_;
};

/// Reports `histogram` as NAME_p50_ns, _p99_ns, _p999_ns, _p9999_ns, _max_ns and _recorded_count, and whole where histograms
/// are written.
void report_histogram(Results& results, const std::string& name, const Histogram& histogram);

/// The middle one of at least one value.
[[nodiscard]] double median(std::vector<double> values);

/// Calls `allocate` or `try_push` or the like until it succeeds.
template <class Wait, class Attempt>
inline void until_true(Attempt&& attempt) {
    for (Wait wait; !attempt();) {
        wait();
    }
}

/// What a message carries: eight bytes at the front of its buffer.
inline void write_word(const weir::BufferPtr& buffer, std::uint64_t word) noexcept {
    std::memcpy(buffer.bytes().data(), &word, sizeof(word));
}
[[nodiscard]] inline std::uint64_t read_word(const weir::BufferPtr& buffer) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, buffer.bytes().data(), sizeof(word));
    return word;
}

/// The time since it was made, in ns.
class Stopwatch {
public:
    Stopwatch() noexcept : start_ns_(weir::monotonic_ns()) {}
    [[nodiscard]] double elapsed_ns() const noexcept { return static_cast<double>(weir::monotonic_ns() - start_ns_); }

private:
    std::int64_t start_ns_;
};

/// Makes a function known to Google Benchmark: one call is one repetition. Its time there is the result `time_name`.
class Registration {
public:
    Registration(const std::string& name, const char* time_name, std::function<void(Results&)> measure);
};

} // namespace bench
