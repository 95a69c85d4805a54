// What the tests share: seeds, errors as values, children under a watchdog, and a small domain in one segment.
#pragma once

#include <weir/weir.hpp>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

namespace test {

/// The seed of this run: WEIR_TEST_SEED, or a new one. Tests CAPTURE() it, so that a failure prints it.
inline std::uint64_t seed() {
    static const std::uint64_t value = [] {
        const char* text = std::getenv("WEIR_TEST_SEED");
        return text != nullptr ? std::strtoull(text, nullptr, 0) : std::uint64_t{std::random_device{}()};
    }();
    return value;
}

class Random {
public:
    explicit Random(std::uint64_t seed) : engine_(seed) {}

    [[nodiscard]] std::uint64_t next() { return engine_(); }
    /// 0 to `end` - 1. (The standard's distributions give other numbers with another library.)
    template <class Number>
    [[nodiscard]] Number below(Number end) {
        return static_cast<Number>(engine_() % static_cast<std::uint64_t>(end));
    }
    [[nodiscard]] bool one_in(unsigned count) { return below(count) == 0; }

private:
    std::mt19937_64 engine_;
};

/// From here on what this process, in a mount namespace of its own, mounts at `place` is there for it alone. In a chroot / is
/// no mount, and `place` has to be one.
[[nodiscard]] inline bool hide_mounts_at(const char* place) {
    return mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 ||
           mount(nullptr, place, nullptr, MS_PRIVATE, nullptr) == 0;
}

/// The error that `call` throws; none, where it returns.
template <class Call>
[[nodiscard]] std::error_code error_of(Call&& call) {
    try {
        static_cast<void>(call());
    } catch (const std::system_error& error) {
        return error.code();
    }
    return {};
}

/// Zeroed memory of this process that starts on a cache line.
class Memory {
public:
    explicit Memory(std::size_t bytes)
        : bytes_(bytes), address_(static_cast<std::byte*>(std::aligned_alloc(
                             weir::cache_line_bytes, weir::round_up(bytes, weir::cache_line_bytes)))) {
        if (address_ == nullptr) {
            throw std::bad_alloc();
        }
        std::memset(address_.get(), 0, bytes);
    }
    [[nodiscard]] std::span<std::byte> span() const noexcept { return {address_.get(), bytes_}; }
    template <class T>
    [[nodiscard]] T& at(std::size_t offset_bytes) const noexcept {
        return *reinterpret_cast<T*>(address_.get() + offset_bytes);
    }

private:
    struct Free {
        void operator()(std::byte* address) const noexcept { std::free(address); }
    };
    std::size_t bytes_;
    std::unique_ptr<std::byte, Free> address_;
};

/// How a child ended.
struct ChildEnd {
    int status = 0;
    std::string said; ///< what it wrote to stderr

    [[nodiscard]] bool succeeded() const noexcept { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }
    [[nodiscard]] int signal() const noexcept { return WIFSIGNALED(status) ? WTERMSIG(status) : 0; }
};

/// Whether a sanitizer keeps books about memory of its own, which makes page faults.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool is_sanitized = true;
#elif defined(__has_feature)
inline constexpr bool is_sanitized = __has_feature(thread_sanitizer) || __has_feature(address_sanitizer);
#else
inline constexpr bool is_sanitized = false;
#endif

/// Ends a child as failed, and says why.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail_child(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    _exit(1);
}

/// A forked process that runs `body`, and is ended by SIGALRM if it takes too long.
class Child {
public:
    template <class Body>
    explicit Child(Body&& body, unsigned watchdog_s = 100) {
        int ends[2];
        if (pipe(ends) != 0) {
            throw std::system_error(errno, std::system_category(), "pipe");
        }
        std::fflush(nullptr);
        pid_ = fork();
        if (pid_ < 0) {
            throw std::system_error(errno, std::system_category(), "fork");
        }
        if (pid_ == 0) {
            alarm(watchdog_s);
            for (const int caught : {SIGABRT, SIGSEGV, SIGFPE, SIGILL, SIGTERM, SIGINT}) {
                std::signal(caught, SIG_DFL); // the parent's framework reports its own crashes, not a child's
            }
            close(ends[0]);
            dup2(ends[1], STDERR_FILENO);
            close(ends[1]);
            body();
            _exit(0);
        }
        close(ends[1]);
        stderr_ = ends[0];
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() {
        if (pid_ > 0) {
            kill(SIGKILL);
            static_cast<void>(wait());
        }
    }

    [[nodiscard]] pid_t pid() const noexcept { return pid_; }
    void kill(int signal) const noexcept {
        if (pid_ > 0) { // -1 would be everybody
            ::kill(pid_, signal);
        }
    }

    ChildEnd wait() {
        ChildEnd end;
        char text[512];
        for (ssize_t count = 0; (count = read(stderr_, text, sizeof text)) > 0;) {
            end.said.append(text, static_cast<std::size_t>(count));
        }
        close(stderr_);
        while (waitpid(pid_, &end.status, 0) < 0 && errno == EINTR) {
        }
        pid_ = -1;
        return end;
    }

private:
    pid_t pid_ = -1;
    int stderr_ = -1;
};

/// Whether `body` breaks a rule that an assertion names with these words. Always so where assertions are off.
template <class Body>
[[nodiscard]] bool breaks_rule(const std::string& words, Body&& body) {
#if defined(NDEBUG)
    static_cast<void>(body);
    return !words.empty();
#else
    const ChildEnd end = Child(body).wait();
    return end.signal() == SIGABRT && end.said.find(words) != std::string::npos;
#endif
}

/// The memory of a domain: a process table, pools and ports, formatted, in one segment that children share.
class DomainMemory {
public:
    DomainMemory(std::vector<weir::BufferPoolOptions> pools, std::vector<weir::PortOptions> ports)
        : pool_options_(std::move(pools)), port_options_(std::move(ports)), segment_(weir::Segment::anonymous(size())) {
        weir::SegmentCursor cursor(segment_.bytes());
        table_ = cursor.take(weir::ProcessTable::bytes());
        for (const weir::BufferPoolOptions& options : pool_options_) {
            controls_.push_back(cursor.take(weir::BufferPool::control_bytes(options)));
            weir::BufferPool::format(controls_.back(), options);
        }
        for (const weir::BufferPoolOptions& options : pool_options_) {
            payloads_.push_back(cursor.take(weir::BufferPool::payload_bytes(options)));
        }
        for (const weir::PortOptions& options : port_options_) {
            ports_.push_back(cursor.take(weir::Port::bytes(options)));
            weir::Port::format(ports_.back(), options);
        }
    }

    [[nodiscard]] weir::ProcessTable table() const { return weir::ProcessTable(table_); }
    [[nodiscard]] std::span<std::byte> control(std::size_t number = 0) const { return controls_.at(number); }
    [[nodiscard]] std::span<std::byte> payload(std::size_t number = 0) const { return payloads_.at(number); }
    [[nodiscard]] std::span<std::byte> port(std::size_t number = 0) const { return ports_.at(number); }
    [[nodiscard]] std::size_t pool_count() const { return controls_.size(); }
    [[nodiscard]] std::size_t port_count() const { return ports_.size(); }
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return segment_.bytes(); }

    [[nodiscard]] weir::PortState& port_state(std::size_t number = 0) const {
        return *reinterpret_cast<weir::PortState*>(port(number).data());
    }
    [[nodiscard]] weir::RingState& ring_state(std::size_t number = 0) const {
        return *reinterpret_cast<weir::RingState*>(port(number).data() + sizeof(weir::PortState));
    }
    [[nodiscard]] std::uint64_t& cell(std::size_t place, std::size_t number = 0) const {
        return reinterpret_cast<std::uint64_t*>(port(number).data() + sizeof(weir::PortState) +
                                                sizeof(weir::RingState))[place];
    }
    /// Where a pool keeps its hints.
    [[nodiscard]] std::span<std::byte> hints(std::size_t number = 0) const {
        return control(number).subspan(sizeof(weir::BufferPoolState),
                                       weir::FreeHints::bytes(pool_options_.at(number).buffer_count));
    }

private:
    [[nodiscard]] std::size_t size() const {
        const auto padded = [](std::size_t bytes) { return weir::round_up(bytes, weir::cache_line_bytes); };
        std::size_t bytes = padded(weir::ProcessTable::bytes());
        for (const weir::BufferPoolOptions& options : pool_options_) {
            bytes +=
                padded(weir::BufferPool::control_bytes(options)) + padded(weir::BufferPool::payload_bytes(options));
        }
        for (const weir::PortOptions& options : port_options_) {
            bytes += padded(weir::Port::bytes(options));
        }
        return bytes;
    }

    std::vector<weir::BufferPoolOptions> pool_options_;
    std::vector<weir::PortOptions> port_options_;
    weir::Segment segment_;
    std::span<std::byte> table_;
    std::vector<std::span<std::byte>> controls_;
    std::vector<std::span<std::byte>> payloads_;
    std::vector<std::span<std::byte>> ports_;
};

/// A process's place in a domain, or one more place for this process, which then stands for another one.
struct Member {
    explicit Member(const DomainMemory& memory) : Member(memory, memory.table().join()) {}
    Member(const DomainMemory& memory, const weir::Membership& membership) : me(membership) {
        for (std::size_t number = 0; number < memory.pool_count(); ++number) {
            pools.emplace_back(memory.control(number), memory.payload(number), me);
            buffers.add(pools.back());
        }
        for (std::size_t number = 0; number < memory.port_count(); ++number) {
            ports.emplace_back(memory.port(number), me, buffers);
        }
    }

    /// Ends this membership as a clean exit does.
    weir::ReapResult leave() const { return weir::leave(me, buffers, ports); }
    /// Reaps `dead`, whose owner touches nothing any more.
    [[nodiscard]] weir::ReapResult reap(const weir::Membership& dead) const { return weir::reap(dead, buffers, ports); }
    /// What is wrong with the domain, one line each; the domain has to be quiet.
    [[nodiscard]] std::string check(weir::DomainCensus* census = nullptr) const {
        std::string all;
        for (const std::string& broken : weir::check_domain(me.table, buffers, ports, census)) {
            all += broken + "\n";
        }
        return all;
    }
    [[nodiscard]] weir::DomainCensus census() const {
        weir::DomainCensus census;
        static_cast<void>(check(&census));
        return census;
    }

    weir::Membership me;
    std::vector<weir::BufferPool> pools;
    weir::SharedBufferAllocator buffers;
    std::vector<weir::Port> ports;
};

/// Leaves a reference behind as a killed process does: nobody drops it.
inline void abandon(weir::BufferPtr buffer) noexcept {
    buffer.forget();
}

/// Leaves a handle behind as a killed process does: its destructor never runs. (It stays reachable for leak checkers.)
template <class Handle>
void abandon(std::unique_ptr<Handle> handle) {
    static std::mutex mutex;
    static auto& abandoned = *new std::vector<void*>;
    const std::lock_guard lock(mutex);
    abandoned.push_back(handle.release());
}

template <class Number>
void write_number(const weir::BufferPtr& buffer, Number number) {
    std::memcpy(buffer.bytes().data(), &number, sizeof number);
}
template <class Number = int>
[[nodiscard]] Number read_number(const weir::BufferPtr& buffer) {
    Number number{};
    std::memcpy(&number, buffer.bytes().data(), sizeof number);
    return number;
}

/// Calls of the futex seam, counted; they still reach the kernel. For one test at a time.
class CountedFutex {
public:
    CountedFutex() {
        wait_count = 0;
        wake_count = 0;
        real = weir::replace_futex_ops({
            [](const std::uint32_t& word, std::uint32_t expected, weir::DeadlineNs deadline_ns) noexcept {
                wait_count.fetch_add(1);
                real.wait(word, expected, deadline_ns);
            },
            [](const std::uint32_t& word, std::uint32_t count_max) noexcept {
                wake_count.fetch_add(1);
                return real.wake(word, count_max);
            },
            []() noexcept { return real.monotonic_ns(); },
        });
    }
    CountedFutex(const CountedFutex&) = delete;
    CountedFutex& operator=(const CountedFutex&) = delete;
    ~CountedFutex() { static_cast<void>(weir::replace_futex_ops(real)); }

    static inline std::atomic<unsigned> wait_count{0};
    static inline std::atomic<unsigned> wake_count{0};

private:
    static inline weir::FutexOps real{};
};

} // namespace test
