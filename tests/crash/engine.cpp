#include "engine.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <set>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <system_error>
#include <unistd.h>
#include <unordered_map>
#include <utility>

#ifndef __x86_64__
#error "the engine single-steps x86-64 processes; its meson.build leaves it out elsewhere"
#endif

// crash_stepped_call(call, argument, phase): the operation between two breakpoint instructions. In assembly,
// so that the steps counted are the call, the operation and its return, whatever the compiler does around it.
extern "C" void crash_stepped_call(void (*call)(void*), void* argument, std::uint32_t* phase);
extern "C" const char crash_operation_entry[];
extern "C" const char crash_operation_exit[];
extern "C" const char crash_operation_marked[];

asm(R"(
    .text
    .globl crash_stepped_call
    .type crash_stepped_call, @function
crash_stepped_call:
    pushq %rbx
    movq %rdx, %rbx
    movq %rdi, %rax
    movq %rsi, %rdi
    movl $1, (%rbx)
    int3
    .globl crash_operation_entry
crash_operation_entry:
    call *%rax
    .globl crash_operation_exit
crash_operation_exit:
    movl $2, (%rbx)
    .globl crash_operation_marked
crash_operation_marked:
    int3
    popq %rbx
    ret
    .size crash_stepped_call, . - crash_stepped_call
)");

namespace crash {
namespace {

int watchdog_ticks_max = 60;        // of a second each, without any progress
constexpr long patience_us = 3'000; // between two looks at whether a child sleeps

// What a trap costs, in arbitrary units: a breakpoint that is run to, and a single step.
constexpr std::int64_t breakpoint_cost = 3;
constexpr std::int64_t step_cost = 2;

[[noreturn]] void die(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

void on_tick(int) {}

void set_tick(long microseconds) {
    itimerval timer{};
    timer.it_interval.tv_sec = microseconds / 1'000'000;
    timer.it_interval.tv_usec = microseconds % 1'000'000;
    timer.it_value = timer.it_interval;
    setitimer(ITIMER_REAL, &timer, nullptr);
}

// A tick a second interrupts every wait, so that a child that does nothing is noticed. Timers are not
// inherited: each process that waits for children starts its own.
void ensure_ticks() {
    static pid_t owner = 0;
    if (owner == getpid()) {
        return;
    }
    owner = getpid();
    struct sigaction action {};
    action.sa_handler = on_tick; // no SA_RESTART: waits return EINTR
    sigaction(SIGALRM, &action, nullptr);
    set_tick(1'000'000);
}

// In a new child: it dies with its parent, however that ends.
void tie_to_parent(pid_t parent) {
    signal(SIGALRM, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(125);
    }
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none); // a death that is wanted needs no core file
}

// Whether the process sleeps inside a system call.
bool sleeps(pid_t pid) {
    char path[64];
    char text[512];
    std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return false;
    }
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) {
        return false;
    }
    text[length] = 0;
    const char* name_end = std::strrchr(text, ')');
    if (name_end == nullptr || name_end[1] == 0 || name_end[2] != 'S') {
        return false;
    }
    std::snprintf(path, sizeof path, "/proc/%d/syscall", pid);
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return true; // a kernel without this file: the state has to do
    }
    length = read(file, text, sizeof text - 1);
    close(file);
    return length > 0 && text[0] >= '0' && text[0] <= '9';
}

// Where the vDSO lies, in this process and in its children.
std::pair<std::uintptr_t, std::uintptr_t> kernel_page() {
    static const std::pair<std::uintptr_t, std::uintptr_t> found = [] {
        std::pair<std::uintptr_t, std::uintptr_t> range{0, 0};
        std::FILE* maps = std::fopen("/proc/self/maps", "r");
        char line[512];
        while (maps != nullptr && std::fgets(line, sizeof line, maps) != nullptr) {
            if (std::strstr(line, "[vdso]") != nullptr) {
                std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &range.first, &range.second);
            }
        }
        if (maps != nullptr) {
            std::fclose(maps);
        }
        return range;
    }();
    return found;
}

// waitpid under the watchdog. 0: timed out; -2: `patient` and the process sleeps.
pid_t wait_for(pid_t pid, int& status, bool patient) {
    ensure_ticks();
    long ticks = 0;
    int asleep = 0;
    if (patient) {
        set_tick(patience_us);
    }
    const long ticks_max = patient ? watchdog_ticks_max * 1'000'000L / patience_us : watchdog_ticks_max;
    pid_t result = 0;
    for (;;) {
        result = waitpid(pid, &status, __WALL);
        if (result != -1 || errno != EINTR) {
            break;
        }
        asleep = patient && sleeps(pid) ? asleep + 1 : 0;
        if (asleep == 2) { // seen twice in a row: not on its way in or out
            result = -2;
            break;
        }
        if (++ticks == ticks_max) {
            result = 0;
            break;
        }
    }
    if (patient) {
        set_tick(1'000'000);
    }
    return result;
}

std::string describe_exit(int status) {
    char text[96];
    if (WIFSIGNALED(status)) {
        std::snprintf(text, sizeof text, "died of signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    } else {
        std::snprintf(text, sizeof text, "exited with status %d", WEXITSTATUS(status));
    }
    return text;
}

// A child that ran its whole part leaves with this status; an exit() in what it calls has another.
constexpr int finished_status = 0;

} // namespace

void leave_child(Mailbox& mailbox) {
    std::atomic_ref(mailbox.phase).store(phase::finished, std::memory_order_release);
    std::fflush(nullptr);
    _exit(finished_status);
}

namespace {

// Leaves some blocks of each small size where the next allocations find them: the steps of an operation that
// allocates a little do not depend on what the heap looked like in the process that was forked.
void settle_heap() {
    constexpr std::size_t block_count = 3;
    void* blocks[64][block_count];
    for (std::size_t size = 0; size < 64; size++) {
        for (void*& block : blocks[size]) {
            block = std::malloc((size + 1) * 16);
        }
    }
    for (auto& of_a_size : blocks) {
        for (void* block : of_a_size) {
            std::free(block);
        }
    }
}

} // namespace

void set_watchdog(int seconds) {
    watchdog_ticks_max = seconds;
}

const char* name_of(Stop stop) {
    switch (stop) {
    case Stop::stepped: return "stands inside the operation";
    case Stop::returned: return "stands behind the operation";
    case Stop::blocked: return "sleeps in a system call";
    case Stop::exited: return "exited";
    case Stop::crashed: return "crashed";
    case Stop::timed_out: return "made no progress (watchdog)";
    case Stop::step_limit: return "needed more steps than allowed";
    }
    return "?";
}

// --------------------------------------------------------------------------------------------------------

Region::Region(std::size_t size) : size_((size + 4095) & ~std::size_t{4095}) {
    void* address = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) {
        die("mmap of shared memory");
    }
    data_ = static_cast<std::byte*>(address);
}

Region::~Region() {
    munmap(data_, size_);
}

void Region::make_own() {
    if (mmap(data_, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
        die("mmap of a worker's own shared memory");
    }
}

void Region::clear() {
    if (madvise(data_, size_, MADV_REMOVE) != 0) {
        std::memset(data_, 0, size_);
    }
}

std::uint64_t hash_of(const Watched& watched) {
    // FNV-1a over words; the rest by bytes. It tells states apart, nothing more.
    std::uint64_t hash = 14695981039346656037u;
    for (const Span& span : watched) {
        const auto* bytes = static_cast<const unsigned char*>(span.begin);
        std::size_t i = 0;
        for (; i + 8 <= span.size; i += 8) {
            std::uint64_t word;
            std::memcpy(&word, bytes + i, 8);
            hash = (hash ^ word) * 1099511628211u;
            hash ^= hash >> 29;
        }
        for (; i < span.size; i++) {
            hash = (hash ^ bytes[i]) * 1099511628211u;
        }
    }
    return hash;
}

void Mailbox::fail(const char* format, ...) {
    failed++;
    const std::size_t used = strnlen(findings, sizeof findings);
    if (used + 2 >= sizeof findings) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    const int written = std::vsnprintf(findings + used, sizeof findings - used - 1, format, arguments);
    va_end(arguments);
    if (written > 0) {
        const std::size_t end = std::min(used + static_cast<std::size_t>(written), sizeof findings - 2);
        findings[end] = '\n';
        findings[end + 1] = 0;
    }
}

// --------------------------------------------------------------------------------------------------------

Child Child::start(const Task& task, Mailbox& mailbox) {
    std::memset(static_cast<void*>(&mailbox), 0, sizeof mailbox);
    ensure_ticks();
    std::fflush(nullptr);
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid < 0) {
        die("fork");
    }
    if (pid == 0) {
        tie_to_parent(parent);
        if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) {
            mailbox.fail("PTRACE_TRACEME: %s", std::strerror(errno));
            _exit(124);
        }
        try {
            if (task.prepare) {
                task.prepare(mailbox);
            }
            settle_heap();
            struct Call {
                const std::function<void(Mailbox&)>& operation;
                Mailbox& mailbox;
            } call{task.operation, mailbox};
            crash_stepped_call(
                [](void* argument) {
                    Call& inner = *static_cast<Call*>(argument);
                    inner.operation(inner.mailbox);
                },
                &call, &mailbox.phase);
            if (task.afterwards) {
                task.afterwards(mailbox);
            }
        } catch (const std::exception& error) {
            mailbox.fail("exception: %s", error.what());
        }
        leave_child(mailbox);
    }
    Child child;
    child.pid_ = pid;
    child.mailbox_ = &mailbox;
    if (child.wait_stop(false) == Stop::stepped) {
        ptrace(PTRACE_SETOPTIONS, pid, nullptr, PTRACE_O_EXITKILL);
    } else {
        mailbox.fail("the child did not reach its operation: %s", name_of(child.stop_));
    }
    return child;
}

Child::~Child() {
    kill();
}

Child::Child(Child&& other) noexcept {
    *this = std::move(other);
}

Child& Child::operator=(Child&& other) noexcept {
    if (this != &other) {
        kill();
        pid_ = std::exchange(other.pid_, -1);
        mailbox_ = other.mailbox_;
        stop_ = other.stop_;
        signal_ = other.signal_;
        breakpoint_ = other.breakpoint_;
        whole_ = other.whole_;
    }
    return *this;
}

void Child::kill() {
    if (pid_ <= 0) {
        return;
    }
    ::kill(pid_, SIGKILL);
    int status = 0;
    // waits without a limit: the kernel lets go of a killed process, and what follows relies on that it has
    while (waitpid(pid_, &status, __WALL) == pid_ ? WIFSTOPPED(status) : errno == EINTR) {
    }
    pid_ = -1;
}

std::uintptr_t Child::pc() const {
    errno = 0;
    const long value = ptrace(PTRACE_PEEKUSER, pid_, offsetof(user, regs.rip), nullptr);
    if (value == -1 && errno != 0) {
        die("PTRACE_PEEKUSER");
    }
    return static_cast<std::uintptr_t>(value);
}

Stop Child::wait_stop(bool patient) {
    int status = 0;
    for (;;) {
        const pid_t result = wait_for(pid_, status, patient);
        if (result == -2) {
            return stop_ = Stop::blocked;
        }
        if (result == 0) {
            return stop_ = Stop::timed_out;
        }
        if (result < 0) {
            die("waitpid");
        }
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            pid_ = -1;
            signal_ = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
            const bool whole =
                WIFEXITED(status) && WEXITSTATUS(status) == finished_status && mailbox_->phase == phase::finished;
            return stop_ = whole ? Stop::exited : Stop::crashed;
        }
        const int signal = WSTOPSIG(status);
        if (signal == SIGTRAP) {
            if (mailbox_->phase < phase::returned) {
                return stop_ = Stop::stepped;
            }
            return stop_ = Stop::returned;
        }
        if (signal == SIGSTOP || signal == SIGCONT || signal == SIGCHLD || signal == SIGWINCH) {
            ptrace(PTRACE_CONT, pid_, nullptr, nullptr); // none of the child's doing
            continue;
        }
        signal_ = signal;
        stop_ = Stop::crashed;
        return stop_;
    }
}

Stop Child::step(bool patient) {
    if (ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr) != 0) {
        die("PTRACE_SINGLESTEP");
    }
    return wait_stop(patient);
}

bool Child::leave_kernel_page() {
    const auto [begin, end] = kernel_page();
    const std::uintptr_t at = pc();
    if (at < begin || at >= end) {
        return false;
    }
    // it was just called: what it returns to lies on top of the stack
    const long stack = ptrace(PTRACE_PEEKUSER, pid_, offsetof(user, regs.rsp), nullptr);
    const long back = ptrace(PTRACE_PEEKDATA, pid_, stack, nullptr);
    run_to(static_cast<std::uintptr_t>(back), 1);
    return true;
}

void Child::clear_breakpoint() {
    if (breakpoint_ && pid_ > 0) {
        ptrace(PTRACE_POKEUSER, pid_, offsetof(user, u_debugreg[7]), 0);
    }
    breakpoint_ = false;
}

Stop Child::run_to(std::uintptr_t address, std::uint32_t arrivals, bool patient) {
    if (ptrace(PTRACE_POKEUSER, pid_, offsetof(user, u_debugreg[0]), address) != 0 ||
        ptrace(PTRACE_POKEUSER, pid_, offsetof(user, u_debugreg[7]), 1) != 0) {
        // no debug registers here: single steps, slower
        while (arrivals > 0) {
            if (step(patient) != Stop::stepped) {
                return stop_;
            }
            arrivals -= pc() == address ? 1u : 0u;
        }
        return stop_;
    }
    breakpoint_ = true;
    for (; arrivals > 0; arrivals--) {
        if (ptrace(PTRACE_CONT, pid_, nullptr, nullptr) != 0) {
            die("PTRACE_CONT");
        }
        if (wait_stop(patient) != Stop::stepped) {
            if (stop_ == Stop::blocked) {
                stop_ = Stop::crashed; // reach() runs to nothing behind a sleep
            }
            return stop_;
        }
    }
    clear_breakpoint();
    return stop_;
}

Stop Child::run_to_access(const std::vector<const std::uint64_t*>& words, std::size_t& which) {
    const auto debug_register = [](std::size_t number) {
        return offsetof(user, u_debugreg) + number * sizeof(user::u_debugreg[0]);
    };
    std::uintptr_t control = 0;
    for (std::size_t i = 0; i < words.size() && i < 4; ++i) {
        if (ptrace(PTRACE_POKEUSER, pid_, debug_register(i), words[i]) != 0) {
            die("PTRACE_POKEUSER of a debug register");
        }
        control |= std::uintptr_t{1} << 2 * i;             // on, for this thread
        control |= std::uintptr_t{0b1011} << (16 + 4 * i); // 8 bytes, reads and writes
    }
    if (ptrace(PTRACE_POKEUSER, pid_, debug_register(7), control) != 0) {
        die("PTRACE_POKEUSER of the debug control register");
    }
    breakpoint_ = true;
    if (ptrace(PTRACE_CONT, pid_, nullptr, nullptr) != 0) {
        die("PTRACE_CONT");
    }
    wait_stop(false);
    if (stop_ == Stop::stepped) {
        const long status = ptrace(PTRACE_PEEKUSER, pid_, debug_register(6), nullptr);
        ptrace(PTRACE_POKEUSER, pid_, debug_register(6), 0);
        which = 0;
        while (which < words.size() && (status >> which & 1) == 0) {
            ++which;
        }
    }
    clear_breakpoint();
    return stop_;
}

Stop Child::run_to_return(bool patient) {
    clear_breakpoint();
    // a child that was stepped over the store behind its operation still stands before the breakpoint
    // instruction
    const auto marked = reinterpret_cast<std::uintptr_t>(crash_operation_marked);
    while (stop_ == Stop::stepped || (stop_ == Stop::returned && pc() == marked)) {
        if (ptrace(PTRACE_CONT, pid_, nullptr, nullptr) != 0) {
            die("PTRACE_CONT");
        }
        wait_stop(patient);
    }
    return stop_;
}

Stop Child::finish(bool patient) {
    clear_breakpoint();
    if (stop_ == Stop::blocked) {
        wait_stop(patient);
    }
    while (stop_ == Stop::stepped || stop_ == Stop::returned) {
        if (ptrace(PTRACE_CONT, pid_, nullptr, nullptr) != 0) {
            die("PTRACE_CONT");
        }
        wait_stop(patient);
    }
    if (stop_ == Stop::crashed) {
        mailbox_->fail("the child died of signal %d (%s)", signal_, strsignal(signal_));
    } else if (stop_ == Stop::timed_out) {
        mailbox_->fail("the child made no progress (watchdog)");
    }
    return stop_;
}

Stop Child::resume_wait() {
    return wait_stop(false);
}

bool run_apart(Mailbox& mailbox, const std::function<void(Mailbox&)>& work) {
    std::memset(static_cast<void*>(&mailbox), 0, sizeof mailbox);
    ensure_ticks();
    std::fflush(nullptr);
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid < 0) {
        die("fork");
    }
    if (pid == 0) {
        tie_to_parent(parent);
        try {
            work(mailbox);
        } catch (const std::exception& error) {
            mailbox.fail("exception: %s", error.what());
        }
        leave_child(mailbox);
    }
    int status = 0;
    const pid_t result = wait_for(pid, status, false);
    if (result == 0) {
        mailbox.fail("a survivor hangs (watchdog)");
        ::kill(pid, SIGKILL);
        while (waitpid(pid, &status, __WALL) == -1 && errno == EINTR) {
        }
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != finished_status || mailbox.phase != phase::finished) {
        mailbox.fail("a survivor %s", describe_exit(status).c_str());
    }
    return mailbox.failed == 0;
}

std::uint64_t count_steps(const Task& task, Mailbox& mailbox, std::uint64_t limit) {
    Child child = Child::start(task, mailbox);
    std::uint64_t steps = 0;
    while (child.stop() == Stop::stepped && steps <= limit) {
        child.step();
        steps++;
    }
    if (child.stop() == Stop::returned) {
        child.finish();
        return steps - 1; // the last one was the store behind the call
    }
    if (child.stop() == Stop::stepped) {
        mailbox.fail("needs more than %llu instructions", static_cast<unsigned long long>(limit));
    } else if (child.stop() == Stop::crashed) {
        mailbox.fail("died of signal %d (%s)", child.signal(), strsignal(child.signal()));
    } else {
        mailbox.fail("%s", name_of(child.stop()));
    }
    return steps;
}

std::uint64_t count_accesses(const Task& task, Mailbox& mailbox, const std::vector<const std::uint64_t*>& words,
                             std::uint64_t limit) {
    Child child = Child::start(task, mailbox);
    std::uint64_t accesses = 0;
    std::size_t which = 0;
    while (child.stop() == Stop::stepped && accesses <= limit) {
        child.run_to_access(words, which);
        accesses += child.stop() == Stop::stepped ? 1U : 0U;
    }
    if (child.stop() == Stop::returned) {
        child.finish();
    } else if (child.stop() == Stop::stepped) {
        mailbox.fail("looks at the ring's cells more than %llu times", static_cast<unsigned long long>(limit));
    } else {
        mailbox.fail("%s", name_of(child.stop()));
    }
    return accesses;
}

// --------------------------------------------------------------------------------------------------------

namespace {

// Keeps the last seen bytes, to tell whether they changed.
class Comparison {
public:
    explicit Comparison(const Watched& watched) : watched_(watched) {
        std::size_t size = 0;
        for (const Span& span : watched) {
            size += span.size;
        }
        last_.resize(size);
        changed();
    }

    bool changed() {
        bool any = false;
        std::size_t at = 0;
        for (const Span& span : watched_) {
            if (std::memcmp(last_.data() + at, span.begin, span.size) != 0) {
                std::memcpy(last_.data() + at, span.begin, span.size);
                any = true;
            }
            at += span.size;
        }
        return any;
    }

private:
    const Watched& watched_;
    std::vector<unsigned char> last_;
};

// What an instruction can do to what others see; from its first bytes, in doubt the more.
enum class Effect {
    none,        // writes registers, or the stack by push and call
    frame,       // writes memory at an offset from rbp
    memory,      // may write anywhere
    system_call, // the kernel may do anything
};

Effect effect_of(const unsigned char* code) {
    bool base_extended = false; // by REX.B: the base is r8 to r15
    const auto is_prefix = [](unsigned char byte) {
        return byte == 0x66 || byte == 0xf2 || byte == 0xf3 || byte == 0x64 || byte == 0x65;
    };
    while (is_prefix(*code)) {
        ++code;
    }
    if ((*code & 0xf0) == 0x40) {
        base_extended = (*code & 1) != 0;
        ++code;
    }
    const unsigned char opcode = *code++;
    if (opcode == 0x0f) {
        const unsigned char second = *code;
        if (second == 0x05) {
            return Effect::system_call;
        }
        const bool reads = (second & 0xf0) == 0x80 || (second & 0xf0) == 0x40 || second == 0xb6 || second == 0xb7 ||
                           second == 0xbe || second == 0xbf || second == 0xaf || second == 0x1e || second == 0x1f ||
                           second == 0x18 || second == 0x0d;
        return reads ? Effect::none : Effect::memory;
    }
    // jumps, calls, push and pop of registers, comparisons, loads, immediate values into registers
    if ((opcode & 0xf0) == 0x70 || (opcode & 0xf0) == 0x50 || (opcode & 0xf0) == 0xb0 ||
        (opcode >= 0x38 && opcode <= 0x3d) || opcode == 0xeb || opcode == 0xe9 || opcode == 0xe8 || opcode == 0xc3 ||
        opcode == 0xc9 || opcode == 0x90 || opcode == 0x98 || opcode == 0x99 || opcode == 0x63 || opcode == 0x68 ||
        opcode == 0x6a || opcode == 0x84 || opcode == 0x85 || opcode == 0x8a || opcode == 0x8b || opcode == 0x8d ||
        opcode == 0xa8 || opcode == 0xa9) {
        return Effect::none;
    }
    const unsigned char operand = *code; // ModRM
    if (opcode < 0x38) {
        const unsigned kind = opcode & 7; // add, or, adc, sbb, and, sub, xor: 2 to 5 write a register
        if (kind >= 2 && kind <= 5) {
            return Effect::none;
        }
    }
    const bool has_operand = (opcode < 0x38 && (opcode & 7) < 2) || (opcode >= 0x80 && opcode <= 0x83) ||
                             opcode == 0x88 || opcode == 0x89 || opcode == 0xc0 || opcode == 0xc1 || opcode == 0xc6 ||
                             opcode == 0xc7 || (opcode >= 0xd0 && opcode <= 0xd3) || opcode == 0xf6 || opcode == 0xf7 ||
                             opcode == 0xfe || opcode == 0xff;
    if (!has_operand) {
        return Effect::memory;
    }
    const unsigned extension = operand >> 3 & 7;
    if (operand >> 6 == 3 || (opcode >= 0x80 && opcode <= 0x83 && extension == 7) ||
        (opcode == 0xff && (extension == 2 || extension == 4 || extension == 6))) {
        return Effect::none; // a register; a comparison; an indirect call, jump or push
    }
    if (!base_extended && (operand & 7) == 5 && operand >> 6 != 0) {
        return Effect::frame;
    }
    return Effect::memory;
}

// Remembers the effect of each instruction of a child that was met.
class Effects {
public:
    Effect of(pid_t pid, std::uintptr_t pc) {
        const auto [place, is_new] = known_.try_emplace(pc, Effect::memory);
        if (is_new) {
            unsigned char code[16] = {};
            for (std::size_t i = 0; i < sizeof code; i += sizeof(long)) {
                errno = 0;
                const long word = ptrace(PTRACE_PEEKTEXT, pid, pc + i, nullptr);
                if (word == -1 && errno != 0) {
                    break;
                }
                std::memcpy(code + i, &word, sizeof word);
            }
            place->second = effect_of(code);
        }
        return place->second;
    }

private:
    std::unordered_map<std::uintptr_t, Effect> known_;
};

user_regs_struct registers_of(pid_t pid) {
    user_regs_struct registers{};
    if (ptrace(PTRACE_GETREGS, pid, nullptr, &registers) != 0) {
        die("PTRACE_GETREGS");
    }
    return registers;
}

// Whether an address near rbp lies in the stack, which nobody else sees.
bool frame_is_private(const user_regs_struct& registers) {
    constexpr std::uint64_t stack_reach = 1 << 20;
    return registers.rbp >= registers.rsp && registers.rbp - registers.rsp < stack_reach;
}

// Runs the hook for a sleeping child, and waits until its system call is over.
Stop wake(Child& child, const Hooks& hooks) {
    if (!hooks.on_blocked) {
        return Stop::blocked;
    }
    hooks.on_blocked();
    return child.resume_wait();
}

void plan_approaches(Trace& trace, std::uint32_t interrupt_step) {
    // An instruction that follows itself is a repeated string instruction, where breakpoints and steps count
    // differently; and where the child already stands, a breakpoint counts once more. Neither is run to.
    // Behind a sleep nothing is run to either, so that every sleep is met by a step.
    std::unordered_map<std::uintptr_t, std::uint32_t> arrivals;
    std::set<std::uintptr_t> barred{trace.pc[0]};
    for (std::size_t s = 1; s < trace.pc.size(); s++) {
        if (trace.pc[s] == trace.pc[s - 1]) {
            barred.insert(trace.pc[s]);
        }
    }
    std::uint32_t limit = trace.sleeps.empty() ? trace.steps() : trace.sleeps.front();
    if (interrupt_step != 0) {
        limit = std::min(limit, interrupt_step - 1);
    }
    trace.approach.assign(trace.pc.size(), Trace::Approach{0, 0});
    std::int64_t best_cost = 0;
    Trace::Approach best{0, 0};
    for (std::uint32_t s = 1; s < trace.pc.size(); s++) {
        const std::uint32_t arrived = ++arrivals[trace.pc[s]];
        const std::int64_t cost = breakpoint_cost * arrived - step_cost * static_cast<std::int64_t>(s);
        if (cost < best_cost && s <= limit && !barred.contains(trace.pc[s])) {
            best_cost = cost;
            best = {s, arrived};
        }
        trace.approach[s] = best;
    }
}

} // namespace

std::size_t Trace::class_of(std::uint32_t step) const {
    const auto after = std::upper_bound(classes.begin(), classes.end(), step,
                                        [](std::uint32_t value, const StepClass& one) { return value < one.first; });
    return static_cast<std::size_t>(after - classes.begin()) - 1;
}

Trace record(const Task& task, Mailbox& mailbox, const Watched& watched, const Hooks& hooks,
             std::uint32_t steps_limit) {
    Trace trace;
    Child child = Child::start(task, mailbox);
    if (child.stop() != Stop::stepped) {
        trace.error = std::string("recording: ") + mailbox.findings;
        return trace;
    }
    const auto exit = reinterpret_cast<std::uintptr_t>(crash_operation_exit);
    Comparison comparison(watched);
    Effects effects;
    const auto [kernel_begin, kernel_end] = kernel_page();
    user_regs_struct registers = registers_of(child.pid());
    trace.pc.push_back(registers.rip);
    trace.classes.push_back({0, 0, hash_of(watched)});
    while (trace.pc.back() != exit) {
        const std::uint32_t before = trace.steps();
        if (before == steps_limit) {
            trace.error = "recording: " + std::string(name_of(Stop::step_limit));
            return trace;
        }
        const std::uintptr_t pc = trace.pc.back();
        const Effect effect = effects.of(child.pid(), pc);
        const bool is_system_call = effect == Effect::system_call;
        const long number = is_system_call ? static_cast<long>(registers.rax) : -1;
        bool may_change =
            effect == Effect::memory || is_system_call || (effect == Effect::frame && !frame_is_private(registers));
        child.step(is_system_call);
        if (child.stop() == Stop::blocked) {
            trace.sleeps.push_back(before);
            wake(child, hooks);
        }
        if (child.stop() != Stop::stepped) {
            trace.error = "recording: after " + std::to_string(before) + " steps the child " + name_of(child.stop()) +
                          (child.stop() == Stop::crashed ? " of signal " + std::to_string(child.signal()) : "");
            return trace;
        }
        registers = registers_of(child.pid());
        if (registers.rip >= kernel_begin && registers.rip < kernel_end) {
            child.leave_kernel_page();
            trace.clocks.push_back(before);
            registers = registers_of(child.pid());
            may_change = true;
        }
        trace.pc.push_back(registers.rip);
        const std::uint32_t now = trace.steps();
        if (now == hooks.interrupt_step) {
            hooks.on_interrupt();
            may_change = true;
        }
        const bool bytes = may_change && comparison.changed();
        if (bytes || is_system_call) {
            trace.classes.back().last = before;
            trace.classes.push_back({now, now, bytes ? hash_of(watched) : trace.classes.back().hash});
            trace.changes.push_back({now, pc, bytes, number});
            if (hooks.until && hooks.until()) {
                trace.ended = true;
                plan_approaches(trace, hooks.interrupt_step);
                return trace;
            }
        }
    }
    if (comparison.changed()) {
        trace.error = "recording: shared bytes changed, and no instruction that changes any was noticed";
        return trace;
    }
    trace.classes.back().last = trace.steps();
    child.finish(true);
    if (child.stop() != Stop::exited || mailbox.failed != 0) {
        trace.error = std::string("the undisturbed run failed: ") + name_of(child.stop()) + "\n" + mailbox.findings;
    }
    plan_approaches(trace, hooks.interrupt_step);
    return trace;
}

std::string reach(Child& child, const Trace& trace, Point point, const Watched& watched, const Hooks& hooks) {
    if (child.stop() != Stop::stepped) {
        return std::string("the child did not start: ") + name_of(child.stop());
    }
    std::uint32_t at = 0;
    const Trace::Approach approach = trace.approach[point.step];
    if (approach.step != 0) {
        if (child.run_to(trace.pc[approach.step], approach.arrivals) != Stop::stepped) {
            return std::string("on the way to its step the child ") + name_of(child.stop());
        }
        at = approach.step;
    }
    const auto sleeps_at = [&](std::uint32_t step) {
        return std::binary_search(trace.sleeps.begin(), trace.sleeps.end(), step);
    };
    for (; at < point.step; at++) {
        const bool patient = sleeps_at(at);
        child.step(patient);
        if (child.stop() == Stop::blocked) {
            wake(child, hooks);
        }
        if (child.stop() != Stop::stepped) {
            return "after " + std::to_string(at) + " steps the child " + name_of(child.stop());
        }
        if (std::binary_search(trace.clocks.begin(), trace.clocks.end(), at)) {
            child.leave_kernel_page();
        }
        if (at + 1 == hooks.interrupt_step) {
            hooks.on_interrupt();
        }
    }
    if (child.pc() != trace.pc[point.step]) {
        return "diverged: after " + std::to_string(point.step) + " steps another instruction is next than was recorded";
    }
    if (!watched.empty() && hash_of(watched) != trace.classes[trace.class_of(point.step)].hash) {
        return "diverged: after " + std::to_string(point.step) +
               " steps the shared bytes differ from the recorded ones";
    }
    if (point.asleep && child.step(true) != Stop::blocked) {
        return "diverged: the child did not fall asleep after " + std::to_string(point.step) + " steps";
    }
    return {};
}

std::int64_t step_until(Child& child, const std::function<bool()>& there, std::uint32_t steps_limit) {
    for (std::uint32_t steps = 0; steps < steps_limit; steps++) {
        if (there()) {
            return steps;
        }
        if (child.step() != Stop::stepped) {
            return -1;
        }
    }
    return -1;
}

std::vector<Point> plan(const Trace& trace, const PlanOptions& options) {
    std::set<std::uint32_t> steps;
    if (trace.steps() < options.every_step_below) {
        for (std::uint32_t s = 0; s <= trace.steps(); s++) {
            steps.insert(s);
        }
    } else {
        for (const StepClass& one : trace.classes) {
            if (options.class_steps > 0) {
                steps.insert(one.first);
            }
            if (options.class_steps > 1) {
                steps.insert(one.last);
            }
        }
        Random random(options.seed);
        const std::size_t wanted = std::min<std::size_t>(steps.size() + options.random_steps, trace.pc.size());
        while (steps.size() < wanted) {
            steps.insert(static_cast<std::uint32_t>(random.below(trace.pc.size())));
        }
    }
    std::vector<Point> points;
    for (const std::uint32_t step : steps) {
        points.push_back({step, false});
        if (std::binary_search(trace.sleeps.begin(), trace.sleeps.end(), step)) {
            points.push_back({step, true});
        }
    }
    return points;
}

// --------------------------------------------------------------------------------------------------------

namespace {

// Those this program was started with, whatever it is bound to now.
const cpu_set_t& processors() {
    static const cpu_set_t all = [] {
        cpu_set_t set;
        CPU_ZERO(&set);
        sched_getaffinity(0, sizeof set, &set);
        return set;
    }();
    return all;
}

} // namespace

unsigned processor_count() {
    return static_cast<unsigned>(std::max(1, CPU_COUNT(&processors())));
}

void bind_to_processor(unsigned number) {
    unsigned left = number % processor_count();
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &processors()) && left-- == 0) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
    }
}

namespace {

// A job's place in the memory that workers and their starter share.
struct JobPlace {
    static constexpr std::uint32_t taken = 1;
    static constexpr std::uint32_t done = 2;

    std::uint32_t state; // zero: nobody took it yet
    std::uint32_t worker;
    std::int64_t value;
    char text[2032];
};

} // namespace

std::vector<JobResult> run_jobs(std::size_t count, unsigned workers, const std::function<void()>& begin,
                                const std::function<JobResult(std::size_t)>& job, bool stop_at_first) {
    if (count == 0) {
        return {};
    }
    ensure_ticks();
    Region memory(64 + count * sizeof(JobPlace));
    auto& next = *reinterpret_cast<std::uint64_t*>(memory.data());
    auto* places = reinterpret_cast<JobPlace*>(memory.data() + 64);
    std::fflush(nullptr);
    const pid_t parent = getpid();
    std::vector<pid_t> pids(workers, -1);
    const auto start = [&](unsigned worker) {
        const pid_t pid = fork();
        if (pid < 0) {
            die("fork of a worker");
        }
        if (pid != 0) {
            pids[worker] = pid;
            return;
        }
        tie_to_parent(parent);
        int status = 0;
        try {
            bind_to_processor(worker);
            begin();
            for (;;) {
                const std::size_t index = std::atomic_ref(next).fetch_add(1, std::memory_order_relaxed);
                if (index >= count) {
                    break;
                }
                JobPlace& place = places[index];
                place.worker = worker;
                place.state = JobPlace::taken;
                const JobResult result = job(index);
                std::snprintf(place.text, sizeof place.text, "%s", result.text.c_str());
                place.value = result.value;
                place.state = JobPlace::done;
                if (stop_at_first && !result.text.empty()) {
                    std::atomic_ref(next).store(count, std::memory_order_relaxed);
                }
            }
        } catch (const std::exception& error) {
            std::fprintf(stderr, "worker %u: %s\n", worker, error.what());
            status = 1;
        }
        std::fflush(nullptr);
        _exit(status);
    };
    for (unsigned worker = 0; worker < workers; worker++) {
        start(worker);
    }
    unsigned running = workers;
    bool stopped = false;
    while (running > 0) {
        int status = 0;
        const pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0) {
            if (errno == EINTR) {
                continue;
            }
            die("waitpid of the workers");
        }
        const auto found = std::find(pids.begin(), pids.end(), pid);
        if (found == pids.end()) {
            continue;
        }
        const auto worker = static_cast<unsigned>(found - pids.begin());
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            running--;
            continue;
        }
        bool in_a_job = false;
        for (std::size_t index = 0; index < count; index++) {
            JobPlace& place = places[index];
            if (place.worker == worker && place.state == JobPlace::taken) {
                std::snprintf(place.text, sizeof place.text, "the worker %s", describe_exit(status).c_str());
                place.state = JobPlace::done;
                in_a_job = true;
                stopped = stop_at_first;
            }
        }
        if (in_a_job && !stopped) {
            start(worker); // the others' jobs go on
        } else {
            running--; // it cannot even begin
        }
    }
    for (std::size_t index = 0; stop_at_first && index < count; index++) {
        stopped = stopped || (places[index].state == JobPlace::done && places[index].text[0] != 0);
    }
    std::vector<JobResult> results(count);
    for (std::size_t index = 0; index < count; index++) {
        if (places[index].state == JobPlace::done) {
            results[index] = {places[index].text, places[index].value};
        } else {
            results[index] = {stopped ? "" : "never run: no worker was left", -1};
        }
    }
    return results;
}

// --------------------------------------------------------------------------------------------------------

std::vector<std::string> symbolise(const std::vector<std::uintptr_t>& addresses) {
    std::vector<std::string> names(addresses.size());
    Dl_info self{};
    dladdr(reinterpret_cast<const void*>(&crash_stepped_call), &self);
    const auto base = reinterpret_cast<std::uintptr_t>(self.dli_fbase);
    char executable[4096];
    const ssize_t length = readlink("/proc/self/exe", executable, sizeof executable - 1);
    std::string command = "addr2line -a -f -C -i -s -e '";
    if (length > 0) {
        command.append(executable, static_cast<std::size_t>(length));
    }
    command += "'";
    std::vector<std::size_t> asked;
    for (std::size_t i = 0; i < addresses.size(); i++) {
        Dl_info info{};
        char text[160];
        if (dladdr(reinterpret_cast<const void*>(addresses[i]), &info) == 0) {
            std::snprintf(text, sizeof text, "%#lx", static_cast<unsigned long>(addresses[i]));
            names[i] = text;
        } else if (info.dli_fbase != self.dli_fbase) {
            names[i] = std::string(info.dli_sname != nullptr ? info.dli_sname : "?") + " (" + info.dli_fname + ")";
        } else {
            std::snprintf(text, sizeof text, " %#lx", static_cast<unsigned long>(addresses[i] - base));
            names[i] = text + 1;
            command += text;
            asked.push_back(i);
        }
    }
    if (asked.empty() || length <= 0) {
        return names;
    }
    command += " 2>/dev/null";
    FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) {
        return names;
    }
    // For each address: its line, then pairs of function and file:line, the innermost inlined one first. The
    // innermost that is not of the standard library says most.
    char line[1024];
    std::size_t current = asked.size();
    std::size_t answered = 0;
    std::string function;
    bool chosen = false;
    while (std::fgets(line, sizeof line, pipe) != nullptr) {
        line[std::strcspn(line, "\n")] = 0;
        if (std::strncmp(line, "0x", 2) == 0) {
            current = answered++;
            function.clear();
            chosen = false;
        } else if (current >= asked.size()) {
            break;
        } else if (function.empty()) {
            function = line;
            function.resize(std::min(function.size(), function.find('(')));
        } else {
            if (!chosen && function.find("std::") == std::string::npos && function != "??") {
                line[std::strcspn(line, " ")] = 0; // drops "(discriminator 3)"
                names[asked[current]] = function + " (" + line + ")";
                chosen = true;
            }
            function.clear();
        }
    }
    pclose(pipe);
    return names;
}

std::uint64_t Random::next() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

bool supported(std::string& why) {
    Region region(sizeof(Mailbox));
    auto& mailbox = *reinterpret_cast<Mailbox*>(region.data());
    Child child = Child::start(Task{{}, [](Mailbox& box) { box.values[0] = 1; }, {}}, mailbox);
    if (child.stop() != Stop::stepped) {
        why = std::string("a child cannot be traced here: ") + mailbox.findings;
        return false;
    }
    if (child.step() != Stop::stepped || child.pc() == reinterpret_cast<std::uintptr_t>(crash_operation_entry)) {
        why = "a child cannot be single-stepped here";
        return false;
    }
    return true;
}

} // namespace crash
