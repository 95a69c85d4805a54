// What `weir doctor` makes of what it measured. Nothing here asks the system, so that the tests can make up machines.
#pragma once

#include "finding.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace weir::tool {

/// A limit that there is not, and a size that nobody has set.
inline constexpr std::uint64_t unlimited = ~std::uint64_t{0};

/// The file system of /dev/shm.
struct SharedMemory {
    bool is_tmpfs = true;
    std::uint64_t total_bytes = unlimited;
    std::uint64_t free_bytes = unlimited;
    std::uint64_t total_files = unlimited;
    std::uint64_t free_files = unlimited;
};

/// What io_uring answered; errors are errno, 0: it went well.
struct IoUring {
    int setup_error = 0;
    int worker_setup_error = 0; ///< with the flags and the size that a worker wants
    bool has_futex_wait = true;
    int enter_error = 0;
    std::optional<int> disabled = {}; ///< the sysctl kernel.io_uring_disabled, where there is one
    bool is_filtered = false;         ///< a seccomp filter is over this process
    bool is_built_in = true;          ///< this weir was built with liburing

    [[nodiscard]] bool is_usable() const noexcept {
        return is_built_in && setup_error == 0 && worker_setup_error == 0 && has_futex_wait && enter_error == 0;
    }
};

/// How much memory may be registered with an io_uring.
struct MemoryLock {
    std::uint64_t limit_bytes = unlimited;
    bool is_exempt = false; ///< more than the limit was registered
};

struct HugePages {
    std::string setting = {};         ///< of shmem_enabled: never, advise, ..; empty: the kernel has none
    std::uint64_t asked_bytes = 0;    ///< whole huge pages of a segment that was made to try; 0: not tried
    std::uint64_t obtained_bytes = 0; ///< of these
    std::string note = {};            ///< why they are not all
};

[[nodiscard]] Finding judge(const SharedMemory& measured);
[[nodiscard]] Finding judge(const IoUring& measured);
[[nodiscard]] Finding judge(const MemoryLock& measured);
[[nodiscard]] Finding judge(const HugePages& measured);
/// A system call that is there (0) or not (errno); what it is for, and from which kernel on.
[[nodiscard]] Finding judge_futex_waitv(int error, bool is_filtered);
[[nodiscard]] Finding judge_pidfd(int error, bool is_filtered);
[[nodiscard]] Finding judge_open_files(std::uint64_t limit);
[[nodiscard]] Finding judge_file_size(std::uint64_t limit_bytes);
[[nodiscard]] Finding judge_processors(unsigned count);

/// The one of several words that is in brackets, as the kernel shows settings: `always [never] deny`.
[[nodiscard]] std::string bracketed(const std::string& text);

} // namespace weir::tool
