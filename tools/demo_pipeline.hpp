// The demo's processes: starts them as programs of their own, kills them where that is wanted and starts others in their
// place, and sees to it that nothing is left.
#pragma once

#include "demo_plan.hpp"
#include "demo_shared.hpp"
#include "demo_stages.hpp"

#include <weir/weir.hpp>

#include <array>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

namespace weir::demo {

/// The signals that the parent waits for instead of being interrupted by them.
class Signals {
public:
    Signals();
    Signals(const Signals&) = delete;
    Signals& operator=(const Signals&) = delete;
    ~Signals();

    /// In a child.
    void restore_in_child() const noexcept;

    /// Waits for a signal, or until `timeout_ns` (less than a second). The one to end by, or 0.
    [[nodiscard]] int wait(long timeout_ns) const noexcept;

private:
    sigset_t set_{};
    sigset_t before_{};
};

/// A domain for this run alone, called after this process. All of its files go with this object, the lock file included;
/// those of a run that was killed go with the next run.
class OwnDomain {
public:
    OwnDomain();
    OwnDomain(const OwnDomain&) = delete;
    OwnDomain& operator=(const OwnDomain&) = delete;
    ~OwnDomain();

    [[nodiscard]] const std::string& name() const noexcept { return name_; }

private:
    std::string name_;
};

struct Process {
    enum class State : std::uint8_t { running, done, killed, failed };

    Role role;
    std::uint32_t number; ///< among those of its role
    std::uint32_t life;   ///< how often it had been started before
    const ProcessReport* report;
    pid_t pid = -1;
    State state = State::running;
    int status = 0; ///< as waitpid() gave it

    [[nodiscard]] std::string name() const;
};

/// One of the kills of --kill: what was decided before, and what came of it.
struct Kill {
    std::size_t victim = 0;    ///< which process
    std::uint64_t moment = 0;  ///< when producers want to send that many messages
    std::uint64_t limit = 0;   ///< they may send so many until it is done
    bool wants_pushed = false; ///< rather when it has just pushed than when it has something in hand
    bool is_done = false;
    std::size_t successor = 0;
    std::uint64_t arrived_count = 0; ///< messages, when it was done
    std::uint32_t held_count = 0;    ///< buffers in the victim's hands
    /// The messages in them; of a producer there are none, since what it has not pushed is no message yet.
    std::vector<std::uint64_t> claimed;
    /// Those that it had pushed and nobody had claimed. One of them may be in no port, where it was killed while it pushed.
    std::vector<std::uint64_t> pushed;
};

class Pipeline {
public:
    /// With a `kill_seed` each process is killed on the way, and started again.
    Pipeline(const Plan& plan, const std::filesystem::path& output, const Signals& signals,
             std::optional<std::uint32_t> kill_seed);
    Pipeline(const Pipeline&) = delete;
    Pipeline& operator=(const Pipeline&) = delete;
    /// Ends all processes that still run.
    ~Pipeline();

    /// Throws: std::system_error.
    void start();

    /// Waits a moment, and sees to what happened meanwhile. False: it is over, one way or another.
    [[nodiscard]] bool run_on();

    /// The signal that ended it, or 0.
    [[nodiscard]] int ended_by_signal() const noexcept { return ended_by_signal_; }
    /// Why it failed, or nothing.
    [[nodiscard]] const std::string& failure() const noexcept { return failure_; }

    [[nodiscard]] Domain& domain() noexcept { return domain_; }
    [[nodiscard]] const std::string& domain_name() const noexcept { return own_domain_.name(); }
    [[nodiscard]] const Board& board() const noexcept { return board_; }
    [[nodiscard]] const BufferPool& pool() const noexcept { return pool_; }
    /// From the producers to the workers, and from the workers to the collector.
    [[nodiscard]] std::span<const Port, 2> ports() const noexcept { return ports_; }
    [[nodiscard]] std::span<const Process> processes() const noexcept { return processes_; }
    /// The collector that runs, or ran last.
    [[nodiscard]] const Process& collector() const noexcept;
    /// What all collectors wrote.
    [[nodiscard]] std::uint64_t arrived_count() const noexcept;
    [[nodiscard]] std::uint64_t arrived_bytes() const noexcept;
    [[nodiscard]] const std::optional<std::uint32_t>& kill_seed() const noexcept { return kill_seed_; }
    [[nodiscard]] std::span<const Kill> kills() const noexcept { return kills_; }
    /// What went wrong beside.
    [[nodiscard]] std::span<const std::string> leftovers() const noexcept { return leftovers_; }

private:
    void plan_kills();
    std::size_t start(Role role, std::uint32_t number, std::uint32_t life);
    void look_after_children();
    void close_streams();
    [[nodiscard]] Kill* next_kill() noexcept;
    [[nodiscard]] bool is_due(const Kill& kill) const;
    void open_gate(std::uint64_t limit) noexcept;
    void carry_out(Kill& kill);
    [[nodiscard]] bool has_just_pushed(const Process& victim, Owner owner) const;
    [[nodiscard]] bool stop_at_its_moment(const Process& victim, Kill& kill);
    [[nodiscard]] std::uint32_t held_count(Owner owner) const noexcept;
    void take_stock(const Process& victim, Owner owner, Kill& kill) const;
    [[nodiscard]] std::optional<MemberInfo> member_of(const Process& process) const;
    [[nodiscard]] std::string why_it_failed() const;

    const Plan& plan_;
    const Signals& signals_;
    OwnDomain own_domain_;
    Domain domain_;
    Board board_;
    BufferPool pool_;
    std::array<Port, 2> ports_;
    /// A stream is at its end when its producers are gone, also where others are only about to come: one that starts late
    /// would find nobody there. So the parent keeps both streams open until all who push into them have ended.
    std::array<std::optional<Producer>, 2> held_open_;
    std::vector<Process> processes_;
    std::optional<std::uint32_t> kill_seed_;
    std::vector<Kill> kills_;
    int ended_by_signal_ = 0;
    std::string failure_;
    std::vector<std::string> leftovers_;
};

} // namespace weir::demo
