#include "stop.hpp"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include <sys/time.h>

namespace weir::tool {

namespace {

constexpr std::array stop_signals{SIGINT, SIGTERM, SIGHUP};
constexpr suseconds_t tick_us = 5000;

volatile std::sig_atomic_t noted = 0;

/// Sends SIGALRM again and again; never, with 0.
void tick_every(suseconds_t interval_us) noexcept {
    const itimerval interval{{0, interval_us}, {0, interval_us}};
    setitimer(ITIMER_REAL, &interval, nullptr);
}

void note(int signal) {
    const int error = errno;
    noted = signal;
    tick_every(tick_us);
    errno = error;
}

void interrupt(int /*signal*/) {}

void handle(int signal, void (*handler)(int)) noexcept {
    struct sigaction action {};
    action.sa_handler = handler;
    sigemptyset(&action.sa_mask); // and no SA_RESTART: who waits is interrupted
    sigaction(signal, &action, nullptr);
}

bool is_ignored(int signal) noexcept {
    struct sigaction action {};
    return sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

void unblock(int signal) noexcept {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

} // namespace

StopSignals::StopSignals() noexcept : ignores_broken_pipes_(is_ignored(SIGPIPE)) {
    handle(SIGPIPE, SIG_IGN);
    handle(SIGALRM, interrupt);
    unblock(SIGALRM);
    for (const int signal : stop_signals) {
        if (!is_ignored(signal)) {
            handle(signal, note);
        }
    }
}

StopSignals::~StopSignals() {
    for (const int signal : stop_signals) {
        if (!is_ignored(signal)) {
            handle(signal, SIG_DFL);
        }
    }
    tick_every(0);
    handle(SIGALRM, SIG_DFL);
    handle(SIGPIPE, ignores_broken_pipes_ ? SIG_IGN : SIG_DFL);
}

bool is_stopped() noexcept {
    return noted != 0;
}

void throw_if_stopped() {
    if (noted != 0) {
        tick_every(0);
        throw Stopped{noted};
    }
}

void end_by(int signal) noexcept {
    handle(signal, SIG_DFL);
    unblock(signal);
    std::raise(signal);
    std::_Exit(128 + signal); // not reached
}

} // namespace weir::tool
