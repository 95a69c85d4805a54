#include "diagnosis.hpp"

#include "text.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <system_error>

namespace weir::tool {

namespace {

constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20;
constexpr std::uint64_t small_total_bytes = 128 * mebibyte; // containers get 64 MiB where nobody asks for more
constexpr std::uint64_t small_free_bytes = 32 * mebibyte;
constexpr std::uint64_t small_free_files = 1'000;
constexpr std::uint64_t registered_bytes_wanted = 64 * mebibyte;
constexpr std::uint64_t open_files_wanted =
    512; // 255 peers to watch, a ring a worker, the locks, and the program's own

constexpr const char* larger_shared_memory =
    "docker run --shm-size=1g; in Kubernetes an emptyDir with medium: Memory at /dev/shm; elsewhere, as root: "
    "mount -o remount,size=1g /dev/shm";

std::string message_of(int error) {
    return std::system_category().message(error);
}

/// Why a system call is refused, and what helps.
std::string allowed_by(int error, bool is_filtered, const std::string& calls, const std::string& kernel) {
    if (is_filtered) {
        return "let the seccomp filter of this container or service allow " + calls +
               (error == ENOSYS ? ", or use " + kernel : std::string());
    }
    return error == ENOSYS ? "use " + kernel : "ask who forbids " + calls + " here (a security module, a sandbox)";
}

Finding fine(const char* check, std::string what) {
    return {Level::fine, check, std::move(what)};
}

} // namespace

Finding judge(const SharedMemory& measured) {
    const char* check = "shared_memory_size";
    const std::string size =
        measured.total_bytes == unlimited
            ? "of no fixed size"
            : fmt::format("of {}, {} free", sized(measured.total_bytes), sized(measured.free_bytes));
    if (!measured.is_tmpfs) {
        return {Level::warning, check, "/dev/shm is no tmpfs: what lies there may be written to a disk",
                "as root: mount -t tmpfs tmpfs /dev/shm"};
    }
    if (measured.total_bytes <= small_total_bytes) {
        return {Level::warning, check,
                fmt::format("/dev/shm is small, a tmpfs {}: it is what all pools come from", size),
                larger_shared_memory};
    }
    if (measured.free_bytes < small_free_bytes) {
        return {
            Level::warning, check, fmt::format("/dev/shm is nearly full, a tmpfs {}", size),
            fmt::format("remove what nobody needs (ls -l /dev/shm; leftovers of domains are listed below), or make it "
                        "larger: {}",
                        larger_shared_memory)};
    }
    if (measured.free_files < small_free_files) {
        return {Level::warning, check,
                fmt::format("/dev/shm has room for {} more only, of {} (nr_inodes)",
                            counted(measured.free_files, "file"), grouped(measured.total_files)),
                "remove what nobody needs (ls /dev/shm), or as root: mount -o remount,nr_inodes=1m /dev/shm"};
    }
    return fine(check, "/dev/shm is a tmpfs " + size);
}

Finding judge(const IoUring& measured) {
    const char* check = "io_uring";
    const auto note = [check](std::string what, std::string to_do) {
        return Finding{Level::note, check, std::move(what), std::move(to_do)};
    };
    if (!measured.is_built_in) {
        return note("this weir was built without liburing, so workers do not sleep in io_uring",
                    "install liburing (liburing-dev) and build again with -Dio_uring=enabled");
    }
    if (const int error = measured.setup_error; error != 0) {
        const std::string what = "no io_uring here: " + message_of(error);
        if (measured.disabled.value_or(0) != 0) {
            return note(fmt::format("{} (kernel.io_uring_disabled is {})", what, *measured.disabled),
                        "as root: sysctl kernel.io_uring_disabled=0");
        }
        if (error == ENOMEM) {
            return note(what, "raise the memlock limit: ulimit -l unlimited");
        }
        return note(what, allowed_by(error, measured.is_filtered,
                                     "io_uring_setup, io_uring_enter and io_uring_register (docker: a profile of "
                                     "one's own, --security-opt seccomp=FILE)",
                                     "Linux 6.7 or later"));
    }
    if (const int error = measured.worker_setup_error; error != 0) {
        return note("no io_uring as workers want it: " + message_of(error),
                    error == ENOMEM ? "raise the memlock limit: ulimit -l unlimited" : "use Linux 6.7 or later");
    }
    if (!measured.has_futex_wait) {
        return note("io_uring is there, but cannot wait on futexes, so workers do not sleep in it",
                    "use Linux 6.7 or later");
    }
    if (const int error = measured.enter_error; error != 0) {
        return note("an io_uring may be made, but not entered: " + message_of(error),
                    allowed_by(error, measured.is_filtered, "io_uring_enter", "Linux 6.7 or later"));
    }
    return fine(check, "io_uring is there, and waits on futexes");
}

Finding judge(const MemoryLock& measured) {
    const char* check = "memory_lock";
    if (measured.limit_bytes == unlimited || measured.is_exempt) {
        return fine(check, "no memlock limit: pools of any size are registered with io_uring");
    }
    const std::string limit = sized(measured.limit_bytes);
    if (measured.limit_bytes >= registered_bytes_wanted) {
        return fine(check, "the memlock limit is " + limit +
                               ": pools up to that, all workers' together, are "
                               "registered with io_uring");
    }
    return {Level::note, check,
            "the memlock limit is " + limit +
                ": for larger pools, files are read and written without registered buffers",
            "ulimit -l unlimited; LimitMEMLOCK=infinity in a systemd unit; docker run --ulimit memlock=-1"};
}

Finding judge(const HugePages& measured) {
    const char* check = "huge_pages";
    const std::string setting = measured.setting.empty() ? std::string() : " (shmem_enabled: " + measured.setting + ")";
    if (measured.asked_bytes != 0 && measured.obtained_bytes >= measured.asked_bytes) {
        return fine(check, "pools that ask for huge pages get them" + setting);
    }
    const std::string advise = "as root: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled";
    if (measured.setting.empty()) {
        return {Level::note, check, "no huge pages for shared memory: this kernel has none",
                "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE, or do without: pools work all the same"};
    }
    if (measured.setting == "deny" || measured.obtained_bytes == 0) {
        return {Level::note, check,
                "pools that ask for huge pages do not get them" + setting +
                    (measured.note.empty() ? std::string() : ": " + measured.note),
                advise + ", if they are to have them"};
    }
    return {
        Level::note, check, measured.note + setting,
        "nothing at once: the kernel finds more when memory is less in pieces; echo 1 > /proc/sys/vm/compact_memory "
        "hastens it"};
}

Finding judge_futex_waitv(int error, bool is_filtered) {
    const char* check = "futex_waitv";
    if (error == 0) {
        return fine(check, "futex_waitv is there, for workers that do not sleep in io_uring");
    }
    return {Level::note, check, "no futex_waitv, for workers that do not sleep in io_uring: " + message_of(error),
            allowed_by(error, is_filtered, "futex_waitv", "Linux 5.16 or later")};
}

Finding judge_pidfd(int error, bool is_filtered) {
    const char* check = "pidfd";
    if (error == 0) {
        return fine(check, "pidfd_open is there: a peer's death is noticed at once");
    }
    return {Level::note, check,
            "no pidfd_open (" + message_of(error) + "): a peer's death is noticed by the next re-check, after 100 ms",
            allowed_by(error, is_filtered, "pidfd_open", "Linux 5.3 or later")};
}

Finding judge_open_files(std::uint64_t limit) {
    const char* check = "open_files";
    if (limit >= open_files_wanted) {
        return fine(check,
                    limit == unlimited ? "no limit of open files" : "a process may open " + counted(limit, "file"));
    }
    return {
        Level::warning, check,
        fmt::format("a process may open no more than {}: a scheduler opens one for each peer", counted(limit, "file")),
        "ulimit -n 4096; LimitNOFILE=4096 in a systemd unit"};
}

Finding judge_file_size(std::uint64_t limit_bytes) {
    const char* check = "file_size";
    if (limit_bytes == unlimited) {
        return fine(check, "no limit of a file's size, and so of a pool's");
    }
    return {Level::warning, check,
            fmt::format("files, and so pools, may be no larger than {} (ulimit -f)", sized(limit_bytes)),
            "ulimit -f unlimited; LimitFSIZE=infinity in a systemd unit"};
}

Finding judge_processors(unsigned count) {
    const char* check = "processors";
    if (count > 1) {
        return fine(check, fmt::format("this process may run on {}", counted(count, "processor")));
    }
    return {Level::note, check, "this process may run on one processor alone, where spinning keeps the other side away",
            "set spin_count = 0 in WaitOptions and SchedulerOptions, or allow more (taskset, cpuset)"};
}

std::string bracketed(const std::string& text) {
    const std::size_t begin = text.find('[');
    const std::size_t end = text.find(']', begin == std::string::npos ? 0 : begin);
    return begin == std::string::npos || end == std::string::npos ? std::string()
                                                                  : text.substr(begin + 1, end - begin - 1);
}

} // namespace weir::tool
