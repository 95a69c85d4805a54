// Where it has bitten others: deaths, forks, namespaces, users, full and hostile /dev/shm, seen by a whole domain.
#include "catch.hpp"
#include "domain_testing.hpp"

#include <weir/domain.hpp>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

using namespace weir;
using namespace std::chrono_literals;
using test::check;
using test::Child;
using test::error_of;
using test::fail_child;
using test::Name;
using test::quick;
using test::small_pool;
using test::small_port;
using test::Victim;

namespace {

constexpr uid_t first_user = 61'001;
constexpr uid_t second_user = 61'002;
constexpr gid_t common_group = 61'000;

/// A member that holds one buffer and has pushed one message, until it is killed.
template <class Ready>
void hold_and_push(std::string_view name, Ready&& ready) {
    Domain domain = Domain::join(name);
    BufferPool frames = domain.pool("frames", small_pool);
    Producer out = domain.producer("raw", small_port);
    if (out.push(frames.allocate()) != PushResult::ok) {
        fail_child("the push failed");
    }
    const BufferPtr held = frames.allocate();
    ready();
}

/// That what hold_and_push() left is reaped, and all of it.
void require_reaped(Domain& domain) {
    const ReapReport report = domain.reap();
    INFO(report.note);
    CHECK(report.error == std::error_code());
    CHECK(report.dead_count == 1);
    CHECK(report.ended_count == 1);
    CHECK(report.freed_reference_count == 1);
    CHECK(report.kept_message_count == 1);
    DomainCensus census;
    CHECK(check(domain, &census).empty());
    CHECK(census.free_count == 15);
    CHECK(census.queued_reference_count == 1);
    CHECK(domain.members().size() == 1);
}

void become(uid_t user, gid_t group) {
    if (setgroups(0, nullptr) != 0 || setresgid(group, group, group) != 0 || setresuid(user, user, user) != 0) {
        fail_child("cannot become user %u", user);
    }
}

bool is_root() {
    if (geteuid() != 0) {
        WARN("skipped: only root can be two users");
    }
    return geteuid() == 0;
}

/// Runs `body` in a child and fails with what it says.
template <class Body>
void in_child(Body&& body) {
    Child child([&] {
        try {
            body();
        } catch (const std::exception& error) {
            fail_child("%s", error.what());
        }
    });
    const test::ChildEnd end = child.wait();
    INFO(end.said);
    CHECK(end.succeeded());
}

/// The same, where the child needs namespaces of its own: exit status 77 says that they are refused.
template <class Body>
void in_namespaces(int flags, const char* what, Body&& body) {
    Child child([&] {
        if (unshare(flags) != 0) {
            _exit(77);
        }
        try {
            body();
        } catch (const std::exception& error) {
            fail_child("%s", error.what());
        }
    });
    const test::ChildEnd end = child.wait();
    if (WIFEXITED(end.status) && WEXITSTATUS(end.status) == 77) {
        WARN("skipped: " << what << " are not permitted here");
        return;
    }
    INFO(end.said);
    CHECK(end.succeeded());
}

void expect(bool holds, const char* what) {
    if (!holds) {
        fail_child("FAILED: %s", what);
    }
}

std::string bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

} // namespace

// --- Forks -----------------------------------------------------------------------------------------------------------

TEST_CASE("who is no member reaps, and a domain whose members all died stays as it is", "[domain]") {
    const Name name;
    Victim victim([&](auto&& ready) {
        Domain mine = Domain::join(name);
        BufferPool frames = mine.pool("frames", small_pool);
        const BufferPtr held = frames.allocate();
        Producer out = mine.producer("raw", small_port);
        static_cast<void>(out.push(frames.allocate()));
        ready();
    });
    CHECK(Domain::reap(name, {}).dead_count == 0);
    victim.kill();
    const auto files = name.files();
    const ReapReport report = Domain::reap(name, {});
    CHECK_FALSE(report.error);
    CHECK(report.dead_count == 1);
    CHECK(report.ended_count == 1);
    CHECK(report.freed_reference_count == 1);
    CHECK(report.kept_message_count == 1);
    CHECK(Domain::reap(name, {}).dead_count == 0);
    CHECK(name.files() == files);
    Domain after = Domain::join(name);
    CHECK(after.consumer("raw").try_pop());
    after.leave();
    CHECK(error_of([&] { return Domain::reap(name, {}); }) == errc::not_found);
}

TEST_CASE("a forked child that outlives its parent keeps nothing of it alive", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    static_cast<void>(domain.pool("frames", small_pool));
    static_cast<void>(domain.port("raw", small_port));
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    const bool execs = GENERATE(false, true);
    CAPTURE(execs);
    {
        Victim victim([&](auto&& ready) {
            hold_and_push(name, [&] {
                if (fork() == 0) {
                    // The child has the parent's mappings and, but for the lock's, its descriptors. Who waits for the
                    // parent reads its errors to their end.
                    close(STDERR_FILENO);
                    if (execs) {
                        execlp("cat", "cat", "-", nullptr);
                    }
                    dup2(ends[0], STDIN_FILENO);
                    close(ends[1]);
                    char end = 0;
                    _exit(read(STDIN_FILENO, &end, 1) == 0 ? 0 : 1);
                }
                ready();
            });
        });
        victim.kill();
    }
    require_reaped(domain);
    close(ends[0]);
    close(ends[1]);
}

TEST_CASE("a child's calls of inherited handles fail, and its destructors change nothing", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    std::optional<BufferPool> frames = domain.pool("frames", small_pool);
    std::optional<Producer> out = domain.producer("raw", small_port);
    std::optional<Consumer> in = domain.consumer("raw");
    REQUIRE(out->push(frames->allocate()) == PushResult::ok);
    BufferPtr held = frames->allocate();
    in_child([&] {
        const auto is_refused = [](const std::error_code& error) { return error == errc::used_after_fork; };
        expect(is_refused(error_of([&] { return domain.pool("frames"); })), "pool()");
        expect(is_refused(error_of([&] { return domain.port("raw"); })), "port()");
        expect(is_refused(error_of([&] { return domain.members(); })), "members()");
        expect(is_refused(error_of([&] { domain.leave(); })), "leave()");
        expect(is_refused(domain.reap().error), "reap()");
        expect(!frames->try_allocate() && !frames->allocate(), "allocate()");
        expect(out->try_push(std::move(held)) == PushResult::failed && is_refused(out->last_error()), "push()");
        expect(!in->try_pop() && is_refused(in->last_error()), "pop()");
        held.reset();
        out.reset();
        in.reset();
        frames.reset();
        { Domain gone = std::move(domain); }
        // It may join for itself.
        Domain own = Domain::join(name);
        expect(own.members().size() == 2, "two members");
        expect(static_cast<bool>(own.consumer("raw").pop()), "the message is still there");
    });
    CHECK(domain.members().size() == 1);
    CHECK(frames->free_count() == 15);
    CHECK(held);
    CHECK(in->stream_end() == StreamEnd::open);
    CHECK(out->try_push(std::move(held)) == PushResult::ok);
    CHECK(in->pop());
    CHECK(check(domain).empty());
}

// --- Ways to be dead, and not ----------------------------------------------------------------------------------------

TEST_CASE("a zombie that nobody collects is dead", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    const pid_t pid = fork();
    if (pid == 0) {
        hold_and_push(name, [&] {
            expect(write(ends[1], "r", 1) == 1, "write");
            kill(getpid(), SIGKILL);
        });
    }
    char ready = 0;
    REQUIRE(read(ends[0], &ready, 1) == 1);
    siginfo_t info{};
    REQUIRE(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) == 0); // it stays a zombie
    require_reaped(domain);
    CHECK(waitpid(pid, nullptr, 0) == pid);
    close(ends[0]);
    close(ends[1]);
}

TEST_CASE("a process whose main thread has ended is a member while another thread runs", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name, quick());
    Victim victim([&](auto&& ready) {
        std::thread([&] {
            std::this_thread::sleep_for(5ms); // the main thread is gone by now, or soon
            hold_and_push(name, ready);
        }).detach();
        syscall(SYS_exit, 0); // of this thread alone; pthread_exit() would unwind the test framework
    });
    std::this_thread::sleep_for(20ms);
    CHECK(domain.reap().dead_count == 0);
    CHECK(domain.members().size() == 2);
    victim.kill();
    require_reaped(domain);
}

TEST_CASE("members in other PID namespaces, with and without a /proc of their own, are seen to live and die",
          "[domain]") {
    const Name name;
    const char* proc = GENERATE("the outer one", "its own", "hidepid", "none");
    CAPTURE(proc);
    in_namespaces(CLONE_NEWPID | CLONE_NEWNS, "PID namespaces", [&] {
        Domain domain = Domain::join(name, quick());
        BufferPool frames = domain.pool("frames", small_pool);
        static_cast<void>(domain.port("raw", small_port));
        // unshare() put this process's children into the new namespace, not itself.
        Victim victim([&](auto&& ready) {
            expect(getpid() == 1, "a namespace of its own");
            expect(test::hide_mounts_at("/proc"), "hide mounts");
            const std::string_view wanted = proc;
            if (wanted == "its own" || wanted == "hidepid") {
                expect(mount("proc", "/proc", "proc", 0, wanted == "hidepid" ? "hidepid=2" : nullptr) == 0, "mount");
            } else if (wanted == "none") {
                expect(mount("tmpfs", "/proc", "tmpfs", 0, nullptr) == 0, "mount");
            }
            hold_and_push(name, [&] {
                // This one sees the outer member alive, whose pid means something else here.
                Domain inner = Domain::join(name);
                expect(inner.reap().dead_count == 0, "the outer member lives");
                expect(inner.members().size() == 3, "three members");
                ready();
            });
        });
        expect(domain.reap().dead_count == 0, "the inner members live");
        PeerWatch watch(domain);
        victim.kill();
        const ReapReport report = domain.reap();
        expect(report.dead_count == 2 && report.ended_count == 2, "both are found dead");
        expect(report.freed_reference_count == 1, "what was held is free");
        expect(domain.members().size() == 1, "one member");
        expect(frames.free_count() == 15, "one is queued");
    });
}

TEST_CASE("250 processes join, are killed at once, and are reaped by one who joins", "[domain]") {
    const Name name;
    {
        std::vector<std::unique_ptr<Victim>> victims;
        for (int number = 0; number < 250; ++number) {
            victims.push_back(std::make_unique<Victim>([&](auto&& ready) {
                Domain domain = Domain::join(name);
                BufferPool frames = domain.pool("many", {.buffer_bytes = 64, .buffer_count = 256});
                const BufferPtr held = frames.try_allocate();
                expect(static_cast<bool>(held), "a buffer");
                ready();
            }));
        }
        {
            Domain domain = Domain::join(name);
            CHECK(domain.members().size() == 251);
            CHECK(domain.pool("many").free_count() == 6);
            CHECK(domain.reap().dead_count == 0);
        }
        for (const auto& victim : victims) {
            kill(victim->pid(), SIGKILL);
        }
        for (const auto& victim : victims) {
            victim->kill();
        }
    }
    Domain domain = Domain::join(name);
    CHECK(domain.members().size() == 1);
    CHECK(domain.pool("many").free_count() == 256);
    CHECK(check(domain).empty());
}

TEST_CASE("slots of the dead are used again where no other is free", "[domain]") {
    const Name name;
    Victim victim([&](auto&& ready) {
        std::vector<Domain> members;
        for (unsigned number = 0; number < process_slot_count; ++number) {
            members.push_back(Domain::join(name));
        }
        BufferPool frames = members[77].pool("frames", small_pool);
        const BufferPtr held = frames.allocate();
        ready();
    });
    CHECK(error_of([&] { return Domain::join(name); }) == errc::table_full);
    victim.kill();
    Domain domain = Domain::join(name);
    CHECK(domain.members().size() == 1);
    CHECK(domain.pool("frames").free_count() == 16);
    CHECK(check(domain).empty());
}

TEST_CASE("who is stopped while it joins makes others busy, and one that is killed there does not", "[domain]") {
    const Name name;
    static_cast<void>(Domain::join(name));
    Victim victim([&](auto&& ready) {
        const LockFile lock =
            LockFile::take(segment_path(DomainNames(geteuid(), name.text()).lock()), own_files_only(), deadline_never);
        ready();
    });
    kill(victim.pid(), SIGSTOP);
    JoinOptions options;
    options.timeout = 20ms;
    CHECK(error_of([&] { return Domain::join(name, options); }) == errc::busy);
    victim.kill();
    static_cast<void>(Domain::join(name));
    CHECK(name.files().empty());
}

TEST_CASE("the last leaves while another joins, ten thousand times", "[domain]") {
    const Name name;
    constexpr int rounds = 5'000; // by each of two
    JoinOptions patient;          // the lock file is not fair, and a busy machine less so
    patient.timeout = 1h;
    const auto join_and_leave = [&](int who) {
        for (int round = 0; round < rounds; ++round) {
            Domain domain = Domain::join(name, patient);
            if (round % 16 == 0) {
                BufferPool frames = domain.pool("frames", small_pool);
                Producer out = domain.producer("port" + std::to_string(who), small_port);
                Consumer in = domain.consumer("port" + std::to_string(who));
                expect(out.try_push(frames.allocate()) == PushResult::ok, "push");
                expect(static_cast<bool>(in.try_pop()), "pop");
            }
            expect(domain.members().size() <= 2, "two members at most");
        }
    };
    Child one([&] { join_and_leave(1); });
    Child two([&] { join_and_leave(2); });
    const test::ChildEnd end_one = one.wait();
    const test::ChildEnd end_two = two.wait();
    INFO(end_one.said << end_two.said);
    CHECK(end_one.succeeded());
    CHECK(end_two.succeeded());
    CHECK(name.files().empty());
}

// --- A full table ----------------------------------------------------------------------------------------------------

namespace {

constexpr PoolOptions pool_of_many{.buffer_bytes = 64, .buffer_count = 1024};
constexpr PortOptions port_of_many{.capacity = 8, .when_full = WhenFull::drop_oldest};

/// What a process that wants to be a member says to the test, in memory that both have.
struct Candidate {
    enum State : std::uint32_t { trying, joined, settled };

    std::atomic<std::uint32_t> state;
    std::uint32_t slot;
    std::uint64_t incarnation;
    std::atomic<std::uint32_t> reaped_count;
};

struct Candidates {
    static constexpr std::size_t count_max = 2'000;

    std::atomic<std::uint32_t> is_over;      ///< no more are killed: who is not in yet tries once more
    std::atomic<std::uint32_t> joiners_reap; ///< nobody else does
    Candidate all[count_max];
};

/// Tries to become a member until it is one or all deaths are over; then holds one buffer until it is killed.
void be_a_candidate(std::string_view name, Candidates& candidates, Candidate& mine, std::uint64_t seed,
                    bool is_reaper) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); // there are too many of them to be left behind by a test that is interrupted
    test::Random random(seed);
    for (bool is_last_try = false; !is_last_try;) {
        is_last_try = candidates.is_over.load() != 0;
        JoinOptions options;
        options.timeout = is_last_try ? std::chrono::nanoseconds(1h) : std::chrono::microseconds(random.below(20'000));
        std::optional<Domain> domain;
        try {
            domain.emplace(Domain::join(name, options));
        } catch (const std::system_error& error) {
            expect(error.code() == errc::table_full || (error.code() == errc::busy && !is_last_try), error.what());
            continue;
        }
        mine.slot = domain->membership().slot;
        mine.incarnation = domain->membership().incarnation;
        mine.state.store(Candidate::joined);
        BufferPool frames = domain->pool("frames");
        Producer out = domain->producer("raw");
        const BufferPtr held = frames.try_allocate();
        BufferPtr pushed = frames.try_allocate();
        expect(held && pushed, "two buffers");
        expect(out.try_push(std::move(pushed)) == PushResult::ok, "push");
        mine.state.store(Candidate::settled);
        for (;;) {
            if (!is_reaper) {
                pause();
            }
            if (candidates.joiners_reap.load() == 0) {
                mine.reaped_count.fetch_add(domain->reap().ended_count);
            }
            std::this_thread::sleep_for(std::chrono::microseconds(random.below(3'000)));
        }
    }
}

/// Whether a child has ended, which it still can be waited for.
bool has_ended(const Child& child) {
    siginfo_t info{};
    return waitid(P_PID, static_cast<id_t>(child.pid()), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
}

} // namespace

TEST_CASE("members of a full domain are killed while others try to join: as many get in as have died", "[domain]") {
    struct Living {
        std::unique_ptr<Child> child;
        Candidate* candidate;
        bool was_member; ///< since before this round
    };
    constexpr unsigned rounds = 24;
    constexpr std::size_t places = process_slot_count - 1; // one is the test's own

    test::Random random(test::seed());
    CAPTURE(test::seed());
    const Name name;
    const Segment memory = Segment::anonymous(sizeof(Candidates));
    auto& candidates = *new (memory.bytes().data()) Candidates;
    std::size_t candidate_count = 0;
    std::uint32_t reaped_count = 0;
    std::uint32_t killed_count = 0;
    std::uint32_t unknown_count = 0; // killed before they could say whether they were members
    std::set<std::pair<std::uint32_t, std::uint64_t>> identities;
    std::vector<Living> living;

    Domain domain = Domain::join(name);
    BufferPool frames = domain.pool("frames", pool_of_many);
    static_cast<void>(domain.port("raw", port_of_many));

    const auto start = [&] {
        REQUIRE(candidate_count < Candidates::count_max);
        Candidate& mine = candidates.all[candidate_count++];
        const std::uint64_t seed = random.next();
        const bool is_reaper = candidate_count % 64 == 0;
        auto child = std::make_unique<Child>([&] { be_a_candidate(name, candidates, mine, seed, is_reaper); }, 1'000);
        living.push_back({std::move(child), &mine, false});
    };
    const auto kill_one = [&](std::vector<Living>& dead) {
        // Often one of the newest, which are at the end, and may be in the middle of joining.
        const std::size_t choice = random.one_in(3) ? std::size_t{4} : living.size();
        const auto victim = living.end() - 1 - static_cast<std::ptrdiff_t>(random.below(choice));
        victim->child->kill(SIGKILL);
        dead.push_back(std::move(*victim));
        living.erase(victim);
        ++killed_count;
    };
    const auto note = [&](const Living& one) {
        const bool is_new = identities.emplace(one.candidate->slot, one.candidate->incarnation).second;
        CHECK(is_new); // one slot's incarnation belongs to one membership
    };
    /// Until each has settled, or has given up, or has found something wrong.
    const auto wait_for_all = [&] {
        for (auto one = living.begin(); one != living.end();) {
            while (one->candidate->state.load() != Candidate::settled && !has_ended(*one->child)) {
                std::this_thread::sleep_for(200us);
            }
            if (one->candidate->state.load() == Candidate::settled && !has_ended(*one->child)) {
                if (!one->was_member) {
                    note(*one);
                    one->was_member = true;
                }
                ++one;
                continue;
            }
            const test::ChildEnd end = one->child->wait();
            INFO(end.said);
            CHECK(end.succeeded());
            CHECK(one->candidate->state.load() == Candidate::trying);
            one = living.erase(one);
        }
    };

    for (std::size_t number = 0; number < places; ++number) {
        start();
    }
    candidates.is_over.store(1);
    wait_for_all();
    REQUIRE(living.size() == places);

    for (unsigned round = 0; round < rounds; ++round) {
        CAPTURE(round);
        CHECK(error_of([&] { return Domain::join(name); }) == errc::table_full);
        candidates.is_over.store(0);
        candidates.joiners_reap.store(round % 2);
        const std::size_t kills = 1 + random.below(std::size_t{24});
        const std::size_t newcomers = kills + random.below(std::size_t{8});
        std::vector<Living> dead;
        for (std::size_t killed = 0, come = 0; killed < kills || come < newcomers;) {
            if (random.one_in(4)) {
                std::this_thread::sleep_for(std::chrono::microseconds(random.below(2'000)));
            }
            if (candidates.joiners_reap.load() == 0 && random.one_in(8)) {
                reaped_count += domain.reap().ended_count;
            }
            if (random.one_in(2) && come < newcomers) {
                start();
                ++come;
            } else if (killed < kills) {
                kill_one(dead);
                ++killed;
            }
        }
        for (Living& one : dead) {
            const test::ChildEnd end = one.child->wait();
            INFO(end.said);
            CHECK(end.signal() == SIGKILL);
            if (one.was_member) {
                continue;
            }
            if (one.candidate->state.load() == Candidate::trying) {
                ++unknown_count;
            } else {
                note(one);
            }
        }
        // Nobody dies any more. Who has not got in tries once more, and exactly so many get in as there is room for.
        candidates.is_over.store(1);
        const std::size_t wanting = living.size();
        wait_for_all();
        CHECK(living.size() == std::min(wanting, places));
        while (living.size() < places) {
            start();
        }
        wait_for_all();
        REQUIRE(living.size() == places);
        CHECK(error_of([&] { return Domain::join(name); }) == errc::table_full);

        reaped_count += domain.reap().ended_count;
        const std::vector<MemberInfo> members = domain.members();
        CHECK(members.size() == process_slot_count);
        std::uint64_t membership_count = 0;
        std::map<pid_t, MemberInfo> by_pid;
        for (const MemberInfo& member : members) {
            CHECK(member.is_alive);
            membership_count += member.incarnation + 1;
            by_pid[member.process.pid] = member;
        }
        // Who is alive is the member that it was when it joined: nobody has reaped it.
        for (const Living& one : living) {
            const MemberInfo& member = by_pid[one.child->pid()];
            CHECK(member.slot == one.candidate->slot);
            CHECK(member.incarnation == one.candidate->incarnation);
        }
        // And who is dead was reaped once: each membership, the test's too, had one incarnation and no more.
        CHECK(membership_count >= identities.size() + 1);
        CHECK(membership_count <= identities.size() + 1 + unknown_count);
        DomainCensus census;
        CHECK(check(domain, &census).empty());
        CHECK(census.held_reference_count == places);
        CHECK(census.free_count + census.held_reference_count + census.queued_reference_count ==
              pool_of_many.buffer_count);
    }
    for (std::size_t number = 0; number < candidate_count; ++number) {
        reaped_count += candidates.all[number].reaped_count.load();
    }
    CHECK(reaped_count <= killed_count);
    living.clear();
    static_cast<void>(domain.reap());
    CHECK(domain.members().size() == 1);
    DomainCensus census;
    CHECK(check(domain, &census).empty());
    CHECK(census.held_reference_count == 0);
}

// --- Users -----------------------------------------------------------------------------------------------------------

TEST_CASE("two users' domains of one name never meet", "[domain]") {
    if (!is_root()) {
        return;
    }
    const Name name;
    Domain domain = Domain::join(name);
    static_cast<void>(domain.pool("frames", small_pool));
    in_child([&] {
        become(first_user, first_user);
        {
            Domain other = Domain::join(name);
            expect(other.pool_names().empty(), "no pool of another user's");
            expect(other.members().size() == 1, "no member of another user's");
        }
        JoinOptions of_root;
        of_root.user = 0;
        expect(error_of([&] { return Domain::join(name, of_root); }) == errc::no_permission, "root's domain is root's");
    });
    Segment::remove(DomainNames(first_user, name.text()).lock());
}

TEST_CASE("another user's leftovers under a domain's name are refused", "[domain]") {
    if (!is_root()) {
        return;
    }
    const Name name;
    const DomainNames names(first_user, name.text());
    const std::string which = GENERATE("lock", "registry");
    CAPTURE(which);
    in_child([&] {
        become(second_user, second_user);
        umask(0);
        if (which == "lock") {
            close(open(segment_path(names.lock()).c_str(), O_CREAT | O_EXCL | O_RDWR, 0666));
            return;
        }
        SegmentOptions options;
        options.kind = SegmentKind::registry;
        options.parameters_hash = Registry::parameters_hash();
        options.owner = FileOwner{second_user, second_user, 0666};
        Segment registry = Segment::create(names.registry(), Registry::bytes(), options);
        Registry::format(registry.bytes(), 1);
    });
    in_child([&] {
        become(first_user, first_user);
        expect(error_of([&] { return Domain::join(name); }) == errc::no_permission, "another user's file");
    });
    for (const std::string& file : list_segments(names.prefix())) {
        Segment::remove(file);
    }
}

TEST_CASE("a domain's files have its owner's mode, whatever the umask", "[domain]") {
    const mode_t mask = GENERATE(mode_t{077}, mode_t{000}, mode_t{0777});
    CAPTURE(mask);
    const Name name;
    in_child([&] {
        umask(mask);
        Domain domain = Domain::join(name);
        static_cast<void>(domain.pool("frames", small_pool));
        static_cast<void>(domain.port("raw", small_port));
        const std::vector<std::string> files = list_segments(DomainNames(geteuid(), name.text()).prefix());
        expect(files.size() == 5, "five files");
        for (const std::string& file : files) {
            struct stat status {};
            expect(stat(segment_path(file).c_str(), &status) == 0, "stat");
            expect((status.st_mode & 07777) == 0600, file.c_str());
        }
    });
    CHECK(name.files().empty());
}

TEST_CASE("a group shares a domain that one of its users makes, and reaps each other", "[domain]") {
    if (!is_root()) {
        return;
    }
    const Name name;
    const auto in_group = [](uid_t user) {
        expect(setgroups(1, &common_group) == 0 && setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0,
               "become a member of the group");
    };
    JoinOptions options;
    options.user = first_user;
    in_child([&] {
        become(second_user, second_user);
        expect(error_of([&] { return Domain::join(name, options); }) == errc::not_found, "only its user makes it");
        expect(list_segments(DomainNames(first_user, name.text()).prefix()).empty(), "nothing is made");
    });
    Victim maker([&](auto&& ready) {
        in_group(first_user);
        umask(077);
        JoinOptions make;
        make.group = common_group;
        make.keep = true;
        Domain domain = Domain::join(name, make);
        BufferPool frames = domain.pool("frames", small_pool);
        const BufferPtr held = frames.allocate();
        ready();
    });
    Victim user([&](auto&& ready) {
        in_group(second_user);
        umask(0777);
        Domain domain = Domain::join(name, options);
        BufferPool frames = domain.pool("frames");
        Producer out = domain.producer("raw", small_port);
        expect(out.push(frames.allocate()) == PushResult::ok, "push");
        const BufferPtr held = frames.allocate();
        ready();
    });
    for (const std::string& file : list_segments(DomainNames(first_user, name.text()).prefix())) {
        struct stat status {};
        REQUIRE(stat(segment_path(file).c_str(), &status) == 0);
        INFO(file);
        CHECK((status.st_mode & 07777) == 0660);
        CHECK(status.st_gid == common_group);
    }
    in_child([&] {
        in_group(first_user);
        JoinOptions wrong;
        wrong.mode = 0600;
        expect(error_of([&] { return Domain::join(name, wrong); }) == errc::other_parameters, "another mode");
        Domain domain = Domain::join(name);
        Consumer in = domain.consumer("raw");
        expect(domain.members().size() == 3, "three members");
        expect(static_cast<bool>(in.pop()), "the other user's message");
        kill(getppid(), 0);
    });
    user.kill();
    maker.kill();
    in_child([&] {
        in_group(second_user);
        Domain domain = Domain::join(name, options);
        expect(domain.members().size() == 1, "one member");
        expect(domain.pool("frames").free_count() == 16, "all is free");
        expect(domain.check().empty(), "sound");
    });
    in_child([&] {
        become(second_user, second_user);
        expect(error_of([&] { return Domain::join(name, options); }) == errc::no_permission, "not of the group");
    });
    Domain::RemoveOptions remove;
    remove.user = first_user;
    CHECK(Domain::remove(name, remove));
    Segment::remove(DomainNames(first_user, name.text()).lock());
}

TEST_CASE("what another user of its group left does not keep a domain from being made again", "[domain]") {
    if (!is_root()) {
        return;
    }
    const Name name;
    const auto in_group = [](uid_t user) {
        expect(setgroups(1, &common_group) == 0 && setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0,
               "become a member of the group");
    };
    int ready[2], go[2];
    REQUIRE(pipe(ready) == 0);
    REQUIRE(pipe(go) == 0);
    char letter = 0;
    Child maker([&] {
        in_group(first_user);
        JoinOptions make;
        make.group = common_group;
        Domain domain = Domain::join(name, make);
        static_cast<void>(domain.port("raw", small_port));
        char wait = 'r';
        expect(write(ready[1], &wait, 1) == 1 && read(go[0], &wait, 1) == 1, "in step");
    });
    REQUIRE(read(ready[0], &letter, 1) == 1);
    in_child([&] {
        in_group(second_user);
        JoinOptions options;
        options.user = first_user;
        Domain inner = Domain::join(name, options);
        static_cast<void>(inner.pool("frames", small_pool));
    });
    REQUIRE(write(go[1], &letter, 1) == 1);
    const test::ChildEnd end = maker.wait();
    INFO(end.said);
    CHECK(end.succeeded());
    for (const int descriptor : {ready[0], ready[1], go[0], go[1]}) {
        close(descriptor);
    }
    CHECK(list_segments(DomainNames(first_user, name.text()).prefix()).size() ==
          3); // the lock, and the other one's two
    in_child([&] {
        in_group(first_user);
        Domain domain = Domain::join(name);
        expect(domain.pool_names().empty(), "a new one");
        static_cast<void>(domain.pool("frames", small_pool));
    });
    Domain::RemoveOptions remove;
    remove.user = first_user;
    remove.lock_file = true;
    CHECK(Domain::remove(name, remove));
    CHECK(list_segments(DomainNames(first_user, name.text()).prefix()).empty());
}

// --- A full /dev/shm, and hostile files ------------------------------------------------------------------------------

TEST_CASE("a full /dev/shm is no_space at each creation, and leaves everything as it was", "[domain]") {
    in_namespaces(CLONE_NEWNS, "mount namespaces", [] {
        expect(test::hide_mounts_at("/dev/shm"), "hide mounts");
        expect(mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=4M") == 0, "mount /dev/shm");
        const auto fill = [](std::size_t leave_bytes) {
            const std::string path = segment_path("ballast");
            const int file = open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0600);
            expect(file >= 0 && posix_fallocate(file, 0, static_cast<off_t>((4U << 20) - leave_bytes)) == 0, "ballast");
            close(file);
        };
        const auto empty = [] { Segment::remove("ballast"); };
        const DomainNames names(geteuid(), "full");

        fill(16 << 10);
        expect(error_of([] { return Domain::join("full"); }) == errc::no_space, "no room for a registry");
        expect(list_segments(names.prefix()).size() == 1, "but for the lock file nothing is left");
        empty();

        Domain domain = Domain::join("full");
        const std::vector<std::string> files = list_segments(names.prefix());
        expect(error_of([&] { return domain.pool("large", {.buffer_bytes = 1 << 20, .buffer_count = 4}); }) ==
                   errc::no_space,
               "no room for the payload");
        // Room for the payload, none for the control segment.
        struct statvfs_free {
            static std::size_t bytes() {
                std::size_t low = 0;
                for (std::size_t size = 1 << 12; size <= 4U << 20; size += 1 << 12) {
                    const std::string path = segment_path("probe");
                    const int file = open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0600);
                    const bool fits = posix_fallocate(file, 0, static_cast<off_t>(size)) == 0;
                    close(file);
                    unlink(path.c_str());
                    if (!fits) {
                        break;
                    }
                    low = size;
                }
                return low;
            }
        };
        const std::size_t room = statvfs_free::bytes();
        const std::string ballast = segment_path("ballast");
        const int file = open(ballast.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0600);
        expect(posix_fallocate(file, 0, static_cast<off_t>(room - (16 << 10))) == 0, "ballast");
        close(file);
        expect(error_of([&] { return domain.pool("small", {.buffer_bytes = 4096, .buffer_count = 2}); }) ==
                   errc::no_space,
               "no room for the control segment");
        expect(error_of([&] { return domain.port("raw", {.capacity = 65'536}); }) == errc::no_space,
               "no room for a port");
        empty();
        expect(list_segments(names.prefix()) == files, "nothing is left");
        expect(domain.pool_names().empty() && domain.port_names().empty(), "nothing is listed");
        BufferPool frames = domain.pool("small", {.buffer_bytes = 4096, .buffer_count = 2});
        Producer out = domain.producer("raw", small_port);
        expect(out.push(frames.allocate()) == PushResult::ok, "with room it works");
        expect(domain.check().empty(), "sound");
    });
}

TEST_CASE("truncated, foreign, older, newer and random files are errors of their own at each opening", "[domain]") {
    const Name name;
    JoinOptions keep;
    keep.keep = true;
    {
        Domain domain = Domain::join(name, keep);
        static_cast<void>(domain.pool("frames", small_pool));
        static_cast<void>(domain.port("raw", small_port));
    }
    const std::vector<std::string> files = name.files();
    REQUIRE(files.size() == 4);
    const auto open_all = [&] {
        Domain domain = Domain::join(name);
        static_cast<void>(domain.pool("frames"));
        static_cast<void>(domain.port("raw"));
        return domain.check();
    };
    REQUIRE(open_all().empty());
    test::Random random(test::seed());
    CAPTURE(test::seed());
    for (const std::string& file : files) {
        const std::string path = segment_path(file);
        const std::string right = bytes_of(path);
        REQUIRE(right.size() > segment_header_bytes);
        const auto with = [&](const std::string& bytes) {
            const int descriptor = open(path.c_str(), O_RDWR | O_TRUNC);
            REQUIRE(descriptor >= 0);
            REQUIRE(write(descriptor, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
            close(descriptor);
            return error_of(open_all);
        };
        INFO(file);
        CHECK(with("") == errc::truncated);
        CHECK(with(right.substr(0, 100)) == errc::truncated);
        CHECK(with(right.substr(0, right.size() - 4096)) == errc::truncated);
        CHECK(with(std::string(right.size(), 'x')) == errc::wrong_kind);
        for (const int step : {-1, 1}) {
            std::string other_version = right;
            other_version[offsetof(SegmentHeader, layout_version)] += static_cast<char>(step);
            CHECK(with(other_version) == errc::wrong_layout);
        }
        std::string other_kind = right;
        other_kind[offsetof(SegmentHeader, kind)] = 77;
        CHECK(with(other_kind) == errc::wrong_kind);
        for (int round = 0; round < 30; ++round) {
            std::string scrambled = right;
            for (int count = random.below(64); count >= 0; --count) {
                scrambled[random.below(scrambled.size())] = static_cast<char>(random.next());
            }
            // An error or an answer, and nobody crashes: what is broken but harmless, check() names.
            Child child([&] { static_cast<void>(with(scrambled)); });
            const test::ChildEnd end = child.wait();
            INFO(end.said);
            CHECK(end.succeeded());
        }
        CHECK(with(right) == std::error_code());
        // A link, a folder and a FIFO are no segments.
        REQUIRE(rename(path.c_str(), (path + ".aside").c_str()) == 0);
        REQUIRE(symlink((path + ".aside").c_str(), path.c_str()) == 0);
        CHECK(error_of(open_all));
        unlink(path.c_str());
        REQUIRE(mkfifo(path.c_str(), 0600) == 0);
        CHECK(error_of(open_all) == errc::wrong_kind);
        unlink(path.c_str());
        REQUIRE(rename((path + ".aside").c_str(), path.c_str()) == 0);
    }
    CHECK(open_all().empty());
    CHECK(name.files() == files);
}
