#include <weir/block.hpp>

#include "worker.hpp"

#include <array>
#include <stdexcept>

namespace weir {

namespace {

[[noreturn]] void throw_port_error(const std::error_code& error, const std::string& port, const char* field) {
    throw std::system_error(error, "port " + port + (*field != '\0' ? std::string(": ") + field : std::string()));
}

} // namespace

void Block::submit(IoRequest& request) {
    WEIR_ASSERT(request.is_done, "an IoRequest is submitted when it is not in flight");
    WEIR_ASSERT(schedule_.worker != nullptr, "requests are submitted in start() and work()");
    schedule_.worker->submit(*this, request);
}

void detail::drop_queued(PortView& port) noexcept {
    std::uint64_t position = port.ring().head_hint();
    bool cleared = false;
    // At most what it holds: who is just pushing may go on for a while.
    for (std::uint32_t count = 0; count < port.options().capacity; ++count) {
        PortView::Item item;
        PortView::Failure failure;
        if (port.claim(position, port.ring().load_cell(position), item, cleared, failure) != RingStatus::ok) {
            break;
        }
        item.pool->drop(item.index, item.reference);
    }
    if (cleared) {
        port.ring().publish_head(position);
        port.waiting_event(PortEnd::producer).notify();
    }
}

// --- InputPort -------------------------------------------------------------------------------------------------------

InputPort::InputPort(Block& block, std::string name) : name_(std::move(name)) {
    owner = &block;
    block.schedule_.waitables.push_back(this);
    block.schedule_.inputs.push_back(this);
}

void InputPort::bind(std::string port_name, const BindOptions& options) {
    port_name_ = std::move(port_name);
    options_ = options;
    is_bound_ = true;
}

std::size_t InputPort::try_pop(std::span<BufferPtr> buffers) {
    const std::size_t count = is_cut_ ? 0 : consumer_->try_pop(buffers);
    if (count > 0) {
        has_moved = true;
    }
    if (count < buffers.size()) {
        is_awaited = true;
        require_no_error();
    }
    return count;
}

void InputPort::require_no_error() const {
    if (const std::error_code error = consumer_->last_error()) [[unlikely]] {
        throw_port_error(error, port_name_, consumer_->last_error_field());
    }
}

bool InputPort::poll() noexcept {
    if (is_at_end_ || is_cut_) {
        return false; // look() says that it is over
    }
    return consumer_->may_have_message() ||
           (consumer_->view()->changes(PortEnd::producer) != seen_changes_ && look() == State::something);
}

detail::Waitable::State InputPort::look() {
    if (is_at_end_) {
        return State::over; // it has been said
    }
    seen_changes_ = consumer_->view()->changes(PortEnd::producer);
    if (!is_cut_) {
        if (consumer_->has_message()) {
            return State::something;
        }
        if (!owner->schedule_.worker->has_input_ended(*this)) {
            return State::nothing;
        }
        if (consumer_->has_message()) {
            return State::something; // pushed between the two looks, by who has gone since
        }
    }
    is_at_end_ = true;
    return State::something;
}

EventCount InputPort::event() noexcept {
    return consumer_->view()->waiting_event(PortEnd::consumer);
}

void InputPort::count_wait() noexcept {
    consumer_->count_wait();
}

void InputPort::close() noexcept {
    if (consumer_) {
        const std::shared_ptr<PortView> port = consumer_->view();
        consumer_.reset(); // first, so that its producers stop
        if (!is_bound_) {
            detail::drop_queued(*port); // nobody else takes them
        }
    }
}

// --- OutputPort ------------------------------------------------------------------------------------------------------

OutputPort::OutputPort(Block& block, std::string name) : block_(&block), name_(std::move(name)) {
    block.schedule_.outputs.push_back(this);
}

OutputPort::~OutputPort() = default;

void OutputPort::bind(std::string port_name, const BindOptions& options) {
    add_edge(nullptr, std::move(port_name), options.port);
}

void OutputPort::add_edge(InputPort* input, std::string port_name, const PortOptions& options) {
    edges_.push_back(std::make_unique<Edge>(*this, input, std::move(port_name), options));
    edges_.back()->owner = block_;
    block_->schedule_.waitables.push_back(edges_.back().get());
}

bool OutputPort::make_ready() {
    for (const std::unique_ptr<Edge>& edge : edges_) {
        if (edge->pending) {
            edge->flush(false);
        }
        edge->is_awaited = edge->pending || is_closed_;
    }
    return pending_count_ == 0 && !is_closed_;
}

void OutputPort::push_slowly(BufferPtr&& buffer) {
    if (pending_count_ > 0) {
        throw std::logic_error("output " + name_ +
                               " was pushed to while it was not ready; ask is_ready() before each push()");
    }
    if (edges_.size() == 1) {
        settle(*edges_.front(), std::move(buffer), edges_.front()->producer->last_result());
        return;
    }
    // All references first: a buffer that has too few of them goes to nobody.
    BufferPtr sent = std::move(buffer);
    std::array<BufferPtr, references_per_buffer_max> references;
    std::array<Edge*, references_per_buffer_max> open;
    std::size_t open_count = 0;
    for (const std::unique_ptr<Edge>& edge : edges_) {
        if (edge->is_closed) {
            continue;
        }
        if (open_count > 0 && (open_count == open.size() || !(references[open_count] = sent.clone()))) {
            throw_error(errc::too_many_references,
                        "output " + name_ + ": a buffer has too few references for " + std::to_string(edges_.size()) +
                            " edges; make its pool with references_per_buffer = 12, or use fewer edges");
        }
        open[open_count++] = edge.get();
    }
    references[0] = std::move(sent);
    for (std::size_t number = 0; number < open_count; ++number) {
        const PushResult result = open[number]->producer->try_push(std::move(references[number]));
        settle(*open[number], std::move(references[number]), result);
    }
}

void OutputPort::settle(Edge& edge, BufferPtr&& buffer, PushResult result) {
    switch (result) {
    case PushResult::ok: edge.has_moved = true; break;
    case PushResult::full:
        if (edge.producer->view()->options().when_full == WhenFull::refuse) {
            buffer.reset();
        } else {
            edge.pending = std::move(buffer);
            ++pending_count_;
        }
        break;
    case PushResult::closed:
        buffer.reset();
        edge.is_closed = true;
        is_closed_ = std::ranges::all_of(edges_, &Edge::is_closed);
        break;
    case PushResult::failed:
        buffer.reset();
        throw_port_error(edge.producer->last_error(), edge.port_name, edge.producer->last_error_field());
    }
}

void OutputPort::Edge::flush(bool looks_at_consumers) {
    const PushResult result = producer->retry_push(std::move(pending), looks_at_consumers);
    if (result == PushResult::failed) {
        throw_port_error(producer->last_error(), port_name, producer->last_error_field());
    }
    if (result != PushResult::full) {
        --port->pending_count_;
        port->settle(*this, std::move(pending), result);
    }
}

bool OutputPort::Edge::poll() noexcept {
    if (!pending) {
        return !port->is_closed_; // look() says that it is over
    }
    try {
        flush(false);
    } catch (...) {
        return true; // the block is called, and told by is_ready()
    }
    return !pending;
}

/// Nobody is left who takes anything: that is said once, because a block may have other outputs.
bool OutputPort::Edge::is_over() noexcept {
    return port->is_closed_ && std::exchange(port->is_close_said_, true);
}

detail::Waitable::State OutputPort::Edge::look() {
    if (pending) {
        flush(true);
        if (pending) {
            return State::nothing;
        }
    }
    return is_over() ? State::over : State::something;
}

EventCount OutputPort::Edge::event() noexcept {
    return producer->view()->waiting_event(PortEnd::producer);
}

void OutputPort::Edge::count_wait() noexcept {
    producer->count_wait();
}

void OutputPort::Edge::close() noexcept {
    if (pending) {
        pending.reset();
        --port->pending_count_;
    }
    producer.reset();
    if (feeder_count != nullptr) {
        // (1) release: all that was pushed is in the port when the input's worker sees that nobody is left; pairs with (6)
        // in worker.cpp
        feeder_count->fetch_sub(1, std::memory_order_release);
        feeder_count.reset();
    }
}

// --- PoolPort --------------------------------------------------------------------------------------------------------

PoolPort::PoolPort(Block& block, BufferPool pool) : pool_(std::move(pool)) {
    owner = &block;
    block.schedule_.waitables.push_back(this);
}

bool PoolPort::poll() noexcept {
    if (!found_) {
        found_ = pool_.try_allocate();
    }
    return holds_something = static_cast<bool>(found_);
}

/// As BufferPool::allocate() does before it sleeps: at most a 17th of the time goes into looking at all buffers.
detail::Waitable::State PoolPort::look() {
    constexpr std::int64_t pause_per_scan = 16;
    if (poll()) {
        return State::something;
    }
    if (const std::error_code error = pool_.last_error()) {
        throw std::system_error(error, "a pool of the parent process");
    }
    const std::int64_t begin_ns = monotonic_ns();
    if (begin_ns < scan_due_ns_) {
        owner->wake_at(scan_due_ns_);
        return State::nothing;
    }
    found_ = pool_.try_allocate_by_scan();
    const std::int64_t end_ns = monotonic_ns();
    scan_due_ns_ = end_ns + pause_per_scan * (end_ns - begin_ns);
    holds_something = static_cast<bool>(found_);
    return holds_something ? State::something : State::nothing;
}

EventCount PoolPort::event() noexcept {
    return pool_.view().freed_event();
}

} // namespace weir
