#include "catch.hpp"
#include "testing.hpp"

#include <weir/buffer_pool.hpp>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <thread>

using namespace std::chrono_literals;
using namespace weir;
using test::error_of;

namespace {

constexpr BufferPoolOptions small_pool{.buffer_bytes = 64, .buffer_count = 8};

BufferPoolOptions pool_of(std::uint32_t buffer_count, std::uint32_t references_per_buffer = 4) {
    return {.buffer_bytes = 64, .buffer_count = buffer_count, .references_per_buffer = references_per_buffer};
}

/// One pool, and one membership of it.
struct Fixture {
    explicit Fixture(const BufferPoolOptions& options) : memory({options}, {}), member(memory) {}

    [[nodiscard]] BufferPool& pool() { return member.pools.front(); }
    [[nodiscard]] std::uint64_t& reference(std::uint32_t index, unsigned number) {
        return pool().view().reference(index, number);
    }
    /// What check() says, one line each.
    [[nodiscard]] std::string check() {
        std::string all;
        for (const std::string& broken : pool().check(&member.me.table)) {
            all += broken + "\n";
        }
        return all;
    }

    test::DomainMemory memory;
    test::Member member;
};

std::vector<BufferPtr> allocate_all(BufferPool& pool) {
    std::vector<BufferPtr> buffers;
    while (BufferPtr buffer = pool.try_allocate()) {
        buffers.push_back(std::move(buffer));
    }
    return buffers;
}

/// Empty when no index is there twice.
std::string twice(const std::vector<BufferPtr>& buffers) {
    std::set<std::uint32_t> ids;
    for (const BufferPtr& buffer : buffers) {
        if (!ids.insert(buffer.id()).second) {
            return "buffer " + std::to_string(buffer.id()) + " has two owners";
        }
    }
    return {};
}

} // namespace

// ---- Making and opening pools

TEST_CASE("a pool's parameters have bounds") {
    struct Case {
        BufferPoolOptions options;
        bool is_valid;
    };
    const Case cases[] = {
        {{.buffer_bytes = 64, .buffer_count = 1}, true},
        {{.buffer_bytes = 63, .buffer_count = 1}, false},
        {{.buffer_bytes = 0, .buffer_count = 1}, false},
        {{.buffer_bytes = std::uint64_t{1} << 30, .buffer_count = 1}, true},
        {{.buffer_bytes = (std::uint64_t{1} << 30) + 1, .buffer_count = 1}, false},
        {{.buffer_bytes = ~std::uint64_t{0}, .buffer_count = 1}, false},
        {{.buffer_bytes = 64, .buffer_count = 0}, false},
        {{.buffer_bytes = 64, .buffer_count = 1'048'576}, true},
        {{.buffer_bytes = 64, .buffer_count = 1'048'577}, false},
        {{.buffer_bytes = 64, .buffer_count = ~std::uint32_t{0}}, false},
        {{.buffer_bytes = 64, .buffer_count = 1, .references_per_buffer = 12}, true},
        {{.buffer_bytes = 64, .buffer_count = 1, .references_per_buffer = 0}, false},
        {{.buffer_bytes = 64, .buffer_count = 1, .references_per_buffer = 5}, false},
        {{.buffer_bytes = 64, .buffer_count = 1, .references_per_buffer = 16}, false},
        {{.buffer_bytes = 64, .buffer_count = 1, .first_buffer = 1'048'575}, true},
        {{.buffer_bytes = 64, .buffer_count = 2, .first_buffer = 1'048'575}, false},
        {{.buffer_bytes = 64, .buffer_count = 1, .first_buffer = ~std::uint32_t{0}}, false},
    };
    const test::Memory memory(BufferPool::control_bytes(small_pool));
    for (const Case& one : cases) {
        CAPTURE(one.options.buffer_bytes, one.options.buffer_count, one.options.references_per_buffer,
                one.options.first_buffer);
        const std::error_code expected = one.is_valid ? std::error_code() : errc::invalid_size;
        CHECK(error_of([&] { return BufferPool::control_bytes(one.options); }) == expected);
        CHECK(error_of([&] { return BufferPool::payload_bytes(one.options); }) == expected);
        if (!one.is_valid) {
            CHECK(error_of([&] {
                      BufferPool::format(memory.span(), one.options);
                      return 0;
                  }) == errc::invalid_size);
        }
    }
}

TEST_CASE("a pool is formatted in aligned memory that is large enough") {
    const std::size_t bytes = BufferPool::control_bytes(small_pool);
    const test::Memory memory(bytes + 64);
    const auto format = [&](std::span<std::byte> control) {
        return error_of([&] {
            BufferPool::format(control, small_pool);
            return 0;
        });
    };
    CHECK(format(memory.span().subspan(8)) == errc::misaligned);
    CHECK(format(memory.span().first(bytes - 1)) == errc::invalid_size);
    CHECK_FALSE(format(memory.span().first(bytes)));
}

TEST_CASE("each reason why a pool cannot be opened has an error of its own") {
    const Fixture fixture(small_pool);
    const std::span<std::byte> control = fixture.memory.control();
    const std::span<std::byte> payload = fixture.memory.payload();
    const auto open = [&](std::span<std::byte> some_control, std::span<std::byte> some_payload) {
        return error_of([&] { return BufferPool(some_control, some_payload, fixture.member.me); });
    };
    CHECK_FALSE(open(control, payload));
    CHECK(open(control.subspan(8), payload) == errc::misaligned);
    CHECK(open(control, payload.subspan(8)) == errc::misaligned);
    CHECK(open(control.first(control.size() - 64), payload) == errc::truncated);
    CHECK(open(control.first(sizeof(BufferPoolState) - 1), payload) == errc::truncated);
    CHECK(open({}, payload) == errc::truncated);
    CHECK(open(control, payload.first(8 * 64 - 1)) == errc::truncated);
    CHECK(open(control, {}) == errc::truncated);
    const test::Memory unformatted(control.size());
    CHECK(open(unformatted.span(), payload) == errc::wrong_kind);
}

TEST_CASE("each parameter that no format writes is corrupt") {
    const Fixture fixture(small_pool);
    auto& state = *reinterpret_cast<BufferPoolState*>(fixture.memory.control().data());
    const BufferPoolState right = state;
    const auto open = [&] {
        const std::error_code error =
            error_of([&] { return BufferPool(fixture.memory.control(), fixture.memory.payload(), fixture.member.me); });
        state = right;
        return error;
    };
    state.buffer_bytes = 1;
    CHECK(open() == errc::corrupt);
    state.buffer_bytes = std::uint64_t{1} << 62;
    CHECK(open() == errc::corrupt);
    state.stride_bytes = 128;
    CHECK(open() == errc::corrupt);
    state.buffer_count = 0;
    CHECK(open() == errc::corrupt);
    state.buffer_count = 0xffff'ffff;
    CHECK(open() == errc::corrupt);
    state.references_per_buffer = 7;
    CHECK(open() == errc::corrupt);
    state.first_buffer = 0xffff'fff0;
    CHECK(open() == errc::corrupt);
    state.buffer_count = 1000; // possible, but more than there is memory for
    CHECK(open() == errc::truncated);
    CHECK_FALSE(open());
}

TEST_CASE("buffers of a page and more start on pages, smaller ones on cache lines") {
    CHECK(BufferPool::payload_bytes({.buffer_bytes = 65, .buffer_count = 10}) == 10 * 128);
    CHECK(BufferPool::payload_bytes({.buffer_bytes = 4095, .buffer_count = 10}) == 10 * 4096);
    CHECK(BufferPool::payload_bytes({.buffer_bytes = 4097, .buffer_count = 10}) == 10 * 8192);
    CHECK(BufferPool::control_bytes({.buffer_bytes = 64, .buffer_count = 10, .references_per_buffer = 12}) -
              BufferPool::control_bytes({.buffer_bytes = 64, .buffer_count = 10}) ==
          10 * 64);
}

// ---- Allocating and dropping

TEST_CASE("each buffer is handed out once, and all of them again after they were dropped") {
    for (const std::uint32_t count : {1U, 2U, 63U, 64U, 65U, 129U, 1000U}) {
        for (const std::uint32_t references : {4U, 12U}) {
            CAPTURE(count, references);
            Fixture fixture(pool_of(count, references));
            CHECK(fixture.pool().free_count() == count);
            for (int round = 0; round < 3; ++round) {
                const std::vector<BufferPtr> buffers = allocate_all(fixture.pool());
                CHECK(buffers.size() == count);
                CHECK(twice(buffers).empty());
                CHECK(fixture.pool().free_count() == 0);
                CHECK_FALSE(fixture.pool().try_allocate());
                CHECK(fixture.check() == "");
            }
            CHECK(fixture.pool().free_count() == count);
            CHECK(fixture.check() == "");
        }
    }
}

TEST_CASE("buffers do not overlap, and each has its whole capacity") {
    Fixture fixture({.buffer_bytes = 1000, .buffer_count = 20});
    const std::vector<BufferPtr> buffers = allocate_all(fixture.pool());
    REQUIRE(buffers.size() == 20);
    for (const BufferPtr& buffer : buffers) {
        CHECK(buffer.size_bytes() == 1000);
        CHECK(buffer.capacity_bytes() == 1000);
        std::ranges::fill(buffer.bytes(), static_cast<std::byte>(buffer.id() + 1));
    }
    for (const BufferPtr& buffer : buffers) {
        CHECK(std::ranges::all_of(buffer.bytes(),
                                  [&](std::byte byte) { return byte == static_cast<std::byte>(buffer.id() + 1); }));
        CHECK(buffer.bytes().data() == fixture.memory.payload().data() + buffer.payload_offset_bytes());
    }
}

TEST_CASE("a buffer's message is as long as it was resized to, and whole again when it is new") {
    Fixture fixture(pool_of(1));
    BufferPtr buffer = fixture.pool().try_allocate();
    buffer.resize(10);
    CHECK(buffer.size_bytes() == 10);
    CHECK(buffer.bytes().size() == 10);
    CHECK(buffer.capacity_bytes() == 64);
    buffer.resize(0);
    CHECK(buffer.bytes().empty());
    buffer.resize(64);
    CHECK(buffer.bytes().size() == 64);
    buffer.resize(3);
    buffer.set_tag(0xdead'beef);
    CHECK(buffer.tag() == 0xdead'beef);
    buffer.reset();
    buffer = fixture.pool().try_allocate();
    CHECK(buffer.size_bytes() == 64);
    CHECK(buffer.tag() == 0);
    CHECK(test::breaks_rule("a message is not larger than its buffer", [&] { buffer.resize(65); }));
}

TEST_CASE("an empty BufferPtr is nothing, and a moved one is empty") {
    Fixture fixture(pool_of(2));
    BufferPtr buffer;
    CHECK_FALSE(buffer);
    CHECK(buffer.use_count() == 0);
    buffer.reset();
    const BufferPtr copy_of_nothing(buffer);
    CHECK_FALSE(copy_of_nothing);
    buffer = fixture.pool().try_allocate();
    BufferPtr moved(std::move(buffer));
    CHECK_FALSE(buffer);
    CHECK(moved);
    buffer = std::move(moved);
    CHECK(buffer);
    CHECK_FALSE(moved);
    CHECK(fixture.pool().free_count() == 1);
    buffer = fixture.pool().try_allocate(); // drops what it had
    CHECK(fixture.pool().free_count() == 1);
    buffer = BufferPtr();
    CHECK(fixture.pool().free_count() == 2);
}

TEST_CASE("buffers are numbered in their domain from the pool's first on") {
    Fixture fixture({.buffer_bytes = 64, .buffer_count = 4, .first_buffer = 1'048'572});
    std::set<std::uint32_t> ids;
    for (const BufferPtr& buffer : allocate_all(fixture.pool())) {
        ids.insert(buffer.id());
        CHECK(buffer.payload_offset_bytes() == (buffer.id() - 1'048'572) * 64);
    }
    CHECK(ids == std::set<std::uint32_t>{1'048'572, 1'048'573, 1'048'574, 1'048'575});
}

TEST_CASE("a buffer is dropped by another thread than the one that allocated it") {
    Fixture fixture(pool_of(1));
    for (int round = 0; round < 100; ++round) {
        BufferPtr buffer = fixture.pool().try_allocate();
        REQUIRE(buffer);
        test::write_number(buffer, round);
        std::thread([moved = std::move(buffer), round]() mutable {
            if (test::read_number(moved) != round) {
                std::abort();
            }
            moved.reset();
        }).join();
    }
    CHECK(fixture.pool().free_count() == 1);
}

// ---- References

TEST_CASE("a buffer has 4 or 12 references, and a clone beyond them is empty") {
    for (const std::uint32_t references : {4U, 12U}) {
        CAPTURE(references);
        Fixture fixture(pool_of(1, references));
        std::vector<BufferPtr> clones;
        clones.push_back(fixture.pool().try_allocate());
        CHECK(clones.back().use_count() == 1);
        while (clones.size() < references) {
            clones.push_back(clones[clones.size() / 2].clone());
            REQUIRE(clones.back());
            CHECK(clones.back().use_count() == clones.size());
            CHECK(clones.back().id() == clones.front().id());
        }
        CHECK_FALSE(clones.front().clone());
        CHECK(clones.front().use_count() == references);
        CHECK(fixture.check() == "");
        clones[1].reset();
        CHECK(clones.front().use_count() == references - 1);
        CHECK(clones.front().clone());
        CHECK_FALSE(fixture.pool().try_allocate());
        clones.clear();
        CHECK(fixture.pool().free_count() == 1);
        CHECK(fixture.check() == "");
    }
}

TEST_CASE("a buffer whose first reference was dropped is not free while another holds") {
    for (const std::uint32_t references : {4U, 12U}) {
        for (unsigned last = 1; last < references; ++last) {
            CAPTURE(references, last);
            Fixture fixture(pool_of(1, references));
            std::vector<BufferPtr> clones;
            clones.push_back(fixture.pool().try_allocate());
            while (clones.size() <= last) {
                clones.push_back(clones.front().clone());
            }
            BufferPtr kept = std::move(clones.back());
            clones.clear();
            REQUIRE(kept.reference() == last);
            CHECK(kept.use_count() == 1);
            fixture.pool().view().hints().offer(0); // and though a hint says that it is
            CHECK_FALSE(fixture.pool().try_allocate());
            CHECK_FALSE(fixture.pool().allocate_for(0ns));
            CHECK(kept.use_count() == 1);
            kept.reset();
            CHECK(fixture.pool().try_allocate());
        }
    }
}

TEST_CASE("generations wrap in every reference word without harm") {
    Fixture fixture(pool_of(1, 12));
    for (unsigned number = 0; number < 12; ++number) {
        fixture.reference(0, number) = std::uint64_t{0xffff'fffe} << 32;
    }
    for (int round = 0; round < 4; ++round) {
        std::vector<BufferPtr> clones;
        clones.push_back(fixture.pool().try_allocate());
        REQUIRE(clones.back());
        while (clones.size() < 12) {
            clones.push_back(clones.front().clone());
            REQUIRE(clones.back());
        }
        CHECK_FALSE(clones.front().clone());
        CHECK_FALSE(fixture.pool().try_allocate());
        CHECK(fixture.check() == "");
    }
    CHECK(reference_generation(fixture.reference(0, 11)) == 6);
    CHECK(fixture.pool().free_count() == 1);
}

TEST_CASE("a reference in a state that no operation writes is never free, and check names it") {
    Fixture fixture(pool_of(2));
    fixture.reference(0, 0) = 5;
    CHECK(allocate_all(fixture.pool()).size() == 1);
    CHECK(fixture.check().find("buffer 0 reference 0: state 5") != std::string::npos);
    fixture.reference(0, 0) = 0;
    fixture.reference(0, 2) = 7;
    CHECK(allocate_all(fixture.pool()).size() == 1);
    CHECK(fixture.check().find("buffer 0 reference 2: state 7") != std::string::npos);
}

TEST_CASE("check names each kind of broken reference, and nothing in a sound pool") {
    Fixture fixture(pool_of(4));
    const BufferPtr held = fixture.pool().try_allocate();
    REQUIRE(fixture.check() == "");

    fixture.reference(3, 1) = next_reference(0, ReferenceState::free, Owner(9, 1), 0);
    CHECK(fixture.check() == "buffer 3 reference 1: is free but names an owner or a port\n");
    fixture.reference(3, 1) = next_reference(0, ReferenceState::free, Owner(), 77);
    CHECK(fixture.check() == "buffer 3 reference 1: is free but names an owner or a port\n");

    fixture.reference(3, 1) = next_reference(0, ReferenceState::held, Owner(9, 1), 0);
    CHECK(fixture.check().find("buffer 3 reference 1: is held by slot 9 under an incarnation") != std::string::npos);
    CHECK(fixture.pool().check().empty()); // without a table nothing is known of owners
    fixture.reference(3, 1) =
        next_reference(0, ReferenceState::held, Owner(fixture.member.me.slot, fixture.member.me.incarnation + 1), 0);
    CHECK_FALSE(fixture.check().empty());
    fixture.reference(3, 1) = 0;

    fixture.pool().view().header(2).size_bytes = 65;
    CHECK(fixture.check() == "buffer 2: message of 65 bytes in a buffer of 64\n");
    fixture.pool().view().header(2).size_bytes = 0;
    CHECK(fixture.check() == "");
}

TEST_CASE("a size that others wrote into the header does not lead beyond the buffer") {
    Fixture fixture(pool_of(1));
    const BufferPtr buffer = fixture.pool().try_allocate();
    fixture.pool().view().header(buffer.index()).size_bytes = 0xffff'ffff;
    CHECK(buffer.size_bytes() == 64);
    CHECK(buffer.bytes().size() == 64);
}

TEST_CASE("dropping a buffer after its membership has ended frees nobody's buffer") {
    Fixture fixture(pool_of(1));
    BufferPtr buffer = fixture.pool().try_allocate();
    fixture.member.leave();
    const test::Member other(fixture.memory);
    BufferPtr others = BufferPool(other.pools[0]).try_allocate_by_scan();
    REQUIRE(others);
    REQUIRE(others.id() == buffer.id());
    buffer.reset();
    CHECK(others.use_count() == 1);
    others.reset();
    CHECK(fixture.check() == "");
}

// ---- Copies

TEST_CASE("copies share one reference and count themselves") {
    Fixture fixture(pool_of(1));
    BufferPtr first = fixture.pool().try_allocate();
    test::write_number(first, 42);
    {
        const BufferPtr second(first);
        CHECK(first.use_count() == 2);
        CHECK(second.use_count() == 2);
        CHECK(second.id() == first.id());
        CHECK(second.reference() == first.reference());
        CHECK(test::read_number(second) == 42);
        BufferPtr third;
        third = second;
        CHECK(third.use_count() == 3);
        CHECK(is_free(load_reference(fixture.reference(0, 1))));
    }
    CHECK(first.use_count() == 1);
    CHECK(fixture.pool().free_count() == 0);
    first.reset();
    CHECK(fixture.pool().free_count() == 1);
}

TEST_CASE("the last copy drops the reference, whichever it is") {
    Fixture fixture(pool_of(1));
    for (const bool original_first : {true, false}) {
        BufferPtr original = fixture.pool().try_allocate();
        BufferPtr copy(original);
        BufferPtr copy_of_copy(copy);
        copy.reset();
        (original_first ? original : copy_of_copy).reset();
        CHECK(fixture.pool().free_count() == 0);
        CHECK_FALSE(fixture.pool().try_allocate());
        (original_first ? copy_of_copy : original).reset();
        CHECK(fixture.pool().free_count() == 1);
    }
}

TEST_CASE("a buffer's next use starts without the copies of the last one") {
    Fixture fixture(pool_of(1));
    for (int round = 0; round < 5; ++round) {
        BufferPtr buffer = fixture.pool().try_allocate();
        REQUIRE(buffer);
        CHECK(buffer.use_count() == 1);
        CHECK_FALSE(buffer.is_copied());
        const BufferPtr copy(buffer);
        CHECK(buffer.is_copied());
        CHECK(copy.use_count() == 2);
    }
}

TEST_CASE("assigning a BufferPtr to itself changes nothing") {
    Fixture fixture(pool_of(1));
    BufferPtr buffer = fixture.pool().try_allocate();
    BufferPtr& same = buffer;
    buffer = same;
    CHECK(buffer);
    CHECK(buffer.use_count() == 1);
    buffer = std::move(same);
    CHECK(buffer);
    CHECK(buffer.use_count() == 1);
    buffer.reset();
    CHECK(fixture.pool().free_count() == 1);
}

TEST_CASE("copies and clones are counted together") {
    Fixture fixture(pool_of(1));
    BufferPtr buffer = fixture.pool().try_allocate();
    const BufferPtr copy(buffer);
    BufferPtr clone = copy.clone();
    CHECK(clone.use_count() == 2); // two words; the copies of the other reference are not its own
    CHECK(buffer.use_count() == 3);
    const BufferPtr copy_of_clone(clone);
    CHECK(clone.use_count() == 3);
    buffer.swap(clone);
    CHECK(clone.reference() == 0);
    CHECK(buffer.reference() == 1);
    CHECK(fixture.pool().free_count() == 0);
}

TEST_CASE("one const BufferPtr is copied from several threads") {
    Fixture fixture(pool_of(2));
    for (int round = 0; round < 20; ++round) {
        BufferPtr buffer = fixture.pool().try_allocate();
        test::write_number(buffer, round);
        const BufferPtr& original = buffer;
        std::atomic<unsigned> failure_count{0};
        std::vector<std::thread> threads;
        for (int number = 0; number < 3; ++number) {
            threads.emplace_back([&] {
                for (int count = 0; count < 200; ++count) {
                    const BufferPtr copy(original);
                    const BufferPtr another(copy);
                    failure_count += test::read_number(another) == round ? 0U : 1U;
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        CHECK(failure_count == 0);
        CHECK(buffer.use_count() == 1);
    }
    CHECK(fixture.pool().free_count() == 2);
}

TEST_CASE("copies that are dropped by different threads drop the reference once") {
    Fixture fixture(pool_of(1));
    for (int round = 0; round < 100; ++round) {
        BufferPtr buffer = fixture.pool().try_allocate();
        REQUIRE(buffer);
        std::vector<std::thread> threads;
        for (int number = 0; number < 3; ++number) {
            threads.emplace_back([copy = buffer, round, number]() mutable {
                if (number == round % 4) {
                    std::this_thread::yield();
                }
                copy.reset();
            });
        }
        buffer.reset();
        for (std::thread& thread : threads) {
            thread.join();
        }
        REQUIRE(fixture.pool().free_count() == 1);
    }
    CHECK(fixture.check() == "");
}

// ---- Hints

TEST_CASE("stale hints never give a buffer a second owner") {
    Fixture fixture(pool_of(100));
    const std::vector<BufferPtr> buffers = allocate_all(fixture.pool());
    for (std::uint32_t index = 0; index < 100; ++index) {
        fixture.pool().view().hints().offer(index);
    }
    CHECK_FALSE(fixture.pool().try_allocate());
    CHECK(fixture.check() == "");
}

TEST_CASE("lost hints are made up for by a scan") {
    Fixture fixture(pool_of(1000));
    std::vector<BufferPtr> buffers = allocate_all(fixture.pool());
    std::ranges::sort(buffers, {}, &BufferPtr::id);
    buffers.pop_back(); // number 999 alone is free
    std::ranges::fill(fixture.memory.hints(), std::byte{0});
    unsigned attempt_count = 0;
    BufferPtr found;
    while (!found && attempt_count < 20) { // each attempt looks at 128 further buffers
        found = fixture.pool().try_allocate();
        ++attempt_count;
    }
    REQUIRE(found);
    CHECK(found.id() == 999);
    found.reset();
    std::ranges::fill(fixture.memory.hints(), std::byte{0});
    found = fixture.pool().allocate_for(0ns); // looks at all of them once
    CHECK(found);
}

TEST_CASE("hints of any bytes lead to free buffers or to none") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    Fixture fixture(pool_of(300));
    for (int round = 0; round < 30; ++round) {
        const std::span<std::byte> hints = fixture.memory.hints();
        const unsigned density = 1 + random.below(30U);
        for (std::byte& byte : hints) {
            byte = random.one_in(density) ? static_cast<std::byte>(random.next()) : std::byte{0};
        }
        std::vector<BufferPtr> buffers = allocate_all(fixture.pool());
        while (BufferPtr buffer = fixture.pool().allocate_for(0ns)) {
            buffers.push_back(std::move(buffer));
        }
        REQUIRE(twice(buffers).empty());
        REQUIRE(buffers.size() == 300);
    }
    CHECK(fixture.check() == "");
}

TEST_CASE("what a sleeping member hoards is taken by others") {
    const test::DomainMemory memory({pool_of(10)}, {});
    test::Member sleeper(memory);
    test::Member member(memory);
    allocate_all(sleeper.pools[0]); // and drops them: they are candidates in its lane
    const std::vector<BufferPtr> buffers = allocate_all(member.pools[0]);
    CHECK(buffers.size() == 10);
    CHECK_FALSE(sleeper.pools[0].try_allocate());
}

// ---- Waiting

TEST_CASE("an allocation from an exhausted pool ends at its deadline") {
    Fixture fixture(pool_of(1));
    const BufferPtr held = fixture.pool().try_allocate();
    CHECK_FALSE(fixture.pool().allocate_for(0ns));
    CHECK_FALSE(fixture.pool().allocate_for(-1h));
    CHECK_FALSE(fixture.pool().allocate_until(0));
    const std::int64_t start_ns = monotonic_ns();
    CHECK_FALSE(fixture.pool().allocate_for(3ms));
    CHECK(monotonic_ns() - start_ns >= 3'000'000);
}

TEST_CASE("an allocation whose deadline has passed takes a buffer that is free") {
    Fixture fixture(pool_of(1));
    CHECK(fixture.pool().allocate_for(-1h));
    CHECK(fixture.pool().allocate_until(0));
}

TEST_CASE("a drop wakes who waits for a buffer") {
    // No re-check helps out within the watchdog's time.
    const WaitOptions wait{.spin_count = GENERATE(0U, 300U), .recheck_interval_ns = 3'600'000'000'000};
    const test::DomainMemory memory({pool_of(1)}, {});
    test::Member holder(memory);
    test::Member waiter(memory);
    const test::CountedFutex futex;
    for (int round = 0; round < 50; ++round) {
        BufferPtr buffer = holder.pools[0].try_allocate();
        REQUIRE(buffer);
        test::write_number(buffer, round);
        const unsigned waits_before = futex.wait_count;
        std::thread thread([&] {
            const BufferPtr got = waiter.pools[0].allocate(wait);
            if (!got || test::read_number(got) != round) {
                std::abort();
            }
        });
        while (round % 2 == 0 && futex.wait_count == waits_before) {
            std::this_thread::yield(); // so that it sleeps in every other round
        }
        buffer.reset();
        thread.join();
    }
    CHECK(holder.pools[0].free_count() == 1);
}

TEST_CASE("where nobody waits, allocating and dropping makes no system call") {
    Fixture fixture(pool_of(50));
    const test::CountedFutex futex;
    for (int round = 0; round < 200; ++round) {
        CHECK(allocate_all(fixture.pool()).size() == 50);
    }
    CHECK(futex.wake_count == 0);
    CHECK(futex.wait_count == 0);
}

TEST_CASE("a waiter that was killed costs one needless wake") {
    Fixture fixture(pool_of(1));
    static_cast<void>(fixture.pool().view().freed_event().prepare());
    const test::CountedFutex futex;
    for (int round = 0; round < 10; ++round) {
        CHECK(fixture.pool().try_allocate());
    }
    CHECK(futex.wake_count == 1);
}

// ---- Several pools

TEST_CASE("a size gets a buffer of the pool that fits best") {
    const test::DomainMemory memory({{.buffer_bytes = 4096, .buffer_count = 2, .first_buffer = 0},
                                     {.buffer_bytes = 64, .buffer_count = 2, .first_buffer = 10},
                                     {.buffer_bytes = 512, .buffer_count = 2, .first_buffer = 20}},
                                    {});
    test::Member member(memory);
    std::vector<std::uint64_t> sizes;
    for (const BufferPool& pool : member.buffers.pools()) {
        sizes.push_back(pool.buffer_bytes());
    }
    CHECK(sizes == std::vector<std::uint64_t>{64, 512, 4096});
    struct Case {
        std::size_t bytes;
        std::size_t capacity_bytes;
    };
    for (const Case& one :
         {Case{0, 64}, Case{64, 64}, Case{65, 512}, Case{512, 512}, Case{513, 4096}, Case{4096, 4096}}) {
        CAPTURE(one.bytes);
        const BufferPtr buffer = member.buffers.try_allocate(one.bytes);
        REQUIRE(buffer);
        CHECK(buffer.size_bytes() == one.bytes);
        CHECK(buffer.capacity_bytes() == one.capacity_bytes);
        CHECK(member.buffers.allocate(one.bytes).capacity_bytes() == one.capacity_bytes);
        CHECK(member.buffers.fits(one.bytes));
    }
    CHECK_FALSE(member.buffers.fits(4097));
    CHECK_FALSE(member.buffers.try_allocate(4097));
    CHECK_FALSE(member.buffers.allocate(4097)); // nothing to wait for
}

TEST_CASE("where the best pool is exhausted the next larger one helps out") {
    const test::DomainMemory memory({{.buffer_bytes = 64, .buffer_count = 1, .first_buffer = 0},
                                     {.buffer_bytes = 128, .buffer_count = 1, .first_buffer = 1},
                                     {.buffer_bytes = 256, .buffer_count = 1, .first_buffer = 2}},
                                    {});
    test::Member member(memory);
    std::vector<BufferPtr> buffers;
    for (const std::size_t expected : {std::size_t{64}, std::size_t{128}, std::size_t{256}}) {
        buffers.push_back(member.buffers.try_allocate(10));
        REQUIRE(buffers.back());
        CHECK(buffers.back().capacity_bytes() == expected);
        CHECK(buffers.back().size_bytes() == 10);
    }
    CHECK_FALSE(member.buffers.try_allocate(10));
    CHECK_FALSE(member.buffers.allocate_for(10, 2ms));
    CHECK_FALSE(member.buffers.allocate_until(10, 0));
    buffers.pop_back();
    CHECK(member.buffers.allocate(10).capacity_bytes() == 256);
}

TEST_CASE("an allocation that waits gets a buffer of whichever pool has one first") {
    const test::DomainMemory memory({{.buffer_bytes = 64, .buffer_count = 1, .first_buffer = 0},
                                     {.buffer_bytes = 128, .buffer_count = 1, .first_buffer = 1}},
                                    {});
    test::Member member(memory);
    for (const std::size_t freed : {std::size_t{0}, std::size_t{1}}) {
        std::array<BufferPtr, 2> buffers{member.buffers.try_allocate(1), member.buffers.try_allocate(1)};
        REQUIRE((buffers[0] && buffers[1]));
        const std::size_t expected = buffers[freed].capacity_bytes();
        BufferPtr got;
        std::thread thread(
            [&] { got = member.buffers.allocate(1, {.spin_count = 0, .recheck_interval_ns = 1'000'000}); });
        buffers[freed].reset();
        thread.join();
        CHECK(got.capacity_bytes() == expected);
    }
}

TEST_CASE("two pools of one domain do not share buffer numbers") {
    const test::DomainMemory memory({{.buffer_bytes = 64, .buffer_count = 10, .first_buffer = 100}}, {});
    const test::Member member(memory);
    const auto add = [&](std::uint32_t first, std::uint32_t count) {
        const BufferPoolOptions options{.buffer_bytes = 64, .buffer_count = count, .first_buffer = first};
        const test::Memory control(BufferPool::control_bytes(options));
        const test::Memory payload(BufferPool::payload_bytes(options));
        BufferPool::format(control.span(), options);
        SharedBufferAllocator buffers = member.buffers;
        return error_of([&] {
            buffers.add(BufferPool(control.span(), payload.span(), member.me));
            return 0;
        });
    };
    CHECK_FALSE(add(90, 10));
    CHECK_FALSE(add(110, 10));
    CHECK(add(91, 10) == errc::other_parameters);
    CHECK(add(109, 1) == errc::other_parameters);
    CHECK(add(100, 10) == errc::other_parameters);
    CHECK(add(0, 1000) == errc::other_parameters);
    CHECK(add(105, 1) == errc::other_parameters);
}

TEST_CASE("a buffer's pool is found by its number") {
    const test::DomainMemory memory({{.buffer_bytes = 128, .buffer_count = 10, .first_buffer = 100},
                                     {.buffer_bytes = 64, .buffer_count = 5, .first_buffer = 500}},
                                    {});
    const test::Member member(memory);
    CHECK(member.buffers.find(100) == &member.pools[0].view());
    CHECK(member.buffers.find(109) == &member.pools[0].view());
    CHECK(member.buffers.find(504) == &member.pools[1].view());
    for (const std::uint32_t unknown : {0U, 99U, 110U, 499U, 505U, ~0U}) {
        CHECK(member.buffers.find(unknown) == nullptr);
    }
    CHECK(SharedBufferAllocator().find(0) == nullptr);
    CHECK_FALSE(SharedBufferAllocator().fits(0));
    CHECK_FALSE(SharedBufferAllocator().try_allocate(1));
}

// ---- All at once

TEST_CASE("of many threads and members none gets a buffer that another has") {
    constexpr unsigned thread_count = 6; // of two members: more than either has lanes
    const std::uint32_t references = GENERATE(4U, 12U);
    const test::DomainMemory memory({pool_of(20, references)}, {});
    std::vector<test::Member> members;
    members.emplace_back(memory);
    members.emplace_back(memory);
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    std::atomic<unsigned> failure_count{0};
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < thread_count; ++number) {
        threads.emplace_back([&, number] {
            test::Random random(seed + number);
            BufferPool pool = members[number % 2].pools[0];
            std::vector<BufferPtr> mine;
            for (unsigned count = 0; count < 4000; ++count) {
                BufferPtr buffer = pool.try_allocate();
                if (buffer) {
                    test::write_number(buffer, number * 1'000'000 + count);
                    while (random.one_in(2)) { // clones that hold on while the first reference goes
                        BufferPtr clone = buffer.clone();
                        if (!clone) {
                            break;
                        }
                        buffer = std::move(clone);
                    }
                    std::this_thread::yield();
                    failure_count += test::read_number<unsigned>(buffer) == number * 1'000'000 + count ? 0U : 1U;
                    // For a moment there is one more, where another thread's stale hint leads to this buffer: an allocation
                    // takes reference 0, sees the clone, and gives it back.
                    unsigned look_count = 0;
                    while (buffer.use_count() != 1 && ++look_count < 1000) {
                        std::this_thread::yield();
                    }
                    failure_count += look_count < 1000 ? 0U : 1U;
                    mine.push_back(std::move(buffer));
                }
                if (mine.size() > 4) {
                    mine.erase(mine.begin() + static_cast<std::ptrdiff_t>(random.below(mine.size())));
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(failure_count == 0);
    CHECK(members[0].check() == "");
    CHECK(members[0].pools[0].free_count() == 20);
}

TEST_CASE("random allocations, clones, copies and drops agree with a plain model") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    for (const std::uint32_t references : {4U, 12U}) {
        constexpr std::uint32_t buffer_count = 10;
        CAPTURE(references);
        const test::DomainMemory memory({pool_of(buffer_count, references)}, {});
        std::vector<test::Member> members;
        for (int number = 0; number < 3; ++number) {
            members.emplace_back(memory);
        }
        std::map<std::pair<std::uint32_t, unsigned>, std::uint32_t> holders; // (buffer, reference) -> copies
        std::vector<BufferPtr> held;
        const auto words_in_use = [&](std::uint32_t index) {
            return static_cast<std::uint32_t>(
                std::ranges::count_if(holders, [&](const auto& entry) { return entry.first.first == index; }));
        };
        for (int count = 0; count < 20'000; ++count) {
            const char* wrong = nullptr;
            const bool has_any = !held.empty();
            const std::size_t place = has_any ? random.below(held.size()) : 0;
            switch (random.below(5)) {
            case 0:
            case 1: {
                BufferPtr buffer = members[random.below(members.size())].pools[0].try_allocate();
                std::set<std::uint32_t> used;
                for (const auto& entry : holders) {
                    used.insert(entry.first.first);
                }
                if (static_cast<bool>(buffer) != (used.size() < buffer_count)) {
                    wrong = "allocation";
                } else if (buffer) {
                    wrong = used.contains(buffer.index()) || buffer.reference() != 0 ? "owner" : nullptr;
                    holders[{buffer.index(), 0}] = 1;
                    held.push_back(std::move(buffer));
                }
                break;
            }
            case 2:
                if (has_any) {
                    BufferPtr clone = held[place].clone();
                    if (static_cast<bool>(clone) != (words_in_use(held[place].index()) < references)) {
                        wrong = "clone";
                    } else if (clone) {
                        wrong = holders.contains({clone.index(), clone.reference()}) ? "word of the clone" : nullptr;
                        holders[{clone.index(), clone.reference()}] = 1;
                        held.push_back(std::move(clone));
                    }
                }
                break;
            case 3:
                if (has_any && held.size() < 100) {
                    ++holders[{held[place].index(), held[place].reference()}];
                    held.push_back(held[place]);
                }
                break;
            default:
                for (unsigned drops = random.below(4U); drops > 0 && !held.empty(); --drops) {
                    const std::size_t dropped = random.below(held.size());
                    const auto entry = holders.find({held[dropped].index(), held[dropped].reference()});
                    if (--entry->second == 0) {
                        holders.erase(entry);
                    }
                    held.erase(held.begin() + static_cast<std::ptrdiff_t>(dropped));
                }
            }
            if (!held.empty()) {
                const BufferPtr& one = held[random.below(held.size())];
                const std::uint32_t expected = words_in_use(one.index()) + holders[{one.index(), one.reference()}] - 1;
                wrong = one.use_count() != expected ? "use count" : wrong;
            }
            if (wrong != nullptr) {
                FAIL("operation " << count << ": " << wrong);
            }
        }
        CHECK(members[0].check() == "");
        held.clear();
        CHECK(members[0].pools[0].free_count() == buffer_count);
    }
}
