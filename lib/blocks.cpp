#include <weir/blocks.hpp>

#include <algorithm>
#include <cerrno>
#include <cmath>

#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir {

NullSource::NullSource(BufferPool pool, std::uint64_t count, std::optional<std::size_t> message_bytes, std::string name)
    : Block(std::move(name)), pool_(*this, pool), left_(count != 0 ? count : std::numeric_limits<std::uint64_t>::max()),
      message_bytes_(message_bytes.value_or(pool.buffer_bytes())) {
    if (message_bytes_ > pool.buffer_bytes()) {
        throw_error(errc::invalid_size, "NullSource: messages of " + std::to_string(message_bytes_) +
                                            " bytes do not fit into the pool's buffers of " +
                                            std::to_string(pool.buffer_bytes()));
    }
}

WorkResult Map::work() {
    if (!out.is_ready()) {
        return WorkResult::need_output;
    }
    BufferPtr message = in.try_pop();
    if (!message) {
        return WorkResult::need_input;
    }
    change_(message);
    if (message) {
        out.push(std::move(message));
    }
    return WorkResult::progress;
}

WorkResult Filter::work() {
    if (!out.is_ready()) {
        return WorkResult::need_output;
    }
    BufferPtr message = in.try_pop();
    if (!message) {
        return WorkResult::need_input;
    }
    if (predicate_(message)) {
        out.push(std::move(message));
    }
    return WorkResult::progress;
}

Tee::Tee(unsigned output_count, std::string name) : Block(std::move(name)) {
    if (output_count == 0 || output_count > references_per_buffer_max) {
        throw_error(errc::invalid_size, "Tee: a buffer has references for 1 to " +
                                            std::to_string(references_per_buffer_max) + " outputs; asked for " +
                                            std::to_string(output_count));
    }
    for (unsigned number = 0; number < output_count; ++number) {
        out.emplace_back(*this, "out" + std::to_string(number));
    }
}

WorkResult Tee::work() {
    // All are asked, also behind one that is not ready: what waits in them for room goes on by that.
    OutputPort* last = nullptr;
    bool are_ready = true;
    for (OutputPort& output : out) {
        if (!output.is_closed() && !output.is_ready() && !output.is_closed()) {
            are_ready = false;
        }
        if (!output.is_closed()) {
            last = &output;
        }
    }
    if (last == nullptr) {
        return WorkResult::done; // nobody takes anything any more
    }
    if (!are_ready) {
        return WorkResult::need_output;
    }
    BufferPtr message = in.try_pop();
    if (!message) {
        return WorkResult::need_input;
    }
    // All references first: where they do not suffice, nothing is sent.
    BufferPtr references[references_per_buffer_max];
    BufferPtr* reference = references;
    for (const OutputPort& output : out) {
        if (output.is_closed()) {
            continue;
        }
        const bool is_last = &output == last;
        *reference = is_last ? std::move(message) : message.clone();
        if (!*reference++) {
            throw_error(errc::too_many_references,
                        "Tee: the message's buffer has no reference left for " + output.name() +
                            "; make its pool with 12 references per buffer, or have fewer outputs");
        }
        if (is_last) {
            break;
        }
    }
    reference = references;
    for (OutputPort& output : out) {
        if (!output.is_closed()) {
            output.push(std::move(*reference++));
        }
    }
    return WorkResult::progress;
}

RateLimit::RateLimit(double messages_per_second, std::uint32_t burst, std::string name)
    : Block(std::move(name)), messages_per_ns_(messages_per_second / 1e9), burst_(burst) {
    if (!(messages_per_second > 0) || !std::isfinite(messages_per_second) || burst == 0) {
        throw_error(errc::invalid_size, "RateLimit: the rate is above 0, and the burst at least 1");
    }
}

void RateLimit::start() {
    allowed_ = burst_;
    counted_ns_ = monotonic_ns();
}

WorkResult RateLimit::work() {
    if (!out.is_ready()) {
        return WorkResult::need_output;
    }
    if (allowed_ < 1) {
        const std::int64_t now_ns = monotonic_ns();
        allowed_ = std::min(burst_, allowed_ + static_cast<double>(now_ns - counted_ns_) * messages_per_ns_);
        counted_ns_ = now_ns;
        if (allowed_ < 1) {
            // A rate so low that the time is beyond the clock: once a day it counts anew.
            constexpr double day_ns = 86'400e9;
            const double wait_ns = std::min(std::ceil((1 - allowed_) / messages_per_ns_), day_ns);
            wake_at(now_ns + std::max(static_cast<std::int64_t>(wait_ns), std::int64_t{1}));
            return WorkResult::need_input;
        }
    }
    BufferPtr message = in.try_pop();
    if (!message) {
        return WorkResult::need_input;
    }
    allowed_ -= 1;
    out.push(std::move(message));
    return WorkResult::progress;
}

WorkResult Counter::work() {
    if (!out.is_ready()) {
        return WorkResult::need_output;
    }
    BufferPtr message = in.try_pop();
    if (!message) {
        return WorkResult::need_input;
    }
    messages_.add(1);
    bytes_.add(message.size_bytes());
    out.push(std::move(message));
    return WorkResult::progress;
}

namespace {

using State = detail::FileTransfer::State;

constexpr std::uint64_t offset_max = std::uint64_t{1} << 62;

/// What to do about an error, behind what went wrong.
const char* hint(int error) noexcept {
    switch (error) {
    case ENOENT: return "; give a path that is there";
    case EACCES:
    case EPERM: return "; its mode, or its folder's, forbids it";
    case EISDIR: return "; give the path of a file";
    case ENOSPC:
    case EDQUOT: return "; make room there";
    case EPIPE: return "; whoever read it has closed it";
    case EBADF: return "; open it so";
    case ESPIPE: return "; it has no places that could be told by a tag";
    default: return "";
    }
}

/// open() that never gives one of the standard streams' numbers: what the program prints would land in the file.
int open_above_standard(const std::string& path, int flags, mode_t mode) noexcept {
    const int number = ::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY, mode);
    if (number < 0 || number > STDERR_FILENO) {
        return number;
    }
    const int above = fcntl(number, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    const int error = errno;
    ::close(number);
    errno = error;
    return above;
}

void check_depth(unsigned depth, const char* block) {
    if (depth == 0 || depth > file_depth_max) {
        throw_error(errc::invalid_size, std::string(block) + ": 1 to " + std::to_string(file_depth_max) +
                                            " requests are in flight; asked for " + std::to_string(depth));
    }
}

void check_offset(std::uint64_t offset, const char* block) {
    if (offset > offset_max) {
        throw_error(errc::invalid_size, std::string(block) + ": no file has an offset of " + std::to_string(offset));
    }
}

std::string at_byte(std::uint64_t offset) {
    return " at byte " + std::to_string(offset);
}

} // namespace

namespace detail {

BlockFile::BlockFile(IoRequest::Kind direction, std::string name, std::string path, mode_t mode, bool direct)
    : direction_(direction), name_(std::move(name)), path_(std::move(path)), mode_(mode), wants_direct_(direct) {}

BlockFile::BlockFile(IoRequest::Kind direction, std::string path, mode_t mode, bool direct)
    : BlockFile(direction, "'" + path + "'", path, mode, direct) {
    static_cast<void>(try_open());
}

BlockFile::BlockFile(IoRequest::Kind direction, int descriptor, bool direct)
    : BlockFile(direction, "descriptor " + std::to_string(descriptor), {}, 0, direct) {
    descriptor_ = fcntl(descriptor, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (descriptor_ < 0) {
        fail(errno, "duplicate");
    }
    given_descriptor_ = descriptor_;
    const bool reads = direction_ == IoRequest::Kind::read;
    const int flags = fcntl(descriptor_, F_GETFL);
    if ((flags & O_ACCMODE) == (reads ? O_WRONLY : O_RDONLY) || (flags & O_PATH) != 0) {
        fail(EBADF, reads ? "read" : "write");
    }
    look();
    if (has_places_) {
        const off_t place = lseek(descriptor_, 0, SEEK_CUR);
        begin_ = place > 0 ? static_cast<std::uint64_t>(place) : 0;
        // What is appended goes to the end wherever one says.
        has_places_ = reads || (flags & O_APPEND) == 0;
    }
    open_direct();
}

BlockFile::~BlockFile() {
    close_silently();
}

// A FIFO's open() waits for the other end unless it is told not to; for writing it fails then (ENXIO), for reading it does
// not. Beyond opening nobody wants O_NONBLOCK: with it, io_uring would not wait either.
bool BlockFile::try_open() {
    const bool reads = direction_ == IoRequest::Kind::read;
    const int flags = O_NONBLOCK | (reads ? O_RDONLY : O_WRONLY);
    int number = open_above_standard(path_, flags, 0);
    if (number < 0 && errno == ENOENT && !reads) {
        // O_CREAT only now: with it the kernel refuses what others put into /tmp.
        number = open_above_standard(path_, flags | O_CREAT, mode_);
    }
    if (number < 0) {
        const int error = errno;
        struct stat status {};
        if (error == ENXIO && stat(path_.c_str(), &status) == 0 && S_ISFIFO(status.st_mode)) {
            return false;
        }
        fail(error, reads ? "open for reading" : "open for writing");
    }
    descriptor_ = number;
    if (fcntl(descriptor_, F_SETFL, fcntl(descriptor_, F_GETFL) & ~O_NONBLOCK) != 0) {
        fail(errno, "open");
    }
    look();
    open_direct();
    return true;
}

void BlockFile::look() {
    struct stat status {};
    if (fstat(descriptor_, &status) != 0) {
        fail(errno, "look at");
    }
    if (S_ISDIR(status.st_mode)) {
        fail(EISDIR, "use");
    }
    is_regular_ = S_ISREG(status.st_mode);
    is_fifo_ = S_ISFIFO(status.st_mode);
    has_places_ = is_regular_ || S_ISBLK(status.st_mode);
}

void BlockFile::open_direct() {
    if (!has_places_) {
        return;
    }
    if ((fcntl(descriptor_, F_GETFL) & O_DIRECT) != 0) {
        direct_descriptor_ = std::exchange(descriptor_, -1);
        descriptor_ = reopen(direct_descriptor_, 0);
    } else if (wants_direct_) {
        direct_descriptor_ = reopen(descriptor_, O_DIRECT);
    }
}

/// The same file once more, with flags of its own.
int BlockFile::reopen(int descriptor, int flags) const {
    const int mode = direction_ == IoRequest::Kind::read ? O_RDONLY : O_WRONLY;
    const int number = open_above_standard("/proc/self/fd/" + std::to_string(descriptor), mode | flags, 0);
    if (number < 0) {
        fail(errno, flags == O_DIRECT ? "open with O_DIRECT" : "open without O_DIRECT",
             flags == O_DIRECT && errno == EINVAL ? "; its file system knows none, open it without" : "");
    }
    return number;
}

std::uint64_t BlockFile::end() const noexcept {
    std::uint64_t bytes = 0;
    struct stat status {};
    if (!is_regular_) {
        return ioctl(descriptor_, BLKGETSIZE64, &bytes) == 0 ? bytes : 0;
    }
    return fstat(descriptor_, &status) == 0 && status.st_size > 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
}

// The kernel tells of a hang-up only where a writer was there since the FIFO was opened.
bool BlockFile::awaits_writer() const noexcept {
    if (!is_fifo_) {
        return false;
    }
    pollfd look{descriptor_, POLLIN, 0};
    return poll(&look, 1, 0) >= 0 && ((look.revents & POLLIN) != 0 || (look.revents & (POLLHUP | POLLERR)) == 0);
}

void BlockFile::truncate() {
    if (is_regular_ && !path_.empty() && ftruncate(descriptor_, 0) != 0) {
        fail(errno, "truncate");
    }
}

void BlockFile::stand_at(std::uint64_t offset) noexcept {
    if (has_places_ && path_.empty() && is_open()) {
        static_cast<void>(lseek(given_descriptor_, static_cast<off_t>(offset), SEEK_SET));
    }
}

void BlockFile::close() {
    const int numbers[] = {std::exchange(direct_descriptor_, -1), std::exchange(descriptor_, -1)};
    int error = 0;
    for (const int number : numbers) {
        if (number >= 0 && ::close(number) != 0 && errno != EINTR) {
            error = errno;
        }
    }
    if (error != 0) {
        fail(error, "close");
    }
}

void BlockFile::close_silently() noexcept {
    for (int* number : {&direct_descriptor_, &descriptor_}) {
        if (*number >= 0) {
            ::close(std::exchange(*number, -1));
        }
    }
}

void BlockFile::fail(int error, const std::string& doing, const std::string& where) const {
    throw std::system_error(error, std::system_category(), "cannot " + doing + " " + name_ + where + hint(error));
}

int BlockFile::descriptor_for(std::uint64_t offset, const std::byte* address, std::size_t& bytes) const noexcept {
    if (direct_descriptor_ < 0 || bytes < direct_io_bytes || offset % direct_io_bytes != 0 ||
        reinterpret_cast<std::uintptr_t>(address) % direct_io_bytes != 0) {
        return descriptor_;
    }
    bytes -= bytes % direct_io_bytes;
    return direct_descriptor_;
}

DeadlineNs Retry::next() noexcept {
    constexpr std::int64_t shortest_ns = 1'000'000;
    constexpr std::int64_t longest_ns = 100'000'000;
    pause_ns_ = std::clamp(2 * pause_ns_, shortest_ns, longest_ns);
    when_ns_ = deadline_after(pause_ns_);
    return when_ns_;
}

} // namespace detail

FileSource::FileSource(std::string path, BufferPool pool, const FileSourceOptions& options, std::string name)
    : FileSource(std::make_unique<detail::BlockFile>(IoRequest::Kind::read, std::move(path), mode_t{0}, options.direct),
                 std::move(pool), options, std::move(name)) {}

FileSource::FileSource(int descriptor, BufferPool pool, const FileSourceOptions& options, std::string name)
    : FileSource(std::make_unique<detail::BlockFile>(IoRequest::Kind::read, descriptor, options.direct),
                 std::move(pool), options, std::move(name)) {}

FileSource::FileSource(std::unique_ptr<detail::BlockFile> file, BufferPool pool, const FileSourceOptions& options,
                       std::string name)
    : Block(std::move(name)), file_(std::move(file)), pool_(*this, pool), options_(options) {
    check_depth(options_.depth, "FileSource");
    check_offset(options_.offset, "FileSource");
    if (options_.chunk_bytes == 0) {
        options_.chunk_bytes = pool.buffer_bytes();
        if (options_.direct && options_.chunk_bytes > direct_io_bytes) {
            options_.chunk_bytes -= options_.chunk_bytes % direct_io_bytes;
        }
    }
    if (options_.chunk_bytes > pool.buffer_bytes()) {
        throw_error(errc::invalid_size, "FileSource: chunks of " + std::to_string(options_.chunk_bytes) +
                                            " bytes do not fit into the pool's buffers of " +
                                            std::to_string(pool.buffer_bytes()));
    }
    if (options_.direct && (options_.chunk_bytes % direct_io_bytes != 0 || options_.offset % direct_io_bytes != 0)) {
        throw_error(errc::invalid_size,
                    "FileSource: with O_DIRECT, chunks and offset are multiples of " + std::to_string(direct_io_bytes));
    }
    transfers_ = std::vector<detail::FileTransfer>(file_->has_places() ? options_.depth : 1);
    begin_ = file_->begin() + options_.offset;
}

void FileSource::start() {
    if (file_->has_places()) {
        posix_fadvise(file_->descriptor(), 0, 0, POSIX_FADV_SEQUENTIAL);
        seen_end_ = file_->end();
    }
}

WorkResult FileSource::work() {
    lacks_room_ = false;
    bool has_moved = go_on();
    has_moved = send() || has_moved;
    has_moved = read_ahead() || has_moved;
    if (is_over_ && requests_in_flight() == 0) {
        return WorkResult::done;
    }
    if (has_moved) {
        return WorkResult::progress;
    }
    if (!retry_.is_due()) {
        wake_at(retry_.when_ns());
    }
    return lacks_room_ ? WorkResult::need_output : WorkResult::need_input;
}

bool FileSource::go_on() {
    bool has_moved = false;
    for (detail::FileTransfer& transfer : transfers_) {
        if (transfer.state == State::in_flight && transfer.request.is_done) {
            take_result(transfer);
            has_moved = true;
        }
        if (transfer.state == State::waiting && !is_over_ && retry_.is_due()) {
            submit_rest(transfer);
            has_moved = true;
        }
    }
    return has_moved;
}

void FileSource::take_result(detail::FileTransfer& transfer) {
    const std::int64_t result = transfer.request.result;
    transfer.state = State::waiting;
    if (result > 0) {
        retry_.reset();
        transfer.moved_bytes += static_cast<std::size_t>(result);
        if (transfer.left_bytes() == 0 || !(file_->has_places() || options_.fill_chunks)) {
            transfer.state = State::ended;
        }
    } else if (result == -EAGAIN || (result == 0 && file_->awaits_writer())) {
        retry_.next();
    } else if (result != -EINTR && result != -ECANCELED) { // who was stopped in between goes on
        transfer.error = static_cast<int>(-result);
        transfer.state = State::ended;
        transfer.is_last = true;
        has_last_ = true;
    }
}

void FileSource::submit_rest(detail::FileTransfer& transfer) {
    const std::uint64_t offset = transfer.offset + transfer.moved_bytes;
    std::size_t bytes = transfer.left_bytes();
    std::byte* const address = transfer.buffer.bytes().data() + transfer.moved_bytes;
    IoRequest& request = transfer.request;
    request.kind = IoRequest::Kind::read;
    request.descriptor = file_->descriptor_for(offset, address, bytes);
    request.offset = file_->has_places() ? static_cast<std::int64_t>(offset) : -1;
    request.bytes = {address, bytes};
    request.pool = transfer.buffer.pool();
    transfer.state = State::in_flight;
    submit(request);
}

bool FileSource::send() {
    bool has_sent = false;
    while (!is_over_ && first_ != next_ && transfer(first_).state == State::ended) {
        detail::FileTransfer& chunk = transfer(first_);
        // What was read before an error is sent as well.
        if (chunk.moved_bytes != 0) {
            if (!out.is_ready()) {
                lacks_room_ = true;
                break;
            }
            chunk.buffer.resize(chunk.moved_bytes);
            chunk.buffer.set_tag(static_cast<std::uint32_t>(first_));
            sent_bytes_ += chunk.moved_bytes;
            out.push(std::move(chunk.buffer));
        }
        chunk.buffer.reset();
        chunk.state = State::idle;
        ++first_;
        has_sent = true;
        if (chunk.error != 0) {
            file_->fail(chunk.error, "read", file_->has_places() ? at_byte(chunk.offset + chunk.moved_bytes) : "");
        }
        is_over_ = chunk.is_last;
    }
    return has_sent;
}

bool FileSource::read_ahead() {
    bool has_read = false;
    while (!has_last_ && next_ - first_ < transfers_.size()) {
        // What has no places has one chunk at a time, so all before it were sent.
        const std::uint64_t read_bytes = file_->has_places() ? next_ * options_.chunk_bytes : sent_bytes_;
        const std::uint64_t left = options_.bytes_max - std::min(options_.bytes_max, read_bytes);
        const std::uint64_t offset = begin_ + read_bytes;
        if (left == 0) {
            is_over_ = first_ == next_;
            break;
        }
        // Whether there is anything behind the end is tried by one read only, when all before it was sent.
        if (file_->has_places() && offset >= seen_end_) {
            if (first_ != next_) {
                break;
            }
            seen_end_ = file_->end();
        }
        BufferPtr buffer = pool_.try_allocate();
        if (!buffer) {
            lacks_room_ = true;
            break;
        }
        detail::FileTransfer& chunk = transfer(next_);
        chunk.buffer = std::move(buffer);
        chunk.offset = offset;
        chunk.wanted_bytes = static_cast<std::size_t>(std::min<std::uint64_t>(left, options_.chunk_bytes));
        chunk.moved_bytes = 0;
        submit_rest(chunk);
        ++next_;
        has_read = true;
    }
    return has_read;
}

void FileSource::finish() noexcept {
    file_->stand_at(begin_ + sent_bytes_);
    file_->close_silently();
    for (detail::FileTransfer& transfer : transfers_) {
        transfer.buffer.reset();
    }
}

FileSink::FileSink(std::string path, const FileSinkOptions& options, std::string name)
    : FileSink(
          std::make_unique<detail::BlockFile>(IoRequest::Kind::write, std::move(path), options.mode, options.direct),
          options, std::move(name)) {}

FileSink::FileSink(int descriptor, const FileSinkOptions& options, std::string name)
    : FileSink(std::make_unique<detail::BlockFile>(IoRequest::Kind::write, descriptor, options.direct), options,
               std::move(name)) {}

FileSink::FileSink(std::unique_ptr<detail::BlockFile> file, const FileSinkOptions& options, std::string name)
    : Block(std::move(name)), file_(std::move(file)), options_(options) {
    check_depth(options_.depth, "FileSink");
    check_offset(options_.offset, "FileSink");
    if (options_.by_tag && (options_.chunk_bytes == 0 || options_.chunk_bytes > buffer_bytes_max)) {
        throw_error(errc::invalid_size, "FileSink: by_tag needs chunk_bytes, 1 to 1 GiB");
    }
    if (options_.by_tag && !file_->has_places()) {
        file_->fail(ESPIPE, "write by tags");
    }
    transfers_ = std::vector<detail::FileTransfer>(file_->has_places() ? options_.depth : 1);
    next_offset_ = file_->begin() + options_.offset;
    written_end_ = next_offset_;
}

void FileSink::start() {
    if (options_.truncate) {
        file_->truncate();
    }
}

WorkResult FileSink::work() {
    if (!file_->is_open()) {
        if (!retry_.is_due() || !file_->try_open()) {
            wake_at(retry_.is_due() ? retry_.next() : retry_.when_ns());
            return WorkResult::need_input;
        }
        retry_.reset();
    }
    bool has_moved = go_on();
    has_moved = take_messages() || has_moved;
    if (busy_count_ == 0 && in.is_at_end()) {
        return end();
    }
    if (has_moved) {
        return WorkResult::progress;
    }
    if (!retry_.is_due()) {
        wake_at(retry_.when_ns());
    }
    return WorkResult::need_input;
}

bool FileSink::go_on() {
    if (busy_count_ == 0) {
        return false;
    }
    bool has_moved = false;
    for (detail::FileTransfer& transfer : transfers_) {
        if (transfer.state == State::in_flight && transfer.request.is_done) {
            take_result(transfer);
            has_moved = true;
        }
    }
    for (detail::FileTransfer& transfer : transfers_) {
        if (waiting_count_ != 0 && transfer.state == State::waiting && retry_.is_due()) {
            has_moved = try_submit(transfer) || has_moved;
        }
    }
    return has_moved;
}

void FileSink::take_result(detail::FileTransfer& transfer) {
    const std::int64_t result = transfer.request.result;
    --(file_->is_direct(transfer.request.descriptor) ? direct_count_ : buffered_count_);
    transfer.state = State::waiting;
    ++waiting_count_;
    if (result > 0) {
        retry_.reset();
        transfer.moved_bytes += static_cast<std::size_t>(result);
        if (transfer.left_bytes() == 0) {
            transfer.buffer.reset();
            transfer.state = State::idle;
            --waiting_count_;
            --busy_count_;
        }
    } else if (result == -EAGAIN) {
        retry_.next();
    } else if (result != -EINTR && result != -ECANCELED) { // who was stopped in between goes on
        file_->fail(result != 0 ? static_cast<int>(-result) : EIO, "write",
                    file_->has_places() ? at_byte(transfer.offset + transfer.moved_bytes) : "");
    }
}

// Requests that go around the page cache, and those that go through it, are never in flight together: a page of the cache
// that is written while a piece of it is written directly would write back what was there before.
bool FileSink::try_submit(detail::FileTransfer& transfer) {
    const std::uint64_t offset = transfer.offset + transfer.moved_bytes;
    std::size_t bytes = transfer.left_bytes();
    std::byte* const address = transfer.buffer.bytes().data() + transfer.moved_bytes;
    const int descriptor = file_->descriptor_for(offset, address, bytes);
    const bool is_direct = file_->is_direct(descriptor);
    if ((is_direct ? buffered_count_ : direct_count_) != 0) {
        return false;
    }
    IoRequest& request = transfer.request;
    request.kind = IoRequest::Kind::write;
    request.descriptor = descriptor;
    request.offset = file_->has_places() ? static_cast<std::int64_t>(offset) : -1;
    request.bytes = {address, bytes};
    request.pool = transfer.buffer.pool();
    transfer.state = State::in_flight;
    --waiting_count_;
    ++(is_direct ? direct_count_ : buffered_count_);
    submit(request);
    return true;
}

bool FileSink::take_messages() {
    bool has_taken = false;
    for (detail::FileTransfer& transfer : transfers_) {
        if (transfer.state != State::idle) {
            continue;
        }
        // Behind one that must wait for the others, the others do not go on: else it might wait for ever.
        if (waiting_count_ != 0 || in.is_at_end()) {
            break;
        }
        BufferPtr message = in.try_pop();
        if (!message) {
            break;
        }
        has_taken = true;
        const std::size_t bytes = message.size_bytes();
        if (bytes == 0) {
            continue;
        }
        transfer.offset = place(message);
        transfer.wanted_bytes = bytes;
        transfer.moved_bytes = 0;
        transfer.buffer = std::move(message);
        transfer.state = State::waiting;
        written_end_ = std::max(written_end_, transfer.offset + bytes);
        ++busy_count_;
        ++waiting_count_;
        static_cast<void>(try_submit(transfer));
    }
    return has_taken;
}

std::uint64_t FileSink::place(const BufferPtr& message) {
    const std::size_t bytes = message.size_bytes();
    if (!options_.by_tag) {
        return std::exchange(next_offset_, next_offset_ + bytes);
    }
    if (bytes > options_.chunk_bytes) {
        throw_error(errc::invalid_size, "FileSink: the message with tag " + std::to_string(message.tag()) + " has " +
                                            std::to_string(bytes) + " bytes, chunk_bytes is " +
                                            std::to_string(options_.chunk_bytes));
    }
    return next_offset_ + message.tag() * options_.chunk_bytes;
}

WorkResult FileSink::end() {
    if (options_.sync_at_end && file_->has_places() && !is_synced_) {
        if (!sync_.is_done) {
            return WorkResult::need_input;
        }
        const bool was_submitted = sync_.kind == IoRequest::Kind::sync;
        if (!was_submitted || sync_.result == -EINTR || sync_.result == -ECANCELED) {
            sync_.kind = IoRequest::Kind::sync;
            sync_.descriptor = file_->descriptor();
            submit(sync_);
            return WorkResult::progress;
        }
        if (sync_.result < 0) {
            file_->fail(static_cast<int>(-sync_.result), "sync");
        }
        is_synced_ = true;
    }
    // Some file systems say only now that there is no space.
    file_->stand_at(written_end_);
    file_->close();
    return WorkResult::done;
}

void FileSink::finish() noexcept {
    file_->stand_at(written_end_);
    file_->close_silently();
    for (detail::FileTransfer& transfer : transfers_) {
        transfer.buffer.reset();
    }
}

} // namespace weir
