// What weir top shows of a domain: rows of numbers and words, made from two looks at it. Nothing here reads a domain, a
// clock or a terminal.
#pragma once

#include <weir/observer.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include <sys/types.h>

namespace weir::top {

/// In a second; negative: not known, because there was no look before.
using Rate = double;
inline constexpr Rate rate_unknown = -1;

/// How urgent a word is.
enum class Concern : std::uint8_t { none, idle, good, warning, bad };

struct State {
    std::string text;
    Concern concern = Concern::none;

    friend bool operator==(const State&, const State&) = default;
};

struct PortRow {
    std::string domain;
    std::string name;
    std::uint32_t depth = 0;
    std::uint32_t capacity = 0;
    std::uint64_t high_water_mark = 0;
    Rate in = rate_unknown;
    Rate out = rate_unknown;
    Rate bytes = rate_unknown; ///< pushed
    Rate full = rate_unknown;
    Rate empty = rate_unknown;
    Rate producer_waits = rate_unknown;
    Rate consumer_waits = rate_unknown;
    Rate dropped = rate_unknown;
    std::uint32_t producer_count = 0; ///< handles of members that have not been reaped
    std::uint32_t consumer_count = 0;
    State state;
};

struct ProcessRow {
    std::string domain;
    ProcessInfo process;
    std::uint8_t slot = 0;
    MemberLife member_life = MemberLife::unknown;
    State life;
    std::uint64_t held_count = 0;   ///< buffers, of all pools
    std::uint64_t queued_count = 0; ///< pushed by it, and still in ports
    Rate pushed = rate_unknown;
    Rate popped = rate_unknown;
    std::string waits_for; ///< the ends on which it sleeps, as far as it can be told
};

struct PoolRow {
    std::string domain;
    std::string name;
    std::uint64_t buffer_bytes = 0;
    std::uint32_t buffer_count = 0;
    std::uint32_t free_count = 0;
    std::uint32_t held_count = 0;   ///< references
    std::uint32_t queued_count = 0; ///< references
};

struct DomainRow {
    std::string name;
    bool is_there = false;
    std::uint32_t alive_count = 0;
    std::uint32_t dead_count = 0;
    std::uint32_t unknown_count = 0;
    std::uint64_t buffer_count = 0;
    std::uint64_t free_count = 0;
    std::uint64_t held_count = 0;
    std::uint64_t queued_count = 0;
    std::uint64_t shared_bytes = 0; ///< of its files
    std::vector<std::string> notes;
};

struct Model {
    std::vector<DomainRow> domains;
    std::vector<PortRow> ports;
    std::vector<ProcessRow> processes;
    std::vector<PoolRow> pools;
    std::vector<std::string> notes; ///< of no domain
};

/// Adds a domain's rows. Without `before`, or where that was another domain of the same name, no rate is known.
void add_domain(Model& model, const DomainSnapshot& now, const DomainSnapshot* before);

/// Adds a domain that is not there, and says why.
void add_missing_domain(Model& model, const std::string& name, const std::string& note);

} // namespace weir::top
