// harness.hpp: what a case is, and what is done with it. Knows the engine, not the library.
#pragma once

#include "engine.hpp"

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace crash {

// What others do while a victim stands frozen inside its operation. Returns what was found wrong.
struct Script {
    std::string name;
    std::function<std::string()> act;
};

// An opponent that answers each move of a victim. It brings the child to the operation's end.
struct Duel {
    std::string name;
    std::function<std::string(Child&)> fight;
};

// One operation from one starting state. All functions run in the tracer and return what they found wrong, or "".
struct Case {
    std::string name;
    std::string what;        // for people
    std::string broken;      // why the starting state cannot be made
    bool hot_path = false;   // frozen too, not only killed
    bool others_run = false; // while the victim is stepped, so that no two runs see the same bytes

    // Builds fresh shared state. Runs differ in their variation: how the survivors go about it.
    std::function<void(unsigned variation)> reset;
    Task task;
    Mailbox* mailbox = nullptr;
    Watched watched;
    Hooks hooks;

    // What holds at each instruction, whoever stands where.
    std::function<std::string()> invariant;
    // How far the operation has come, as others see it: 0 not at all, `stages` - 1 done; -1: neither.
    std::function<int()> stage;
    int stages = 1;

    // After the victim's death: the survivors reap, work, and count everything.
    std::function<std::string(unsigned variation)> judge_death;
    // After a frozen victim went on to its end.
    std::function<std::string()> judge_life;
    std::vector<Script> scripts;
    std::vector<Duel> duels;

    // Which of Cases::counted a survivor can do beside this victim.
    std::vector<std::size_t> counted;
    // All cells of the ring that they work on, where it has no more than a processor can watch.
    std::vector<const std::uint64_t*> cells;
};

// Two processes in any two operations at once: one frozen and one killed, or both stepped in turns.
struct PairCase {
    std::string name;
    std::string what;
    std::string broken; // why the starting state cannot be made
    std::vector<std::string> operations;
    std::function<void()> reset;
    std::function<Task(std::size_t operation)> first_task;
    std::function<Task(std::size_t operation)> second_task;
    Mailbox* first_mailbox = nullptr;
    Mailbox* second_mailbox = nullptr;
    Watched watched;
    std::function<std::string()> invariant;
    std::function<std::string(std::size_t second)> act_beside_death; // the first is frozen, the second dead
    std::function<std::string()> judge;                              // after those who live went on
};

struct Cases {
    std::vector<Case> single;
    std::vector<PairCase> pairs;
    // Single operations of a survivor, whose instructions are counted: alone, in a state made for it, and beside
    // a frozen process.
    std::vector<std::pair<std::string, std::function<Task()>>> counted;
    std::function<void()> reset_for_counting;
    Mailbox* counted_mailbox = nullptr;

    std::function<void()> end_setup;    // before workers are started
    std::function<void()> begin_worker; // in each worker, before its jobs
};

// Defined beside the cases. The names need no machine that can step anything.
std::vector<std::string> case_names();
Cases make_cases(const std::vector<std::string>& wanted);

} // namespace crash
