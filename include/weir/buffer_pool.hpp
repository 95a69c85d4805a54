// buffer_pool.hpp (layer 3): BufferPool, BufferPtr and SharedBufferAllocator.
//
// A pool is N buffers of one size in shared memory, each with its reference words. It lies in two pieces of memory:
// control (parameters, hints, one header of a cache line for each buffer: 4 reference words and 32 bytes of metadata;
// 12 words take a second line) and payload. format() prepares the control memory once; then each process makes its own
// BufferPool over it with its own membership.
//
//     const weir::BufferPoolOptions options{.buffer_bytes = 65536, .buffer_count = 64};
//     weir::BufferPool::format(control, options);                      // once
//     weir::BufferPool pool(control, payload, me);                     // in each process
//     weir::BufferPtr frame = pool.try_allocate();                     // empty when none is free
//     std::ranges::copy(bytes, frame.bytes().begin());
//     frame.resize(bytes.size());
//
// A BufferPtr owns one reference. Copies of it inside the process share that reference and count themselves in private
// memory; clone() takes a further reference, which can cross a port by itself. The last copy to go drops the reference,
// and the buffer is free when its last reference is dropped. Who holds the only reference may write; who shares the
// buffer with others only reads, unless they agree otherwise.
//
// | at the same time                                  | allowed                         |
// | any calls of a BufferPool, from any threads       | yes                             |
// | calls of different BufferPtrs, from any threads   | yes, also of copies of one      |
// | copying one const BufferPtr from several threads  | yes                             |
// | other calls of one BufferPtr from several threads | no                              |
// | format() || anything                              | no                              |
//
// A membership opens a pool once and copies the handle: two views of one membership would write the same hints, and a port
// knows the buffers of the view that it was given. A BufferPool is a counted handle on the view; BufferPtrs point to that view and must not outlive the last
// BufferPool of it.
//
// After fork() the buffers are the parent's still. In the child an inherited BufferPtr is as if it were empty: it has no
// bytes, its clones and copies are empty, and its destructor drops nothing; an inherited BufferPool has no buffer to give,
// and says why in last_error(). The child joins, and makes its own BufferPool. (Addresses that the parent took out of a
// BufferPtr before are beyond what weir can see.)
//
// The memory is not trusted: sizes and indices are bounded by what was checked on opening.
#pragma once

#include <weir/error.hpp>
#include <weir/event_count.hpp>
#include <weir/fork_guard.hpp>
#include <weir/free_hints.hpp>
#include <weir/platform.hpp>
#include <weir/process_table.hpp>
#include <weir/reference.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#pragma GCC visibility push(default)
namespace weir {

inline constexpr std::uint32_t domain_buffer_count_max = 1'048'576;
inline constexpr std::uint64_t buffer_bytes_min = 64;
inline constexpr std::uint64_t buffer_bytes_max = std::uint64_t{1} << 30;
inline constexpr unsigned references_per_line = 4;
inline constexpr unsigned references_per_buffer_max = 12;

/// How a pool is made.
struct BufferPoolOptions {
    std::uint64_t buffer_bytes = 0;          ///< what a buffer holds, 64 B to 1 GiB
    std::uint32_t buffer_count = 0;          ///< 1 to 1,048,576
    std::uint32_t references_per_buffer = 4; ///< 4, or 12: how many ports and processes can hold one buffer at a time
    std::uint32_t first_buffer = 0;          ///< pools of one domain number their buffers without overlap
};

/// The line of a buffer that crosses a port: the reference words and what is said about the message.
/// Progress: wait-free, for who holds the buffer.
/// If the caller dies here: the buffer is held by the dead, and reaping frees it. [crash: allocate, push]
struct alignas(cache_line_bytes) BufferHeader {
    std::uint64_t references[references_per_line];
    std::uint32_t size_bytes;  ///< how much of the buffer is message
    std::uint32_t tag;         ///< the user's
    std::uint64_t sequence;    ///< of the producer that pushed it
    std::uint64_t time_ns;     ///< when it was pushed, where the port was opened with time stamps
    std::uint32_t is_numbered; ///< whether it was pushed since it was allocated
    std::uint32_t reserved;

    /// For who has just allocated the buffer.
    void renew(std::uint32_t bytes) noexcept {
        set_size(bytes);
        tag = 0;
        // relaxed: the buffer is ours alone
        shared(is_numbered).store(0, std::memory_order_relaxed);
    }

    /// For who may write to the buffer.
    void set_size(std::uint32_t bytes) noexcept {
        // relaxed: the push hands it over; who checks a live pool sees one size or another
        shared(size_bytes).store(bytes, std::memory_order_relaxed);
    }

    /// For who is about to push it. Atomic, because two clones may be pushed for the first time at the same time.
    void number(std::uint64_t of_producer, std::uint64_t now_ns) noexcept {
        // relaxed: the push hands them over
        shared(sequence).store(of_producer, std::memory_order_relaxed);
        shared(time_ns).store(now_ns, std::memory_order_relaxed);
        shared(is_numbered).store(1, std::memory_order_relaxed);
    }
};
static_assert(sizeof(BufferHeader) == cache_line_bytes);
static_assert(offsetof(BufferHeader, size_bytes) == 32);

/// What the control memory begins with.
struct BufferPoolState {
    static constexpr std::uint64_t magic_value = 0x3130'6c6f'6f70'6577; // "wepool01"

    std::uint64_t magic;
    std::uint64_t buffer_bytes;
    std::uint64_t stride_bytes;
    std::uint32_t buffer_count;
    std::uint32_t references_per_buffer;
    std::uint32_t first_buffer;
    alignas(cache_line_bytes) std::uint32_t freed_event;
};
static_assert(sizeof(BufferPoolState) == 2 * cache_line_bytes);
static_assert(offsetof(BufferPoolState, freed_event) == cache_line_bytes);

/// One process's view of a pool; what BufferPool, BufferPtr and the ports work on.
/// Progress: lock-free; a scan takes time proportional to the pool.
/// If the caller dies here: a reference is its own, and reaping frees it, or it is not.
/// [crash: allocate, allocate_contended, clone, drop]
class BufferPoolView {
public:
    /// Opens a formatted pool.
    /// Throws: misaligned, wrong_kind, truncated, corrupt.
    BufferPoolView(std::span<std::byte> control, std::span<std::byte> payload, const Membership& membership);
    /// Without payload: for who looks at the words, and takes no buffer.
    BufferPoolView(std::span<std::byte> control, const Membership& membership);
    BufferPoolView(const BufferPoolView&) = delete;
    BufferPoolView& operator=(const BufferPoolView&) = delete;
    ~BufferPoolView() = default;

    /// Whether a parent process made this view.
    [[nodiscard]] bool is_foreign() const noexcept { return stamp_.is_foreign(); }

    [[nodiscard]] std::uint32_t buffer_count() const noexcept { return buffer_count_; }
    [[nodiscard]] std::uint64_t buffer_bytes() const noexcept { return buffer_bytes_; }
    [[nodiscard]] unsigned references_per_buffer() const noexcept { return reference_count_; }
    [[nodiscard]] std::uint32_t first_buffer() const noexcept { return first_buffer_; }
    [[nodiscard]] const Membership& membership() const noexcept { return membership_; }
    [[nodiscard]] Owner owner() const noexcept { return owner_; }

    [[nodiscard]] BufferHeader& header(std::uint32_t index) const noexcept {
        return *reinterpret_cast<BufferHeader*>(headers_ + (std::size_t{index} << header_stride_log2_));
    }
    /// A reference word of a buffer.
    [[nodiscard]] std::uint64_t& reference(std::uint32_t index, unsigned number) const noexcept {
        return reference(header(index), number);
    }
    [[nodiscard]] static std::uint64_t& reference(BufferHeader& header, unsigned number) noexcept {
        // The words of the second line lie behind the header, beyond its array.
        return reinterpret_cast<std::uint64_t*>(&header)[word_place(number)];
    }
    [[nodiscard]] std::byte* payload(std::uint32_t index) const noexcept { return payload_ + index * stride_bytes_; }
    [[nodiscard]] std::uint64_t payload_offset_bytes(std::uint32_t index) const noexcept {
        return index * stride_bytes_;
    }

    /// What came of the attempt to take a buffer.
    enum class Take : std::uint8_t {
        taken,       ///< the buffer is ours, by reference 0
        not_free,    ///< reference 0 is another's
        give_it_back ///< reference 0 is ours, but others are in use
    };
    /// Takes a buffer by its words, if it is free.
    [[nodiscard]] Take take(std::uint64_t* buffer_words) noexcept {
        const std::uint64_t seen = load_reference(buffer_words[0]);
        if (!is_free(seen) || !try_hold(buffer_words[0], seen, owner_)) {
            return Take::not_free;
        }
        return others_stay_free(buffer_words) ? Take::taken : Take::give_it_back;
    }

    /// Takes buffer `index` if it is free.
    [[nodiscard]] bool try_take(std::uint32_t index) noexcept {
        if (!is_unused(index)) {
            return false; // a probe of reference 0 would disturb those who use the buffer by its others
        }
        const Take result = take(words(index));
        if (result == Take::give_it_back) {
            drop(index, 0);
        }
        return result == Take::taken;
    }

    /// Takes any buffer that the hints lead to; its index, or FreeHints::none.
    [[nodiscard]] std::uint32_t search() noexcept;

    /// Looks at every buffer.
    [[nodiscard]] std::uint32_t try_take_by_scan() noexcept { return scan(buffer_count_); }

    /// Takes a further reference of a buffer that the caller holds a reference of. False: all are in use.
    [[nodiscard]] bool try_clone(std::uint32_t index, unsigned& number) noexcept {
        for (number = 0; number < reference_count_; ++number) {
            std::uint64_t& word = reference(index, number);
            const std::uint64_t seen = load_reference(word);
            if (is_free(seen) && try_hold(word, seen, owner_)) {
                return true;
            }
        }
        return false;
    }

    /// Drops a reference that this process holds.
    void drop(std::uint32_t index, unsigned number) noexcept {
        std::uint64_t* const buffer_words = words(index);
        if (!set_free(buffer_words[word_place(number)], owner_)) [[unlikely]] {
            return; // it was taken away from us
        }
        // Of several who drop at once, at least one finds all words free: stores and loads are seq_cst. Who begins to wait
        // after we looked for waiters looks at the words themselves.
        if (is_free(used_states(buffer_words)) && (freed_event().has_waiters() || !hints_.try_push(index)))
            [[unlikely]] {
            offer_and_notify(index);
        }
    }

    [[nodiscard]] bool is_unused(std::uint32_t index) const noexcept { return is_free(used_states(words(index))); }

    /// Whether the reference that the caller holds is the buffer's only one in use.
    [[nodiscard]] bool is_only_reference(const BufferHeader& header) const noexcept {
        const std::uint64_t* const buffer_words = header.references;
        const auto state = [buffer_words](unsigned number) noexcept {
            return static_cast<unsigned>(reference_state(load_reference(buffer_words[word_place(number)])));
        };
        unsigned sum = state(0) + state(1) + state(2) + state(3);
        for (unsigned number = references_per_line; number < reference_count_; ++number) {
            sum += state(number);
        }
        return sum == static_cast<unsigned>(ReferenceState::held);
    }

    [[nodiscard]] EventCount freed_event() const noexcept { return EventCount(state_->freed_event); }
    /// Where a free buffer can probably be found.
    [[nodiscard]] FreeHints& hints() noexcept { return hints_; }

    /// What a waiting allocation does before each sleep. Set once, before the view is used.
    void set_recheck(Recheck& recheck) noexcept { recheck_ = &recheck; }
    void recheck() const noexcept {
        if (recheck_ != nullptr) {
            recheck_->recheck();
        }
    }

    /// The private count of the further copies of a BufferPtr in this process.
    /// Throws: std::bad_alloc, at the first copy in a pool.
    [[nodiscard]] std::atomic<std::uint32_t>& copy_count(std::uint32_t index, unsigned number);

private:
    static constexpr std::uint32_t scan_length = 128;

    BufferPoolView(std::span<std::byte> control, std::span<std::byte> payload, const Membership& membership,
                   const BufferPoolOptions& options);

    /// Words 0 to 3 lie in the header's line, the others in the one behind it.
    [[nodiscard]] static constexpr unsigned word_place(unsigned number) noexcept {
        return number < references_per_line ? number : number + references_per_line;
    }
    [[nodiscard]] std::uint64_t* words(std::uint32_t index) const noexcept { return header(index).references; }

    /// The states of all of a buffer's words, or-ed together.
    [[nodiscard]] std::uint64_t used_states(const std::uint64_t* buffer_words) const noexcept {
        std::uint64_t states = load_reference(buffer_words[0]) | load_reference(buffer_words[1]) |
                               load_reference(buffer_words[2]) | load_reference(buffer_words[3]);
        for (unsigned number = references_per_line; number < reference_count_; ++number) {
            states |= load_reference(buffer_words[word_place(number)]);
        }
        return states;
    }

    /// Reads the other words twice. One reading is not enough: a holder that clones to a lower word and drops the higher
    /// one hides from it, and the buffer would get two owners (tests/model/alloc.pml).
    [[nodiscard]] bool others_stay_free(const std::uint64_t* buffer_words) const noexcept {
        const std::uint64_t seen1 = load_reference(buffer_words[1]);
        const std::uint64_t seen2 = load_reference(buffer_words[2]);
        const std::uint64_t seen3 = load_reference(buffer_words[3]);
        std::uint64_t seen[references_per_buffer_max];
        std::uint64_t states = seen1 | seen2 | seen3;
        for (unsigned number = references_per_line; number < reference_count_; ++number) {
            seen[number] = load_reference(buffer_words[word_place(number)]);
            states |= seen[number];
        }
        if (!is_free(states) || load_reference(buffer_words[1]) != seen1 || load_reference(buffer_words[2]) != seen2 ||
            load_reference(buffer_words[3]) != seen3) {
            return false;
        }
        for (unsigned number = references_per_line; number < reference_count_; ++number) {
            if (load_reference(buffer_words[word_place(number)]) != seen[number]) {
                return false;
            }
        }
        return true;
    }

    void offer_and_notify(std::uint32_t index) noexcept;
    [[nodiscard]] std::uint32_t scan(std::uint32_t length) noexcept;

    ForkStamp stamp_;
    Membership membership_;
    Owner owner_;
    BufferPoolState* state_ = nullptr;
    std::byte* headers_ = nullptr;
    std::byte* payload_ = nullptr;
    unsigned header_stride_log2_ = 0;
    std::uint64_t stride_bytes_ = 0;
    std::uint64_t buffer_bytes_ = 0;
    std::uint32_t buffer_count_ = 0;
    std::uint32_t reference_count_ = 0;
    std::uint32_t first_buffer_ = 0;
    std::atomic<std::uint32_t> scan_cursor_{0};
    Recheck* recheck_ = nullptr;
    FreeHints hints_;
    std::once_flag copy_counts_once_;
    std::unique_ptr<std::atomic<std::uint32_t>[], void (*)(void*)> copy_counts_;
};

/// Owns one reference to a buffer, or nothing.
/// Progress: what reads or sets what is said about the message is wait-free.
/// If the caller dies here: it was the buffer's holder, and reaping frees its reference. [crash: clone, drop, drop_shared]
class BufferPtr {
public:
    BufferPtr() noexcept = default;
    BufferPtr(BufferPtr&& other) noexcept
        : pool_(std::exchange(other.pool_, nullptr)), index_(other.index_), reference_(other.reference_),
          copied_(other.copied_) {}
    BufferPtr& operator=(BufferPtr&& other) noexcept {
        BufferPtr moved(std::move(other));
        swap(moved);
        return *this;
    }
    /// A copy shares the reference; it costs no shared memory.
    /// Progress: lock-free; the first copy in a pool allocates private memory.
    /// Throws: std::bad_alloc, at the first copy in a pool.
    /// If the caller dies here: its reference comes back by reaping, once. [crash: drop, drop_shared]
    BufferPtr(const BufferPtr& other);
    BufferPtr& operator=(const BufferPtr& other) {
        BufferPtr copy(other);
        swap(copy);
        return *this;
    }
    ~BufferPtr() { reset(); }

    /// Drops the reference, if this is its last copy.
    /// Progress: lock-free.
    /// If the caller dies here: the reference is held still and reaping frees it, or it was dropped. [crash: drop, drop_shared]
    void reset() noexcept {
        if (pool_ != nullptr) {
            if (is_ours() && is_last_copy()) {
                pool_->drop(index_, reference_);
            }
            pool_ = nullptr;
        }
    }

    [[nodiscard]] explicit operator bool() const noexcept { return pool_ != nullptr; }

    /// The message: all of the buffer when it is new, what resize() made of it afterwards.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        return is_ours() ? std::span(view().payload(index_), message_bytes()) : std::span<std::byte>();
    }
    [[nodiscard]] std::size_t size_bytes() const noexcept { return is_ours() ? message_bytes() : 0; }
    [[nodiscard]] std::size_t capacity_bytes() const noexcept { return view().buffer_bytes(); }

    /// Says how much of the buffer is message; at most capacity_bytes().
    void resize(std::size_t bytes) noexcept {
        WEIR_ASSERT(bytes <= capacity_bytes(), "a message is not larger than its buffer");
        if (is_ours()) [[likely]] {
            view().header(index_).set_size(static_cast<std::uint32_t>(bytes));
        }
    }

    [[nodiscard]] std::uint32_t tag() const noexcept { return is_ours() ? view().header(index_).tag : 0; }
    /// Says what the user wants to say of the message, in 32 bits.
    void set_tag(std::uint32_t tag) noexcept {
        if (is_ours()) [[likely]] {
            view().header(index_).tag = tag;
        }
    }

    /// The number that the producer which pushed the message gave it, from 0 on. A message is numbered by its first push
    /// since it was allocated, and anew by each push of its only reference: of clones that are pushed to several ports,
    /// the first push numbers all.
    [[nodiscard]] std::uint64_t sequence() const noexcept {
        // relaxed: the push handed it over
        return is_ours() ? shared(view().header(index_).sequence).load(std::memory_order_relaxed) : 0;
    }
    /// When it was numbered, on CLOCK_MONOTONIC in ns, where that port has time stamps; else 0.
    [[nodiscard]] std::uint64_t time_ns() const noexcept {
        // relaxed: the push handed it over
        return is_ours() ? shared(view().header(index_).time_ns).load(std::memory_order_relaxed) : 0;
    }

    /// Takes a further reference to the same buffer; empty when all reference words are in use.
    /// Progress: lock-free.
    /// If the caller dies here: the reference was taken, and reaping frees it, or it was not.
    /// [crash: clone, fan_out]
    [[nodiscard]] BufferPtr clone() const noexcept {
        unsigned number = 0;
        return is_ours() && pool_->try_clone(index_, number) ? BufferPtr(*pool_, index_, number) : BufferPtr();
    }

    /// How many references are in use, and how many copies of this one there are in this process; a snapshot.
    [[nodiscard]] std::uint32_t use_count() const;

    /// The buffer's number in the domain.
    [[nodiscard]] std::uint32_t id() const noexcept { return view().first_buffer() + index_; }
    /// Where the buffer lies in its pool's payload, the same in every process.
    [[nodiscard]] std::uint64_t payload_offset_bytes() const noexcept { return view().payload_offset_bytes(index_); }

    /// Exchanges what both own.
    void swap(BufferPtr& other) noexcept {
        std::swap(pool_, other.pool_);
        std::swap(index_, other.index_);
        std::swap(reference_, other.reference_);
        std::swap(copied_, other.copied_);
    }

    /// For the ports: takes over a reference that this process holds, and gives it away again.
    BufferPtr(BufferPoolView& pool, std::uint32_t index, unsigned reference) noexcept
        : pool_(&pool), index_(index), reference_(static_cast<std::uint8_t>(reference)) {}
    [[nodiscard]] BufferPoolView* pool() const noexcept { return pool_; }
    [[nodiscard]] std::uint32_t index() const noexcept { return index_; }
    [[nodiscard]] unsigned reference() const noexcept { return reference_; }
    [[nodiscard]] bool is_copied() const noexcept { return copied_ != 0 && has_copies(); }
    void forget() noexcept { pool_ = nullptr; }
    /// size_bytes() of a buffer that is this process's.
    [[nodiscard]] std::size_t message_bytes() const noexcept {
        const std::uint64_t size = view().header(index_).size_bytes;
        return size <= view().buffer_bytes() ? size : view().buffer_bytes();
    }

private:
    /// Whether this process, and not one that forked it, owns the reference.
    [[nodiscard]] bool is_ours() const noexcept { return !view().is_foreign(); }
    [[nodiscard]] BufferPoolView& view() const noexcept {
        WEIR_ASSERT(pool_ != nullptr, "an empty BufferPtr has no buffer");
        return *pool_;
    }
    [[nodiscard]] bool is_last_copy() noexcept { return copied_ == 0 || leave_copies(); }
    [[nodiscard]] bool leave_copies() noexcept;
    [[nodiscard]] bool has_copies() const noexcept;

    BufferPoolView* pool_ = nullptr;
    std::uint32_t index_ = 0;
    std::uint8_t reference_ = 0;
    mutable std::uint8_t copied_ = 0; ///< whether this one was ever copied, or is a copy
};

/// A process's handle on a pool. Cheap to copy.
class BufferPool {
public:
    /// The bytes of control and of payload memory that such a pool needs.
    /// Progress: wait-free.
    /// Throws: invalid_size.
    /// If the caller dies here: nothing is left. [crash: none, it only reckons]
    [[nodiscard]] static std::size_t control_bytes(const BufferPoolOptions& options);
    [[nodiscard]] static std::size_t payload_bytes(const BufferPoolOptions& options);

    /// Prepares zeroed control memory, before anyone opens it.
    /// Progress: takes time proportional to the pool; nobody else has it yet.
    /// Throws: invalid_size, misaligned.
    /// If the caller dies here: the memory has no valid pool in it, or it has. [crash: domain_create_pool]
    static void format(std::span<std::byte> control, const BufferPoolOptions& options);

    /// Gives the buffers of a formatted pool other numbers in the domain, before anyone opens it.
    /// Progress: wait-free.
    /// If the caller dies here: as in format(). [crash: domain_create_pool]
    static void renumber(std::span<std::byte> control, std::uint32_t first_buffer) noexcept {
        reinterpret_cast<BufferPoolState*>(control.data())->first_buffer = first_buffer;
    }

    /// Opens a formatted pool for one membership, in the process that will use it.
    /// Progress: wait-free, but for the memory that it allocates.
    /// Throws: misaligned, wrong_kind, truncated, corrupt.
    /// If the caller dies here: nothing was changed. [crash: domain_open_pool]
    BufferPool(std::span<std::byte> control, std::span<std::byte> payload, const Membership& membership)
        : view_(std::make_shared<BufferPoolView>(control, payload, membership)) {}

    /// A further handle on a view that somebody owns.
    explicit BufferPool(std::shared_ptr<BufferPoolView> view) noexcept : view_(std::move(view)) {}

    [[nodiscard]] std::uint32_t buffer_count() const noexcept { return view_->buffer_count(); }
    [[nodiscard]] std::uint64_t buffer_bytes() const noexcept { return view_->buffer_bytes(); }
    [[nodiscard]] unsigned references_per_buffer() const noexcept { return view_->references_per_buffer(); }
    [[nodiscard]] std::uint32_t first_buffer() const noexcept { return view_->first_buffer(); }

    /// used_after_fork in a child of the process that opened the pool: there it gives no buffers. Else none.
    [[nodiscard]] std::error_code last_error() const noexcept {
        return make_error_code(view_->is_foreign() ? errc::used_after_fork : errc{});
    }

    /// A free buffer, or nothing. It looks where the hints lead, into 16 other lanes and at 128 further buffers: while many
    /// processes hoard hints, or after a crash, it may return nothing though a buffer is free; the next calls look further.
    /// Progress: lock-free.
    /// If the caller dies here: the buffer is free, or held by the dead, and reaping frees it.
    /// [crash: allocate, allocate_contended, allocate_contended_12]
    [[nodiscard, gnu::always_inline]] BufferPtr try_allocate() noexcept {
        BufferPoolView& view = *view_;
        if (view.is_foreign()) [[unlikely]] {
            return {};
        }
        const std::uint32_t index = view.hints().pop();
        if (index == FreeHints::none) [[unlikely]] {
            return search();
        }
        BufferHeader& header = view.header(index);
        const BufferPoolView::Take take = view.take(header.references);
        if (take != BufferPoolView::Take::taken) [[unlikely]] {
            return search_after(index, take);
        }
        header.renew(static_cast<std::uint32_t>(view.buffer_bytes()));
        return {view, index, 0};
    }

    /// As try_allocate(), but looks at every buffer, so that nothing means that none was free.
    /// Progress: lock-free; takes time proportional to the pool.
    /// If the caller dies here: as in try_allocate(). [crash: allocate, wait_for_buffer]
    [[nodiscard]] BufferPtr try_allocate_by_scan() noexcept;

    /// Waits until a buffer is free. Empty only in a forked child, see last_error().
    /// Progress: blocking.
    /// If the caller dies here: as in try_allocate(). [crash: allocate, wait_for_buffer]
    [[nodiscard]] BufferPtr allocate(const WaitOptions& wait = {}) noexcept {
        return allocate_until(deadline_never, wait);
    }

    /// As allocate(); empty where none became free in time.
    /// Progress: blocking.
    /// If the caller dies here: as in try_allocate(). [crash: allocate, wait_for_buffer]
    [[nodiscard]] BufferPtr allocate_for(std::chrono::nanoseconds timeout, const WaitOptions& wait = {}) noexcept {
        return allocate_until(deadline_after(timeout.count()), wait);
    }
    [[nodiscard]] BufferPtr allocate_until(DeadlineNs deadline_ns, const WaitOptions& wait = {}) noexcept;

    /// How many buffers have no reference in use; a snapshot that reads every header. 0 in a forked child.
    /// Progress: wait-free, a pass over the headers.
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] std::uint32_t free_count() const noexcept;

    /// Names each broken invariant; empty when the pool is sound. With a table, owners must be alive in it. What it names is
    /// broken whatever others do meanwhile.
    /// Progress: wait-free, a pass over the pool.
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] std::vector<std::string> check(const ProcessTable* table = nullptr) const;

    [[nodiscard]] BufferPoolView& view() const noexcept { return *view_; }

private:
    [[nodiscard]] BufferPtr fresh(std::uint32_t index) noexcept;
    [[nodiscard]] BufferPtr search() noexcept;
    [[nodiscard]] BufferPtr search_after(std::uint32_t index, BufferPoolView::Take failed) noexcept;

    std::shared_ptr<BufferPoolView> view_;
};

/// Where a port finds the pool of a buffer that one of its cells names.
class PoolSource {
public:
    /// The pool that buffer number `id` lies in, or null. From any thread.
    /// Progress: a look; where the pool is not mapped yet, the system calls that map it.
    /// If the caller dies here: nothing was changed. [crash: pop, domain_open_pool]
    [[nodiscard]] virtual BufferPoolView* find_pool(std::uint32_t id) noexcept = 0;

protected:
    ~PoolSource() = default;
};

/// Several pools as one: a size gets a buffer of the pool that fits best, and a message's buffer is found by its number.
/// add() || anything: no; all else from any thread.
class SharedBufferAllocator {
public:
    SharedBufferAllocator() = default;
    /// Begins with one pool; further ones are added.
    /// Progress: wait-free, but for the memory that it allocates.
    /// If the caller dies here: nothing is left. [crash: none, the process's own memory]
    /// Throws: other_parameters, where the pool's buffer numbers overlap another's.
    explicit SharedBufferAllocator(BufferPool pool) { add(std::move(pool)); }
    void add(BufferPool pool);

    /// A free buffer of at least `bytes` bytes, resized to that: from the pool with the smallest buffers that fit, or the
    /// next larger one that has any. Empty where none is free or none is large enough (fits() tells), and in a child of the
    /// process that opened the pools.
    /// Progress: lock-free.
    /// If the caller dies here: as in BufferPool::try_allocate(). [crash: allocate]
    [[nodiscard]] BufferPtr try_allocate(std::size_t bytes) noexcept;

    /// As try_allocate(), but waits for the best pool that fits; not in a forked child.
    /// Progress: blocking.
    /// If the caller dies here: as in BufferPool::allocate(). [crash: allocate, wait_for_buffer]
    [[nodiscard]] BufferPtr allocate(std::size_t bytes, const WaitOptions& wait = {}) noexcept {
        return allocate_until(bytes, deadline_never, wait);
    }
    [[nodiscard]] BufferPtr allocate_for(std::size_t bytes, std::chrono::nanoseconds timeout,
                                         const WaitOptions& wait = {}) noexcept {
        return allocate_until(bytes, deadline_after(timeout.count()), wait);
    }
    [[nodiscard]] BufferPtr allocate_until(std::size_t bytes, DeadlineNs deadline_ns,
                                           const WaitOptions& wait = {}) noexcept;

    [[nodiscard]] bool fits(std::size_t bytes) const noexcept {
        return !pools_.empty() && bytes <= pools_.back().buffer_bytes();
    }

    /// The pool that buffer number `id` lies in, or null.
    /// Progress: wait-free.
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] BufferPoolView* find(std::uint32_t id) const noexcept {
        for (const BufferPool& pool : pools_) {
            if (id - pool.first_buffer() < pool.buffer_count()) {
                return &pool.view();
            }
        }
        return nullptr;
    }

    /// The pools, those with small buffers first.
    [[nodiscard]] std::span<const BufferPool> pools() const noexcept { return pools_; }

private:
    std::vector<BufferPool> pools_;
};

} // namespace weir
#pragma GCC visibility pop
