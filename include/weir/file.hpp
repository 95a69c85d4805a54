// file.hpp (layer 1): which file that is, and whose.
//
// Named shared memory is files, and so are the locks that prove who is alive. Segments and locks are opened by name, each
// with a descriptor of its own; whether both got the same file is told by its device and inode, whatever happened to the
// name in between.
//
//     if (segment.file() != lock.file()) { ... }          // somebody put another file there: open both again
//
//     weir::FileOwner shared_by_group = weir::own_files_only();
//     shared_by_group.group = camera_group;
//     shared_by_group.mode = 0660;
//
// anything || anything: yes.
// Progress: wait-free.
// If the caller dies here: nothing is left. [crash: none, changes nothing]
#pragma once

#include <cstdint>

#include <sys/types.h>
#include <unistd.h>

#pragma GCC visibility push(default)
namespace weir {

/// What tells one file from another, whatever they are called.
struct FileId {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;

    friend bool operator==(const FileId&, const FileId&) = default;
};

/// Whom a file belongs to and who else may use it, umask or not.
struct FileOwner {
    uid_t user;
    gid_t group;
    mode_t mode = 0600; ///< permission bits alone

    friend bool operator==(const FileOwner&, const FileOwner&) = default;
};

/// This process's effective user and group, and nobody else.
[[nodiscard]] inline FileOwner own_files_only() noexcept {
    return {geteuid(), getegid(), 0600};
}

} // namespace weir
#pragma GCC visibility pop
