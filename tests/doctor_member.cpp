// A member as `weir doctor` finds them: what its test starts, and kills.
//
//     doctor_member DOMAIN             joins, makes a pool and a port, says "ready", and waits
//     doctor_member DOMAIN raw_clone   the same, with a child that no fork handler has seen; says "child PID" first
//     doctor_member DOMAIN lost_lock   the same, after it has closed descriptors that are not its own
//     doctor_member DOMAIN hold        joins nothing, but holds the lock of joining
#include <weir/domain.hpp>
#include <weir/process.hpp>

#include <csignal>
#include <cstdio>
#include <string_view>

#include <sys/syscall.h>
#include <unistd.h>

namespace {

[[noreturn]] void wait_for_the_kill() {
    alarm(200);
    for (;;) {
        pause();
    }
}

void say(const char* what) {
    std::printf("%s\n", what);
    std::fflush(stdout);
}

} // namespace

int main(int argument_count, char** arguments) {
    const std::string_view name = arguments[1];
    const std::string_view mode = argument_count > 2 ? arguments[2] : "";
    if (mode == "hold") {
        const weir::LockFile lock = weir::LockFile::take(weir::segment_path(weir::DomainNames(geteuid(), name).lock()),
                                                         weir::own_files_only(), weir::deadline_after(60'000'000'000));
        say("ready");
        wait_for_the_kill();
    }
    weir::Domain domain = weir::Domain::join(name);
    const weir::BufferPool frames = domain.pool("frames", {.buffer_bytes = 64, .buffer_count = 16});
    const weir::Port raw = domain.port("raw", {.capacity = 8});
    if (mode == "raw_clone") {
        const long child = syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr);
        if (child == 0) {
            wait_for_the_kill();
        }
        std::printf("child %ld\n", child);
    } else if (mode == "lost_lock") {
        for (int descriptor = STDERR_FILENO + 1; descriptor < 100; ++descriptor) {
            close(descriptor);
        }
    }
    say("ready");
    wait_for_the_kill();
}
