// What the scenarios share: processes under a watchdog, and how they say that something is wrong.
#pragma once

#include "../testing.hpp"

#include <cstdarg>
#include <map>

#include <sys/prctl.h>

namespace scenario {

/// Ends this process as failed, and says why.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "FAILED in process %d: ", static_cast<int>(getpid()));
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
    std::fflush(stderr);
    _exit(1);
}

/// The value of `--name value`, a number; `otherwise` where it is not given.
inline unsigned option(int argument_count, char** arguments, const char* name, unsigned otherwise) {
    for (int place = 1; place + 1 < argument_count; place += 2) {
        if (std::strcmp(arguments[place], name) == 0) {
            return static_cast<unsigned>(std::strtoul(arguments[place + 1], nullptr, 0));
        }
    }
    return otherwise;
}

/// The processes that this one has started. All die with it.
class Processes {
public:
    Processes() = default;
    Processes(const Processes&) = delete;
    Processes& operator=(const Processes&) = delete;

    template <class Body>
    pid_t start(unsigned watchdog_s, Body&& body) {
        std::fflush(nullptr);
        const pid_t parent = getpid();
        const pid_t pid = fork();
        if (pid < 0) {
            fail("fork: %s", std::strerror(errno));
        }
        if (pid == 0) {
            die_with(parent);
            alarm(watchdog_s);
            body();
            _exit(0);
        }
        return pid;
    }

    /// Waits for one; its exit status, or -1 where `killed` and it was.
    static int wait_for(pid_t pid, bool killed = false) {
        int status = 0;
        while (waitpid(pid, &status, 0) < 0) {
            if (errno != EINTR) {
                fail("waitpid: %s", std::strerror(errno));
            }
        }
        return end_of(pid, status, killed);
    }

    /// Whether one has ended, without waiting.
    static bool has_ended(pid_t pid, bool killed = false) {
        int status = 0;
        if (waitpid(pid, &status, WNOHANG) != pid) {
            return false;
        }
        static_cast<void>(end_of(pid, status, killed));
        return true;
    }

private:
    static void die_with(pid_t parent) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(1);
        }
    }

    static int end_of(pid_t pid, int status, bool killed) {
        if (WIFSIGNALED(status)) {
            if (killed && WTERMSIG(status) == SIGKILL) {
                return -1;
            }
            fail("process %d ended by signal %d%s", static_cast<int>(pid), WTERMSIG(status),
                 WTERMSIG(status) == SIGALRM ? " (the watchdog)" : "");
        }
        if (WEXITSTATUS(status) != 0) {
            fail("process %d ended with status %d", static_cast<int>(pid), WEXITSTATUS(status));
        }
        return 0;
    }
};

/// What every buffer of a message holds, all of it: who sent it, its number, and a pattern that both decide.
struct Message {
    std::uint32_t stream;
    std::uint32_t number;
    std::uint64_t pattern[7];

    [[nodiscard]] static Message of(std::uint32_t stream, std::uint32_t number) {
        Message message{stream, number, {}};
        std::uint64_t value = std::uint64_t{stream} << 32 | number;
        for (std::uint64_t& word : message.pattern) {
            value = value * 6364136223846793005U + 1442695040888963407U;
            word = value;
        }
        return message;
    }
    void write_to(const weir::BufferPtr& buffer) const { std::memcpy(buffer.bytes().data(), this, sizeof *this); }
    [[nodiscard]] static Message read_from(const std::byte* bytes) {
        Message message{};
        std::memcpy(&message, bytes, sizeof message);
        return message;
    }
    [[nodiscard]] bool is_whole() const {
        const Message right = of(stream, number);
        return std::memcmp(this, &right, sizeof right) == 0;
    }
};
static_assert(sizeof(Message) == 64);

} // namespace scenario
