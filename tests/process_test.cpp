#include "catch.hpp"
#include "testing.hpp"

#include <weir/process.hpp>
#include <weir/segment.hpp>

#include <algorithm>
#include <array>
#include <functional>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

using namespace weir;
using test::error_of;

namespace {

constexpr std::int64_t ms = 1'000'000;
constexpr uid_t nobody = 65534;

/// A file in the folder of shared memory that no other run uses, taken away at the end.
class File {
public:
    explicit File(bool exists = true)
        : path_(segment_path("weir-process-test-" + std::to_string(getpid()) + "-" + std::to_string(serial++))) {
        if (exists) {
            const int descriptor = open(path_.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
            REQUIRE(descriptor >= 0);
            close(descriptor);
        }
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() {
        unlink(path_.c_str());
        rmdir(path_.c_str());
    }
    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] struct stat status() const {
        struct stat status {};
        REQUIRE(lstat(path_.c_str(), &status) == 0);
        return status;
    }

private:
    static inline int serial = 0;
    std::string path_;
};

/// A pipe of single letters between processes. Reading is "nothing" (0) when all writers are gone.
class Line {
public:
    Line() {
        if (pipe2(ends_.data(), O_CLOEXEC) != 0) {
            throw std::system_error(errno, std::system_category(), "pipe2");
        }
    }
    Line(const Line&) = delete;
    Line& operator=(const Line&) = delete;
    ~Line() {
        stop_reading();
        stop_writing();
    }
    void say(char letter) const noexcept {
        if (write(ends_[1], &letter, 1) != 1) {
            _exit(99);
        }
    }
    [[nodiscard]] char hear() const noexcept {
        char letter = 0;
        while (read(ends_[0], &letter, 1) < 0 && errno == EINTR) {
        }
        return letter;
    }
    void stop_reading() noexcept { end(ends_[0]); }
    void stop_writing() noexcept { end(ends_[1]); }

private:
    static void end(int& descriptor) noexcept {
        if (descriptor >= 0) {
            close(std::exchange(descriptor, -1));
        }
    }
    std::array<int, 2> ends_{-1, -1};
};

[[noreturn]] void wait_for_the_kill() {
    for (;;) {
        pause();
    }
}

/// Waits until the child is dead and nobody has collected it.
void wait_for_zombie(pid_t pid) {
    siginfo_t info{};
    REQUIRE(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) == 0);
}

/// Ends and collects a process that has become our child because its parent died.
void end_adopted(pid_t pid) {
    REQUIRE(kill(pid, SIGKILL) == 0);
    REQUIRE(waitpid(pid, nullptr, 0) == pid);
}

/// fork() that runs no handlers, as programs do that know only the kernel.
pid_t raw_fork() {
    return static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
}

/// Asserts in a child, where the framework is not to be used.
void expect(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "FAILED: %s\n", what);
        _exit(1);
    }
}

void run_in_child(const std::function<void()>& body) {
    const test::ChildEnd end = test::Child(body).wait();
    CAPTURE(end.said, end.status);
    CHECK(end.succeeded());
}

/// A process of a program that was started by exec and knows the file only by its name: it locks `byte`, says so, and
/// waits for its death.
class StartedHolder {
public:
    StartedHolder(const File& file, int byte) {
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        std::array<int, 2> ends{};
        REQUIRE(pipe2(ends.data(), O_CLOEXEC) == 0);
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
        std::string path = "WEIR_TEST_FILE=" + file.path();
        std::string number = "WEIR_TEST_BYTE=" + std::to_string(byte);
        std::string program = "process_test";
        std::string test_case = "[holder]";
        std::array<char*, 3> arguments{program.data(), test_case.data(), nullptr};
        std::array<char*, 3> environment{path.data(), number.data(), nullptr};
        std::array<char, 4096> self{};
        REQUIRE(readlink("/proc/self/exe", self.data(), self.size() - 1) > 0);
        const int error = posix_spawn(&pid_, self.data(), &actions, nullptr, arguments.data(), environment.data());
        CAPTURE(error);
        REQUIRE(error == 0);
        posix_spawn_file_actions_destroy(&actions);
        close(ends[1]);
        std::string said;
        for (char letter = 0; said.find("LOCKED") == std::string::npos && read(ends[0], &letter, 1) == 1;) {
            said += letter;
        }
        close(ends[0]);
        CAPTURE(said);
        REQUIRE(said.find("LOCKED") != std::string::npos);
    }
    StartedHolder(const StartedHolder&) = delete;
    StartedHolder& operator=(const StartedHolder&) = delete;
    ~StartedHolder() {
        if (pid_ > 0) {
            kill(pid_, SIGKILL);
            waitpid(pid_, nullptr, 0);
        }
    }
    [[nodiscard]] pid_t pid() const noexcept { return pid_; }

private:
    pid_t pid_ = -1;
};

} // namespace

TEST_CASE("the holder that other tests start", "[.holder]") {
    alarm(100);
    const char* path = std::getenv("WEIR_TEST_FILE");
    const char* byte = std::getenv("WEIR_TEST_BYTE");
    REQUIRE(path != nullptr);
    REQUIRE(byte != nullptr);
    LockDescriptor mine = LockDescriptor::open(path);
    REQUIRE(mine.try_lock(std::strtoull(byte, nullptr, 10)));
    if (write(STDOUT_FILENO, "LOCKED\n", 7) == 7) {
        wait_for_the_kill();
    }
}

// ---- locks -------------------------------------------------------------------------------------------------

TEST_CASE("two memberships of one process exclude each other on a byte, and on no other byte") {
    const File file;
    LockDescriptor first = LockDescriptor::open(file.path());
    LockDescriptor second = LockDescriptor::open(file.path());
    CHECK(first.file() == second.file());
    CHECK(first.try_lock(7));
    CHECK(first.try_lock(7)); // has it already
    CHECK_FALSE(second.try_lock(7));
    CHECK(second.is_locked_by_other(7));
    CHECK_FALSE(first.is_locked_by_other(7)); // its own is not another's
    CHECK_FALSE(second.is_locked_by_other(6));
    CHECK_FALSE(second.is_locked_by_other(8));
    CHECK(second.try_lock(8));
    CHECK(first.is_locked_by_other(8));
    first.unlock(7);
    CHECK_FALSE(second.is_locked_by_other(7));
    CHECK(second.try_lock(7));
    { const LockDescriptor ends = std::move(second); }
    CHECK_FALSE(first.is_locked_by_other(7));
    CHECK_FALSE(first.is_locked_by_other(8));
}

TEST_CASE("a lock moves with its handle") {
    const File file;
    const LockDescriptor other = LockDescriptor::open(file.path());
    LockDescriptor first = LockDescriptor::open(file.path());
    REQUIRE(first.try_lock(1));
    LockDescriptor second = std::move(first);
    CHECK(other.is_locked_by_other(1));
    CHECK(second.is_intact());
    CHECK_FALSE(first.is_intact()); // NOLINT: what a moved-from handle says is part of the promise
    CHECK_FALSE(first.try_lock(2));
    CHECK(first.is_locked_by_other(2)); // not certain, so not free
    LockDescriptor third = LockDescriptor::open(file.path());
    REQUIRE(third.try_lock(3));
    third = std::move(second);
    CHECK_FALSE(other.is_locked_by_other(3));
    CHECK(other.is_locked_by_other(1));
    CHECK(third.is_intact());
}

TEST_CASE("the lock of a killed process is free while it is a zombie that nobody has collected") {
    const File file;
    const LockDescriptor mine = LockDescriptor::open(file.path());
    const StartedHolder holder(file, 3);
    CHECK(mine.is_locked_by_other(3));
    REQUIRE(kill(holder.pid(), SIGKILL) == 0);
    wait_for_zombie(holder.pid());
    CHECK_FALSE(mine.is_locked_by_other(3));
    CHECK(kill(holder.pid(), 0) == 0); // the zombie still has its pid
}

TEST_CASE("a stopped process keeps its lock, and loses it when it is killed without having been continued") {
    const File file;
    LockDescriptor mine = LockDescriptor::open(file.path());
    const StartedHolder holder(file, 0);
    REQUIRE(kill(holder.pid(), SIGSTOP) == 0);
    REQUIRE(waitpid(holder.pid(), nullptr, WUNTRACED) == holder.pid());
    CHECK(mine.is_locked_by_other(0));
    CHECK_FALSE(mine.try_lock(0));
    REQUIRE(kill(holder.pid(), SIGKILL) == 0);
    wait_for_zombie(holder.pid());
    CHECK_FALSE(mine.is_locked_by_other(0));
    CHECK(mine.try_lock(0));
}

TEST_CASE("a child made by fork that outlives its parent does not keep its lock") {
    const File file;
    const LockDescriptor mine = LockDescriptor::open(file.path());
    REQUIRE(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    Line line;
    void* shared_page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared_page != MAP_FAILED);
    auto& its_pid = *static_cast<pid_t*>(shared_page);
    test::Child parent([&] {
        LockDescriptor its = LockDescriptor::open(file.path());
        expect(its.try_lock(5), "the parent locks");
        const pid_t child = fork();
        if (child == 0) {
            alarm(100);
            its_pid = getpid();
            expect(!its.is_intact(), "the child has no membership");
            line.say('f');
            wait_for_the_kill();
        }
        wait_for_the_kill();
    });
    line.stop_writing();
    REQUIRE(line.hear() == 'f');
    CHECK(mine.is_locked_by_other(5));
    parent.kill(SIGKILL);
    wait_for_zombie(parent.pid());
    CHECK_FALSE(mine.is_locked_by_other(5));
    CHECK(kill(its_pid, 0) == 0);
    end_adopted(its_pid);
    munmap(shared_page, 4096);
}

TEST_CASE("a child made by a raw clone keeps its dead parent's lock until it ends") {
    const File file;
    const LockDescriptor mine = LockDescriptor::open(file.path());
    REQUIRE(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    Line line;
    void* shared_page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared_page != MAP_FAILED);
    auto& its_pid = *static_cast<pid_t*>(shared_page);
    test::Child parent([&] {
        LockDescriptor its = LockDescriptor::open(file.path());
        expect(its.try_lock(5), "the parent locks");
        const pid_t child = raw_fork();
        if (child == 0) {
            alarm(100);
            its_pid = static_cast<pid_t>(syscall(SYS_getpid));
            line.say('c');
            wait_for_the_kill();
        }
        wait_for_the_kill();
    });
    line.stop_writing();
    REQUIRE(line.hear() == 'c');
    parent.kill(SIGKILL);
    wait_for_zombie(parent.pid());
    CHECK(mine.is_locked_by_other(5)); // late, and never wrong
    end_adopted(its_pid);
    CHECK_FALSE(mine.is_locked_by_other(5));
    munmap(shared_page, 4096);
}

TEST_CASE("what a forked child does with an inherited handle harms neither its parent nor itself") {
    const File file;
    std::optional<LockDescriptor> mine = LockDescriptor::open(file.path());
    const LockDescriptor other = LockDescriptor::open(file.path());
    REQUIRE(mine->try_lock(1));
    run_in_child([&] {
        expect(!mine->try_lock(1) && !mine->try_lock(2), "an inherited handle locks nothing");
        expect(mine->is_locked_by_other(9), "an inherited handle proves nothing");
        expect(!mine->is_intact(), "an inherited handle is none");
        mine->unlock(1);
        // Joins for itself, often enough to use again whatever the inherited handle refers to.
        std::vector<LockDescriptor> own;
        for (std::uint64_t byte = 100; byte < 200; ++byte) {
            own.push_back(LockDescriptor::open(file.path()));
            expect(own.back().try_lock(byte), "the child locks for itself");
        }
        expect(own.front().number() == mine->number(), "the number is used again (or this test shows nothing)");
        expect(own.front().is_locked_by_other(1), "the parent has its lock still");
        mine.reset();
        for (const LockDescriptor& handle : own) {
            expect(handle.is_intact(), "the inherited handle's end closes nothing of the child's");
        }
        for (std::uint64_t byte = 101; byte < 200; ++byte) {
            expect(own.front().is_locked_by_other(byte), "the child has its locks still");
        }
    });
    CHECK(other.is_locked_by_other(1));
    CHECK(mine->is_intact());
    CHECK(mine->try_lock(1));
}

TEST_CASE("a raw clone's child that calls or ends an inherited handle leaves its parent's lock alone") {
    const File file;
    const LockDescriptor other = LockDescriptor::open(file.path());
    LockDescriptor mine = LockDescriptor::open(file.path());
    REQUIRE(mine.try_lock(1));
    const pid_t pid = raw_fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        alarm(100);
        mine.unlock(1);
        const bool is_right = !mine.try_lock(2) && mine.is_locked_by_other(2);
        { const LockDescriptor ends = std::move(mine); }
        _exit(is_right ? 0 : 1);
    }
    int status = 0;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(status == 0);
    CHECK(other.is_locked_by_other(1));
    CHECK(mine.is_intact());
}

TEST_CASE("a program that a member starts does not keep its lock") {
    const File file;
    const LockDescriptor other = LockDescriptor::open(file.path());
    std::optional<LockDescriptor> mine = LockDescriptor::open(file.path());
    REQUIRE(mine->try_lock(1));
    const StartedHolder started(file, 2); // by posix_spawn, which runs no fork handlers
    REQUIRE(other.is_locked_by_other(2));
    mine.reset();
    CHECK_FALSE(other.is_locked_by_other(1));
}

TEST_CASE("children forked in the middle of opening and locking keep no lock") {
    const File file;
    const LockDescriptor mine = LockDescriptor::open(file.path());
    REQUIRE(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    constexpr int round_count = 4;
    constexpr int child_count = 60;
    for (int round = 0; round < round_count; ++round) {
        Line children; // each says one letter
        Line lifetime; // ends when nobody writes any more: then the children end
        test::Child parent([&] {
            std::thread opener([&] {
                for (;;) {
                    LockDescriptor its = LockDescriptor::open(file.path());
                    static_cast<void>(its.try_lock(1));
                    LockDescriptor second = LockDescriptor::open(file.path());
                    static_cast<void>(second.try_lock(2));
                }
            });
            for (int child = 0; child < child_count; ++child) {
                const pid_t pid = fork();
                expect(pid >= 0, "fork");
                if (pid == 0) {
                    lifetime.stop_writing();
                    children.say('c');
                    _exit(lifetime.hear());
                }
            }
            children.say('p');
            opener.join();
        });
        for (int count = 0; count < child_count + 1; ++count) {
            REQUIRE(children.hear() != 0);
        }
        parent.kill(SIGKILL);
        wait_for_zombie(parent.pid());
        CHECK_FALSE(mine.is_locked_by_other(1));
        CHECK_FALSE(mine.is_locked_by_other(2));
        lifetime.stop_writing();
        static_cast<void>(parent.wait());
        while (waitpid(-1, nullptr, 0) > 0 || errno == EINTR) {
        }
    }
}

TEST_CASE("a fork in the moment of opening or of closing gives the child no lock") {
    const File file;
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    run_in_child([&] {
        test::Random random(seed);
        const LockDescriptor probe = LockDescriptor::open(file.path());
        for (int round = 0; round < 300; ++round) {
            const bool closes = round % 2 != 0;
            std::optional<LockDescriptor> its;
            if (closes) {
                its = LockDescriptor::open(file.path());
                expect(its->try_lock(1), "it locks");
            }
            Line go;
            std::atomic<int> ready{0};
            const auto start = [&ready](unsigned spin_count) {
                ready.fetch_add(1);
                while (ready.load() < 2) {
                    sched_yield();
                }
                for (unsigned spin = 0; spin < spin_count; ++spin) {
                    asm volatile("");
                }
            };
            const unsigned spin_count = random.below(60'000U); // a fork copies its descriptors some way in
            std::thread other([&] {
                start(spin_count);
                if (closes) {
                    its.reset();
                } else {
                    its = LockDescriptor::open(file.path());
                    expect(its->try_lock(1), "it locks");
                }
            });
            start(0);
            const pid_t pid = fork();
            expect(pid >= 0, "fork");
            if (pid == 0) {
                go.stop_writing();
                static_cast<void>(go.hear());
                for (int number = 3; number < 64; ++number) {
                    struct stat status {};
                    struct flock lock {};
                    lock.l_type = F_WRLCK;
                    lock.l_start = 1;
                    lock.l_len = 1;
                    const bool is_file = fstat(number, &status) == 0 && status.st_ino == probe.file().inode &&
                                         status.st_dev == probe.file().device;
                    // Locking what the parent has locked succeeds only by the parent's own open file.
                    if (is_file && !closes && fcntl(number, F_OFD_SETLK, &lock) == 0) {
                        syscall(SYS_exit_group, 1);
                    }
                }
                // Not _exit(): ThreadSanitizer makes it a failure that the parent's other thread is not in the child.
                syscall(SYS_exit_group, 0);
            }
            other.join();
            expect(!closes || !probe.is_locked_by_other(1), "what was closed is free, though the child lives");
            go.say('g');
            int status = 0;
            expect(waitpid(pid, &status, 0) == pid && status == 0, "the child has no descriptor with a lock");
        }
    });
}

TEST_CASE("a process whose main thread has ended is alive while another thread runs") {
    const File file;
    const LockDescriptor mine = LockDescriptor::open(file.path());
    Line line;
    test::Child holder([&] {
        LockDescriptor its = LockDescriptor::open(file.path());
        expect(its.try_lock(4), "it locks");
        std::thread([&line] {
            const std::string path = "/proc/self/task/" + std::to_string(getpid()) + "/stat";
            for (char text[256] = {}; std::strstr(text, ") Z") == nullptr; sched_yield()) {
                const int stat = open(path.c_str(), O_RDONLY | O_CLOEXEC);
                expect(stat >= 0 && read(stat, text, sizeof text - 1) > 0, "the main thread's state");
                close(stat);
            }
            line.say('z');
            wait_for_the_kill();
        }).detach();
        syscall(SYS_exit, 0); // what pthread_exit() ends with, which would unwind the test framework before
    });
    line.stop_writing();
    REQUIRE(line.hear() == 'z');
    CHECK(mine.is_locked_by_other(4));
    holder.kill(SIGKILL);
    wait_for_zombie(holder.pid());
    CHECK_FALSE(mine.is_locked_by_other(4));
}

TEST_CASE("locks are seen across PID namespaces, and pids of another namespace give no pidfd") {
    const File file;
    LockDescriptor mine = LockDescriptor::open(file.path());
    REQUIRE(mine.try_lock(1));
    Line line;
    void* shared_page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared_page != MAP_FAILED);
    auto* inner_pid = static_cast<pid_t*>(shared_page);
    test::Child outer([&] {
        if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) {
            line.say('s');
            _exit(0);
        }
        const pid_t pid = fork();
        expect(pid >= 0, "fork");
        if (pid == 0) { // pid 1 of its namespace
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            LockDescriptor its = LockDescriptor::open(file.path());
            expect(its.try_lock(2), "it locks");
            expect(its.is_locked_by_other(1), "it sees the lock of the namespace around it");
            *inner_pid = getpid();
            line.say('l');
            wait_for_the_kill();
        }
        int status = 0;
        waitpid(pid, &status, 0);
        _exit(WIFSIGNALED(status) ? 0 : 1);
    });
    line.stop_writing();
    const char letter = line.hear();
    if (letter == 's') {
        WARN("skipped: PID namespaces need root or user namespaces, and neither is there");
    } else {
        REQUIRE(letter == 'l');
        CHECK(*inner_pid == 1);
        CHECK(mine.is_locked_by_other(2));
        // Its pid is another process's here: a start time that is not that one's, or another namespace, tells.
        CHECK(open_pidfd(*inner_pid, process_start_time(1) + 1) == -1);
        CHECK(open_pidfd(*inner_pid, 0, self_info().pid_namespace + 1) == -1);
        outer.kill(SIGKILL); // takes the inner one with it
        wait_for_zombie(outer.pid());
        while (mine.is_locked_by_other(2)) { // the inner one dies after the outer one; the watchdog ends a wait in vain
            sched_yield();
        }
    }
    munmap(shared_page, 4096);
}

TEST_CASE("a program that closes a member's descriptor never makes others look dead") {
    const File file;
    const File innocent;
    LockDescriptor other = LockDescriptor::open(file.path());
    REQUIRE(other.try_lock(1));
    int reused = -1;
    {
        LockDescriptor mine = LockDescriptor::open(file.path());
        REQUIRE(mine.try_lock(2));
        const int number = mine.number();
        close(number);
        CHECK_FALSE(mine.is_intact());
        CHECK(mine.is_locked_by_other(1)); // a closed descriptor proves nothing
        CHECK(mine.is_locked_by_other(9));
        reused = open(innocent.path().c_str(), O_RDWR | O_CLOEXEC);
        REQUIRE(reused == number);
        CHECK_FALSE(mine.is_intact());
        CHECK(mine.is_locked_by_other(1)); // nor does another file
        CHECK(mine.is_locked_by_other(9));
        CHECK_FALSE(mine.try_lock(3));
    }
    CHECK(fcntl(reused, F_GETFD) >= 0); // it was not ours to close
    close(reused);
}

TEST_CASE("a lock's descriptor is never one of the standard streams'") {
    const File file;
    run_in_child([&] {
        const int out = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100);
        for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
            close(stream);
        }
        const LockDescriptor mine = LockDescriptor::open(file.path());
        const bool are_closed = fcntl(STDIN_FILENO, F_GETFD) < 0 && fcntl(STDERR_FILENO, F_GETFD) < 0;
        const bool closes_on_exec = (fcntl(mine.number(), F_GETFD) & FD_CLOEXEC) != 0;
        dup2(out, STDERR_FILENO);
        expect(mine.number() > STDERR_FILENO, "a number above the streams'");
        expect(mine.is_intact() && are_closed, "the streams stay closed");
        expect(closes_on_exec, "closed on exec");
    });
}

TEST_CASE("what cannot be locked is an error of its own") {
    const File missing(false);
    CHECK(error_of([&] { return LockDescriptor::open(missing.path()); }) == errc::not_found);
    SECTION("a folder") {
        REQUIRE(mkdir(missing.path().c_str(), 0700) == 0);
        CHECK(error_of([&] { return LockDescriptor::open(missing.path()); }) == errc::wrong_kind);
        CHECK(error_of([&] { return LockFile::take(missing.path(), own_files_only(), 0); }) == errc::wrong_kind);
    }
    SECTION("a FIFO that nobody writes") {
        REQUIRE(mkfifo(missing.path().c_str(), 0600) == 0);
        CHECK(error_of([&] { return LockDescriptor::open(missing.path()); }) == errc::wrong_kind);
        CHECK(error_of([&] { return LockFile::take(missing.path(), own_files_only(), 0); }) == errc::wrong_kind);
    }
    SECTION("a link to a file that could be locked") {
        const File file;
        REQUIRE(symlink(file.path().c_str(), missing.path().c_str()) == 0);
        CHECK(error_of([&] { return LockDescriptor::open(missing.path()); }) == errc::wrong_kind);
        CHECK(error_of([&] { return LockFile::take(missing.path(), own_files_only(), 0); }) == errc::wrong_kind);
    }
    SECTION("a link to nothing is not followed, so nothing is made") {
        const File target(false);
        REQUIRE(symlink(target.path().c_str(), missing.path().c_str()) == 0);
        CHECK(error_of([&] { return LockFile::take(missing.path(), own_files_only(), 0); }) == errc::wrong_kind);
        CHECK(access(target.path().c_str(), F_OK) != 0);
    }
}

// ---- the lock file -----------------------------------------------------------------------------------------

TEST_CASE("a lock file excludes others until it is released, and stays") {
    const File file(false);
    {
        LockFile lock = LockFile::take(file.path(), own_files_only(), 0);
        CHECK(lock.is_held());
        CHECK(error_of([&] { return LockFile::take(file.path(), own_files_only(), 0); }) == errc::busy);
        CHECK(error_of([&] { return LockFile::take(file.path(), own_files_only(), deadline_after(20 * ms)); }) ==
              errc::busy);
        const ino_t inode = file.status().st_ino;
        lock.release();
        CHECK_FALSE(lock.is_held());
        const LockFile next = LockFile::take(file.path(), own_files_only(), 0);
        CHECK(next.is_held());
        CHECK(file.status().st_ino == inode);
    }
    CHECK(LockFile::take(file.path(), own_files_only(), 0).is_held());
    CHECK(file.status().st_size == 1);
}

TEST_CASE("a lock file's mode is what was asked for, whatever the umask") {
    for (const mode_t mask : {mode_t{0}, mode_t{077}, mode_t{022}}) {
        for (const mode_t mode : {mode_t{0600}, mode_t{0660}}) {
            const File file(false);
            FileOwner owner = own_files_only();
            owner.mode = mode;
            const mode_t before = umask(mask);
            const LockFile lock = LockFile::take(file.path(), owner, 0);
            umask(before);
            CHECK((file.status().st_mode & 0777) == mode);
            CHECK(file.status().st_uid == geteuid());
        }
    }
}

TEST_CASE("a lock file whose creator died before it had its mode is finished by the next who takes it") {
    const File file; // of no bytes, with the mode that creation gives
    FileOwner owner = own_files_only();
    owner.mode = 0640;
    const ino_t inode = file.status().st_ino;
    { const LockFile lock = LockFile::take(file.path(), owner, 0); }
    CHECK((file.status().st_mode & 0777) == 0640);
    CHECK(file.status().st_ino == inode);
    owner.mode = 0600; // finished once, it stays as it is
    { const LockFile lock = LockFile::take(file.path(), owner, 0); }
    CHECK((file.status().st_mode & 0777) == 0640);
}

TEST_CASE("a stopped holder is busy at the deadline, and a killed one is not") {
    const File file(false);
    Line line;
    test::Child holder([&] {
        const LockFile lock = LockFile::take(file.path(), own_files_only(), 0);
        line.say('t');
        wait_for_the_kill();
    });
    line.stop_writing();
    REQUIRE(line.hear() == 't');
    holder.kill(SIGSTOP);
    REQUIRE(waitpid(holder.pid(), nullptr, WUNTRACED) == holder.pid());
    const std::int64_t begin_ns = monotonic_ns();
    CHECK(error_of([&] { return LockFile::take(file.path(), own_files_only(), begin_ns + 50 * ms); }) == errc::busy);
    CHECK(monotonic_ns() >= begin_ns + 50 * ms); // and not before
    holder.kill(SIGKILL);
    CHECK(LockFile::take(file.path(), own_files_only(), deadline_never).is_held());
}

TEST_CASE("who waits for a lock file that is replaced takes the new one") {
    const File file(false);
    const LockFile old = LockFile::take(file.path(), own_files_only(), 0);
    Line line;
    test::Child waiter([&] {
        line.say('w');
        const LockFile lock = LockFile::take(file.path(), own_files_only(), deadline_never);
        expect(lock.file() != old.file(), "it is the new file's lock");
        line.say('t');
        wait_for_the_kill();
    });
    line.stop_writing();
    REQUIRE(line.hear() == 'w');
    for (int count = 0; count < 20; ++count) { // the waiter may be anywhere in its wait
        sched_yield();
    }
    REQUIRE(unlink(file.path().c_str()) == 0);
    REQUIRE(line.hear() == 't'); // though the old one is held still
    CHECK(old.is_held());
    CHECK(error_of([&] { return LockFile::take(file.path(), own_files_only(), 0); }) == errc::busy);
}

TEST_CASE("who takes the lock of a file that was removed in the same moment takes another") {
    const File file(false);
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Child remover([&] {
        for (;;) {
            unlink(file.path().c_str());
        }
    });
    for (int count = 0; count < 300; ++count) {
        // When it is taken, it is called by its name; so of two at most one is without a name.
        CHECK(LockFile::take(file.path(), own_files_only(), deadline_never).is_held());
    }
}

TEST_CASE("a lock file lets one process at a time through, though holders are killed, or remove it") {
    const File file(false);
    struct Account {
        std::uint64_t inside; // who holds the lock
        std::uint64_t rounds;
    };
    const Segment memory = Segment::anonymous(sizeof(Account));
    auto& account = *reinterpret_cast<Account*>(memory.bytes().data());
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    const auto contend = [&] {
        for (;;) {
            const LockFile lock = LockFile::take(file.path(), own_files_only(), deadline_never);
            // Not atomic: the lock is what orders them.
            auto& inside = *static_cast<volatile std::uint64_t*>(&account.inside);
            inside = static_cast<std::uint64_t>(getpid());
            for (int spin = 0; spin < 200; ++spin) {
                expect(inside == static_cast<std::uint64_t>(getpid()), "nobody else is inside");
            }
            account.rounds += 1;
            if (account.rounds % 3 == 0) { // who opened this one and locks it next has to notice
                unlink(file.path().c_str());
            }
        }
    };
    std::vector<std::unique_ptr<test::Child>> children;
    for (int number = 0; number < 4; ++number) {
        children.push_back(std::make_unique<test::Child>(contend));
    }
    for (int count = 0; count < 40; ++count) {
        usleep(random.below(3000U));
        auto& victim = children[random.below(children.size())];
        victim->kill(SIGKILL);
        const test::ChildEnd end = victim->wait();
        CAPTURE(end.said);
        CHECK(end.signal() == SIGKILL);
        victim = std::make_unique<test::Child>(contend);
    }
    const std::uint64_t rounds = *static_cast<volatile std::uint64_t*>(&account.rounds);
    CHECK(rounds > 0);
    const LockFile lock = LockFile::take(file.path(), own_files_only(), deadline_never);
    CHECK(lock.is_held());
}

TEST_CASE("two that hold a lock file nearly all the time do not keep a third from it") {
    const File file(false);
    const Segment memory = Segment::anonymous(sizeof(std::atomic<std::uint64_t>));
    auto& taken_count = *new (memory.bytes().data()) std::atomic<std::uint64_t>;
    const auto take_all_the_time = [&] {
        for (;;) {
            const LockFile lock = LockFile::take(file.path(), own_files_only(), deadline_never);
            const std::int64_t begin_ns = monotonic_ns();
            while (monotonic_ns() < begin_ns + ms / 5) {
            }
            taken_count.fetch_add(1);
        }
    };
    test::Child one(take_all_the_time);
    test::Child other(take_all_the_time);
    while (taken_count.load() == 0) {
        sched_yield();
    }
    constexpr std::uint64_t rounds = 10;
    std::uint64_t overtaken_count = 0;
    for (std::uint64_t round = 0; round < rounds; ++round) {
        const std::uint64_t before = taken_count.load();
        while (taken_count.load() == before) { // until one of them has it again
            sched_yield();
        }
        const LockFile lock = LockFile::take(file.path(), own_files_only(), deadline_never);
        overtaken_count += taken_count.load() - before;
    }
    // By how many it is overtaken depends on how often it looks, and little on how busy this machine is.
    CHECK(overtaken_count / rounds < 5'000);
}

TEST_CASE("a forked child does not hold its parent's lock file") {
    const File file(false);
    LockFile lock = LockFile::take(file.path(), own_files_only(), 0);
    run_in_child([&] {
        expect(!lock.is_held(), "the child does not hold it");
        lock.release();
        expect(error_of([&] { return LockFile::take(file.path(), own_files_only(), 0); }) == errc::busy,
               "the parent holds it still");
    });
    CHECK(lock.is_held());
    CHECK(error_of([&] { return LockFile::take(file.path(), own_files_only(), 0); }) == errc::busy);
}

TEST_CASE("another user's lock file under the same name is no permission, even where it may be opened") {
    if (geteuid() != 0) {
        WARN("skipped: only root can be two users");
        return;
    }
    const File file(false);
    run_in_child([&] {
        expect(setresgid(nobody, nobody, nobody) == 0 && setresuid(nobody, nobody, nobody) == 0, "setresuid");
        FileOwner everybodys = own_files_only();
        everybodys.mode = 0666;
        static_cast<void>(LockFile::take(file.path(), everybodys, 0));
    });
    REQUIRE((file.status().st_mode & 0777) == 0666);
    REQUIRE(file.status().st_uid == nobody);
    CHECK(error_of([&] { return LockFile::take(file.path(), own_files_only(), 0); }) == errc::no_permission);
    // and the other way round
    const File mine(false);
    FileOwner everybodys = own_files_only();
    everybodys.mode = 0666;
    static_cast<void>(LockFile::take(mine.path(), everybodys, 0));
    run_in_child([&] {
        expect(setresgid(nobody, nobody, nobody) == 0 && setresuid(nobody, nobody, nobody) == 0, "setresuid");
        expect(error_of([&] { return LockFile::take(mine.path(), own_files_only(), 0); }) == errc::no_permission,
               "root's file is not nobody's");
    });
}

TEST_CASE("a group shares the lock file that its owner made, and only the owner makes it") {
    if (geteuid() != 0) {
        WARN("skipped: only root can be two users");
        return;
    }
    constexpr gid_t group = 12345;
    constexpr uid_t member = 12346;
    constexpr uid_t stranger = 12347;
    const FileOwner owner{nobody, group, 0660};
    const auto become = [](uid_t user, gid_t of_group) {
        expect(setresgid(of_group, of_group, of_group) == 0 && setresuid(user, user, user) == 0, "setresuid");
    };
    const File file(false);
    run_in_child([&] {
        become(member, group);
        expect(error_of([&] { return LockFile::take(file.path(), owner, 0); }) == errc::not_found,
               "a member of the group cannot make it");
        expect(access(file.path().c_str(), F_OK) != 0, "and leaves nothing");
    });
    SECTION("made by its owner") {
        run_in_child([&] {
            become(nobody, group);
            umask(077);
            static_cast<void>(LockFile::take(file.path(), owner, 0));
        });
    }
    SECTION("made by root") {
        static_cast<void>(LockFile::take(file.path(), owner, 0));
    }
    CHECK(file.status().st_uid == nobody);
    CHECK(file.status().st_gid == group);
    CHECK((file.status().st_mode & 0777) == 0660);
    run_in_child([&] {
        become(member, group);
        expect(LockFile::take(file.path(), owner, 0).is_held(), "the group takes it");
    });
    run_in_child([&] {
        become(stranger, stranger);
        expect(error_of([&] { return LockFile::take(file.path(), owner, 0); }) == errc::no_permission,
               "a stranger does not");
    });
}

// ---- for people --------------------------------------------------------------------------------------------

TEST_CASE("a process knows its pid, its start and its name") {
    const ProcessInfo info = self_info();
    CHECK(info.pid == getpid());
    CHECK(info.name == "process_test");
    CHECK(info.start_time_ticks != 0);
    CHECK(info.start_time_ticks == process_start_time(getpid()));
    CHECK(info.pid_namespace != 0);
    CHECK(self_info("camera").name == "camera");
    CHECK(process_start_time(0) == 0);
    CHECK(process_start_time(-1) == 0);
}

TEST_CASE("a process may be called anything, brackets and blanks too") {
    run_in_child([] {
        const std::uint64_t before = process_start_time(getpid());
        for (const char* name : {"a) b (c", ") 1 2 3 4 5", "((((", "", "\n) S 1"}) {
            prctl(PR_SET_NAME, name);
            expect(process_start_time(getpid()) == before && before != 0, name);
        }
    });
}

TEST_CASE("a pidfd is readable when its process is gone") {
    test::Child child([] { wait_for_the_kill(); });
    const std::uint64_t started = process_start_time(child.pid());
    CHECK(started != 0);
    const int descriptor = open_pidfd(child.pid(), started, self_info().pid_namespace);
    if (descriptor < 0 && errno == ENOSYS) {
        WARN("skipped: this kernel has no pidfds");
        return;
    }
    REQUIRE(descriptor >= 0);
    CHECK((fcntl(descriptor, F_GETFD) & FD_CLOEXEC) != 0);
    pollfd watched{descriptor, POLLIN, 0};
    CHECK(poll(&watched, 1, 0) == 0);
    child.kill(SIGKILL);
    CHECK(poll(&watched, 1, -1) == 1); // with the zombie still there
    close(descriptor);
}

TEST_CASE("there is no pidfd for a number that is another process's by now, or nobody's") {
    test::Child child([] { wait_for_the_kill(); });
    const pid_t pid = child.pid();
    const std::uint64_t started = process_start_time(pid);
    CHECK(open_pidfd(pid, started + 1) == -1);
    CHECK(open_pidfd(pid, started - 1) == -1);
    CHECK(open_pidfd(pid, started, self_info().pid_namespace + 1) == -1);
    const int unknown = open_pidfd(pid, 0); // a start time that nobody knows is not compared
    CHECK(unknown >= 0);
    close(unknown);
    CHECK(open_pidfd(0, 0) == -1);
    CHECK(open_pidfd(-1, 0) == -1);
    child.kill(SIGKILL);
    static_cast<void>(child.wait());
    CHECK(open_pidfd(pid, started) == -1);
}
