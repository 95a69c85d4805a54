// Empty where there is no liburing: then sleeper.cpp says that there is no such path.
#if defined(WEIR_HAS_LIBURING)

#include "listed_descriptor.hpp"
#include "sleeper.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <vector>

#include <liburing.h>
#include <poll.h>

namespace weir::detail {

namespace {

// As in the kernel's headers since 6.7; those at hand may be older.
constexpr std::uint8_t opcode_futex_wait = 51;
constexpr int futex2_size_u32 = 2; // and not FUTEX2_PRIVATE: the words are shared
constexpr std::uint64_t futex_bitset_match_any = 0xffff'ffff;

constexpr unsigned submission_count = 256;
constexpr unsigned completion_count = 4'096; // what does not fit is kept by the kernel
constexpr unsigned fixed_buffer_count = 64;
constexpr std::size_t request_bytes_max = std::size_t{1} << 30;
constexpr std::uint64_t fixed_buffer_bytes_max = std::uint64_t{1} << 30;

/// What a completion belongs to, in the low bits of its user data.
enum class Kind : std::uint64_t { nothing = 0, waitable = 1, request = 2, peers = 3, mask = 3 };

std::uint64_t tag(const void* object, Kind kind) noexcept {
    return reinterpret_cast<std::uint64_t>(object) | static_cast<std::uint64_t>(kind);
}

[[noreturn]] void throw_failure(int error, const char* what) {
    throw std::system_error(error, std::system_category(), what);
}

bool has_futex_wait(io_uring& ring) noexcept {
    io_uring_probe* const probe = io_uring_get_probe_ring(&ring);
    const bool has_it = probe != nullptr && io_uring_opcode_supported(probe, opcode_futex_wait) != 0;
    io_uring_free_probe(probe);
    return has_it;
}

class IoUringSleeper final : public Sleeper {
public:
    IoUringSleeper(SleeperClient& client, SchedulerCounters& counters, const SleeperOptions& options)
        : client_(&client), counters_(&counters), doorbell_(options.doorbell) {
        // A forked child closes it: there it would keep the ring, and with it this member's lock.
        descriptor_ = open_listed([this] { return open_ring(); }, [this](int) { io_uring_queue_exit(&ring_); });
        if (descriptor_.number < 0) {
            throw_failure(errno, "io_uring_setup");
        }
        if (!has_futex_wait(ring_)) {
            exit_ring();
            throw_failure(EOPNOTSUPP, "io_uring without futex operations (Linux 6.7 has them)");
        }
        // A ring that may be set up may still be forbidden to be entered.
        if (const int result = io_uring_get_events(&ring_); result < 0) {
            exit_ring();
            throw_failure(-result, "io_uring_enter");
        }
        // Requests in flight outlive the process. Until the last one has ended the kernel keeps the ring's files open, and
        // with this one the lock that says that the process lives: nobody takes the buffers that it may still write to.
        if (const int result = io_uring_register_files(&ring_, &options.lock_descriptor, 1); result < 0) {
            exit_ring();
            throw_failure(-result, "io_uring_register_files");
        }
        if (options.fixed_buffers) {
            if (const int result = io_uring_register_buffers_sparse(&ring_, fixed_buffer_count); result < 0) {
                note_plain("io_uring_register_buffers_sparse", result);
            } else {
                can_register_ = true;
            }
        }
    }

    ~IoUringSleeper() override { exit_ring(); }

    void watch(Waitable& waitable) override {
        if (waitable.is_watched) {
            return;
        }
        waitable.is_watched = true;
        io_uring_sqe* const entry = next_entry();
        io_uring_prep_rw(opcode_futex_wait, entry, futex2_size_u32, &waitable.event().word(), 0, waitable.key);
        entry->addr3 = futex_bitset_match_any;
        entry->user_data = tag(&waitable, Kind::waitable);
    }

    void watch_peers(int descriptor) override {
        io_uring_sqe* const entry = next_entry();
        io_uring_prep_poll_add(entry, descriptor, POLLIN);
        entry->user_data = tag(nullptr, Kind::peers);
    }

    void submit(IoRequest& request) override {
        const auto length = static_cast<unsigned>(std::min(request.bytes.size(), request_bytes_max));
        const auto offset = static_cast<std::uint64_t>(request.offset);
        const int fixed = request.kind == IoRequest::Kind::sync ? -1 : fixed_buffer_of(request);
        io_uring_sqe* const entry = next_entry();
        switch (request.kind) {
        case IoRequest::Kind::read:
            fixed < 0
                ? io_uring_prep_read(entry, request.descriptor, request.bytes.data(), length, offset)
                : io_uring_prep_read_fixed(entry, request.descriptor, request.bytes.data(), length, offset, fixed);
            break;
        case IoRequest::Kind::write:
            fixed < 0
                ? io_uring_prep_write(entry, request.descriptor, request.bytes.data(), length, offset)
                : io_uring_prep_write_fixed(entry, request.descriptor, request.bytes.data(), length, offset, fixed);
            break;
        case IoRequest::Kind::sync: io_uring_prep_fsync(entry, request.descriptor, 0); break;
        }
        entry->user_data = tag(&request, Kind::request);
        count_one(counters_->requests);
        if (fixed >= 0) {
            count_one(counters_->fixed_requests);
        }
    }

    void cancel(IoRequest& request) override {
        io_uring_sqe* const entry = next_entry();
        io_uring_prep_cancel64(entry, tag(&request, Kind::request), 0);
        entry->user_data = tag(nullptr, Kind::nothing);
    }

    void flush() override {
        if (io_uring_sq_ready(&ring_) > 0) {
            count_one(counters_->io_uring_enters);
            check(io_uring_submit(&ring_), "io_uring_submit");
        }
    }

    [[nodiscard]] bool has_news() noexcept override { return io_uring_cq_ready(&ring_) > 0 || has_deferred_work(); }

    void collect() override {
        if (has_deferred_work()) {
            count_one(counters_->io_uring_enters);
            check(io_uring_get_events(&ring_), "io_uring_get_events");
        }
        tell_all();
    }

    bool sleep(DeadlineNs until_ns) override {
        watch(*doorbell_);
        __kernel_timespec timeout{};
        const std::int64_t left_ns = std::max<std::int64_t>(until_ns - monotonic_ns(), 0);
        timeout.tv_sec = left_ns / 1'000'000'000;
        timeout.tv_nsec = left_ns % 1'000'000'000;
        io_uring_cqe* first = nullptr;
        count_one(counters_->io_uring_enters);
        count_one(counters_->sleeps);
        const int result = io_uring_submit_and_wait_timeout(&ring_, &first, 1, &timeout, nullptr);
        if (result != -ETIME) {
            check(result, "io_uring_enter");
        }
        return tell_all();
    }

private:
    [[nodiscard]] int open_ring() noexcept {
        io_uring_params params{};
        // One thread uses it, and completions are worked off when that enters: nothing interrupts the blocks.
        params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
                       IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
        params.cq_entries = completion_count;
        if (const int result = io_uring_queue_init_params(submission_count, &ring_, &params); result < 0) {
            errno = -result;
            return -1;
        }
        io_uring_ring_dontfork(&ring_);
        return ring_.ring_fd;
    }

    void exit_ring() noexcept {
        io_uring_unregister_files(&ring_); // a child that is forked from here on has the ring, but no lock with it
        descriptor_.unlist();
        io_uring_queue_exit(&ring_);
    }

    /// Whether the kernel has something to do for us before it can tell.
    [[nodiscard]] bool has_deferred_work() const noexcept {
        return (IO_URING_READ_ONCE(*ring_.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
    }

    static void check(int result, const char* call) {
        if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY) {
            throw_failure(-result, call);
        }
    }

    [[nodiscard]] io_uring_sqe* next_entry() {
        io_uring_sqe* entry = io_uring_get_sqe(&ring_);
        while (entry == nullptr) {
            flush();
            entry = io_uring_get_sqe(&ring_);
        }
        return entry;
    }

    bool tell_all() {
        bool has_told = false;
        io_uring_cqe* completion = nullptr;
        while (io_uring_peek_cqe(&ring_, &completion) == 0) {
            const std::uint64_t data = completion->user_data;
            const std::int32_t result = completion->res;
            io_uring_cqe_seen(&ring_, completion); // before it is told: what is told may submit anew
            has_told = true;
            void* const object = reinterpret_cast<void*>(data & ~static_cast<std::uint64_t>(Kind::mask));
            switch (static_cast<Kind>(data & static_cast<std::uint64_t>(Kind::mask))) {
            case Kind::waitable:
                static_cast<Waitable*>(object)->is_watched = false;
                client_->on_change(*static_cast<Waitable*>(object));
                break;
            case Kind::request:
                static_cast<IoRequest*>(object)->result = result;
                client_->on_request_end(*static_cast<IoRequest*>(object));
                break;
            case Kind::peers: client_->on_peer_end(); break;
            default: break;
            }
        }
        return has_told;
    }

    /// A pool's payload as the kernel knows it: in pieces of whole buffers.
    struct FixedPool {
        const BufferPoolView* pool;
        int first; ///< negative: not registered
        std::uint64_t piece_bytes;
    };

    [[nodiscard]] int fixed_buffer_of(const IoRequest& request) {
        if (request.pool == nullptr || !can_register_) {
            return -1;
        }
        auto known = std::ranges::find(fixed_pools_, request.pool, &FixedPool::pool);
        if (known == fixed_pools_.end()) {
            fixed_pools_.push_back(register_pool(*request.pool));
            known = std::prev(fixed_pools_.end());
        }
        if (known->first < 0) {
            return -1;
        }
        const auto offset = static_cast<std::uint64_t>(request.bytes.data() - request.pool->payload(0));
        return known->first + static_cast<int>(offset / known->piece_bytes);
    }

    [[nodiscard]] FixedPool register_pool(const BufferPoolView& pool) {
        const std::uint64_t stride_bytes = pool.payload_offset_bytes(1);
        const std::uint64_t total_bytes = pool.payload_offset_bytes(pool.buffer_count());
        const std::uint64_t piece_bytes =
            std::max<std::uint64_t>(fixed_buffer_bytes_max / stride_bytes, 1) * stride_bytes;
        const std::uint64_t piece_count = (total_bytes + piece_bytes - 1) / piece_bytes;
        FixedPool known{&pool, -1, piece_bytes};
        if (piece_count > fixed_buffer_count - used_fixed_buffers_) {
            note_plain("too many pools, or too large ones, to register", 0);
            return known;
        }
        std::vector<iovec> pieces;
        for (std::uint64_t begin = 0; begin < total_bytes; begin += piece_bytes) {
            pieces.push_back({pool.payload(0) + begin, std::min(piece_bytes, total_bytes - begin)});
        }
        const int result = io_uring_register_buffers_update_tag(&ring_, used_fixed_buffers_, pieces.data(), nullptr,
                                                                static_cast<unsigned>(pieces.size()));
        if (result < static_cast<int>(pieces.size())) {
            note_plain("a pool of " + std::to_string(total_bytes) + " bytes cannot be registered", result);
            return known;
        }
        known.first = static_cast<int>(used_fixed_buffers_);
        used_fixed_buffers_ += static_cast<unsigned>(pieces.size());
        return known;
    }

    void note_plain(const std::string& what, int result) {
        client_->on_note("fixed buffers: " + what +
                         (result < 0 ? ": " + std::system_category().message(-result) +
                                           (result == -ENOMEM ? " (raise the memlock limit, ulimit -l)" : "")
                                     : std::string()) +
                         "; files are read and written without them");
    }

    SleeperClient* client_;
    SchedulerCounters* counters_;
    Waitable* doorbell_;
    io_uring ring_{};
    ListedDescriptor descriptor_;
    std::vector<FixedPool> fixed_pools_;
    bool can_register_ = false;
    unsigned used_fixed_buffers_ = 0;
};

} // namespace

bool is_io_uring_available() noexcept {
    io_uring ring{};
    io_uring_params params{};
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    if (io_uring_queue_init_params(2, &ring, &params) < 0) {
        return false;
    }
    const bool has_it = has_futex_wait(ring) && io_uring_get_events(&ring) >= 0;
    io_uring_queue_exit(&ring);
    return has_it;
}

std::unique_ptr<Sleeper> make_io_uring_sleeper(SleeperClient& client, SchedulerCounters& counters,
                                               const SleeperOptions& options) {
    return std::make_unique<IoUringSleeper>(client, counters, options);
}

} // namespace weir::detail

#endif
