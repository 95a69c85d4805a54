// Runs a few threads in every order of their atomic accesses.
//
// A scenario's threads are fibers of one real thread. Each access to a WatchedWord is a place where another fiber may go
// on, or where the fiber's process may die: it is never continued. explore() runs the scenario from the start once for
// each way to choose at these places, with at most so many preemptions (a switch away from a fiber that could go on) and
// deaths; most mistakes need two or three. It is depth first: a run is the list of its choices, and the next run goes the
// same way up to the last choice that has an alternative left.
//
//     const Explored explored = explore({.preemption_count_max = 3}, [](Run& run) {
//         weir::BasicRing<WatchedWord> ring = ...;          // fresh in each run
//         run.thread([=] { ... });                          // what it does to shared words can be interleaved
//         run.thread([=] { ... });
//         run.go();                                         // until all have ended or died
//         return what_is_wrong;                             // empty: nothing
//     });
//
// What is not explored: memory orders. Every access takes effect at once and for all, so a load or store that is too weak is
// not found here; ThreadSanitizer and a model checker for C++ memory orders look for that (docs/interleavings.md).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ucontext.h>

namespace interleavings {

struct Limits {
    unsigned preemption_count_max = 3;
    unsigned death_count_max = 0;
    std::uint64_t run_count_max = 5'000'000; ///< a scenario that has more is too large
};

/// One way to go on at a place.
struct Choice {
    std::uint32_t taken = 0;
    std::uint32_t count = 0;
};

class Run {
public:
    Run(const Limits& limits, std::vector<Choice>& choices) : limits_(limits), choices_(choices) { current_run = this; }
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() { current_run = nullptr; }

    void thread(std::function<void()> body) {
        fibers_.push_back(std::make_unique<Fiber>());
        fibers_.back()->body = std::move(body);
    }

    /// Runs all threads until they have ended or died.
    void go() {
        std::size_t last = none;
        for (;;) {
            const std::size_t next = choose(last);
            if (next == none) {
                return;
            }
            resume(*fibers_[next]);
            last = next;
        }
    }

    [[nodiscard]] bool has_died(std::size_t number) const { return fibers_[number]->state == State::dead; }

    /// Before each access to a watched word; outside of the threads it does nothing.
    static void access() {
        if (current_run != nullptr && current_run->inside_ != nullptr) {
            Fiber& fiber = *current_run->inside_;
            swapcontext(&fiber.context, &current_run->scheduler_);
        }
    }

private:
    static constexpr std::size_t none = SIZE_MAX;
    static constexpr std::size_t stack_bytes = 64 * 1024;

    enum class State : std::uint8_t { fresh, waiting, ended, dead };

    struct Fiber {
        std::function<void()> body;
        State state = State::fresh;
        ucontext_t context{};
        std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(stack_bytes);
    };

    [[nodiscard]] bool can_go_on(std::size_t number) const {
        return fibers_[number]->state == State::fresh || fibers_[number]->state == State::waiting;
    }

    /// Who goes on after `last`: itself first, then the others, then its death.
    [[nodiscard]] std::size_t choose(std::size_t last) {
        const bool goes_on = last != none && can_go_on(last);
        std::vector<std::size_t> ways;
        if (goes_on) {
            ways.push_back(last);
        }
        if (!goes_on || preemption_count_ < limits_.preemption_count_max) {
            for (std::size_t number = 0; number < fibers_.size(); ++number) {
                if (number != last && can_go_on(number)) {
                    ways.push_back(number);
                }
            }
        }
        const bool may_die = goes_on && death_count_ < limits_.death_count_max;
        const auto count = static_cast<std::uint32_t>(ways.size() + (may_die ? 1 : 0));
        if (count == 0) {
            return none;
        }
        const std::uint32_t taken = next_choice(count);
        if (taken == ways.size()) {
            fibers_[last]->state = State::dead;
            ++death_count_;
            return choose(none);
        }
        preemption_count_ += goes_on && ways[taken] != last ? 1U : 0U;
        return ways[taken];
    }

    [[nodiscard]] std::uint32_t next_choice(std::uint32_t count) {
        if (place_ == choices_.size()) {
            choices_.push_back({0, count});
        } else if (choices_[place_].count != count) {
            std::fprintf(stderr, "the scenario is not the same each time: it depends on more than the choices\n");
            std::abort();
        }
        return choices_[place_++].taken;
    }

    void resume(Fiber& fiber) {
        inside_ = &fiber;
        if (fiber.state == State::fresh) {
            fiber.state = State::waiting;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = stack_bytes;
            fiber.context.uc_link = &scheduler_;
            makecontext(&fiber.context, &Run::enter, 0);
        }
        swapcontext(&scheduler_, &fiber.context);
        inside_ = nullptr;
    }

    static void enter() {
        Fiber& fiber = *current_run->inside_;
        fiber.body();
        fiber.state = State::ended;
    }

    static inline Run* current_run = nullptr;

    const Limits& limits_;
    std::vector<Choice>& choices_;
    std::size_t place_ = 0;
    unsigned preemption_count_ = 0;
    unsigned death_count_ = 0;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    Fiber* inside_ = nullptr;
    ucontext_t scheduler_{};
};

struct Explored {
    std::uint64_t run_count = 0;
    std::string wrong;           ///< of the first run in which something was; empty: in none
    std::vector<Choice> choices; ///< of that run
};

/// Runs `scenario` once for each interleaving, until it returns what is wrong.
inline Explored explore(const Limits& limits, const std::function<std::string(Run&)>& scenario) {
    Explored explored;
    std::vector<Choice> choices;
    for (;;) {
        {
            Run run(limits, choices);
            explored.wrong = scenario(run);
        }
        ++explored.run_count;
        if (!explored.wrong.empty()) {
            explored.choices = choices;
            return explored;
        }
        while (!choices.empty() && choices.back().taken + 1 == choices.back().count) {
            choices.pop_back();
        }
        if (choices.empty()) {
            return explored;
        }
        ++choices.back().taken;
        if (explored.run_count == limits.run_count_max) {
            explored.wrong = "there are more than " + std::to_string(limits.run_count_max) + " interleavings";
            return explored;
        }
    }
}

/// A shared word whose accesses are watched.
struct WatchedWord {
    std::uint64_t value;
};

/// What weir::shared() gives for an integer: an atomic view, as far as weir uses it.
class WatchedView {
public:
    explicit WatchedView(std::uint64_t& value) noexcept : value_(&value) {}

    [[nodiscard]] std::uint64_t load(std::memory_order) const noexcept {
        Run::access();
        return *value_;
    }
    void store(std::uint64_t value, std::memory_order) const noexcept {
        Run::access();
        *value_ = value;
    }
    bool compare_exchange_strong(std::uint64_t& expected, std::uint64_t wanted, std::memory_order,
                                 std::memory_order) const noexcept {
        Run::access();
        if (*value_ == expected) {
            *value_ = wanted;
            return true;
        }
        expected = *value_;
        return false;
    }

private:
    std::uint64_t* value_;
};

/// Found where the ring and the reference words call shared().
[[nodiscard]] inline WatchedView shared(const WatchedWord& word) noexcept {
    return WatchedView(const_cast<WatchedWord&>(word).value);
}

} // namespace interleavings
