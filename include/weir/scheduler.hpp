// scheduler.hpp (layer 8): Scheduler, worker threads that run blocks, and sleep in one place when none can run.
//
// A scheduler is given blocks, and what goes from which to which; then it runs them until all have ended.
//
//     weir::Domain domain = weir::Domain::join("camera");
//     weir::BufferPool frames = domain.pool("frames", {.buffer_bytes = 65'536, .buffer_count = 64});
//     weir::Scheduler scheduler(domain, {.worker_count = 2});
//     auto& source = scheduler.add<weir::FileSource>("in.raw", frames);
//     auto& filter = scheduler.add<Threshold>();
//     scheduler.connect(source.out, filter.in);
//     filter.out.bind("thresholded", {.port = {.capacity = 16}});   // a port that other processes pop from
//     scheduler.run();                                               // until every block has ended
//
// A worker is a thread. Each block belongs to one of them: to the one that it was assigned to, or, as they were added, the
// first ones to worker 0 and so on. A worker calls its blocks in turn, several times each while they make progress. A
// block that waits is looked at for a while; then the worker asks the kernel to watch what it waits for. When all of its
// blocks wait, the worker sleeps in one system call, which watches everything at once: the ports' and pools' event counts,
// requests of its blocks, the earliest wake_at(), the processes of the domain's other members, and other threads that
// stop the scheduler. It wakes once a re-check interval by itself, for what a killed notifier did not tell any more, and to
// look for members that died.
//
// Which system call that is (WaitPath) is found out at start():
// - io_uring: everything in one io_uring a worker. Linux 6.7, and where io_uring is not forbidden.
// - futex_waitv: up to 127 event counts and the worker's own, the rest is looked at once an interval; requests are carried
//   out by a helper thread. Linux 5.16.
// - recheck: one futex, and a look at all else from 1 ms after the last progress on, ever more seldom up to the interval.
// The option demands one; the environment variable WEIR_WAIT_PATH (io_uring, futex_waitv, recheck, or automatic) goes before
// it.
//
// Edges. connect() makes a port of the domain for each input, named after the scheduler, the block and the input. It is this
// scheduler's alone, by a lock that ends with the process: a second process of the same name gets ports with a number
// behind theirs. When the process is killed, what was queued in them stays, and goes on in its next life.
//
// When a peer dies, its ends of ports close: an input whose last producer is gone ends, or waits for the next one where it
// was bound so; an output whose last consumer is gone ends its block, or goes on filling the port (WhenUnconsumed::fill).
//
// Cycles work. When all blocks that are left only wait for each other's messages and there are none, all have ended; that is
// noticed within two re-check intervals.
//
// The requests of a worker's io_uring may go on after the process was killed: the kernel then keeps the process's lock
// until the last of them has ended, so nobody takes its buffers before.
//
// | at the same time                                   | allowed                              |
// | stop(), drain() || anything but the destructor     | yes; also in signal handlers         |
// | counters(), is_running() || anything else          | yes                                  |
// | add, connect, assign || anything                   | no, and only before the first start  |
// | run, start, wait || each other                     | no                                   |
//
// After fork() the workers are the parent's: in the child every call throws used_after_fork, and the destructor ends nothing.
//
// Progress: blocking, all of it; the blocks' operations on ports are lock-free.
// If the caller dies here: its workers die with it; the ports are as after any death. [crash: push, pop, wait]
// Limits: 1,024 ports in a domain; 256 workers.
#pragma once

#include <weir/block.hpp>
#include <weir/domain.hpp>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#pragma GCC visibility push(default)
namespace weir {

/// How workers sleep.
enum class WaitPath : std::uint8_t { automatic, io_uring, futex_waitv, recheck };

/// As WEIR_WAIT_PATH spells it.
[[nodiscard]] std::string_view to_string(WaitPath path) noexcept;

/// How a scheduler runs its blocks.
struct SchedulerOptions {
    std::string name = {};                    ///< in the names of its edges' ports; empty: the process's name
    unsigned worker_count = 1;                ///< threads, 1 to 256
    std::vector<unsigned> cpus = {};          ///< worker i runs on cpus[i modulo their count] only; empty: anywhere
    WaitPath wait_path = WaitPath::automatic; ///< otherwise start() throws where the path is not to be had
    /// Looks before a worker sleeps, and up to 32 times as many while its sleeps turn out short; 0 sleeps at once.
    std::uint32_t spin_count = 200;
    bool fixed_buffers = true; ///< io_uring: registers pools that requests read or write
};

/// How a port between two blocks is made.
struct EdgeOptions {
    std::uint32_t capacity = 64; ///< messages, a power of two, 2 to 65,536
    WhenFull when_full = WhenFull::wait;
};

/// What a worker did; of all workers together in Scheduler::counters().
struct SchedulerCounters {
    std::uint64_t work_calls = 0;      ///< of Block::work()
    std::uint64_t sleeps = 0;          ///< system calls that waited
    std::uint64_t rechecks = 0;        ///< sleeps that ended because the re-check interval was over
    std::uint64_t io_uring_enters = 0; ///< all calls of io_uring_enter()
    std::uint64_t futex_waitvs = 0;
    std::uint64_t futex_waits = 0;
    std::uint64_t requests = 0;       ///< of blocks, carried out
    std::uint64_t fixed_requests = 0; ///< of these on registered buffers
};

/// A block has thrown; what() names the block, and the block's exception is nested.
class BlockError : public std::runtime_error {
public:
    /// `what` is what the block's exception says.
    /// Throws: std::bad_alloc alone.
    BlockError(const std::string& block_name, const std::string& what)
        : std::runtime_error("block " + block_name + ": " + what), block_name_(block_name) {}
    [[nodiscard]] const std::string& block_name() const noexcept { return block_name_; }

private:
    std::string block_name_;
};

/// Runs blocks in threads, until all have ended.
class Scheduler {
public:
    /// Throws: invalid_size (worker_count), invalid_name, used_after_fork, not_a_member; std::invalid_argument where
    /// WEIR_WAIT_PATH names no path.
    explicit Scheduler(const Domain& domain, SchedulerOptions options = {});
    Scheduler(const Scheduler&) = delete;
    Scheduler& operator=(const Scheduler&) = delete;
    /// Stops at once. What is queued in its edges is dropped; what is queued in bound ports stays.
    ~Scheduler();

    /// Makes a block. Throws what its constructor throws.
    /// Throws: std::logic_error after the first start; used_after_fork.
    template <class MadeBlock, class... Arguments>
    MadeBlock& add(Arguments&&... arguments) {
        static_assert(std::is_base_of_v<Block, MadeBlock>, "a scheduler runs blocks");
        auto block = std::make_unique<MadeBlock>(std::forward<Arguments>(arguments)...);
        MadeBlock& made = *block;
        adopt(std::move(block));
        return made;
    }
    /// As add(), for a block that is made already.
    /// Throws: as add().
    void adopt(std::unique_ptr<Block> block);

    /// What `from` pushes goes to `to`, by the port of `to`. The first edge of an input decides its port's options; an
    /// input that is bound by name keeps its own.
    /// Throws: std::invalid_argument where one of the two is no port of a block of this scheduler, or both are connected
    /// already; invalid_capacity.
    void connect(OutputPort& from, InputPort& to, const EdgeOptions& options = {});

    /// Throws: std::invalid_argument where there is no such worker, or the block is another scheduler's.
    void assign(Block& block, unsigned worker_number);

    /// start() and wait().
    /// Throws: as these.
    void run();

    /// Opens the ports, and starts the workers. After stop() it goes on where it was.
    /// Throws: as Domain::port(); invalid_argument for an input without any edge; std::system_error for a CPU that is not
    /// there, and where the demanded wait path is not to be had.
    void start();

    /// Waits until all blocks have ended, or stop() was called.
    /// Throws: BlockError, for the first block that threw. The others were drained then.
    void wait();

    /// All workers end after the call of work() that they are in. Requests in flight are cancelled.
    void stop() noexcept;

    /// Takes in nothing more: blocks without inputs end, and inputs that were bound by name are as at their end, but for
    /// what blocks of this scheduler push to them. The rest goes on until all blocks have ended.
    void drain() noexcept;

    /// Whether any worker runs: a snapshot.
    [[nodiscard]] bool is_running() const noexcept;
    /// The path that was taken; automatic before start().
    [[nodiscard]] WaitPath wait_path() const noexcept;
    [[nodiscard]] SchedulerCounters counters() const noexcept;
    /// What was wished for and not obtained (a wait path, fixed buffers), for people to read; empty when all was.
    /// Throws: std::bad_alloc alone.
    [[nodiscard]] std::string notes() const;
    [[nodiscard]] const std::string& name() const noexcept;

private:
    std::unique_ptr<detail::SchedulerState> state_;
};

} // namespace weir
#pragma GCC visibility pop
