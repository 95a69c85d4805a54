// All members of a domain are killed, and the next one goes on with what was queued.
//
// The child joins a domain, pushes three messages, and is killed; it was the only member. Its parent joins afterwards, as a
// supervisor's next start of the program would, and finds the three messages.
#include <weir/weir.hpp>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

namespace {

using namespace std::chrono_literals;

constexpr weir::PoolOptions pool_options{.buffer_bytes = 4'096, .buffer_count = 8};
constexpr weir::PortOptions port_options{.capacity = 8};

[[noreturn]] void first_life(const std::string& name) {
    weir::Domain domain = weir::Domain::join(name);
    weir::BufferPool buffers = domain.pool("buffers", pool_options);
    weir::Producer out = domain.producer("work", port_options);
    for (int number = 0; number < 3; ++number) {
        out.push(buffers.allocate());
    }
    raise(SIGKILL);
    _exit(1);
}

int second_life(const std::string& name) {
    int taken_count = 0;
    // Both lives give the same options: whoever comes first makes the pool and the port, the other opens them.
    weir::Domain domain = weir::Domain::join(name); // reaps who died before
    weir::BufferPool buffers = domain.pool("buffers", pool_options);
    weir::Consumer in = domain.consumer("work", port_options);
    while (const weir::BufferPtr message = in.pop()) {
        ++taken_count;
    }
    if (in.stream_end() == weir::StreamEnd::died) {
        // Its next life reopens the port: wait for that, and pop again.
        const bool has_come = in.wait_for_producer(50ms);
        std::printf("%d messages of a producer that was killed; its next life has %scome\n", taken_count,
                    has_come ? "" : "not ");
    }
    std::printf("%u of 8 buffers are free\n", buffers.free_count());
    return taken_count == 3 && buffers.free_count() == 8 ? 0 : 1;
}

} // namespace

int main() try {
    const std::string name = "restart-" + std::to_string(getpid());
    const pid_t child = fork();
    if (child == 0) {
        first_life(name);
    }
    waitpid(child, nullptr, 0);
    const int result = second_life(name);
    weir::Domain::remove(name, {.lock_file = true}); // a name that is not used again
    return result;
} catch (const std::exception& error) {
    std::fprintf(stderr, "restart: %s\n", error.what());
    return 1;
}
