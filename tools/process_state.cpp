#include "process_state.hpp"

#include <cstdio>

#include <fcntl.h>
#include <unistd.h>

namespace weir::tool {

std::optional<ProcessState> state_of(pid_t pid) {
    char path[40];
    std::snprintf(path, sizeof path, "/proc/%d/stat", static_cast<int>(pid));
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return {};
    }
    char bytes[1024];
    const ssize_t size = read(file, bytes, sizeof bytes);
    close(file);
    const std::string text(bytes, size > 0 ? static_cast<std::size_t>(size) : 0);
    // "pid (name) state ...": the name may hold anything, brackets too.
    const std::size_t begin = text.find('(');
    const std::size_t end = text.rfind(')');
    if (begin == std::string::npos || end == std::string::npos || end < begin) {
        return {};
    }
    ProcessState state;
    state.pid = pid;
    state.name = text.substr(begin + 1, end - begin - 1);
    unsigned long long start_time = 0;
    // The state is field 3, the number of threads field 20, and the start time field 22.
    if (std::sscanf(text.c_str() + end,
                    ") %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %u %*s %llu", &state.letter,
                    &state.thread_count, &start_time) != 3) {
        return {};
    }
    state.start_time_ticks = start_time;
    return state;
}

bool is_stopped(const ProcessInfo& process) {
    static const std::uint64_t own_namespace = self_info().pid_namespace;
    if (process.pid_namespace == 0 || process.pid_namespace != own_namespace) {
        return false;
    }
    const std::optional<ProcessState> state = state_of(process.pid);
    return state && state->start_time_ticks == process.start_time_ticks && state->is_stopped();
}

} // namespace weir::tool
