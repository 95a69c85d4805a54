#include "demo_stages.hpp"

#include "crc32.hpp"
#include "sha256.hpp"
#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir::demo {

namespace {

class Descriptor {
public:
    Descriptor() noexcept = default;
    explicit Descriptor(int number) noexcept : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(number_, other.number_);
        return *this;
    }
    ~Descriptor() {
        if (number_ >= 0) {
            close(number_);
        }
    }
    [[nodiscard]] int number() const noexcept { return number_; }

private:
    int number_ = -1;
};

/// Reads until `bytes` is full or the file is at its end; how much was read, or -1 with errno.
ssize_t read_at(int descriptor, std::span<std::byte> bytes, std::uint64_t offset) noexcept {
    std::size_t count = 0;
    while (count < bytes.size()) {
        const ssize_t result =
            pread(descriptor, bytes.data() + count, bytes.size() - count, static_cast<off_t>(offset + count));
        if (result < 0 && errno == EINTR) {
            continue;
        }
        if (result < 0) {
            return -1;
        }
        if (result == 0) {
            break;
        }
        count += static_cast<std::size_t>(result);
    }
    return static_cast<ssize_t>(count);
}

bool write_at(int descriptor, std::span<const std::byte> bytes, std::uint64_t offset) noexcept {
    while (!bytes.empty()) {
        const ssize_t result = pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (result < 0 && errno == EINTR) {
            continue;
        }
        if (result < 0) {
            return false;
        }
        bytes = bytes.subspan(static_cast<std::size_t>(result));
        offset += static_cast<std::uint64_t>(result);
    }
    return true;
}

[[noreturn]] void port_failed(const Stage& stage, std::error_code error, const char* field) {
    give_up(stage.report, fmt::format("a port is broken: {} ({})", error.message(), field));
}

void push_on(const Stage& stage, Producer& out, BufferPtr&& buffer) {
    PushResult result = out.try_push(std::move(buffer));
    if (result == PushResult::full) {
        add(stage.report.waits, 1);
        result = out.push(std::move(buffer));
    }
    if (result == PushResult::failed) {
        port_failed(stage, out.last_error(), out.last_error_field());
    }
    if (result != PushResult::ok) {
        _exit(neighbour_is_gone);
    }
}

/// Empty at the end of the stream.
std::span<BufferPtr> pop_some(const Stage& stage, Consumer& in, std::span<BufferPtr> room) {
    std::size_t count = in.try_pop(room);
    if (count == 0) {
        if (in.stream_end() == StreamEnd::open) {
            add(stage.report.waits, 1);
        }
        count = in.pop(room);
    }
    if (count == 0 && in.last_error()) {
        port_failed(stage, in.last_error(), in.last_error_field());
    }
    return room.first(count);
}

void count_message(ProcessReport& report, std::uint64_t bytes) {
    const std::int64_t now_ns = monotonic_ns();
    if (read(report.messages) == 0) {
        set(report.first_ns, now_ns);
    }
    set(report.last_ns, now_ns);
    add(report.bytes, bytes);
    add(report.messages, 1);
}

ChunkHeader& header_of(const BufferPtr& buffer) {
    return *reinterpret_cast<ChunkHeader*>(buffer.bytes().data());
}
std::span<std::byte> data_of(const BufferPtr& buffer) {
    return buffer.bytes().subspan(chunk_header_bytes);
}

/// The header of a buffer that came out of a port, looked at before anything in it is used.
ChunkHeader& checked_header(const Stage& stage, const BufferPtr& buffer) {
    if (buffer.size_bytes() < chunk_header_bytes) {
        give_up(stage.report, fmt::format("a message has only {} bytes", buffer.size_bytes()));
    }
    ChunkHeader& header = header_of(buffer);
    const bool has_part = header.part < stage.plan.parts.size();
    const Part& part = stage.plan.parts[has_part ? header.part : 0];
    if (!has_part || header.chunk >= part.chunk_count || header.producer != part.producer ||
        header.sequence != part.first_sequence + header.chunk ||
        header.data_bytes != stage.plan.chunk_size(part, header.chunk) || header.data_bytes != data_of(buffer).size()) {
        give_up(stage.report,
                fmt::format("a message says that it is chunk {} of part {} with {} bytes, which nobody sent",
                            header.chunk, header.part, header.data_bytes));
    }
    add(stage.report.offsets_checked, 1);
    if (header.payload_offset_bytes != buffer.payload_offset_bytes()) {
        add(stage.report.offsets_moved, 1);
    }
    return header;
}

/// With --kill: the producers wait at three quarters until the killed worker is replaced, so that the stream is not over
/// before the kill, however small the files are.
void pass_gate(const Stage& stage) {
    Board& board = stage.memory.board();
    // relaxed: only counts who may pass
    if (shared(board.sent_count).fetch_add(1, std::memory_order_relaxed) >= board.gate_limit) {
        static_cast<void>(wait_until(
            EventCount(board.gate_event), {}, deadline_never,
            [&board](Look) { return shared(board.gate_is_open).load(std::memory_order_seq_cst) != 0; }, [] {}));
    }
}

Descriptor open_original(const Stage& stage, const PlannedFile& file) {
    Descriptor original(open(file.path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat status {};
    if (original.number() < 0 || fstat(original.number(), &status) != 0) {
        give_up(stage.report,
                fmt::format("cannot read {}: {}", tool::printable(file.path.native()), std::strerror(errno)));
    }
    const std::string name = tool::printable(file.path.native());
    if (static_cast<std::uint64_t>(status.st_size) != file.size_bytes) {
        give_up(stage.report,
                fmt::format("{} was {} long before and is {} long now: stream files that nobody changes", name,
                            tool::sized(file.size_bytes), tool::sized(static_cast<std::uint64_t>(status.st_size))));
    }
    std::byte first{};
    if (file.size_bytes == 0 && read_at(original.number(), {&first, 1}, 0) > 0) {
        give_up(stage.report, fmt::format("{} says that it is empty, and is not: stream files from disk", name));
    }
    return original;
}

void produce_part(const Stage& stage, std::uint32_t number, BufferPool& pool, Producer& out) {
    const Part& part = stage.plan.parts[number];
    const PlannedFile& file = stage.plan.files[part.file];
    const Descriptor original = open_original(stage, file);
    tool::Sha256 part_hash;
    for (std::uint64_t chunk = 0; chunk < part.chunk_count; ++chunk) {
        if (stage.has_kill) {
            pass_gate(stage);
        }
        BufferPtr buffer = pool.try_allocate();
        if (!buffer) {
            add(stage.report.waits, 1);
            buffer = pool.allocate();
        }
        const std::uint64_t data_bytes = stage.plan.chunk_size(part, chunk);
        buffer.resize(chunk_header_bytes + data_bytes);
        const std::span<std::byte> data = data_of(buffer);
        const ssize_t read_count = read_at(original.number(), data, stage.plan.chunk_offset(part, chunk));
        if (read_count < 0) {
            give_up(stage.report,
                    fmt::format("cannot read {}: {}", tool::printable(file.path.native()), std::strerror(errno)));
        }
        if (static_cast<std::uint64_t>(read_count) != data_bytes) {
            give_up(stage.report,
                    fmt::format("{} became shorter while it was streamed: stream files that nobody changes",
                                tool::printable(file.path.native())));
        }
        part_hash.update(data);
        auto& header = *new (buffer.bytes().data()) ChunkHeader{.part = number,
                                                                .producer = stage.number,
                                                                .chunk = chunk,
                                                                .sequence = part.first_sequence + chunk,
                                                                .payload_offset_bytes = buffer.payload_offset_bytes(),
                                                                .data_bytes = data_bytes,
                                                                .checksum = 0,
                                                                .worker = 0,
                                                                .chunk_digest = {},
                                                                .part_digest = {}};
        if (stage.has_kill) {
            header.chunk_digest = tool::sha256(data);
        }
        if (chunk + 1 == part.chunk_count) {
            header.part_digest = part_hash.finish();
        }
        push_on(stage, out, std::move(buffer));
        count_message(stage.report, data_bytes);
    }
}

/// The collector's side of the files: the copies, and what is to be compared with them.
class Copies {
public:
    explicit Copies(const Stage& stage) : stage_(stage), parts_(stage.plan.parts.size()) {}

    void write(const ChunkHeader& header, std::span<const std::byte> data) {
        const Part& part = stage_.plan.parts[header.part];
        std::uint8_t& arrived = stage_.memory.arrived()[part.first_message + header.chunk];
        if (arrived != 0) {
            give_up(stage_.report, fmt::format("chunk {} of {} arrived twice", header.chunk,
                                               tool::printable(stage_.plan.files[part.file].path.native())));
        }
        PartCopy& copy = parts_[header.part];
        const int descriptor = copy_of(part.file);
        if (!write_at(descriptor, data, stage_.plan.chunk_offset(part, header.chunk))) {
            cannot_write(part.file);
        }
        arrived = 1;
        if (stage_.has_kill) {
            copy.chunk_digests.resize(part.chunk_count);
            copy.chunk_digests[header.chunk] = header.chunk_digest;
        }
        if (header.chunk + 1 == part.chunk_count) {
            copy.digest = header.part_digest;
        }
        ++copy.arrived_count;
        close_when_complete(part.file);
    }

    /// Reads the copies back and compares them.
    void compare() {
        open_.clear();
        for (std::uint32_t number = 0; number < parts_.size(); ++number) {
            const Part& part = stage_.plan.parts[number];
            const Descriptor copy(open(path_of(part.file).c_str(), O_RDONLY | O_CLOEXEC));
            PartResult& result = stage_.memory.results()[number];
            if (copy.number() < 0 && parts_[number].arrived_count == 0) {
                result.verdict = Verdict::equal_except_missing; // not a byte of it came
                continue;
            }
            struct stat status {};
            if (copy.number() < 0 || fstat(copy.number(), &status) != 0) {
                cannot_read(part.file);
            }
            const bool has_size = static_cast<std::uint64_t>(status.st_size) == stage_.plan.files[part.file].bytes;
            result.verdict = !has_size                                          ? Verdict::differs
                             : parts_[number].arrived_count == part.chunk_count ? compare_whole(number, copy, result)
                                                                                : compare_chunks(number, copy);
        }
    }

private:
    struct PartCopy {
        std::uint64_t arrived_count = 0;
        std::vector<tool::Sha256Digest> chunk_digests;
        tool::Sha256Digest digest{};
    };

    [[nodiscard]] std::filesystem::path path_of(std::uint32_t file) const {
        return stage_.output / stage_.plan.files[file].copy_name;
    }

    [[noreturn]] void cannot_write(std::uint32_t file) const {
        const int error = errno;
        give_up(stage_.report,
                fmt::format("cannot write {}: {}{}", tool::printable(path_of(file).native()), std::strerror(error),
                            error == ENOSPC || error == EDQUOT || error == EFBIG
                                ? "; make room there, or name another folder with --keep or in TMPDIR"
                                : ""));
    }
    [[noreturn]] void cannot_read(std::uint32_t file) const {
        give_up(stage_.report,
                fmt::format("cannot read back {}: {}", tool::printable(path_of(file).native()), std::strerror(errno)));
    }

    /// The descriptor of a file's copy, which is made when its first chunk comes.
    int copy_of(std::uint32_t file) {
        const auto found = open_.find(file);
        if (found != open_.end()) {
            return found->second.number();
        }
        Descriptor copy(open(path_of(file).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
        if (copy.number() < 0 || ftruncate(copy.number(), static_cast<off_t>(stage_.plan.files[file].bytes)) != 0) {
            cannot_write(file);
        }
        return open_.emplace(file, std::move(copy)).first->second.number();
    }

    void close_when_complete(std::uint32_t number) {
        const PlannedFile& file = stage_.plan.files[number];
        for (std::uint32_t part = file.first_part; part < file.first_part + file.part_count; ++part) {
            if (parts_[part].arrived_count < stage_.plan.parts[part].chunk_count) {
                return;
            }
        }
        open_.erase(number);
    }

    std::span<const std::byte> read_back(const Part& part, std::uint64_t chunk, const Descriptor& copy) {
        const std::span<std::byte> room = std::span(room_).first(stage_.plan.chunk_size(part, chunk));
        const ssize_t count = read_at(copy.number(), room, stage_.plan.chunk_offset(part, chunk));
        if (count < 0) {
            cannot_read(part.file);
        }
        add(stage_.report.compared_bytes, room.size());
        return room.first(static_cast<std::size_t>(count));
    }

    Verdict compare_whole(std::uint32_t number, const Descriptor& copy, PartResult& result) {
        const Part& part = stage_.plan.parts[number];
        tool::Sha256 hash;
        for (std::uint64_t chunk = 0; chunk < part.chunk_count; ++chunk) {
            hash.update(read_back(part, chunk, copy));
        }
        result.digest = hash.finish();
        return result.digest == parts_[number].digest ? Verdict::equal : Verdict::differs;
    }

    Verdict compare_chunks(std::uint32_t number, const Descriptor& copy) {
        const Part& part = stage_.plan.parts[number];
        for (std::uint64_t chunk = 0; chunk < part.chunk_count; ++chunk) {
            if (stage_.memory.arrived()[part.first_message + chunk] != 0 &&
                (parts_[number].chunk_digests.empty() ||
                 tool::sha256(read_back(part, chunk, copy)) != parts_[number].chunk_digests[chunk])) {
                return Verdict::differs;
            }
        }
        return Verdict::equal_except_missing;
    }

    const Stage& stage_;
    std::vector<PartCopy> parts_;
    std::unordered_map<std::uint32_t, Descriptor> open_; ///< the copies that are being written
    std::array<std::byte, chunk_bytes> room_{};
};

} // namespace

void give_up(ProcessReport& report, const std::string& why) noexcept {
    // Written before anything else happens, so that the parent knows it whichever process it sees go first.
    why.copy(report.failure, sizeof(report.failure) - 1);
    _exit(1);
}

void produce(const Stage& stage) {
    BufferPool pool = stage.memory.pool(stage.me);
    Producer out(stage.memory.loaded(stage.me, pool));
    for (std::uint32_t number = 0; number < stage.plan.parts.size(); ++number) {
        if (stage.plan.parts[number].producer == stage.number) {
            produce_part(stage, number, pool, out);
        }
    }
}

void work(const Stage& stage) {
    const BufferPool pool = stage.memory.pool(stage.me);
    Consumer in(stage.memory.loaded(stage.me, pool));
    Producer out(stage.memory.checked(stage.me, pool));
    std::array<std::uint64_t, producer_count> next_sequences{};
    std::array<BufferPtr, 8> room;
    for (;;) {
        const std::span<BufferPtr> batch = pop_some(stage, in, room);
        if (batch.empty()) {
            return;
        }
        add(stage.report.in_hand, batch.size());
        for (BufferPtr& buffer : batch) {
            ChunkHeader& header = checked_header(stage, buffer);
            if (header.sequence < next_sequences[header.producer]) {
                give_up(stage.report, fmt::format("message {} of producer {} came after message {}", header.sequence,
                                                  header.producer + 1, next_sequences[header.producer] - 1));
            }
            next_sequences[header.producer] = header.sequence + 1;
            header.checksum = tool::crc32(data_of(buffer));
            header.worker = stage.number;
            const std::uint64_t data_bytes = header.data_bytes;
            set(stage.report.in_hand, read(stage.report.in_hand) - 1);
            push_on(stage, out, std::move(buffer));
            count_message(stage.report, data_bytes);
        }
    }
}

void collect(const Stage& stage) {
    const BufferPool pool = stage.memory.pool(stage.me);
    Copies copies(stage);
    {
        Consumer in(stage.memory.checked(stage.me, pool));
        std::array<BufferPtr, 8> room;
        for (;;) {
            const std::span<BufferPtr> batch = pop_some(stage, in, room);
            if (batch.empty()) {
                break;
            }
            for (BufferPtr& buffer : batch) {
                const ChunkHeader& header = checked_header(stage, buffer);
                if (tool::crc32(data_of(buffer)) != header.checksum) {
                    give_up(
                        stage.report,
                        fmt::format("chunk {} of {} changed after worker {} had it", header.chunk,
                                    tool::printable(stage.plan.files[stage.plan.parts[header.part].file].path.native()),
                                    header.worker + 1));
                }
                copies.write(header, data_of(buffer));
                count_message(stage.report, header.data_bytes);
                buffer.reset();
            }
        }
    }
    const std::int64_t start_ns = monotonic_ns();
    copies.compare();
    set(stage.report.compared_ns, monotonic_ns() - start_ns);
}

} // namespace weir::demo
