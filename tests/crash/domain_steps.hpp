// domain_steps.hpp: one operation on a named domain by single instructions, and a fresh child brought to any of them.
//
// The engine's recordings are compared step by step, which needs runs that are alike to the instruction. Joining and
// creating are not: a registry's id is random and is printed into names, /proc and /dev/shm hold what they hold. What is
// alike is the order of system calls, and between two of them the order of changes. So a point is counted from there:
//
//     Visible seen(names);                              // what others can see of a domain: names, locks, shared bytes
//     Pass pass = record(child, seen);                  // every step once, every change noted
//     std::string trouble = reach(other_child, pass, pass.classes[3], names);
//
// A death differs from another only in what others see, so each change begins a class, and a child is killed once in
// each, at full speed up to the system call before it.
#pragma once

#include "engine.hpp"

#include <weir/registry.hpp>
#include <weir/segment.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace crash {

/// What others can see of a domain, as of the last look.
class Visible {
public:
    explicit Visible(const weir::DomainNames& names);

    /// Looks at everything: names, locks, and bytes of the registry and of all that it lists. Whether it has changed.
    bool look();
    /// Looks at the bytes of what was there at the last look(); enough after a step without a system call.
    bool look_at_bytes();

private:
    struct Mapped {
        weir::Segment segment;
        std::vector<std::pair<const std::byte*, std::vector<std::byte>>> spans; // where, and what was there
    };
    void map(const std::string& name);
    void map_listed();
    [[nodiscard]] std::string describe() const;

    weir::DomainNames names_;
    std::map<std::uint64_t, Mapped> mapped_; // by inode
    std::set<std::uint64_t> registries_;
    std::string described_;
};

/// Whether byte `byte` of the file is locked by whoever.
[[nodiscard]] bool is_locked(const std::string& path, unsigned byte);

/// A place in an operation: so many system calls, then so many changes of bytes, then so many steps.
struct Place {
    std::uint32_t calls = 0;
    std::uint32_t changes = 0;
    std::uint32_t steps = 0;
};

struct Pass {
    std::uint32_t steps = 0;
    std::vector<long> calls;            // the numbers of the system calls that count
    std::vector<std::uint32_t> lengths; // in steps: before the first, after each
    std::vector<Place> classes;         // where each begins; the first before the operation
    std::vector<std::string> causes;    // of each, for people
    std::string error;                  // empty: recorded
};

/// What others do while the child stands behind a system call that counts.
using OnCall = std::function<void()>;

/// Steps a child that stands before its operation to the operation's end.
Pass record(Child& child, Visible& seen, const OnCall& on_call = {});

/// Brings a child that stands before its operation to a place of a recorded pass; what was different, or "".
std::string reach(Child& child, const Pass& pass, const Place& place, const weir::DomainNames& names,
                  const OnCall& on_call = {});

/// Runs a child so many system calls that count, and then so many steps; less, where its operation is over before. What
/// was wrong, or "".
std::string advance(Child& child, std::uint32_t calls, std::uint32_t steps);

/// So many steps that are spread evenly over the pass at random.
std::vector<Place> random_places(const Pass& pass, std::uint32_t count, std::uint64_t seed);

} // namespace crash
