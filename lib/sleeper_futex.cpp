#include "io_thread.hpp"
#include "sleeper.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <vector>

#include <ctime>
#include <sys/syscall.h>
#include <unistd.h>

namespace weir::detail {

namespace {

// As in the kernel's headers since 5.16; those at hand may be older.
#if defined(SYS_futex_waitv)
constexpr long syscall_futex_waitv = SYS_futex_waitv;
#else
constexpr long syscall_futex_waitv = 449; // on all architectures
#endif
constexpr std::size_t waitv_count_max = 128;

struct WaitvEntry {
    std::uint64_t value;
    std::uint64_t address;
    std::uint32_t flags;
    std::uint32_t reserved;
};
static_assert(sizeof(WaitvEntry) == 24);
constexpr std::uint32_t waitv_size_u32 = 2; // and not FUTEX2_PRIVATE: the words are shared

/// Sleeps in futex_waitv() or, as the last resort, on the doorbell's futex alone.
class FutexSleeper final : public Sleeper {
public:
    FutexSleeper(SleeperClient& client, SchedulerCounters& counters, const SleeperOptions& options)
        : client_(&client), counters_(&counters), doorbell_(options.doorbell),
          uses_waitv_(options.path == WaitPath::futex_waitv) {
        if (uses_waitv_ && !is_futex_waitv_available()) {
            throw std::system_error(ENOSYS, std::system_category(), "futex_waitv (Linux 5.16 has it)");
        }
    }

    void watch(Waitable& waitable) override {
        if (!waitable.is_watched) {
            waitable.is_watched = true;
            watched_.push_back(&waitable);
        }
    }

    /// A re-check finds who died.
    void watch_peers(int) override {}

    void submit(IoRequest& request) override {
        if (io_thread_ == nullptr) {
            io_thread_ = std::make_unique<IoThread>([this] { doorbell_->event().notify(); });
        }
        count_one(counters_->requests);
        io_thread_->submit(request);
    }

    void cancel(IoRequest& request) override {
        if (io_thread_ != nullptr) {
            io_thread_->cancel(request);
        }
    }

    void flush() override {}

    [[nodiscard]] bool has_news() noexcept override {
        if (io_thread_ != nullptr && io_thread_->has_ended_requests()) {
            return true;
        }
        // The more words there are, the more seldom all are looked at: a few for each call.
        if ((look_credit_ += 8) < watched_.size()) {
            return false;
        }
        look_credit_ = 0;
        return std::ranges::any_of(watched_, [](Waitable* waitable) {
            return waitable->is_awaited && has_changed(waitable); // what is not awaited any more may be closed
        });
    }

    void collect() override { tell_all(); }

    bool sleep(DeadlineNs until_ns) override {
        if (tell_all()) {
            recheck_pause_ns_ = recheck_pause_min_ns;
            return true;
        }
        count_one(counters_->sleeps);
        if (uses_waitv_) {
            wait_for_all(until_ns);
        } else {
            // Only what rings the doorbell is noticed at once.
            count_one(counters_->futex_waits);
            const DeadlineNs pause_end_ns = deadline_after(recheck_pause_ns_);
            futex_wait(doorbell_->event().word(), doorbell_->key, std::min(until_ns, pause_end_ns));
        }
        const bool has_told = tell_all();
        recheck_pause_ns_ = has_told ? recheck_pause_min_ns : std::min(2 * recheck_pause_ns_, recheck_pause_max_ns);
        return has_told;
    }

private:
    static constexpr std::int64_t recheck_pause_min_ns = 1'000'000;
    static constexpr std::int64_t recheck_pause_max_ns = 100'000'000;

    [[nodiscard]] static bool has_changed(Waitable* waitable) noexcept {
        // (1) acquire: a hint to look, made by who notified; pairs with (3) in event_count.hpp
        return shared(waitable->event().word()).load(std::memory_order_acquire) != waitable->key;
    }

    void wait_for_all(DeadlineNs until_ns) {
        std::array<WaitvEntry, waitv_count_max> entries;
        entries[0] = entry_of(*doorbell_);
        std::size_t count = 1;
        // Those that fell asleep last are the likeliest to wake; a re-check looks at those for whom there is no room.
        for (auto waitable = watched_.rbegin(); waitable != watched_.rend() && count < waitv_count_max; ++waitable) {
            entries[count++] = entry_of(**waitable);
        }
        timespec until{};
        until.tv_sec = static_cast<time_t>(until_ns / 1'000'000'000);
        until.tv_nsec = static_cast<long>(until_ns % 1'000'000'000);
        count_one(counters_->futex_waitvs);
        const long result =
            syscall(syscall_futex_waitv, entries.data(), static_cast<unsigned>(count), 0U, &until, CLOCK_MONOTONIC);
        if (result < 0 && errno != EAGAIN && errno != ETIMEDOUT && errno != EINTR) {
            throw std::system_error(errno, std::system_category(), "futex_waitv");
        }
    }

    [[nodiscard]] static WaitvEntry entry_of(Waitable& waitable) noexcept {
        return {waitable.key, reinterpret_cast<std::uint64_t>(&waitable.event().word()), waitv_size_u32, 0};
    }

    bool tell_all() {
        bool has_told = false;
        if (io_thread_ != nullptr && io_thread_->has_ended_requests()) {
            for (IoRequest* request : io_thread_->take_ended()) {
                client_->on_request_end(*request);
                has_told = true;
            }
        }
        std::erase_if(watched_, [&](Waitable* waitable) {
            if (waitable->is_awaited && !has_changed(waitable)) {
                return false;
            }
            waitable->is_watched = false;
            if (waitable->is_awaited) {
                has_told = true;
                client_->on_change(*waitable);
            }
            return true;
        });
        return has_told;
    }

    SleeperClient* client_;
    SchedulerCounters* counters_;
    Waitable* doorbell_;
    bool uses_waitv_;
    std::vector<Waitable*> watched_;
    std::size_t look_credit_ = 0;
    std::int64_t recheck_pause_ns_ = recheck_pause_min_ns;
    std::unique_ptr<IoThread> io_thread_;
};

} // namespace

bool is_futex_waitv_available() noexcept {
    // None to wait for is an error that tells that the call is there.
    return syscall(syscall_futex_waitv, nullptr, 0U, 0U, nullptr, CLOCK_MONOTONIC) < 0 && errno == EINVAL;
}

std::unique_ptr<Sleeper> make_futex_sleeper(SleeperClient& client, SchedulerCounters& counters,
                                            const SleeperOptions& options) {
    return std::make_unique<FutexSleeper>(client, counters, options);
}

} // namespace weir::detail
