#include "doctor_machine.hpp"

#include "diagnosis.hpp"
#include "domains.hpp"
#include "logind.hpp"
#include "text.hpp"

#include <weir/domain.hpp>
#include <weir/fork_guard.hpp>
#include <weir/process.hpp>
#include <weir/scheduler.hpp>
#include <weir/segment.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <memory>
#include <sstream>

#include <linux/io_uring.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

namespace weir::tool {

namespace {

/// Names in /dev/shm of this run's own, which are gone at its end.
class TrialNames {
public:
    TrialNames() : names_(geteuid(), "doctor." + std::to_string(getpid())) {}
    TrialNames(const TrialNames&) = delete;
    TrialNames& operator=(const TrialNames&) = delete;
    ~TrialNames() {
        try {
            for (const std::string& name : list_segments(names_.prefix())) {
                Segment::remove(name);
            }
        } catch (const std::exception&) {
            // What could not be removed could not be made either, and that was said.
        }
    }

    [[nodiscard]] const std::string& domain() const { return names_.domain(); }
    [[nodiscard]] std::string segment(const char* what) const { return names_.prefix() + what; }

private:
    DomainNames names_;
};

/// Says `good` where `trial` returns true, and `bad` where it does not; an exception says by itself what is wrong.
template <class Body>
Finding tried(const char* check, const std::string& good, const std::string& bad, const std::string& to_do,
              Body&& trial) {
    try {
        return trial() ? Finding{Level::fine, check, good} : Finding{Level::problem, check, bad, to_do};
    } catch (const std::exception& error) {
        return {Level::problem, check, bad + ": " + error.what(), to_do};
    }
}

std::string line_of(const char* path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

bool is_filtered() {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("Seccomp:")) {
            return line.find('2') != std::string::npos;
        }
    }
    return false;
}

std::uint64_t limit_of(decltype(RLIMIT_NOFILE) resource) {
    rlimit limit{};
    return getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY ? limit.rlim_cur : unlimited;
}

int error_of(long result) {
    return result < 0 ? errno : 0;
}

// --- Shared memory ---------------------------------------------------------------------------------------------------

SharedMemory measure_shared_memory() {
    const std::string folder(shared_memory_folder);
    SharedMemory measured;
    struct statfs kind {};
    struct statvfs space {};
    if (statfs(folder.c_str(), &kind) != 0 || statvfs(folder.c_str(), &space) != 0) {
        return measured;
    }
    measured.is_tmpfs = kind.f_type == TMPFS_MAGIC;
    if (space.f_blocks != 0) {
        measured.total_bytes = std::uint64_t{space.f_blocks} * space.f_frsize;
        measured.free_bytes = std::uint64_t{space.f_bavail} * space.f_frsize;
    }
    if (space.f_files != 0) {
        measured.total_files = space.f_files;
        measured.free_files = space.f_favail;
    }
    return measured;
}

bool locks_exclude(const std::string& path) {
    LockDescriptor first = LockDescriptor::open(path);
    const LockDescriptor second = LockDescriptor::open(path);
    const bool is_held = first.try_lock(3) && second.is_locked_by_other(3) && !second.is_locked_by_other(4);
    first.unlock(3);
    return is_held && !second.is_locked_by_other(3);
}

/// Whether segments can be made here at all; without them, nothing else of shared memory needs to be tried.
bool look_at_shared_memory(const TrialNames& names, Findings& findings) {
    const std::string one = names.segment("one");
    const std::string two = names.segment("two");
    findings.push_back(tried("shared_memory", "segments can be made in /dev/shm", "no segment can be made in /dev/shm",
                             "see that /dev/shm is there, a tmpfs, has room, and may be written to by all (mode 1777)",
                             [&] { return !Segment::create(one, 1).bytes().empty(); }));
    const bool is_there = findings.back().level == Level::fine;
    findings.push_back(judge(measure_shared_memory()));
    if (is_there) {
        findings.push_back(tried("rename", "segments can be published in one step (RENAME_NOREPLACE)",
                                 "segments cannot be published in one step (RENAME_NOREPLACE)",
                                 "mount a tmpfs at /dev/shm", [&] {
                                     const bool is_moved = Segment::rename_noreplace(one, two);
                                     static_cast<void>(Segment::create(one, 1));
                                     return is_moved && !Segment::rename_noreplace(one, two);
                                 }));
        findings.push_back(tried("locks", "file locks on /dev/shm tell who is alive",
                                 "file locks on /dev/shm do not tell who is alive (F_OFD_SETLK)",
                                 "mount a tmpfs at /dev/shm", [&] { return locks_exclude(segment_path(one)); }));
        Segment::remove(one);
        Segment::remove(two);
    }
    findings.push_back(judge_remove_ipc("/", geteuid(), user_name(geteuid())));
    return is_there;
}

HugePages try_huge_pages(const TrialNames& names, std::uint64_t free_bytes) {
    HugePages result;
    result.setting = bracketed(line_of("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
    const std::uint64_t page_bytes =
        std::strtoull(line_of("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").c_str(), nullptr, 10);
    constexpr std::uint64_t page_bytes_max = std::uint64_t{32} << 20; // some have 512 MiB: too much for a trial
    const std::uint64_t asked_bytes = 2 * page_bytes;
    if (page_bytes == 0 || page_bytes > page_bytes_max || free_bytes < 2 * asked_bytes) {
        result.note = page_bytes == 0 ? "" : "not tried, for lack of room";
        return result;
    }
    SegmentOptions options;
    options.huge_pages = true;
    const Segment segment = Segment::create(names.segment("huge"), asked_bytes, options);
    result.asked_bytes = asked_bytes;
    result.obtained_bytes = segment.huge_page_bytes();
    result.note = segment.note();
    return result;
}

// --- The kernel ------------------------------------------------------------------------------------------------------

bool child_is_told_from_parent() {
    const ForkStamp stamp = ForkStamp::capture();
    const pid_t child = fork();
    if (child == 0) {
        _exit(stamp.is_foreign() ? 0 : 1);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0 && !stamp.is_foreign();
}

int try_futex_waitv() {
    constexpr long number = 449; // on all architectures; headers may be older
    // None to wait for is an error that tells that the call is there.
    const int error = error_of(syscall(number, nullptr, 0U, 0U, nullptr, CLOCK_MONOTONIC));
    return error == EINVAL ? 0 : error;
}

int try_pidfd() {
    const long number = syscall(SYS_pidfd_open, getppid() > 0 ? getppid() : getpid(), 0);
    const int error = error_of(number);
    if (error == 0) {
        close(static_cast<int>(number));
    }
    return error;
}

/// An io_uring without any library: what the kernel says, also where weir was built without one.
class Ring {
public:
    Ring(std::uint32_t flags, std::uint32_t entries, std::uint32_t completions) {
        io_uring_params parameters{};
        parameters.flags = flags;
        parameters.cq_entries = completions;
        number_ = syscall(SYS_io_uring_setup, entries, &parameters);
        error_ = error_of(number_);
    }
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    ~Ring() {
        if (number_ >= 0) {
            close(static_cast<int>(number_));
        }
    }

    [[nodiscard]] int error() const { return error_; }

    [[nodiscard]] bool has_operation(std::uint8_t operation) const {
        constexpr std::size_t operation_count = 256;
        std::array<std::uint64_t, (sizeof(io_uring_probe) + operation_count * sizeof(io_uring_probe_op)) / 8> memory{};
        auto* const probe = reinterpret_cast<io_uring_probe*>(memory.data());
        return syscall(SYS_io_uring_register, number_, IORING_REGISTER_PROBE, probe, operation_count) == 0 &&
               operation <= probe->last_op && (probe->ops[operation].flags & IO_URING_OP_SUPPORTED) != 0;
    }

    [[nodiscard]] int enter() const {
        return error_of(syscall(SYS_io_uring_enter, number_, 0, 0, IORING_ENTER_GETEVENTS, nullptr, 0));
    }

    [[nodiscard]] bool registers(std::size_t bytes) const {
        void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            return false;
        }
        const iovec piece{memory, bytes};
        const bool is_done = syscall(SYS_io_uring_register, number_, IORING_REGISTER_BUFFERS, &piece, 1) == 0;
        munmap(memory, bytes);
        return is_done;
    }

private:
    long number_ = -1;
    int error_ = 0;
};

// As in the kernel's headers since 6.1 and 6.7; those at hand may be older.
constexpr std::uint32_t setup_single_issuer = 1U << 12;
constexpr std::uint32_t setup_defer_taskrun = 1U << 13;
constexpr std::uint8_t operation_futex_wait = 51;

void look_at_io_uring(Findings& findings) {
    IoUring measured;
#if !defined(WEIR_HAS_LIBURING)
    measured.is_built_in = false;
#endif
    measured.is_filtered = is_filtered();
    if (const std::string disabled = line_of("/proc/sys/kernel/io_uring_disabled"); !disabled.empty()) {
        measured.disabled = std::atoi(disabled.c_str());
    }
    measured.setup_error = Ring(0, 2, 0).error();
    const Ring ring(setup_single_issuer | setup_defer_taskrun | IORING_SETUP_CQSIZE, 256, 4'096); // as a worker's
    measured.worker_setup_error = ring.error();
    if (ring.error() == 0) {
        measured.has_futex_wait = ring.has_operation(operation_futex_wait);
        measured.enter_error = ring.enter();
    }
    findings.push_back(judge(measured));
    if (measured.is_usable()) {
        MemoryLock lock;
        lock.limit_bytes = limit_of(RLIMIT_MEMLOCK);
        constexpr std::uint64_t tried_bytes_max = std::uint64_t{16} << 20;
        constexpr std::uint64_t more_bytes = std::uint64_t{1} << 16;
        lock.is_exempt = lock.limit_bytes <= tried_bytes_max && ring.registers(lock.limit_bytes + more_bytes);
        findings.push_back(judge(lock));
    }
}

/// Which path a scheduler takes, by starting one.
Finding look_at_wait_path(const TrialNames& names) {
    const char* check = "wait_path";
    const char* demanded = std::getenv("WEIR_WAIT_PATH");
    const bool is_demanded = demanded != nullptr && *demanded != '\0' && to_string(WaitPath::automatic) != demanded;
    try {
        const Domain domain = Domain::join(names.domain());
        Scheduler scheduler(domain);
        scheduler.start();
        const WaitPath path = scheduler.wait_path();
        scheduler.stop();
        scheduler.wait();
        const std::string what = fmt::format("workers of a scheduler sleep in {}{}",
                                             path == WaitPath::recheck ? "one futex" : to_string(path),
                                             is_demanded ? ", which WEIR_WAIT_PATH demands" : "");
        if (path == WaitPath::recheck) {
            return {Level::warning, check, what + ", and look at all else every few milliseconds",
                    is_demanded ? "unset WEIR_WAIT_PATH" : "make io_uring or futex_waitv possible, as said above"};
        }
        return {Level::fine, check, what};
    } catch (const std::exception& error) {
        return {Level::problem, check, std::string("no scheduler can be started: ") + error.what(),
                is_demanded ? "unset WEIR_WAIT_PATH" : "see the findings above"};
    }
}

unsigned processor_count() {
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? static_cast<unsigned>(CPU_COUNT(&allowed)) : 2;
}

} // namespace

Findings look_at_machine() {
    Findings findings;
    const TrialNames names;
    const bool has_segments = look_at_shared_memory(names, findings);
    if (has_segments) {
        try {
            findings.push_back(judge(try_huge_pages(names, measure_shared_memory().free_bytes)));
        } catch (const std::exception& error) {
            findings.push_back({Level::note, "huge_pages",
                                std::string("huge pages could not be tried: ") + error.what(),
                                "see what is said of /dev/shm"});
        }
    }
    findings.push_back(tried("fork", "a forked child is told from its parent (MADV_WIPEONFORK)",
                             "a forked child is not told from its parent (MADV_WIPEONFORK)",
                             "use Linux 4.14 or later, and no emulator of it", child_is_told_from_parent));
    const bool has_filter = is_filtered();
    findings.push_back(judge_futex_waitv(try_futex_waitv(), has_filter));
    look_at_io_uring(findings);
    if (has_segments) {
        findings.push_back(look_at_wait_path(names));
    }
    findings.push_back(judge_pidfd(try_pidfd(), has_filter));
    findings.push_back(judge_open_files(limit_of(RLIMIT_NOFILE)));
    findings.push_back(judge_file_size(limit_of(RLIMIT_FSIZE)));
    findings.push_back(judge_processors(processor_count()));
    return findings;
}

} // namespace weir::tool
