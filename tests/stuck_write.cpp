// Loaded into the demo's programs by LD_PRELOAD: its first collector gets stuck in its first write, until it is killed.
//
//     WEIR_TEST_STUCK=none|half|whole    how much of that write is in the file by then
//     WEIR_TEST_STUCK_LOG=FILE           gets a line: where the write began, how many bytes it had, and the file's name
//
// The demo kills its collector when it has claimed something, wherever that happens to be. So it is killed here.
#undef _FILE_OFFSET_BITS // which makes one name of the two functions below
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

namespace {

bool is_to_be_stuck = false;

std::string_view variable(const char* name) noexcept {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

// glibc hands a program's arguments to its constructors: weir demo-stage ROLE NUMBER LIFE PLACE DOMAIN.
[[gnu::constructor]] void look_at_arguments(int count, char** arguments) {
    is_to_be_stuck = count > 4 && std::string_view(arguments[1]) == "demo-stage" &&
                     std::string_view(arguments[2]) == "collector" && std::string_view(arguments[4]) == "0";
}

void note(int descriptor, std::size_t bytes, off_t offset) noexcept {
    char link[64];
    std::snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    char path[4096];
    const ssize_t length = readlink(link, path, sizeof path);
    std::FILE* log = std::fopen(std::getenv("WEIR_TEST_STUCK_LOG"), "w");
    if (log == nullptr || length < 0) {
        std::abort();
    }
    std::fprintf(log, "%lld %zu %.*s\n", static_cast<long long>(offset), bytes, static_cast<int>(length), path);
    std::fclose(log);
}

ssize_t write_or_get_stuck(int descriptor, const void* data, std::size_t bytes, off_t offset) noexcept {
    if (!is_to_be_stuck) {
        return syscall(SYS_pwrite64, descriptor, data, bytes, offset);
    }
    const std::string_view how = variable("WEIR_TEST_STUCK");
    const std::size_t written = how == "whole" ? bytes : how == "half" ? bytes / 2 : 0;
    if (syscall(SYS_pwrite64, descriptor, data, written, offset) != static_cast<ssize_t>(written)) {
        std::abort();
    }
    note(descriptor, bytes, offset);
    for (;;) {
        pause();
    }
}

} // namespace

extern "C" {

[[gnu::visibility("default")]] ssize_t pwrite(int descriptor, const void* data, std::size_t bytes, off_t offset) {
    return write_or_get_stuck(descriptor, data, bytes, offset);
}

[[gnu::visibility("default")]] ssize_t pwrite64(int descriptor, const void* data, std::size_t bytes, off_t offset) {
    return write_or_get_stuck(descriptor, data, bytes, offset);
}

} // extern "C"
