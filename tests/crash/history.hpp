// history.hpp: can what each process saw of a queue be explained by one order of its operations?
//
// Each process notes its operations in the order in which it did them. An operation of a stopped or killed process
// overlaps all that the others do meanwhile, so its place among theirs is open; a killed one may have taken effect or
// not. explain() searches for an order in which a plain FIFO of that capacity gives every noted result and, at the end,
// the noted content. That is linearizability, which includes: nothing lost, nothing twice, the order kept, never full
// or empty without being so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace crash {

enum class What : std::uint32_t {
    push,       // of `tag`
    push_full,  // found no room
    pop,        // of `tag`
    pop_empty,  // found nothing
    maybe_push, // killed inside; if it did not happen, nothing behind it did
    maybe_pop,  // killed inside; likewise, and which message it took is not known
    discard,    // took the oldest out to make room, or did not need to
};

struct Event {
    What what;
    std::uint32_t tag;
};

inline std::string text_of(const Event& event) {
    static const char* const names[] = {"push",       "push found it full", "pop",    "pop found it empty",
                                        "maybe push", "maybe pop",          "discard"};
    std::string text = names[static_cast<std::size_t>(event.what)];
    if (event.what == What::push || event.what == What::pop || event.what == What::maybe_push) {
        text += ' ' + std::to_string(event.tag);
    }
    return text;
}

class History {
public:
    History(std::size_t capacity, std::vector<std::uint32_t> before)
        : capacity_(capacity), before_(std::move(before)) {}

    // What one process did, in its order.
    void add(std::vector<Event> process) { processes_.push_back(std::move(process)); }

    // Whether some order of it all leaves `content` in the queue.
    [[nodiscard]] bool explains(const std::vector<std::uint32_t>& content) const {
        State state{std::vector<std::size_t>(processes_.size(), 0), {before_.begin(), before_.end()}};
        std::set<std::pair<std::vector<std::size_t>, std::deque<std::uint32_t>>> seen;
        std::vector<State> open{state};
        const std::deque<std::uint32_t> wanted(content.begin(), content.end());
        while (!open.empty()) {
            state = std::move(open.back());
            open.pop_back();
            if (!seen.insert(state).second) {
                continue;
            }
            bool all_done = true;
            for (std::size_t process = 0; process < processes_.size(); ++process) {
                if (state.first[process] < processes_[process].size()) {
                    all_done = false;
                    take_effect(state, process, open);
                }
            }
            if (all_done && state.second == wanted) {
                return true;
            }
        }
        return false;
    }

    [[nodiscard]] std::string describe(const std::vector<std::uint32_t>& content) const {
        std::string text = "in the queue before:";
        for (const std::uint32_t tag : before_) {
            text += ' ' + std::to_string(tag);
        }
        for (const std::vector<Event>& process : processes_) {
            text += "; a process:";
            for (const Event& event : process) {
                text += ' ' + text_of(event) + ',';
            }
        }
        text += "; in the queue at the end:";
        for (const std::uint32_t tag : content) {
            text += ' ' + std::to_string(tag);
        }
        return text;
    }

private:
    // How many operations of each process have taken effect, and what is in the queue then.
    using State = std::pair<std::vector<std::size_t>, std::deque<std::uint32_t>>;

    // The states that the next operation of one process leads to.
    void take_effect(const State& state, std::size_t process, std::vector<State>& open) const {
        const Event event = processes_[process][state.first[process]];
        const std::deque<std::uint32_t>& queue = state.second;
        State next = state;
        if (event.what == What::maybe_push || event.what == What::maybe_pop) {
            next.first[process] = processes_[process].size(); // it died before
            open.push_back(next);
        }
        next.first[process] = state.first[process] + 1;
        if (event.what == What::discard) {
            open.push_back(next);
        }
        switch (event.what) {
        case What::push:
        case What::maybe_push:
            if (queue.size() < capacity_) {
                next.second.push_back(event.tag);
                open.push_back(std::move(next));
            }
            break;
        case What::push_full:
            if (queue.size() == capacity_) {
                open.push_back(std::move(next));
            }
            break;
        case What::pop:
            if (!queue.empty() && queue.front() == event.tag) {
                next.second.pop_front();
                open.push_back(std::move(next));
            }
            break;
        case What::pop_empty:
            if (queue.empty()) {
                open.push_back(std::move(next));
            }
            break;
        case What::maybe_pop:
        case What::discard:
            if (!queue.empty()) {
                next.second.pop_front();
                open.push_back(std::move(next));
            }
            break;
        }
    }

    std::size_t capacity_;
    std::vector<std::uint32_t> before_;
    std::vector<std::vector<Event>> processes_;
};

} // namespace crash
