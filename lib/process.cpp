#include <weir/process.hpp>

#include "files.hpp"
#include "listed_descriptor.hpp"

#include <weir/error.hpp>
#include <weir/futex.hpp>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <new>

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace weir {

namespace detail {

// The descriptors that a forked child closes, in a list whose nodes are never freed: {serial 32, number + 1}. The serial
// tells a node's successive users apart, so that a handle that a child inherited does not close what the child opened
// for itself in the same node.
struct DescriptorNode {
    std::atomic<std::uint64_t> word{0};
    DescriptorNode* next = nullptr;
};

} // namespace detail

namespace {

using detail::DescriptorNode;

constexpr std::uint64_t number_mask = 0xffff'ffff;
constexpr std::uint64_t number_reserved = number_mask; // a node that is taken and lists no descriptor yet

constinit std::atomic<DescriptorNode*> nodes{nullptr};

// A descriptor that was opened while another thread forks might be in the child without being in the child's list. So
// who opens one counts the forks before and after, and opens another when there was one. No forking thread waits.
constinit std::atomic<std::uint64_t> forks_begun{0};
constinit std::atomic<std::uint64_t> forks_ended{0};

void before_fork() noexcept {
    // (1) seq_cst: a descriptor that is listed after this may be missing in the child, so its opener has to see this;
    // pairs with (2), (5), (6)
    forks_begun.fetch_add(1, std::memory_order_seq_cst);
}

void after_fork_in_parent() noexcept {
    // (3) seq_cst: from here on, descriptors that are opened are not in the child; pairs with (4)
    forks_ended.fetch_add(1, std::memory_order_seq_cst);
}

void after_fork_in_child() noexcept {
    // relaxed: this thread is the only one here, and fork() copied what was there before it
    for (DescriptorNode* node = nodes.load(std::memory_order_relaxed); node != nullptr; node = node->next) {
        // relaxed: as above
        const std::uint64_t word = node->word.load(std::memory_order_relaxed);
        const std::uint64_t number = word & number_mask;
        if (number != 0 && number != number_reserved) {
            close(static_cast<int>(number - 1));
        }
        // relaxed: as above
        node->word.store(word & ~number_mask, std::memory_order_relaxed);
    }
    // relaxed: as above
    forks_ended.store(forks_begun.load(std::memory_order_relaxed), std::memory_order_relaxed);
}

// When the library is loaded and not at the first use: a fork that runs meanwhile would not call handlers that are
// registered after it began.
const int atfork_error = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

DescriptorNode* reserve_node() noexcept {
    // (7) acquire: the nodes that were listed are there to look at; pairs with (8)
    for (DescriptorNode* node = nodes.load(std::memory_order_acquire); node != nullptr; node = node->next) {
        // relaxed: a look for a free node; the compare-and-swap decides
        std::uint64_t word = node->word.load(std::memory_order_relaxed);
        const std::uint64_t serial = ((word >> 32) + 1) << 32;
        // relaxed: taking a node hands nothing over
        if ((word & number_mask) == 0 &&
            node->word.compare_exchange_strong(word, serial | number_reserved, std::memory_order_relaxed,
                                               std::memory_order_relaxed)) {
            return node;
        }
    }
    auto* node = new (std::nothrow) DescriptorNode;
    if (node == nullptr) {
        return nullptr;
    }
    // relaxed: nobody else sees the node yet
    node->word.store(number_reserved, std::memory_order_relaxed);
    // relaxed: a guess; the compare-and-swap corrects it
    node->next = nodes.load(std::memory_order_relaxed);
    // (8) release: the node is complete where it is seen; pairs with (7)
    while (!nodes.compare_exchange_weak(node->next, node, std::memory_order_release, std::memory_order_relaxed)) {
    }
    return node;
}

struct flock byte_lock(short type, std::uint64_t byte) noexcept {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = static_cast<off_t>(byte);
    lock.l_len = 1;
    return lock;
}

int set_lock(int descriptor, struct flock lock) noexcept {
    int result = 0;
    do {
        result = fcntl(descriptor, F_OFD_SETLK, &lock);
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

bool is_lock_of_another(int error) noexcept {
    return error == EAGAIN || error == EACCES;
}

} // namespace

// ---- ListedDescriptor --------------------------------------------------------------------------------------

namespace detail {

ListedDescriptor open_listed(const std::function<int()>& open, const std::function<void(int)>& close) {
    DescriptorNode* node = reserve_node();
    if (node == nullptr || atfork_error != 0) {
        errno = ENOMEM;
        return {};
    }
    // relaxed: this thread wrote it, in reserve_node()
    const std::uint64_t serial = node->word.load(std::memory_order_relaxed) & ~number_mask;
    int error = 0;
    for (;;) {
        // (4) seq_cst: that all forks before have ended is looked at before the descriptor is opened; pairs with (3)
        const std::uint64_t forks = forks_ended.load(std::memory_order_seq_cst);
        // (5) seq_cst: a fork that has begun may copy the descriptor without its entry; pairs with (1)
        if (forks_begun.load(std::memory_order_seq_cst) != forks) {
            sched_yield();
            continue;
        }
        const int number = open();
        if (number < 0) {
            error = errno;
            break;
        }
        const std::uint64_t listed = serial | static_cast<std::uint64_t>(number + 1);
        // (2) seq_cst: forks that begin after this close the descriptor in the child; pairs with (1)
        node->word.store(listed, std::memory_order_seq_cst);
        // (6) seq_cst: no fork has begun, so no child has the descriptor without its entry; pairs with (1)
        if (forks_begun.load(std::memory_order_seq_cst) == forks) {
            return {number, node, listed};
        }
        // relaxed: this thread alone uses the node
        node->word.store(serial | number_reserved, std::memory_order_relaxed);
        close(number);
    }
    // relaxed: giving a node back hands nothing over
    node->word.store(serial, std::memory_order_relaxed);
    errno = error;
    return {};
}

bool ListedDescriptor::is_listed() const noexcept {
    // relaxed: only fork() and the descriptor's owner change the word while it lists this descriptor
    return node != nullptr && node->word.load(std::memory_order_relaxed) == listed;
}

bool ListedDescriptor::unlist() noexcept {
    std::uint64_t expected = listed;
    // relaxed: giving a node back hands nothing over; in a forked child it is not ours any more
    return node != nullptr && node->word.compare_exchange_strong(expected, listed & ~number_mask,
                                                                 std::memory_order_relaxed, std::memory_order_relaxed);
}

} // namespace detail

// ---- LockDescriptor ----------------------------------------------------------------------------------------

LockDescriptor LockDescriptor::open_listed(const std::string& path, int flags, mode_t mode) noexcept {
    LockDescriptor opened;
    try {
        const auto open = [&path, &flags, mode] {
            const int number = detail::open_file(path, flags, mode);
            flags &= ~O_EXCL; // where it is opened again, the file that was created is ours
            return number;
        };
        // One that a child may have never had a lock, and never will.
        const detail::ListedDescriptor listed = detail::open_listed(open, [](int number) { ::close(number); });
        if (listed.number < 0) {
            return opened;
        }
        opened.number_ = listed.number;
        opened.opener_ = getpid();
        opened.node_ = listed.node;
        opened.listed_ = listed.listed;
    } catch (const std::bad_alloc&) {
        errno = ENOMEM;
        return opened;
    }
    struct stat status {};
    if (fstat(opened.number_, &status) != 0) {
        const int error = errno;
        opened.close();
        errno = error;
        return opened;
    }
    opened.file_ = detail::id_of(status);
    return opened;
}

LockDescriptor LockDescriptor::open(const std::string& path) {
    return open_regular(path, O_RDWR);
}

LockDescriptor LockDescriptor::open_to_look(const std::string& path) {
    return open_regular(path, O_RDONLY);
}

LockDescriptor LockDescriptor::open_regular(const std::string& path, int flags) {
    LockDescriptor opened = open_listed(path, flags, 0);
    const std::string what = "cannot open " + path + " for a lock";
    if (opened.number_ < 0) {
        detail::throw_errno(errno, what);
    }
    struct stat status {};
    if (fstat(opened.number_, &status) != 0) {
        detail::throw_errno(errno, what);
    }
    if (!S_ISREG(status.st_mode)) {
        throw_error(errc::wrong_kind, what + ": it is no regular file; remove what is there under this name");
    }
    return opened;
}

LockDescriptor::LockDescriptor(LockDescriptor&& other) noexcept
    : number_(std::exchange(other.number_, -1)), opener_(other.opener_), node_(std::exchange(other.node_, nullptr)),
      listed_(other.listed_), file_(other.file_) {}

LockDescriptor& LockDescriptor::operator=(LockDescriptor&& other) noexcept {
    if (this != &other) {
        close();
        number_ = std::exchange(other.number_, -1);
        opener_ = other.opener_;
        node_ = std::exchange(other.node_, nullptr);
        listed_ = other.listed_;
        file_ = other.file_;
    }
    return *this;
}

LockDescriptor::~LockDescriptor() {
    close();
}

bool LockDescriptor::is_own() const noexcept {
    return detail::ListedDescriptor{number_, node_, listed_}.is_listed() && getpid() == opener_;
}

bool LockDescriptor::is_intact() const noexcept {
    struct stat status {};
    return is_own() && fstat(number_, &status) == 0 && detail::id_of(status) == file_;
}

void LockDescriptor::close() noexcept {
    if (node_ == nullptr) {
        return;
    }
    if (is_intact()) {
        // Before it leaves the list: a child that is forked in between has the descriptor, but no lock with it.
        struct flock all = byte_lock(F_UNLCK, 0);
        all.l_len = 0;
        static_cast<void>(set_lock(number_, all));
    }
    struct stat status {};
    const bool is_same = fstat(number_, &status) == 0 && detail::id_of(status) == file_;
    const bool was_listed = detail::ListedDescriptor{number_, node_, listed_}.unlist();
    if (was_listed && is_same) {
        ::close(number_);
    }
    number_ = -1;
    node_ = nullptr;
}

bool LockDescriptor::try_lock(std::uint64_t byte) {
    if (!is_own()) {
        return false;
    }
    const int error = set_lock(number_, byte_lock(F_WRLCK, byte));
    if (error != 0 && !is_lock_of_another(error)) {
        throw std::system_error(error, std::system_category(), "cannot lock byte " + std::to_string(byte));
    }
    return error == 0 && is_intact();
}

void LockDescriptor::unlock(std::uint64_t byte) noexcept {
    if (is_intact()) {
        static_cast<void>(set_lock(number_, byte_lock(F_UNLCK, byte)));
    }
}

bool LockDescriptor::is_locked_by_other(std::uint64_t byte) const noexcept {
    struct flock lock = byte_lock(F_WRLCK, byte);
    int result = 0;
    do {
        result = fcntl(number_, F_OFD_GETLK, &lock);
    } while (result != 0 && errno == EINTR);
    return result != 0 || lock.l_type != F_UNLCK || !is_intact();
}

// ---- LockFile ----------------------------------------------------------------------------------------------

namespace {

// The lock is not queued for: who waits looks again and again. Who looks seldom is overtaken for seconds by programs that
// join and leave all the time; 250 that look more often than this keep the processors from whom they wait for.
constexpr std::int64_t first_sleep_ns = 50'000;
constexpr std::int64_t longest_sleep_ns = 1'000'000;

// A lock file of no bytes is not finished: its creator has still to give it its owner and mode, or died before.
constexpr off_t finished_bytes = 1;

void sleep_until(std::int64_t deadline_ns) noexcept {
    timespec until{};
    until.tv_sec = static_cast<time_t>(deadline_ns / 1'000'000'000);
    until.tv_nsec = static_cast<long>(deadline_ns % 1'000'000'000);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
}

/// Whether `path` still names this file.
bool is_called(const std::string& path, const FileId& file) noexcept {
    struct stat status {};
    return lstat(path.c_str(), &status) == 0 && detail::id_of(status) == file;
}

} // namespace

LockFile LockFile::take(const std::string& path, const FileOwner& owner, DeadlineNs deadline_ns) {
    const std::string what = "cannot take the lock " + path;
    const bool may_create = owner.user == geteuid() || geteuid() == 0;
    std::int64_t sleep_ns = first_sleep_ns;
    bool was_overtaken = false;
    const auto is_over = [&] {
        const std::int64_t now_ns = monotonic_ns();
        if (now_ns >= deadline_ns) {
            return true;
        }
        sleep_until(now_ns + std::min(sleep_ns, deadline_ns - now_ns));
        sleep_ns = std::min(sleep_ns * 2, longest_sleep_ns);
        return false;
    };
    for (;;) {
        // First without O_CREAT: where /proc/sys/fs/protected_regular is set, creating what another user has made in a
        // sticky folder is refused, even to who may open it.
        LockDescriptor lock = LockDescriptor::open_listed(path, O_RDWR, 0);
        if (lock.number_ < 0 && errno == ENOENT) {
            if (!may_create) {
                throw_error(errc::not_found, what + ": it is not there, and only its owner, user " +
                                                 std::to_string(owner.user) +
                                                 ", can make it; let that user join first");
            }
            lock = LockDescriptor::open_listed(path, O_RDWR | O_CREAT | O_EXCL, 0600);
            if (lock.number_ < 0 && (errno == EEXIST || errno == ENOENT)) {
                // Once it may happen to anybody, who was stopped in between for longer than the deadline too.
                if (was_overtaken && is_over()) {
                    throw_error(errc::busy, what + ": others make and remove it all the time; try again");
                }
                was_overtaken = true;
                continue;
            }
        }
        struct stat status {};
        if (lock.number_ < 0) {
            const int error = errno;
            const bool is_unfinished = error == EACCES && lstat(path.c_str(), &status) == 0 &&
                                       S_ISREG(status.st_mode) && status.st_size < finished_bytes &&
                                       (status.st_uid == owner.user || status.st_uid == 0);
            if (is_unfinished && !is_over()) {
                continue;
            }
            detail::throw_errno(error, what);
        }
        if (fstat(lock.number_, &status) != 0) {
            detail::throw_errno(errno, what);
        }
        if (!S_ISREG(status.st_mode)) {
            throw_error(errc::wrong_kind, what + ": it is no regular file; remove what is there under this name");
        }
        const bool is_finished = status.st_size >= finished_bytes;
        if (status.st_uid != owner.user && (is_finished || status.st_uid != geteuid())) {
            throw_error(errc::no_permission, what + ": it belongs to user " + std::to_string(status.st_uid) +
                                                 " and not to " + std::to_string(owner.user) +
                                                 "; let that user, or root, remove it");
        }
        bool is_taken = false;
        while (!(is_taken = lock.try_lock(0)) && is_called(path, lock.file_)) {
            if (is_over()) {
                throw_error(errc::busy, what + ": another process has held it up to the deadline; it may be stopped "
                                               "(continue or kill it), or needs more time (try again)");
            }
        }
        if (!is_taken || !is_called(path, lock.file_)) {
            if (is_over()) {
                throw_error(errc::busy, what + ": it was replaced up to the deadline; try again");
            }
            continue;
        }
        // Under the lock; so its creator is through with it, or dead.
        if (fstat(lock.number_, &status) != 0) {
            detail::throw_errno(errno, what);
        }
        if (status.st_size >= finished_bytes && status.st_uid != owner.user) {
            continue; // finished meanwhile, and not for our owner
        }
        if (status.st_size < finished_bytes) {
            int error = detail::give_to(lock.number_, owner);
            if (error == 0 && ftruncate(lock.number_, finished_bytes) != 0) {
                error = errno;
            }
            if (error != 0) {
                unlink(path.c_str()); // nobody has held it before us, and who waits for it sees that it is gone
                detail::throw_errno(error, what + ", or give it to user " + std::to_string(owner.user) + " and group " +
                                               std::to_string(owner.group));
            }
        }
        return LockFile(std::move(lock));
    }
}

// ---- for people --------------------------------------------------------------------------------------------

std::uint64_t process_start_time(pid_t pid) noexcept {
    char path[40];
    std::snprintf(path, sizeof path, "/proc/%d/stat", static_cast<int>(pid));
    const int number = ::open(path, O_RDONLY | O_CLOEXEC);
    if (number < 0) {
        return 0;
    }
    char text[1024];
    const ssize_t count = read(number, text, sizeof text - 1);
    close(number);
    if (count <= 0) {
        return 0;
    }
    // "pid (name) state ...": the name may hold anything, blanks and brackets too, so count from the last bracket.
    const std::string_view all(text, static_cast<std::size_t>(count));
    std::size_t place = all.rfind(')');
    constexpr int blanks_to_start_time = 22 - 2;
    for (int blank = 0; blank < blanks_to_start_time && place != std::string_view::npos; ++blank) {
        place = all.find(' ', place + 1);
    }
    if (place == std::string_view::npos) {
        return 0;
    }
    text[count] = '\0';
    return std::strtoull(text + place + 1, nullptr, 10);
}

namespace {

std::uint64_t own_pid_namespace() noexcept {
    struct stat status {};
    return stat("/proc/self/ns/pid", &status) == 0 ? static_cast<std::uint64_t>(status.st_ino) : 0;
}

} // namespace

ProcessInfo self_info(std::string_view name) {
    ProcessInfo info;
    info.pid = getpid();
    info.pid_namespace = own_pid_namespace();
    info.start_time_ticks = process_start_time(info.pid);
    info.name = name.empty() ? std::string_view(program_invocation_short_name) : name;
    return info;
}

int open_pidfd(pid_t pid, std::uint64_t start_time_ticks, std::uint64_t pid_namespace) noexcept {
    if (pid <= 0) {
        return -1;
    }
    const std::uint64_t here = own_pid_namespace();
    if (pid_namespace != 0 && here != 0 && pid_namespace != here) {
        return -1;
    }
    const long number = syscall(SYS_pidfd_open, pid, 0);
    if (number < 0) {
        return -1;
    }
    // After opening: whoever has this number now is the one that the descriptor is of, or came later.
    const std::uint64_t started = start_time_ticks != 0 ? process_start_time(pid) : 0;
    if (started != 0 && started != start_time_ticks) {
        close(static_cast<int>(number));
        return -1;
    }
    return static_cast<int>(number);
}

} // namespace weir
