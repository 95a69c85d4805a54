// Copying a file: FileSource to FileSink beside what the system's programs do, both as processes from their start to their
// end. Files have no names, so nothing is left of a benchmark that is interrupted.
#include "harness.hpp"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr std::size_t chunk_bytes = 256 * 1024;

std::size_t file_bytes() {
    return bench::scaled(1 << 30, 4 << 20);
}

[[noreturn]] void fail(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

/// A file beside this program, so where the build is, and the memory that maps it.
class File {
public:
    File() {
        const std::string directory = std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
        descriptor_ = open(directory.c_str(), O_TMPFILE | O_RDWR, 0600);
        if (descriptor_ < 0) {
            // Not every file system has files without a name.
            std::string name = directory + "/copy-XXXXXX";
            descriptor_ = mkstemp(name.data());
            if (descriptor_ < 0) {
                fail(directory.c_str());
            }
            unlink(name.c_str());
        }
        if (posix_fallocate(descriptor_, 0, static_cast<off_t>(file_bytes())) != 0) {
            close(descriptor_);
            throw std::runtime_error(directory + ": no room for a file to copy");
        }
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() { close(descriptor_); }

    /// A name by which this process and its children open it.
    [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

    /// Writes the whole file, in place, and waits until it is on its disk: then it is in the page cache, and nobody else
    /// has to write it back in a copy's time.
    void fill(const std::function<void(std::span<std::uint64_t>)>& next_words) {
        std::vector<std::uint64_t> words(chunk_bytes / sizeof(std::uint64_t));
        for (std::size_t offset = 0; offset < file_bytes(); offset += chunk_bytes) {
            next_words(words);
            if (pwrite(descriptor_, words.data(), chunk_bytes, static_cast<off_t>(offset)) !=
                static_cast<ssize_t>(chunk_bytes)) {
                fail("cannot write a file to copy");
            }
        }
        if (fdatasync(descriptor_) != 0) {
            fail("cannot write a file to copy");
        }
    }

    [[nodiscard]] bool equals(const File& other) const {
        const Mapping mine(*this), its(other);
        return std::memcmp(mine.address, its.address, file_bytes()) == 0;
    }

private:
    struct Mapping {
        explicit Mapping(const File& file) {
            bench::require(lseek(file.descriptor_, 0, SEEK_END) == static_cast<off_t>(file_bytes()),
                           "a copy has another size");
            address = mmap(nullptr, file_bytes(), PROT_READ, MAP_SHARED, file.descriptor_, 0);
            if (address == MAP_FAILED) {
                fail("cannot map a file");
            }
        }
        Mapping(const Mapping&) = delete;
        Mapping& operator=(const Mapping&) = delete;
        ~Mapping() { munmap(address, file_bytes()); }
        void* address;
    };

    int descriptor_ = -1;
};

/// How long a process takes that does `body`, from before its start until it is gone.
template <class Body>
double process_ns(Body&& body) {
    std::fflush(nullptr);
    const bench::Stopwatch stopwatch;
    const pid_t child = fork();
    bench::require(child >= 0, "cannot fork");
    if (child == 0) {
        try {
            body();
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s\n", error.what());
            _exit(1);
        }
        _exit(0);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
        bench::require(errno == EINTR, "a child is gone");
    }
    const double elapsed_ns = stopwatch.elapsed_ns();
    bench::require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a copy has failed");
    return elapsed_ns;
}

double program_ns(const std::vector<std::string>& words) {
    std::vector<char*> arguments;
    for (const std::string& word : words) {
        arguments.push_back(const_cast<char*>(word.c_str()));
    }
    arguments.push_back(nullptr);
    return process_ns([&] {
        execvp(arguments[0], arguments.data());
        fail(arguments[0]);
    });
}

/// Joining, making the pool, and all that ends with the process are part of the time; `run_ns` gets that of the copy alone.
double weir_ns(const File& from, const File& to, bool truncates, double& run_ns) {
    const bench::DomainName name;
    return process_ns([&] {
        weir::Domain domain = weir::Domain::join(name.text());
        const weir::BufferPool pool = domain.pool("chunks", {.buffer_bytes = chunk_bytes, .buffer_count = 16});
        weir::Scheduler scheduler(domain, {.name = "copy"});
        auto& source = scheduler.add<weir::FileSource>(from.path(), pool);
        auto& sink = scheduler.add<weir::FileSink>(to.path(), weir::FileSinkOptions{.truncate = truncates});
        scheduler.connect(source.out, sink.in);
        const bench::Stopwatch stopwatch;
        scheduler.run();
        run_ns = stopwatch.elapsed_ns();
    });
}

/// In place: into a file that is there with all its blocks and pages, and stays so. cp empties what it copies to, so its
/// loop of reads and writes (128 KiB each) is dd's here, which can leave that out. Emptied: cp itself, and a FileSink that
/// empties its file, too.
void measure_cached(bench::Results& results) {
    static File from, to;
    static bool is_filled = false;
    if (!is_filled) {
        std::uint64_t state = 1;
        from.fill([&state](std::span<std::uint64_t> words) {
            for (std::uint64_t& word : words) {
                state = state * 6364136223846793005U + 1442695040888963407U;
                word = state;
            }
        });
        is_filled = true;
    }
    auto* const run_ns =
        static_cast<double*>(mmap(nullptr, sizeof(double), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    if (run_ns == MAP_FAILED) {
        fail("cannot map a page");
    }
    const auto dd_ns = [&](const char* block) {
        return program_ns({"dd", "if=" + from.path(), "of=" + to.path(), block, "conv=notrunc", "status=none"});
    };
    constexpr std::array<const char*, 5> names{"dd_128k_ns", "dd_256k_ns", "weir_in_place_ns", "cp_ns", "weir_ns"};
    for (std::size_t step = 0; step < 2 * names.size(); ++step) {
        const std::size_t place = step < names.size() ? step : 2 * names.size() - 1 - step;
        to.fill([](std::span<std::uint64_t> words) { std::memset(words.data(), 0x5a, words.size_bytes()); });
        double elapsed_ns = 0;
        switch (place) {
        case 0: elapsed_ns = dd_ns("bs=128K"); break;
        case 1: elapsed_ns = dd_ns("bs=256K"); break;
        case 2: elapsed_ns = weir_ns(from, to, false, *run_ns); break;
        case 3: elapsed_ns = program_ns({"cp", "--reflink=never", from.path(), to.path()}); break;
        default: elapsed_ns = weir_ns(from, to, true, *run_ns); break;
        }
        if (place == 2 || place == 4) {
            results[std::string(place == 2 ? "run_in_place" : "run") + "_ns"] += *run_ns / 2;
        }
        results[names[place]] += elapsed_ns / 2;
        bench::require(to.equals(from), "a copy differs from what was copied");
    }
    munmap(run_ns, sizeof(double));
}

const bench::Registration cached("copy/cached", "weir_ns", measure_cached);

} // namespace
