#include "demo_stages.hpp"

#include "crc32.hpp"
#include "demo_plan.hpp"
#include "demo_shared.hpp"
#include "sha256.hpp"
#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir::demo {

namespace {

/// What a stage works with. A stage that cannot go on writes down why and ends its process.
struct Stage {
    const Plan& plan;
    const Board& board;
    Domain& domain;
    const std::filesystem::path& output;
    ProcessReport& report;
    std::uint32_t number; ///< among those of its role
    std::uint32_t life;   ///< how often it had been started before
};

/// Writes down why the process gives up, and ends it.
[[noreturn]] void give_up(ProcessReport& report, const std::string& why) noexcept {
    // Written before anything else happens, so that the parent knows it whichever process it sees go first.
    why.copy(report.failure, sizeof(report.failure) - 1);
    _exit(1);
}

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
        give_up(stage.report, "a port is closed that is to stay open while nobody consumes");
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

void wait_at_gate(const Stage& stage, std::uint64_t number) {
    BoardState& board = stage.board.state();
    static_cast<void>(wait_until(
        EventCount(board.gate_event), {}, deadline_never,
        [&board, number](Look) { return shared(board.gate_limit).load(std::memory_order_seq_cst) > number; }, [] {}));
}

/// With --kill: the producers send no more than the parent lets them until the next process is killed, so that the stream
/// is not over before, however small the files are; and all of them are equally far then, each by its own measure.
void pass_gate(const Stage& stage, std::uint64_t sequence) {
    // relaxed: only tells how far all are
    shared(stage.board.state().sent_count).fetch_add(1, std::memory_order_relaxed);
    wait_at_gate(stage, sequence * stage.plan.message_count / stage.plan.message_count_of(stage.number));
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

void read_chunk(const Stage& stage, const Part& part, std::uint64_t chunk, const Descriptor& original,
                std::span<std::byte> data) {
    const PlannedFile& file = stage.plan.files[part.file];
    const ssize_t read_count = read_at(original.number(), data, stage.plan.chunk_offset(part, chunk));
    if (read_count < 0) {
        give_up(stage.report,
                fmt::format("cannot read {}: {}", tool::printable(file.path.native()), std::strerror(errno)));
    }
    if (static_cast<std::uint64_t>(read_count) != data.size()) {
        give_up(stage.report, fmt::format("{} became shorter while it was streamed: stream files that nobody changes",
                                          tool::printable(file.path.native())));
    }
}

/// Streams a part from its chunk `first` on; what comes before it has been pushed.
void produce_part(const Stage& stage, std::uint32_t number, std::uint64_t first, BufferPool& pool, Producer& out) {
    const Part& part = stage.plan.parts[number];
    const Descriptor original = open_original(stage, stage.plan.files[part.file]);
    tool::Sha256 part_hash;
    std::vector<std::byte> room(first > 0 ? chunk_bytes : 0);
    for (std::uint64_t chunk = 0; chunk < first; ++chunk) {
        // The digest is over the whole part, and how far it was has died with the predecessor.
        const std::span<std::byte> data = std::span(room).first(stage.plan.chunk_size(part, chunk));
        read_chunk(stage, part, chunk, original, data);
        part_hash.update(data);
    }
    std::uint64_t& pushed_count = stage.board.state().pushed_counts[stage.number];
    for (std::uint64_t chunk = first; chunk < part.chunk_count; ++chunk) {
        const std::uint64_t sequence = part.first_sequence + chunk;
        if (stage.board.has_kill()) {
            pass_gate(stage, sequence);
        }
        BufferPtr buffer = pool.try_allocate();
        if (!buffer) {
            add(stage.report.waits, 1);
            buffer = pool.allocate();
        }
        const std::uint64_t data_bytes = stage.plan.chunk_size(part, chunk);
        buffer.resize(chunk_header_bytes + data_bytes);
        const std::span<std::byte> data = data_of(buffer);
        read_chunk(stage, part, chunk, original, data);
        part_hash.update(data);
        const bool is_sent_again = stage.life > 0 && sequence == read(stage.report.resumed_sequence);
        auto& header =
            *new (buffer.bytes().data()) ChunkHeader{.part = number,
                                                     .producer = stage.number,
                                                     .chunk = chunk,
                                                     .sequence = sequence,
                                                     .payload_offset_bytes = buffer.payload_offset_bytes(),
                                                     .data_bytes = static_cast<std::uint32_t>(data_bytes),
                                                     .life = static_cast<std::uint8_t>(stage.life),
                                                     .is_sent_again = is_sent_again ? std::uint8_t{1} : std::uint8_t{0},
                                                     .worker = 0,
                                                     .checksum = 0,
                                                     .chunk_digest = {},
                                                     .part_digest = {}};
        if (stage.board.has_kill()) {
            header.chunk_digest = tool::sha256(data);
        }
        if (chunk + 1 == part.chunk_count) {
            header.part_digest = part_hash.finish();
        }
        push_on(stage, out, std::move(buffer));
        // A successor goes on from here. Killed between the push and this store, the message is pushed and not counted:
        // it is sent again, and the collector, which knows that by the header, takes it once.
        shared(pushed_count).store(sequence + 1, std::memory_order_release);
        count_message(stage.report, data_bytes);
    }
}

/// The collector's side of the files: the copies, and what is to be compared with them.
class Copies {
public:
    /// Where a collector was killed, its successor goes on with the copies as they are.
    explicit Copies(const Stage& stage) : stage_(stage), arrived_counts_(stage.plan.parts.size()) {
        for (std::uint32_t number = 0; stage.life > 0 && number < stage.plan.parts.size(); ++number) {
            const Part& part = stage.plan.parts[number];
            for (std::uint64_t chunk = 0; chunk < part.chunk_count; ++chunk) {
                if (stage.board.arrival(part.first_message + chunk) == Arrival::begun) {
                    settle(part, chunk);
                }
                arrived_counts_[number] += has_arrived(part, chunk) ? 1U : 0U;
            }
        }
    }

    /// False: it has been written before, and came again from a producer that was started again.
    bool write(const ChunkHeader& header, std::span<const std::byte> data) {
        const Part& part = stage_.plan.parts[header.part];
        const std::uint64_t message = part.first_message + header.chunk;
        const Board& board = stage_.board;
        const Arrival before = board.arrival(message);
        if (before != Arrival::none) {
            // Either of the two may come first: they take their ways through different workers.
            if (before != Arrival::written || (header.is_sent_again == 0 && !is_doubtful(part, header.chunk))) {
                give_up(stage_.report, fmt::format("chunk {} of {} arrived twice", header.chunk,
                                                   tool::printable(stage_.plan.files[part.file].path.native())));
            }
            board.set_arrival(message, Arrival::repeated);
            return false;
        }
        const int descriptor = copy_of(part.file);
        // What a successor needs to find out whether this chunk was written whole.
        if (board.has_kill()) {
            board.chunk_digests()[message] = header.chunk_digest;
        }
        if (header.chunk + 1 == part.chunk_count) {
            board.results()[header.part].wanted = header.part_digest;
        }
        board.set_arrival(message, Arrival::begun);
        if (!write_at(descriptor, data, stage_.plan.chunk_offset(part, header.chunk))) {
            cannot_write(part.file);
        }
        board.set_arrival(message, Arrival::written);
        ++arrived_counts_[header.part];
        close_when_complete(part.file);
        return true;
    }

    /// Reads the copies back and compares them.
    void compare() {
        open_.clear();
        for (std::uint32_t number = 0; number < arrived_counts_.size(); ++number) {
            const Part& part = stage_.plan.parts[number];
            const Descriptor copy(open(path_of(part.file).c_str(), O_RDONLY | O_CLOEXEC));
            PartResult& result = stage_.board.results()[number];
            if (copy.number() < 0 && arrived_counts_[number] == 0) {
                result.verdict = Verdict::equal_except_missing; // not a byte of it came
                continue;
            }
            struct stat status {};
            if (copy.number() < 0 || fstat(copy.number(), &status) != 0) {
                cannot_read(part.file);
            }
            const bool has_size = static_cast<std::uint64_t>(status.st_size) == stage_.plan.files[part.file].bytes;
            result.verdict = !has_size                                     ? Verdict::differs
                             : arrived_counts_[number] == part.chunk_count ? compare_whole(number, copy, result)
                                                                           : compare_chunks(number, copy);
        }
    }

private:
    [[nodiscard]] bool has_arrived(const Part& part, std::uint64_t chunk) const noexcept {
        return stage_.board.arrival(part.first_message + chunk) >= Arrival::written;
    }

    /// Whether a producer that was started again sent this chunk though its predecessor may have pushed it.
    [[nodiscard]] bool is_doubtful(const Part& part, std::uint64_t chunk) const noexcept {
        return std::ranges::any_of(stage_.board.state().reports, [&](const ProcessReport& report) {
            return read(report.resumed_of_producer) == part.producer + 1 &&
                   read(report.resumed_sequence) == part.first_sequence + chunk;
        });
    }

    /// The predecessor was killed while it wrote this chunk, and the chunk's buffer has gone with it: the chunk is in the
    /// copy as it is to be, or it is lost.
    void settle(const Part& part, std::uint64_t chunk) {
        const std::uint64_t message = part.first_message + chunk;
        const Descriptor copy(open(path_of(part.file).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
        if (copy.number() < 0) {
            cannot_read(part.file);
        }
        const std::uint64_t size = stage_.plan.chunk_size(part, chunk);
        const std::span<std::byte> data = std::span(room_).first(size);
        const ssize_t count = read_at(copy.number(), data, stage_.plan.chunk_offset(part, chunk));
        if (count < 0) {
            cannot_read(part.file);
        }
        if (static_cast<std::uint64_t>(count) == size && stage_.board.has_kill() &&
            tool::sha256(data) == stage_.board.chunk_digests()[message]) {
            stage_.board.set_arrival(message, Arrival::written);
            count_message(stage_.report, size);
            return;
        }
        std::ranges::fill(data, std::byte{0}); // no half of it
        if (!write_at(copy.number(), data, stage_.plan.chunk_offset(part, chunk))) {
            cannot_write(part.file);
        }
        stage_.board.set_arrival(message, Arrival::none);
    }

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
        if (copy.number() < 0 && errno == EEXIST && stage_.life > 0) {
            copy = Descriptor(open(path_of(file).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
        }
        if (copy.number() < 0 || ftruncate(copy.number(), static_cast<off_t>(stage_.plan.files[file].bytes)) != 0) {
            cannot_write(file);
        }
        return open_.emplace(file, std::move(copy)).first->second.number();
    }

    void close_when_complete(std::uint32_t number) {
        const PlannedFile& file = stage_.plan.files[number];
        for (std::uint32_t part = file.first_part; part < file.first_part + file.part_count; ++part) {
            if (arrived_counts_[part] < stage_.plan.parts[part].chunk_count) {
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
        return result.digest == result.wanted ? Verdict::equal : Verdict::differs;
    }

    Verdict compare_chunks(std::uint32_t number, const Descriptor& copy) {
        const Part& part = stage_.plan.parts[number];
        for (std::uint64_t chunk = 0; chunk < part.chunk_count; ++chunk) {
            if (has_arrived(part, chunk) &&
                (!stage_.board.has_kill() || tool::sha256(read_back(part, chunk, copy)) !=
                                                 stage_.board.chunk_digests()[part.first_message + chunk])) {
                return Verdict::differs;
            }
        }
        return Verdict::equal_except_missing;
    }

    const Stage& stage_;
    std::vector<std::uint64_t> arrived_counts_;          ///< of each part's chunks
    std::unordered_map<std::uint32_t, Descriptor> open_; ///< the copies that are being written
    std::array<std::byte, chunk_bytes> room_{};
};

void produce(const Stage& stage) {
    BufferPool pool = stage.domain.pool(pool_name);
    Producer out = stage.domain.producer(loaded_port_name);
    const std::uint64_t pushed_count = stage.board.state().pushed_counts[stage.number];
    if (stage.life > 0) {
        set(stage.report.resumed_sequence, pushed_count);
        set(stage.report.resumed_of_producer, stage.number + 1);
    }
    for (std::uint32_t number = 0; number < stage.plan.parts.size(); ++number) {
        const Part& part = stage.plan.parts[number];
        if (part.producer == stage.number && part.first_sequence + part.chunk_count > pushed_count) {
            produce_part(stage, number, pushed_count - std::min(pushed_count, part.first_sequence), pool, out);
        }
    }
    if (stage.board.has_kill()) {
        wait_at_gate(stage, gate_open - 1); // whoever is to be killed is there until then
    }
}

/// Looks that messages of each producer come in the order in which it pushed them.
class OrderCheck {
public:
    explicit OrderCheck(const Stage& stage) : stage_(stage) {}

    void look_at(const ChunkHeader& header) {
        Last& last = last_[header.producer];
        // A producer that was started again goes on after all that its predecessor pushed, or with the last of it.
        const bool is_first_of_life = header.life > last.life && header.is_sent_again != 0;
        const std::uint64_t sequence_min =
            is_first_of_life ? last.next - std::min<std::uint64_t>(last.next, 1) : last.next;
        if (header.life < last.life || header.sequence < sequence_min) {
            give_up(stage_.report, fmt::format("message {} of producer {} came after message {}", header.sequence,
                                               header.producer + 1, last.next - 1));
        }
        last = {header.life, header.sequence + 1};
    }

private:
    struct Last {
        std::uint8_t life = 0;
        std::uint64_t next = 0;
    };

    const Stage& stage_;
    std::array<Last, producer_count> last_{};
};

void work(const Stage& stage) {
    Consumer in = stage.domain.consumer(loaded_port_name);
    Producer out = stage.domain.producer(checked_port_name);
    OrderCheck order(stage);
    std::array<BufferPtr, 8> room;
    for (;;) {
        const std::span<BufferPtr> batch = pop_some(stage, in, room);
        if (batch.empty()) {
            return;
        }
        for (BufferPtr& buffer : batch) {
            ChunkHeader& header = checked_header(stage, buffer);
            order.look_at(header);
            header.checksum = tool::crc32(data_of(buffer));
            header.worker = static_cast<std::uint16_t>(stage.number);
            const std::uint64_t data_bytes = header.data_bytes;
            push_on(stage, out, std::move(buffer));
            count_message(stage.report, data_bytes);
        }
    }
}

void collect(const Stage& stage) {
    Copies copies(stage);
    {
        Consumer in = stage.domain.consumer(checked_port_name);
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
                if (copies.write(header, data_of(buffer))) {
                    count_message(stage.report, header.data_bytes);
                }
                buffer.reset();
            }
        }
    }
    const std::int64_t start_ns = monotonic_ns();
    copies.compare();
    set(stage.report.compared_ns, monotonic_ns() - start_ns);
}

} // namespace

const char* name_of(Role role) noexcept {
    return role == Role::producer ? "producer" : role == Role::worker ? "worker" : "collector";
}

int run_stage(const StageOptions& options) {
    const std::string name = options.role == name_of(Role::collector)
                                 ? options.role
                                 : fmt::format("{} {}", options.role, options.number + 1);
    prctl(PR_SET_NAME, ("weir " + name).c_str());
    const Board board = Board::open(options.domain);
    if (options.report >= process_count_max || options.number >= producer_count) {
        throw UsageError("the demo starts its stages itself; start weir demo");
    }
    ProcessReport& report = board.state().reports[options.report];
    try {
        JoinOptions join;
        join.create = false;
        join.process_name = options.role + "." + std::to_string(options.number + 1);
        Domain domain = Domain::join(options.domain, join);
        const Plan plan = board.plan();
        const std::filesystem::path output = board.output();
        const Stage stage{plan, board, domain, output, report, options.number, options.life};
        if (options.role == name_of(Role::producer)) {
            produce(stage);
        } else if (options.role == name_of(Role::worker)) {
            work(stage);
        } else {
            collect(stage);
        }
    } catch (const std::exception& error) {
        give_up(report, error.what());
    }
    return 0;
}

} // namespace weir::demo
