// What the kernel still does for a process that is dead: its requests go on, in the buffers that they were made for. So a
// worker's ring keeps the process's lock until the last of them has ended, and nobody owns those buffers before.
//
// Programs with WEIR_SEEDED_RELEASE are built with a ring that does not keep the lock. There the same tests demand that the
// next owner's bytes change.
#include "catch.hpp"
#include "domain_testing.hpp"

#include <weir/block.hpp>
#include <weir/domain.hpp>
#include <weir/scheduler.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>

#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/magic.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>

using namespace weir;
using test::Child;
using test::fail_child;
using test::Name;

namespace {

#if defined(WEIR_SEEDED_RELEASE)
constexpr bool keeps_lock = false;
#else
constexpr bool keeps_lock = true;
#endif

constexpr unsigned request_count = 64;
constexpr std::byte content{0x5a}; // of the files that are read
constexpr std::byte pattern{0xa5}; // of the buffers' next owner

/// Ends the program as skipped. Each tag's cases need the same, so they are skipped together.
[[noreturn]] void skip(const std::string& why) {
    std::fprintf(stderr, "skipped: %s\n", why.c_str());
    std::fflush(nullptr);
    _exit(77);
}

void require_system(bool is_done, const char* what) {
    if (!is_done) {
        throw std::system_error(errno, std::system_category(), what);
    }
}

class Pipe {
public:
    Pipe() { require_system(pipe2(ends_.data(), O_CLOEXEC) == 0, "pipe"); }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    ~Pipe() {
        close_end(0);
        close_end(1);
    }
    void close_end(std::size_t number) {
        if (ends_[number] >= 0) {
            close(std::exchange(ends_[number], -1));
        }
    }
    [[nodiscard]] int read_end() const { return ends_[0]; }
    [[nodiscard]] int write_end() const { return ends_[1]; }
    void put(char letter) const { require_system(write(ends_[1], &letter, 1) == 1, "write to a pipe"); }
    /// 0: nobody is left who writes.
    [[nodiscard]] char get() const {
        char letter = 0;
        require_system(read(ends_[0], &letter, 1) >= 0, "read from a pipe");
        return letter;
    }

private:
    std::array<int, 2> ends_{-1, -1};
};

// --- Who is killed ---------------------------------------------------------------------------------------------------

struct Reads {
    int file = -1;
    bool has_places = true; ///< the reads are of successive parts of the file
    bool is_fixed = true;   ///< into registered buffers
    bool forks = false;     ///< while they are in flight, and the child lives on
};

/// Takes all buffers, and reads into all of them at once.
class Reader final : public Block {
public:
    Reader(BufferPool pool, const Reads& reads) : pool_(std::move(pool)), reads_(reads) {}

    void start() override {
        for (BufferPtr& buffer : buffers_) {
            buffer = pool_.try_allocate_by_scan();
            if (!buffer) {
                throw std::runtime_error("not all buffers are free");
            }
            std::ranges::fill(buffer.bytes(), std::byte{0}); // the pages are there, so submitting is quick
        }
    }

    WorkResult work() override {
        if (has_submitted_) {
            return requests_in_flight() == 0 ? WorkResult::done : WorkResult::need_input;
        }
        has_submitted_ = true;
        for (std::size_t number = 0; number < requests_.size(); ++number) {
            IoRequest& request = requests_[number];
            request.descriptor = reads_.file;
            request.bytes = buffers_[number].bytes();
            request.pool = &pool_.view();
            request.offset = reads_.has_places ? static_cast<std::int64_t>(number * pool_.buffer_bytes()) : -1;
            submit(request);
        }
        return WorkResult::need_input;
    }

private:
    BufferPool pool_;
    Reads reads_;
    std::array<BufferPtr, request_count> buffers_;
    std::array<IoRequest, request_count> requests_;
    bool has_submitted_ = false;
};

/// Called after the Reader, whose requests have been handed to the kernel by then.
class Teller final : public Block {
public:
    explicit Teller(const Pipe& pipe) : pipe_(&pipe) {}
    WorkResult work() override {
        pipe_->put('t');
        return WorkResult::done;
    }

private:
    const Pipe* pipe_;
};

/// A process that has all of its reads in flight.
class ReadingProcess {
public:
    ReadingProcess(const Name& name, const Reads& reads) {
        child_.emplace([&] { run(name, reads); });
        told_.close_end(1);
        if (told_.get() != 't') {
            throw std::runtime_error("the child did not get ready: " + child_->wait().said);
        }
        if (reads.forks) {
            require_system(read(told_.read_end(), &forked_, sizeof forked_) == sizeof forked_, "read a process number");
        }
    }
    ReadingProcess(const ReadingProcess&) = delete;
    ReadingProcess& operator=(const ReadingProcess&) = delete;
    ~ReadingProcess() {
        if (forked_ > 0) {
            ::kill(forked_, SIGKILL);
        }
    }

    /// Returns when it is gone, and nothing but requests may be left of it.
    void kill() {
        child_->kill(SIGKILL);
        static_cast<void>(child_->wait());
    }

    [[nodiscard]] pid_t forked() const { return forked_; }
    /// Whether the forked child still does what it is asked to, its last.
    [[nodiscard]] bool forked_answers() {
        asked_.put('?');
        const bool answers = told_.get() == '!';
        forked_ = -1;
        return answers;
    }

private:
    void run(const Name& name, const Reads& reads) {
        try {
            const Pipe submitted;
            Domain domain = Domain::join(name);
            Scheduler scheduler(domain, {.wait_path = WaitPath::io_uring, .fixed_buffers = reads.is_fixed});
            scheduler.add<Reader>(domain.pool("frames"), reads);
            scheduler.add<Teller>(reads.forks ? submitted : told_);
            scheduler.start();
            if (reads.forks && submitted.get() == 't') {
                fork_one();
            }
            scheduler.wait();
            fail_child("the reads have ended: %s", scheduler.notes().c_str());
        } catch (const std::exception& error) {
            fail_child("%s", error.what());
        }
    }

    void fork_one() const {
        if (fork() != 0) {
            return;
        }
        alarm(100);
        close(STDERR_FILENO); // who waits for the parent reads its errors to their end
        told_.put('t');
        const pid_t self = getpid();
        require_system(write(told_.write_end(), &self, sizeof self) == sizeof self, "write a process number");
        if (asked_.get() == '?') {
            told_.put('!');
        }
        _exit(0);
    }

    Pipe told_;
    Pipe asked_;
    pid_t forked_ = -1;
    std::optional<Child> child_;
};

// --- Who comes after -------------------------------------------------------------------------------------------------

struct NextOwner {
    NextOwner(const Name& name, std::uint64_t buffer_bytes)
        : domain(Domain::join(name)),
          frames(domain.pool("frames", {.buffer_bytes = buffer_bytes, .buffer_count = request_count})) {}

    /// Whether somebody else counts as alive.
    [[nodiscard]] bool has_living_peer() const {
        return std::ranges::any_of(domain.members(),
                                   [](const MemberInfo& member) { return !member.is_self && member.is_alive; });
    }

    /// For what ends soon by itself.
    void wait_until_reaped() {
        constexpr unsigned look_count_max = 200'000;
        for (unsigned look = 0; look < look_count_max && domain.members().size() > 1; ++look) {
            static_cast<void>(domain.reap());
            usleep(100);
        }
        REQUIRE(domain.members().size() == 1);
    }

    void take_all() {
        for (BufferPtr& buffer : buffers) {
            buffer = frames.try_allocate_by_scan();
            REQUIRE(buffer);
        }
        // Those that are read last come first: there the reads of the dead are latest.
        std::for_each(buffers.rbegin(), buffers.rend(), [](BufferPtr& buffer) {
            std::memset(buffer.bytes().data(), std::to_integer<int>(pattern), buffer.bytes().size());
        });
    }

    [[nodiscard]] bool has_changed() const {
        return std::ranges::any_of(buffers, [](const BufferPtr& buffer) {
            const std::span<const std::byte> bytes = buffer.bytes();
            return bytes[0] != pattern || std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) != 0;
        });
    }

    void drop_all() { std::ranges::for_each(buffers, &BufferPtr::reset); }

    Domain domain;
    BufferPool frames;
    std::array<BufferPtr, request_count> buffers;
};

/// What a scheduler says that gets no io_uring; empty where it gets one.
std::string why_no_io_uring() {
    const Name name;
    Scheduler scheduler(Domain::join(name));
    scheduler.run();
    return scheduler.wait_path() == WaitPath::io_uring ? std::string() : scheduler.notes();
}

void require_io_uring() {
    unsetenv("WEIR_WAIT_PATH"); // these tests are about one path
    if (const std::string why = why_no_io_uring(); !why.empty()) {
        skip(why);
    }
}

} // namespace

// --- Reads from a disk -----------------------------------------------------------------------------------------------

namespace {

/// A file of `content` without a name, next to where the test runs, read past the page cache.
class DiskFile {
public:
    explicit DiskFile(std::size_t bytes) : memory_(allocate(chunk_bytes)) {
        std::string path = std::filesystem::current_path() / "io_death.XXXXXX";
        descriptor_ = mkostemp(path.data(), O_DIRECT | O_CLOEXEC);
        if (descriptor_ < 0) {
            skip("no O_DIRECT at " + path + ": " + std::strerror(errno));
        }
        unlink(path.c_str());
        struct statfs status {};
        require_system(fstatfs(descriptor_, &status) == 0, "fstatfs");
        if (status.f_type == TMPFS_MAGIC || status.f_type == RAMFS_MAGIC) {
            skip(path + " would not be on a disk");
        }
        std::memset(memory_.get(), std::to_integer<int>(content), chunk_bytes);
        for (std::size_t place = 0; place < bytes; place += chunk_bytes) {
            if (pwrite(descriptor_, memory_.get(), chunk_bytes, static_cast<off_t>(place)) !=
                static_cast<ssize_t>(chunk_bytes)) {
                skip("cannot write past the page cache at " + path + ": " + std::strerror(errno));
            }
        }
        require_system(fsync(descriptor_) == 0, "fsync");
    }
    DiskFile(const DiskFile&) = delete;
    DiskFile& operator=(const DiskFile&) = delete;
    ~DiskFile() { close(descriptor_); }

    [[nodiscard]] int descriptor() const { return descriptor_; }
    /// A read through the same device, which has ended when this returns.
    void read_some() const {
        require_system(pread(descriptor_, memory_.get(), chunk_bytes, 0) == static_cast<ssize_t>(chunk_bytes), "pread");
    }

private:
    static constexpr std::size_t chunk_bytes = std::size_t{1} << 20;

    struct Free {
        void operator()(void* address) const noexcept { std::free(address); }
    };
    static void* allocate(std::size_t bytes) {
        void* const address = std::aligned_alloc(4096, bytes);
        require_system(address != nullptr, "aligned_alloc");
        return address;
    }

    std::unique_ptr<void, Free> memory_;
    int descriptor_ = -1;
};

} // namespace

TEST_CASE("reads from a disk that outlive their process never change the next owner's bytes", "[disk]") {
    // Without huge pages, so many bytes that a read is one request of the device's.
    constexpr std::size_t read_bytes = std::size_t{512} << 10;
    constexpr unsigned look_count = 4;
    const unsigned run_count = test::is_sanitized ? 10 : 100;
    require_io_uring();
    const DiskFile file(request_count * read_bytes);
    const Name name;
    NextOwner owner(name, read_bytes);
    unsigned outlived_count = 0;
    unsigned changed_count = 0;
    unsigned run = 0;
    for (; run < run_count && (keeps_lock || changed_count == 0); ++run) {
        ReadingProcess process(name, {.file = file.descriptor(), .is_fixed = run % 2 == 0});
        process.kill();
        outlived_count += owner.has_living_peer() ? 1U : 0U;
        owner.wait_until_reaped();
        owner.take_all();
        bool has_changed = false;
        for (unsigned look = 0; look < look_count && !has_changed; ++look) {
            has_changed = owner.has_changed();
            file.read_some();
        }
        changed_count += has_changed ? 1U : 0U;
        owner.drop_all();
    }
    WARN("of " << run << " killed processes, " << outlived_count << " counted as alive when they were gone, and "
               << changed_count << " had their reads change the next owner's bytes");
    if (keeps_lock) {
        CHECK(changed_count == 0);
    } else {
        CHECK(outlived_count == 0);
        CHECK(changed_count > 0);
    }
}

// --- Reads from a file that takes its time -------------------------------------------------------------------------

namespace {

/// A file system in user space with one file, whose reads are answered when the test says so.
class SlowFile {
public:
    SlowFile() {
        server_.emplace([&] { serve(); });
        said_.close_end(1);
        if (const char said = said_.get(); said != 'm') {
            const test::ChildEnd end = server_->wait();
            if (said == 'x') {
                skip("no file system in user space: " + end.said);
            }
            throw std::runtime_error("the file system ended: " + end.said);
        }
        // It is mounted where only its server sees it, and gone when that is.
        const std::string path = "/proc/" + std::to_string(server_->pid()) + "/root" + mount_point + "/file";
        descriptor_ = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
        require_system(descriptor_ >= 0, path.c_str());
    }
    SlowFile(const SlowFile&) = delete;
    SlowFile& operator=(const SlowFile&) = delete;
    ~SlowFile() {
        server_->kill(SIGKILL); // before the descriptor is closed: nobody waits for its answers any more
        close(descriptor_);
    }

    [[nodiscard]] int descriptor() const { return descriptor_; }
    void wait_for_reads() const { REQUIRE(said_.get() == 'r'); }
    /// Returns when the bytes are where they were wanted.
    void answer() const {
        told_.put('a');
        REQUIRE(said_.get() == 'a');
    }

private:
    static constexpr const char* mount_point = "/tmp";
    static constexpr std::uint64_t file_node = 2;
    static constexpr std::uint64_t file_bytes = std::uint64_t{1} << 30;

    struct Read {
        std::uint64_t unique;
        std::size_t bytes;
    };

    void give_up(const char* what) const {
        std::fprintf(stderr, "%s: %s", what, std::strerror(errno));
        said_.put('x');
        _exit(1);
    }

    static void write_file(const char* path, const std::string& text) { std::ofstream(path) << text; }

    [[nodiscard]] int mount_it() const {
        const std::string user = std::to_string(geteuid());
        const std::string group = std::to_string(getegid());
        if (unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) != 0) {
            give_up("unshare");
        }
        if (user != "0") {
            write_file("/proc/self/setgroups", "deny");
            write_file("/proc/self/uid_map", user + " " + user + " 1");
            write_file("/proc/self/gid_map", group + " " + group + " 1");
        }
        const int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
        if (device < 0) {
            give_up("/dev/fuse");
        }
        const std::string options =
            "fd=" + std::to_string(device) + ",rootmode=40000,user_id=" + user + ",group_id=" + group;
        if (!test::hide_mounts_at(mount_point) ||
            mount("weir_test", mount_point, "fuse", MS_NOSUID | MS_NODEV, options.c_str()) != 0) {
            give_up("mount");
        }
        return device;
    }

    void serve() const {
        const int device = mount_it();
        said_.put('m');
        std::vector<std::byte> message(std::size_t{1} << 18);
        std::vector<Read> reads;
        for (;;) {
            std::array<pollfd, 2> polled{pollfd{device, POLLIN, 0}, pollfd{told_.read_end(), POLLIN, 0}};
            static_cast<void>(poll(polled.data(), polled.size(), -1));
            if (polled[1].revents != 0) {
                if (told_.get() != 'a') {
                    _exit(0);
                }
                const std::vector<std::byte> bytes(file_bytes_per_read_max, content);
                for (const Read& one : reads) {
                    reply(device, one.unique, 0, bytes.data(), one.bytes);
                }
                reads.clear();
                said_.put('a');
            }
            if (polled[0].revents != 0 && read(device, message.data(), message.size()) > 0) {
                handle(device, message, reads);
            }
        }
    }

    void handle(int device, const std::vector<std::byte>& message, std::vector<Read>& reads) const {
        fuse_in_header header{};
        std::memcpy(&header, message.data(), sizeof header);
        const std::byte* const body = message.data() + sizeof header;
        switch (header.opcode) {
        case FUSE_INIT: {
            fuse_init_in wanted{};
            std::memcpy(&wanted, body, 4 * sizeof(std::uint32_t));
            fuse_init_out init{};
            init.major = FUSE_KERNEL_VERSION;
            init.minor = std::min<std::uint32_t>(wanted.minor, FUSE_KERNEL_MINOR_VERSION);
            init.max_readahead = wanted.max_readahead;
            init.flags = wanted.flags & (FUSE_ASYNC_READ | FUSE_ASYNC_DIO);
            init.max_background = 4 * request_count;
            init.congestion_threshold = 4 * request_count;
            init.max_write = file_bytes_per_read_max;
            reply(device, header.unique, 0, &init, sizeof init);
            break;
        }
        case FUSE_LOOKUP: {
            fuse_entry_out entry{};
            entry.nodeid = file_node;
            entry.entry_valid = 1'000;
            entry.attr_valid = 1'000;
            entry.attr = attributes(file_node);
            reply(device, header.unique, 0, &entry, sizeof entry);
            break;
        }
        case FUSE_GETATTR: {
            fuse_attr_out out{};
            out.attr_valid = 1'000;
            out.attr = attributes(header.nodeid);
            reply(device, header.unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_OPEN: {
            fuse_open_out opened{};
            reply(device, header.unique, 0, &opened, sizeof opened);
            break;
        }
        case FUSE_READ: {
            fuse_read_in wanted{};
            std::memcpy(&wanted, body, sizeof wanted);
            reads.push_back({header.unique, wanted.size});
            if (reads.size() == request_count) {
                said_.put('r');
            }
            break;
        }
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT: break; // are not answered
        default: reply(device, header.unique, ENOSYS, nullptr, 0);
        }
    }

    [[nodiscard]] static fuse_attr attributes(std::uint64_t node) {
        fuse_attr attributes{};
        attributes.ino = node;
        attributes.nlink = 1;
        attributes.mode = node == file_node ? S_IFREG | 0600 : S_IFDIR | 0700;
        attributes.size = node == file_node ? file_bytes : 0;
        attributes.uid = geteuid();
        attributes.gid = getegid();
        return attributes;
    }

    static void reply(int device, std::uint64_t unique, int error, const void* bytes, std::size_t count) {
        fuse_out_header header{};
        header.len = static_cast<std::uint32_t>(sizeof header + count);
        header.error = -error;
        header.unique = unique;
        std::array<iovec, 2> parts{iovec{&header, sizeof header}, iovec{const_cast<void*>(bytes), count}};
        static_cast<void>(!writev(device, parts.data(), count == 0 ? 1 : 2)); // who asked may be gone
    }

    static constexpr std::uint32_t file_bytes_per_read_max = 1U << 17;

    Pipe said_;
    Pipe told_;
    std::optional<Child> server_;
    int descriptor_ = -1;
};

/// What a forked child has open and mapped of its parent's ring.
std::string ring_of(pid_t pid) {
    const std::string base = "/proc/" + std::to_string(pid);
    std::string found;
    for (const auto& entry : std::filesystem::directory_iterator(base + "/fd")) {
        std::error_code error;
        const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
        if (target.find("io_uring") != std::string::npos) {
            found += target + "\n";
        }
    }
    std::ifstream maps(base + "/maps");
    for (std::string line; std::getline(maps, line);) {
        if (line.find("io_uring") != std::string::npos) {
            found += line + "\n";
        }
    }
    return found;
}

} // namespace

TEST_CASE("a process counts as alive until its last request has ended, and no longer", "[slow_file]") {
    constexpr std::size_t read_bytes = std::size_t{1} << 16;
    constexpr unsigned look_count = 100;
    const unsigned run_count = test::is_sanitized ? 2 : 5;
    require_io_uring();
    const SlowFile file;
    const Name name;
    NextOwner owner(name, read_bytes);
    for (const bool is_fixed : {false, true}) {
        for (const bool forks : {false, true}) {
            for (unsigned run = 0; run < run_count; ++run) {
                CAPTURE(is_fixed, forks, run);
                ReadingProcess process(name, {.file = file.descriptor(), .is_fixed = is_fixed, .forks = forks});
                file.wait_for_reads();
                process.kill();
                bool is_reaped = false;
                for (unsigned look = 0; look < look_count && !is_reaped; ++look) {
                    is_reaped = owner.domain.reap().ended_count > 0;
                    sched_yield();
                }
                REQUIRE(is_reaped == !keeps_lock);
                CHECK(owner.has_living_peer() == keeps_lock);
                if (is_reaped) {
                    owner.take_all();
                    CHECK(!owner.has_changed());
                    file.answer();
                    CHECK(owner.has_changed());
                } else {
                    CHECK(owner.frames.free_count() == 0);
                    file.answer();
                    owner.wait_until_reaped();
                    owner.take_all();
                    CHECK(!owner.has_changed());
                }
                owner.drop_all();
                CHECK(owner.frames.free_count() == request_count);
                if (forks) {
                    CHECK(process.forked_answers());
                }
            }
        }
    }
}

// --- Reads from a pipe -----------------------------------------------------------------------------------------------

TEST_CASE("a child that was forked while requests were in flight has no ring and keeps no lock", "[fork]") {
    require_io_uring();
    const Pipe silent;
    const Name name;
    NextOwner owner(name, 4096);
    for (const bool is_fixed : {false, true}) {
        CAPTURE(is_fixed);
        ReadingProcess process(name,
                               {.file = silent.read_end(), .has_places = false, .is_fixed = is_fixed, .forks = true});
        CHECK(ring_of(process.forked()) == "");
        CHECK(owner.has_living_peer());
        process.kill();
        owner.wait_until_reaped();
        CHECK(owner.frames.free_count() == request_count);
        CHECK(process.forked_answers());
    }
}
