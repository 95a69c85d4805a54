#include "lock_holders.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>
#include <system_error>

#include <sys/sysmacros.h>

namespace weir::tool {

namespace {

namespace fs = std::filesystem;

bool holds(const fs::path& descriptor, const FileId& file, std::uint64_t byte) {
    std::ifstream lines(descriptor);
    for (std::string line; std::getline(lines, line);) {
        const std::optional<ShownLock> lock = parsed_lock(line);
        if (lock && lock->inode == file.inode && lock->device_major == major(file.device) &&
            lock->device_minor == minor(file.device) && lock->first_byte <= byte && byte <= lock->last_byte) {
            return true;
        }
    }
    return false;
}

} // namespace

std::optional<ProcessState> state_of(pid_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    const std::string text(std::istreambuf_iterator<char>(file), {});
    // "pid (name) state ...": the name may hold anything, brackets too.
    const std::size_t begin = text.find('(');
    const std::size_t end = text.rfind(')');
    if (begin == std::string::npos || end == std::string::npos || end < begin) {
        return {};
    }
    ProcessState state;
    state.pid = pid;
    state.name = text.substr(begin + 1, end - begin - 1);
    std::istringstream fields(text.substr(end + 1));
    fields >> state.letter;
    std::string skipped;
    for (int field = 4; field < 20; ++field) {
        fields >> skipped;
    }
    fields >> state.thread_count >> skipped >> state.start_time_ticks;
    return state;
}

LockHolders holders_of_lock(const FileId& file, std::uint64_t byte) {
    LockHolders found;
    std::error_code error;
    for (const fs::directory_entry& process : fs::directory_iterator("/proc", error)) {
        const std::string name = process.path().filename().string();
        pid_t pid = 0;
        if (std::from_chars(name.data(), name.data() + name.size(), pid).ptr != name.data() + name.size()) {
            continue;
        }
        std::error_code refusal;
        fs::directory_iterator descriptors(process.path() / "fdinfo", refusal);
        if (refusal == std::errc::permission_denied) {
            ++found.hidden_count;
        }
        for (; !refusal && descriptors != fs::directory_iterator(); descriptors.increment(refusal)) {
            if (holds(descriptors->path(), file, byte)) {
                if (const std::optional<ProcessState> state = state_of(pid)) {
                    found.processes.push_back(*state);
                }
                break;
            }
        }
    }
    return found;
}

std::optional<ShownLock> parsed_lock(const std::string& line) {
    ShownLock lock;
    unsigned long long inode = 0;
    unsigned long long first = 0;
    char last[24] = {};
    // lock: 1: OFDLCK ADVISORY  WRITE -1 00:17:3 5 5
    if (std::sscanf(line.c_str(), "lock: %*d: OFDLCK %*s %*s %*d %x:%x:%llu %llu %23s", &lock.device_major,
                    &lock.device_minor, &inode, &first, last) != 5) {
        return {};
    }
    lock.inode = inode;
    lock.first_byte = first;
    lock.last_byte = std::numeric_limits<std::uint64_t>::max(); // EOF
    std::from_chars(std::begin(last), std::end(last), lock.last_byte);
    return lock;
}

} // namespace weir::tool
