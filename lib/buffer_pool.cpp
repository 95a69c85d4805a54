#include <weir/buffer_pool.hpp>

#include <algorithm>
#include <bit>
#include <cstdlib>

namespace weir {

namespace {

constexpr std::uint64_t page_bytes = 4096;

void check_options(const BufferPoolOptions& options) {
    if (options.buffer_bytes < buffer_bytes_min || options.buffer_bytes > buffer_bytes_max) {
        throw_error(errc::invalid_size,
                    "a buffer has 64 bytes to 1 GiB; asked for " + std::to_string(options.buffer_bytes));
    }
    if (options.buffer_count == 0 || options.buffer_count > domain_buffer_count_max ||
        options.first_buffer > domain_buffer_count_max - options.buffer_count) {
        throw_error(errc::invalid_size, "a pool has 1 buffer or more, and a domain buffers 0 to 1,048,575; asked for "
                                        "buffer_count " +
                                            std::to_string(options.buffer_count) + ", from " +
                                            std::to_string(options.first_buffer) + " on");
    }
    if (options.references_per_buffer != references_per_line &&
        options.references_per_buffer != references_per_buffer_max) {
        throw_error(errc::invalid_size,
                    "a buffer has 4 or 12 references; asked for " + std::to_string(options.references_per_buffer));
    }
}

/// Buffers of a page and more start on a page, for O_DIRECT; smaller ones on a cache line.
std::uint64_t stride_bytes(std::uint64_t buffer_bytes) {
    return round_up(buffer_bytes, buffer_bytes >= page_bytes ? page_bytes : cache_line_bytes);
}

std::uint64_t header_stride_bytes(std::uint32_t references_per_buffer) {
    return references_per_buffer == references_per_line ? sizeof(BufferHeader) : 2 * sizeof(BufferHeader);
}

void check_aligned(std::span<std::byte> memory, const char* what) {
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % cache_line_bytes != 0) {
        throw_error(errc::misaligned, std::string("a pool's ") + what + " memory starts on a cache line of 64 bytes");
    }
}

std::size_t headers_offset(std::uint32_t buffer_count) {
    return sizeof(BufferPoolState) + FreeHints::bytes(buffer_count);
}

void check_length(std::span<std::byte> memory, std::size_t needed, errc cause, const char* what) {
    if (memory.size() < needed) {
        throw_error(cause, std::string("the pool's ") + what + " memory has " + std::to_string(memory.size()) +
                               " bytes, " + std::to_string(needed) + " are needed");
    }
}

BufferPoolOptions read_options(std::span<std::byte> control) {
    check_aligned(control, "control");
    check_length(control, sizeof(BufferPoolState), errc::truncated, "control");
    const auto& state = *reinterpret_cast<const BufferPoolState*>(control.data());
    if (state.magic != BufferPoolState::magic_value) {
        throw_error(errc::wrong_kind, "the memory holds no buffer pool; format() it first");
    }
    const BufferPoolOptions options{state.buffer_bytes, state.buffer_count, state.references_per_buffer,
                                    state.first_buffer};
    try {
        check_options(options);
    } catch (const std::system_error& error) {
        throw_error(errc::corrupt, std::string("buffer pool parameters: ") + error.what());
    }
    if (state.stride_bytes != stride_bytes(options.buffer_bytes)) {
        throw_error(errc::corrupt, "buffer pool parameter stride_bytes: " + std::to_string(state.stride_bytes));
    }
    check_length(control, BufferPool::control_bytes(options), errc::truncated, "control");
    return options;
}

BufferPoolOptions read_options(std::span<std::byte> control, std::span<std::byte> payload) {
    const BufferPoolOptions options = read_options(control);
    check_aligned(payload, "payload");
    check_length(payload, BufferPool::payload_bytes(options), errc::truncated, "payload");
    return options;
}

} // namespace

std::size_t BufferPool::control_bytes(const BufferPoolOptions& options) {
    check_options(options);
    return headers_offset(options.buffer_count) +
           options.buffer_count * header_stride_bytes(options.references_per_buffer);
}

std::size_t BufferPool::payload_bytes(const BufferPoolOptions& options) {
    check_options(options);
    return options.buffer_count * stride_bytes(options.buffer_bytes);
}

void BufferPool::format(std::span<std::byte> control, const BufferPoolOptions& options) {
    check_aligned(control, "control");
    check_length(control, control_bytes(options), errc::invalid_size, "control");
    auto& state = *reinterpret_cast<BufferPoolState*>(control.data());
    state.buffer_bytes = options.buffer_bytes;
    state.stride_bytes = stride_bytes(options.buffer_bytes);
    state.buffer_count = options.buffer_count;
    state.references_per_buffer = options.references_per_buffer;
    state.first_buffer = options.first_buffer;
    FreeHints(control.subspan(sizeof(BufferPoolState)), options.buffer_count, 0).format();
    state.magic = BufferPoolState::magic_value;
}

BufferPoolView::BufferPoolView(std::span<std::byte> control, std::span<std::byte> payload, const Membership& membership)
    : BufferPoolView(control, payload, membership, read_options(control, payload)) {}

BufferPoolView::BufferPoolView(std::span<std::byte> control, const Membership& membership)
    : BufferPoolView(control, {}, membership, read_options(control)) {}

// The options have been read once and checked against the memory; the shared ones are not looked at again.
BufferPoolView::BufferPoolView(std::span<std::byte> control, std::span<std::byte> payload, const Membership& membership,
                               const BufferPoolOptions& options)
    : stamp_(ForkStamp::capture()), membership_(membership), owner_(membership.owner()),
      hints_(control.subspan(sizeof(BufferPoolState)), options.buffer_count, membership.slot),
      copy_counts_(nullptr, std::free) {
    state_ = reinterpret_cast<BufferPoolState*>(control.data());
    headers_ = control.data() + headers_offset(options.buffer_count);
    payload_ = payload.data();
    header_stride_log2_ = static_cast<unsigned>(std::countr_zero(header_stride_bytes(options.references_per_buffer)));
    stride_bytes_ = stride_bytes(options.buffer_bytes);
    buffer_bytes_ = options.buffer_bytes;
    buffer_count_ = options.buffer_count;
    reference_count_ = options.references_per_buffer;
    first_buffer_ = options.first_buffer;
}

std::atomic<std::uint32_t>& BufferPoolView::copy_count(std::uint32_t index, unsigned number) {
    std::call_once(copy_counts_once_, [this] {
        // calloc takes large blocks zeroed from the kernel, page by page as they are touched.
        const std::size_t count = std::size_t{buffer_count_} * reference_count_;
        void* counts = std::calloc(count, sizeof(std::atomic<std::uint32_t>));
        if (counts == nullptr) {
            throw std::bad_alloc();
        }
        copy_counts_.reset(static_cast<std::atomic<std::uint32_t>*>(counts));
    });
    return copy_counts_[std::size_t{index} * reference_count_ + number];
}

void BufferPoolView::offer_and_notify(std::uint32_t index) noexcept {
    // Who is woken looks into the bitmap, but not into every lane.
    if (freed_event().has_waiters()) {
        hints_.offer_group(index / 64, std::uint64_t{1} << index % 64);
    } else {
        hints_.offer(index);
    }
    freed_event().notify();
}

std::uint32_t BufferPoolView::search() noexcept {
    // Candidates from the bitmap were freed by others, on other cores: their lines are fetched all at once.
    const std::uint32_t index = hints_.find([this](std::uint32_t candidate) noexcept { return try_take(candidate); },
                                            [this](std::uint32_t candidate) noexcept {
                                                prefetch_for_write(&header(candidate));
                                                prefetch_for_write(payload(candidate));
                                            });
    return index != FreeHints::none ? index : scan(scan_length);
}

std::uint32_t BufferPoolView::scan(std::uint32_t length) noexcept {
    // relaxed: where the search begins does not matter
    std::uint32_t cursor = scan_cursor_.load(std::memory_order_relaxed);
    const std::uint32_t count = std::min(length, buffer_count_);
    std::uint32_t found = FreeHints::none;
    for (std::uint32_t step = 0; step < count && found == FreeHints::none; ++step) {
        const std::uint32_t index = cursor < buffer_count_ ? cursor : 0;
        found = try_take(index) ? index : FreeHints::none;
        cursor = index + 1;
    }
    // relaxed: as above
    scan_cursor_.store(cursor, std::memory_order_relaxed);
    return found;
}

BufferPtr::BufferPtr(const BufferPtr& other) : index_(other.index_), reference_(other.reference_) {
    if (other.pool_ != nullptr && other.is_ours()) {
        pool_ = other.pool_;
        // relaxed: the reference is ours through `other`; who drops it later is ordered by (1)
        pool_->copy_count(index_, reference_).fetch_add(1, std::memory_order_relaxed);
        // relaxed: only tells `other` to look at the count; whoever uses `other` next comes after this call
        shared(other.copied_).store(1, std::memory_order_relaxed);
        copied_ = 1;
    }
}

bool BufferPtr::leave_copies() noexcept {
    std::atomic<std::uint32_t>& copies = pool_->copy_count(index_, reference_);
    // (1) acq_rel: the last copy drops the reference after all that the others did with the buffer; pairs with (1), (2)
    if (copies.fetch_sub(1, std::memory_order_acq_rel) != 0) {
        return false;
    }
    // relaxed: this was the last copy, nobody else looks at the count until the reference is used anew
    copies.store(0, std::memory_order_relaxed);
    return true;
}

bool BufferPtr::has_copies() const noexcept {
    // (2) acquire: where the copies are gone, what they did with the buffer is over; pairs with (1)
    return pool_->copy_count(index_, reference_).load(std::memory_order_acquire) != 0;
}

std::uint32_t BufferPtr::use_count() const {
    if (pool_ == nullptr || !is_ours()) {
        return 0;
    }
    std::uint32_t count = 0;
    for (unsigned number = 0; number < pool_->references_per_buffer(); ++number) {
        count += is_free(load_reference(pool_->reference(index_, number))) ? 0U : 1U;
    }
    // relaxed: a snapshot; another thread may be copying this one
    if (shared(copied_).load(std::memory_order_relaxed) != 0) {
        // relaxed: a snapshot
        count += pool_->copy_count(index_, reference_).load(std::memory_order_relaxed);
    }
    return count;
}

BufferPtr BufferPool::fresh(std::uint32_t index) noexcept {
    if (index == FreeHints::none) {
        return {};
    }
    view_->header(index).renew(static_cast<std::uint32_t>(view_->buffer_bytes()));
    return {*view_, index, 0};
}

BufferPtr BufferPool::search() noexcept {
    return fresh(view_->search());
}

BufferPtr BufferPool::search_after(std::uint32_t index, BufferPoolView::Take failed) noexcept {
    if (failed == BufferPoolView::Take::give_it_back) {
        view_->drop(index, 0);
    }
    return search();
}

BufferPtr BufferPool::try_allocate_by_scan() noexcept {
    return view_->is_foreign() ? BufferPtr() : fresh(view_->try_take_by_scan());
}

BufferPtr BufferPool::allocate_until(DeadlineNs deadline_ns, const WaitOptions& wait) noexcept {
    BufferPtr buffer = try_allocate();
    if (buffer || view_->is_foreign()) {
        return buffer;
    }
    // Before a sleep the words themselves are looked at: they are what a drop changes before it looks for waiters, and hints
    // can be out of reach or lost in a crash. Of a large pool that takes a while: at most a 17th of the time goes there,
    // and where it is not due yet, the sleep ends when it is.
    constexpr std::int64_t pause_per_scan = 16;
    WaitOptions slices = wait;
    std::int64_t scan_due_ns = 0;
    const auto ready = [&](Look look) noexcept {
        buffer = try_allocate();
        if (!buffer && look == Look::last) {
            const std::int64_t begin_ns = monotonic_ns();
            slices.recheck_interval_ns = std::min(wait.recheck_interval_ns, scan_due_ns - begin_ns);
            if (begin_ns >= scan_due_ns) {
                buffer = try_allocate_by_scan();
                const std::int64_t end_ns = monotonic_ns();
                scan_due_ns = end_ns + pause_per_scan * (end_ns - begin_ns);
                slices.recheck_interval_ns = wait.recheck_interval_ns;
            }
        }
        return static_cast<bool>(buffer);
    };
    static_cast<void>(
        wait_until(view_->freed_event(), slices, deadline_ns, ready, [this]() noexcept { view_->recheck(); }));
    return buffer;
}

std::uint32_t BufferPool::free_count() const noexcept {
    if (view_->is_foreign()) {
        return 0;
    }
    std::uint32_t count = 0;
    for (std::uint32_t index = 0; index < view_->buffer_count(); ++index) {
        count += view_->is_unused(index) ? 1U : 0U;
    }
    return count;
}

std::vector<std::string> BufferPool::check(const ProcessTable* table) const {
    std::vector<std::string> broken;
    const auto report = [&](std::uint32_t index, unsigned number, const std::string& what) {
        broken.push_back("buffer " + std::to_string(first_buffer() + index) + " reference " + std::to_string(number) +
                         ": " + what);
    };
    if (view_->is_foreign()) {
        broken.emplace_back("the pool was opened by the parent process; join anew after fork()");
        return broken;
    }
    for (std::uint32_t index = 0; index < buffer_count(); ++index) {
        for (unsigned number = 0; number < references_per_buffer(); ++number) {
            const std::uint64_t& shared_word = view_->reference(index, number);
            const std::uint64_t word = load_reference(shared_word);
            const Owner owner = Owner::of(word);
            if (reference_state(word) > ReferenceState::queued) {
                report(index, number, "state " + std::to_string(word & 7) + " is none that is written");
            } else if (is_free(word)) {
                if (owner != Owner() || reference_port(word) != 0) {
                    report(index, number, "is free but names an owner or a port");
                }
            } else if (table != nullptr && reference_state(word) == ReferenceState::held) {
                const ProcessTable::Entry entry = table->entry(owner.slot());
                // Read again: a membership ends after all that it held was given back.
                if ((!entry.alive || Owner(owner.slot(), entry.incarnation) != owner) &&
                    load_reference(shared_word) == word) {
                    report(index, number,
                           "is held by slot " + std::to_string(owner.slot()) +
                               " under an incarnation that is not alive");
                }
            }
        }
        // relaxed: no holder ever writes a size that is too large
        const std::uint32_t size_bytes = shared(view_->header(index).size_bytes).load(std::memory_order_relaxed);
        if (size_bytes > buffer_bytes()) {
            broken.push_back("buffer " + std::to_string(first_buffer() + index) + ": message of " +
                             std::to_string(size_bytes) + " bytes in a buffer of " + std::to_string(buffer_bytes()));
        }
    }
    return broken;
}

void SharedBufferAllocator::add(BufferPool pool) {
    for (const BufferPool& other : pools_) {
        if (pool.first_buffer() < other.first_buffer() + other.buffer_count() &&
            other.first_buffer() < pool.first_buffer() + pool.buffer_count()) {
            throw_error(errc::other_parameters, "two pools of one domain have the same buffer numbers, from " +
                                                    std::to_string(pool.first_buffer()) + " on; set first_buffer");
        }
    }
    const auto place = std::ranges::upper_bound(pools_, pool.buffer_bytes(), {}, &BufferPool::buffer_bytes);
    pools_.insert(place, std::move(pool));
}

BufferPtr SharedBufferAllocator::try_allocate(std::size_t bytes) noexcept {
    for (BufferPool& pool : pools_) {
        if (pool.buffer_bytes() >= bytes) {
            if (BufferPtr buffer = pool.try_allocate()) {
                buffer.resize(bytes);
                return buffer;
            }
        }
    }
    return {};
}

BufferPtr SharedBufferAllocator::allocate_until(std::size_t bytes, DeadlineNs deadline_ns,
                                                const WaitOptions& wait) noexcept {
    BufferPtr buffer = try_allocate(bytes);
    const auto best =
        std::ranges::find_if(pools_, [bytes](const BufferPool& pool) { return pool.buffer_bytes() >= bytes; });
    while (!buffer && best != pools_.end() && !best->view().is_foreign()) {
        // A larger pool's buffer may become free first: it is looked for once an interval.
        const DeadlineNs slice_ns = std::min(deadline_ns, deadline_after(wait.recheck_interval_ns));
        buffer = best->allocate_until(slice_ns, wait);
        if (buffer) {
            buffer.resize(bytes);
        } else {
            buffer = try_allocate(bytes);
            if (!buffer && monotonic_ns() >= deadline_ns) {
                break;
            }
        }
    }
    return buffer;
}

} // namespace weir
