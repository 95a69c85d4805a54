#include "io_thread.hpp"

#include "blocked_signals.hpp"

#include <algorithm>
#include <cerrno>
#include <system_error>

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace weir::detail {

namespace {

// What poll() calls writable takes that much without keeping the writer waiting, also where it cannot be told not to.
constexpr std::size_t patient_write_bytes = 4'096;

} // namespace

IoThread::IoThread(std::function<void()> ring)
    : ring_(std::move(ring)), event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (event_ < 0) {
        throw std::system_error(errno, std::system_category(), "eventfd for the thread that reads and writes files");
    }
    try {
        const BlockedSignals blocked;
        thread_ = std::thread([this] { serve(); });
    } catch (...) {
        close(event_);
        throw;
    }
}

IoThread::~IoThread() {
    {
        const std::lock_guard guard(mutex_);
        is_stopped_ = true;
    }
    wake();
    thread_.join();
    close(event_);
}

void IoThread::submit(IoRequest& request) {
    {
        const std::lock_guard guard(mutex_);
        submitted_.push_back(&request);
    }
    wake();
}

void IoThread::cancel(IoRequest& request) {
    {
        const std::lock_guard guard(mutex_);
        cancelled_.push_back(&request);
    }
    wake();
}

std::vector<IoRequest*> IoThread::take_ended() {
    const std::lock_guard guard(mutex_);
    // relaxed: under the mutex
    has_ended_.store(false, std::memory_order_relaxed);
    return std::exchange(ended_, {});
}

void IoThread::end(IoRequest& request) {
    {
        const std::lock_guard guard(mutex_);
        ended_.push_back(&request);
        say_ended();
    }
    ring_();
}

void IoThread::say_ended() noexcept {
    // (2) seq_cst: before the doorbell's bit is looked at; pairs with (1) in io_thread.hpp, and (2) in event_count.hpp
    has_ended_.store(true, std::memory_order_seq_cst);
}

void IoThread::wake() noexcept {
    const std::uint64_t one = 1;
    static_cast<void>(!write(event_, &one, sizeof one));
}

/// Regular files and block devices never keep one waiting for somebody else.
bool IoThread::may_wait(IoRequest& request) {
    struct stat status {};
    return request.kind != IoRequest::Kind::sync && fstat(request.descriptor, &status) == 0 &&
           !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode);
}

void IoThread::carry_out(IoRequest& request, bool may_wait) noexcept {
    iovec bytes{request.bytes.data(), request.bytes.size()};
    off_t offset = request.offset < 0 ? -1 : static_cast<off_t>(request.offset);
    int flags = may_wait ? RWF_NOWAIT : 0;
    for (;;) {
        ssize_t result = 0;
        switch (request.kind) {
        case IoRequest::Kind::read: result = preadv2(request.descriptor, &bytes, 1, offset, flags); break;
        case IoRequest::Kind::write: result = pwritev2(request.descriptor, &bytes, 1, offset, flags); break;
        case IoRequest::Kind::sync: result = fsync(request.descriptor); break;
        }
        request.result = result < 0 ? -errno : result;
        if (request.result == -ESPIPE && offset >= 0) {
            offset = -1; // it has no places
        } else if (request.result == -EOPNOTSUPP && flags != 0) {
            flags = 0;
            if (request.kind == IoRequest::Kind::write) {
                bytes.iov_len = std::min(bytes.iov_len, patient_write_bytes);
            }
        } else if (request.result != -EINTR) {
            return;
        }
    }
}

void IoThread::serve() noexcept {
    std::vector<IoRequest*> waiting; // for poll()
    std::vector<pollfd> polled;
    for (;;) {
        std::vector<IoRequest*> fresh;
        {
            const std::lock_guard guard(mutex_);
            if (is_stopped_) {
                return;
            }
            fresh = std::exchange(submitted_, {});
            for (IoRequest* request : std::exchange(cancelled_, {})) {
                // Ended where it is found; where it is not, it has ended already.
                for (std::vector<IoRequest*>* list : {&fresh, &waiting}) {
                    if (std::erase(*list, request) > 0) {
                        request->result = -ECANCELED;
                        ended_.push_back(request);
                        say_ended();
                    }
                }
            }
        }
        if (has_ended_requests()) {
            ring_();
        }
        for (IoRequest* request : fresh) {
            if (may_wait(*request)) {
                waiting.push_back(request);
            } else {
                carry_out(*request, false);
                end(*request);
            }
        }
        if (!fresh.empty()) {
            continue; // perhaps there are new ones by now
        }
        polled.assign(1, {event_, POLLIN, 0});
        for (const IoRequest* request : waiting) {
            polled.push_back({request->descriptor,
                              static_cast<short>(request->kind == IoRequest::Kind::read ? POLLIN : POLLOUT), 0});
        }
        if (poll(polled.data(), polled.size(), -1) < 0) {
            continue;
        }
        std::uint64_t count = 0;
        static_cast<void>(!read(event_, &count, sizeof count));
        // From the end, so that taking one out leaves the places before it.
        for (std::size_t place = waiting.size(); place-- > 0;) {
            if (polled[place + 1].revents != 0) {
                IoRequest* const request = waiting[place];
                carry_out(*request, true);
                if (request->result == -EAGAIN) {
                    continue; // another reader was faster
                }
                waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(place));
                end(*request);
            }
        }
    }
}

} // namespace weir::detail
