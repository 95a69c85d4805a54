// Requests carried out by a helper thread, for workers that have no io_uring.
#pragma once

#include <weir/block.hpp>

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace weir::detail {

/// Used by one worker. Regular files are read and written at once; what may keep one waiting (pipes, terminals, sockets)
/// when poll() says that it can move, so that no request waits behind another's.
class IoThread {
public:
    /// `ring` is called in the helper thread when a request has ended.
    /// Throws: std::system_error where there is no descriptor or thread left.
    explicit IoThread(std::function<void()> ring);
    IoThread(const IoThread&) = delete;
    IoThread& operator=(const IoThread&) = delete;
    /// All requests have ended before.
    ~IoThread();

    void submit(IoRequest& request);
    /// One that has not begun ends with -ECANCELED.
    void cancel(IoRequest& request);

    [[nodiscard]] bool has_ended_requests() const noexcept {
        // (1) seq_cst: who is about to sleep looks here after it set its doorbell's bit; pairs with (2) in io_thread.cpp,
        // and (1) in event_count.hpp
        return has_ended_.load(std::memory_order_seq_cst);
    }
    /// Those that have ended since the last call, with their results.
    [[nodiscard]] std::vector<IoRequest*> take_ended();

private:
    void serve() noexcept;
    [[nodiscard]] bool may_wait(IoRequest& request);
    static void carry_out(IoRequest& request, bool may_wait) noexcept;
    void end(IoRequest& request);
    void say_ended() noexcept;
    void wake() noexcept;

    std::function<void()> ring_;
    int event_ = -1;
    std::mutex mutex_; ///< for what follows up to `thread_`
    std::vector<IoRequest*> submitted_;
    std::vector<IoRequest*> cancelled_;
    std::vector<IoRequest*> ended_;
    bool is_stopped_ = false;
    std::atomic<bool> has_ended_{false};
    std::thread thread_;
};

} // namespace weir::detail
