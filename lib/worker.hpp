// A thread that runs blocks, and the scheduler that it belongs to.
#pragma once

#include "domain_state.hpp"
#include "sleeper.hpp"

#include <atomic>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace weir::detail {

class SchedulerState;

/// Blocks in a row; a block is in one list at most.
class BlockList {
public:
    [[nodiscard]] bool is_empty() const noexcept { return first_ == nullptr; }
    [[nodiscard]] Block* first() const noexcept { return first_; }
    void push_back(Block& block) noexcept;
    void remove(Block& block) noexcept;
    [[nodiscard]] Block* pop_front() noexcept;

private:
    Block* first_ = nullptr;
    Block* last_ = nullptr;
};

/// Takes the messages out of a port that nobody pops from any more.
void drop_queued(PortView& port) noexcept;

/// What other threads ring to wake a worker.
class Doorbell final : public Waitable {
public:
    [[nodiscard]] bool poll() noexcept override { return false; }
    [[nodiscard]] State look() override { return State::nothing; }
    [[nodiscard]] EventCount event() noexcept override { return EventCount(word_); }
    void close() noexcept override {}

private:
    alignas(cache_line_bytes) std::uint32_t word_ = 0;
};

class Worker final : public SleeperClient {
public:
    Worker(SchedulerState& scheduler, unsigned number) noexcept : scheduler_(&scheduler), number_(number) {}

    void add(Block& block);

    /// The thread's body. Says in `opened` whether the path was to be had, and goes on when `go` says so.
    void run(WaitPath path, std::promise<void> opened, std::shared_future<bool> go);

    /// Wakes the thread; from any thread, and from signal handlers.
    void ring() noexcept { static_cast<void>(doorbell_.event().notify()); }

    void submit(Block& block, IoRequest& request);
    [[nodiscard]] bool has_input_ended(InputPort& input) noexcept;
    /// Ends what did not end by itself, in the thread that destroys the scheduler.
    void end_all() noexcept;

    [[nodiscard]] const SchedulerCounters& counters() const noexcept { return counters_; }
    [[nodiscard]] bool has_live_blocks() const noexcept { return live_count_ > 0; }
    /// Before its thread is made.
    void set_active() noexcept;

    /// Whether all of its blocks sleep on inputs, and a number that changes before one of them is called again.
    struct Quiet {
        bool is_quiet;
        std::uint64_t activity;
        friend bool operator==(const Quiet&, const Quiet&) = default;
    };
    [[nodiscard]] Quiet quiet() const noexcept {
        // (1) seq_cst: what was pushed before the worker fell quiet is seen in its port; pairs with (3) in worker.cpp
        const std::uint64_t activity = activity_.load(std::memory_order_seq_cst);
        // (2) seq_cst: after the number, which is raised after this is cleared: who is quiet was so since it was that number;
        // pairs with (4), (5) in worker.cpp
        return {is_quiet_.load(std::memory_order_seq_cst), activity};
    }

    void on_change(Waitable& waitable) noexcept override;
    void on_request_end(IoRequest& request) noexcept override;
    void on_peer_end() noexcept override { has_peer_ended_ = true; }
    void on_note(const std::string& note) noexcept override;

private:
    /// A turn ends after so many calls that made progress: many enough to spread what a turn costs, few enough that the
    /// buffers under way stay in the first-level cache.
    static constexpr unsigned calls_per_turn_max = 32;
    static constexpr unsigned turns_per_look_max = 16;
    /// Where so many take longer, there are fewer: what waits beside them is looked at in time.
    static constexpr std::int64_t look_interval_max_ns = 200'000;
    /// So many short ones in a row: beside a block that takes long, one that does not proves nothing.
    static constexpr unsigned short_looks_min = 4;
    static constexpr unsigned blocks_per_look = 4;
    static constexpr unsigned looks_per_doze = 16;
    static constexpr unsigned looks_per_yield = 64;
    static constexpr std::uint32_t spin_count_factor_max = 32;
    static constexpr std::int64_t short_sleep_ns = 200'000;

    void pin() const;
    void loop();
    void start_blocks();
    void call(Block& block);
    [[nodiscard]] WorkResult call_work(Block& block);
    void doze(Block& block, WorkResult result);
    void tell_neighbours(Block& block) noexcept;
    void make_ready(Block& block) noexcept;
    [[nodiscard]] bool poll(Block& block) noexcept;
    void adapt_spinning(bool was_short) noexcept;
    [[nodiscard]] bool spin();
    void look_around();
    void put_to_sleep(Block& block);
    void sleep();
    void recheck();
    void handle_peers();
    void handle_commands();
    void set_timer(Block& block);
    void fire_timers(DeadlineNs now_ns);
    void begin_end(Block& block);
    void continue_end(Block& block);
    void end(Block& block) noexcept;
    void fail(Block& block, const std::exception_ptr& error) noexcept;
    void cancel_requests(const Block* of_block);
    void finish_requests();
    void set_quiet(bool is_quiet) noexcept;

    SchedulerState* scheduler_;
    unsigned number_;
    std::vector<Block*> blocks_;
    BlockList ready_;
    BlockList dozing_;
    std::size_t live_count_ = 0;
    std::size_t quiet_count_ = 0; ///< blocks that sleep on inputs alone
    std::multimap<DeadlineNs, Block*> timers_;
    std::vector<IoRequest*> requests_;  ///< in flight
    std::vector<IoRequest*> cancelled_; ///< by stop(), to be submitted again
    std::unique_ptr<Sleeper> sleeper_;
    std::unique_ptr<PeerWatch> peers_;
    Doorbell doorbell_;
    std::uint32_t seen_commands_ = 0;
    unsigned calls_per_turn_ = 1;
    unsigned turns_per_look_ = 1;
    unsigned turn_count_ = 0; ///< since the last look around
    unsigned short_look_count_ = 0;
    DeadlineNs look_ns_ = 0;       ///< when that was
    std::uint32_t spin_count_ = 0; ///< looks before the next sleep
    DeadlineNs recheck_ns_ = 0;
    bool has_worked_ = false;
    bool has_submitted_ = false;
    bool has_peer_ended_ = false;
    bool is_stopping_ = false;
    alignas(cache_line_bytes) std::atomic<bool> is_quiet_{false};
    std::atomic<std::uint64_t> activity_{0};
    alignas(cache_line_bytes) SchedulerCounters counters_;
};

class SchedulerState {
public:
    SchedulerState(const Domain& domain, SchedulerOptions options);
    ~SchedulerState();

    void adopt(std::unique_ptr<Block> block);
    void connect(OutputPort& from, InputPort& to, const EdgeOptions& options);
    void assign(Block& block, unsigned worker_number);
    void start();
    void wait();
    void stop() noexcept { command(command_stop); }
    void drain() noexcept { command(command_drain); }

    static constexpr std::uint32_t command_stop = 1;
    static constexpr std::uint32_t command_drain = 2;
    static constexpr std::uint32_t command_quiescent = 4;
    [[nodiscard]] std::uint32_t commands() const noexcept {
        // (3) seq_cst: who is about to sleep looks here after it set its doorbell's bit; pairs with (1) in scheduler.cpp,
        // and (1) in event_count.hpp
        return commands_.load(std::memory_order_seq_cst);
    }

    void note(const std::string& text);
    void fail(const std::string& block_name, const std::exception_ptr& error) noexcept;
    void look_for_quiescence() noexcept;

    [[nodiscard]] const SchedulerOptions& options() const noexcept { return options_; }
    [[nodiscard]] const Domain& domain() const noexcept { return domain_; }
    [[nodiscard]] DomainState& domain_state() const noexcept { return *domain_.state_; }
    [[nodiscard]] bool is_running() const noexcept {
        // relaxed: a snapshot
        return running_count_.load(std::memory_order_relaxed) > 0;
    }
    void one_ended() noexcept {
        // relaxed: as above
        running_count_.fetch_sub(1, std::memory_order_relaxed);
    }
    [[nodiscard]] WaitPath wait_path() const noexcept {
        // relaxed: a word by itself
        return path_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] SchedulerCounters counters() const noexcept;
    [[nodiscard]] std::string notes() const;
    void require_own() const;

private:
    void command(std::uint32_t bit) noexcept;
    void open_ports();
    [[nodiscard]] Port claim_port(const Block& block, InputPort& input);
    void name_block(Block& block);
    void close_ports() noexcept;
    void link_neighbours();
    void find_cycles();
    [[nodiscard]] bool start_workers(WaitPath path, bool may_fail);
    void drop_leftovers() noexcept;
    [[nodiscard]] std::vector<WaitPath> wanted_paths() const;

    Domain domain_;
    SchedulerOptions options_;
    std::optional<WaitPath> environment_path_;
    std::vector<std::unique_ptr<Block>> blocks_;
    std::vector<std::unique_ptr<Worker>> workers_;
    std::vector<std::thread> threads_;
    std::vector<Port> claimed_; ///< the ports of this scheduler's own edges
    struct InputView {
        std::shared_ptr<PortView> port;
        bool is_bound;
    };
    std::vector<InputView> input_ports_;
    bool has_opened_ = false;
    std::atomic<std::uint32_t> commands_{0};
    std::atomic<unsigned> running_count_{0};
    std::atomic<WaitPath> path_{WaitPath::automatic};
    mutable std::mutex mutex_; ///< for what follows
    std::string notes_;
    std::exception_ptr error_;
};

} // namespace weir::detail
