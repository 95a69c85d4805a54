#include "demo_output.hpp"

#include "demo_plan.hpp"
#include "text.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include <sys/statvfs.h>
#include <unistd.h>

namespace weir::demo {

namespace fs = std::filesystem;

namespace {

fs::path make_temporary() {
    const char* parent = std::getenv("TMPDIR");
    std::string name = fs::path(parent != nullptr && *parent != '\0' ? parent : "/tmp") / "weir-demo-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) {
        throw UsageError(
            fmt::format("cannot make a temporary folder {}: {}; set TMPDIR to a folder that you can write to",
                        tool::printable(name), std::strerror(errno)));
    }
    return name;
}

fs::path make_kept(const std::string& name) {
    std::error_code error;
    fs::create_directories(name, error);
    const bool is_empty = !error && fs::is_empty(name, error);
    if (error || !fs::is_directory(name) || access(name.c_str(), W_OK | X_OK) != 0) {
        throw UsageError(fmt::format("--keep {}: cannot write there ({}); name another folder", tool::printable(name),
                                     error ? error.message() : std::strerror(errno)));
    }
    if (!is_empty) {
        throw UsageError(
            fmt::format("--keep {}: there is something in it; name a new or an empty folder", tool::printable(name)));
    }
    return name;
}

} // namespace

OutputFolder::OutputFolder(const std::string& keep)
    : path_(keep.empty() ? make_temporary() : make_kept(keep)), is_temporary_(keep.empty()) {}

OutputFolder::~OutputFolder() {
    if (is_temporary_) {
        std::error_code error;
        fs::remove_all(path_, error);
    }
}

void OutputFolder::require_room(std::uint64_t bytes) const {
    struct statvfs status {};
    if (statvfs(path_.c_str(), &status) != 0) {
        return;
    }
    const std::uint64_t room = std::uint64_t{status.f_bavail} * status.f_frsize;
    if (room < bytes) {
        throw UsageError(fmt::format("the copies need {}, and {} has {} left; {}, or stream less with --bytes-max",
                                     tool::sized(bytes), tool::printable(path_.native()), tool::sized(room),
                                     is_temporary_ ? "set TMPDIR to a folder with more room" : "name another folder"));
    }
}

} // namespace weir::demo
