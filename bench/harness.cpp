#include "harness.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace bench {

namespace {

bool tiny = false;
bool failed = false;
bool writes_histograms = false;

// What report_histogram() has said in this repetition.
std::string histograms;

// Long enough for a repetition on a machine that does a lot else; a process that hangs is ended by it.
constexpr unsigned watchdog_seconds = 100;

std::vector<std::size_t> allowed_processors() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<std::size_t> numbers;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        for (std::size_t number = 0; number < CPU_SETSIZE; ++number) {
            if (CPU_ISSET(number, &set)) {
                numbers.push_back(number);
            }
        }
    }
    if (numbers.empty()) {
        numbers.push_back(0);
    }
    return numbers;
}

const std::vector<std::size_t>& processors() {
    static const std::vector<std::size_t> numbers = allowed_processors();
    return numbers;
}

/// Has the pages there before anything is timed: a page fault costs more than what is measured.
void map_in(std::span<std::byte> memory) {
    if (memory.empty()) {
        return;
    }
    constexpr std::uintptr_t page_bytes = 4096;
    const auto first = reinterpret_cast<std::uintptr_t>(memory.data());
    const std::uintptr_t start = first / page_bytes * page_bytes;
    const std::size_t length = first + memory.size() - start;
#if defined(MADV_POPULATE_WRITE)
    if (madvise(reinterpret_cast<void*>(start), length, MADV_POPULATE_WRITE) == 0) {
        return;
    }
#endif
    // Before Linux 5.14. Others may be at work in the same page, so nothing is changed by the write.
    for (std::uintptr_t page = start; page < start + length; page += page_bytes) {
        std::uintptr_t address = page < first ? first : page;
        weir::shared(*reinterpret_cast<std::uint8_t*>(address)).fetch_or(0, std::memory_order_relaxed);
    }
}

/// The memory that is measured is what separately started programs share: a file in /dev/shm. Its name is gone at once, so
/// that nothing is left of a benchmark that is interrupted.
weir::Segment named_segment(std::size_t bytes) {
    static unsigned count = 0;
    const std::string name = "weir-bench." + std::to_string(getpid()) + "." + std::to_string(++count);
    weir::Segment segment = weir::Segment::create(name, bytes);
    weir::Segment::remove(name);
    return segment;
}

} // namespace

bool is_tiny() noexcept {
    return tiny;
}

void set_tiny() noexcept {
    tiny = true;
}

void set_writes_histograms() noexcept {
    writes_histograms = true;
}

bool has_failed() noexcept {
    return failed;
}

unsigned processor_count() noexcept {
    return static_cast<unsigned>(processors().size());
}

unsigned processor(unsigned number) noexcept {
    return static_cast<unsigned>(processors()[number % processors().size()]);
}

void pin(unsigned number) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor(number), &set);
    require(sched_setaffinity(0, sizeof(set), &set) == 0, "cannot pin a process to its processor");
}

void Process::in_step() noexcept {
    pthread_barrier_wait(&trial_->shared_->barrier);
}

double Process::ping_pong() {
    std::uint64_t& word = trial_->shared_->ping_pong_words[0].value;
    return play_ping_pong(word, word);
}

double Process::ping_pong_on_two_lines() {
    return play_ping_pong(trial_->shared_->ping_pong_words[0].value, trial_->shared_->ping_pong_words[1].value);
}

double Process::play_ping_pong(std::uint64_t& there, std::uint64_t& back) {
    const std::uint64_t warm_up_count = scaled(2'000, 2);
    const std::uint64_t round_count = scaled(50'000, 5);
    in_step();
    double elapsed_ns = 0;
    if (number_ < 2) {
        Spin spin;
        const auto wait_for = [&spin](std::uint64_t& word, std::uint64_t value) {
            while (weir::shared(word).load(std::memory_order_acquire) != value) {
                spin();
            }
        };
        const auto play = [&](std::uint64_t count) {
            for (std::uint64_t round = 0; round < count; ++round) {
                if (number_ == 0) {
                    weir::shared(there).store(ping_pong_value_ + 1, std::memory_order_release);
                    wait_for(back, ping_pong_value_ + 2);
                } else {
                    wait_for(there, ping_pong_value_ + 1);
                    weir::shared(back).store(ping_pong_value_ + 2, std::memory_order_release);
                }
                ping_pong_value_ += 2;
            }
        };
        play(warm_up_count);
        const Stopwatch stopwatch;
        play(round_count);
        elapsed_ns = stopwatch.elapsed_ns();
    }
    in_step();
    return elapsed_ns / static_cast<double>(2 * round_count);
}

double Process::futex_ping_pong() {
    std::vector<double> round_trips_ns;
    futex_ping_pong(scaled(100, 2), round_trips_ns);
    round_trips_ns.clear();
    futex_ping_pong(scaled(2'000, 10), round_trips_ns);
    return round_trips_ns.empty() ? 0 : median(round_trips_ns) / 2;
}

void Process::futex_ping_pong(std::uint64_t count, std::vector<double>& round_trips_ns) {
    round_trips_ns.reserve(round_trips_ns.size() + count);
    in_step();
    if (number_ < 2) {
        const std::uint32_t& word = trial_->shared_->futex_word;
        for (std::uint64_t round = 0; round < count; ++round) {
            const Stopwatch stopwatch;
            const std::uint32_t mine = futex_value_ + number_;
            for (std::uint32_t seen = 0; (seen = weir::shared(word).load(std::memory_order_acquire)) != mine;) {
                weir::futex_wait(word, seen, weir::deadline_never);
            }
            weir::shared(word).store(mine + 1, std::memory_order_release);
            weir::futex_wake(word, 1);
            futex_value_ += 2;
            round_trips_ns.push_back(stopwatch.elapsed_ns());
        }
    }
    in_step();
}

void Process::record(const std::string& name, double value) {
    if (!is_first()) {
        return;
    }
    Trial::Shared& shared = *trial_->shared_;
    require(shared.record_count < std::size(shared.records), "too many results in one repetition");
    Trial::Record& record = shared.records[shared.record_count++];
    std::snprintf(record.name, sizeof(record.name), "%s", name.c_str());
    record.value = value;
}

Trial::Trial(unsigned process_count) : process_count_(process_count) {
    shared_ = &share<Shared>();
    pthread_barrierattr_t attributes;
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    const int error = pthread_barrier_init(&shared_->barrier, &attributes, process_count);
    pthread_barrierattr_destroy(&attributes);
    require(error == 0, "cannot make a barrier");
}

std::span<std::byte> Trial::share_bytes(std::size_t bytes) {
    segments_.push_back(named_segment(bytes));
    map_in(segments_.back().bytes());
    return segments_.back().bytes().first(bytes);
}

bool Trial::play(unsigned number, const std::function<void(Process&)>& body) noexcept {
    try {
        pin(number);
        for (const weir::Segment& segment : segments_) {
            map_in(segment.bytes());
        }
        Process process(*this, number);
        body(process);
        return true;
    } catch (const std::exception& error) {
        std::snprintf(shared_->failure, sizeof(shared_->failure), "process %u: %s", number, error.what());
        return false;
    }
}

void Trial::run(const std::function<void(Process&)>& body) {
    run_forked(process_count_, [&](unsigned number) { return play(number, body); });
}

void Trial::run_threads(const std::function<void(Process&)>& body) {
    run_forked(1, [&](unsigned) {
        std::vector<std::thread> threads;
        for (unsigned number = 0; number < process_count_; ++number) {
            threads.emplace_back([&, number] {
                if (!play(number, body)) {
                    _exit(1); // the others wait for it in vain
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        return true;
    });
}

void Trial::run_forked(unsigned count, const std::function<bool(unsigned)>& body) {
    std::fflush(nullptr);
    std::vector<pid_t> children;
    for (unsigned number = 0; number < count; ++number) {
        const pid_t child = fork();
        require(child >= 0, "cannot fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            alarm(watchdog_seconds);
            _exit(body(number) ? 0 : 1);
        }
        children.push_back(child);
    }
    std::string failure;
    for (std::size_t left = children.size(); left > 0;) {
        // Whichever ends first: when one fails, the others wait for it in vain.
        int status = 0;
        const pid_t ended = waitpid(-1, &status, 0);
        if (ended < 0 && errno == EINTR) {
            continue;
        }
        require(ended > 0, "a child process is gone");
        for (pid_t& child : children) {
            if (child == ended) {
                child = 0;
                --left;
            }
        }
        if (status != 0 && failure.empty()) {
            failure = WIFEXITED(status) ? std::string(shared_->failure)
                                        : "a process was ended by signal " + std::to_string(WTERMSIG(status));
            for (const pid_t child : children) {
                if (child != 0) {
                    kill(child, SIGKILL);
                }
            }
        }
    }
    if (!failure.empty()) {
        throw std::runtime_error(failure);
    }
}

Results Trial::results() const {
    // More processes than processors are told as such: oversubscribed.
    Results results{{"process_count", process_count_}, {"processor_count", processor_count()}};
    for (std::uint32_t number = 0; number < shared_->record_count; ++number) {
        results[shared_->records[number].name] = shared_->records[number].value;
    }
    return results;
}

namespace {

std::size_t control_bytes(const std::vector<weir::BufferPoolOptions>& pools,
                          const std::vector<weir::PortOptions>& ports) {
    std::size_t bytes = weir::round_up(weir::ProcessTable::bytes(), weir::cache_line_bytes);
    for (const weir::BufferPoolOptions& pool : pools) {
        bytes += weir::round_up(weir::BufferPool::control_bytes(pool), weir::cache_line_bytes);
    }
    for (const weir::PortOptions& port : ports) {
        bytes += weir::round_up(weir::Port::bytes(port), weir::cache_line_bytes);
    }
    return bytes;
}

std::size_t payload_bytes(const std::vector<weir::BufferPoolOptions>& pools) {
    std::size_t bytes = 0;
    for (const weir::BufferPoolOptions& pool : pools) {
        bytes += weir::BufferPool::payload_bytes(pool);
    }
    return bytes;
}

} // namespace

SharedDomain::SharedDomain(std::vector<weir::BufferPoolOptions> pools, std::vector<weir::PortOptions> ports)
    : pool_options_(std::move(pools)), port_options_(std::move(ports)),
      control_(named_segment(control_bytes(pool_options_, port_options_))),
      payload_(named_segment(payload_bytes(pool_options_))) {
    map_in(control_.bytes());
    weir::SegmentCursor cursor(control_.bytes());
    static_cast<void>(cursor.take(weir::ProcessTable::bytes()));
    std::uint32_t first_buffer = 0;
    for (weir::BufferPoolOptions& pool : pool_options_) {
        pool.first_buffer = first_buffer;
        first_buffer += pool.buffer_count;
        weir::BufferPool::format(cursor.take(weir::BufferPool::control_bytes(pool)), pool);
    }
    std::uint32_t port_id = 0;
    for (weir::PortOptions& port : port_options_) {
        port.port_id = port_id++;
        weir::Port::format(cursor.take(weir::Port::bytes(port)), port);
    }
}

SharedDomain::Member SharedDomain::join(MapIn payload_pages) const {
    map_in(control_.bytes());
    weir::SegmentCursor control(control_.bytes());
    weir::SegmentCursor payload(payload_.bytes());
    weir::ProcessTable table(control.take(weir::ProcessTable::bytes()));
    Member member{table.join(), {}, {}, {}};
    for (const weir::BufferPoolOptions& options : pool_options_) {
        const std::span<std::byte> pool_control = control.take(weir::BufferPool::control_bytes(options));
        const std::span<std::byte> pool_payload = payload.take(weir::BufferPool::payload_bytes(options));
        if (options.buffer_bytes <= 4096 || payload_pages == MapIn::everything) {
            map_in(pool_payload);
        } else {
            for (std::size_t index = 0; index < options.buffer_count; ++index) {
                map_in(pool_payload.subspan(index * (pool_payload.size() / options.buffer_count), 1));
            }
        }
        member.pools.emplace_back(pool_control, pool_payload, member.me);
        member.buffers.add(member.pools.back());
    }
    for (const weir::PortOptions& options : port_options_) {
        member.ports.emplace_back(control.take(weir::Port::bytes(options)), member.me, member.buffers);
    }
    return member;
}

void SharedDomain::Member::leave() {
    require(!weir::leave(me, buffers, ports).error, "leaving has failed");
}

void SharedDomain::require_idle() const {
    Member member = join();
    weir::DomainCensus census;
    const std::vector<std::string> broken = weir::check_domain(member.me.table, member.buffers, member.ports, &census);
    std::uint32_t buffer_count = 0;
    for (const weir::BufferPool& pool : member.pools) {
        buffer_count += pool.buffer_count();
    }
    member.leave();
    require(broken.empty(), broken.empty() ? "" : broken.front().c_str());
    require(census.free_count == buffer_count, "not all buffers are free in the end");
}

DomainName::DomainName() {
    static unsigned count = 0;
    name_ = "bench." + std::to_string(getpid()) + "." + std::to_string(++count);
}

DomainName::~DomainName() {
    weir::Domain::RemoveOptions options;
    options.force = true;
    options.lock_file = true;
    weir::Domain::remove(name_, options);
}

double median(std::vector<double> values) {
    require(!values.empty(), "there is no median of nothing");
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

void report_histogram(Results& results, const std::string& name, const Histogram& histogram) {
    const auto report = [&](const char* what, std::uint64_t value) {
        results[name + what] = static_cast<double>(value);
    };
    report("_p50_ns", histogram.quantile(0.5));
    report("_p99_ns", histogram.quantile(0.99));
    report("_p999_ns", histogram.quantile(0.999));
    report("_p9999_ns", histogram.quantile(0.9999));
    report("_max_ns", histogram.max());
    report("_recorded_count", histogram.count());
    if (writes_histograms) {
        histograms += (histograms.empty() ? "" : " ") + name + "=" + histogram.text();
    }
}

Registration::Registration(const std::string& name, const char* time_name, std::function<void(Results&)> measure) {
    benchmark::RegisterBenchmark(name.c_str(),
                                 [measure = std::move(measure), time_name](benchmark::State& state) {
                                     for (auto _ : state) {
                                         try {
                                             Results results;
                                             histograms.clear();
                                             measure(results);
                                             for (const auto& [result, value] : results) {
                                                 state.counters[result] = value;
                                             }
                                             state.SetLabel(histograms);
                                             state.SetIterationTime(results.at(time_name) * 1e-9);
                                         } catch (const std::exception& error) {
                                             failed = true;
                                             std::fprintf(stderr, "benchmark failed: %s\n", error.what());
                                             state.SkipWithError(error.what());
                                             break;
                                         }
                                     }
                                 })
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kNanosecond);
}

} // namespace bench
