#include <weir/port.hpp>

#include <algorithm>
#include <bit>

namespace weir {

namespace {

void check_options(const PortOptions& options) {
    if (!std::has_single_bit(options.capacity) || options.capacity < ring_capacity_min ||
        options.capacity > ring_capacity_max) {
        throw_error(errc::invalid_capacity,
                    "a port holds 2 to 65,536 messages, a power of two; asked for " + std::to_string(options.capacity));
    }
    if (options.port_id >= port_id_count) {
        throw_error(errc::invalid_size, "port numbers are below 1,024; asked for " + std::to_string(options.port_id));
    }
}

void check_memory(std::span<std::byte> memory, std::size_t needed, errc cause) {
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % cache_line_bytes != 0) {
        throw_error(errc::misaligned, "a port's memory starts on a cache line of 64 bytes");
    }
    if (memory.size() < needed) {
        throw_error(cause, "the port's memory has " + std::to_string(memory.size()) + " bytes, " +
                               std::to_string(needed) + " are needed");
    }
}

PortOptions read_options(std::span<std::byte> memory) {
    check_memory(memory, sizeof(PortState), errc::truncated);
    const auto& state = *reinterpret_cast<const PortState*>(memory.data());
    if (state.magic != PortState::magic_value) {
        throw_error(errc::wrong_kind, "the memory holds no port; format() it first");
    }
    if (state.when_full > static_cast<std::uint8_t>(WhenFull::drop_oldest) ||
        state.when_unconsumed > static_cast<std::uint8_t>(WhenUnconsumed::fill) || state.time_stamps > 1) {
        throw_error(errc::corrupt, "port parameters: a policy that does not exist");
    }
    const PortOptions options{state.capacity, state.port_id, static_cast<WhenFull>(state.when_full),
                              static_cast<WhenUnconsumed>(state.when_unconsumed), state.time_stamps != 0};
    try {
        check_options(options);
    } catch (const std::system_error& error) {
        throw_error(errc::corrupt, std::string("port parameters: ") + error.what());
    }
    check_memory(memory, Port::bytes(options), errc::truncated);
    return options;
}

/// A member word: which incarnation of the slot's owner has how many handles, and whether it closed the last one.
struct Member {
    std::uint64_t incarnation;
    std::uint64_t handle_count;
    bool closed;

    static constexpr std::uint64_t handle_count_max = 0x7fff;

    [[nodiscard]] static Member of(std::uint64_t word) noexcept {
        return {word >> 16, word >> 1 & handle_count_max, (word & 1) != 0};
    }
    [[nodiscard]] std::uint64_t word() const noexcept {
        return incarnation << 16 | handle_count << 1 | (closed ? 1U : 0U);
    }
};

constexpr std::uint64_t line_owner(std::uint8_t slot, std::uint64_t incarnation) noexcept {
    return incarnation << 9 | std::uint64_t{slot} << 1 | 1;
}

void add_to(PortCounters& sum, const PortCounterLine& line) noexcept {
    const auto count = [&line](unsigned place) {
        // relaxed: numbers for people to read
        return shared(line.counts[place]).load(std::memory_order_relaxed);
    };
    sum.messages += count(0);
    sum.bytes += count(1);
    sum.stalls += count(2);
    sum.waits += count(3);
    sum.wakes += count(4);
    sum.dropped += count(5);
    sum.high_water_mark = std::max(sum.high_water_mark, count(6));
}

/// A view together with the pools that it was given.
struct PortWithPools {
    struct Pools final : PoolSource {
        explicit Pools(SharedBufferAllocator given) noexcept : buffers(std::move(given)) {}
        [[nodiscard]] BufferPoolView* find_pool(std::uint32_t id) noexcept override { return buffers.find(id); }

        SharedBufferAllocator buffers;
    };

    PortWithPools(std::span<std::byte> memory, const Membership& membership, SharedBufferAllocator buffers)
        : pools(std::move(buffers)), view(memory, membership, pools) {}

    Pools pools;
    PortView view;
};

} // namespace

std::size_t Port::bytes(const PortOptions& options) {
    check_options(options);
    return sizeof(PortState) + Ring::bytes(options.capacity);
}

Port::Port(std::span<std::byte> memory, const Membership& membership, SharedBufferAllocator buffers) {
    for (const BufferPool& pool : buffers.pools()) {
        if (pool.view().is_foreign()) {
            throw_error(errc::used_after_fork,
                        "a pool was opened by the parent process; after fork() join anew, and open the pools again");
        }
        if (pool.view().owner() != membership.owner()) {
            throw_error(errc::not_a_member, "a port and its pools are opened with the same membership");
        }
    }
    const auto port = std::make_shared<PortWithPools>(memory, membership, std::move(buffers));
    view_ = std::shared_ptr<PortView>(port, &port->view);
}

void Port::format(std::span<std::byte> memory, const PortOptions& options) {
    check_memory(memory, bytes(options), errc::invalid_size);
    auto& state = *reinterpret_cast<PortState*>(memory.data());
    state.capacity = options.capacity;
    state.port_id = options.port_id;
    state.when_full = static_cast<std::uint8_t>(options.when_full);
    state.when_unconsumed = static_cast<std::uint8_t>(options.when_unconsumed);
    state.time_stamps = options.time_stamps ? 1 : 0;
    state.magic = PortState::magic_value;
}

PortView::PortView(std::span<std::byte> memory, const Membership& membership, PoolSource& pools, Recheck* recheck)
    : stamp_(ForkStamp::capture()), membership_(membership), membership_owner_(membership.owner()),
      options_(read_options(memory)), state_(reinterpret_cast<PortState*>(memory.data())),
      ring_(memory.subspan(sizeof(PortState)), options_.capacity), pools_(&pools), recheck_(recheck) {}

BufferPoolView* PortView::find_other_pool(std::uint32_t id) const noexcept {
    BufferPoolView* pool = pools_->find_pool(id);
    if (pool != nullptr) {
        // (8) release: hands the view over to this port's other threads; pairs with (2), (3) in port.hpp
        last_pool_.store(pool, std::memory_order_release);
    }
    return pool;
}

RingStatus PortView::search_room(std::uint64_t& position, Failure& failure) noexcept {
    bool is_unknown = false;
    const RingStatus status = ring_.search_room(position, [&](std::uint64_t cell) noexcept {
        Item item;
        is_unknown = !decode(cell, item);
        return !is_unknown && !item.is_queued_as(load_reference(item.word()));
    });
    if (status == RingStatus::full && is_unknown) {
        failure = {errc::unknown_buffer, "ring cell: buffer"};
        return RingStatus::corrupt;
    }
    return status_of(status, failure);
}

bool PortView::has_message(std::uint64_t& position, bool& cleared) noexcept {
    for (;;) {
        std::uint64_t cell = 0;
        Item item;
        const RingStatus status = ring_.find_item(position, cell);
        if (status == RingStatus::empty) {
            return false;
        }
        if (status == RingStatus::corrupt || !decode(cell, item)) {
            return true; // broken bytes are not the end of the stream; the next pop reports them
        }
        const bool is_queued = item.is_queued_as(load_reference(item.word()));
        if (ring_.load_cell(position) != cell) {
            continue;
        }
        if (is_queued) {
            return true;
        }
        cleared |= ring_.clear(position, cell);
        ++position;
    }
}

void PortView::attach(PortEnd end) {
    if (is_foreign()) {
        throw_error(errc::used_after_fork,
                    "the port was opened by the parent process; after fork() join anew, and open it again");
    }
    if (!membership_.is_alive()) {
        throw_error(errc::not_a_member, "the membership has ended; join() again and open the port with the new one");
    }
    std::uint64_t& word = member_word(end, membership_.slot);
    std::uint64_t seen = load_shared(word);
    for (;;) {
        const Member before = Member::of(seen);
        const bool is_first = before.incarnation != membership_.incarnation;
        if (!is_first && before.handle_count == Member::handle_count_max) {
            throw_error(errc::table_full, "a process has at most 32,767 handles on one end of a port");
        }
        const Member after{membership_.incarnation, is_first ? 1 : before.handle_count + 1, false};
        // (1) seq_cst, on failure seq_cst: we are attached before the number of changes says so; only threads of this
        // process write this word while it is alive, or who marks an older death of its slot; pairs with (1) in port.hpp
        if (shared(word).compare_exchange_strong(seen, after.word(), std::memory_order_seq_cst,
                                                 std::memory_order_seq_cst)) {
            break;
        }
    }
    count_change(end);
    waiting_event(end == PortEnd::producer ? PortEnd::consumer : PortEnd::producer)
        .notify(); // who waits for it to come
}

void PortView::count_change(PortEnd end) noexcept {
    // (2) seq_cst: a look at the members that missed us sees that they changed; pairs with (1) in port.hpp, and (2) in
    // event_count.hpp
    shared(changes_word(end)).fetch_add(1, std::memory_order_seq_cst);
}

void PortView::detach(PortEnd end) noexcept {
    std::uint64_t& word = member_word(end, membership_.slot);
    std::uint64_t seen = load_shared(word);
    for (;;) {
        const Member before = Member::of(seen);
        if (before.incarnation != membership_.incarnation || before.handle_count == 0) {
            return; // this incarnation was reaped, and the slot is another's now
        }
        const bool is_last = before.handle_count == 1;
        if (is_last) {
            // Deaths before ours are not how the stream ends.
            for (unsigned slot = 0; slot < process_slot_count; ++slot) {
                std::uint64_t& other = member_word(end, slot);
                std::uint64_t other_seen = load_shared(other);
                const Member member = Member::of(other_seen);
                if (slot != membership_.slot && member.handle_count > 0 &&
                    !membership_.table.is_alive(static_cast<std::uint8_t>(slot), member.incarnation)) {
                    // (4) seq_cst: a newcomer's word is not touched, hence the compare-and-swap; pairs with (1) in
                    // port.hpp
                    shared(other).compare_exchange_strong(other_seen, Member{member.incarnation, 0, true}.word(),
                                                          std::memory_order_seq_cst, std::memory_order_relaxed);
                }
            }
        }
        const Member after{before.incarnation, before.handle_count - 1, is_last};
        // (3) seq_cst, on failure seq_cst: all that was pushed happened before, and the waiters' bit is looked at after
        // it; pairs with (1) in port.hpp, and (2) in event_count.hpp
        if (!shared(word).compare_exchange_strong(seen, after.word(), std::memory_order_seq_cst,
                                                  std::memory_order_seq_cst)) {
            continue;
        }
        if (is_last) {
            count_change(end);
            waiting_event(end == PortEnd::producer ? PortEnd::consumer : PortEnd::producer).notify();
        }
        return;
    }
}

StreamEnd PortView::look_at_members(PortEnd end) const noexcept {
    StreamEnd result = StreamEnd::closed;
    for (unsigned slot = 0; slot < process_slot_count; ++slot) {
        const Member member = Member::of(load_shared(member_word(end, slot)));
        if (member.handle_count > 0) {
            if (membership_.table.is_alive(static_cast<std::uint8_t>(slot), member.incarnation)) {
                return StreamEnd::open;
            }
            result = StreamEnd::died;
        }
    }
    return result;
}

bool PortView::is_attached_by_us(PortEnd end) const noexcept {
    const Member member = Member::of(load_shared(member_word(end, membership_.slot)));
    return member.handle_count > 0 && member.incarnation == membership_.incarnation;
}

PortCounterLine& PortView::take_counter_line(PortEnd end, bool& is_own) noexcept {
    const auto number = static_cast<unsigned>(end);
    for (PortCounterLine& line : state_->counter_lines[number]) {
        // (5) acquire: goes on from the last owner's totals; pairs with (6), (7)
        std::uint64_t owner = shared(line.owner).load(std::memory_order_acquire);
        const bool is_taken =
            owner != 0 && membership_.table.is_alive(static_cast<std::uint8_t>(owner >> 1), owner >> 9);
        // (6) acq_rel, on failure acquire: as (5); pairs with (5), (7)
        if (!is_taken && shared(line.owner)
                             .compare_exchange_strong(owner, line_owner(membership_.slot, membership_.incarnation),
                                                      std::memory_order_acq_rel, std::memory_order_acquire)) {
            is_own = true;
            return line;
        }
    }
    is_own = false;
    return state_->shared_counters[number];
}

void PortView::give_back_counter_line(PortCounterLine& line, bool is_own) noexcept {
    if (is_own) {
        std::uint64_t owner = line_owner(membership_.slot, membership_.incarnation);
        // (7) release: the next owner sees our totals; where our membership has ended, the line may be another's already;
        // pairs with (5), (6)
        shared(line.owner).compare_exchange_strong(owner, 0, std::memory_order_release, std::memory_order_relaxed);
    }
}

PortCounters PortView::counters(PortEnd end) const noexcept {
    const auto number = static_cast<unsigned>(end);
    PortCounters sum;
    for (const PortCounterLine& line : state_->counter_lines[number]) {
        add_to(sum, line);
    }
    add_to(sum, state_->shared_counters[number]);
    return sum;
}

std::vector<PortHandles> PortView::handles(PortEnd end) const {
    std::vector<PortHandles> all;
    for (unsigned number = 0; number < process_slot_count; ++number) {
        const auto slot = static_cast<std::uint8_t>(number);
        const Member member = Member::of(load_shared(member_word(end, slot)));
        if (member.handle_count > 0) {
            const bool is_alive = membership_.table.is_alive(slot, member.incarnation);
            all.push_back(
                {slot, member.incarnation, is_alive, static_cast<std::uint32_t>(member.handle_count), PortCounters()});
        }
    }
    for (const PortCounterLine& line : state_->counter_lines[static_cast<unsigned>(end)]) {
        // relaxed: numbers for people to read
        const std::uint64_t owner = shared(line.owner).load(std::memory_order_relaxed);
        const auto same = std::ranges::find_if(all, [owner](const PortHandles& handles) {
            return owner == line_owner(handles.slot, handles.incarnation);
        });
        if (same != all.end()) {
            add_to(same->counters, line);
        }
    }
    return all;
}

std::vector<std::string> Port::check() const {
    const PortView& port = *view_;
    if (port.is_foreign()) {
        return {"the port was opened by the parent process; join anew after fork()"};
    }
    std::vector<std::string> broken = port.ring().check();
    for (std::uint32_t place = 0; place < port.options().capacity; ++place) {
        const std::uint64_t cell = port.ring().load_cell(place);
        PortView::Item item;
        if (!Ring::is_filled(cell)) {
            continue;
        }
        const std::string name = "port " + std::to_string(port.options().port_id) + " cell " + std::to_string(place);
        if (!port.decode(cell, item)) {
            broken.push_back(name + " names a buffer or reference that does not exist: value " +
                             std::to_string(Ring::value(cell)));
            continue;
        }
        const std::uint64_t word = load_reference(item.word());
        if (port.ring().load_cell(place) != cell) {
            continue; // taken meanwhile: the word may be of the buffer's next use
        }
        if (item.is_queued_as(word)) {
            if (reference_port(word) != port.options().port_id) {
                broken.push_back(name + ": its reference is queued in port " + std::to_string(reference_port(word)));
            }
        } else if (reference_state(word) != ReferenceState::held) {
            broken.push_back(name +
                             ": its reference is neither queued with the cell's generation nor held by a claimer");
        }
    }
    for (unsigned end = 0; end < 2; ++end) {
        for (unsigned slot = 0; slot < process_slot_count; ++slot) {
            // relaxed: each word is looked at by itself
            const Member member = Member::of(shared(port.state().members[end][slot]).load(std::memory_order_relaxed));
            if (member.closed && member.handle_count > 0) {
                broken.push_back("port " + std::to_string(port.options().port_id) + " member " + std::to_string(slot) +
                                 ": closed, but with handles");
            }
        }
    }
    return broken;
}

Producer::Producer(const Port& port, const WaitOptions& wait)
    : port_((port.view()->attach(PortEnd::producer), port.view())), wait_(wait), counter_(*port_, PortEnd::producer),
      position_(port_->ring().tail_hint()), oldest_position_(port_->ring().head_hint()) {}

Producer::~Producer() {
    if (port_ != nullptr && !port_->is_foreign()) {
        port_->ring().publish_tail(position_);
        counter_.give_back(*port_);
        port_->detach(PortEnd::producer);
    }
}

bool Producer::look_at_consumers() noexcept {
    unlooked_count_ = 0;
    consumer_changes_ = port_->changes(PortEnd::consumer);
    is_closed_ = port_->options().when_unconsumed == WhenUnconsumed::close &&
                 port_->stream_end(PortEnd::consumer, [] { return true; }) != StreamEnd::open;
    return is_closed_;
}

PushResult Producer::finish_push(BufferPtr& buffer, unsigned reference, PushResult result) noexcept {
    BufferPoolView& pool = *buffer.pool();
    const bool is_clone = reference != buffer.reference();
    if (result == PushResult::full && port_->options().when_full == WhenFull::drop_oldest) {
        result = push_dropping(pool, buffer.index(), reference);
    }
    if (result == PushResult::full) {
        counter_.raise_high_water_mark(port_->options().capacity);
    }
    if (result != PushResult::ok) {
        if (is_clone) {
            pool.drop(buffer.index(), reference);
        }
    } else if (is_clone) {
        buffer.reset();
    } else {
        buffer.forget();
    }
    return last_result_ = result;
}

PushResult Producer::push_dropping(BufferPoolView& pool, std::uint32_t index, unsigned reference) noexcept {
    unsigned empty_count = 0;
    for (;;) {
        PortView::Item oldest;
        bool cleared = false;
        const std::uint64_t position_before = position_;
        const std::uint64_t cell = port_->ring().load_cell(oldest_position_);
        const RingStatus status = port_->claim(oldest_position_, cell, oldest, cleared, failure_);
        if (status == RingStatus::corrupt) {
            return PushResult::failed;
        }
        if (status == RingStatus::ok) {
            if (Ring::is_line_begin(oldest_position_)) {
                port_->ring().hint_head(oldest_position_);
            }
            oldest.pool->drop(oldest.index, oldest.reference);
            counter_.add(&PortCounters::dropped, 1);
        }
        const PushResult result = push_reference(pool, index, reference);
        if (result != PushResult::full) {
            return result;
        }
        // Full, then empty, then full again at the same place is what no operations write.
        empty_count = status == RingStatus::empty && position_ == position_before ? empty_count + 1 : 0;
        if (empty_count == contradiction_max) {
            failure_ = {errc::corrupt, "ring cell: turn"};
            return PushResult::failed;
        }
    }
}

PushResult Producer::push_until(BufferPtr&& buffer, DeadlineNs deadline_ns) noexcept {
    PushResult result = try_push(std::move(buffer));
    if (result != PushResult::full || port_->options().when_full != WhenFull::wait) {
        return result;
    }
    const auto ready = [&](Look look) noexcept {
        result = push_quietly(buffer, look != Look::quick);
        return result != PushResult::full;
    };
    static_cast<void>(wait_until(port_->waiting_event(PortEnd::producer), wait_, deadline_ns, ready,
                                 [this]() noexcept { before_sleep(); }));
    if (result == PushResult::ok) {
        notify();
    }
    return result;
}

std::size_t Producer::try_push(std::span<BufferPtr> buffers) noexcept {
    std::size_t count = 0;
    while (count < buffers.size() && push_quietly(buffers[count]) == PushResult::ok) {
        ++count;
    }
    if (count > 0) {
        port_->ring().publish_tail(position_);
        notify();
    }
    if (count < buffers.size() && last_result_ == PushResult::full) {
        counter_.add(&PortCounters::stalls, 1);
    }
    return count;
}

std::size_t Producer::push(std::span<BufferPtr> buffers) noexcept {
    std::size_t count = try_push(buffers);
    while (count < buffers.size() && last_result_ == PushResult::full && port_->options().when_full == WhenFull::wait &&
           push(std::move(buffers[count])) == PushResult::ok) {
        ++count;
        count += try_push(buffers.subspan(count));
    }
    return count;
}

Consumer::Consumer(const Port& port, const WaitOptions& wait)
    : port_((port.view()->attach(PortEnd::consumer), port.view())), wait_(wait), counter_(*port_, PortEnd::consumer),
      position_(port_->ring().head_hint()) {}

Consumer::~Consumer() {
    if (port_ != nullptr && !port_->is_foreign()) {
        port_->ring().publish_head(position_);
        counter_.give_back(*port_);
        port_->detach(PortEnd::consumer);
    }
}

BufferPtr Consumer::pop_until(DeadlineNs deadline_ns) noexcept {
    failure_ = {};
    BufferPtr buffer = try_pop();
    if (buffer || failure_.cause != errc{}) {
        return buffer;
    }
    const auto pop = [&]() noexcept {
        bool cleared = false;
        buffer = pop_quietly(cleared);
        if (cleared) {
            notify();
        }
        return buffer || failure_.cause != errc{};
    };
    const auto ready = [&](Look look) noexcept {
        if (pop()) {
            return true;
        }
        return look != Look::quick &&
               (port_->stream_end(PortEnd::producer, [&]() noexcept { return !pop(); }) != StreamEnd::open || buffer ||
                failure_.cause != errc{});
    };
    static_cast<void>(wait_until(port_->waiting_event(PortEnd::consumer), wait_, deadline_ns, ready,
                                 [this]() noexcept { before_sleep(); }));
    return buffer;
}

bool Consumer::wait_for_producer(std::chrono::nanoseconds timeout) noexcept {
    if (port_->is_foreign()) {
        failure_ = PortView::inherited;
        return false;
    }
    const auto ready = [this](Look) noexcept {
        bool cleared = false;
        const bool is_there = port_->is_attached(PortEnd::producer) || port_->has_message(position_, cleared);
        if (cleared) {
            notify();
        }
        return is_there;
    };
    return wait_until(port_->waiting_event(PortEnd::consumer), wait_, deadline_after(timeout.count()), ready,
                      [this]() noexcept { before_sleep(); });
}

std::size_t Consumer::try_pop(std::span<BufferPtr> buffers) noexcept {
    std::size_t count = 0;
    bool cleared = false;
    while (count < buffers.size() && (buffers[count] = pop_quietly(cleared))) {
        ++count;
    }
    if (cleared) {
        notify();
    }
    if (count > 0) {
        port_->ring().publish_head(position_);
    } else if (failure_.cause != errc::used_after_fork) {
        counter_.add(&PortCounters::stalls, 1);
    }
    return count;
}

std::size_t Consumer::pop(std::span<BufferPtr> buffers) noexcept {
    if (buffers.empty()) {
        return 0;
    }
    buffers.front() = pop();
    return buffers.front() ? 1 + try_pop(buffers.subspan(1)) : 0;
}

} // namespace weir
