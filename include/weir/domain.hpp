// domain.hpp (layer 6): Domain, this process's membership in a named group of processes and what they share.
//
// Programs that know nothing of each other join a domain by its name, and find or make pools and ports in it by theirs.
// Who comes first makes the domain; any of them may die at any instruction, and whoever notices gives back what it held.
//
//     weir::Domain domain = weir::Domain::join("camera");            // creates it if it is not there
//     weir::BufferPool frames = domain.pool("frames", {.buffer_bytes = 1 << 20, .buffer_count = 64});
//     weir::Producer out = domain.producer("raw", {.capacity = 32});
//
//     weir::Domain domain = weir::Domain::join("camera");            // in another program
//     weir::Consumer in = domain.consumer("raw");                    // which has to be there; or give its options
//
// Membership. A member holds a process slot, and with it a lock on one byte of the registry's file, which the kernel takes
// away when the process is gone (process.hpp). Handles (BufferPool, Port, Producer, Consumer) keep the membership: the
// process leaves when the last of them and the last copy of the Domain are gone, or when it dies. BufferPtrs do not: they
// must not outlive the last handle. A process may join several domains, and one domain several times; each membership has a
// slot of its own. After fork() the child has no membership: it joins for itself, and inherited handles report
// errc::used_after_fork.
//
// Who reaps. Who joins reaps all that died before. After that, the dead are looked for by whoever is about to sleep (in
// pop(), push() and allocate()): one member, elected, once a re-check interval (100 ms unless set otherwise). Who never
// sleeps calls reap() when it likes, or watches its peers' processes with a PeerWatch, which is quicker.
//
// How long things live. Pools and ports live as long as their domain. The last member that leaves removes the domain's
// names, unless somebody joined to keep it. When all members died, the names stay, and with them every message that was
// queued: who joins next reaps and goes on. remove() takes the names away. By force
// it does so while there are members: they go on with what they have mapped, but what one of them did not map before is
// lost to it, and without it it cannot reap (errc::reap_incomplete).
//
// Files. All lie in /dev/shm under names that begin with `weir+<user id>+<domain>+`: the lock file, which stays, the
// registry, and one file for a port or two for a pool. They belong to the user who made the domain, mode 0600, unless the
// one who makes it gives a group. /dev/shm lets only a file's owner and root remove it: in a domain of several users, what
// a user made stays until that user or root removes it.
//
// | at the same time                                           | allowed |
// | any other calls of one Domain, from any threads            | yes     |
// | leave(), assignment || anything of the same Domain object  | no      |
// | calls of one PeerWatch                                     | no      |
// | check() in CheckMode::quiet || anything in the domain      | no      |
//
// Set-up (join, leave, pool, port) may block, and has deadlines; what it makes is lock-free.
// Limits: 256 members, 64 pools, 1,024 ports, 1,048,576 buffers in a domain.
#pragma once

#include <weir/buffer_pool.hpp>
#include <weir/error.hpp>
#include <weir/port.hpp>
#include <weir/process.hpp>
#include <weir/reap.hpp>
#include <weir/registry.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#pragma GCC visibility push(default)
namespace weir {

/// How a process becomes a member.
struct JoinOptions {
    std::string process_name = {};                  ///< for people to read; empty: the program's
    bool create = true;                             ///< false: not_found where there is no such domain
    bool keep = false;                              ///< the last member that leaves leaves the names
    bool read_only_payload = false;                 ///< this member reads messages and writes none
    bool huge_pages = false;                        ///< tried for the payload of pools that it makes
    bool prefault = false;                          ///< touches all pages of the payloads that it makes or opens
    std::optional<uid_t> user = {};                 ///< whose domain; this process's user unless given
    std::optional<gid_t> group = {};                ///< who makes the domain shares it with this group
    std::optional<mode_t> mode = {};                ///< of its files; 0600, or 0660 with a group, unless given
    std::int64_t recheck_interval_ns = 100'000'000; ///< how often the dead are looked for; above 0
    std::chrono::nanoseconds timeout = std::chrono::seconds(5); ///< for others who join or leave
};

/// How a pool of a domain is made.
struct PoolOptions {
    std::uint64_t buffer_bytes = 0;          ///< what a buffer holds, 64 B to 1 GiB
    std::uint32_t buffer_count = 0;          ///< 1 to 1,048,576; as many in all pools of the domain together
    std::uint32_t references_per_buffer = 4; ///< 4, or 12: how many ports and processes can hold one buffer at a time
};

/// A member as people see it.
struct MemberInfo {
    std::uint8_t slot = 0;
    std::uint64_t incarnation = 0;
    bool is_alive = false; ///< false: it died, and was not reaped yet
    bool is_self = false;
    ProcessInfo process;
    std::uint64_t joined_ns = 0; ///< CLOCK_REALTIME
};

/// What a look for the dead came to.
struct ReapReport {
    std::uint32_t dead_count = 0;  ///< found dead
    std::uint32_t ended_count = 0; ///< reaped to the end, by this caller
    std::uint32_t freed_reference_count = 0;
    std::uint32_t kept_message_count = 0;
    std::uint32_t removed_segment_count = 0; ///< half-made segments of the dead
    std::error_code error;                   ///< reap_incomplete: of somebody nothing was freed
    std::string note;                        ///< what could not be opened, and why
};

namespace detail {
class [[gnu::visibility("hidden")]] DomainState;
class [[gnu::visibility("hidden")]] SchedulerState;
} // namespace detail

/// A handle on a membership. Cheap to copy.
class Domain {
public:
    /// Becomes a member of domain `name` (1 to 64 of [A-Za-z0-9._-]), and reaps who died before.
    /// Progress: blocking, until options.timeout, for others who join or leave just now.
    /// Throws: invalid_name, invalid_size (an interval that is not above 0), not_found, busy (somebody is stopped while it
    /// joins or leaves), table_full, no_space, no_permission, other_parameters (group or mode), wrong_kind, wrong_layout,
    /// truncated, corrupt.
    /// If the caller dies here: it is a member and reaped like any other, or it is not; a half-made registry is removed by
    /// who joins next. [crash: domain_join_first, domain_join, domain_join_reaps]
    [[nodiscard]] static Domain join(std::string_view name, const JoinOptions& options = {});

    /// Leaves now, which otherwise the end of the last handle does.
    /// Progress: blocking, for others who join or leave just now; within the time that join() was given.
    /// Throws: busy, where handles or copies still exist; the membership goes on.
    /// If the caller dies here: it is reaped like any other; where it was the last one, the names may stay.
    /// [crash: domain_leave, domain_leave_last]
    void leave();

    /// The pool `name`; made, where options are given and it is not there.
    /// Progress: blocking, some system calls; it waits for no other process.
    /// Throws: invalid_name, invalid_size, not_found, other_parameters, table_full (pools, or buffers in the domain),
    /// no_space, no_permission, wrong_kind, wrong_layout, truncated, corrupt, used_after_fork.
    /// If the caller dies here: the pool is there, or a private segment that whoever reaps it removes.
    /// [crash: domain_create_pool, domain_open_pool]
    [[nodiscard]] BufferPool pool(std::string_view name, const PoolOptions& options = {});

    /// The port `name`; made, where a capacity is given and it is not there. `port_id` in the options does not count.
    /// Progress: blocking, some system calls; it waits for no other process.
    /// Throws: as pool(), and invalid_capacity.
    /// If the caller dies here: the port is there, or a private segment that whoever reaps it removes.
    /// [crash: domain_create_port, domain_open_port]
    [[nodiscard]] Port port(std::string_view name, const PortOptions& options = {});

    /// An end of port(name, options). Without `wait`, its waits re-check once the domain's interval.
    /// Progress: as port().
    /// Throws: as port(), and table_full.
    /// If the caller dies here: as in port(), and as in attaching. [crash: attach]
    [[nodiscard]] Producer producer(std::string_view name, const PortOptions& options = {});
    [[nodiscard]] Producer producer(std::string_view name, const PortOptions& options, const WaitOptions& wait);
    [[nodiscard]] Consumer consumer(std::string_view name, const PortOptions& options = {});
    [[nodiscard]] Consumer consumer(std::string_view name, const PortOptions& options, const WaitOptions& wait);

    /// All pools that there are now, as one.
    /// Progress: as pool(), for each pool that is not mapped yet.
    /// Throws: as pool().
    /// If the caller dies here: nothing was changed. [crash: domain_open_pool]
    [[nodiscard]] SharedBufferAllocator pools();

    /// The names of the pools and ports, in the order in which they were made.
    /// Progress: as pool(), for each that is not mapped yet.
    /// Throws: as pool().
    /// If the caller dies here: nothing was changed. [crash: domain_open_pool, domain_open_port]
    [[nodiscard]] std::vector<std::string> pool_names();
    [[nodiscard]] std::vector<std::string> port_names();

    /// Looks for members that died, now, and gives back what they held.
    /// Progress: one system call a member; reaping takes time proportional to the cells and words.
    /// If the caller dies here: another member does what is left.
    /// [crash: domain_reap, domain_reap_nobody, domain_two_at_once]
    ReapReport reap() noexcept;

    /// Claims a port for this membership alone, among those who claim it too: a lock, which ends with the process or with
    /// release_claim(). False: another membership, or another claim of this one, has it. Nothing but claims is excluded.
    /// Progress: a system call; it waits for nobody.
    /// Throws: std::system_error where the kernel has no memory for the lock.
    /// If the caller dies here: the kernel takes its claims away. [crash: none, a lock has no state beyond the kernel's]
    [[nodiscard]] bool try_claim(const Port& port);
    void release_claim(const Port& port) noexcept;

    /// From now on the last member that leaves leaves the names.
    /// Progress: wait-free.
    /// If the caller dies here: they are kept, or they are not. [crash: none, one store]
    void keep() noexcept;

    /// Who is a member now, by slot: a snapshot.
    /// Progress: a system call for each member.
    /// Throws: used_after_fork.
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] std::vector<MemberInfo> members() const;

    /// Which of them this process is, and what the domain is called.
    /// Progress: wait-free.
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] const Membership& membership() const noexcept;
    [[nodiscard]] const std::string& name() const noexcept;

    /// What was asked for and not obtained (huge pages, say), for people to read; empty when all was.
    /// Progress: takes a lock of this process.
    /// Throws: used_after_fork.
    /// If the caller dies here: nothing is left. [crash: none, the process's own memory]
    [[nodiscard]] std::string notes() const;

    /// Names each broken invariant of the domain; empty when it is sound. Who looks from outside has a DomainObserver.
    /// Progress: as pools(); takes time proportional to the cells and words.
    /// Throws: as pool().
    /// If the caller dies here: nothing was changed. [crash: none, it only reads]
    [[nodiscard]] std::vector<std::string> check(DomainCensus* census = nullptr, CheckMode mode = CheckMode::quiet);

    /// Whose domain it is, and how long to wait.
    struct ReapOptions {
        std::optional<uid_t> user = {};
        std::chrono::nanoseconds timeout = std::chrono::seconds(5); ///< for others who join or leave
    };
    /// As reap(), for who is no member: it is none meanwhile, so that the domain stays as it is, live or with nobody in it.
    /// Throws: as join() with create = false, but for table_full; what cannot be reaped is in the report.
    /// If the caller dies here: whoever joins next does what is left. [crash: domain_reap_outside]
    /// Progress: blocking, until options.timeout, for others who join or leave just now.
    static ReapReport reap(std::string_view name, const ReapOptions& options);

    /// Whose domain it is, and what goes with it.
    struct RemoveOptions {
        std::optional<uid_t> user = {};
        bool force = false;     ///< also while it has members, which go on with what they have mapped
        bool lock_file = false; ///< also the lock file: for names that are not used again
        std::chrono::nanoseconds timeout = std::chrono::seconds(5);
    };
    /// Takes the names of domain `name` away, and all that is queued in it with them; the lock file stays, unless
    /// that is to go too. False: there was
    /// no such domain.
    /// Throws: invalid_name, busy (it has live members, or is just joined or left), no_permission.
    /// If the caller dies here: some of the names are gone; the next join or remove() takes the rest.
    /// [crash: domain_remove, domain_remove_forced]
    /// Progress: blocking, until options.timeout, for others who join or leave just now.
    static bool remove(std::string_view name, const RemoveOptions& options);
    static bool remove(std::string_view name) { return remove(name, {}); }

private:
    friend class PeerWatch;
    friend class detail::SchedulerState;

    explicit Domain(std::shared_ptr<detail::DomainState> state) noexcept : state_(std::move(state)) {}
    [[nodiscard]] detail::DomainState& state() const;

    std::shared_ptr<detail::DomainState> state_;
};

/// Notices at once when a peer's process ends, where the kernel tells: a hint to look at its lock, as the re-check is.
class PeerWatch {
public:
    /// Progress: some system calls; it waits for nobody.
    /// Throws: std::system_error (no descriptor left).
    /// If the caller dies here: the kernel takes its descriptors away. [crash: none, the process's own descriptors]
    explicit PeerWatch(const Domain& domain);
    PeerWatch(const PeerWatch&) = delete;
    PeerWatch& operator=(const PeerWatch&) = delete;
    ~PeerWatch();

    /// An epoll descriptor: readable when a peer's process has ended; then call handle().
    [[nodiscard]] int descriptor() const noexcept { return epoll_; }

    /// Looks for newcomers to watch, and reaps where a peer has ended. Call it when the descriptor is readable, and once in
    /// a while.
    /// Progress: a few system calls for each newcomer; reaping takes time proportional to the cells and words.
    /// Throws: used_after_fork; std::bad_alloc.
    /// If the caller dies here: as in Domain::reap(). [crash: domain_reap]
    ReapReport handle();

    /// How many peers are watched; others live in another PID namespace.
    /// Progress: wait-free.
    /// If the caller dies here: nothing is left. [crash: none, the process's own memory]
    [[nodiscard]] std::size_t watched_count() const noexcept;

private:
    struct Watched {
        std::uint8_t slot;
        std::uint64_t incarnation;
        int descriptor; ///< -1: its process has ended, and it was not reaped yet
    };

    void stop_watching(Watched& peer) noexcept;
    void close_all() noexcept;

    Domain domain_;
    int epoll_ = -1;
    std::vector<Watched> watched_;
};

} // namespace weir
#pragma GCC visibility pop
