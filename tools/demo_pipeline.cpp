#include "demo_pipeline.hpp"

#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <numeric>
#include <random>
#include <string_view>
#include <system_error>
#include <utility>

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace weir::demo {

namespace {

constexpr int cannot_be_started = 127;

int wait_for(pid_t pid) noexcept {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

constexpr std::string_view own_domain_prefix = "demo.";

/// What is left of a demo that was killed; one that still runs is left alone. Its members hold locks, which tells.
void remove_remains() {
    const std::string prefix = DomainNames(geteuid(), "x").prefix();
    const std::string begin = prefix.substr(0, prefix.rfind("x+")) + std::string(own_domain_prefix);
    for (const std::string& name : list_segments(begin)) {
        if (!name.ends_with("+lock")) {
            continue;
        }
        const std::string domain =
            std::string(own_domain_prefix) + name.substr(begin.size(), name.rfind('+') - begin.size());
        try {
            Domain::RemoveOptions at_once;
            at_once.timeout = std::chrono::nanoseconds(0);
            Domain::remove(domain, at_once);
            Segment::remove(name);
        } catch (const std::system_error&) {
            // It runs, or is not ours.
        }
    }
}

void sleep_for(long duration_ns) noexcept {
    const timespec moment{0, duration_ns};
    nanosleep(&moment, nullptr);
}

/// The message whose chunk a buffer holds, where that can be; the buffer may be another's by now.
std::optional<std::uint64_t> message_in(const Plan& plan, const std::byte* payload) {
    ChunkHeader header;
    std::memcpy(&header, payload, sizeof(header));
    if (header.part >= plan.parts.size() || header.chunk >= plan.parts[header.part].chunk_count) {
        return {};
    }
    return plan.parts[header.part].first_message + header.chunk;
}

JoinOptions parent_options() {
    JoinOptions options;
    options.process_name = "parent";
    return options;
}

} // namespace

OwnDomain::OwnDomain() : name_(fmt::format("{}{}", own_domain_prefix, getpid())) {
    remove_remains();
}

OwnDomain::~OwnDomain() {
    try {
        Domain::RemoveOptions options;
        options.force = true;
        options.lock_file = true; // the name has a pid in it, and is not used again
        Domain::remove(name_, options);
    } catch (const std::system_error& error) {
        fmt::print(stderr, "weir: {}\n", error.what());
    }
}

std::string Process::name() const {
    const std::string base = role == Role::collector ? name_of(role) : fmt::format("{} {}", name_of(role), number + 1);
    return life == 0 ? base : base + " again";
}

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
    : plan_(plan), signals_(signals), domain_(Domain::join(own_domain_.name(), parent_options())),
      board_(Board::create(plan, own_domain_.name(), output.native(), kill_seed.has_value())),
      pool_(domain_.pool(pool_name, pool_options)), ports_{domain_.port(loaded_port_name, port_options),
                                                           domain_.port(checked_port_name, port_options)},
      kill_seed_(kill_seed) {
    processes_.reserve(process_count_max);
    for (std::size_t number = 0; number < ports_.size(); ++number) {
        held_open_[number].emplace(ports_[number]);
    }
    if (kill_seed_) {
        plan_kills();
    }
}

void Pipeline::plan_kills() {
    std::mt19937 random(*kill_seed_);
    std::array<std::size_t, role_count> victims{};
    std::iota(victims.begin(), victims.end(), std::size_t{0});
    std::ranges::shuffle(victims, random);
    const std::uint64_t share = plan_.message_count / (role_count + 2);
    for (std::uint64_t place = 0; place < role_count; ++place) {
        kills_.push_back({.victim = victims[place],
                          .moment = share * (place + 1) + random() % (share / 4 + 1),
                          .limit = share * (place + 2),
                          .wants_pushed = victims[place] < producer_count && random() % 2 == 0,
                          .claimed = {},
                          .pushed = {}});
    }
    board_.state().gate_limit = kills_.front().moment;
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
        start(Role::producer, number, 0);
    }
    for (std::uint32_t number = 0; number < worker_count; ++number) {
        start(Role::worker, number, 0);
    }
    start(Role::collector, 0, 0);
}

std::size_t Pipeline::start(Role role, std::uint32_t number, std::uint32_t life) {
    const std::size_t place = processes_.size();
    const Process process{.role = role, .number = number, .life = life, .report = &board_.state().reports[place]};
    std::array<std::string, 7> arguments{"weir",
                                         stage_verb,
                                         name_of(role),
                                         std::to_string(number),
                                         std::to_string(life),
                                         std::to_string(place),
                                         own_domain_.name()};
    std::array<char*, arguments.size() + 1> pointers{};
    std::ranges::transform(arguments, pointers.begin(), [](std::string& argument) { return argument.data(); });
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid < 0) {
        throw std::system_error(errno, std::system_category(), "cannot start the " + process.name());
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(1); // the parent died before the line above
        }
        signals_.restore_in_child();
        execv("/proc/self/exe", pointers.data());
        _exit(cannot_be_started);
    }
    processes_.push_back(process);
    processes_.back().pid = pid;
    return place;
}

bool Pipeline::run_on() {
    constexpr long tick_ns = 10'000'000;
    ended_by_signal_ = signals_.wait(tick_ns);
    if (ended_by_signal_ != 0) {
        return false;
    }
    look_after_children();
    if (Kill* kill = next_kill(); failure_.empty() && kill != nullptr && is_due(*kill)) {
        carry_out(*kill);
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
        process.state = Process::State::done;
    }
    close_streams();
}

void Pipeline::close_streams() {
    const auto any_runs = [this](Role role) {
        return std::ranges::any_of(processes_, [role](const Process& process) {
            return process.role == role && process.state == Process::State::running;
        });
    };
    if (!any_runs(Role::producer)) {
        held_open_[0].reset();
    }
    if (!any_runs(Role::worker)) {
        held_open_[1].reset();
    }
}

const Process& Pipeline::collector() const noexcept {
    return *std::ranges::find(processes_.rbegin(), processes_.rend(), Role::collector, &Process::role);
}

std::uint64_t Pipeline::arrived_count() const noexcept {
    std::uint64_t count = 0;
    for (const Process& process : processes_) {
        count += process.role == Role::collector ? read(process.report->messages) : 0;
    }
    return count;
}

std::uint64_t Pipeline::arrived_bytes() const noexcept {
    std::uint64_t bytes = 0;
    for (const Process& process : processes_) {
        bytes += process.role == Role::collector ? read(process.report->bytes) : 0;
    }
    return bytes;
}

// --- Kills -----------------------------------------------------------------------------------------------------------

Kill* Pipeline::next_kill() noexcept {
    const auto next = std::ranges::find(kills_, false, &Kill::is_done);
    return next == kills_.end() ? nullptr : &*next;
}

/// All have to be there: who is killed before it has joined has nothing to lose.
bool Pipeline::is_due(const Kill& kill) const {
    return read(board_.state().sent_count) >= kill.moment &&
           std::ranges::all_of(processes_, [this](const Process& process) {
               return process.state != Process::State::running || member_of(process).has_value();
           });
}

void Pipeline::open_gate(std::uint64_t limit) noexcept {
    BoardState& board = board_.state();
    shared(board.gate_limit).store(limit, std::memory_order_seq_cst);
    EventCount(board.gate_event).notify();
}

std::optional<MemberInfo> Pipeline::member_of(const Process& process) const {
    for (const MemberInfo& member : domain_.members()) {
        if (member.process.pid == process.pid && !member.is_self) {
            return member;
        }
    }
    return {};
}

std::uint32_t Pipeline::held_count(Owner owner) const noexcept {
    std::uint32_t count = 0;
    for (std::uint32_t index = 0; index < pool_.buffer_count(); ++index) {
        const std::uint64_t word = load_reference(pool_.view().reference(index, 0));
        count += reference_state(word) == ReferenceState::held && Owner::of(word) == owner ? 1U : 0U;
    }
    return count;
}

/// What a stopped process has: the reference words say whose each buffer is. (Each buffer has one reference here, the
/// first, because nobody clones any.)
void Pipeline::take_stock(const Process& victim, Owner owner, Kill& kill) const {
    kill.held_count = 0;
    kill.claimed.clear();
    kill.pushed.clear();
    for (std::uint32_t index = 0; index < pool_.buffer_count(); ++index) {
        const std::uint64_t& word = pool_.view().reference(index, 0);
        const std::uint64_t seen = load_reference(word);
        if (is_free(seen) || Owner::of(seen) != owner) {
            continue;
        }
        const bool is_held = reference_state(seen) == ReferenceState::held;
        kill.held_count += is_held ? 1U : 0U;
        const std::optional<std::uint64_t> message = message_in(plan_, pool_.view().payload(index));
        if (message && victim.role != Role::producer && load_reference(word) == seen) {
            (is_held ? kill.claimed : kill.pushed).push_back(*message);
        }
    }
    std::ranges::sort(kill.claimed);
}

/// Whether a producer is between its push and writing down that it has pushed, as far as can be seen.
bool Pipeline::has_just_pushed(const Process& victim, Owner owner) const {
    const std::uint64_t pushed_count = read(board_.state().pushed_counts[victim.number]);
    for (std::uint32_t index = 0; index < pool_.buffer_count(); ++index) {
        const std::uint64_t& word = pool_.view().reference(index, 0);
        const std::uint64_t seen = load_reference(word);
        if (reference_state(seen) == ReferenceState::queued && Owner::of(seen) == owner) {
            const std::optional<std::uint64_t> message = message_in(plan_, pool_.view().payload(index));
            if (message && load_reference(word) == seen) {
                const Part& part = plan_.part_of(*message);
                if (part.first_sequence + *message - part.first_message == pushed_count) {
                    return true;
                }
            }
        }
    }
    return false;
}

/// Waits for a moment that is worth a kill: a process has something in hand for a moment at a time only. Where no such
/// moment comes (tiny files), it is killed all the same. It is stopped first, and looked at in peace: nobody takes a
/// stopped process for dead. False: it ended by itself.
bool Pipeline::stop_at_its_moment(const Process& victim, Kill& kill) {
    constexpr std::int64_t feed_interval_ns = 500'000;
    constexpr std::int64_t patience_ns = 40'000'000;
    const std::optional<MemberInfo> member = member_of(victim);
    const Owner owner = member ? Owner(member->slot, member->incarnation) : Owner();
    const std::uint64_t& written_down = board_.state().pushed_counts[kill.wants_pushed ? victim.number : 0];
    std::int64_t fed_ns = monotonic_ns();
    std::uint64_t limit = kill.moment;
    for (;;) {
        const std::int64_t now_ns = monotonic_ns();
        if (now_ns - fed_ns >= feed_interval_ns && limit < kill.limit) {
            // Who waits at the gate has nothing in hand, so a few more are let through.
            limit = std::min(kill.limit, limit + std::uint64_t{2} * producer_count);
            open_gate(limit);
            fed_ns = now_ns;
        }
        const bool is_last = limit == kill.limit && now_ns - fed_ns >= patience_ns;
        const bool wants_pushed = kill.wants_pushed && limit - kill.moment <= (kill.limit - kill.moment) * 3 / 4;
        const std::uint64_t written_before = read(written_down);
        const auto is_it = [&] { return wants_pushed ? has_just_pushed(victim, owner) : held_count(owner) > 0; };
        if (!is_last && !is_it()) {
            if (!wants_pushed) { // that moment is too short to sleep meanwhile
                sleep_for(50'000);
            }
            continue;
        }
        ::kill(victim.pid, SIGSTOP);
        siginfo_t info{};
        while (waitid(P_PID, static_cast<id_t>(victim.pid), &info, WSTOPPED | WEXITED | WNOWAIT) != 0 &&
               errno == EINTR) {
        }
        if (info.si_code != CLD_STOPPED) {
            return false;
        }
        // Meanwhile the message may have been claimed; its producer is still there as long as it has not written it down.
        const bool is_still_it =
            wants_pushed ? read(written_down) == written_before && held_count(owner) == 0 : is_it();
        if (is_last || is_still_it) {
            take_stock(victim, owner, kill);
            return true;
        }
        ::kill(victim.pid, SIGCONT);
    }
}

void Pipeline::carry_out(Kill& kill) {
    const Process victim = processes_[kill.victim];
    if (!stop_at_its_moment(victim, kill)) {
        return; // the next look after the children finds out why
    }
    ::kill(victim.pid, SIGKILL);
    processes_[kill.victim].status = wait_for(victim.pid);
    processes_[kill.victim].state = Process::State::killed;
    kill.is_done = true;
    kill.arrived_count = arrived_count();
    // Any member that waits would do the same a little later.
    const ReapReport reaped = domain_.reap();
    if (reaped.error) {
        leftovers_.push_back(fmt::format("reaping the {}: {} {}", victim.name(), reaped.error.message(), reaped.note));
    }
    kill.successor = start(victim.role, victim.number, victim.life + 1);
    const Kill* next = next_kill();
    open_gate(next == nullptr ? gate_open : std::max(next->moment, read(board_.state().gate_limit)));
}

std::string Pipeline::why_it_failed() const {
    // A process that says why comes before one that died without a word, and that before one that lost its neighbour.
    for (const Process& process : processes_) {
        if (process.report->failure[0] != '\0') {
            return fmt::format("{}: {}", process.name(), process.report->failure);
        }
    }
    for (const Process& process : processes_) {
        if (process.state == Process::State::failed && WIFSIGNALED(process.status)) {
            const int number = WTERMSIG(process.status);
            return fmt::format("{} (process {}) was killed by signal {} ({}), and not by this demo", process.name(),
                               process.pid, number, strsignal(number));
        }
    }
    for (const Process& process : processes_) {
        if (process.state == Process::State::failed) {
            return fmt::format("{} (process {}) {}", process.name(), process.pid,
                               WEXITSTATUS(process.status) == cannot_be_started
                                   ? "could not be started: is there no /proc?"
                                   : fmt::format("ended with status {}", WEXITSTATUS(process.status)));
        }
    }
    return "a process ended without a reason";
}

} // namespace weir::demo
