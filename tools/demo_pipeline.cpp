#include "demo_pipeline.hpp"

#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <exception>
#include <random>
#include <system_error>
#include <utility>

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace weir::demo {

namespace {

int wait_for(pid_t pid) noexcept {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

/// A worker has something in hand for a moment at a time only, and there is more to see when it is killed then. Where no
/// such moment comes (tiny files), it is left running, and is killed all the same.
void stop_with_something_in_hand(const Process& worker) noexcept {
    const DeadlineNs until_ns = deadline_after(500'000'000);
    while (monotonic_ns() < until_ns) {
        if (read(worker.report->in_hand) == 0) {
            const timespec moment{0, 50'000};
            nanosleep(&moment, nullptr);
            continue;
        }
        ::kill(worker.pid, SIGSTOP);
        int status = 0;
        if (waitpid(worker.pid, &status, WUNTRACED) != worker.pid || !WIFSTOPPED(status) ||
            read(worker.report->in_hand) > 0) {
            return;
        }
        ::kill(worker.pid, SIGCONT);
    }
}

} // namespace

Signals::Signals() {
    // Who started us may have left it ignored, and then the kernel would reap our children by itself.
    std::signal(SIGCHLD, SIG_DFL);
    std::signal(SIGPIPE, SIG_IGN); // to be told of it, and clean up
    sigemptyset(&set_);
    sigaddset(&set_, SIGCHLD);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
        struct sigaction action {};
        // What is ignored (nohup, a job in the background) stays so.
        if (sigaction(number, nullptr, &action) == 0 && action.sa_handler != SIG_IGN) {
            sigaddset(&set_, number);
        }
    }
    sigprocmask(SIG_BLOCK, &set_, &before_);
}

Signals::~Signals() {
    sigprocmask(SIG_SETMASK, &before_, nullptr);
}

void Signals::restore_in_child() const noexcept {
    // A terminal's signals go to all of its processes, but the parent ends its children itself. A file that grows beyond
    // the limit is to be an error.
    for (const int number : {SIGINT, SIGHUP, SIGQUIT, SIGXFSZ}) {
        std::signal(number, SIG_IGN);
    }
    sigprocmask(SIG_SETMASK, &before_, nullptr);
}

int Signals::wait(long timeout_ns) const noexcept {
    const timespec timeout{0, timeout_ns};
    const int number = sigtimedwait(&set_, nullptr, &timeout);
    return number > 0 && number != SIGCHLD ? number : 0;
}

Pipeline::Pipeline(const Plan& plan, const std::filesystem::path& output, const Signals& signals,
                   std::optional<std::uint32_t> kill_seed)
    : plan_(plan), output_(output), signals_(signals), memory_(plan), me_(memory_.table().join()),
      pool_(memory_.pool(me_)), ports_{memory_.loaded(me_, pool_), memory_.checked(me_, pool_)} {
    processes_.reserve(process_count_max);
    for (std::size_t number = 0; number < ports_.size(); ++number) {
        held_open_[number].emplace(ports_[number]);
    }
    if (kill_seed) {
        std::mt19937 random(*kill_seed);
        const std::uint64_t half = plan.message_count / 2;
        kill_.emplace();
        kill_->seed = *kill_seed;
        kill_->victim = producer_count + random() % worker_count;
        kill_->moment = half + random() % (plan.message_count / 16 + 1);
        memory_.board().gate_limit = half + plan.message_count / 4;
    }
}

Pipeline::~Pipeline() {
    for (const Process& process : processes_) {
        if (process.state == Process::State::running) {
            ::kill(process.pid, SIGKILL);
            wait_for(process.pid);
        }
    }
}

void Pipeline::start() {
    for (std::uint32_t number = 0; number < producer_count; ++number) {
        start(Process::Role::producer, number);
    }
    for (std::uint32_t number = 0; number < worker_count; ++number) {
        start(Process::Role::worker, number);
    }
    start(Process::Role::collector, 0);
}

void Pipeline::start(Process::Role role, std::uint32_t number) {
    const bool is_producer = role == Process::Role::producer;
    const bool is_worker = role == Process::Role::worker;
    const std::string name = is_producer ? fmt::format("producer {}", number + 1)
                             : is_worker ? fmt::format("worker {}", number + 1)
                                         : "collector";
    const auto stage = is_producer ? produce : is_worker ? work : collect;
    // The parent joins for the child, so that it knows what to reap whenever the child dies.
    const Membership member = memory_.table().join();
    ProcessReport& report = memory_.board().reports[processes_.size()];
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid < 0) {
        throw std::system_error(errno, std::system_category(), "cannot start the " + name);
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(1); // the parent died before the line above
        }
        prctl(PR_SET_NAME, ("weir " + name).c_str());
        signals_.restore_in_child();
        try {
            stage({plan_, memory_, output_, kill_.has_value(), member, report, number});
        } catch (const std::exception& error) {
            give_up(report, error.what());
        }
        _exit(0);
    }
    processes_.push_back({.name = name, .role = role, .member = member, .report = &report, .pid = pid});
}

bool Pipeline::run_on() {
    constexpr long tick_ns = 10'000'000;
    ended_by_signal_ = signals_.wait(tick_ns);
    if (ended_by_signal_ != 0) {
        return false;
    }
    look_after_children();
    if (failure_.empty() && kill_ && !kill_->is_done && read(collector().report->messages) >= kill_->moment) {
        kill_a_worker();
    }
    return failure_.empty() && std::ranges::any_of(processes_, [](const Process& process) {
               return process.state == Process::State::running;
           });
}

void Pipeline::look_after_children() {
    for (Process& process : processes_) {
        if (process.state != Process::State::running || waitpid(process.pid, &process.status, WNOHANG) != process.pid) {
            continue;
        }
        if (!WIFEXITED(process.status) || WEXITSTATUS(process.status) != 0) {
            process.state = Process::State::failed;
            failure_ = why_it_failed();
            return;
        }
        // It has closed its ports and dropped its buffers: only its place in the process table is left.
        process.state = Process::State::done;
        const ReapResult result = reap(process.member, SharedBufferAllocator(pool_), ports_);
        if (result.error) {
            leftovers_.push_back(fmt::format("reaping the {}: {}", process.name, result.error.message()));
        } else if (result.freed_reference_count > 0) {
            leftovers_.push_back(fmt::format("the {} ended and still held {}", process.name,
                                             tool::counted(result.freed_reference_count, "buffer")));
        }
    }
    close_streams();
}

void Pipeline::close_streams() {
    const auto any_runs = [this](Process::Role role) {
        return std::ranges::any_of(processes_, [role](const Process& process) {
            return process.role == role && process.state == Process::State::running;
        });
    };
    if (!any_runs(Process::Role::producer)) {
        held_open_[0].reset();
    }
    if (!any_runs(Process::Role::worker)) {
        held_open_[1].reset();
    }
}

void Pipeline::kill_a_worker() {
    Process& victim = processes_[kill_->victim];
    stop_with_something_in_hand(victim);
    ::kill(victim.pid, SIGKILL);
    victim.status = wait_for(victim.pid); // the proof that it is dead
    victim.state = Process::State::killed;
    kill_->is_done = true;
    kill_->arrived_count = read(collector().report->messages);
    kill_->reaped = reap(victim.member, SharedBufferAllocator(pool_), ports_);
    if (kill_->reaped.error) {
        leftovers_.push_back(fmt::format("reaping the {}: {}", victim.name, kill_->reaped.error.message()));
    }
    start(Process::Role::worker, worker_count);
    Board& board = memory_.board();
    shared(board.gate_is_open).store(1, std::memory_order_seq_cst);
    EventCount(board.gate_event).notify();
}

std::string Pipeline::why_it_failed() const {
    // A process that says why comes before one that died without a word, and that before one that lost its neighbour.
    for (const Process& process : processes_) {
        if (process.report->failure[0] != '\0') {
            return fmt::format("{}: {}", process.name, process.report->failure);
        }
    }
    for (const Process& process : processes_) {
        if (process.state == Process::State::failed && WIFSIGNALED(process.status)) {
            const int number = WTERMSIG(process.status);
            return fmt::format("{} (process {}) was killed by signal {} ({}), and not by this demo", process.name,
                               process.pid, number, strsignal(number));
        }
    }
    for (const Process& process : processes_) {
        if (process.state == Process::State::failed) {
            return fmt::format("{} (process {}) {}", process.name, process.pid,
                               WEXITSTATUS(process.status) == neighbour_is_gone
                                   ? "found nobody at the other end of its port"
                                   : fmt::format("ended with status {}", WEXITSTATUS(process.status)));
        }
    }
    return "a process ended without a reason";
}

} // namespace weir::demo
