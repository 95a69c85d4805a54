// weir send: files, or the standard input, into a port.
//
// Each chunk is read straight into a buffer in shared memory, and never copied by us. It is as large as what one read()
// gives: nobody waits for a buffer to be full. With --lines each message is a line, in a small buffer where it fits. What
// cannot be read is named before anything is sent; where a file fails only later, the stream is cut (pipe.hpp).
//
// It ends when a receiver has taken everything, as who writes into a FIFO waits for its reader: what is queued in the
// domain goes with the last process that leaves. For the same reason an empty stream waits until a receiver is there to
// learn of its end. Receivers that are gone are a broken pipe, but only where they took something: one that leaves because
// the stream before this one has ended may be there still, and another is waited for.
//
// Large files are read by two threads (chunk_reader.hpp). A chunk is 512 KiB: with smaller ones who receives is woken more
// often, which costs where the cores are busy with something else; larger ones do not stay in a core's cache.
#include "chunk_reader.hpp"
#include "meter.hpp"
#include "pipe.hpp"
#include "stop.hpp"
#include "usage_error.hpp"
#include "verb.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir::tool {

namespace {

constexpr PoolOptions chunk_pool{.buffer_bytes = 1 << 19, .buffer_count = 16};
constexpr PoolOptions line_pool{.buffer_bytes = 4096, .buffer_count = 512};
constexpr std::size_t batch_max = 64;
constexpr std::uint64_t large_bytes = 4 * chunk_pool.buffer_bytes; ///< from here on a second thread is worth its start

struct SendOptions {
    PipeOptions pipe;
    std::vector<std::string> files;
    std::string pool; ///< empty: one of our own
    bool keep = false;
};

[[noreturn]] void throw_unreadable(const std::string& name, int error) {
    throw std::runtime_error(fmt::format("cannot read {}: {}", name, std::strerror(error)));
}

/// A file that is read, or the standard input.
class Input {
public:
    explicit Input(const std::string& file)
        : name_(file == "-" ? "the standard input" : file), is_ours_(file != "-"),
          descriptor_(is_ours_ ? open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY) : STDIN_FILENO) {
        if (descriptor_ < 0) {
            throw_if_stopped(); // while it waited for a FIFO's writer
            throw_unreadable(name_, errno);
        }
    }
    Input(const Input&) = delete;
    Input& operator=(const Input&) = delete;
    ~Input() {
        if (is_ours_ && descriptor_ >= 0) {
            close(descriptor_);
        }
    }

    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

    /// Where one is in a regular file that has `bytes` or more to come; nothing elsewhere.
    [[nodiscard]] std::optional<std::uint64_t> offset_before(std::uint64_t bytes) const noexcept {
        struct stat status {};
        const off_t offset = lseek(descriptor_, 0, SEEK_CUR);
        const bool is_large = offset >= 0 && fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode) &&
                              static_cast<std::uint64_t>(status.st_size) >= static_cast<std::uint64_t>(offset) + bytes;
        return is_large ? std::optional(static_cast<std::uint64_t>(offset)) : std::nullopt;
    }

    /// Waits until there is something to read, or the end.
    void wait() const {
        pollfd wanted{descriptor_, POLLIN, 0};
        while (poll(&wanted, 1, -1) < 0 && errno == EINTR) {
            throw_if_stopped();
        }
        throw_if_stopped();
    }

    /// Waits too. Returns how many bytes were read; 0 at the end.
    [[nodiscard]] std::size_t read(std::span<std::byte> bytes) const {
        for (;;) {
            const ssize_t count = ::read(descriptor_, bytes.data(), bytes.size());
            throw_if_stopped();
            if (count >= 0) {
                return static_cast<std::size_t>(count);
            }
            if (errno == EAGAIN) {
                wait(); // somebody made it non-blocking
            } else if (errno != EINTR) {
                throw_unreadable(name_, errno);
            }
        }
    }

private:
    std::string name_;
    bool is_ours_;
    int descriptor_;
};

/// How much there is to be sent, where that can be known. Names what cannot be read before anything has been started.
/// Throws: UsageError.
std::optional<std::uint64_t> count_bytes(const std::vector<std::string>& files) {
    std::uint64_t sum = 0;
    bool is_known = true;
    for (const std::string& file : files) {
        struct stat status {};
        const bool is_input = file == "-";
        if (is_input ? fstat(STDIN_FILENO, &status) != 0
                     : stat(file.c_str(), &status) != 0 || faccessat(AT_FDCWD, file.c_str(), R_OK, AT_EACCESS) != 0) {
            throw UsageError(fmt::format("cannot read {}: {}; nothing was sent", file, std::strerror(errno)));
        }
        if (S_ISDIR(status.st_mode)) {
            throw UsageError(
                fmt::format("{} is a directory; nothing was sent. tar c {} | weir send ... sends it", file, file));
        }
        is_known = is_known && S_ISREG(status.st_mode);
        sum += static_cast<std::uint64_t>(status.st_size);
    }
    return is_known ? std::optional(sum) : std::nullopt;
}

class Sender {
public:
    Sender(const SendOptions& options, std::optional<std::uint64_t> bytes_wanted);
    Sender(const Sender&) = delete;
    Sender& operator=(const Sender&) = delete;
    ~Sender() { pipe_.take_turn(); }

    /// Throws: Stopped, BrokenPipe, std::runtime_error.
    void send(const std::string& file);
    /// Ends the stream, and waits until a receiver has taken it; not with --keep.
    void finish();
    /// Whether a receiver would miss the rest, who removes the names when he leaves. That stays so until we end.
    [[nodiscard]] bool has_receivers();
    /// Whether something is to be kept for a later receiver. Where not, that stays so until we end.
    [[nodiscard]] bool has_kept();
    [[nodiscard]] const std::string& port_name() const noexcept { return pipe_.port_name(); }
    void clear_progress() noexcept { meter_.clear(); }

private:
    void send_chunks(const Input& input);
    void send_large(const Input& input, std::uint64_t offset);
    void send_lines(const Input& input);
    void send_line(std::span<const std::byte> line, std::uint64_t number, const Input& input);
    [[nodiscard]] BufferPtr allocate(std::size_t bytes);
    void push_chunk(BufferPtr chunk);
    void push_batch();
    [[nodiscard]] std::optional<std::uint64_t> find_oldest() const;
    [[nodiscard]] bool was_anything_taken() const {
        return pipe_.port().counters(PortEnd::consumer).messages != taken_before_;
    }
    [[nodiscard]] bool is_broken() const {
        return !options_.keep && was_anything_taken() && !pipe_.view().is_attached(PortEnd::consumer);
    }
    void require_unbroken() const {
        if (is_broken()) {
            throw BrokenPipe();
        }
    }

    const SendOptions& options_;
    Meter meter_;
    Pipe pipe_;
    SharedBufferAllocator buffers_;
    std::size_t message_bytes_max_;
    std::uint64_t taken_before_;
    bool keeps_; ///< what is not received yet, also where we are cut: it was to be kept, or was there before us
    std::optional<Producer> out_;
    std::vector<BufferPtr> batch_; ///< not pushed yet
    bool has_pushed_ = false;
};

BufferPtr next_of(ChunkReader& reader, const Input& input) {
    try {
        return reader.next();
    } catch (const std::system_error& error) {
        throw_unreadable(input.name(), error.code().value());
    }
}

SharedBufferAllocator open_pools(Pipe& pipe, const SendOptions& options) {
    Domain& domain = pipe.domain();
    if (!options.pool.empty()) {
        try {
            return SharedBufferAllocator(domain.pool(options.pool));
        } catch (const std::system_error& error) {
            if (error.code() != errc::not_found) {
                throw;
            }
        }
        throw std::runtime_error(
            fmt::format("domain {} has no pool {}; its pools: {}; without --pool there are buffers of this pipe's own",
                        domain.name(), options.pool, fmt::join(domain.pool_names(), ", ")));
    }
    SharedBufferAllocator pools;
    const auto add = [&](const std::string& name, const PoolOptions& pool) {
        pools.add(open_or_make([&](const PoolOptions& given) { return domain.pool(name, given); }, pool));
    };
    add("send." + pipe.port_name(), chunk_pool);
    if (options.pipe.lines) {
        add("lines." + pipe.port_name(), line_pool);
    }
    return pools;
}

Sender::Sender(const SendOptions& options, std::optional<std::uint64_t> bytes_wanted)
    : options_(options), meter_(!options.pipe.quiet && !is_terminal(STDIN_FILENO), bytes_wanted),
      pipe_(options.pipe, "weir-send"), buffers_(open_pools(pipe_, options)),
      message_bytes_max_(buffers_.pools().back().buffer_bytes()),
      taken_before_(pipe_.port().counters(PortEnd::consumer).messages),
      keeps_(options.keep || (!pipe_.view().is_attached(PortEnd::producer) && find_oldest())), out_(pipe_.port()) {
    batch_.reserve(batch_max);
}

void Sender::send(const std::string& file) {
    const Input input(file);
    if (options_.pipe.lines) {
        send_lines(input);
        return;
    }
    if (const std::optional<std::uint64_t> offset = input.offset_before(large_bytes)) {
        send_large(input, *offset);
    }
    send_chunks(input);
}

/// As send_chunks(), from `offset` to what is the end of the file now.
void Sender::send_large(const Input& input, std::uint64_t offset) {
    ChunkReader reader(input.descriptor(), offset);
    for (std::size_t count = message_bytes_max_; count == message_bytes_max_;) {
        while (reader.wants_buffer()) {
            BufferPtr buffer =
                reader.has_buffer() ? buffers_.try_allocate(message_bytes_max_) : allocate(message_bytes_max_);
            if (!buffer) {
                break;
            }
            reader.add(std::move(buffer));
        }
        BufferPtr chunk = next_of(reader, input);
        throw_if_stopped();
        count = chunk.size_bytes();
        if (count > 0) {
            push_chunk(std::move(chunk));
            offset += count;
        }
    }
    lseek(input.descriptor(), static_cast<off_t>(offset), SEEK_SET);
}

void Sender::send_chunks(const Input& input) {
    for (;;) {
        input.wait(); // without a buffer, which others may need meanwhile
        BufferPtr chunk = allocate(message_bytes_max_);
        const std::size_t count = input.read(chunk.bytes());
        if (count == 0) {
            return;
        }
        chunk.resize(count);
        push_chunk(std::move(chunk));
    }
}

void Sender::push_chunk(BufferPtr chunk) {
    const std::size_t bytes = chunk.size_bytes();
    batch_.push_back(std::move(chunk));
    push_batch();
    meter_.add(bytes);
}

void Sender::send_lines(const Input& input) {
    std::vector<std::byte> text(chunk_pool.buffer_bytes);
    std::size_t filled = 0;
    std::size_t searched = 0; // up to here there is no newline
    std::uint64_t number = 0;
    for (;;) {
        if (filled == text.size()) {
            text.resize(std::min(2 * text.size(), message_bytes_max_ + 1));
        }
        const std::size_t count = input.read(std::span(text).subspan(filled));
        filled += count;
        std::size_t sent = 0;
        const auto next = [&](std::size_t end) {
            send_line(std::span(text).subspan(sent, end - sent), ++number, input);
        };
        while (const void* newline = std::memchr(text.data() + searched, '\n', filled - searched)) {
            const auto end = static_cast<std::size_t>(static_cast<const std::byte*>(newline) - text.data());
            next(end);
            sent = searched = end + 1;
        }
        if ((count == 0 && sent < filled) || filled - sent > message_bytes_max_) {
            next(filled);
            sent = filled;
        }
        push_batch();
        meter_.add(count);
        if (count == 0) {
            return;
        }
        filled -= sent;
        std::memmove(text.data(), text.data() + sent, filled);
        searched = filled;
    }
}

void Sender::send_line(std::span<const std::byte> line, std::uint64_t number, const Input& input) {
    if (line.size() > message_bytes_max_) {
        push_batch();
        throw std::runtime_error(
            fmt::format("line {} of {} is longer than a buffer, which holds {} bytes; send without --lines, or "
                        "with --pool and a pool of larger buffers",
                        number, input.name(), message_bytes_max_));
    }
    BufferPtr message = allocate(line.size());
    std::ranges::copy(line, message.bytes().begin());
    batch_.push_back(std::move(message));
    if (batch_.size() == batch_max) {
        push_batch();
    }
}

BufferPtr Sender::allocate(std::size_t bytes) {
    using namespace std::chrono_literals;
    BufferPtr buffer = buffers_.try_allocate(bytes);
    if (!buffer) {
        push_batch();
        while (!(buffer = buffers_.allocate_for(bytes, 50ms))) {
            throw_if_stopped();
            require_unbroken();
            meter_.wait(pipe_.view().is_attached(PortEnd::consumer) ? "the receiver" : "a receiver");
        }
    }
    return buffer;
}

void Sender::push_batch() {
    require_unbroken();
    std::size_t count = out_->try_push(batch_);
    while (count < batch_.size()) {
        PushResult result = out_->last_result();
        pipe_.wait(PortEnd::producer, meter_, "the receiver", [&](Look look) {
            if (look == Look::last) {
                out_->count_wait();
            }
            result = out_->retry_push(std::move(batch_[count]), look != Look::quick);
            return result == PushResult::ok || result == PushResult::failed || (look != Look::quick && is_broken());
        });
        if (result == PushResult::failed) {
            throw std::system_error(out_->last_error(), fmt::format("cannot push into port {} ({})", pipe_.port_name(),
                                                                    out_->last_error_field()));
        }
        if (result != PushResult::ok) {
            throw BrokenPipe();
        }
        ++count;
        count += out_->try_push(std::span(batch_).subspan(count));
    }
    has_pushed_ = has_pushed_ || count > 0;
    batch_.clear();
}

void Sender::finish() {
    PortView& view = pipe_.view();
    if (!has_pushed_ && !options_.keep) {
        pipe_.wait(PortEnd::producer, meter_, "a receiver",
                   [&](Look) { return view.is_attached(PortEnd::consumer) || was_anything_taken(); });
    }
    out_.reset();
    if (options_.keep) {
        return;
    }
    const std::uint64_t end = view.ring().tail_hint(); // exact, by who has just closed
    bool is_taken = false;
    pipe_.wait(PortEnd::producer, meter_, "the receiver", [&](Look) {
        // Before the look: a receiver that takes the last one goes as soon as it has.
        const bool was_broken = is_broken();
        const std::optional<std::uint64_t> oldest = find_oldest();
        is_taken = !oldest || static_cast<std::int64_t>(*oldest - end) >= 0;
        return is_taken || was_broken;
    });
    if (!is_taken) {
        throw BrokenPipe();
    }
}

/// The position of the oldest message, where there is one.
std::optional<std::uint64_t> Sender::find_oldest() const {
    PortView& view = pipe_.view();
    std::uint64_t position = view.ring().head_hint();
    bool has_made_room = false;
    const bool has_message = view.has_message(position, has_made_room);
    if (has_made_room) {
        view.waiting_event(PortEnd::producer).notify();
    }
    return has_message ? std::optional(position) : std::nullopt;
}

bool Sender::has_kept() {
    pipe_.take_turn();
    return keeps_ && find_oldest();
}

bool Sender::has_receivers() {
    pipe_.take_turn();
    static_cast<void>(pipe_.domain().reap());
    return pipe_.view().is_attached(PortEnd::consumer);
}

/// Ends the process at once, and with it its membership, as if it had been killed.
[[noreturn]] void die_as_member(Sender& sender, int signal, const std::string& failure) {
    sender.clear_progress();
    if (signal != 0) {
        end_by(signal);
    }
    if (!failure.empty()) {
        fmt::print(stderr, "weir: {}\n", failure);
    }
    std::_Exit(failure.empty() ? exit_fine : exit_failed);
}

int run_send(const SendOptions& options) {
    const std::optional<std::uint64_t> bytes_wanted = count_bytes(options.files);
    const StopSignals signals;
    std::optional<Sender> sender(std::in_place, options, bytes_wanted);
    int signal = 0;
    std::string failure;
    try {
        for (const std::string& file : options.files) {
            sender->send(file);
        }
        sender->finish();
    } catch (const BrokenPipe&) {
        if (signals.ignores_broken_pipes()) {
            failure = fmt::format("nobody receives from {} any more; what was sent since is lost", sender->port_name());
        } else {
            signal = SIGPIPE;
        }
    } catch (const Stopped& stopped) {
        signal = stopped.signal;
    } catch (const std::exception& error) {
        failure = error.what();
    }
    const bool is_cut = signal != 0 || !failure.empty();
    if (sender->has_kept() || (is_cut && sender->has_receivers())) {
        die_as_member(*sender, signal, failure);
    }
    sender.reset();
    if (signal != 0) {
        end_by(signal);
    }
    if (!failure.empty()) {
        throw std::runtime_error(failure);
    }
    return exit_fine;
}

} // namespace

Verb add_send(CLI::App& weir) {
    const auto options = std::make_shared<SendOptions>();
    CLI::App* app = weir.add_subcommand("send", "Send files or the standard input to weir recv");
    app->add_option("PORT", options->pipe.port, "NAME, or DOMAIN/NAME; whoever comes first makes it")
        ->type_name("")
        ->required();
    app->add_option("FILE", options->files, "Sent one after the other; - is standard input")->type_name("");
    app->add_flag("--lines", options->pipe.lines, "Each line is a message, without its newline");
    app->add_flag("--keep", options->keep, "Do not wait until all is received");
    app->add_option("--pool", options->pool, "Use this pool's buffers, not ones of our own")->type_name("POOL");
    add_pipe_options(*app, options->pipe);
    app->footer("Any number may send and receive; each message goes to one receiver. Waits for a\n"
                "receiver, and until all is taken. The stream ends when its last sender does.\n\n"
                "Exit status: 0 all was taken, 1 it failed, 2 wrong usage, 141 (SIGPIPE) the\n"
                "receivers are gone\n\n"
                "Example:\n"
                "  tar c DIR | weir send x        and elsewhere: weir recv x | tar x");
    return {app, [options] {
                if (options->files.empty()) {
                    options->files.emplace_back("-");
                }
                return run_send(*options);
            }};
}

} // namespace weir::tool
