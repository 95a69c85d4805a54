#include <weir/scheduler.hpp>

#include "blocked_signals.hpp"
#include "worker.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <typeinfo>

#include <cxxabi.h>

namespace weir {

namespace detail {

namespace {

constexpr std::size_t port_name_max = 64;
constexpr unsigned worker_count_max = 256;
constexpr std::int64_t claim_patience_ns = 5'000'000'000;

std::optional<WaitPath> path_of_environment() {
    const char* const text = std::getenv("WEIR_WAIT_PATH");
    if (text == nullptr || *text == '\0') {
        return std::nullopt;
    }
    for (const WaitPath path : {WaitPath::automatic, WaitPath::io_uring, WaitPath::futex_waitv, WaitPath::recheck}) {
        if (text == to_string(path)) {
            return path;
        }
    }
    throw std::invalid_argument("WEIR_WAIT_PATH is " + std::string(text) +
                                "; it may be io_uring, futex_waitv, recheck or automatic");
}

/// Names of ports have no other characters.
std::string plain(std::string text) {
    std::ranges::replace_if(
        text,
        [](unsigned char letter) {
            return std::isalnum(letter) == 0 && letter != '.' && letter != '_' && letter != '-';
        },
        '_');
    return text;
}

/// The class's name alone: neither its namespace nor what it is a template of.
std::string class_name_of(const Block& block) {
    // A class that was compiled with -fno-rtti has no type to be told: there is a null pointer in its place, of which the
    // compiler is not to think that it cannot be.
    const std::type_info* const volatile type = &typeid(block);
    const std::type_info* const told = type;
    if (told == nullptr) {
        return "block";
    }
    int status = 0;
    const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(told->name(), nullptr, nullptr, &status),
                                                      &std::free);
    std::string name = text != nullptr ? text.get() : "block";
    name.resize(std::min(name.size(), name.find('<')));
    const std::size_t colon = name.rfind(':');
    return plain(colon == std::string::npos ? name : name.substr(colon + 1));
}

/// As long as a name may be: what is too long loses its front, which differs least.
std::string port_name_of(const std::string& base, unsigned number) {
    std::string suffix;
    if (number > 1) {
        suffix.append(1, '.').append(std::to_string(number));
    }
    const std::size_t room = port_name_max - suffix.size();
    return (base.size() <= room ? base : base.substr(base.size() - room)) + suffix;
}

} // namespace

SchedulerState::SchedulerState(const Domain& domain, SchedulerOptions options)
    : domain_(domain), options_(std::move(options)), environment_path_(path_of_environment()) {
    static_cast<void>(domain_.state()); // throws where it has none
    if (options_.worker_count == 0 || options_.worker_count > worker_count_max) {
        throw_error(errc::invalid_size,
                    "a scheduler has 1 to 256 workers; asked for " + std::to_string(options_.worker_count));
    }
    if (options_.name.empty()) {
        options_.name = plain(domain_state().process_name());
    }
    check_name("scheduler", options_.name);
    for (unsigned number = 0; number < options_.worker_count; ++number) {
        workers_.push_back(std::make_unique<Worker>(*this, number));
    }
}

SchedulerState::~SchedulerState() {
    if (domain_state().is_inherited()) {
        // The threads are the parent's, and so is what they sleep in.
        for (std::thread& thread : threads_) {
            thread.detach();
        }
        for (std::unique_ptr<Worker>& worker : workers_) {
            static_cast<void>(worker.release());
        }
        return;
    }
    stop();
    for (std::thread& thread : threads_) {
        thread.join();
    }
    for (const std::unique_ptr<Worker>& worker : workers_) {
        worker->end_all();
    }
    drop_leftovers();
    for (const Port& port : claimed_) {
        domain_.release_claim(port);
    }
}

void SchedulerState::require_own() const {
    static_cast<void>(domain_.state()); // throws where it was inherited
}

// --- The graph -------------------------------------------------------------------------------------------------------

void SchedulerState::adopt(std::unique_ptr<Block> block) {
    require_own();
    if (has_opened_) {
        throw std::logic_error("blocks are added before the scheduler's first start");
    }
    name_block(*block);
    blocks_.push_back(std::move(block));
}

void SchedulerState::name_block(Block& block) {
    if (!block.name_.empty()) {
        return;
    }
    const std::string name = class_name_of(block);
    const auto is_taken = [this](const std::string& wanted) {
        return std::ranges::any_of(blocks_, [&wanted](const auto& other) { return other->name_ == wanted; });
    };
    block.name_ = name;
    for (unsigned number = 2; is_taken(block.name_); ++number) {
        block.name_ = name + "-" + std::to_string(number);
    }
}

void SchedulerState::connect(OutputPort& from, InputPort& to, const EdgeOptions& options) {
    require_own();
    const auto is_ours = [this](const Block* block) {
        return std::ranges::any_of(blocks_, [block](const auto& ours) { return ours.get() == block; });
    };
    if (has_opened_ || !is_ours(from.block_) || !is_ours(to.owner)) {
        throw std::invalid_argument(
            "connect(): both ports belong to blocks of this scheduler, which has not started yet");
    }
    if (std::ranges::any_of(from.edges_, [&to](const auto& edge) { return edge->input == &to; })) {
        throw std::invalid_argument("connect(): output " + from.name() + " of block " + from.block_->name() +
                                    " goes to input " + to.name() + " of block " + to.owner->name() + " already");
    }
    if (!to.is_bound_ && to.options_.port.capacity == 0) {
        const PortOptions port{.capacity = options.capacity, .when_full = options.when_full};
        static_cast<void>(Port::bytes(port)); // throws where the capacity cannot be
        to.options_.port = port;
    }
    from.add_edge(&to, {}, {});
}

void SchedulerState::assign(Block& block, unsigned worker_number) {
    if (worker_number >= options_.worker_count) {
        throw std::invalid_argument("assign(): there are " + std::to_string(options_.worker_count) +
                                    " workers, from 0 on; asked for " + std::to_string(worker_number));
    }
    if (has_opened_ || std::ranges::none_of(blocks_, [&block](const auto& ours) { return ours.get() == &block; })) {
        throw std::invalid_argument("assign(): the block is of this scheduler, which has not started yet");
    }
    block.schedule_.worker_number = worker_number;
}

/// A port of this scheduler's alone. The first life of a process takes the first name; its next life finds it free again,
/// with what was queued in it. Where that comes so soon that the kernel has not ended the first one's requests yet, it waits
/// for it a while.
Port SchedulerState::claim_port(const Block& block, InputPort& input) {
    constexpr std::int64_t look_interval_ns = 1'000'000;
    const std::string base = options_.name + "." + plain(block.name()) + "." + plain(input.name());
    const DeadlineNs deadline_ns = deadline_after(claim_patience_ns);
    for (unsigned number = 1;; ++number) {
        input.port_name_ = port_name_of(base, number);
        try {
            Port port = domain_.port(input.port_name_, input.options_.port);
            bool may_be_given_back = true;
            while (may_be_given_back) {
                if (domain_.try_claim(port)) {
                    return port;
                }
                may_be_given_back = domain_state().has_ending_member() && monotonic_ns() < deadline_ns;
                std::this_thread::sleep_for(std::chrono::nanoseconds(may_be_given_back ? look_interval_ns : 0));
            }
            if (domain_.try_claim(port)) {
                return port; // given back between the two looks
            }
        } catch (const std::system_error& error) {
            if (error.code() != errc::other_parameters) {
                throw;
            }
        }
    }
}

void SchedulerState::open_ports() {
    for (const std::unique_ptr<Block>& block : blocks_) {
        for (InputPort* input : block->schedule_.inputs) {
            if (input->is_bound_) {
                input->consumer_.emplace(domain_.consumer(input->port_name_, input->options_.port));
            } else if (input->options_.port.capacity != 0) {
                claimed_.push_back(claim_port(*block, *input));
                input->consumer_.emplace(domain_.consumer(input->port_name_));
            } else {
                throw std::invalid_argument("input " + input->name() + " of block " + block->name() +
                                            " has no edge: connect() an output to it, or bind() it to a port");
            }
            input->feeder_count_ = std::make_shared<std::atomic<unsigned>>(0);
            input_ports_.push_back({input->consumer_->view(), input->is_bound_});
        }
    }
    for (const std::unique_ptr<Block>& block : blocks_) {
        for (OutputPort* output : block->schedule_.outputs) {
            if (output->edges_.empty()) {
                throw std::invalid_argument("output " + output->name() + " of block " + block->name() +
                                            " has no edge: connect() it to an input, or bind() it to a port");
            }
            for (const auto& edge : output->edges_) {
                if (edge->input != nullptr) {
                    edge->port_name = edge->input->port_name_;
                }
                edge->producer.emplace(domain_.producer(edge->port_name, edge->options));
            }
        }
    }
}

/// As if they had never been opened; a later start() tries again.
void SchedulerState::close_ports() noexcept {
    for (const std::unique_ptr<Block>& block : blocks_) {
        for (InputPort* input : block->schedule_.inputs) {
            input->consumer_.reset();
        }
        for (OutputPort* output : block->schedule_.outputs) {
            for (const auto& edge : output->edges_) {
                edge->producer.reset();
            }
        }
    }
    for (const Port& port : claimed_) {
        domain_.release_claim(port);
    }
    claimed_.clear();
    input_ports_.clear();
}

/// Who pushes to and who pops from the same port, in the same worker, wake each other without the kernel.
void SchedulerState::link_neighbours() {
    std::multimap<std::string_view, InputPort*> inputs;
    for (const std::unique_ptr<Block>& block : blocks_) {
        for (InputPort* input : block->schedule_.inputs) {
            const auto same = inputs.find(input->port_name_);
            if (same != inputs.end()) {
                input->feeder_count_ = same->second->feeder_count_;
            }
            inputs.emplace(input->port_name_, input);
        }
    }
    for (const std::unique_ptr<Block>& block : blocks_) {
        for (OutputPort* output : block->schedule_.outputs) {
            for (const auto& edge : output->edges_) {
                const auto [begin, end] = inputs.equal_range(edge->port_name);
                if (begin != end) {
                    edge->feeder_count = begin->second->feeder_count_;
                    // relaxed: the workers' threads are made after it
                    edge->feeder_count->fetch_add(1, std::memory_order_relaxed);
                }
                for (auto found = begin; found != end; ++found) {
                    InputPort* const input = found->second;
                    if (input->owner->schedule_.worker == block->schedule_.worker) {
                        edge->neighbours.push_back(input);
                        input->neighbours.push_back(edge.get());
                    }
                }
            }
        }
    }
}

/// An input is on a cycle when a block that feeds it can be reached from its own: both are in one strongly connected part
/// of the graph. (Kosaraju's algorithm: the parts are what is reached against the edges, beginning with those blocks that
/// a search along the edges left last.)
void SchedulerState::find_cycles() {
    std::map<const Block*, std::size_t> number_of;
    for (const std::unique_ptr<Block>& block : blocks_) {
        number_of.emplace(block.get(), number_of.size());
    }
    std::vector<std::vector<std::size_t>> along(blocks_.size());
    std::vector<std::vector<std::size_t>> against(blocks_.size());
    std::vector<std::pair<std::size_t, InputPort*>> connections; // from which block, to which input
    for (const std::unique_ptr<Block>& block : blocks_) {
        const std::size_t from = number_of.at(block.get());
        for (OutputPort* output : block->schedule_.outputs) {
            for (const auto& edge : output->edges_) {
                if (edge->input != nullptr) {
                    const std::size_t to = number_of.at(edge->input->owner);
                    along[from].push_back(to);
                    against[to].push_back(from);
                    connections.emplace_back(from, edge->input);
                }
            }
        }
    }
    constexpr std::size_t unseen = ~std::size_t{0};
    const auto search = [&](const std::vector<std::vector<std::size_t>>& edges, std::size_t begin,
                            std::vector<std::size_t>& part_of, std::size_t part, std::vector<std::size_t>& left) {
        if (part_of[begin] != unseen) {
            return;
        }
        std::vector<std::pair<std::size_t, std::size_t>> path{{begin, 0}}; // and how many of its edges were gone along
        part_of[begin] = part;
        while (!path.empty()) {
            auto& [at, gone_count] = path.back();
            if (gone_count == edges[at].size()) {
                left.push_back(at);
                path.pop_back();
            } else if (const std::size_t next = edges[at][gone_count++]; part_of[next] == unseen) {
                part_of[next] = part;
                path.emplace_back(next, 0);
            }
        }
    };
    std::vector<std::size_t> left;
    std::vector<std::size_t> part_of(blocks_.size(), unseen);
    for (std::size_t number = 0; number < blocks_.size(); ++number) {
        search(along, number, part_of, 0, left);
    }
    part_of.assign(blocks_.size(), unseen);
    std::vector<std::size_t> ignored;
    for (auto number = left.rbegin(); number != left.rend(); ++number) {
        search(against, *number, part_of, *number, ignored);
    }
    for (const auto& [from, input] : connections) {
        input->is_on_cycle_ |= part_of[from] == part_of[number_of.at(input->owner)];
    }
}

// --- Running ---------------------------------------------------------------------------------------------------------

std::vector<WaitPath> SchedulerState::wanted_paths() const {
    const WaitPath wanted = environment_path_.value_or(options_.wait_path);
    if (wanted != WaitPath::automatic) {
        return {wanted};
    }
    return {WaitPath::io_uring, WaitPath::futex_waitv, WaitPath::recheck};
}

void SchedulerState::start() {
    require_own();
    if (!threads_.empty()) {
        throw std::logic_error("the scheduler was started already; wait() for it first");
    }
    if (!has_opened_) {
        try {
            open_ports();
        } catch (...) {
            close_ports();
            throw;
        }
        has_opened_ = true;
        for (std::size_t number = 0; number < blocks_.size(); ++number) {
            Block& block = *blocks_[number];
            workers_[block.schedule_.worker_number.value_or(number * workers_.size() / blocks_.size())]->add(block);
        }
        link_neighbours();
        find_cycles();
    }
    const std::vector<WaitPath> paths = wanted_paths();
    for (const WaitPath path : paths) {
        if (path != paths.back() && !is_available(path)) {
            note(std::string(to_string(path)) + " is not to be had here");
            continue;
        }
        if (start_workers(path, path != paths.back())) {
            // relaxed: a word by itself
            path_.store(path, std::memory_order_relaxed);
            return;
        }
    }
}

/// False: the path was not to be had, though it looked so.
bool SchedulerState::start_workers(WaitPath path, bool may_fail) {
    std::promise<bool> go;
    const std::shared_future<bool> shared_go = go.get_future().share();
    std::vector<std::future<void>> opened;
    std::exception_ptr error;
    try {
        const BlockedSignals blocked;
        for (const std::unique_ptr<Worker>& worker : workers_) {
            worker->set_active();
            std::promise<void> promise;
            opened.push_back(promise.get_future());
            // relaxed: a snapshot for others
            running_count_.fetch_add(1, std::memory_order_relaxed);
            threads_.emplace_back([this, path, shared_go, &worker = *worker, promise = std::move(promise)]() mutable {
                worker.run(path, std::move(promise), shared_go);
                one_ended();
            });
        }
    } catch (...) {
        error = std::current_exception();
        if (opened.size() > threads_.size()) {
            opened.pop_back();
            one_ended();
        }
    }
    for (std::future<void>& one : opened) {
        try {
            one.get();
        } catch (...) {
            error = std::current_exception();
        }
    }
    go.set_value(error == nullptr);
    if (error == nullptr) {
        return true;
    }
    for (std::thread& thread : threads_) {
        thread.join();
    }
    threads_.clear();
    if (!may_fail) {
        std::rethrow_exception(error);
    }
    try {
        std::rethrow_exception(error);
    } catch (const std::exception& failure) {
        note(failure.what());
    }
    return false;
}

void SchedulerState::wait() {
    require_own();
    for (std::thread& thread : threads_) {
        thread.join();
    }
    threads_.clear();
    // relaxed: no worker is there to see it
    commands_.store(0, std::memory_order_relaxed);
    if (std::ranges::none_of(workers_, &Worker::has_live_blocks)) {
        drop_leftovers();
    }
    std::exception_ptr error;
    {
        const std::lock_guard guard(mutex_);
        error = std::exchange(error_, nullptr);
    }
    if (error != nullptr) {
        std::rethrow_exception(error);
    }
}

/// What was pushed to a block that had ended: nobody else takes it.
void SchedulerState::drop_leftovers() noexcept {
    for (const Port& port : claimed_) {
        drop_queued(*port.view());
    }
}

void SchedulerState::command(std::uint32_t bit) noexcept {
    // (1) seq_cst: before the doorbells' bits are looked at; pairs with (3) in worker.hpp, and (2) in event_count.hpp
    commands_.fetch_or(bit, std::memory_order_seq_cst);
    for (const std::unique_ptr<Worker>& worker : workers_) {
        worker->ring();
    }
}

/// Called by a worker all of whose blocks sleep on inputs. If that is so of all workers, no input is left that others may
/// push to, and all are empty, then none of the blocks will ever be called again. Nobody was active from before the ports were
/// looked at until after, so what was looked at one after the other held at the same time.
void SchedulerState::look_for_quiescence() noexcept {
    std::array<Worker::Quiet, worker_count_max> before;
    for (std::size_t number = 0; number < workers_.size(); ++number) {
        before[number] = workers_[number]->quiet();
        if (!before[number].is_quiet) {
            return;
        }
    }
    for (const auto& [port, is_bound] : input_ports_) {
        if (!port->is_attached_by_us(PortEnd::consumer)) {
            continue; // its block has ended
        }
        std::uint64_t position = port->ring().head_hint();
        bool cleared = false;
        const bool has_message = port->has_message(position, cleared);
        if (cleared) {
            port->waiting_event(PortEnd::producer).notify();
        }
        if (is_bound || has_message) {
            return;
        }
    }
    for (std::size_t number = 0; number < workers_.size(); ++number) {
        if (workers_[number]->quiet() != before[number]) {
            return;
        }
    }
    command(command_quiescent);
}

void SchedulerState::fail(const std::string& block_name, const std::exception_ptr& error) noexcept {
    try {
        std::exception_ptr named;
        try {
            try {
                std::rethrow_exception(error);
            } catch (const std::exception& failure) {
                std::throw_with_nested(BlockError(block_name, failure.what()));
            } catch (...) {
                std::throw_with_nested(BlockError(block_name, "it threw what is no std::exception"));
            }
        } catch (...) {
            named = std::current_exception();
        }
        const std::lock_guard guard(mutex_);
        if (error_ == nullptr) {
            error_ = named;
        }
    } catch (...) {
        // No memory for what is to be said: the block's own exception has to do.
        error_ = error;
    }
    drain();
}

void SchedulerState::note(const std::string& text) {
    const std::lock_guard guard(mutex_);
    if (notes_.find(text) == std::string::npos) {
        notes_ += notes_.empty() ? text : "; " + text;
    }
}

std::string SchedulerState::notes() const {
    const std::lock_guard guard(mutex_);
    return notes_;
}

SchedulerCounters SchedulerState::counters() const noexcept {
    SchedulerCounters sum;
    for (const std::unique_ptr<Worker>& worker : workers_) {
        const SchedulerCounters& counters = worker->counters();
        for (std::uint64_t SchedulerCounters::*count :
             {&SchedulerCounters::work_calls, &SchedulerCounters::sleeps, &SchedulerCounters::rechecks,
              &SchedulerCounters::io_uring_enters, &SchedulerCounters::futex_waitvs, &SchedulerCounters::futex_waits,
              &SchedulerCounters::requests, &SchedulerCounters::fixed_requests}) {
            // relaxed: numbers for people to read
            sum.*count += shared(counters.*count).load(std::memory_order_relaxed);
        }
    }
    return sum;
}

} // namespace detail

// --- Scheduler -------------------------------------------------------------------------------------------------------

Scheduler::Scheduler(const Domain& domain, SchedulerOptions options)
    : state_(std::make_unique<detail::SchedulerState>(domain, std::move(options))) {}

Scheduler::~Scheduler() = default;

void Scheduler::adopt(std::unique_ptr<Block> block) {
    state_->adopt(std::move(block));
}

void Scheduler::connect(OutputPort& from, InputPort& to, const EdgeOptions& options) {
    state_->connect(from, to, options);
}

void Scheduler::assign(Block& block, unsigned worker_number) {
    state_->assign(block, worker_number);
}

void Scheduler::run() {
    start();
    wait();
}

void Scheduler::start() {
    state_->start();
}

void Scheduler::wait() {
    state_->wait();
}

void Scheduler::stop() noexcept {
    state_->stop();
}

void Scheduler::drain() noexcept {
    state_->drain();
}

bool Scheduler::is_running() const noexcept {
    return state_->is_running();
}

WaitPath Scheduler::wait_path() const noexcept {
    return state_->wait_path();
}

SchedulerCounters Scheduler::counters() const noexcept {
    return state_->counters();
}

std::string Scheduler::notes() const {
    return state_->notes();
}

const std::string& Scheduler::name() const noexcept {
    return state_->options().name;
}

} // namespace weir
