// A pool on huge pages, where the kernel gives them, with all of its pages mapped before it is used.
#include <weir/weir.hpp>

#include <cstdio>
#include <exception>
#include <string>

#include <unistd.h>

int main() try {
    const std::string name = "huge-pages-" + std::to_string(getpid());
    bool has_buffer = false;
    {
        weir::Domain domain = weir::Domain::join(name, {.huge_pages = true, .prefault = true});
        weir::BufferPool frames = domain.pool("frames", {.buffer_bytes = 1 << 20, .buffer_count = 8});
        const std::string notes = domain.notes(); // what was asked for and not obtained
        std::printf("%s\n", notes.empty() ? "the pool is on huge pages" : notes.c_str());
        has_buffer = static_cast<bool>(frames.try_allocate());
    }
    weir::Domain::remove(name, {.lock_file = true}); // a name that is not used again
    return has_buffer ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "huge_pages: %s\n", error.what());
    return 1;
}
