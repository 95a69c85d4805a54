#include "lock_holders.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
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
