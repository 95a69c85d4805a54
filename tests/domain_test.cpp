#include "catch.hpp"
#include "domain_testing.hpp"

#include <weir/domain.hpp>

#include <algorithm>
#include <chrono>
#include <poll.h>
#include <set>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>

using namespace weir;
using namespace std::chrono_literals;
using test::check;
using test::Child;
using test::error_of;
using test::Name;
using test::quick;
using test::small_pool;
using test::small_port;
using test::Victim;

TEST_CASE("two members of a domain find each other's pool and port by name", "[domain]") {
    const Name name;
    Domain one = Domain::join(name);
    BufferPool frames = one.pool("frames", small_pool);
    Producer out = one.producer("raw", small_port);

    Child other([&] {
        Domain domain = Domain::join(name);
        Consumer in = domain.consumer("raw");
        for (int number = 0; number < 100; ++number) {
            const BufferPtr buffer = in.pop();
            if (!buffer || test::read_number(buffer) != number) {
                test::fail_child("message %d is not there", number);
            }
        }
    });
    for (int number = 0; number < 100; ++number) {
        BufferPtr buffer = frames.allocate();
        test::write_number(buffer, number);
        REQUIRE(out.push(std::move(buffer)) == PushResult::ok);
    }
    const test::ChildEnd end = other.wait();
    INFO(end.said);
    CHECK(end.succeeded());
    CHECK(frames.free_count() == 16);
    CHECK(check(one).empty());
}

TEST_CASE("the last member that leaves removes the names, and one that joined to keep them does not", "[domain]") {
    const Name name;
    {
        Domain one = Domain::join(name);
        Domain two = Domain::join(name);
        static_cast<void>(one.pool("frames", small_pool));
        static_cast<void>(two.port("raw", small_port));
        CHECK(name.files().size() == 4);
        one.leave();
        CHECK(name.files().size() == 4);
        two.leave();
        CHECK(name.files().empty());
    }
    {
        JoinOptions keep;
        keep.keep = true;
        Domain one = Domain::join(name, keep);
        BufferPool frames = one.pool("frames", small_pool);
        Producer out = one.producer("raw", small_port);
        REQUIRE(out.push(frames.allocate()) == PushResult::ok);
    }
    CHECK(name.files().size() == 4);
    {
        Domain again = Domain::join(name);
        Consumer in = again.consumer("raw");
        CHECK(in.try_pop());
        CHECK(in.stream_end() == StreamEnd::closed);
    }
    CHECK(name.files().size() == 4);
    CHECK(Domain::remove(name));
    CHECK_FALSE(Domain::remove("test.nobody-has-made-this"));
    CHECK(name.files().empty());
}

TEST_CASE("handles keep the membership, and leave() says so", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    {
        const BufferPool frames = domain.pool("frames", small_pool);
        CHECK(error_of([&] { domain.leave(); }) == errc::busy);
        const Domain copy = domain;
        CHECK(error_of([&] { domain.leave(); }) == errc::busy);
    }
    domain.leave();
    CHECK(error_of([&] { return domain.pool("frames"); }) == errc::not_a_member);
    CHECK(name.files().empty());
    domain.leave();

    std::optional<BufferPool> frames;
    {
        Domain inner = Domain::join(name);
        frames = inner.pool("frames", small_pool);
    }
    CHECK(frames->allocate());
    CHECK(name.files().size() == 3);
    frames.reset();
    CHECK(name.files().empty());
}

TEST_CASE("a member that leaks a BufferPtr gives its buffer back when it leaves", "[domain]") {
    const Name name;
    Domain stays = Domain::join(name);
    BufferPool frames = stays.pool("frames", small_pool);
    {
        Domain leaves = Domain::join(name);
        BufferPool same = leaves.pool("frames");
        BufferPtr leaked = same.allocate();
        leaked.forget();
        CHECK(frames.free_count() == 15);
    }
    CHECK(frames.free_count() == 16);
    CHECK(stays.members().size() == 1);
}

TEST_CASE("who joins reaps who died, and the queued messages are still there", "[domain]") {
    const Name name;
    Victim victim([&](auto&& ready) {
        Domain domain = Domain::join(name);
        BufferPool frames = domain.pool("frames", small_pool);
        Producer out = domain.producer("raw", small_port);
        for (int number = 0; number < 3; ++number) {
            BufferPtr buffer = frames.allocate();
            test::write_number(buffer, number);
            static_cast<void>(out.push(std::move(buffer)));
        }
        const BufferPtr held = frames.allocate();
        ready();
    });
    victim.kill();
    CHECK(name.files().size() == 4);

    Domain domain = Domain::join(name);
    CHECK(domain.members().size() == 1);
    DomainCensus census;
    CHECK(check(domain, &census).empty());
    CHECK(census.free_count == 13);
    CHECK(census.queued_reference_count == 3);
    Consumer in = domain.consumer("raw");
    for (int number = 0; number < 3; ++number) {
        const BufferPtr buffer = in.pop();
        REQUIRE(buffer);
        CHECK(test::read_number(buffer) == number);
    }
    CHECK_FALSE(in.pop());
    CHECK(in.stream_end() == StreamEnd::died);
}

TEST_CASE("a waiting member finds out that a producer died, by the re-check alone", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name, quick());
    BufferPool frames = domain.pool("frames", small_pool);
    Victim victim([&](auto&& ready) {
        Domain inner = Domain::join(name);
        BufferPool same = inner.pool("frames");
        const Producer out = inner.producer("raw", small_port);
        std::vector<BufferPtr> all;
        while (BufferPtr buffer = same.try_allocate()) {
            all.push_back(std::move(buffer));
        }
        ready();
    });
    Consumer in = domain.consumer("raw");
    CHECK(in.stream_end() == StreamEnd::open);
    CHECK_FALSE(frames.allocate_for(20ms));
    std::thread killer([&] {
        std::this_thread::sleep_for(20ms);
        victim.kill();
    });
    SECTION("by a waiting pop") {
        CHECK_FALSE(in.pop());
        CHECK(in.stream_end() == StreamEnd::died);
    }
    SECTION("by a waiting allocation") {
        CHECK(frames.allocate());
    }
    killer.join();
    CHECK(domain.members().size() == 1);
    CHECK(check(domain).empty());
}

TEST_CASE("a process that is stopped for ten re-check intervals is not reaped", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name, quick());
    BufferPool frames = domain.pool("frames", small_pool);
    Victim victim([&](auto&& ready) {
        Domain inner = Domain::join(name);
        BufferPool same = inner.pool("frames");
        const BufferPtr held = same.allocate();
        ready();
    });
    kill(victim.pid(), SIGSTOP);
    std::vector<BufferPtr> all;
    while (BufferPtr buffer = frames.allocate_for(10ms)) {
        all.push_back(std::move(buffer));
    }
    CHECK(all.size() == 15);
    CHECK(domain.reap().dead_count == 0);
    CHECK(domain.members().size() == 2);
    kill(victim.pid(), SIGCONT);
    victim.kill();
    CHECK(frames.allocate());
    CHECK(domain.members().size() == 1);
}

TEST_CASE("a PeerWatch wakes when a peer is killed", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    BufferPool frames = domain.pool("frames", small_pool);
    PeerWatch watch(domain);
    CHECK(watch.watched_count() == 0);
    Victim victim([&](auto&& ready) {
        Domain inner = Domain::join(name);
        BufferPool same = inner.pool("frames");
        const BufferPtr held = same.allocate();
        ready();
    });
    CHECK(watch.handle().dead_count == 0);
    REQUIRE(watch.watched_count() == 1);
    victim.kill();
    pollfd wanted{watch.descriptor(), POLLIN, 0};
    REQUIRE(poll(&wanted, 1, -1) == 1);
    const ReapReport report = watch.handle();
    CHECK(report.dead_count == 1);
    CHECK(report.ended_count == 1);
    CHECK(report.freed_reference_count == 1);
    CHECK(watch.watched_count() == 0);
    CHECK(frames.free_count() == 16);
}

TEST_CASE("a PeerWatch closes no descriptor but its own, though a forked child holds a watched one too", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    PeerWatch watch(domain);
    Victim victim([&](auto&& ready) {
        const Domain inner = Domain::join(name);
        ready();
    });
    static_cast<void>(watch.handle());
    REQUIRE(watch.watched_count() == 1);
    Victim forked([&](auto&& ready) {
        CHECK(error_of([&] { return watch.handle(); }) == errc::used_after_fork);
        ready(); // it keeps what it inherited
    });
    victim.kill();
    pollfd wanted{watch.descriptor(), POLLIN, 0};
    REQUIRE(poll(&wanted, 1, -1) == 1);
    CHECK(watch.handle().ended_count == 1);
    CHECK(poll(&wanted, 1, 0) == 0);
    std::vector<int> others; // which get the numbers that are free by now
    for (int count = 0; count < 16; ++count) {
        others.push_back(open("/dev/null", O_RDONLY | O_CLOEXEC));
    }
    static_cast<void>(watch.handle());
    for (const int other : others) {
        CHECK(fcntl(other, F_GETFD) >= 0);
        close(other);
    }
}

TEST_CASE("a member that cannot reap leaves it to those who can", "[domain]") {
    const Name name;
    Domain healthy = Domain::join(name, quick());
    Consumer in = healthy.consumer("raw", small_port);
    static_cast<void>(healthy.port("hidden", small_port));
    Victim producer([&](auto&& ready) {
        Domain inner = Domain::join(name);
        const Producer out = inner.producer("raw");
        ready();
    });
    // It has not mapped the hidden port, which is gone by the time that it wants to reap.
    Victim unable([&](auto&& ready) {
        Domain inner = Domain::join(name, quick());
        Consumer its = inner.consumer("raw");
        std::thread([&] { static_cast<void>(its.pop()); }).detach();
        ready();
    });
    std::string hidden;
    for (const std::string& file : name.files()) {
        if (file.ends_with(".port") && Segment::open(file, {.kind = SegmentKind::port}).label() == "hidden") {
            hidden = segment_path(file);
        }
    }
    REQUIRE_FALSE(hidden.empty());
    REQUIRE(rename(hidden.c_str(), (hidden + ".aside").c_str()) == 0);
    producer.kill();
    CHECK_FALSE(in.pop()); // without the hand-over it would not come back while the other one waits
    CHECK(in.stream_end() == StreamEnd::died);
    REQUIRE(rename((hidden + ".aside").c_str(), hidden.c_str()) == 0);
}

TEST_CASE("a process may join one domain twice, and several domains", "[domain]") {
    const Name name;
    const Name other_name;
    Domain one = Domain::join(name);
    Domain two = Domain::join(name);
    Domain other = Domain::join(other_name);
    CHECK(one.membership().slot != two.membership().slot);
    BufferPool frames = one.pool("frames", small_pool);
    BufferPool same = two.pool("frames");
    static_cast<void>(other.pool("frames", {.buffer_bytes = 128, .buffer_count = 4}));
    Producer out = one.producer("raw", small_port);
    Consumer in = two.consumer("raw");
    REQUIRE(out.push(frames.allocate()) == PushResult::ok);
    const BufferPtr got = in.pop();
    REQUIRE(got);
    CHECK(got.pool() == &same.view());
    CHECK(one.reap().dead_count == 0);
    CHECK(one.members().size() == 2);
}

TEST_CASE("a pool is mapped when a message in it comes along", "[domain]") {
    const Name name;
    Domain one = Domain::join(name);
    Domain two = Domain::join(name);
    Producer out = one.producer("raw", small_port);
    Consumer in = two.consumer("raw");
    BufferPool small = one.pool("small", small_pool);
    BufferPool large = one.pool("large", {.buffer_bytes = 4096, .buffer_count = 8, .references_per_buffer = 12});
    for (int round = 0; round < 3; ++round) {
        REQUIRE(out.push(large.allocate()) == PushResult::ok);
        REQUIRE(out.push(small.allocate()) == PushResult::ok);
        const BufferPtr first = in.pop();
        const BufferPtr second = in.pop();
        REQUIRE(first);
        REQUIRE(second);
        CHECK(first.capacity_bytes() == 4096);
        CHECK(second.capacity_bytes() == 64);
    }
    CHECK(two.pool_names() == std::vector<std::string>{"small", "large"});
    CHECK(two.port_names() == std::vector<std::string>{"raw"});
    CHECK(two.pools().fits(4096));
    CHECK(check(two).empty());
}

TEST_CASE("a pool that cannot be mapped does not keep the messages of others from being taken", "[domain]") {
    const Name name;
    Domain one = Domain::join(name);
    Domain two = Domain::join(name);
    Producer out = one.producer("raw", small_port);
    Consumer in = two.consumer("raw");
    BufferPool broken = one.pool("broken", small_pool);
    std::vector<std::string> files = name.files();
    std::erase_if(files, [](const std::string& file) { return !file.ends_with(".payload"); });
    REQUIRE(files.size() == 1);
    BufferPool sound = one.pool("sound", small_pool);
    const std::string path = segment_path(files.front());
    REQUIRE(rename(path.c_str(), (path + ".aside").c_str()) == 0);
    REQUIRE(out.push(sound.allocate()) == PushResult::ok);
    REQUIRE(out.push(broken.allocate()) == PushResult::ok);
    CHECK(in.try_pop());
    CHECK_FALSE(in.try_pop());
    CHECK(in.last_error() == errc::unknown_buffer);
    CHECK(in.stream_end() == StreamEnd::open);
    CHECK_FALSE(two.notes().empty());
    REQUIRE(rename((path + ".aside").c_str(), path.c_str()) == 0);
    CHECK(in.try_pop());
}

TEST_CASE("a consumer waits for a producer to come, and for the next one after the end", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name, quick());
    Consumer in = domain.consumer("raw", small_port);
    BufferPool frames = domain.pool("frames", small_pool);
    CHECK_FALSE(in.wait_for_producer(0ns));
    CHECK_FALSE(in.wait_for_producer(5ms));
    for (const bool is_killed : {false, true}) {
        Victim producer([&](auto&& ready) {
            Domain inner = Domain::join(name);
            std::this_thread::sleep_for(3ms);
            std::optional<Producer> out = inner.producer("raw");
            BufferPool same = inner.pool("frames");
            static_cast<void>(out->push(same.allocate()));
            if (!is_killed) {
                out.reset();
            }
            ready();
        });
        CHECK(in.wait_for_producer(1h)); // a message is there by now, whether its producer is or not
        CHECK(in.pop());
        producer.kill();
        CHECK_FALSE(in.pop());
        CHECK(in.stream_end() == (is_killed ? StreamEnd::died : StreamEnd::closed));
        CHECK_FALSE(in.wait_for_producer(0ns));
    }
    std::atomic<bool> has_come{false};
    std::thread comes_later([&] {
        std::this_thread::sleep_for(5ms);
        const Producer out = domain.producer("raw");
        while (!has_come) {
            std::this_thread::sleep_for(1ms);
        }
    });
    JoinOptions rarely;
    rarely.recheck_interval_ns = 3'600'000'000'000;
    {
        Domain other = Domain::join(name, rarely);
        Consumer patient =
            other.consumer("raw", {}, {.spin_count = 0, .recheck_interval_ns = rarely.recheck_interval_ns});
        CHECK(patient.wait_for_producer(1h)); // it is woken
        has_come = true;
    }
    comes_later.join();
}

TEST_CASE("a domain may be removed with its lock file", "[domain]") {
    const Name name;
    static_cast<void>(Domain::join(name));
    const std::string prefix = DomainNames(geteuid(), name.text()).prefix();
    CHECK(list_segments(prefix).size() == 1);
    Domain::RemoveOptions options;
    options.lock_file = true;
    CHECK_FALSE(Domain::remove(name, options)); // the domain itself is gone already
    CHECK(list_segments(prefix).empty());
    {
        JoinOptions keep;
        keep.keep = true;
        static_cast<void>(Domain::join(name, keep));
    }
    CHECK(Domain::remove(name, options));
    CHECK(list_segments(prefix).empty());
}

TEST_CASE("a member that maps payload read-only reads messages", "[domain]") {
    const Name name;
    Domain writer = Domain::join(name);
    BufferPool frames = writer.pool("frames", small_pool);
    Producer out = writer.producer("raw", small_port);
    BufferPtr buffer = frames.allocate();
    test::write_number(buffer, 7);
    REQUIRE(out.push(std::move(buffer)) == PushResult::ok);
    Child reader([&] {
        JoinOptions options;
        options.read_only_payload = true;
        Domain domain = Domain::join(name, options);
        const BufferPtr got = domain.consumer("raw").pop();
        if (!got || test::read_number(got) != 7) {
            test::fail_child("%s", "the message is not there");
        }
        std::signal(SIGSEGV, [](int) { _exit(0); });
        *static_cast<volatile std::byte*>(got.bytes().data()) = std::byte{1};
        test::fail_child("%s", "the payload could be written");
    });
    const test::ChildEnd end = reader.wait();
    INFO(end.said);
    CHECK(end.succeeded());
}

TEST_CASE("bad set-up is an error of its own, and leaves everything as it was", "[domain]") {
    const Name name;
    JoinOptions no_create;
    no_create.create = false;
    CHECK(error_of([&] { return Domain::join(name, no_create); }) == errc::not_found);
    CHECK(list_segments(DomainNames(geteuid(), name.text()).prefix()).empty());
    for (const char* bad : {"", "a/b", "..", "a b", "a+b"}) {
        CHECK(error_of([&] { return Domain::join(bad); }) == errc::invalid_name);
    }
    CHECK(error_of([&] { return Domain::join(std::string(65, 'x')); }) == errc::invalid_name);
    JoinOptions no_interval;
    no_interval.recheck_interval_ns = 0;
    CHECK(error_of([&] { return Domain::join(name, no_interval); }) == errc::invalid_size);

    Domain domain = Domain::join(name);
    BufferPool frames = domain.pool("frames", small_pool);
    Port raw = domain.port("raw", small_port);
    const std::vector<std::string> files = name.files();
    CHECK(error_of([&] { return domain.pool("none"); }) == errc::not_found);
    CHECK(error_of([&] { return domain.port("none"); }) == errc::not_found);
    CHECK(error_of([&] { return domain.pool("a/b", small_pool); }) == errc::invalid_name);
    CHECK(error_of([&] { return domain.port("", small_port); }) == errc::invalid_name);
    CHECK(error_of([&] { return domain.pool("frames", {.buffer_bytes = 128, .buffer_count = 16}); }) ==
          errc::other_parameters);
    CHECK(error_of([&] { return domain.port("raw", {.capacity = 16}); }) == errc::other_parameters);
    CHECK(error_of([&] { return domain.port("raw", {.capacity = 8, .when_full = WhenFull::refuse}); }) ==
          errc::other_parameters);
    CHECK(error_of([&] { return domain.port("odd", {.capacity = 12}); }) == errc::invalid_capacity);
    CHECK(error_of([&] { return domain.port("huge", {.capacity = 1U << 20}); }) == errc::invalid_capacity);
    CHECK(error_of([&] { return domain.pool("none", {.buffer_bytes = 64}); }) == errc::invalid_size);
    CHECK(error_of([&] { return domain.pool("none", {.buffer_bytes = 1ULL << 40, .buffer_count = 1}); }) ==
          errc::invalid_size);
    CHECK(error_of([&] {
              return domain.pool("none", {.buffer_bytes = 64, .buffer_count = 1, .references_per_buffer = 5});
          }) == errc::invalid_size);
    CHECK(error_of([&] { return domain.pool("many", {.buffer_bytes = 64, .buffer_count = 1'048'570}); }) ==
          errc::table_full);
    CHECK(error_of([&] { return Domain::remove(name); }) == errc::busy);
    CHECK(name.files() == files);
    CHECK(frames.free_count() == 16);
}

TEST_CASE("tables that are full say so", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    for (unsigned number = 0; number < pool_count_max; ++number) {
        static_cast<void>(domain.pool("pool" + std::to_string(number), {.buffer_bytes = 64, .buffer_count = 1}));
    }
    CHECK(error_of([&] { return domain.pool("one-more", small_pool); }) == errc::table_full);
    for (unsigned number = 0; number < port_count_max; ++number) {
        static_cast<void>(domain.port("port" + std::to_string(number), {.capacity = 2}));
    }
    CHECK(error_of([&] { return domain.port("one-more", small_port); }) == errc::table_full);
    CHECK(domain.port("port1023").options().port_id == 1023);
    std::vector<Domain> members;
    for (unsigned number = 1; number < process_slot_count; ++number) {
        members.push_back(Domain::join(name));
    }
    CHECK(error_of([&] { return Domain::join(name); }) == errc::table_full);
    CHECK(domain.members().size() == process_slot_count);
    const std::size_t file_count = name.files().size();
    CHECK(file_count == 1 + 2 * pool_count_max + port_count_max);
    members.clear();
    CHECK(domain.members().size() == 1);
    CHECK(check(domain).empty());
}

TEST_CASE("members that create one name at the same time get the same pool and port", "[domain]") {
    const Name name;
    constexpr int thread_count = 8;
    for (int round = 0; round < 20; ++round) {
        std::vector<std::thread> threads;
        std::vector<std::optional<Domain>> domains(thread_count);
        std::vector<std::uint32_t> first_buffers(thread_count);
        std::vector<std::uint32_t> port_ids(thread_count);
        for (std::size_t number = 0; number < thread_count; ++number) {
            threads.emplace_back([&, number] {
                domains[number] = Domain::join(name);
                static_cast<void>(domains[number]->pool("own" + std::to_string(number), small_pool));
                first_buffers[number] = domains[number]->pool("frames", small_pool).first_buffer();
                static_cast<void>(domains[number]->port("own" + std::to_string(number), small_port));
                port_ids[number] = domains[number]->port("raw", small_port).options().port_id;
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        CHECK(std::set(first_buffers.begin(), first_buffers.end()).size() == 1);
        CHECK(std::set(port_ids.begin(), port_ids.end()).size() == 1);
        CHECK(domains[0]->pool_names().size() == thread_count + 1);
        CHECK(domains[0]->port_names().size() == thread_count + 1);
        CHECK(name.files().size() == 1 + 3 * (thread_count + 1));
        CHECK(check(*domains[0]).empty());
    }
    CHECK(name.files().empty());
}

TEST_CASE("a half-made segment of a dead member is removed by who reaps it", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    static_cast<void>(domain.pool("frames", small_pool));
    const std::vector<std::string> files = name.files();
    Victim victim([&](auto&& ready) {
        Domain inner = Domain::join(name);
        // What a creator leaves that is killed before its directory entry is there.
        const Membership& me = inner.membership();
        const std::string first = list_segments(DomainNames(geteuid(), name.text()).prefix()).front();
        const auto parsed = DomainNames(geteuid(), name.text()).parse(first);
        const SegmentKey key{me.slot, static_cast<std::uint32_t>(me.incarnation), 1};
        static_cast<void>(Segment::create(
            DomainNames(geteuid(), name.text()).segment(parsed->registry_id, key, SegmentKind::port), 4096));
        ready();
    });
    CHECK(name.files().size() == files.size() + 1);
    CHECK(domain.reap().dead_count == 0);
    CHECK(name.files().size() == files.size() + 1);
    victim.kill();
    const ReapReport report = domain.reap();
    CHECK(report.removed_segment_count == 1);
    CHECK(report.ended_count == 1);
    CHECK(name.files() == files);
}

TEST_CASE("where a port cannot be opened, reaping is incomplete and frees nothing", "[domain]") {
    const Name name;
    Domain domain = Domain::join(name);
    BufferPool frames = domain.pool("frames", small_pool);
    Victim victim([&](auto&& ready) {
        Domain inner = Domain::join(name);
        BufferPool same = inner.pool("frames");
        static_cast<void>(inner.port("hidden", small_port));
        const BufferPtr held = same.allocate();
        ready();
    });
    std::vector<std::string> files = name.files();
    std::erase_if(files, [](const std::string& file) { return !file.ends_with(".port"); });
    REQUIRE(files.size() == 1);
    const std::string path = segment_path(files.front());
    const std::string aside = path + ".aside";
    REQUIRE(rename(path.c_str(), aside.c_str()) == 0);
    victim.kill();
    const ReapReport report = domain.reap();
    CHECK(report.error == errc::reap_incomplete);
    CHECK_FALSE(report.note.empty());
    CHECK(report.ended_count == 0);
    CHECK(frames.free_count() == 15);
    CHECK(domain.members().size() == 2);
    REQUIRE(rename(aside.c_str(), path.c_str()) == 0);
    CHECK(domain.reap().ended_count == 1);
    CHECK(frames.free_count() == 16);
}

TEST_CASE("the names may go while members live, and they go on with what they have mapped", "[domain]") {
    const Name name;
    Domain one = Domain::join(name);
    Domain two = Domain::join(name);
    BufferPool frames = one.pool("frames", small_pool);
    Producer out = one.producer("raw", small_port);
    Consumer in = two.consumer("raw");
    static_cast<void>(two.pool("frames"));
    Domain::RemoveOptions force;
    force.force = true;
    CHECK(Domain::remove(name, force));
    REQUIRE(out.push(frames.allocate()) == PushResult::ok);
    CHECK(in.pop());
    Domain new_one = Domain::join(name);
    CHECK(new_one.members().size() == 1);
    CHECK(new_one.pool_names().empty());
    static_cast<void>(new_one.pool("frames", small_pool));
}

TEST_CASE("the last to leave a domain whose names were taken leaves the next domain's names alone", "[domain]") {
    const Name name;
    Domain old_one = Domain::join(name);
    static_cast<void>(old_one.pool("frames", small_pool));
    Domain::RemoveOptions force;
    force.force = true;
    CHECK(Domain::remove(name, force));
    Domain new_one = Domain::join(name);
    static_cast<void>(new_one.pool("frames", small_pool));
    static_cast<void>(old_one.port("late", small_port));
    CHECK(name.files().size() == 4);
    old_one.leave();
    CHECK(name.files().size() == 3);
    CHECK(Domain::join(name).pool_names() == std::vector<std::string>{"frames"});
}
