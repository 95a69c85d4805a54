#include "catch.hpp"
#include "domain_testing.hpp"

#include <weir/observer.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include <csignal>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

using namespace weir;
using test::error_of;
using test::Name;
using test::quick;
using test::small_pool;
using test::small_port;
using test::text_of;
using test::Victim;

namespace {

/// What the files of a domain hold, by name.
std::string bytes_of(const Name& name) {
    std::string bytes;
    for (const std::string& file : name.files()) {
        std::ifstream stream(segment_path(file), std::ios::binary);
        bytes += file + std::string(std::istreambuf_iterator<char>(stream), {});
    }
    return bytes;
}

/// A folder that is gone at the end, with copies of a domain's files as a user would make them.
class Copies {
public:
    explicit Copies(const Name& name) {
        char folder[] = "/tmp/weir-observer-test-XXXXXX";
        if (mkdtemp(folder) == nullptr) {
            throw std::system_error(errno, std::system_category(), "mkdtemp");
        }
        folder_ = folder;
        for (const std::string& file : name.files()) {
            if (!file.ends_with(".payload")) {
                std::filesystem::copy(segment_path(file), folder_ / file);
            }
        }
    }
    Copies(const Copies&) = delete;
    Copies& operator=(const Copies&) = delete;
    ~Copies() { std::filesystem::remove_all(folder_); }

    [[nodiscard]] std::string folder() const { return folder_.string(); }
    /// The copy whose name ends so.
    [[nodiscard]] std::string path(std::string_view ending) const {
        for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
            if (entry.path().native().ends_with(ending)) {
                return entry.path();
            }
        }
        return {};
    }
    void write(std::string_view ending, std::size_t offset_bytes, std::uint64_t value) const {
        std::fstream file(path(ending), std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(segment_header_bytes + offset_bytes));
        file.write(reinterpret_cast<const char*>(&value), sizeof value);
    }

private:
    std::filesystem::path folder_;
};

DomainObserver::Options from(const Copies& copies) {
    DomainObserver::Options options;
    options.folder = copies.folder();
    return options;
}

/// Where a pool's reference words begin in its control segment.
std::size_t words_offset(const BufferPoolOptions& options) {
    return BufferPool::control_bytes(options) - std::size_t{options.buffer_count} * sizeof(BufferHeader);
}

} // namespace

TEST_CASE("an observer sees who is a member, and who does and holds what", "[observer]") {
    const Name name;
    JoinOptions options;
    options.process_name = "camera";
    Domain one = Domain::join(name, options);
    options.process_name = "viewer";
    Domain two = Domain::join(name, options);
    BufferPool frames = one.pool("frames", small_pool);
    Producer out = one.producer("raw", small_port);
    Consumer in = two.consumer("raw");
    const BufferPtr held = frames.allocate();
    for (int number = 0; number < 3; ++number) {
        REQUIRE(out.push(frames.allocate()) == PushResult::ok);
    }
    const BufferPtr taken = in.pop();

    DomainObserver observer(name);
    const DomainSnapshot seen = observer.look();
    CHECK(text_of(seen.notes).empty());
    CHECK(seen.name == name.text());
    CHECK(seen.user == geteuid());
    CHECK_FALSE(seen.is_kept);
    CHECK(seen.owner.mode == 0600);
    REQUIRE(seen.members.size() == 2);
    CHECK(seen.members[0].process.name == "camera");
    CHECK(seen.members[1].process.name == "viewer");
    for (const ObservedMember& member : seen.members) {
        CHECK(member.life == MemberLife::alive);
        CHECK(member.process.pid == getpid());
    }

    REQUIRE(seen.pools.size() == 1);
    CHECK(seen.pools[0].name == "frames");
    CHECK(seen.pools[0].options.buffer_count == 16);
    CHECK(seen.pools[0].free_count == 12);
    CHECK(seen.pools[0].held_count == 2);
    CHECK(seen.pools[0].queued_count == 2);
    REQUIRE(seen.pools[0].holders.size() == 2);
    CHECK(seen.pools[0].holders[0].slot == one.membership().slot);
    CHECK(seen.pools[0].holders[0].held_count == 1);
    CHECK(seen.pools[0].holders[0].queued_count == 2);
    CHECK(seen.pools[0].holders[1].slot == two.membership().slot);
    CHECK(seen.pools[0].holders[1].held_count == 1);

    REQUIRE(seen.ports.size() == 1);
    const ObservedPort& port = seen.ports[0];
    CHECK(port.name == "raw");
    CHECK(port.options.capacity == 8);
    CHECK(port.depth == 2);
    CHECK(port.producers.counters.messages == 3);
    CHECK(port.consumers.counters.messages == 1);
    CHECK(port.producers.state == StreamEnd::open);
    REQUIRE(port.producers.handles.size() == 1);
    CHECK(port.producers.handles[0].slot == one.membership().slot);
    CHECK(port.producers.handles[0].handle_count == 1);
    CHECK(port.producers.handles[0].counters.messages == 3);
    REQUIRE(port.consumers.handles.size() == 1);
    CHECK(port.consumers.handles[0].slot == two.membership().slot);

    DomainCensus census;
    CHECK(text_of(observer.check(&census, CheckMode::quiet)).empty());
    CHECK(census.free_count == 12);
    CHECK(census.queued_reference_count == 2);
    CHECK(observer.look(false).pools[0].free_count == 0); // not counted
}

TEST_CASE("looking and checking changes no byte, and is no membership", "[observer]") {
    const Name name;
    Domain domain = Domain::join(name);
    BufferPool frames = domain.pool("frames", small_pool);
    Producer out = domain.producer("raw", small_port);
    REQUIRE(out.push(frames.allocate()) == PushResult::ok);
    const std::string before = bytes_of(name);
    {
        DomainObserver observer(name);
        CHECK(observer.look().members.size() == 1);
        CHECK(observer.check().empty());
        CHECK(bytes_of(name) == before);
    }
    CHECK(bytes_of(name) == before);
    CHECK(domain.members().size() == 1);
}

TEST_CASE("an observer finds what was made after it was opened, and notices that its domain is gone", "[observer]") {
    const Name name;
    Domain domain = Domain::join(name);
    DomainObserver observer(name);
    CHECK(observer.look().ports.empty());
    static_cast<void>(domain.port("raw", small_port));
    static_cast<void>(domain.pool("frames", small_pool));
    CHECK(observer.look().ports.size() == 1);
    CHECK(observer.look().pools.size() == 1);
    CHECK(observer.is_current());
    domain.leave();
    CHECK_FALSE(observer.is_current());
    domain = Domain::join(name);
    CHECK_FALSE(observer.is_current());
    // Nobody holds a lock of the new one in this one's name.
    CHECK_FALSE(text_of(observer.look().notes).empty());
    CHECK(DomainObserver(name).is_current());
}

TEST_CASE("who was killed is seen as dead until it is reaped, and what it held as its own", "[observer]") {
    const Name name;
    Domain domain = Domain::join(name);
    BufferPool frames = domain.pool("frames", small_pool);
    Victim victim([&](auto&& ready) {
        Domain mine = Domain::join(name);
        const BufferPtr held = mine.pool("frames").allocate();
        Producer out = mine.producer("raw", small_port);
        static_cast<void>(out.push(mine.pool("frames").allocate()));
        ready();
    });
    DomainObserver observer(name);
    CHECK(observer.look().members.at(1).life == MemberLife::alive);
    victim.kill();
    const DomainSnapshot seen = observer.look();
    CHECK(seen.members.at(1).life == MemberLife::dead);
    CHECK(seen.pools.at(0).holders.at(0).held_count == 1);
    CHECK(seen.ports.at(0).producers.handles.at(0).is_alive); // the table says so until it is reaped
    CHECK(observer.check().empty());
    domain.reap();
    const DomainSnapshot after = observer.look();
    CHECK(after.members.size() == 1);
    CHECK(after.pools.at(0).held_count == 0);
    CHECK(after.ports.at(0).depth == 1);
    CHECK(after.ports.at(0).producers.state == StreamEnd::died);
    CHECK_FALSE(after.ports.at(0).producers.handles.at(0).is_alive);
    CHECK(observer.check(nullptr, CheckMode::quiet).empty());
}

TEST_CASE("copies of a domain's files are looked at post mortem", "[observer]") {
    const Name name;
    Domain domain = Domain::join(name);
    BufferPool frames = domain.pool("frames", small_pool);
    Producer out = domain.producer("raw", small_port);
    REQUIRE(out.push(frames.allocate()) == PushResult::ok);
    const Copies copies(name);

    DomainObserver observer(name, from(copies));
    const DomainSnapshot seen = observer.look();
    CHECK(text_of(seen.notes).empty());
    REQUIRE(seen.members.size() == 1);
    CHECK(seen.members[0].life == MemberLife::unknown);
    CHECK(seen.ports.at(0).depth == 1);
    CHECK(observer.check(nullptr, CheckMode::quiet).empty());
    CHECK(observer.is_current());

    const std::vector<DomainName> domains = list_domains(copies.folder());
    REQUIRE(domains.size() == 1);
    CHECK(domains[0] == DomainName{geteuid(), name.text(), true});
}

TEST_CASE("what is broken in copies is named", "[observer]") {
    const Name name;
    Domain domain = Domain::join(name);
    const BufferPoolOptions options{64, 16, 4, 0};
    BufferPool frames = domain.pool("frames", small_pool);
    Producer out = domain.producer("raw", small_port);
    REQUIRE(out.push(frames.allocate()) == PushResult::ok);
    const Copies copies(name);
    const std::size_t words = words_offset(options);
    const auto broken = [&] { return text_of(DomainObserver(name, from(copies)).check()); };
    REQUIRE(broken().empty());

    SECTION("a reference word in a state that is none") {
        copies.write(".control", words + 3 * sizeof(BufferHeader) + 8, 5);
        CHECK(broken() == "buffer 3 reference 1: state 5 is none that is written\n");
    }
    SECTION("a reference that nobody alive holds") {
        const std::uint64_t word = next_reference(0, ReferenceState::held, Owner(77, 3), 0);
        copies.write(".control", words + 5 * sizeof(BufferHeader), word);
        CHECK(broken().find("buffer 5 reference 0: is held by slot 77") == 0);
    }
    SECTION("a message that is in no cell, of somebody who has ended") {
        const std::uint64_t word = next_reference(0, ReferenceState::queued, Owner(77, 3), 0);
        copies.write(".control", words + 5 * sizeof(BufferHeader), word);
        CHECK(broken() == "buffer 5 reference 0: queued, but named by 0 cells\n");
    }
    SECTION("a message that is in no cell, of somebody who may be just pushing, is not broken") {
        const std::uint64_t word = next_reference(0, ReferenceState::queued, domain.membership().owner(), 0);
        copies.write(".control", words + 5 * sizeof(BufferHeader), word);
        DomainCensus census;
        DomainObserver observer(name, from(copies));
        CHECK(observer.check(&census).empty());
        CHECK(census.unsent_reference_count == 1);
        CHECK_FALSE(observer.check(nullptr, CheckMode::quiet).empty());
    }
    SECTION("a cell that names no buffer") {
        copies.write(".port", sizeof(PortState) + sizeof(RingState), std::uint64_t{1} << 28 | 0xfff'ff00);
        CHECK(broken().find("port 0 cell 0 names a buffer or reference that does not exist") != std::string::npos);
    }
    SECTION("a port whose magic is gone cannot be looked at") {
        copies.write(".port", 0, 0);
        CHECK(broken().find("the memory holds no port") != std::string::npos);
        CHECK(DomainObserver(name, from(copies)).look().notes.size() == 1);
    }
    SECTION("a file that was cut short") {
        std::filesystem::resize_file(copies.path(".control"), segment_header_bytes + 4096);
        CHECK(broken().find("its header says") != std::string::npos);
    }
    SECTION("a file that was not copied") {
        std::filesystem::remove(copies.path(".port"));
        CHECK(broken().find(".port: nobody has made it yet") != std::string::npos);
    }
    SECTION("no registry") {
        std::filesystem::remove(copies.path("registry"));
        CHECK(error_of([&] { return DomainObserver(name, from(copies)); }) == errc::not_found);
        CHECK_FALSE(list_domains(copies.folder()).at(0).has_registry);
    }
    SECTION("random bytes anywhere: an answer, and no crash") {
        test::Random random(test::seed());
        CAPTURE(test::seed());
        for (int round = 0; round < 200; ++round) {
            const std::string_view ending = round % 3 == 0 ? "registry" : round % 3 == 1 ? ".control" : ".port";
            const std::size_t bytes = std::filesystem::file_size(copies.path(ending)) - segment_header_bytes;
            copies.write(ending, random.below(bytes / 8) * 8, random.next());
            try {
                DomainObserver observer(name, from(copies));
                static_cast<void>(observer.look());
                static_cast<void>(observer.check());
                static_cast<void>(observer.check(nullptr, CheckMode::quiet));
            } catch (const std::system_error&) {
                // The registry's own beginning was hit.
            }
        }
    }
}

TEST_CASE("no domain, a bad name, and a folder that is none are errors of their own", "[observer]") {
    const Name name;
    CHECK(error_of([&] { return DomainObserver(name); }) == errc::not_found);
    CHECK(error_of([&] { return DomainObserver("a/b"); }) == errc::invalid_name);
    CHECK(error_of([&] { return list_domains("/nowhere"); }) == errc::not_found);
}

TEST_CASE("domains are listed, those without a registry too", "[observer]") {
    const Name name;
    const Name other;
    Domain one = Domain::join(name);
    { Domain two = Domain::join(other); }
    const std::vector<DomainName> domains = list_domains();
    const auto has = [&](const Name& wanted, bool has_registry) {
        return std::ranges::count(domains, DomainName{geteuid(), wanted.text(), has_registry}) == 1;
    };
    CHECK(has(name, true));
    CHECK(has(other, false)); // its lock file stays
}

namespace {

/// What happens when somebody first touches a page that may not be read yet.
struct FirstTouch {
    void* page = nullptr;
    BufferPtr* held = nullptr;
    const Membership* owner = nullptr;
    bool has_happened = false;
};
FirstTouch first_touch;

void leave_at_first_touch(int) {
    first_touch.held->reset();
    ProcessTable table = first_touch.owner->table;
    table.end(first_touch.owner->slot, first_touch.owner->incarnation);
    first_touch.has_happened = true;
    mprotect(first_touch.page, 4096, PROT_READ | PROT_WRITE);
}

} // namespace

TEST_CASE("who leaves between the looks at its reference and at its entry is not broken", "[observer]") {
    const int file = memfd_create("table", MFD_CLOEXEC);
    REQUIRE(ftruncate(file, 4096) == 0);
    void* const changed = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    void* const looked_at = mmap(nullptr, 4096, PROT_NONE, MAP_SHARED, file, 0);
    REQUIRE((changed != MAP_FAILED && looked_at != MAP_FAILED));
    ProcessTable table(std::span(static_cast<std::byte*>(changed), 4096));
    const Membership owner = table.join();
    const BufferPoolOptions options{64, 16, 4, 0};
    const test::Memory control(BufferPool::control_bytes(options));
    const test::Memory payload(BufferPool::payload_bytes(options));
    BufferPool::format(control.span(), options);
    BufferPool pool(control.span(), payload.span(), owner);
    BufferPtr held = pool.allocate();

    first_touch = {looked_at, &held, &owner, false};
    struct sigaction before {};
    struct sigaction action {};
    action.sa_handler = leave_at_first_touch;
    REQUIRE(sigaction(SIGSEGV, &action, &before) == 0);
    const ProcessTable seen(std::span(static_cast<std::byte*>(looked_at), 4096));
    const std::string broken = text_of(pool.check(&seen));
    REQUIRE(sigaction(SIGSEGV, &before, nullptr) == 0);
    CHECK(first_touch.has_happened);
    CHECK(broken.empty());
    munmap(changed, 4096);
    munmap(looked_at, 4096);
    close(file);
}

TEST_CASE("a domain at work is sound at any moment", "[observer]") {
    const Name name;
    Domain domain = Domain::join(name);
    static_cast<void>(domain.pool("frames", {.buffer_bytes = 64, .buffer_count = 24}));
    static_cast<void>(domain.port("there", {.capacity = 4}));
    static_cast<void>(domain.port("back", {.capacity = 8, .when_full = WhenFull::drop_oldest}));
    std::atomic<bool> is_over = false;
    std::vector<std::thread> threads;
    for (int number = 0; number < 3; ++number) {
        threads.emplace_back([&, number] {
            // Members come and go, push, clone and pop.
            while (!is_over) {
                Domain mine = Domain::join(name);
                BufferPool frames = mine.pool("frames");
                Producer there = mine.producer("there");
                Producer back = mine.producer("back");
                Consumer in = mine.consumer(number == 0 ? "back" : "there");
                for (int round = 0; round < 200; ++round) {
                    if (BufferPtr buffer = frames.try_allocate()) {
                        if (BufferPtr clone = buffer.clone()) {
                            static_cast<void>(back.try_push(std::move(clone)));
                        }
                        static_cast<void>(there.try_push(std::move(buffer)));
                    }
                    static_cast<void>(in.try_pop());
                }
            }
        });
    }
    std::string broken;
    for (int round = 0; round < (test::is_sanitized ? 200 : 3000) && broken.empty(); ++round) {
        DomainObserver observer(name);
        broken = text_of(observer.check()) + text_of(observer.look().notes);
        for (int again = 0; again < 5 && broken.empty(); ++again) {
            broken = text_of(observer.check());
        }
    }
    is_over = true;
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(broken.empty());
    INFO(broken);
    domain.reap();
    CHECK(text_of(DomainObserver(name).check(nullptr, CheckMode::quiet)).empty());
}
