#include "sleeper.hpp"

#include <string>
#include <system_error>

namespace weir {

std::string_view to_string(WaitPath path) noexcept {
    switch (path) {
    case WaitPath::io_uring: return "io_uring";
    case WaitPath::futex_waitv: return "futex_waitv";
    case WaitPath::recheck: return "recheck";
    case WaitPath::automatic: break;
    }
    return "automatic";
}

namespace detail {

bool is_available(WaitPath path) noexcept {
    switch (path) {
    case WaitPath::io_uring: return is_io_uring_available();
    case WaitPath::futex_waitv: return is_futex_waitv_available();
    case WaitPath::recheck:
    case WaitPath::automatic: break;
    }
    return true;
}

std::unique_ptr<Sleeper> make_sleeper(SleeperClient& client, SchedulerCounters& counters,
                                      const SleeperOptions& options) {
    try {
        return options.path == WaitPath::io_uring ? make_io_uring_sleeper(client, counters, options)
                                                  : make_futex_sleeper(client, counters, options);
    } catch (const std::system_error& error) {
        throw std::system_error(error.code(), "wait path " + std::string(to_string(options.path)) +
                                                  " is not to be had here; take another by SchedulerOptions::wait_path "
                                                  "or the environment variable WEIR_WAIT_PATH: " +
                                                  error.what());
    }
}

#if !defined(WEIR_HAS_LIBURING)
bool is_io_uring_available() noexcept {
    return false;
}

std::unique_ptr<Sleeper> make_io_uring_sleeper(SleeperClient&, SchedulerCounters&, const SleeperOptions&) {
    throw std::system_error(std::make_error_code(std::errc::function_not_supported),
                            "this weir was built without liburing");
}
#endif

} // namespace detail

} // namespace weir
