// block.hpp (layer 7): Block, a unit of work with input and output ports, which a Scheduler runs.
//
// A block is a class with ports and one function. It does what it can do now, never waits, and says what came of it; the
// scheduler calls it again when that can change. A block belongs to one worker thread, so its code needs no locks.
//
//     class Threshold : public weir::Block {
//     public:
//         weir::InputPort in{*this, "in"};
//         weir::OutputPort out{*this, "out"};
//
//         weir::WorkResult work() override {
//             if (!out.is_ready()) {
//                 return weir::WorkResult::need_output;
//             }
//             weir::BufferPtr frame = in.try_pop();
//             if (!frame) {
//                 return weir::WorkResult::need_input;
//             }
//             for (std::byte& sample : frame.bytes()) {
//                 sample = sample < std::byte{128} ? std::byte{0} : std::byte{255};
//             }
//             out.push(std::move(frame));
//             return weir::WorkResult::progress;
//         }
//     };
//
// What a block waits for. A block that returns need_input or need_output sleeps on exactly what it found wanting in that
// call: inputs that had no message, outputs that were not ready, pools (PoolPort) that had no buffer; and on its requests
// in flight and its wake_at(). Which of the two it returns is for people to read. One that found nothing wanting is called
// again once a re-check interval.
//
// How a block ends. It returns done; or it throws; or it waits for what never comes any more: all inputs that it found
// empty are at the end of their streams, or nobody is left who takes what its outputs bring. An input's end is said
// before (is_at_end() is true, and work() is called at least once more), so a block that has something left to send sends it
// then, and returns done. An input stays at its end, also where a new producer comes. When a block has ended its ports close,
// and its neighbours see the end of their streams.
//
// An edge is a port of the domain like any other (port.hpp). One InputPort pops from one port; an OutputPort pushes to each
// of its edges a reference to the same buffer. A message that finds an edge full stays with the OutputPort, which is not
// ready until all edges have got it. So push() never waits, and fan-out goes as fast as the slowest. (In a port that
// was opened to refuse, it is dropped instead.)
//
// | at the same time                                             | allowed                              |
// | work() || work(), start(), finish() of one block             | never happens                        |
// | work() of different blocks                                   | happens: workers are threads         |
// | try_pop(), push(), is_ready(), ... from outside of work()    | in start() only                      |
// | bind() || anything                                           | no, and only before the scheduler runs |
//
// Progress: try_pop(), push() and is_ready() are lock-free, as the port's operations.
// If the caller dies here: as in the port's operations; a message that waits in an OutputPort for room has been pushed to
// some of its edges, and is held by the dead for the others. [crash: push, pop, fan_out]
// Limits: an output has as many edges as its buffers have references, 4 or 12.
#pragma once

#include <weir/buffer_pool.hpp>
#include <weir/domain.hpp>
#include <weir/error.hpp>
#include <weir/event_count.hpp>
#include <weir/port.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#pragma GCC visibility push(default)
namespace weir {

/// What came of one call of Block::work().
enum class WorkResult : std::uint8_t {
    progress,    ///< something was done; call again
    need_input,  ///< nothing to do until there is more input
    need_output, ///< nothing to do until there is room, or a free buffer
    done         ///< never call again
};

class Block;
class InputPort;
class OutputPort;

namespace detail {

class [[gnu::visibility("hidden")]] BlockList;
class [[gnu::visibility("hidden")]] SchedulerState;
class [[gnu::visibility("hidden")]] Worker;

/// Something that a block may sleep on: what there is to see, and the event count that tells of changes.
class Waitable {
public:
    enum class State : std::uint8_t {
        nothing,   ///< wait on
        something, ///< call the block
        over       ///< it never comes
    };

    Waitable(const Waitable&) = delete;
    Waitable& operator=(const Waitable&) = delete;

    /// A look of a few instructions, which may miss what look() sees.
    [[nodiscard]] virtual bool poll() noexcept = 0;
    /// A look at everything, after the waiters' bit was set.
    [[nodiscard]] virtual State look() = 0;
    [[nodiscard]] virtual EventCount event() noexcept = 0;
    /// Counts that the block goes to sleep on this.
    virtual void count_wait() noexcept {}
    /// Lets go of what a look has found.
    virtual void release() noexcept {}
    /// The block has ended.
    virtual void close() noexcept = 0;

    Block* owner = nullptr;            ///< null: not a block's
    std::vector<Waitable*> neighbours; ///< at the other end of the same port, of blocks of the same worker
    bool is_awaited = false;           ///< the block found it wanting in its last call
    bool has_moved = false;            ///< a message went through in the last calls: neighbours may go on
    bool is_watched = false;           ///< the kernel has been asked to tell of a change, and has not yet
    bool holds_something = false;      ///< what a look has found, until the block is called
    std::uint32_t key = 0;             ///< what the event's word was when the block went to sleep

protected:
    Waitable() = default;
    virtual ~Waitable() = default;
};

/// What a scheduler keeps of a block.
struct BlockSchedule {
    enum class State : std::uint8_t {
        idle,   ///< not running yet, or not any more
        ready,  ///< to be called
        dozing, ///< waits, and its worker looks now and then
        asleep, ///< waits, and the kernel or a neighbour wakes it
        ended
    };

    Worker* worker = nullptr;
    Block* previous = nullptr; ///< in the worker's list that it is in
    Block* next = nullptr;
    std::vector<Waitable*> waitables;
    std::vector<InputPort*> inputs;
    std::vector<OutputPort*> outputs;
    DeadlineNs wake_ns = deadline_never;  ///< when it is called at the latest
    DeadlineNs timer_ns = deadline_never; ///< when its timer fires
    std::uint32_t requests_in_flight = 0;
    std::uint32_t doze_count = 0; ///< how often it was looked at in vain
    State state = State::idle;
    bool is_started = false;      ///< start() was called
    bool is_ending = false;       ///< never called again: its outputs still hold messages, or it has requests in flight
    bool waits_for_input = false; ///< asleep, and on nothing but inputs
    std::optional<unsigned> worker_number; ///< where it was assigned to
};

} // namespace detail

/// A read or a write that the kernel or a helper thread carries out while the block goes on. Owned by the block, which
/// leaves it alone until is_done. Bytes in a pool's buffer are read and written in place.
struct IoRequest {
    /// What is to be done: a read, a write, or that all that was written is on its disk.
    enum class Kind : std::uint8_t { read, write, sync };

    Kind kind = Kind::read;
    int descriptor = -1;
    std::int64_t offset = -1;       ///< in the file, in bytes; -1: where the descriptor is
    std::span<std::byte> bytes;     ///< where to, or from
    BufferPoolView* pool = nullptr; ///< the pool that `bytes` lie in; null: in none
    std::int64_t result = 0;        ///< how many bytes, or a negated errno
    bool is_done = true;

    Block* owner = nullptr; ///< set by submit()
};

/// A unit of work. Blocks are made by Scheduler::add(), and live as long as it.
class Block {
public:
    /// The name is for people, and for the names of ports between blocks; empty: the class's name and a number.
    explicit Block(std::string name = {}) : name_(std::move(name)) {}
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    virtual ~Block() = default;

    /// Does what can be done now, and never waits. May throw, which ends the block.
    virtual WorkResult work() = 0;

    /// Called once in the block's thread before its first work(). May throw, which ends the block.
    virtual void start() {}

    /// Called once in the block's thread after its last work(), also when that threw, and after its last request ended;
    /// not where start() was never called.
    virtual void finish() noexcept {}

    [[nodiscard]] const std::string& name() const noexcept { return name_; }

protected:
    /// Has the block called again at that time at the latest, when this call of work() returns need_input or need_output.
    void wake_at(DeadlineNs when_ns) noexcept { schedule_.wake_ns = std::min(schedule_.wake_ns, when_ns); }

    /// Hands a request over; the block is called again when it is done. Only from start() and work().
    /// Progress: lock-free, or blocking where a helper thread does I/O.
    /// If the caller dies here: the kernel may go on with the request. The bytes stay this member's until it has ended, and
    /// come back then. [crash: none, the kernel's part: io_death_test kills who has requests in flight]
    void submit(IoRequest& request);

    /// How many requests have not ended.
    [[nodiscard]] std::uint32_t requests_in_flight() const noexcept { return schedule_.requests_in_flight; }

private:
    friend class InputPort;
    friend class OutputPort;
    friend class PoolPort;
    friend class detail::BlockList;
    friend class detail::SchedulerState;
    friend class detail::Worker;

    std::string name_;
    detail::BlockSchedule schedule_;
};

/// What a port that is bound by name is opened with, and how its end is taken.
struct BindOptions {
    PortOptions port = {};            ///< as in Domain::port(): no capacity opens one that has to be there
    bool waits_for_producers = false; ///< an input whose last producer is gone waits for the next one
};

/// Where messages come in. A member of the block.
class InputPort final : public detail::Waitable {
public:
    /// A member of `block`; the name is for people, and for the names of ports between blocks.
    explicit InputPort(Block& block, std::string name = "in");

    /// Pops from port `port_name` of the domain, to which other processes may push.
    void bind(std::string port_name, const BindOptions& options = {});

    /// The oldest message, or nothing just now; is_at_end() tells whether ever.
    /// Throws: corrupt, unknown_buffer, used_after_fork.
    [[nodiscard]] BufferPtr try_pop() {
        if (is_cut_) [[unlikely]] {
            is_awaited = true;
            return {};
        }
        BufferPtr buffer = consumer_->try_pop();
        if (buffer) [[likely]] {
            has_moved = true;
        } else {
            is_awaited = true;
            require_no_error();
        }
        return buffer;
    }

    /// As many messages as there are and `buffers` has room for; returns how many.
    /// Throws: as above.
    [[nodiscard]] std::size_t try_pop(std::span<BufferPtr> buffers);

    /// Whether the stream has ended and all of it was popped, as the scheduler saw it before this call of work().
    [[nodiscard]] bool is_at_end() const noexcept { return is_at_end_; }

    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    /// The port's name in the domain; known when the scheduler has started.
    [[nodiscard]] const std::string& port_name() const noexcept { return port_name_; }

private:
    friend class OutputPort;
    friend class detail::SchedulerState;
    friend class detail::Worker;

    [[nodiscard]] bool poll() noexcept override;
    [[nodiscard]] State look() override;
    [[nodiscard]] EventCount event() noexcept override;
    void count_wait() noexcept override;
    void close() noexcept override;
    void require_no_error() const;

    std::string name_;
    std::string port_name_;
    BindOptions options_;
    bool is_bound_ = false;
    bool is_on_cycle_ = false; ///< what feeds it is fed by its own block
    bool is_at_end_ = false;
    bool is_cut_ = false; ///< drained: what comes from outside stays where it is
    std::uint32_t seen_changes_ = 0;
    std::optional<Consumer> consumer_;
    std::shared_ptr<std::atomic<unsigned>> feeder_count_; ///< open edges of this scheduler that push to the same port
};

/// Where messages go out, to one or several edges. A member of the block.
class OutputPort {
public:
    /// A member of `block`; the name is for people.
    explicit OutputPort(Block& block, std::string name = "out");
    OutputPort(const OutputPort&) = delete;
    OutputPort& operator=(const OutputPort&) = delete;
    ~OutputPort();

    /// Pushes to port `port_name` of the domain too, from which other processes may pop.
    void bind(std::string port_name, const BindOptions& options = {});

    /// Whether push() may be called: no message waits for room, and somebody is left who takes the next one.
    [[nodiscard]] bool is_ready() {
        if (pending_count_ == 0 && !is_closed_) [[likely]] {
            return true;
        }
        return make_ready();
    }

    /// Sends the buffer to all edges. Never waits; only while is_ready().
    /// Throws: too_many_references (then nothing was sent), unknown_buffer, corrupt, used_after_fork, no_buffer; the
    /// buffer is dropped. std::logic_error, where it was not ready.
    void push(BufferPtr&& buffer) {
        if (edges_.size() == 1 && pending_count_ == 0) [[likely]] {
            Edge& edge = *edges_.front();
            if (edge.producer->try_push(std::move(buffer)) == PushResult::ok) [[likely]] {
                edge.has_moved = true;
                return;
            }
        }
        push_slowly(std::move(buffer));
    }

    /// Whether nobody is left who takes messages.
    [[nodiscard]] bool is_closed() const noexcept { return is_closed_; }

    [[nodiscard]] const std::string& name() const noexcept { return name_; }

private:
    friend class InputPort;
    friend class detail::SchedulerState;
    friend class detail::Worker;

    /// A producer's end of one port, with the message that waits for room in it.
    class Edge final : public detail::Waitable {
    public:
        Edge(OutputPort& output, InputPort* to_input, std::string to_port, const PortOptions& port_options)
            : port(&output), input(to_input), port_name(std::move(to_port)), options(port_options) {}

        [[nodiscard]] bool poll() noexcept override;
        [[nodiscard]] State look() override;
        [[nodiscard]] EventCount event() noexcept override;
        void count_wait() noexcept override;
        void close() noexcept override;
        /// Tries to push `pending`.
        void flush(bool looks_at_consumers);
        [[nodiscard]] bool is_over() noexcept;

        OutputPort* port;
        InputPort* input; ///< of this scheduler, or null
        std::string port_name;
        PortOptions options;
        std::optional<Producer> producer;
        BufferPtr pending;
        std::shared_ptr<std::atomic<unsigned>> feeder_count;
        bool is_closed = false;
    };

    void add_edge(InputPort* input, std::string port_name, const PortOptions& options);
    [[nodiscard]] bool make_ready();
    void push_slowly(BufferPtr&& buffer);
    /// Takes note of what a push of `buffer` came to.
    void settle(Edge& edge, BufferPtr&& buffer, PushResult result);

    Block* block_;
    std::string name_;
    std::vector<std::unique_ptr<Edge>> edges_;
    unsigned pending_count_ = 0;
    bool is_closed_ = false;
    bool is_close_said_ = false;
};

/// Where a block gets free buffers: a pool that it sleeps on when there is none. A member of the block. Where several
/// sources share a pool and a block needs messages of both, a pool that one source's edges can hold all of makes them wait
/// for each other for ever: give each a pool of its own, or edges that are smaller than the pool.
class PoolPort final : public detail::Waitable {
public:
    /// A member of `block`, which allocates from `pool`.
    PoolPort(Block& block, BufferPool pool);

    /// A free buffer, or nothing just now.
    /// Throws: used_after_fork.
    [[nodiscard]] BufferPtr try_allocate() {
        BufferPtr buffer = holds_something ? take_found() : pool_.try_allocate();
        if (!buffer) [[unlikely]] {
            is_awaited = true;
        }
        return buffer;
    }

    [[nodiscard]] const BufferPool& pool() const noexcept { return pool_; }

private:
    [[nodiscard]] bool poll() noexcept override;
    [[nodiscard]] State look() override;
    [[nodiscard]] EventCount event() noexcept override;
    void release() noexcept override { static_cast<void>(take_found()); }
    void close() noexcept override { release(); }
    [[nodiscard]] BufferPtr take_found() noexcept {
        holds_something = false;
        return std::move(found_);
    }

    BufferPool pool_;
    BufferPtr found_; ///< by a look, for the next try_allocate()
    DeadlineNs scan_due_ns_ = 0;
};

} // namespace weir
#pragma GCC visibility pop
