// What a worker sleeps in: one system call that watches event counts, requests, and the ends of peers' processes.
#pragma once

#include <weir/scheduler.hpp>

#include <memory>
#include <string>

namespace weir::detail {

/// What is told; a worker.
class SleeperClient {
public:
    /// The waitable's event may have changed; it is not watched any more.
    virtual void on_change(Waitable& waitable) noexcept = 0;
    virtual void on_request_end(IoRequest& request) noexcept = 0;
    /// A process that was watched has ended; none is watched any more.
    virtual void on_peer_end() noexcept = 0;
    /// Something that was wished for is not to be had.
    virtual void on_note(const std::string& note) noexcept = 0;

protected:
    ~SleeperClient() = default;
};

/// Used by one thread. A waitable that is watched lives as long as the sleeper.
class Sleeper {
public:
    Sleeper() = default;
    Sleeper(const Sleeper&) = delete;
    Sleeper& operator=(const Sleeper&) = delete;
    virtual ~Sleeper() = default;

    /// The client is told when the waitable's event is not `key` any more, perhaps also before. The caller has set the
    /// waiters' bit. A waitable that is watched already stays so, whatever its key is now: who notifies wakes all.
    virtual void watch(Waitable& waitable) = 0;
    /// The client is told when `descriptor` becomes readable, where that can be watched.
    virtual void watch_peers(int descriptor) = 0;

    virtual void submit(IoRequest& request) = 0;
    virtual void cancel(IoRequest& request) = 0;
    /// Hands over what was submitted, where that is not done at once.
    virtual void flush() = 0;

    /// A look of a few instructions whether collect() has something to tell.
    [[nodiscard]] virtual bool has_news() noexcept = 0;
    virtual void collect() = 0;
    /// Sleeps until there is something to tell, and tells it, or until the deadline. False: the time is over.
    virtual bool sleep(DeadlineNs until_ns) = 0;
};

struct SleeperOptions {
    WaitPath path = WaitPath::io_uring; ///< not automatic
    int lock_descriptor = -1;           ///< what an io_uring keeps open until its last request has ended
    bool fixed_buffers = true;
    Waitable* doorbell = nullptr; ///< the worker's own, by which other threads wake it
};

/// Counts one more of something, in a line that only the caller writes.
inline void count_one(std::uint64_t& count) noexcept {
    // relaxed: a number for people to read
    shared(count).store(shared(count).load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

/// Whether a path can be had here, by trying it.
[[nodiscard]] bool is_available(WaitPath path) noexcept;

/// In the thread that will use it.
/// Throws: std::system_error where the path is not to be had.
[[nodiscard]] std::unique_ptr<Sleeper> make_sleeper(SleeperClient& client, SchedulerCounters& counters,
                                                    const SleeperOptions& options);

[[nodiscard]] bool is_io_uring_available() noexcept;
[[nodiscard]] std::unique_ptr<Sleeper> make_io_uring_sleeper(SleeperClient& client, SchedulerCounters& counters,
                                                             const SleeperOptions& options);
[[nodiscard]] bool is_futex_waitv_available() noexcept;
[[nodiscard]] std::unique_ptr<Sleeper> make_futex_sleeper(SleeperClient& client, SchedulerCounters& counters,
                                                          const SleeperOptions& options);

} // namespace weir::detail
