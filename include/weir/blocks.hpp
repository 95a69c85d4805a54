// blocks.hpp (layer 8): ready-made blocks: sources and sinks of nothing and of files, and small ones to put between.
//
//     weir::Scheduler scheduler(domain, {.worker_count = 2});
//     auto& source = scheduler.add<weir::FileSource>("in.raw", frames);
//     auto& invert = scheduler.add<weir::Map>([](weir::BufferPtr& frame) {
//         for (std::byte& sample : frame.bytes()) {
//             sample = ~sample;
//         }
//     });
//     auto& sink = scheduler.add<weir::FileSink>("out.raw");
//     scheduler.connect(source.out, invert.in);
//     scheduler.connect(invert.out, sink.in);
//     scheduler.run();
//
// | block      | takes | gives    | what it does                                                      |
// | NullSource | -     | out      | sends free buffers as they are                                    |
// | NullSink   | in    | -        | drops what comes, and counts it                                   |
// | Map        | in    | out      | calls a function on each message, which changes or replaces it    |
// | Filter     | in    | out      | drops the messages of which a function says so                    |
// | Tee        | in    | out[0..] | sends each message to several outputs                             |
// | RateLimit  | in    | out      | lets so many messages through a second                            |
// | Counter    | in    | out      | counts messages and bytes                                         |
// | FileSource | -     | out      | sends what a file, pipe or device holds, in chunks                |
// | FileSink   | in    | -        | writes the messages into a file, pipe or device                   |
//
// Files. What has places (regular files, block devices) is read and written with several requests in flight, directly in
// the pool's buffers; what has none (pipes, FIFOs, sockets, terminals, other devices) with one, in order. A FileSource
// numbers its chunks in the messages' tags, so that a FileSink may put each where it belongs although parallel workers
// in between overtake each other:
//
//     auto& sink = scheduler.add<weir::FileSink>("out.raw", weir::FileSinkOptions{.by_tag = true, .chunk_bytes = 65'536});
//
// A regular file is read up to where it ends when its end is read: of one that grows or shrinks meanwhile, what is there
// then. A path is opened by the constructor, so that who made a mistake there learns of it. Only a FIFO has to wait for its
// other end, and waits for it in work(): neither its constructor nor other blocks stand still for that. A descriptor stays
// its caller's, who may close it once the block is made: the block has a duplicate. Reading and writing begin where the
// descriptor stands, and when the block has ended it stands behind what was read or written.
//
// What goes wrong with a file (no space, a broken pipe, a device that fails) is a std::system_error out of work() that says
// which file; it ends the block, and reaches who runs the scheduler (scheduler.hpp, BlockError). It is never a signal:
// workers take none.
//
// | at the same time                                         | allowed                          |
// | message_count(), byte_count() || anything                | yes, from any thread             |
// | work(), start(), finish() || each other, of one block    | never happens (block.hpp)        |
// | Map's and Filter's functions || the block                | they are called by its worker    |
//
// Who shares a buffer with others only reads it: a Map that changes messages in place gets them first, before they are
// fanned out.
//
// Progress: lock-free, the functions and files of the user aside; waiting is left to the scheduler.
// If the caller dies here: the messages that it held are freed by reaping, those that it pushed are messages; of a file,
// what was written is written. [crash: allocate, push, pop, clone, drop]
// Limits: 64 requests in flight for a file; chunks of up to 1 GiB, numbered by 32 bits.
#pragma once

#include <weir/block.hpp>
#include <weir/buffer_pool.hpp>
#include <weir/error.hpp>
#include <weir/futex.hpp>

#include <atomic>
#include <concepts>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/types.h>

#pragma GCC visibility push(default)
namespace weir {

namespace detail {

/// A number that one thread adds to and any thread reads.
class Tally {
public:
    void add(std::uint64_t count) noexcept {
        // relaxed: this thread alone writes it, and readers decide nothing on it
        value_.store(value_.load(std::memory_order_relaxed) + count, std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t value() const noexcept {
        // relaxed: a snapshot, on which nothing is decided
        return value_.load(std::memory_order_relaxed);
    }

private:
    std::atomic<std::uint64_t> value_{0};
};

/// Owns something to call; unlike a std::function, also what cannot be copied.
template <class Result, class Argument>
class OwnedFunction {
public:
    template <class Callable>
    explicit OwnedFunction(Callable callable) : held_(std::make_unique<Holder<Callable>>(std::move(callable))) {}

    Result operator()(Argument argument) const { return held_->call(argument); }

private:
    struct Base {
        Base() = default;
        Base(const Base&) = delete;
        Base& operator=(const Base&) = delete;
        virtual ~Base() = default;
        virtual Result call(Argument argument) = 0;
    };
    template <class Callable>
    struct Holder final : Base {
        explicit Holder(Callable&& moved) : callable(std::move(moved)) {}
        Result call(Argument argument) override { return std::invoke(callable, argument); }
        Callable callable;
    };

    std::unique_ptr<Base> held_;
};

template <class Callable>
concept ChangesMessage =
    std::invocable<Callable&, BufferPtr&> && std::is_void_v<std::invoke_result_t<Callable&, BufferPtr&>>;

template <class Callable>
concept ReplacesMessage =
    std::is_invocable_r_v<BufferPtr, Callable&, BufferPtr&> || std::is_invocable_r_v<BufferPtr, Callable&, BufferPtr&&>;

/// One call for both kinds of a Map's functions.
template <class Callable>
struct InPlace {
    void operator()(BufferPtr& message) {
        if constexpr (ChangesMessage<Callable>) {
            std::invoke(callable, message);
        } else if constexpr (std::is_invocable_r_v<BufferPtr, Callable&, BufferPtr&&>) {
            message = std::invoke(callable, std::move(message));
        } else {
            message = std::invoke(callable, message);
        }
    }
    Callable callable;
};

} // namespace detail

/// Sends free buffers, as they are.
class NullSource final : public Block {
public:
    /// `count` messages, 0: endless; of `message_bytes`, or a whole buffer.
    /// Throws: invalid_size, where the pool's buffers are smaller than the messages.
    explicit NullSource(BufferPool pool, std::uint64_t count = 0, std::optional<std::size_t> message_bytes = {},
                        std::string name = {});

    OutputPort out{*this, "out"};

    WorkResult work() override {
        if (!out.is_ready()) {
            return WorkResult::need_output;
        }
        BufferPtr buffer = pool_.try_allocate();
        if (!buffer) {
            return WorkResult::need_output;
        }
        buffer.resize(message_bytes_);
        out.push(std::move(buffer));
        return --left_ != 0 ? WorkResult::progress : WorkResult::done;
    }

private:
    PoolPort pool_;
    std::uint64_t left_;
    std::size_t message_bytes_;
};

/// Drops what comes.
class NullSink final : public Block {
public:
    /// A block of that name; of the class's and a number, where it is empty.
    /// Throws: std::bad_alloc alone.
    explicit NullSink(std::string name = {}) : Block(std::move(name)) {}

    InputPort in{*this, "in"};

    [[nodiscard]] std::uint64_t message_count() const noexcept { return messages_.value(); }

    WorkResult work() override {
        if (!in.try_pop()) {
            return WorkResult::need_input;
        }
        messages_.add(1);
        return WorkResult::progress;
    }

private:
    detail::Tally messages_;
};

/// Calls a function on each message.
class Map final : public Block {
public:
    /// `callable` is called as void(BufferPtr&), and changes the message in place; or as BufferPtr(BufferPtr&) or
    /// BufferPtr(BufferPtr), and returns what is sent instead. Where the message is empty afterwards, nothing is sent. It may
    /// throw, which ends the block. It must not wait: who needs a free buffer for each message writes a block with a
    /// PoolPort.
    template <class Callable>
        requires(detail::ChangesMessage<std::decay_t<Callable>> || detail::ReplacesMessage<std::decay_t<Callable>>)
    explicit Map(Callable&& callable, std::string name = {})
        : Block(std::move(name)), change_(detail::InPlace<std::decay_t<Callable>>{std::forward<Callable>(callable)}) {}

    InputPort in{*this, "in"};
    OutputPort out{*this, "out"};

    WorkResult work() override;

private:
    detail::OwnedFunction<void, BufferPtr&> change_;
};

/// Lets through the messages that a function says yes to.
class Filter final : public Block {
public:
    /// `predicate` is called as bool(const BufferPtr&), or as bool(BufferPtr&). It may throw, which ends the block.
    /// Throws: std::bad_alloc, and what copying the function throws.
    template <std::predicate<BufferPtr&> Predicate>
    explicit Filter(Predicate&& predicate, std::string name = {})
        : Block(std::move(name)), predicate_(std::forward<Predicate>(predicate)) {}

    InputPort in{*this, "in"};
    OutputPort out{*this, "out"};

    WorkResult work() override;

private:
    detail::OwnedFunction<bool, BufferPtr&> predicate_;
};

/// Sends each message to several outputs, a reference of it to each. An OutputPort with several edges does that too; a Tee's
/// outputs have names, and end one by one: it goes on while anybody takes from one of them. It goes as fast as the slowest;
/// for one that may miss messages, connect it with WhenFull::refuse.
class Tee final : public Block {
public:
    /// Throws: invalid_size, where there are not 1 to 12 outputs. work() throws too_many_references where the buffers of a
    /// message's pool have not as many.
    explicit Tee(unsigned output_count = 2, std::string name = {});

    InputPort in{*this, "in"};
    std::deque<OutputPort> out; ///< called "out0", "out1", ...

    WorkResult work() override;
};

/// Lets through so many messages a second: not more than that on average, and not more than `burst` at once. Messages that
/// come quicker wait before it.
class RateLimit final : public Block {
public:
    /// Throws: invalid_size, where the rate is not above 0, or the burst 0.
    explicit RateLimit(double messages_per_second, std::uint32_t burst = 1, std::string name = {});

    InputPort in{*this, "in"};
    OutputPort out{*this, "out"};

    WorkResult work() override;
    void start() override;

private:
    double messages_per_ns_;
    double burst_;
    double allowed_ = 0;          ///< how many messages may go at once now
    std::int64_t counted_ns_ = 0; ///< when `allowed_` was true
};

/// Counts what passes through.
class Counter final : public Block {
public:
    /// A block of that name; of the class's and a number, where it is empty.
    /// Throws: std::bad_alloc alone.
    explicit Counter(std::string name = {}) : Block(std::move(name)) {}

    InputPort in{*this, "in"};
    OutputPort out{*this, "out"};

    /// From any thread.
    [[nodiscard]] std::uint64_t message_count() const noexcept { return messages_.value(); }
    [[nodiscard]] std::uint64_t byte_count() const noexcept { return bytes_.value(); }

    WorkResult work() override;

private:
    detail::Tally messages_;
    detail::Tally bytes_;
};

/// The most requests in flight for a file.
inline constexpr unsigned file_depth_max = 64;
/// What offsets, lengths and addresses are multiples of that go around the page cache.
inline constexpr std::size_t direct_io_bytes = 4096;

namespace detail {

/// A file that a block reads or writes.
class BlockFile {
public:
    /// Throws: std::system_error with the errno of what failed, here and below. A FIFO that is to be written and that nobody
    /// reads yet is not open afterwards.
    BlockFile(IoRequest::Kind direction, std::string path, mode_t mode, bool direct);
    BlockFile(IoRequest::Kind direction, int descriptor, bool direct);
    BlockFile(const BlockFile&) = delete;
    BlockFile& operator=(const BlockFile&) = delete;
    ~BlockFile();

    /// False: it is a FIFO that nobody reads yet.
    [[nodiscard]] bool try_open();
    [[nodiscard]] bool is_open() const noexcept { return descriptor_ >= 0; }
    /// Whether reads and writes say where, and may be several.
    [[nodiscard]] bool has_places() const noexcept { return has_places_; }
    [[nodiscard]] int descriptor() const noexcept { return descriptor_; }
    /// Where the descriptor stood.
    [[nodiscard]] std::uint64_t begin() const noexcept { return begin_; }
    /// Where it seems to end.
    [[nodiscard]] std::uint64_t end() const noexcept;
    /// Whether a FIFO or a pipe from which a read got nothing may get a writer yet.
    [[nodiscard]] bool awaits_writer() const noexcept;
    /// Makes a regular file that was given by its path empty.
    void truncate();
    /// Leaves a descriptor's own position behind what was done.
    void stand_at(std::uint64_t offset) noexcept;
    void close();
    void close_silently() noexcept;
    [[noreturn]] void fail(int error, const std::string& doing, const std::string& where = {}) const;

    /// The descriptor for so many bytes at that place and address, and how many of them it takes.
    [[nodiscard]] int descriptor_for(std::uint64_t offset, const std::byte* address, std::size_t& bytes) const noexcept;
    [[nodiscard]] bool is_direct(int descriptor) const noexcept { return descriptor == direct_descriptor_; }

private:
    void look();
    void open_direct();
    [[nodiscard]] int reopen(int descriptor, int flags) const;
    BlockFile(IoRequest::Kind direction, std::string name, std::string path, mode_t mode, bool direct);

    IoRequest::Kind direction_;
    std::string name_; ///< in error messages
    std::string path_; ///< empty: given as a descriptor
    mode_t mode_;
    bool wants_direct_;
    int given_descriptor_ = -1;  ///< one of the two below, that was given; or -1
    int descriptor_ = -1;        ///< without O_DIRECT
    int direct_descriptor_ = -1; ///< with O_DIRECT, the same file; or -1
    bool has_places_ = false;
    bool is_regular_ = false;
    bool is_fifo_ = false;
    std::uint64_t begin_ = 0;
};

/// A chunk of a file on its way.
struct FileTransfer {
    enum class State : std::uint8_t {
        idle,
        waiting, ///< to be submitted
        in_flight,
        ended
    };

    [[nodiscard]] std::size_t left_bytes() const noexcept { return wanted_bytes - moved_bytes; }

    IoRequest request;
    BufferPtr buffer;
    std::uint64_t offset = 0; ///< of the chunk in the file
    std::size_t wanted_bytes = 0;
    std::size_t moved_bytes = 0;
    State state = State::idle;
    bool is_last = false; ///< the file ends in it, or it could not be read
    int error = 0;
};

/// When to try again what could not be done now and has nobody to tell when it can.
class Retry {
public:
    /// The next time, after it failed once more.
    DeadlineNs next() noexcept;
    void reset() noexcept { *this = {}; }
    [[nodiscard]] bool is_due() const noexcept { return when_ns_ == 0 || monotonic_ns() >= when_ns_; }
    [[nodiscard]] DeadlineNs when_ns() const noexcept { return when_ns_; }

private:
    std::int64_t pause_ns_ = 0;
    DeadlineNs when_ns_ = 0;
};

} // namespace detail

/// How a file is read.
struct FileSourceOptions {
    unsigned depth = 8;          ///< reads in flight, 1 to 64, where the file has places
    std::size_t chunk_bytes = 0; ///< what a message holds; 0: as much as a buffer does
    std::uint64_t offset = 0;    ///< where to begin, where the file has places
    std::uint64_t bytes_max = std::numeric_limits<std::uint64_t>::max(); ///< the rest is not read
    bool direct = false;      ///< O_DIRECT, where the file has places; chunks and offset in multiples of 4,096
    bool fill_chunks = false; ///< of what has no places, too, all messages but the last hold a whole chunk
};

/// Sends what a file holds, from its beginning to its end, in messages of one chunk each. Their tags number the chunks from
/// 0 on. What has no places is sent as its reads return it.
class FileSource final : public Block {
public:
    /// Throws: invalid_size, where depth, chunk_bytes or offset are not as they have to be; std::system_error with the errno
    /// of what failed: there is no such file (ENOENT), it must not be read (EACCES), is a directory (EISDIR), or knows no
    /// O_DIRECT (EINVAL).
    FileSource(std::string path, BufferPool pool, const FileSourceOptions& options = {}, std::string name = {});
    FileSource(int descriptor, BufferPool pool, const FileSourceOptions& options = {}, std::string name = {});
    ~FileSource() override = default;

    OutputPort out{*this, "out"};

    WorkResult work() override;
    void start() override;
    void finish() noexcept override;

private:
    FileSource(std::unique_ptr<detail::BlockFile> file, BufferPool pool, const FileSourceOptions& options,
               std::string name);

    [[nodiscard]] detail::FileTransfer& transfer(std::uint64_t chunk) noexcept {
        return transfers_[chunk % transfers_.size()];
    }
    /// Takes note of what has ended, and submits what has to go on.
    [[nodiscard]] bool go_on();
    void take_result(detail::FileTransfer& transfer);
    void submit_rest(detail::FileTransfer& transfer);
    /// Sends the chunks that have come, in order.
    [[nodiscard]] bool send();
    [[nodiscard]] bool read_ahead();

    std::unique_ptr<detail::BlockFile> file_;
    PoolPort pool_;
    FileSourceOptions options_;
    std::vector<detail::FileTransfer> transfers_;
    std::uint64_t first_ = 0; ///< the chunk that is sent next
    std::uint64_t next_ = 0;  ///< the chunk that is read next
    std::uint64_t begin_ = 0;
    std::uint64_t seen_end_ = 0; ///< where the file seemed to end
    std::uint64_t sent_bytes_ = 0;
    detail::Retry retry_;
    bool has_last_ = false; ///< nothing is read behind the chunks that are on their way
    bool is_over_ = false;  ///< all was sent
    bool lacks_room_ = false;
};

/// How a file is written.
struct FileSinkOptions {
    unsigned depth = 8;            ///< writes in flight, 1 to 64, where the file has places
    bool truncate = true;          ///< a regular file given by its path is emptied at the start
    bool direct = false;           ///< O_DIRECT, where the file has places; what is no multiple of 4,096 goes without
    bool by_tag = false;           ///< a message goes to tag * chunk_bytes, instead of behind the one before
    std::uint64_t chunk_bytes = 0; ///< for by_tag
    std::uint64_t offset = 0;      ///< where to begin, where the file has places
    bool sync_at_end = false;      ///< the block ends when the file is on its disk
    mode_t mode = 0666;            ///< of a file that is made, less the umask
};

/// Writes messages into a file, one behind the other, or each where its tag says. A file that is not there is made. Of
/// messages that go to the same place, any may be the last.
class FileSink final : public Block {
public:
    /// Throws: invalid_size, where depth, chunk_bytes or offset are not as they have to be; std::system_error with the errno
    /// of what failed: it must not be written (EACCES), is a directory (EISDIR), knows no O_DIRECT (EINVAL), or has no
    /// places (ESPIPE, with by_tag).
    explicit FileSink(std::string path, const FileSinkOptions& options = {}, std::string name = {});
    explicit FileSink(int descriptor, const FileSinkOptions& options = {}, std::string name = {});
    ~FileSink() override = default;

    InputPort in{*this, "in"};

    WorkResult work() override;
    void start() override;
    void finish() noexcept override;

private:
    FileSink(std::unique_ptr<detail::BlockFile> file, const FileSinkOptions& options, std::string name);

    /// Takes note of what has ended, and submits what has to go on.
    [[nodiscard]] bool go_on();
    void take_result(detail::FileTransfer& transfer);
    [[nodiscard]] bool try_submit(detail::FileTransfer& transfer);
    [[nodiscard]] bool take_messages();
    [[nodiscard]] std::uint64_t place(const BufferPtr& message);
    [[nodiscard]] WorkResult end();

    std::unique_ptr<detail::BlockFile> file_;
    FileSinkOptions options_;
    std::vector<detail::FileTransfer> transfers_;
    std::uint64_t next_offset_ = 0;
    std::uint64_t written_end_ = 0;
    unsigned busy_count_ = 0;     ///< transfers that are not idle
    unsigned waiting_count_ = 0;  ///< of these, those to be submitted
    unsigned direct_count_ = 0;   ///< requests in flight that go around the page cache
    unsigned buffered_count_ = 0; ///< requests in flight that do not
    IoRequest sync_;
    bool is_synced_ = false;
    detail::Retry retry_;
};

} // namespace weir
#pragma GCC visibility pop
