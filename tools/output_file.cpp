#include "output_file.hpp"

#include "text.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir::tool {

namespace {

[[noreturn]] void fail(const std::string& path) {
    throw std::runtime_error(fmt::format("cannot write {}: {}", printable(path), std::strerror(errno)));
}

class OutputFile {
public:
    OutputFile(const std::string& path, int flags) : path_(path), number_(open(path.c_str(), flags | O_CLOEXEC, 0666)) {
        if (number_ < 0) {
            fail(path_);
        }
    }
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;
    ~OutputFile() { close(number_); }

    void set_mode(mode_t mode) const {
        if (fchmod(number_, mode) != 0) {
            fail(path_);
        }
    }

    void write_all(std::string_view text) const {
        while (!text.empty()) {
            const ssize_t count = write(number_, text.data(), text.size());
            if (count < 0 && errno != EINTR) {
                fail(path_);
            }
            text.remove_prefix(count < 0 ? 0 : static_cast<std::size_t>(count));
        }
    }

private:
    std::string path_;
    int number_;
};

void replace_file(const std::filesystem::path& path, std::string_view text, std::optional<mode_t> mode) {
    // Hidden, and without the file's ending, by which a reader of the whole folder would take it.
    const std::filesystem::path draft =
        path.parent_path() / fmt::format(".{}.{}", path.filename().native(), static_cast<long>(getpid()));
    unlink(draft.c_str()); // of one killed in the middle of this, whose number is ours now
    try {
        const OutputFile file(draft, O_WRONLY | O_CREAT | O_EXCL);
        if (mode) {
            file.set_mode(*mode);
        }
        file.write_all(text);
        if (std::rename(draft.c_str(), path.c_str()) != 0) {
            fail(path);
        }
    } catch (...) {
        unlink(draft.c_str());
        throw;
    }
}

} // namespace

void write_output(const std::string& path, std::string_view text, std::optional<mode_t> mode) {
    if (path.empty()) {
        std::fwrite(text.data(), 1, text.size(), stdout); // main() looks whether it could be written
        return;
    }
    struct stat status {};
    const bool exists = stat(path.c_str(), &status) == 0;
    if (exists && S_ISDIR(status.st_mode)) {
        throw std::runtime_error(fmt::format("cannot write {}: it is a folder; name a file in it", printable(path)));
    }
    if (exists && !S_ISREG(status.st_mode)) {
        OutputFile(path, O_WRONLY).write_all(text);
        return;
    }
    // A link stays one.
    replace_file(exists ? std::filesystem::canonical(path) : std::filesystem::path(path), text, mode);
}

} // namespace weir::tool
