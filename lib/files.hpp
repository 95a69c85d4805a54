// What segment.cpp and process.cpp share: descriptors, and errno as one of our errors.
#pragma once

#include <weir/error.hpp>
#include <weir/file.hpp>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir::detail {

class Descriptor {
public:
    explicit Descriptor(int number) noexcept : number_(number) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (number_ >= 0) {
            close(number_);
        }
    }
    [[nodiscard]] int number() const noexcept { return number_; }

private:
    int number_;
};

[[noreturn]] inline void throw_errno(int error, const std::string& what) {
    switch (error) {
    case EEXIST: throw_error(errc::exists, what + ": remove it, or open it instead");
    case ENOENT: throw_error(errc::not_found, what + ": nobody has made it yet");
    case EACCES:
    case EPERM: throw_error(errc::no_permission, what + ": it belongs to another user, or its mode forbids it");
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ENOMEM: throw_error(errc::no_space, what + ": free some of /dev/shm, or ask for less");
    case ELOOP:
    case EISDIR:
    case ENXIO:
    case ENODEV: throw_error(errc::wrong_kind, what + ": it is no regular file; remove what is there under this name");
    default: throw std::system_error(error, std::system_category(), what);
    }
}

/// open() for files that anybody may have put there: follows no link, waits for no FIFO's other end, and never gives one
/// of the standard streams' numbers, or what the program prints would land in shared memory. -1 and errno on failure.
[[nodiscard]] inline int open_file(const std::string& path, int flags, mode_t mode = 0) noexcept {
    const int number = ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, mode);
    if (number < 0 || number > STDERR_FILENO) {
        return number;
    }
    const int above = fcntl(number, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    const int error = errno;
    close(number);
    errno = error;
    return above;
}

/// A text from shared memory, up to its zero, without what would confuse a terminal.
[[nodiscard]] inline std::string printable(const char* text, std::size_t bytes_max) {
    std::string result(text, strnlen(text, bytes_max));
    for (char& letter : result) {
        letter = letter < ' ' || letter > '~' ? '?' : letter;
    }
    return result;
}

[[nodiscard]] inline FileId id_of(const struct stat& status) noexcept {
    return {static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino)};
}

/// Gives a file that this process has just made to `owner`, whatever the umask is. 0, or errno.
[[nodiscard]] inline int give_to(int descriptor, const FileOwner& owner) noexcept {
    struct stat status {};
    if (fstat(descriptor, &status) != 0) {
        return errno;
    }
    if ((status.st_uid != owner.user || status.st_gid != owner.group) &&
        fchown(descriptor, owner.user, owner.group) != 0) {
        return errno;
    }
    return fchmod(descriptor, owner.mode & 0777) != 0 ? errno : 0;
}

} // namespace weir::detail
