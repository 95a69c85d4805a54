#include "worker.hpp"

#include <algorithm>
#include <cerrno>
#include <exception>
#include <system_error>

#include <pthread.h>
#include <sched.h>

namespace weir::detail {

using State = BlockSchedule::State;

// --- BlockList -------------------------------------------------------------------------------------------------------

void BlockList::push_back(Block& block) noexcept {
    block.schedule_.previous = last_;
    block.schedule_.next = nullptr;
    (last_ == nullptr ? first_ : last_->schedule_.next) = &block;
    last_ = &block;
}

void BlockList::remove(Block& block) noexcept {
    Block* const previous = block.schedule_.previous;
    Block* const next = block.schedule_.next;
    (previous == nullptr ? first_ : previous->schedule_.next) = next;
    (next == nullptr ? last_ : next->schedule_.previous) = previous;
}

Block* BlockList::pop_front() noexcept {
    Block* const block = first_;
    if (block != nullptr) {
        remove(*block);
    }
    return block;
}

// --- The thread ------------------------------------------------------------------------------------------------------

void Worker::add(Block& block) {
    block.schedule_.worker = this;
    blocks_.push_back(&block);
    ++live_count_;
}

void Worker::pin() const {
    const std::vector<unsigned>& cpus = scheduler_->options().cpus;
    if (cpus.empty()) {
        return;
    }
    const unsigned cpu = cpus[number_ % cpus.size()];
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < CPU_SETSIZE) {
        CPU_SET(cpu, &set);
    }
    if (const int error = pthread_setaffinity_np(pthread_self(), sizeof set, &set); error != 0) {
        throw std::system_error(error, std::system_category(),
                                "worker " + std::to_string(number_) + " cannot run on CPU " + std::to_string(cpu));
    }
}

void Worker::run(WaitPath path, std::promise<void> opened, std::shared_future<bool> go) {
    try {
        pin();
        sleeper_ = make_sleeper(*this, counters_,
                                {.path = path,
                                 .lock_descriptor = scheduler_->domain_state().lock_number(),
                                 .fixed_buffers = scheduler_->options().fixed_buffers,
                                 .doorbell = &doorbell_});
        opened.set_value();
    } catch (...) {
        sleeper_.reset();
        opened.set_exception(std::current_exception());
        return;
    }
    if (go.get()) {
        try {
            if (number_ == 0 && path == WaitPath::io_uring) {
                peers_ = std::make_unique<PeerWatch>(scheduler_->domain());
                sleeper_->watch_peers(peers_->descriptor());
            }
            loop();
            finish_requests();
        } catch (...) {
            scheduler_->fail("of worker " + std::to_string(number_), std::current_exception());
            scheduler_->stop();
            is_stopping_ = true;
            try {
                finish_requests();
            } catch (...) {
                std::terminate(); // the kernel would write to memory that is somebody else's by then
            }
        }
        peers_.reset();
    }
    sleeper_.reset();
    for (Block* block : blocks_) {
        for (Waitable* waitable : block->schedule_.waitables) {
            waitable->is_watched = false;
        }
    }
    doorbell_.is_watched = false;
}

void Worker::start_blocks() {
    is_stopping_ = false;
    dozing_ = {};
    ready_ = {};
    timers_.clear();
    quiet_count_ = 0;
    for (Block* block : blocks_) {
        BlockSchedule& schedule = block->schedule_;
        if (schedule.state == State::ended) {
            continue;
        }
        schedule.waits_for_input = false;
        schedule.timer_ns = deadline_never;
        schedule.state = State::ready;
        ready_.push_back(*block);
        if (!schedule.is_started) {
            schedule.is_started = true;
            try {
                block->start();
            } catch (...) {
                fail(*block, std::current_exception());
                cancel_requests(block);
            }
        }
    }
    for (IoRequest* request : std::exchange(cancelled_, {})) {
        sleeper_->submit(*request);
        requests_.push_back(request);
    }
}

void Worker::loop() {
    seen_commands_ = 0;
    turn_count_ = 0;
    look_ns_ = monotonic_ns();
    spin_count_ = scheduler_->options().spin_count;
    recheck_ns_ = deadline_after(scheduler_->domain_state().recheck_interval_ns());
    start_blocks();
    for (;;) {
        handle_commands();
        if (is_stopping_) {
            return;
        }
        if (Block* const block = ready_.pop_front()) {
            call(*block);
            has_worked_ = true;
            if (has_submitted_) {
                has_submitted_ = false;
                sleeper_->flush();
            }
            if (++turn_count_ >= turns_per_look_) {
                look_around();
            }
        } else if (live_count_ == 0) {
            set_quiet(true);
            return;
        } else if (!has_worked_ || !spin()) {
            has_worked_ = false;
            while (Block* const dozing = dozing_.pop_front()) {
                put_to_sleep(*dozing);
            }
            if (ready_.is_empty() && live_count_ > 0) {
                sleep();
            }
        }
    }
}

void Worker::handle_commands() {
    const std::uint32_t commands = scheduler_->commands();
    if (commands == seen_commands_) [[likely]] {
        return;
    }
    const std::uint32_t fresh = commands & ~seen_commands_;
    seen_commands_ = commands;
    is_stopping_ = (commands & SchedulerState::command_stop) != 0;
    if (is_stopping_) {
        return;
    }
    set_active();
    if ((fresh & SchedulerState::command_drain) != 0) {
        for (Block* block : blocks_) {
            for (InputPort* input : block->schedule_.inputs) {
                input->is_cut_ = input->is_bound_ && has_input_ended(*input);
            }
        }
    }
    for (Block* block : blocks_) {
        const State state = block->schedule_.state;
        if (state == State::ended) {
            continue;
        }
        const bool is_source = block->schedule_.inputs.empty();
        if ((fresh & SchedulerState::command_drain) != 0 && is_source && !block->schedule_.is_ending) {
            block->schedule_.is_ending = true;
            cancel_requests(block);
            make_ready(*block);
        } else if (state == State::asleep) {
            make_ready(*block); // what it waits for may be over now
        }
    }
}

// --- Calling blocks --------------------------------------------------------------------------------------------------

WorkResult Worker::call_work(Block& block) {
    BlockSchedule& schedule = block.schedule_;
    schedule.wake_ns = deadline_never;
    WorkResult result = WorkResult::progress;
    std::uint64_t call_count = 0;
    while (result == WorkResult::progress && call_count < calls_per_turn_ && scheduler_->commands() == seen_commands_) {
        for (Waitable* waitable : schedule.waitables) {
            waitable->is_awaited = false;
        }
        ++call_count;
        result = block.work();
    }
    // relaxed: a number for people to read
    shared(counters_.work_calls)
        .store(shared(counters_.work_calls).load(std::memory_order_relaxed) + call_count, std::memory_order_relaxed);
    return result;
}

void Worker::call(Block& block) {
    if (block.schedule_.is_ending) {
        continue_end(block);
        return;
    }
    WorkResult result = WorkResult::done;
    try {
        result = call_work(block);
    } catch (...) {
        fail(block, std::current_exception());
    }
    tell_neighbours(block);
    switch (result) {
    case WorkResult::progress: ready_.push_back(block); break;
    case WorkResult::done: begin_end(block); break;
    default: doze(block, result);
    }
}

void Worker::tell_neighbours(Block& block) noexcept {
    for (Waitable* waitable : block.schedule_.waitables) {
        if (!waitable->has_moved) {
            continue;
        }
        waitable->has_moved = false;
        for (Waitable* neighbour : waitable->neighbours) {
            if (neighbour->is_awaited) {
                make_ready(*neighbour->owner);
            }
        }
    }
}

void Worker::doze(Block& block, WorkResult result) {
    BlockSchedule& schedule = block.schedule_;
    schedule.state = State::dozing;
    schedule.doze_count = 0;
    dozing_.push_back(block);
    for (OutputPort* output : schedule.outputs) {
        if (output->pending_count_ > 0) {
            for (const auto& edge : output->edges_) {
                edge->is_awaited |= static_cast<bool>(edge->pending); // whether the block has asked or not
            }
        }
    }
    for (Waitable* waitable : schedule.waitables) {
        if (waitable->holds_something && !waitable->is_awaited) {
            waitable->release();
        }
    }
    set_timer(block);
    if (schedule.wake_ns == deadline_never && schedule.requests_in_flight == 0 &&
        std::ranges::none_of(schedule.waitables, &Waitable::is_awaited)) {
        // It has not looked: all that its result speaks of.
        if (result == WorkResult::need_input) {
            for (InputPort* input : schedule.inputs) {
                input->is_awaited = true;
            }
        } else {
            for (OutputPort* output : schedule.outputs) {
                for (const auto& edge : output->edges_) {
                    edge->is_awaited = edge->pending || output->is_closed_;
                }
            }
        }
    }
}

void Worker::make_ready(Block& block) noexcept {
    BlockSchedule& schedule = block.schedule_;
    if (schedule.state == State::dozing) {
        dozing_.remove(block);
    } else if (schedule.state != State::asleep) {
        return;
    }
    if (schedule.waits_for_input) {
        schedule.waits_for_input = false;
        --quiet_count_;
    }
    schedule.state = State::ready;
    ready_.push_back(block);
}

bool Worker::poll(Block& block) noexcept {
    for (Waitable* waitable : block.schedule_.waitables) {
        if (waitable->is_awaited && waitable->poll()) {
            tell_neighbours(block); // what it held back may have gone
            make_ready(block);
            return true;
        }
    }
    return false;
}

// --- Waiting ---------------------------------------------------------------------------------------------------------

/// A wake-up costs more than a short sleep is worth: while sleeps turn out short, the worker looks longer before the next one.
void Worker::adapt_spinning(bool was_short) noexcept {
    const std::uint32_t least = scheduler_->options().spin_count;
    spin_count_ =
        was_short ? std::min(2 * spin_count_, spin_count_factor_max * least) : std::max(spin_count_ / 2, least);
}

bool Worker::spin() {
    for (std::uint32_t count = 1; count <= spin_count_; ++count) {
        if (count % looks_per_yield == 0) {
            sched_yield(); // who is waited for may need this processor
        }
        if (sleeper_->has_news()) {
            sleeper_->collect();
        }
        for (Block* block = dozing_.first(); block != nullptr; block = block->schedule_.next) {
            if (poll(*block)) {
                return true; // and the list has changed
            }
        }
        if (!ready_.is_empty() || scheduler_->commands() != seen_commands_) {
            return true;
        }
        cpu_relax();
    }
    return false;
}

/// While there is always a block to call: what waits beside it.
void Worker::look_around() {
    const DeadlineNs now_ns = monotonic_ns();
    const std::int64_t elapsed_ns = now_ns - look_ns_;
    look_ns_ = now_ns;
    turn_count_ = 0;
    if (elapsed_ns > look_interval_max_ns) {
        short_look_count_ = 0;
        calls_per_turn_ = std::max(calls_per_turn_ / 4, 1U);
        turns_per_look_ = std::max(turns_per_look_ / 4, 1U);
    } else if (elapsed_ns < look_interval_max_ns / 4 && ++short_look_count_ >= short_looks_min) {
        short_look_count_ = 0;
        calls_per_turn_ = std::min(calls_per_turn_ * 2, calls_per_turn_max);
        turns_per_look_ = std::min(turns_per_look_ * 2, turns_per_look_max);
    }
    if (sleeper_->has_news()) {
        sleeper_->collect();
    }
    for (unsigned count = 0; count < blocks_per_look; ++count) {
        Block* const block = dozing_.first();
        if (block == nullptr) {
            break;
        }
        if (poll(*block)) {
            continue;
        }
        dozing_.remove(*block);
        if (++block->schedule_.doze_count < looks_per_doze) {
            dozing_.push_back(*block);
        } else {
            put_to_sleep(*block);
            has_submitted_ = true; // the kernel is to watch from now on
        }
    }
    fire_timers(now_ns);
    if (has_peer_ended_) {
        handle_peers();
    }
    if (now_ns >= recheck_ns_) {
        recheck();
    }
}

/// The block is in no list.
void Worker::put_to_sleep(Block& block) {
    BlockSchedule& schedule = block.schedule_;
    schedule.state = State::asleep;
    bool has_something = false;
    bool may_come = schedule.requests_in_flight > 0 || schedule.wake_ns != deadline_never;
    bool is_on_inputs = !may_come && !schedule.is_ending;
    std::size_t awaited_count = 0;
    try {
        for (Waitable* waitable : schedule.waitables) {
            if (!waitable->is_awaited) {
                continue;
            }
            ++awaited_count;
            waitable->key = waitable->event().prepare();
            switch (waitable->look()) {
            case Waitable::State::something: has_something = true; break;
            case Waitable::State::nothing:
                may_come = true;
                sleeper_->watch(*waitable);
                waitable->count_wait();
                break;
            case Waitable::State::over: break;
            }
            is_on_inputs &= std::ranges::find(schedule.inputs, waitable) != schedule.inputs.end();
        }
    } catch (...) {
        fail(block, std::current_exception());
        begin_end(block);
        return;
    }
    tell_neighbours(block);
    if (has_something) {
        make_ready(block);
    } else if (awaited_count > 0 && !may_come) {
        begin_end(block); // what it waits for never comes
    } else {
        set_timer(block);
        schedule.waits_for_input = is_on_inputs && awaited_count > 0;
        quiet_count_ += schedule.waits_for_input ? 1 : 0;
    }
}

void Worker::set_active() noexcept {
    // (4) seq_cst: before the number is raised; pairs with (2) in worker.hpp
    is_quiet_.store(false, std::memory_order_seq_cst);
    // (3) seq_cst: before anything is popped or pushed; pairs with (1) in worker.hpp
    activity_.fetch_add(1, std::memory_order_seq_cst);
}

void Worker::set_quiet(bool is_quiet) noexcept {
    // (5) seq_cst: after all that was pushed; pairs with (2) in worker.hpp
    is_quiet_.store(is_quiet, std::memory_order_seq_cst);
}

void Worker::sleep() {
    doorbell_.key = doorbell_.event().prepare();
    if (scheduler_->commands() != seen_commands_) {
        return;
    }
    set_quiet(quiet_count_ == live_count_);
    const DeadlineNs timer_ns = timers_.empty() ? deadline_never : timers_.begin()->first;
    const DeadlineNs begin_ns = monotonic_ns();
    const bool has_news = sleeper_->sleep(std::min(recheck_ns_, timer_ns));
    const DeadlineNs now_ns = monotonic_ns();
    adapt_spinning(has_news && now_ns - begin_ns < short_sleep_ns);
    look_ns_ = now_ns;
    fire_timers(now_ns);
    if (has_peer_ended_) {
        handle_peers();
    }
    if (now_ns >= recheck_ns_) {
        count_one(counters_.rechecks);
        recheck();
    }
    if (!ready_.is_empty()) {
        set_active();
    }
}

/// A block has one timer, which may be earlier than it needs.
void Worker::set_timer(Block& block) {
    BlockSchedule& schedule = block.schedule_;
    if (schedule.wake_ns < schedule.timer_ns) {
        schedule.timer_ns = schedule.wake_ns;
        timers_.emplace(schedule.timer_ns, &block);
    }
}

void Worker::fire_timers(DeadlineNs now_ns) {
    while (!timers_.empty() && timers_.begin()->first <= now_ns) {
        const auto [timer_ns, block] = *timers_.begin();
        timers_.erase(timers_.begin());
        BlockSchedule& schedule = block->schedule_;
        if (timer_ns != schedule.timer_ns) {
            continue; // there is an earlier one
        }
        schedule.timer_ns = deadline_never;
        if (schedule.wake_ns <= now_ns) {
            make_ready(*block);
        } else {
            set_timer(*block);
        }
    }
}

void Worker::handle_peers() {
    has_peer_ended_ = false;
    static_cast<void>(peers_->handle());
    sleeper_->watch_peers(peers_->descriptor());
}

/// Once an interval: for who died, and for what a notifier that was killed did not tell any more.
void Worker::recheck() {
    DomainState& domain = scheduler_->domain_state();
    domain.recheck();
    if (peers_ != nullptr) {
        static_cast<void>(peers_->handle()); // newcomers are watched too
    }
    for (Block* block : blocks_) {
        BlockSchedule& schedule = block->schedule_;
        if (schedule.state != State::asleep) {
            continue;
        }
        if (schedule.waits_for_input) {
            schedule.waits_for_input = false;
            --quiet_count_;
        }
        const bool waits_for_nothing = schedule.requests_in_flight == 0 && schedule.wake_ns == deadline_never &&
                                       std::ranges::none_of(schedule.waitables, &Waitable::is_awaited);
        waits_for_nothing ? make_ready(*block) : put_to_sleep(*block);
    }
    recheck_ns_ = deadline_after(domain.recheck_interval_ns());
    if (ready_.is_empty() && quiet_count_ == live_count_) {
        scheduler_->look_for_quiescence();
    }
}

void Worker::on_change(Waitable& waitable) noexcept {
    if (waitable.owner != nullptr && waitable.is_awaited && waitable.owner->schedule_.state == State::asleep) {
        make_ready(*waitable.owner);
    }
}

void Worker::on_note(const std::string& note) noexcept {
    try {
        scheduler_->note(note);
    } catch (...) {
        // No memory for a note.
    }
}

bool Worker::has_input_ended(InputPort& input) noexcept {
    if ((seen_commands_ & SchedulerState::command_quiescent) != 0 && input.is_on_cycle_) {
        return true;
    }
    if ((seen_commands_ & SchedulerState::command_drain) != 0 && input.is_bound_) {
        // (6) acquire: sees what the last of them pushed; pairs with (1) in block.cpp
        return input.feeder_count_->load(std::memory_order_acquire) == 0;
    }
    return !input.options_.waits_for_producers && input.consumer_->stream_end() != StreamEnd::open;
}

// --- Requests --------------------------------------------------------------------------------------------------------

void Worker::submit(Block& block, IoRequest& request) {
    request.owner = &block;
    request.is_done = false;
    requests_.push_back(&request);
    ++block.schedule_.requests_in_flight;
    has_submitted_ = true;
    try {
        sleeper_->submit(request);
    } catch (...) {
        requests_.pop_back();
        --block.schedule_.requests_in_flight;
        request.is_done = true;
        throw;
    }
}

void Worker::on_request_end(IoRequest& request) noexcept {
    Block& block = *request.owner;
    *std::ranges::find(requests_, &request) = requests_.back();
    requests_.pop_back();
    const bool was_cut_short = request.result == -ECANCELED || request.result == -EINTR;
    if (is_stopping_ && was_cut_short && !block.schedule_.is_ending) {
        cancelled_.push_back(&request); // has room for all requests, see finish_requests()
        return;
    }
    request.is_done = true;
    --block.schedule_.requests_in_flight;
    make_ready(block);
}

void Worker::cancel_requests(const Block* of_block) {
    for (IoRequest* request : requests_) {
        if (of_block == nullptr || request->owner == of_block) {
            sleeper_->cancel(*request);
        }
    }
    has_submitted_ = true;
}

/// Before the sleeper goes, the kernel is done with the blocks' memory. What was cancelled goes on after the next start.
void Worker::finish_requests() {
    cancelled_.reserve(cancelled_.size() + requests_.size());
    cancel_requests(nullptr);
    while (!requests_.empty()) {
        doorbell_.key = doorbell_.event().prepare();
        sleeper_->sleep(deadline_after(100'000'000));
    }
}

// --- Ending ----------------------------------------------------------------------------------------------------------

void Worker::begin_end(Block& block) {
    block.schedule_.is_ending = true;
    block.schedule_.state = State::ready; // in no list; continue_end() puts it where it belongs
    cancel_requests(&block);
    continue_end(block);
}

/// Its messages that wait for room are sent, and its requests end; then it has ended.
void Worker::continue_end(Block& block) {
    BlockSchedule& schedule = block.schedule_;
    bool is_sending = false;
    for (Waitable* waitable : schedule.waitables) {
        waitable->is_awaited = false;
    }
    for (OutputPort* output : schedule.outputs) {
        try {
            is_sending |= !output->is_ready() && !output->is_closed();
        } catch (...) {
            fail(block, std::current_exception());
        }
    }
    tell_neighbours(block);
    if (is_sending || schedule.requests_in_flight > 0) {
        schedule.wake_ns = deadline_never;
        doze(block, WorkResult::need_output);
    } else {
        end(block);
    }
}

void Worker::end(Block& block) noexcept {
    BlockSchedule& schedule = block.schedule_;
    if (schedule.is_started) {
        block.finish();
    }
    schedule.state = State::ended;
    --live_count_;
    for (Waitable* waitable : schedule.waitables) {
        waitable->is_awaited = false;
        waitable->close();
        waitable->has_moved = true; // neighbours see that the stream has ended
    }
    tell_neighbours(block);
}

void Worker::end_all() noexcept {
    for (IoRequest* request : std::exchange(cancelled_, {})) {
        request->result = -ECANCELED;
        request->is_done = true;
        --request->owner->schedule_.requests_in_flight;
    }
    for (Block* block : blocks_) {
        if (block->schedule_.state != State::ended) {
            end(*block);
        }
    }
}

void Worker::fail(Block& block, const std::exception_ptr& error) noexcept {
    scheduler_->fail(block.name(), error);
    block.schedule_.is_ending = true;
    for (OutputPort* output : block.schedule_.outputs) {
        // What failed to be sent would fail again.
        for (const auto& edge : output->edges_) {
            if (edge->pending && edge->producer->last_result() == PushResult::failed) {
                edge->pending.reset();
                --output->pending_count_;
            }
        }
    }
}

} // namespace weir::detail
