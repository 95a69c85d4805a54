#include "doctor_domains.hpp"

#include "lock_holders.hpp"
#include "text.hpp"

#include <weir/observer.hpp>
#include <weir/process.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <map>
#include <optional>
#include <system_error>
#include <thread>

#include <sys/stat.h>
#include <unistd.h>

namespace weir::tool {

namespace {

// What is only so for a moment is not worth a word: somebody joins, or a member is about to reap a dead one.
constexpr std::chrono::milliseconds moment{300};

enum class Condition {
    fine,
    stopped,
    elsewhere,   ///< in another PID namespace
    unknown,     ///< its lock cannot be looked at
    dead,        ///< and not reaped yet
    lost_lock,   ///< its process runs, though its lock is free
    lock_is_kept ///< its process is gone, though its lock is held
};

struct Member {
    ObservedMember seen;
    Condition condition;

    [[nodiscard]] std::string text() const {
        return fmt::format("{} (process {})", printable(seen.process.name), seen.process.pid);
    }
};

Condition condition_of(const ObservedMember& member) {
    static const std::uint64_t here = self_info().pid_namespace;
    if (member.life == MemberLife::unknown) {
        return Condition::unknown;
    }
    const ProcessInfo& process = member.process;
    const bool is_dead = member.life == MemberLife::dead;
    if (process.pid <= 0 || process.pid_namespace == 0 || process.pid_namespace != here) {
        return is_dead ? Condition::dead : Condition::elsewhere;
    }
    const std::optional<ProcessState> state = state_of(process.pid);
    const bool is_another =
        state && process.start_time_ticks != 0 && state->start_time_ticks != process.start_time_ticks;
    const bool is_gone =
        state ? state->is_zombie() || is_another : kill(process.pid, 0) != 0 && errno == ESRCH; // /proc may hide it
    if (is_dead) {
        return state && !is_gone ? Condition::lost_lock : Condition::dead;
    }
    if (is_gone) {
        return Condition::lock_is_kept;
    }
    return state && state->is_stopped() ? Condition::stopped : Condition::fine;
}

std::string listed(const std::vector<Member>& members) {
    constexpr std::size_t named_max = 4;
    std::string text;
    for (const Member& member : members) {
        if (&member == &members.front() + named_max) {
            return text + fmt::format(" and {} more", members.size() - named_max);
        }
        text += (text.empty() ? "" : ", ") + member.text();
    }
    return text;
}

std::string listed(const LockHolders& holders) {
    std::string text;
    for (const ProcessState& process : holders.processes) {
        text += fmt::format("{}process {} ({}{})", text.empty() ? "" : " and ", process.pid, printable(process.name),
                            process.is_stopped() ? ", which is stopped" : "");
    }
    return text.empty() ? "nobody that /proc shows" : text;
}

std::optional<struct stat> status_of(const std::string& file) {
    struct stat status {};
    return lstat(segment_path(file).c_str(), &status) == 0 ? std::optional(status) : std::nullopt;
}

/// What is allocated of these files.
std::uint64_t bytes_of(const std::vector<std::string>& files) {
    std::uint64_t bytes = 0;
    for (const std::string& file : files) {
        const std::optional<struct stat> status = status_of(file);
        bytes += status ? static_cast<std::uint64_t>(status->st_blocks) * 512 : 0;
    }
    return bytes;
}

std::string counted_files(const std::vector<std::string>& files) {
    return counted(files.size(), "file") + " of " + sized(bytes_of(files));
}

class DomainDoctor {
public:
    DomainDoctor(const DomainName& domain, Findings& findings)
        : names_(domain.user, domain.name), findings_(&findings), files_(list_segments(names_.prefix())) {}

    /// False: there is nothing but a lock file that nobody keeps.
    bool look() {
        const std::size_t count = findings_->size();
        look_at_own_files();
        const bool is_locked = look_at_lock();
        // Where nobody had the lock, who was at work before is through with it: what is there still is there to stay.
        std::vector<std::string> others = files_;
        std::erase_if(others, [this](const std::string& file) { return file == names_.lock() || !status_of(file); });
        if (status_of(names_.registry())) {
            look_at_domain();
        } else if (!others.empty() && !is_locked) {
            add(Level::warning, "leftover",
                counted_files(others) + " are left of a domain that is no more: its maker or remover was killed",
                "who joins next removes them; to remove them now: " + command("rm"));
        }
        return findings_->size() > count || !others.empty();
    }

private:
    void add(Level level, const char* check, std::string what, std::string to_do = {}) {
        findings_->push_back({level, check, std::move(what), std::move(to_do), names_.domain(), names_.user()});
    }

    [[nodiscard]] std::string command(const char* verb) const {
        return fmt::format("weir {} {}{}", verb, names_.domain(),
                           names_.user() == geteuid() ? "" : fmt::format(" --user {}", names_.user()));
    }

    /// What only this user makes, and everybody needs.
    void look_at_own_files() {
        for (const std::string& file : {names_.lock(), names_.registry_draft()}) {
            const std::optional<struct stat> status = status_of(file);
            if (status && !S_ISREG(status->st_mode)) {
                add(Level::problem, "files", segment_path(file) + " is no regular file, so nobody can join",
                    "remove it: rm -r '" + segment_path(file) + "'");
            } else if (status && status->st_uid != names_.user()) {
                add(Level::problem, "files",
                    fmt::format("{} belongs to user {}, so nobody can join", segment_path(file), status->st_uid),
                    "as that user or root: rm '" + segment_path(file) + "'");
            }
        }
    }

    /// Whether somebody joins, leaves or removes names just now, and goes on with it for longer than a moment.
    bool look_at_lock() {
        const auto is_held = [this] {
            try {
                return LockDescriptor::open_to_look(segment_path(names_.lock())).is_locked_by_other(0);
            } catch (const std::system_error&) {
                return false; // there is none, or look_at_own_files() has said what is wrong with it
            }
        };
        constexpr int look_count = 10;
        for (int look = 0; is_held(); ++look) {
            if (look < look_count) {
                std::this_thread::sleep_for(moment / look_count);
                continue;
            }
            const LockHolders holders = holders_of(names_.lock(), 0);
            const auto stopped = std::ranges::find_if(holders.processes, &ProcessState::is_stopped);
            if (stopped != holders.processes.end()) {
                add(Level::problem, "joining", "nobody can join or leave: the lock is held by " + listed(holders),
                    fmt::format("let it go on, or end it: kill -CONT {0}; kill -KILL {0}", stopped->pid));
            } else {
                add(Level::note, "joining", "somebody is joining or leaving: the lock is held by " + listed(holders),
                    holders.processes.empty() ? "look again; if it stays so, as root: weir doctor"
                                              : "look again; if it stays so, see what that process is at");
            }
            return true;
        }
        return false;
    }

    void look_at_domain() {
        try {
            DomainObserver observer(names_.domain(), {.user = names_.user()});
            const std::size_t count = findings_->size();
            look_at_domain(observer);
            if (!observer.is_current()) {
                findings_->resize(count); // it ended meanwhile, which looks like much that it is not
            }
        } catch (const std::system_error& error) {
            if (error.code() == errc::wrong_layout) {
                add(Level::problem, "registry", std::string("made by another version of weir: ") + error.what(),
                    "run its programs with one version; once the others have ended: " + command("rm --force"));
            } else if (error.code() != errc::not_found) { // it ended meanwhile
                add(Level::problem, "registry", std::string("its registry cannot be opened: ") + error.what(),
                    "end its programs; then " + command("rm --force"));
            }
        }
    }

    void look_at_domain(DomainObserver& observer) {
        DomainSnapshot seen = observer.look(false);
        std::vector<Member> members = members_of(seen);
        const auto is_passing = [&members](const Member& member) {
            return member.condition == Condition::lost_lock || member.condition == Condition::lock_is_kept ||
                   (member.condition == Condition::dead && has_life(members));
        };
        if (!seen.notes.empty() || std::ranges::any_of(members, is_passing)) {
            std::this_thread::sleep_for(moment);
            files_ = list_segments(names_.prefix());
            seen = observer.look(false);
            const std::vector<Member> before = std::exchange(members, members_of(seen));
            for (Member& member : members) {
                const bool is_lasting = std::ranges::any_of(before, [&member](const Member& other) {
                    return other.seen.slot == member.seen.slot && other.seen.incarnation == member.seen.incarnation &&
                           other.condition == member.condition;
                });
                if (!is_lasting && is_passing(member)) {
                    member.condition = Condition::fine;
                }
            }
        }
        const std::size_t count = findings_->size();
        look_at_members(seen, members);
        for (const std::string& note : seen.notes) {
            tell_missing(note);
        }
        look_at_segments(seen);
        if (findings_->size() == count) {
            add(Level::fine, "members",
                fmt::format("{}, {}, {}; {} in /dev/shm", counted(members.size(), "member"),
                            counted(seen.pools.size(), "pool"), counted(seen.ports.size(), "port"),
                            counted_files(files_)) +
                    (members.empty() && seen.is_kept ? "; it is kept without members" : ""));
        }
    }

    static std::vector<Member> members_of(const DomainSnapshot& seen) {
        std::vector<Member> members;
        for (const ObservedMember& member : seen.members) {
            members.push_back({member, condition_of(member)});
        }
        return members;
    }

    /// Whether there is anybody who may be at work.
    static bool has_life(const std::vector<Member>& members) {
        return std::ranges::any_of(members, [](const Member& member) { return member.condition != Condition::dead; });
    }

    void look_at_members(const DomainSnapshot& seen, const std::vector<Member>& members) {
        std::map<Condition, std::vector<Member>> by_condition;
        for (const Member& member : members) {
            by_condition[member.condition].push_back(member);
        }
        for (const Member& member : by_condition[Condition::lock_is_kept]) {
            tell_kept_lock(member);
        }
        for (const Member& member : by_condition[Condition::lost_lock]) {
            add(Level::problem, "lost_lock",
                member.text() + " runs, but has lost its lock: it counts as dead, and its buffers are given to others",
                fmt::format("end it (kill {}), and see that it closes no descriptors that are not its own",
                            member.seen.process.pid));
        }
        if (const auto& stopped = by_condition[Condition::stopped]; !stopped.empty()) {
            add(Level::note, "stopped", "stopped, and holding what they have: " + listed(stopped),
                fmt::format("let go on what is not stopped on purpose: kill -CONT {}",
                            stopped.front().seen.process.pid));
        }
        if (const auto& elsewhere = by_condition[Condition::elsewhere]; !elsewhere.empty()) {
            add(Level::note, "pid_namespace",
                "in another PID namespace, so that their deaths are noticed by the next re-check only: " +
                    listed(elsewhere),
                "nothing, unless a re-check interval (100 ms) is too long; then start the containers with one PID "
                "namespace (docker run --pid=container:NAME)");
        }
        const std::vector<Member>& dead = by_condition[Condition::dead];
        if (!dead.empty() && !has_life(members)) {
            add(Level::warning, "leftover",
                fmt::format("nobody is left of {}, all of them dead: {}; {} in /dev/shm",
                            counted(dead.size(), "member"), listed(dead), counted_files(files_)),
                "start its programs, which go on with what is queued; or remove it: " + command("rm"));
        } else if (!dead.empty()) {
            add(Level::note, "dead_members", "dead, and not reaped yet: " + listed(dead),
                "members do it themselves when they wait; to do it now: " + command("reap"));
        } else if (members.empty() && !seen.is_kept) {
            add(Level::warning, "leftover",
                fmt::format("nobody is in it, and it was not to be kept: its last member was killed while it left; {} "
                            "in /dev/shm",
                            counted_files(files_)),
                "start its programs, which go on with what is queued; or remove it: " + command("rm"));
        }
    }

    void tell_kept_lock(const Member& member) {
        const LockHolders holders = holders_of(names_.registry(), member.seen.slot);
        const std::string what =
            member.text() + " is gone, but its lock is kept, so nobody gets what it held; by " + listed(holders);
        if (holders.processes.empty()) {
            add(Level::problem, "kept_lock", what,
                "wait, if it had I/O in flight, which the kernel ends first" +
                    (holders.hidden_count == 0 ? std::string("; or look in other PID namespaces")
                                               : fmt::format("; or as root: weir doctor ({} could not be looked at)",
                                                             counted(holders.hidden_count, "process"))));
            return;
        }
        std::string numbers;
        for (const ProcessState& process : holders.processes) {
            numbers += fmt::format(" {}", process.pid);
        }
        add(Level::problem, "kept_lock", what,
            "end that: kill" + numbers + " (a child made by a raw clone(), or one that was passed the descriptor)");
    }

    /// Those that are listed and not there, and those that are there and not listed.
    void look_at_segments(const DomainSnapshot& seen) {
        SegmentExpectation expected;
        expected.access = SegmentAccess::read_only;
        expected.kind = SegmentKind::registry;
        expected.parameters_hash = Registry::parameters_hash();
        const Segment segment = Segment::open(names_.registry(), expected);
        const Registry registry(segment.bytes());
        if (registry.id() != seen.registry_id) {
            return; // another domain by now
        }
        for (unsigned place = 0; place < pool_count_max; ++place) {
            const std::uint64_t word = registry.pools().entry(place);
            const std::string file =
                names_.segment(registry.id(), SegmentKey::of(word), SegmentKind::pool_payload); // nobody here maps it
            if (word != 0 && !status_of(file)) {
                tell_missing("segment " + file + " is not there");
            }
        }
        std::vector<std::string> half_made;
        std::vector<std::string> former;
        for (const std::string& file : files_) {
            const std::optional<DomainNames::Parsed> parsed = names_.parse(file);
            if (!parsed || !status_of(file)) {
                continue;
            }
            if (parsed->registry_id != registry.id()) {
                former.push_back(file);
                continue;
            }
            // The creator first: while it is a member, the segment may be listed any time, and whoever reaps it removes it.
            const ProcessTable::Entry creator = registry.processes().entry(parsed->key.slot);
            const bool is_member =
                creator.alive && (creator.incarnation & SegmentKey::incarnation_mask) == parsed->key.incarnation;
            if (!is_member && !registry.pools().lists(parsed->key) && !registry.ports().lists(parsed->key)) {
                half_made.push_back(file);
            }
        }
        tell_unlisted("half-made, by members that are gone", half_made);
        tell_unlisted("of an earlier domain of this name", former);
    }

    void tell_missing(const std::string& what) {
        add(Level::problem, "segments", what,
            "without it nobody who died can be reaped; end its programs, then " + command("rm"));
    }

    void tell_unlisted(const char* whose, const std::vector<std::string>& files) {
        if (!files.empty()) {
            add(Level::note, "unlisted",
                fmt::format("{} that nobody can find, {}: {}{}", counted_files(files), whose, files.front(),
                            files.size() > 1 ? ", .." : ""),
                "nothing: they go with the domain; for their room now, rm them in /dev/shm");
        }
    }

    [[nodiscard]] LockHolders holders_of(const std::string& file, std::uint64_t byte) const {
        const std::optional<struct stat> status = status_of(file);
        return status
                   ? holders_of_lock(
                         {static_cast<std::uint64_t>(status->st_dev), static_cast<std::uint64_t>(status->st_ino)}, byte)
                   : LockHolders();
    }

    DomainNames names_;
    Findings* findings_;
    std::vector<std::string> files_;
};

} // namespace

Findings look_at_domains(const std::vector<std::string>& names) {
    Findings findings;
    std::vector<DomainName> domains;
    try {
        domains = list_domains();
    } catch (const std::system_error& error) {
        return {{Level::problem, "domains", std::string("domains cannot be listed: ") + error.what(),
                 "see what is said of /dev/shm"}};
    }
    // Or one that is shared with a group of this user's.
    const auto is_ours = [](const DomainName& domain) {
        return geteuid() == 0 || domain.user == geteuid() ||
               access(segment_path(DomainNames(domain.user, domain.name).registry()).c_str(), R_OK) == 0;
    };
    std::size_t lone_lock_count = 0;
    for (const DomainName& domain : domains) {
        if (!is_ours(domain) || (!names.empty() && std::ranges::find(names, domain.name) == names.end())) {
            continue;
        }
        if (!DomainDoctor(domain, findings).look()) {
            ++lone_lock_count;
        }
    }
    for (const std::string& name : names) {
        if (std::ranges::find(findings, name, &Finding::domain) == findings.end()) {
            findings.push_back({Level::problem, "domains", "there is no domain of this name",
                                "start the program that makes it; weir ls lists what there is", name, geteuid()});
        }
    }
    if (!names.empty()) {
        return findings;
    }
    const auto others = static_cast<std::size_t>(std::ranges::count_if(domains, std::not_fn(is_ours)));
    if (others > 0) {
        findings.push_back({Level::fine, "domains",
                            fmt::format("{} of other users, which are not looked at", counted(others, "domain"))});
    }
    if (lone_lock_count > 0) {
        findings.push_back(
            {Level::fine, "domains",
             fmt::format("{} of domains that have ended, as it should be", counted(lone_lock_count, "lock file"))});
    }
    if (domains.empty()) {
        findings.push_back({Level::fine, "domains", "no domains here"});
    }
    return findings;
}

} // namespace weir::tool
