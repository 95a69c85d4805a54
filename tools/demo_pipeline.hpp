// The demo's processes: starts them, kills one where that is wanted, reaps those that have ended.
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

struct Process {
    enum class Role : std::uint8_t { producer, worker, collector };
    enum class State : std::uint8_t { running, done, killed, failed };

    std::string name;
    Role role;
    Membership member;
    const ProcessReport* report = nullptr;
    pid_t pid = -1;
    State state = State::running;
    int status = 0; ///< as waitpid() gave it
};

/// The kill of --kill: what was decided before, and what came of it.
struct Kill {
    std::uint32_t seed = 0;
    std::size_t victim = 0;   ///< which process
    std::uint64_t moment = 0; ///< when that many messages have arrived
    bool is_done = false;
    std::uint64_t arrived_count = 0;
    ReapResult reaped;
};

class Pipeline {
public:
    /// With a `kill_seed` a worker is killed on the way.
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

    [[nodiscard]] const SharedMemory& memory() const noexcept { return memory_; }
    [[nodiscard]] const BufferPool& pool() const noexcept { return pool_; }
    /// From the producers to the workers, and from the workers to the collector.
    [[nodiscard]] std::span<const Port, 2> ports() const noexcept { return ports_; }
    [[nodiscard]] std::span<const Process> processes() const noexcept { return processes_; }
    [[nodiscard]] const Process& collector() const noexcept { return processes_[collector_number]; }
    [[nodiscard]] const std::optional<Kill>& kill() const noexcept { return kill_; }
    /// What ended processes were to give back and did not.
    [[nodiscard]] std::span<const std::string> leftovers() const noexcept { return leftovers_; }

private:
    static constexpr std::size_t collector_number = producer_count + worker_count;

    void start(Process::Role role, std::uint32_t number);
    void look_after_children();
    void close_streams();
    void kill_a_worker();
    [[nodiscard]] std::string why_it_failed() const;

    const Plan& plan_;
    const std::filesystem::path& output_;
    const Signals& signals_;
    SharedMemory memory_;
    Membership me_;
    BufferPool pool_;
    std::array<Port, 2> ports_;
    /// A stream is at its end when its producers are gone, also where others are only about to come: one that starts late
    /// would find nobody there. So the parent keeps both streams open until all who push into them have ended.
    std::array<std::optional<Producer>, 2> held_open_;
    std::vector<Process> processes_;
    std::optional<Kill> kill_;
    int ended_by_signal_ = 0;
    std::string failure_;
    std::vector<std::string> leftovers_;
};

} // namespace weir::demo
