// observer.hpp (layer 7): DomainObserver, which looks at a domain from outside: live, or at copies of its files.
//
// It is no member and takes no lock; it maps the domain's control segments read-only, and not the payloads at all. So it
// cannot disturb what it looks at, and nothing waits for it. What it reads costs those who use the same cache lines one
// transfer each, as another reader would.
//
//     for (const weir::DomainName& domain : weir::list_domains())
//         print(domain.name);
//
//     weir::DomainObserver observer("camera");                       // errc::not_found where there is none
//     const weir::DomainSnapshot now = observer.look();               // members, pools, ports: who does and holds what
//     for (const std::string& what : observer.check())
//         print(what);                                                // each broken invariant
//
//     weir::DomainObserver dead("camera", {.folder = "copied"});      // post mortem, from copies of the files
//
// A snapshot of a domain at work is not of one moment: each number was right when it was read. What check() reports is
// broken for certain, whatever the others did meanwhile.
//
// From copies nobody can tell who is alive: members that had not left are MemberLife::unknown.
//
// | at the same time                                  | allowed |
// | different observers, and anything in the domain   | yes     |
// | calls of one observer                             | no      |
//
// The memory is not trusted: what is read is checked against what the opener knows. Only a file that is cut short while it
// is mapped, which nothing in weir does, ends the observer with a SIGBUS.
#pragma once

#include <weir/domain.hpp>
#include <weir/error.hpp>
#include <weir/port.hpp>
#include <weir/reap.hpp>
#include <weir/registry.hpp>
#include <weir/segment.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#pragma GCC visibility push(default)
namespace weir {

/// A domain as its files name it.
struct DomainName {
    uid_t user = 0;
    std::string name;
    bool has_registry = false; ///< false: a lock file or segments alone, which the last domain of this name left

    friend bool operator==(const DomainName&, const DomainName&) = default;
};

/// The domains that have files in `folder`, sorted by user and name.
/// Progress: some system calls; it waits for nobody.
/// Throws: not_found, no_permission (the folder).
/// If the caller dies here: nothing is shared. [crash: none, it only reads]
[[nodiscard]] std::vector<DomainName> list_domains(const std::string& folder = std::string(shared_memory_folder));

/// Whether a member lives, as far as can be seen.
enum class MemberLife : std::uint8_t {
    alive,   ///< its lock is held
    dead,    ///< its lock is free, and nobody has reaped it yet
    unknown, ///< these are copies, or the lock cannot be looked at
};

/// A member, as its records and its lock tell.
struct ObservedMember {
    std::uint8_t slot = 0;
    std::uint64_t incarnation = 0;
    MemberLife life = MemberLife::unknown;
    ProcessInfo process;
    std::uint64_t joined_ns = 0; ///< CLOCK_REALTIME
};

/// What one slot's owner has of a pool: references.
struct ObservedHolder {
    std::uint8_t slot = 0;
    Owner owner;                    ///< the slot, and the low bits of the incarnation
    std::uint32_t held_count = 0;   ///< in its hands
    std::uint32_t queued_count = 0; ///< pushed by it, and still in ports
};

/// A pool, and who holds what of it.
struct ObservedPool {
    std::string name;
    BufferPoolOptions options;
    pid_t creator_pid = 0;
    std::uint32_t free_count = 0;        ///< buffers that no reference word is in use of
    std::uint32_t held_count = 0;        ///< references
    std::uint32_t queued_count = 0;      ///< references
    std::vector<ObservedHolder> holders; ///< by slot
};

/// One end of a port.
struct ObservedEnd {
    bool was_attached = false; ///< ever
    StreamEnd state =
        StreamEnd::open;              ///< open: attached now, or never was; closed or died: nobody is attached any more
    bool is_waited_on = false;        ///< somebody sleeps on this end, or was killed while it did
    PortCounters counters;            ///< of all, the dead and closed ones too
    std::vector<PortHandles> handles; ///< of who is attached, by slot
};

/// A port, and who is attached to it.
struct ObservedPort {
    std::string name;
    PortOptions options;
    pid_t creator_pid = 0;
    std::uint32_t depth = 0; ///< messages in it
    ObservedEnd producers;
    ObservedEnd consumers;
};

/// What there is in a domain.
struct DomainSnapshot {
    std::string name;
    uid_t user = 0;
    std::uint64_t registry_id = 0;
    bool is_kept = false;
    SegmentOwner owner;
    std::int64_t taken_ns = 0;           ///< CLOCK_MONOTONIC
    std::uint64_t control_bytes = 0;     ///< of the files: registry, ports, the pools' control
    std::uint64_t payload_bytes = 0;     ///< of the files: the pools' payload
    std::vector<ObservedMember> members; ///< by slot
    std::vector<ObservedPool> pools;     ///< in the order in which they were made
    std::vector<ObservedPort> ports;
    std::vector<std::string> notes; ///< what could not be looked at, and why
};

/// Looks at one domain.
class DomainObserver {
public:
    /// Where its files are.
    struct Options {
        std::optional<uid_t> user = {};                         ///< whose domain; this process's user unless given
        std::string folder = std::string(shared_memory_folder); ///< or one with copies of its files
    };

    /// Progress: some system calls; it waits for nobody.
    /// Throws: invalid_name, not_found, no_permission, wrong_kind, wrong_layout, truncated, corrupt.
    /// If the caller dies here: nothing is shared. [crash: none, it only reads]
    explicit DomainObserver(std::string_view name, const Options& options);
    explicit DomainObserver(std::string_view name) : DomainObserver(name, Options()) {}
    DomainObserver(DomainObserver&&) noexcept;
    DomainObserver& operator=(DomainObserver&&) noexcept;
    ~DomainObserver();

    /// What there is now. Without `counts_buffers`, it does not read the pools' words, which takes time proportional to
    /// the buffers, and leaves the pools' counts 0. Pools and ports that cannot be opened are named in the notes.
    /// Progress: a few system calls for each new pool and port, one for each member; waits for nobody.
    /// Throws: std::bad_alloc; what cannot be opened is in the notes.
    /// If the caller dies here: nothing is shared. [crash: none, it only reads]
    [[nodiscard]] DomainSnapshot look(bool counts_buffers = true);

    /// Names each broken invariant of the domain; empty when it is sound. With CheckMode::quiet, what somebody is in the
    /// middle of counts as broken too.
    /// Progress: as look(); takes time proportional to the cells and words.
    /// If the caller dies here: as look(). [crash: none, it only reads]
    [[nodiscard]] std::vector<std::string> check(DomainCensus* census = nullptr, CheckMode mode = CheckMode::live);

    /// Whether the name still is this domain's: false when its last member left, or it was removed. Copies are.
    /// Progress: a system call; it waits for nobody.
    /// If the caller dies here: nothing is shared. [crash: none, it only reads]
    [[nodiscard]] bool is_current() const noexcept;

private:
    class [[gnu::visibility("hidden")]] State;
    std::unique_ptr<State> state_;
};

} // namespace weir
#pragma GCC visibility pop
