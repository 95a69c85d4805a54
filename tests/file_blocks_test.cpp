#include "blocks_testing.hpp"
#include "catch.hpp"

#include <weir/blocks.hpp>

#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace weir;
using test::Collector;
using test::error_of;
using test::first_numbers;
using test::Maker;
using test::Place;
using test::Random;

namespace {

const bool has_wait_path = test::require_wait_path();

/// A folder where the tests are run, so on a disk rather than in memory; gone at the end.
class Folder {
public:
    Folder() : path_(std::filesystem::current_path() / ("weir-file-test." + std::to_string(getpid()))) {
        std::filesystem::create_directory(path_);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    [[nodiscard]] std::string operator/(const std::string& name) const { return (path_ / name).string(); }

private:
    std::filesystem::path path_;
};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream file(path, std::ios::binary);
    file << bytes;
}

std::string random_bytes(std::size_t count) {
    Random random(test::seed() + count);
    std::string bytes(count, '\0');
    for (std::size_t place = 0; place < count; place += 8) {
        const std::uint64_t number = random.next();
        std::memcpy(bytes.data() + place, &number, std::min<std::size_t>(8, count - place));
    }
    return bytes;
}

/// Compared without printing megabytes.
bool are_equal(const std::string& one, const std::string& two) {
    return one == two;
}

class Pipe {
public:
    Pipe() {
        if (pipe2(ends_, O_CLOEXEC) != 0) {
            throw std::system_error(errno, std::system_category(), "pipe");
        }
    }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    ~Pipe() {
        close_end(0);
        close_end(1);
    }
    [[nodiscard]] int reader() const { return ends_[0]; }
    [[nodiscard]] int writer() const { return ends_[1]; }
    void close_reader() { close_end(0); }
    void close_writer() { close_end(1); }

private:
    void close_end(int number) {
        if (ends_[number] >= 0) {
            ::close(std::exchange(ends_[number], -1));
        }
    }
    int ends_[2] = {-1, -1};
};

void write_all(int descriptor, const std::string& bytes) {
    for (std::size_t written = 0; written < bytes.size();) {
        const ssize_t count = write(descriptor, bytes.data() + written, bytes.size() - written);
        if (count <= 0) {
            return;
        }
        written += static_cast<std::size_t>(count);
    }
}

std::string read_all(int descriptor, std::size_t piece_bytes = 65'536) {
    std::string bytes;
    std::string piece(piece_bytes, '\0');
    for (ssize_t count = 0; (count = read(descriptor, piece.data(), piece.size())) > 0;) {
        bytes.append(piece.data(), static_cast<std::size_t>(count));
    }
    return bytes;
}

void copy(Place& place, const std::string& from, const std::string& to, const FileSourceOptions& source_options = {},
          const FileSinkOptions& sink_options = {}) {
    Scheduler scheduler(place.domain);
    auto& source = scheduler.add<FileSource>(from, place.pool, source_options);
    auto& sink = scheduler.add<FileSink>(to, sink_options);
    scheduler.connect(source.out, sink.in);
    scheduler.run();
}

/// Holds some messages back, and sends them in another order.
class Shuffle final : public Block {
public:
    explicit Shuffle(std::uint64_t seed) : Block("shuffle"), random_(seed) {}

    InputPort in{*this, "in"};
    OutputPort out{*this, "out"};
    std::size_t moved_count = 0; ///< messages that were sent before an older one

    WorkResult work() override {
        if (!out.is_ready()) {
            return WorkResult::need_output;
        }
        if (!in.is_at_end() && held_.size() < 6) {
            BufferPtr message = in.try_pop();
            if (!message) {
                return WorkResult::need_input;
            }
            held_.push_back(std::move(message));
            return WorkResult::progress;
        }
        if (held_.empty()) {
            return WorkResult::done;
        }
        const std::size_t place = random_.below(held_.size());
        moved_count += place != 0 ? 1 : 0;
        std::swap(held_[place], held_.front());
        out.push(std::move(held_.front()));
        held_.pop_front();
        return WorkResult::progress;
    }

    void finish() noexcept override { held_.clear(); }

private:
    Random random_;
    std::deque<BufferPtr> held_;
};

/// Whether the file system knows O_DIRECT; says so where it does not.
bool has_direct_io(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (descriptor < 0) {
        WARN("left out: no O_DIRECT on the file system that the tests run on");
        return false;
    }
    ::close(descriptor);
    return true;
}

} // namespace

TEST_CASE("the example at the head of blocks.hpp inverts a file", "[file_blocks]") {
    const Folder folder;
    Place place(65'536, 32);
    const std::string in_path = folder / "in.raw";
    const std::string out_path = folder / "out.raw";
    std::string bytes = random_bytes(1'000'003);
    write_file(in_path, bytes);
    {
        BufferPool frames = place.pool;
        weir::Scheduler scheduler(place.domain, {.worker_count = 2});
        auto& source = scheduler.add<weir::FileSource>(in_path, frames);
        auto& invert = scheduler.add<weir::Map>([](weir::BufferPtr& frame) {
            for (std::byte& sample : frame.bytes()) {
                sample = ~sample;
            }
        });
        auto& sink = scheduler.add<weir::FileSink>(out_path);
        scheduler.connect(source.out, invert.in);
        scheduler.connect(invert.out, sink.in);
        scheduler.run();
    }
    for (char& byte : bytes) {
        byte = static_cast<char>(~byte);
    }
    CHECK(are_equal(read_file(out_path), bytes));
    CHECK(place.leftover().empty());
}

TEST_CASE("files of all sizes are copied, with one request in flight and with many", "[file_blocks]") {
    const Folder folder;
    CAPTURE(test::seed());
    constexpr std::size_t chunk = 8192;
    const unsigned depth = GENERATE(1U, 3U, 8U, 64U);
    CAPTURE(depth);
    Place place(chunk, 24);
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4095}, chunk - 1, chunk, chunk + 1,
                                   3 * chunk, 8 * chunk, 64 * chunk + 4096, 100 * chunk + 777}) {
        CAPTURE(size);
        const std::string bytes = random_bytes(size);
        write_file(folder / "in", bytes);
        copy(place, folder / "in", folder / "out", {.depth = depth}, {.depth = depth});
        CHECK(are_equal(read_file(folder / "out"), bytes));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("tens of megabytes are copied by two workers through fewer buffers than requests", "[file_blocks]") {
    const Folder folder;
    CAPTURE(test::seed());
    const std::string bytes = random_bytes(test::is_sanitized ? 5'000'001 : 30'000'001);
    write_file(folder / "in", bytes);
    const std::uint32_t buffer_count = GENERATE(1U, 5U, 40U);
    Place place(65'536, buffer_count);
    {
        Scheduler scheduler(place.domain, {.worker_count = 2});
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool);
        auto& sink = scheduler.add<FileSink>(folder / "out", FileSinkOptions{.sync_at_end = true});
        scheduler.connect(source.out, sink.in);
        scheduler.run();
    }
    CHECK(are_equal(read_file(folder / "out"), bytes));
    CHECK(place.leftover().empty());
}

TEST_CASE(
    "io_uring's requests go to registered buffers, and where they cannot be registered, to the same bytes without",
    "[file_blocks]") {
    const Folder folder;
    const std::string bytes = random_bytes(1'000'001);
    write_file(folder / "in", bytes);
    const bool may_lock_memory = GENERATE(true, false);
    CAPTURE(may_lock_memory);
    const int in = open((folder / "in").c_str(), O_RDONLY | O_CLOEXEC);
    const int out = open((folder / "out").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    REQUIRE((in >= 0 && out >= 0));
    const test::Name name;
    constexpr uid_t nobody = 65'534;
    const bool is_root = geteuid() == 0;
    test::Child child([&] {
        if (!may_lock_memory) {
            // Enough for the ring itself, and not for the pool. Who may lock as much as it likes is not asked for its limit.
            const rlimit little{1 << 18, 1 << 18};
            if (setrlimit(RLIMIT_MEMLOCK, &little) != 0 || (is_root && setresuid(nobody, nobody, nobody) != 0)) {
                test::fail_child("cannot do with little locked memory");
            }
        }
        weir::Domain domain = weir::Domain::join(name);
        weir::BufferPool pool = domain.pool("pool", {.buffer_bytes = 65'536, .buffer_count = 16});
        Scheduler scheduler(domain);
        auto& source = scheduler.add<FileSource>(in, pool);
        auto& sink = scheduler.add<FileSink>(out);
        scheduler.connect(source.out, sink.in);
        scheduler.run();
        const weir::SchedulerCounters counters = scheduler.counters();
        const bool has_note = scheduler.notes().find("memlock") != std::string::npos;
        const bool is_io_uring = scheduler.wait_path() == weir::WaitPath::io_uring;
        const bool are_fixed = counters.fixed_requests > 0 && counters.fixed_requests == counters.requests;
        if (counters.requests < 32 || (is_io_uring && are_fixed == has_note) ||
            (!is_io_uring && counters.fixed_requests > 0) || (is_io_uring && !may_lock_memory && !has_note) ||
            (is_io_uring && may_lock_memory && is_root && !are_fixed)) {
            test::fail_child("%ju requests, %ju of them fixed; notes: %s", std::uintmax_t{counters.requests},
                             std::uintmax_t{counters.fixed_requests}, scheduler.notes().c_str());
        }
    });
    const test::ChildEnd end = child.wait();
    CHECK(end.said == "");
    CHECK(end.succeeded());
    ::close(in);
    ::close(out);
    CHECK(are_equal(read_file(folder / "out"), bytes));
    weir::Domain::RemoveOptions options;
    options.user = may_lock_memory || !is_root ? geteuid() : nobody;
    options.force = true;
    options.lock_file = true;
    weir::Domain::remove(name, options);
}

TEST_CASE("a FileSource's messages are whole chunks, numbered in order by their tags", "[file_blocks]") {
    const Folder folder;
    Place place(8192, 32);
    const std::string bytes = random_bytes(50'500);
    write_file(folder / "in", bytes);
    Scheduler scheduler(place.domain);
    auto& source = scheduler.add<FileSource>(folder / "in", place.pool, FileSourceOptions{.chunk_bytes = 1000});
    auto& collector = scheduler.add<Collector>();
    scheduler.connect(source.out, collector.in);
    scheduler.run();
    std::vector<std::size_t> sizes(50, 1000);
    sizes.push_back(500);
    CHECK(collector.sizes == sizes);
    CHECK(collector.tags == first_numbers(51));
    CHECK(are_equal(collector.bytes, bytes));
}

TEST_CASE("a FileSource reads from where it is told, and not more than that", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 32);
    const std::string bytes = random_bytes(100'000);
    write_file(folder / "in", bytes);
    for (const std::uint64_t bytes_max : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{4096},
                                          std::uint64_t{70'000}, std::numeric_limits<std::uint64_t>::max()}) {
        CAPTURE(bytes_max);
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool,
                                                 FileSourceOptions{.offset = 20'001, .bytes_max = bytes_max});
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(source.out, collector.in);
        scheduler.run();
        CHECK(are_equal(collector.bytes, bytes.substr(20'001, static_cast<std::size_t>(bytes_max))));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a FileSink puts each message where its tag says, whatever order they come in", "[file_blocks]") {
    const Folder folder;
    CAPTURE(test::seed());
    Place place(4096, 40);
    const std::string bytes = random_bytes(300 * 4096 + 99);
    write_file(folder / "in", bytes);
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool);
        auto& shuffle = scheduler.add<Shuffle>(test::seed());
        auto& sink =
            scheduler.add<FileSink>(folder / "out", FileSinkOptions{.by_tag = true, .chunk_bytes = 4096, .offset = 10});
        scheduler.connect(source.out, shuffle.in);
        scheduler.connect(shuffle.out, sink.in);
        scheduler.run();
        CHECK(shuffle.moved_count > 0);
    }
    CHECK(are_equal(read_file(folder / "out"), std::string(10, '\0') + bytes));
    CHECK(place.leftover().empty());
}

TEST_CASE("parallel workers that pop from one port overtake each other, and the tags put it right", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 64);
    const std::string bytes = random_bytes(500 * 4096 + 1);
    write_file(folder / "in", bytes);
    {
        Scheduler scheduler(place.domain, {.worker_count = 4});
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool);
        auto& sink = scheduler.add<FileSink>(folder / "out", FileSinkOptions{.by_tag = true, .chunk_bytes = 4096});
        source.out.bind("chunks", {.port = {.capacity = 16}});
        for (int number = 0; number < 2; ++number) {
            auto& map = scheduler.add<Map>([](const BufferPtr&) {});
            map.in.bind("chunks", {.port = {.capacity = 16}});
            scheduler.connect(map.out, sink.in);
        }
        scheduler.run();
    }
    CHECK(are_equal(read_file(folder / "out"), bytes));
    CHECK(place.leftover().empty());
}

TEST_CASE("a message that is larger than chunk_bytes is an error of a FileSink that goes by tags", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 8);
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<NullSource>(place.pool, 3U);
        auto& sink =
            scheduler.add<FileSink>(folder / "out", FileSinkOptions{.by_tag = true, .chunk_bytes = 4095}, "sink");
        scheduler.connect(source.out, sink.in);
        const test::RunError error = test::error_of_run(scheduler);
        CHECK(error.block == "sink");
        CHECK(error.code == errc::invalid_size);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a FileSink empties the file that is there, or writes into it", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 16);
    const bool truncates = GENERATE(true, false);
    write_file(folder / "in", "new");
    write_file(folder / "out", "what was there before");
    copy(place, folder / "in", folder / "out", {}, {.truncate = truncates, .offset = 5});
    CHECK(read_file(folder / "out") == (truncates ? std::string("\0\0\0\0\0new", 8) : "what new there before"));
    // What was never started leaves the file alone.
    {
        Scheduler scheduler(place.domain);
        static_cast<void>(scheduler.add<FileSink>(folder / "in"));
    }
    CHECK(read_file(folder / "in") == "new");
}

TEST_CASE("a FileSink makes its file with the mode that it is given, less the umask", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 16);
    write_file(folder / "in", "bytes");
    copy(place, folder / "in", folder / "out", {}, {.mode = 0640});
    struct stat status {};
    REQUIRE(stat((folder / "out").c_str(), &status) == 0);
    const mode_t mask = umask(0);
    umask(mask);
    CHECK((status.st_mode & 07777) == (mode_t{0640} & ~mask));
}

TEST_CASE("a descriptor is read and written from where it stands, and stands behind it afterwards", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 16);
    const std::string bytes = random_bytes(30'000);
    write_file(folder / "in", bytes);
    const int in = open((folder / "in").c_str(), O_RDONLY | O_CLOEXEC);
    const int out = open((folder / "out").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    REQUIRE(in >= 0);
    REQUIRE(out >= 0);
    write_all(out, "head ");
    REQUIRE(lseek(in, 100, SEEK_SET) == 100);
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(in, place.pool, FileSourceOptions{.bytes_max = 20'000});
        auto& sink = scheduler.add<FileSink>(out);
        scheduler.connect(source.out, sink.in);
        scheduler.run();
    }
    CHECK(lseek(in, 0, SEEK_CUR) == 20'100);
    CHECK(lseek(out, 0, SEEK_CUR) == 20'005);
    write_all(out, " tail");
    CHECK(are_equal(read_file(folder / "out"), "head " + bytes.substr(100, 20'000) + " tail"));
    ::close(in);
    ::close(out);
}

TEST_CASE("a descriptor that appends gets the messages in order behind what is there", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 16);
    const std::string bytes = random_bytes(100'000);
    write_file(folder / "in", bytes);
    write_file(folder / "out", "before");
    const int out = open((folder / "out").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    REQUIRE(out >= 0);
    Scheduler scheduler(place.domain);
    auto& source = scheduler.add<FileSource>(folder / "in", place.pool);
    auto& sink = scheduler.add<FileSink>(out);
    ::close(out); // the block has its own
    scheduler.connect(source.out, sink.in);
    scheduler.run();
    CHECK(are_equal(read_file(folder / "out"), "before" + bytes));
}

TEST_CASE("a pipe's bytes are sent as its reads return them, or gathered into whole chunks", "[file_blocks]") {
    CAPTURE(test::seed());
    Place place(4096, 16);
    const bool fills = GENERATE(false, true);
    const std::string bytes = random_bytes(300'000);
    Pipe pipe;
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(pipe.reader(), place.pool, FileSourceOptions{.fill_chunks = fills});
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(source.out, collector.in);
        scheduler.start();
        std::thread writer([&] {
            Random random(test::seed());
            for (std::size_t at = 0; at < bytes.size();) {
                const std::string piece = bytes.substr(at, 1 + random.below(std::size_t{9000}));
                write_all(pipe.writer(), piece);
                at += piece.size();
                if (random.one_in(3)) {
                    std::this_thread::yield();
                }
            }
            pipe.close_writer();
        });
        scheduler.wait();
        writer.join();
        CHECK(are_equal(collector.bytes, bytes));
        CHECK(collector.tags == first_numbers(static_cast<std::uint32_t>(collector.tags.size())));
        if (fills) {
            std::vector<std::size_t> sizes(300'000 / 4096, 4096);
            sizes.push_back(300'000 % 4096);
            CHECK(collector.sizes == sizes);
        }
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a message that is larger than a pipe is written piece by piece", "[file_blocks]") {
    CAPTURE(test::seed());
    Place place(400'000, 4);
    const Folder folder;
    const std::string bytes = random_bytes(1'500'000);
    write_file(folder / "in", bytes);
    Pipe pipe;
    std::string received;
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool);
        auto& sink = scheduler.add<FileSink>(pipe.writer());
        pipe.close_writer();
        scheduler.connect(source.out, sink.in);
        std::thread reader([&] { received = read_all(pipe.reader(), 1777); });
        scheduler.run();
        reader.join();
    }
    CHECK(are_equal(received, bytes));
    CHECK(place.leftover().empty());
}

TEST_CASE("a pipe that nobody reads any more is an error that names block and file, and no signal", "[file_blocks]") {
    Place place(4096, 16);
    const bool was_closed_before = GENERATE(true, false);
    Pipe pipe;
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<NullSource>(place.pool);
        auto& sink = scheduler.add<FileSink>(pipe.writer(), FileSinkOptions(), "to the pipe");
        scheduler.connect(source.out, sink.in);
        std::thread reader;
        if (was_closed_before) {
            pipe.close_reader();
        } else {
            // While the pipe is full, and a write waits.
            reader = std::thread([&] {
                pollfd look{pipe.writer(), POLLOUT, 0};
                while (poll(&look, 1, 0) == 1 && (look.revents & POLLOUT) != 0) {
                    std::this_thread::yield();
                }
                pipe.close_reader();
            });
        }
        const test::RunError error = test::error_of_run(scheduler);
        if (reader.joinable()) {
            reader.join();
        }
        CHECK(error.block == "to the pipe");
        CHECK(error.code == std::errc::broken_pipe);
        CHECK(error.what.find("to the pipe") != std::string::npos);
        CHECK(error.what.find("descriptor " + std::to_string(pipe.writer())) != std::string::npos);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a pipe that is silent holds up nothing else in its worker", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 32);
    const std::string bytes = random_bytes(200'000);
    write_file(folder / "in", bytes);
    Pipe pipe;
    {
        Scheduler scheduler(place.domain);
        auto& silent = scheduler.add<FileSource>(pipe.reader(), place.pool);
        auto& from_pipe = scheduler.add<Collector>();
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool);
        auto& counter = scheduler.add<Counter>();
        auto& sink = scheduler.add<FileSink>(folder / "out");
        scheduler.connect(silent.out, from_pipe.in);
        scheduler.connect(source.out, counter.in);
        scheduler.connect(counter.out, sink.in);
        scheduler.start();
        while (counter.byte_count() < bytes.size()) {
            std::this_thread::yield();
        }
        write_all(pipe.writer(), "at last");
        pipe.close_writer();
        scheduler.wait();
        CHECK(from_pipe.bytes == "at last");
    }
    CHECK(are_equal(read_file(folder / "out"), bytes));
    CHECK(place.leftover().empty());
}

TEST_CASE("a scheduler is stopped while a pipe is silent and another is full", "[file_blocks]") {
    Place place(4096, 64);
    Pipe silent;
    Pipe full;
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(silent.reader(), place.pool);
        auto& sink = scheduler.add<NullSink>();
        auto& maker = scheduler.add<NullSource>(place.pool);
        auto& counter = scheduler.add<Counter>();
        auto& to_full = scheduler.add<FileSink>(full.writer());
        scheduler.connect(source.out, sink.in);
        scheduler.connect(maker.out, counter.in);
        scheduler.connect(counter.out, to_full.in);
        scheduler.start();
        pollfd look{full.writer(), POLLOUT, 0};
        while (poll(&look, 1, 0) == 1 && (look.revents & POLLOUT) != 0) {
            std::this_thread::yield();
        }
        scheduler.stop();
        scheduler.wait();
        CHECK(sink.message_count() == 0);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a FIFO waits for its other end, whichever is made first, and blocks nobody", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 32);
    const bool sink_is_first = GENERATE(true, false);
    const std::string path = folder / "fifo";
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    const std::string bytes = random_bytes(500'000);
    write_file(folder / "in", bytes);
    {
        Scheduler scheduler(place.domain);
        FileSink* sink = sink_is_first ? &scheduler.add<FileSink>(path) : nullptr;
        auto& from_fifo = scheduler.add<FileSource>(path, place.pool);
        if (sink == nullptr) {
            sink = &scheduler.add<FileSink>(path);
        }
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool);
        auto& collector = scheduler.add<Collector>();
        // Both take buffers from one pool: what waits before the FIFO must leave some to what comes out of it.
        scheduler.connect(source.out, sink->in, {.capacity = 4});
        scheduler.connect(from_fifo.out, collector.in);
        scheduler.run();
        CHECK(are_equal(collector.bytes, bytes));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a FIFO's reader that is there first waits for a writer that comes later", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 32);
    const std::string path = folder / "fifo";
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    Scheduler scheduler(place.domain);
    auto& source = scheduler.add<FileSource>(path, place.pool);
    auto& collector = scheduler.add<Collector>();
    scheduler.connect(source.out, collector.in);
    scheduler.start();
    while (scheduler.counters().requests == 0) { // it reads already
        std::this_thread::yield();
    }
    const int writer = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    REQUIRE(writer >= 0);
    write_all(writer, "hello");
    ::close(writer);
    scheduler.wait();
    CHECK(collector.bytes == "hello");
}

TEST_CASE("a device without an end is read as far as one likes", "[file_blocks]") {
    Place place(65'536, 16);
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>("/dev/zero", place.pool, FileSourceOptions{.bytes_max = 3'000'000});
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(source.out, collector.in);
        scheduler.run();
        CHECK(are_equal(collector.bytes, std::string(3'000'000, '\0')));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a device without space is an error that names block and file, and the rest ends", "[file_blocks]") {
    Place place(4096, 16);
    {
        Scheduler scheduler(place.domain, {.worker_count = 2});
        auto& source = scheduler.add<NullSource>(place.pool);
        auto& sink = scheduler.add<FileSink>("/dev/full", FileSinkOptions(), "sink");
        scheduler.connect(source.out, sink.in);
        const test::RunError error = test::error_of_run(scheduler);
        CHECK(error.block == "sink");
        CHECK(error.code == std::errc::no_space_on_device);
        CHECK(error.what.find("block sink: cannot write '/dev/full'") != std::string::npos);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a file that cannot be read is an error that names block, file and place", "[file_blocks]") {
    Place place(4096, 16);
    {
        Scheduler scheduler(place.domain);
        // Nothing is mapped at its beginning.
        auto& source = scheduler.add<FileSource>("/proc/self/mem", place.pool, FileSourceOptions(), "memory");
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(source.out, collector.in);
        const test::RunError error = test::error_of_run(scheduler);
        CHECK(error.block == "memory");
        CHECK(error.code == std::errc::io_error);
        CHECK(error.what.find("cannot read '/proc/self/mem' at byte 0") != std::string::npos);
        CHECK(collector.tags.empty());
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a write that reaches the limit of file sizes is short, and the next an error and no signal",
          "[file_blocks]") {
    const Folder folder;
    const std::string path = folder / "out";
    test::Child child([&] {
        // Shared memory has the same limit, which is large enough for it.
        const rlimit limit{1'000'000, 1'000'000};
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) {
            test::fail_child("setrlimit: %d", errno);
        }
        Place place(4096, 4);
        Scheduler scheduler(place.domain, {.name = "limited"});
        auto& source = scheduler.add<NullSource>(place.pool, 1000U, 3000U);
        auto& sink = scheduler.add<FileSink>(path, FileSinkOptions{.depth = 1}, "sink");
        scheduler.connect(source.out, sink.in, {.capacity = 2});
        const test::RunError error = test::error_of_run(scheduler);
        if (error.block != "sink" || error.code != std::errc::file_too_large) {
            test::fail_child("the error is: %s", error.what.c_str());
        }
    });
    const test::ChildEnd end = child.wait();
    INFO(end.said);
    CHECK(end.succeeded());
    CHECK(std::filesystem::file_size(path) == 1'000'000);
}

TEST_CASE("a file that shrinks while it is read ends where it ends then", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 32);
    const std::string bytes = random_bytes(200 * 4096);
    write_file(folder / "in", bytes);
    constexpr std::size_t left = 100 * 4096 + 1000;
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool, FileSourceOptions{.depth = 4});
        auto& map = scheduler.add<Map>([&](const BufferPtr& message) {
            if (message.tag() == 1) {
                std::filesystem::resize_file(folder / "in", left);
            }
        });
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(source.out, map.in, {.capacity = 2});
        scheduler.connect(map.out, collector.in, {.capacity = 2});
        scheduler.run();
        CHECK(are_equal(collector.bytes, bytes.substr(0, left)));
        CHECK(collector.tags == first_numbers(101));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a file that grows while it is read is read to its new end", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 32);
    const std::string bytes = random_bytes(50 * 4096 + 17);
    const std::string more = random_bytes(60'000);
    write_file(folder / "in", bytes);
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool, FileSourceOptions{.depth = 4});
        auto& map = scheduler.add<Map>([&](const BufferPtr& message) {
            if (message.tag() == 1) {
                std::ofstream(folder / "in", std::ios::binary | std::ios::app) << more;
            }
        });
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(source.out, map.in, {.capacity = 2});
        scheduler.connect(map.out, collector.in, {.capacity = 2});
        scheduler.run();
        CHECK(are_equal(collector.bytes, bytes + more));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a file that tells no size is read to its end", "[file_blocks]") {
    Place place(4096, 32);
    Scheduler scheduler(place.domain);
    auto& source = scheduler.add<FileSource>("/proc/self/maps", place.pool, FileSourceOptions{.chunk_bytes = 1024});
    auto& collector = scheduler.add<Collector>();
    scheduler.connect(source.out, collector.in);
    scheduler.run();
    CHECK(collector.bytes.size() > 1024);
    CHECK(collector.bytes.back() == '\n');
}

TEST_CASE("O_DIRECT copies files of all sizes, the pieces that do not fit it included", "[file_blocks]") {
    const Folder folder;
    CAPTURE(test::seed());
    write_file(folder / "in", "");
    if (!has_direct_io(folder / "in")) {
        return;
    }
    constexpr std::size_t chunk = 16'384;
    Place place(chunk, 32);
    const bool source_is_direct = GENERATE(true, false);
    const bool sink_is_direct = GENERATE(true, false);
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4095}, std::size_t{4096}, chunk,
                                   chunk + 4096, 10 * chunk + 5000, 200 * chunk + 1}) {
        CAPTURE(size, source_is_direct, sink_is_direct);
        const std::string bytes = random_bytes(size);
        write_file(folder / "in", bytes);
        copy(place, folder / "in", folder / "out", {.direct = source_is_direct},
             {.direct = sink_is_direct, .sync_at_end = true});
        CHECK(are_equal(read_file(folder / "out"), bytes));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("messages of any size are written with O_DIRECT as far as they fit it", "[file_blocks]") {
    const Folder folder;
    CAPTURE(test::seed());
    write_file(folder / "out", "");
    if (!has_direct_io(folder / "out")) {
        return;
    }
    Place place(16'384, 32);
    std::string bytes;
    {
        Scheduler scheduler(place.domain);
        Random random(test::seed());
        auto& maker = scheduler.add<Maker>(place.pool, [&](BufferPtr& buffer, std::uint32_t number) {
            const bool is_aligned = random.one_in(2);
            buffer.resize(is_aligned ? 4096 * (1 + random.below(std::size_t{4})) : random.below(std::size_t{16'385}));
            for (std::byte& byte : buffer.bytes()) {
                byte = static_cast<std::byte>(random.next());
            }
            bytes.append(reinterpret_cast<const char*>(buffer.bytes().data()), buffer.size_bytes());
            return number < 200;
        });
        auto& sink = scheduler.add<FileSink>(folder / "out", FileSinkOptions{.direct = true});
        scheduler.connect(maker.out, sink.in);
        scheduler.run();
    }
    // The last one was filled and not sent.
    const std::string written = read_file(folder / "out");
    CHECK(written.size() >= bytes.size() - 16'384);
    CHECK(are_equal(written, bytes.substr(0, written.size())));
    CHECK(place.leftover().empty());
}

TEST_CASE("a descriptor that was opened with O_DIRECT is read and written with and without it", "[file_blocks]") {
    const Folder folder;
    const std::string bytes = random_bytes(50'001);
    write_file(folder / "in", bytes);
    if (!has_direct_io(folder / "in")) {
        return;
    }
    Place place(8192, 32);
    const int in = open((folder / "in").c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    const int out = open((folder / "out").c_str(), O_WRONLY | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    REQUIRE(in >= 0);
    REQUIRE(out >= 0);
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<FileSource>(in, place.pool);
        auto& sink = scheduler.add<FileSink>(out);
        scheduler.connect(source.out, sink.in);
        scheduler.run();
    }
    CHECK(are_equal(read_file(folder / "out"), bytes));
    CHECK(lseek(in, 0, SEEK_CUR) == 50'001);
    CHECK(lseek(out, 0, SEEK_CUR) == 50'001);
    ::close(in);
    ::close(out);
    CHECK(place.leftover().empty());
}

TEST_CASE("a copy that is stopped again and again goes on where it was", "[file_blocks]") {
    const Folder folder;
    CAPTURE(test::seed());
    Place place(16'384, 32);
    const std::string bytes = random_bytes(10'000'019);
    write_file(folder / "in", bytes);
    Pipe pipe;
    std::string received;
    {
        Scheduler scheduler(place.domain, {.worker_count = 2});
        auto& source = scheduler.add<FileSource>(folder / "in", place.pool);
        auto& counter = scheduler.add<Counter>();
        auto& tee = scheduler.add<Tee>();
        auto& sink = scheduler.add<FileSink>(folder / "out");
        auto& to_pipe = scheduler.add<FileSink>(pipe.writer());
        pipe.close_writer();
        scheduler.connect(source.out, counter.in);
        scheduler.connect(counter.out, tee.in);
        scheduler.connect(tee.out[0], sink.in);
        scheduler.connect(tee.out[1], to_pipe.in);
        std::thread reader([&] { received = read_all(pipe.reader()); });
        for (std::uint64_t stops = 0; stops < 20; ++stops) {
            scheduler.start();
            while (scheduler.is_running() && counter.message_count() < stops * 10) {
                std::this_thread::yield();
            }
            scheduler.stop();
            scheduler.wait();
        }
        scheduler.run();
        reader.join();
    }
    CHECK(are_equal(read_file(folder / "out"), bytes));
    CHECK(are_equal(received, bytes));
    CHECK(place.leftover().empty());
}

TEST_CASE("who makes a block of a file that cannot be opened is told which, and what to do", "[file_blocks]") {
    const Folder folder;
    Place place(4096, 8);
    const auto says = [](const auto& call, std::errc cause, const std::string& words) {
        try {
            call();
        } catch (const std::system_error& error) {
            INFO(error.what());
            CHECK(error.code() == cause);
            CHECK(std::string(error.what()).find(words) != std::string::npos);
            return;
        }
        FAIL("nothing was thrown");
    };
    const std::string missing = folder / "missing";
    says([&] { FileSource(missing, place.pool); }, std::errc::no_such_file_or_directory,
         "cannot open for reading '" + missing + "'; give a path that is there");
    says([&] { FileSource(folder / "", place.pool); }, std::errc::is_a_directory, "give the path of a file");
    says([&] { FileSink(folder / ""); }, std::errc::is_a_directory, "give the path of a file");
    says([&] { FileSink(folder / "missing/out"); }, std::errc::no_such_file_or_directory, "missing/out");
    says([&] { FileSource(-1, place.pool); }, std::errc::bad_file_descriptor, "descriptor -1");
    says([&] { FileSink("/dev/null", {.by_tag = true, .chunk_bytes = 1}); }, std::errc::invalid_seek, "/dev/null");
    Pipe pipe;
    says([&] { FileSource(pipe.writer(), place.pool); }, std::errc::bad_file_descriptor,
         "descriptor " + std::to_string(pipe.writer()));
    says([&] { FileSink{pipe.reader()}; }, std::errc::bad_file_descriptor,
         "descriptor " + std::to_string(pipe.reader()));
}

TEST_CASE("options that cannot be are refused", "[file_blocks]") {
    const Folder folder;
    Place place(8192, 8);
    const std::string path = folder / "file";
    write_file(path, "bytes");
    const auto source = [&](const FileSourceOptions& options) {
        return error_of([&] { return FileSource(path, place.pool, options).name(); });
    };
    const auto sink = [&](const FileSinkOptions& options) {
        return error_of([&] { return FileSink(path, options).name(); });
    };
    CHECK(source({.depth = 0}) == errc::invalid_size);
    CHECK(source({.depth = 65}) == errc::invalid_size);
    CHECK(source({.chunk_bytes = 8193}) == errc::invalid_size);
    CHECK(source({.offset = std::uint64_t{1} << 63}) == errc::invalid_size);
    CHECK(sink({.depth = 0}) == errc::invalid_size);
    CHECK(sink({.by_tag = true}) == errc::invalid_size);
    CHECK(sink({.offset = std::uint64_t{1} << 63}) == errc::invalid_size);
    if (has_direct_io(path)) {
        CHECK(source({.chunk_bytes = 5000, .direct = true}) == errc::invalid_size);
        CHECK(source({.offset = 512, .direct = true}) == errc::invalid_size);
    }
}
