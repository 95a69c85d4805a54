// error.hpp (layer 1): every cause of failure, each with a value of its own.
//
// Set-up throws std::system_error with one of these values, and its what() says what to do next. The hot path never
// throws: it returns a value, and the handle's last_error() tells the cause. Failed system calls keep their errno in
// std::system_category() unless one of these values says more.
//
//     try {
//         weir::Ring ring(memory, 100);
//     } catch (const std::system_error& error) {
//         if (error.code() == weir::errc::invalid_capacity) { ... }   // capacities are powers of two
//     }
//
// anything || anything: yes.
// Progress: throwing allocates and is for set-up alone. A process that dies here leaves nothing behind.
// The values are stable: one that has been released keeps its number.
#pragma once

#include <string>
#include <system_error>

#pragma GCC visibility push(default)
namespace weir {

/// Why something failed, one value for each cause.
enum class errc {
    invalid_capacity = 1, ///< not a power of two, or out of bounds
    invalid_size,         ///< zero, too large, or the memory given is too small for it
    invalid_name,         ///< a name may have 1 to 64 of [A-Za-z0-9._-]
    misaligned,           ///< shared memory has to start on a cache line
    exists,               ///< the name is there already
    not_found,            ///< nothing has this name
    no_space,             ///< /dev/shm (or the memory limit) is full
    no_permission,        ///< the segment belongs to somebody else, or its mode forbids it
    wrong_kind,           ///< the bytes are not what they are opened as (magic)
    wrong_layout,         ///< made by a version of weir with another shared layout
    other_parameters,     ///< there already, made with other parameters
    truncated,            ///< the segment is shorter than its header says
    corrupt,              ///< shared bytes hold what no operation writes
    table_full,           ///< every slot is taken
    too_many_references,  ///< every reference word of the buffer is in use
    unknown_buffer,       ///< a message's buffer is in a pool that this handle was not given
    not_a_member,         ///< the membership has ended, or was reaped
    closed,               ///< the last consumer is gone
    timed_out,            ///< the deadline has passed
    no_buffer,            ///< an empty BufferPtr cannot be pushed
    reap_incomplete,      ///< a pool or a port of the dead process was not given to reap()
    busy,                 ///< another process has held the lock of joining and removing up to the deadline
    used_after_fork,      ///< a handle that the parent process made; a forked child joins for itself
};

/// The category of errc, called "weir".
[[nodiscard]] const std::error_category& error_category() noexcept;

[[nodiscard]] std::error_code make_error_code(errc value) noexcept;

/// Throws std::system_error; `what` says what happened and what to do.
[[noreturn]] void throw_error(errc value, const std::string& what);

} // namespace weir
#pragma GCC visibility pop

template <>
struct std::is_error_code_enum<weir::errc> : std::true_type {};
