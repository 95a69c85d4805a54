#include "domain_steps.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" const char crash_operation_exit[];

namespace crash {

namespace {

constexpr unsigned watched_slot_count = 16; // a case has fewer members
constexpr int watchdog_ticks_max = 60;      // of a second, which the engine's timer makes

// Calls that change nothing for others, and whose number differs from run to run: the heap's, and looks.
bool counts(long number) {
    constexpr std::array uncounted{SYS_brk,      SYS_mmap,          SYS_munmap,         SYS_mremap, SYS_madvise,
                                   SYS_mprotect, SYS_clock_gettime, SYS_getdents64,     SYS_getpid, SYS_sched_yield,
                                   SYS_futex,    SYS_getrandom,     SYS_clock_nanosleep};
    return std::ranges::find(uncounted, number) == uncounted.end();
}

/// The locked bytes of a file, one digit each.
std::string locks_of(const std::string& path, unsigned count) {
    std::string locks;
    for (unsigned byte = 0; byte < count; ++byte) {
        locks += is_locked(path, byte) ? '1' : '0';
    }
    return locks;
}

std::string where(const Place& place) {
    return std::to_string(place.calls) + " calls, " + std::to_string(place.changes) + " changes and " +
           std::to_string(place.steps) + " steps";
}

} // namespace

bool is_locked(const std::string& path, unsigned byte) {
    const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (descriptor < 0) {
        return false;
    }
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    const bool locked = fcntl(descriptor, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
    close(descriptor);
    return locked;
}

// ---- Visible --------------------------------------------------------------------------------------------

Visible::Visible(const weir::DomainNames& names) : names_(names) {
    look();
}

void Visible::map(const std::string& name) {
    struct stat status {};
    if (stat(weir::segment_path(name).c_str(), &status) != 0 || mapped_.contains(status.st_ino)) {
        return;
    }
    weir::SegmentExpectation expected;
    expected.access = weir::SegmentAccess::read_only;
    expected.kind = std::nullopt;
    Mapped mapped{weir::Segment::open(name, expected), {}};
    const auto watch = [&mapped](const void* begin, std::size_t bytes) {
        const auto* first = static_cast<const std::byte*>(begin);
        mapped.spans.emplace_back(first, std::vector<std::byte>(first, first + bytes));
    };
    switch (mapped.segment.kind()) {
    case weir::SegmentKind::registry: {
        // most of a registry are records of slots that nobody takes here
        const auto* state = reinterpret_cast<const weir::RegistryState*>(mapped.segment.bytes().data());
        watch(state, offsetof(weir::RegistryState, processes) + watched_slot_count * sizeof(std::uint64_t));
        watch(state->records, watched_slot_count * sizeof(weir::MemberRecord));
        watch(state->pools, watched_slot_count * sizeof(std::uint64_t));
        watch(state->ports, watched_slot_count * sizeof(std::uint64_t));
        registries_.insert(status.st_ino);
        break;
    }
    case weir::SegmentKind::pool_payload: break; // no operation here writes messages
    default: watch(mapped.segment.bytes().data(), mapped.segment.bytes().size());
    }
    mapped_.emplace(status.st_ino, std::move(mapped));
}

void Visible::map_listed() {
    for (const std::uint64_t inode : registries_) {
        const std::span<std::byte> bytes = mapped_.at(inode).segment.bytes();
        if (reinterpret_cast<const weir::RegistryState*>(bytes.data())->id == 0) {
            continue; // no registry yet, though it should be: who judges will say so
        }
        const weir::Registry registry(bytes);
        const auto map_all = [&](const weir::Directory& directory, weir::SegmentKind kind) {
            for (unsigned place = 0; place < directory.size() && directory.entry(place) != 0; ++place) {
                const std::string name =
                    names_.segment(registry.id(), weir::SegmentKey::of(directory.entry(place)), kind);
                map(name);
            }
        };
        map_all(registry.pools(), weir::SegmentKind::pool_control);
        map_all(registry.ports(), weir::SegmentKind::port);
    }
}

std::string Visible::describe() const {
    std::string text;
    for (const std::string& name : weir::list_segments(names_.prefix())) {
        struct stat status {};
        if (stat(weir::segment_path(name).c_str(), &status) == 0) {
            text += name + " " + std::to_string(status.st_ino) + " " + std::to_string(status.st_size) + " " +
                    std::to_string(status.st_blocks) + " " + std::to_string(status.st_mode) + " " +
                    std::to_string(status.st_uid) + ":" + std::to_string(status.st_gid) + "\n";
        }
    }
    return text + locks_of(weir::segment_path(names_.lock()), 1) +
           locks_of(weir::segment_path(names_.registry()), watched_slot_count);
}

bool Visible::look() {
    const std::size_t mapped_count = mapped_.size();
    map(names_.registry());
    map_listed();
    std::string described = describe();
    const bool changed = described != described_ || mapped_.size() != mapped_count;
    described_ = std::move(described);
    return look_at_bytes() || changed;
}

bool Visible::look_at_bytes() {
    bool changed = false;
    bool entered = false;
    for (auto& [inode, mapped] : mapped_) {
        for (auto& [begin, last] : mapped.spans) {
            if (std::memcmp(begin, last.data(), last.size()) != 0) {
                std::memcpy(last.data(), begin, last.size());
                changed = true;
                entered = entered || registries_.contains(inode);
            }
        }
    }
    if (entered) {
        map_listed(); // an entry makes more bytes visible
    }
    return changed;
}

// ---- record and reach -----------------------------------------------------------------------------------

namespace {

user_regs_struct registers_of(const Child& child) {
    user_regs_struct registers{};
    if (ptrace(PTRACE_GETREGS, child.pid(), nullptr, &registers) != 0) {
        throw std::system_error(errno, std::generic_category(), "PTRACE_GETREGS");
    }
    return registers;
}

class Instructions {
public:
    bool is_system_call(const Child& child, std::uintptr_t pc) {
        const auto [found, is_new] = known_.try_emplace(pc, false);
        if (is_new) {
            const long code = ptrace(PTRACE_PEEKTEXT, child.pid(), pc, nullptr);
            found->second = (code & 0xffff) == 0x050f;
        }
        return found->second;
    }

private:
    std::unordered_map<std::uintptr_t, bool> known_;
};

// Whether the kernel's page may be here: near the stack, at the top. Saves the engine's closer look at most steps.
bool may_be_kernel_page(std::uintptr_t pc) {
    return pc >> 34 == 0x1fff;
}

// A child that is stepped; its registers are read once a step.
class Walk {
public:
    explicit Walk(Child& child) : child_(child) { look(); }

    [[nodiscard]] std::uintptr_t pc() const { return registers_.rip; }
    [[nodiscard]] bool is_at_end() const {
        return child_.stop() != Stop::stepped || pc() == reinterpret_cast<std::uintptr_t>(crash_operation_exit);
    }
    /// The number of the system call that is the next instruction, or -1.
    [[nodiscard]] long next_call() {
        return instructions_.is_system_call(child_, pc()) ? static_cast<long>(registers_.rax) : -1;
    }
    /// One instruction, or one call into the kernel's page.
    void step() {
        child_.step();
        look();
        if (child_.stop() == Stop::stepped && may_be_kernel_page(pc()) && child_.leave_kernel_page()) {
            look();
        }
    }

private:
    void look() {
        if (child_.stop() == Stop::stepped) {
            registers_ = registers_of(child_);
        }
    }

    Child& child_;
    Instructions instructions_;
    user_regs_struct registers_{};
};

// Resumes the child up to its next system call's begin or end. Whether it got there.
bool run_to_call(const Child& child) {
    if (ptrace(PTRACE_SYSCALL, child.pid(), nullptr, nullptr) != 0) {
        throw std::system_error(errno, std::generic_category(), "PTRACE_SYSCALL");
    }
    int ticks = 0;
    int status = 0;
    while (waitpid(child.pid(), &status, __WALL) != child.pid()) {
        if (errno != EINTR || ++ticks == watchdog_ticks_max) {
            return false;
        }
    }
    return WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80);
}

} // namespace

Pass record(Child& child, Visible& seen, const OnCall& on_call) {
    Pass pass;
    Walk walk(child);
    pass.classes.push_back({});
    pass.causes.emplace_back("before the operation");
    pass.lengths.push_back(0);
    std::vector<std::uintptr_t> writers; // of the classes that an instruction made
    std::vector<std::size_t> written;
    Place at;
    while (!walk.is_at_end()) {
        const std::uintptr_t pc = walk.pc();
        const long number = walk.next_call();
        walk.step();
        ++pass.steps;
        ++pass.lengths.back();
        bool changed = false;
        if (number >= 0 && counts(number)) {
            pass.calls.push_back(number);
            pass.lengths.push_back(0);
            ++at.calls;
            at.changes = 0;
            if (on_call) {
                on_call();
            }
            changed = seen.look();
        } else {
            changed = seen.look_at_bytes();
            at.changes += changed ? 1 : 0;
        }
        if (changed) {
            pass.classes.push_back(at);
            pass.causes.push_back("system call " + std::to_string(number));
            if (number < 0) {
                writers.push_back(pc);
                written.push_back(pass.causes.size() - 1);
            }
        }
        if (pass.steps == steps_limit_default) {
            pass.error = "the operation needs more steps than are allowed";
            return pass;
        }
    }
    if (child.stop() != Stop::stepped) {
        pass.error = "recording: after " + std::to_string(pass.steps) + " steps the child " + name_of(child.stop());
        return pass;
    }
    const std::vector<std::string> names = symbolise(writers);
    for (std::size_t i = 0; i < names.size(); ++i) {
        pass.causes[written[i]] = names[i];
    }
    return pass;
}

std::string reach(Child& child, const Pass& pass, const Place& place, const weir::DomainNames& names,
                  const OnCall& on_call) {
    if (child.stop() != Stop::stepped) {
        return std::string("the child did not start: ") + name_of(child.stop());
    }
    ptrace(PTRACE_SETOPTIONS, child.pid(), nullptr, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD);
    for (std::uint32_t call = 0; call < place.calls;) {
        if (!run_to_call(child)) {
            return "diverged: it did not get to system call " + std::to_string(call);
        }
        const long number = static_cast<long>(registers_of(child).orig_rax);
        if (!run_to_call(child)) {
            return "diverged: it did not come back from system call " + std::to_string(call);
        }
        if (counts(number)) {
            if (number != pass.calls[call]) {
                return "diverged: system call " + std::to_string(call) + " is number " + std::to_string(number) +
                       ", was " + std::to_string(pass.calls[call]);
            }
            ++call;
            if (on_call) {
                on_call();
            }
        }
    }
    if (place.changes == 0 && place.steps == 0) {
        return {};
    }
    Visible seen(names);
    Walk walk(child);
    // as many steps more as differ by what is printed into names
    constexpr std::uint32_t slack = 5'000;
    const std::uint32_t limit = pass.lengths[place.calls] + slack;
    std::uint32_t steps = 0;
    for (std::uint32_t changes = 0; changes < place.changes; ++steps) {
        if (walk.is_at_end() || steps > limit) {
            return "diverged: there is no such change after " + where(place);
        }
        if (const long number = walk.next_call(); number >= 0 && counts(number)) {
            return "diverged: a system call comes before the change, after " + where(place);
        }
        walk.step();
        changes += seen.look_at_bytes() ? 1U : 0U;
    }
    // Where the way is a few steps shorter this time, it stands before the next system call, or at the end.
    for (std::uint32_t step = 0; step < place.steps && !walk.is_at_end(); ++step) {
        if (const long number = walk.next_call(); number >= 0 && counts(number)) {
            break;
        }
        walk.step();
    }
    return child.stop() == Stop::stepped ? "" : std::string("on its way the child ") + name_of(child.stop());
}

std::string advance(Child& child, std::uint32_t calls, std::uint32_t steps) {
    ptrace(PTRACE_SETOPTIONS, child.pid(), nullptr, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD);
    const auto is_over = [&child] { return child.mailbox().phase >= phase::returned; };
    for (std::uint32_t call = 0; call < calls;) {
        if (!run_to_call(child)) {
            return is_over() ? "" : "it did not get to its next system call";
        }
        const long number = static_cast<long>(registers_of(child).orig_rax);
        if (!run_to_call(child)) {
            return is_over() ? "" : "it did not come back from a system call";
        }
        call += counts(number) ? 1U : 0U;
    }
    Walk walk(child);
    for (std::uint32_t step = 0; step < steps && !walk.is_at_end(); ++step) {
        walk.step();
    }
    return child.stop() == Stop::stepped ? "" : std::string("on its way the child ") + name_of(child.stop());
}

std::vector<Place> random_places(const Pass& pass, std::uint32_t count, std::uint64_t seed) {
    Random random(seed);
    std::vector<Place> places;
    for (std::uint32_t i = 0; i < count; ++i) {
        std::uint64_t step = random.below(std::uint64_t{pass.steps} + 1);
        std::uint32_t calls = 0;
        while (calls + 1 < pass.lengths.size() && step >= pass.lengths[calls]) {
            step -= pass.lengths[calls];
            ++calls;
        }
        places.push_back({calls, 0, static_cast<std::uint32_t>(step)});
    }
    return places;
}

} // namespace crash
