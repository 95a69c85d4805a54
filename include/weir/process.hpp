// process.hpp (layer 2): who I am, and is that one dead.
//
// Death is proven, never guessed from a timeout, a heartbeat or /proc: a stopped process is alive, and /proc may be
// hidden or show another PID namespace's numbers. The proof is a file lock that the kernel takes away when the process
// is gone, zombie or not, and in whatever namespace it was.
//
//     weir::LockDescriptor mine = weir::LockDescriptor::open("/dev/shm/registry");
//     mine.try_lock(my_slot);                             // held until this process is gone, or `mine` is
//     if (!mine.is_locked_by_other(its_slot)) { ... }     // that one is dead
//
// The locks are open-file-description locks, each on one byte, and belong to the descriptor: opened for this alone and
// never mapped (a mapping that a forked child keeps would keep the lock). The descriptor is closed on exec, and in
// children made by fork() before fork() returns there.
//
// What would keep a lock too long: a child made by a raw clone system call, which runs no fork handlers, until it execs
// or ends; the moment between vfork and exec; a request in flight in an io_uring that has the descriptor registered
// (which is what one registers it for: the kernel may write until then). What would lose it early: a program that
// closes descriptors that are not its own. Answers that came from a descriptor that is another file now are noticed and
// never taken for a death.
//
// LockFile is what set-up excludes each other by: a lock on a small file that stays. Pids are for people, and pidfds are
// hints to look at a lock now.
//
// try_lock || is_locked_by_other: yes, also on one object; destructor || anything: no.
// Progress: LockFile::take() blocks until its deadline; all else makes a system call or a few, and waits for nobody.
// If the caller dies here: the kernel takes its locks away; a new lock file without its mode is finished by its
// owner's next take(). [crash: none, a lock has no state beyond the kernel's: process_test kills its holders]
#pragma once

#include <weir/file.hpp>
#include <weir/futex.hpp>
#include <weir/platform.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <sys/types.h>

#pragma GCC visibility push(default)
namespace weir {

namespace detail {
struct [[gnu::visibility("hidden")]] DescriptorNode;
} // namespace detail

/// A descriptor that is there for locks alone. Move-only; the destructor closes it, and its locks are gone.
/// In a child made by fork() it is closed: there try_lock() is false, is_locked_by_other() true, and the rest nothing.
class LockDescriptor {
public:
    /// Opens the regular file `path`, which has to be writable (the kernel demands it for an exclusive lock).
    /// Throws: not_found, no_permission, wrong_kind (no regular file).
    [[nodiscard]] static LockDescriptor open(const std::string& path);

    /// The same for is_locked_by_other() alone: the file need not be writable, and try_lock() throws.
    /// Throws: as open().
    [[nodiscard]] static LockDescriptor open_to_look(const std::string& path);

    LockDescriptor(LockDescriptor&& other) noexcept;
    LockDescriptor& operator=(LockDescriptor&& other) noexcept;
    LockDescriptor(const LockDescriptor&) = delete;
    LockDescriptor& operator=(const LockDescriptor&) = delete;
    ~LockDescriptor();

    /// Locks a byte, which may lie beyond the file's end. True also when this descriptor has the lock already. False:
    /// another descriptor, of whatever process, has it.
    /// Throws: std::system_error where the kernel has no memory for the lock.
    [[nodiscard]] bool try_lock(std::uint64_t byte);

    /// Gives the byte's lock back, if this descriptor has it.
    void unlock(std::uint64_t byte) noexcept;

    /// Whether another descriptor, of this process or another, holds the byte's lock. Whatever is not certain is true: a
    /// false is the proof that nobody holds it. (A lock of this descriptor itself is not another's.)
    [[nodiscard]] bool is_locked_by_other(std::uint64_t byte) const noexcept;

    /// The file that was opened; compare it with Segment::file() before trusting that both are the same.
    [[nodiscard]] FileId file() const noexcept { return file_; }

    /// For an io_uring, which registers it as a fixed file. Never map, duplicate or close it.
    [[nodiscard]] int number() const noexcept { return number_; }

    /// Whether the descriptor is still this file in this process. False: a forked child, or a program that closed
    /// what is not its own, and may have lost its locks.
    [[nodiscard]] bool is_intact() const noexcept;

private:
    friend class LockFile;

    LockDescriptor() noexcept = default;
    [[nodiscard]] static LockDescriptor open_regular(const std::string& path, int flags);
    [[nodiscard]] static LockDescriptor open_listed(const std::string& path, int flags, mode_t mode) noexcept;
    [[nodiscard]] bool is_own() const noexcept;
    void close() noexcept;

    int number_ = -1;
    pid_t opener_ = 0;
    detail::DescriptorNode* node_ = nullptr;
    std::uint64_t listed_ = 0; ///< what the node says while it lists this descriptor
    FileId file_{};
};

/// Excludes others from joining, leaving for good and removing names while it exists.
class LockFile {
public:
    /// Makes the file `path` where it is not there, and waits for its lock until the deadline (it tries at
    /// least once). The file belongs to `owner`; only that user and root can make it. It is never removed: who
    /// does so anyway, or replaces it, is noticed by those who wait for it.
    /// Throws: busy (at the deadline), no_permission (also: the file is another user's), wrong_kind (no regular file),
    /// no_space.
    [[nodiscard]] static LockFile take(const std::string& path, const FileOwner& owner, DeadlineNs deadline_ns);

    /// Ends the exclusion; the destructor does the same.
    void release() noexcept { lock_.close(); }

    [[nodiscard]] FileId file() const noexcept { return lock_.file(); }
    /// Whether the lock is (as far as this process can tell) held; false in a forked child.
    [[nodiscard]] bool is_held() const noexcept { return lock_.is_intact(); }

private:
    explicit LockFile(LockDescriptor lock) noexcept : lock_(std::move(lock)) {}

    LockDescriptor lock_;
};

/// A process as people name it. Nothing is decided on it.
struct ProcessInfo {
    pid_t pid = 0;                      ///< in its own PID namespace
    std::uint64_t pid_namespace = 0;    ///< which one that is; 0: not known
    std::uint64_t start_time_ticks = 0; ///< since boot (field 22 of /proc/<pid>/stat); 0: not known
    std::string name;
};

/// This process; an empty `name` stands for its program's.
[[nodiscard]] ProcessInfo self_info(std::string_view name = {});

/// When `pid` of this PID namespace was started, in clock ticks since boot; 0: /proc does not say.
[[nodiscard]] std::uint64_t process_start_time(pid_t pid) noexcept;

/// A descriptor that becomes readable when the process is gone: a hint to look at its lock. -1 where there is none:
/// no such process here, its number is another's by now, it lives in another PID namespace, or the kernel is older than 5.3.
/// 0 for a start time or a namespace that is not known. The caller closes it.
[[nodiscard]] int open_pidfd(pid_t pid, std::uint64_t start_time_ticks, std::uint64_t pid_namespace = 0) noexcept;

} // namespace weir
#pragma GCC visibility pop
