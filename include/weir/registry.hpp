// registry.hpp (layer 3): Registry, what the members of a domain share: who they are, and which pools and ports there are.
//
// It lies in one segment: the process table, a record of each member for people to read, and two directories. A pool or a
// port exists from one compare-and-swap on: the one that writes its entry, which names its segment. Before that, the
// segment lies under a private name that nobody looks for; the entry makes that same name public. So nobody ever finds a
// half-made pool, and a creator that is killed leaves a private name behind, which whoever reaps it removes.
//
//     weir::Registry registry(memory);                             // zeroed, or formatted by format()
//     const std::uint64_t word = registry.ports().entry(7);         // 0: there is no port 7
//     const weir::SegmentKey key = weir::SegmentKey::of(word);     // whose segment it is: names its file
//
// A directory is filled from the front, entry by entry, and nothing is ever taken out: a pool's or port's number is its
// entry's place, for as long as the domain lives. Two who create one name at once both try the first empty entry; who
// loses looks at the winner's, and finds that name. An entry:
//
//     63             36 35        20 19       9 8      1 0
//     | incarnation 28 | serial 16  | hash 11  | slot 8 | 1 |      all-zero bits: no such pool or port
//
// slot, incarnation and serial name the segment; the hash is of the user's name, so that a search opens few segments
// whose header, which has the name, is another. A member makes at most 65,535 segments. After 2^28 lives of one slot in
// one domain a private name could come twice; creating it reports errc::exists then.
//
// anything || anything: yes; format(): nothing beside it.
// Progress: wait-free, each call at most one pass over a directory.
// If the caller dies here: the entry is there or it is not. [crash: publish]
#pragma once

#include <weir/error.hpp>
#include <weir/platform.hpp>
#include <weir/process.hpp>
#include <weir/process_table.hpp>
#include <weir/segment.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#pragma GCC visibility push(default)
namespace weir {

inline constexpr unsigned pool_count_max = 64;
inline constexpr unsigned port_count_max = port_id_count;

/// Whose segment, and which of its: names a private segment within a domain, and an entry's segment.
struct SegmentKey {
    std::uint8_t slot = 0;
    std::uint32_t incarnation = 0; ///< low 28 bits
    std::uint16_t serial = 0;      ///< from 1 on

    static constexpr std::uint32_t incarnation_mask = (1U << 28) - 1;
    static constexpr std::uint32_t hash_mask = (1U << 11) - 1;

    /// The entry that publishes it under a name with this hash.
    [[nodiscard]] constexpr std::uint64_t word(std::uint32_t name_hash) const noexcept {
        return std::uint64_t{incarnation & incarnation_mask} << 36 | std::uint64_t{serial} << 20 |
               std::uint64_t{name_hash & hash_mask} << 9 | std::uint64_t{slot} << 1 | 1;
    }
    [[nodiscard]] static constexpr SegmentKey of(std::uint64_t word) noexcept {
        return {static_cast<std::uint8_t>(word >> 1), static_cast<std::uint32_t>(word >> 36),
                static_cast<std::uint16_t>(word >> 20)};
    }
    [[nodiscard]] static constexpr std::uint32_t hash_of(std::uint64_t word) noexcept {
        return static_cast<std::uint32_t>(word >> 9) & hash_mask;
    }
    friend constexpr bool operator==(const SegmentKey&, const SegmentKey&) noexcept = default;
};
static_assert(SegmentKey::of(SegmentKey{255, 77, 65'535}.word(2047)) == SegmentKey{255, 77, 65'535});
static_assert(SegmentKey::hash_of(SegmentKey{255, 77, 65'535}.word(1234)) == 1234);

/// The hash of a pool's or port's name in its entry.
[[nodiscard]] std::uint32_t name_hash(std::string_view name) noexcept;

/// What a domain's files in shared memory are called. The user is part of each name, so that two users' domains of one
/// name never meet.
/// Throws: invalid_name (the constructor); else std::bad_alloc alone.
class DomainNames {
public:
    /// What the files of all domains begin with.
    static constexpr std::string_view common_prefix = "weir+";

    /// Throws: invalid_name.
    DomainNames(uid_t user, std::string_view domain);

    /// The names of the domain that a file is one of; nothing, where it is none's.
    [[nodiscard]] static std::optional<DomainNames> of(std::string_view file);

    /// A small file that stays, locked by who joins, leaves for good, or removes names.
    [[nodiscard]] std::string lock() const { return prefix_ + "lock"; }
    [[nodiscard]] std::string registry() const { return prefix_ + "registry"; }
    /// The registry while it is made; only the holder of the lock makes or removes it.
    [[nodiscard]] std::string registry_draft() const { return prefix_ + "registry.draft"; }
    /// A pool's control and payload, and a port.
    [[nodiscard]] std::string segment(std::uint64_t registry_id, const SegmentKey& key, SegmentKind kind) const;
    /// What a name made by segment() says; nothing for other names.
    struct Parsed {
        std::uint64_t registry_id;
        SegmentKey key;
    };
    /// The numbers in such a name.
    [[nodiscard]] std::optional<Parsed> parse(std::string_view name) const;

    /// What all of its names begin with, and no other domain's.
    [[nodiscard]] const std::string& prefix() const noexcept { return prefix_; }
    [[nodiscard]] const std::string& domain() const noexcept { return domain_; }
    [[nodiscard]] uid_t user() const noexcept { return user_; }

private:
    uid_t user_;
    std::string domain_;
    std::string prefix_;
};

/// What a member says of itself, for people to read; nothing is decided on it. Written before its entry is alive.
struct alignas(cache_line_bytes) MemberRecord {
    std::uint64_t incarnation;
    std::uint64_t start_time_ticks;
    std::uint64_t pid_namespace;
    std::uint64_t joined_ns; ///< CLOCK_REALTIME
    std::int32_t pid;
    std::uint32_t reserved;
    char name[88]; ///< ended by a zero
};
static_assert(sizeof(MemberRecord) == 2 * cache_line_bytes);

/// What lies in shared memory.
struct RegistryState {
    std::uint64_t id;   ///< random, never 0: tells successive registries of one name apart
    std::uint64_t kept; ///< 1: the last member that leaves leaves the names
    std::uint64_t reserved[6];
    alignas(cache_line_bytes) std::uint64_t checked_ns; ///< when somebody last looked for the dead, CLOCK_MONOTONIC
    alignas(cache_line_bytes) ProcessTableState processes;
    MemberRecord records[process_slot_count];
    std::uint64_t pools[pool_count_max];
    std::uint64_t ports[port_count_max];
};
static_assert(offsetof(RegistryState, checked_ns) == cache_line_bytes);
static_assert(offsetof(RegistryState, processes) == 2 * cache_line_bytes);
static_assert(offsetof(RegistryState, pools) % cache_line_bytes == 0);
static_assert(offsetof(RegistryState, ports) % cache_line_bytes == 0);

/// A process-local view of one of the two directories. Cheap to copy.
class Directory {
public:
    explicit Directory(std::span<std::uint64_t> entries) noexcept : entries_(entries) {}

    [[nodiscard]] unsigned size() const noexcept { return static_cast<unsigned>(entries_.size()); }

    /// The entry's word; 0: empty, and so are all behind it.
    [[nodiscard]] std::uint64_t entry(unsigned place) const noexcept {
        // (1) acquire: the segment that the entry names is complete; pairs with (2)
        return shared(entries_[place]).load(std::memory_order_acquire);
    }

    /// Makes `word` public at `place`, the first empty entry. False: another was faster.
    /// Progress: wait-free.
    /// If the caller dies here: the entry is there or it is not. [crash: publish]
    [[nodiscard]] bool publish(unsigned place, std::uint64_t word) noexcept {
        std::uint64_t expected = 0;
        // (2) acq_rel, on failure acquire: hands the segment over; a loser sees the winner's; pairs with (1)
        return shared(entries_[place])
            .compare_exchange_strong(expected, word, std::memory_order_acq_rel, std::memory_order_acquire);
    }

    /// Whether an entry names this segment. Of a creator that is dead, the answer is final.
    [[nodiscard]] bool lists(const SegmentKey& key) const noexcept;

private:
    std::span<std::uint64_t> entries_;
};

/// A process-local view of a registry in shared memory. Cheap to copy.
class Registry {
public:
    [[nodiscard]] static constexpr std::size_t bytes() noexcept { return sizeof(RegistryState); }

    /// What the layout of a registry depends on.
    [[nodiscard]] static constexpr std::uint64_t parameters_hash() noexcept {
        return hash_parameters({process_slot_count, pool_count_max, port_count_max, sizeof(MemberRecord),
                                sizeof(RegistryState), offsetof(RegistryState, ports)});
    }

    /// Prepares zeroed memory, before anyone opens it. `id` is not 0.
    /// Throws: misaligned, invalid_size.
    static void format(std::span<std::byte> memory, std::uint64_t id);

    /// Views formatted memory.
    /// Throws: misaligned, truncated, corrupt (no id).
    explicit Registry(std::span<std::byte> memory);

    [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
    /// Who is a member.
    [[nodiscard]] ProcessTable& processes() noexcept { return processes_; }
    [[nodiscard]] const ProcessTable& processes() const noexcept { return processes_; }
    [[nodiscard]] Directory pools() const noexcept { return Directory(state_->pools); }
    [[nodiscard]] Directory ports() const noexcept { return Directory(state_->ports); }

    /// Where slot `slot`'s member describes itself. May be torn while a new member writes it.
    [[nodiscard]] MemberRecord& record(std::uint8_t slot) const noexcept { return state_->records[slot]; }

    /// What its record says of the member, for people to read.
    /// Throws: std::bad_alloc alone.
    [[nodiscard]] ProcessInfo process(std::uint8_t slot) const;

    /// Whether the last member that leaves leaves the names; keep() says so from now on.
    [[nodiscard]] bool is_kept() const noexcept {
        // relaxed: set before its setter was a member, and read under the domain's lock, which both took
        return shared(state_->kept).load(std::memory_order_relaxed) != 0;
    }
    void keep() noexcept {
        // relaxed: as above
        shared(state_->kept).store(1, std::memory_order_relaxed);
    }

    /// Elects who looks for the dead: true for one caller once an interval. Where the elected one dies, or is stopped, the
    /// next one is elected an interval later.
    /// Progress: wait-free.
    /// If the caller dies here: the look is made one interval later. [crash: recheck]
    [[nodiscard]] bool take_check(std::int64_t now_ns, std::int64_t interval_ns) noexcept {
        // relaxed: one looks, which one does not matter
        std::uint64_t seen = shared(state_->checked_ns).load(std::memory_order_relaxed);
        // As one unsigned difference: a time that lies ahead, of another time namespace or from bad bytes, is over too.
        return static_cast<std::uint64_t>(now_ns) - seen >= static_cast<std::uint64_t>(interval_ns) &&
               // relaxed: as above
               shared(state_->checked_ns)
                   .compare_exchange_strong(seen, static_cast<std::uint64_t>(now_ns), std::memory_order_relaxed);
    }

    /// For who was elected at `now_ns` and could not do it: the next caller is elected at once.
    void give_back_check(std::int64_t now_ns, std::int64_t interval_ns) noexcept {
        auto expected = static_cast<std::uint64_t>(now_ns);
        // relaxed: as in take_check(); where somebody was elected meanwhile, that stands
        shared(state_->checked_ns)
            .compare_exchange_strong(expected, static_cast<std::uint64_t>(now_ns - interval_ns),
                                     std::memory_order_relaxed);
    }

    /// Names each broken invariant but for the process table's; empty when it is sound. What it names is broken whatever
    /// others do meanwhile.
    [[nodiscard]] std::vector<std::string> check() const;

private:
    RegistryState* state_;
    std::uint64_t id_;
    ProcessTable processes_;
};

} // namespace weir
#pragma GCC visibility pop
