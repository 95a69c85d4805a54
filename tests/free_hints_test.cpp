#include "catch.hpp"
#include "testing.hpp"

#include <weir/free_hints.hpp>

#include <algorithm>
#include <set>
#include <thread>

using namespace weir;

namespace {

struct Fixture {
    explicit Fixture(std::uint32_t count) : buffer_count(count), memory(FreeHints::bytes(count)) {}

    [[nodiscard]] FreeHints of_slot(std::uint8_t slot) const { return {memory.span(), buffer_count, slot}; }
    void lose_everything() const { std::ranges::fill(memory.span(), std::byte{0}); }

    std::uint32_t buffer_count;
    test::Memory memory;
};

/// The next hint, as if the buffer could be taken.
std::uint32_t next(FreeHints& hints) {
    return hints.find([](std::uint32_t) { return true; });
}

/// All hints, one after the other. Each buffer is taken once: a lane that others look into keeps its hints.
std::vector<std::uint32_t> all(FreeHints& hints) {
    std::vector<std::uint32_t> found;
    std::set<std::uint32_t> taken;
    const auto take = [&](std::uint32_t index) { return taken.insert(index).second; };
    for (std::uint32_t index = 0; (index = hints.find(take)) != FreeHints::none;) {
        found.push_back(index);
    }
    return found;
}

std::vector<std::uint32_t> numbers(std::uint32_t first, std::uint32_t end) {
    std::vector<std::uint32_t> values;
    for (std::uint32_t value = first; value < end; ++value) {
        values.push_back(value);
    }
    return values;
}

} // namespace

TEST_CASE("zeroed bytes hint at nothing") {
    const Fixture fixture(1000);
    FreeHints hints = fixture.of_slot(0);
    CHECK(next(hints) == FreeHints::none);
    CHECK(hints.pop() == FreeHints::none);
}

TEST_CASE("formatted hints lead to each buffer once, low ones first") {
    for (const std::uint32_t count : {1U, 2U, 63U, 64U, 65U, 4095U, 4096U, 4097U, 262'145U}) {
        CAPTURE(count);
        const Fixture fixture(count);
        FreeHints hints = fixture.of_slot(3);
        hints.format();
        const std::vector<std::uint32_t> found = all(hints);
        CHECK(found == numbers(0, count));
        CHECK(next(hints) == FreeHints::none);
    }
}

TEST_CASE("what was freed last is found first") {
    const Fixture fixture(1000);
    FreeHints hints = fixture.of_slot(0);
    for (const std::uint32_t index : {17U, 900U, 3U}) {
        hints.offer(index);
    }
    CHECK(next(hints) == 3);
    hints.offer(5);
    CHECK(all(hints) == std::vector<std::uint32_t>{5, 900, 17});
}

TEST_CASE("the usual case pops and pushes at the same end as the search") {
    const Fixture fixture(1000);
    FreeHints hints = fixture.of_slot(0);
    CHECK_FALSE(hints.try_push(1)); // the thread has no lane yet
    hints.offer(1);
    CHECK(hints.try_push(2));
    CHECK(hints.pop() == 2);
    CHECK(hints.try_push(3));
    CHECK(next(hints) == 3);
    CHECK(hints.pop() == 1);
    CHECK(hints.pop() == FreeHints::none);
    unsigned pushed_count = 0;
    while (hints.try_push(pushed_count)) {
        ++pushed_count;
    }
    CHECK(pushed_count == FreeHints::lane_candidate_max);
}

TEST_CASE("a thread that frees much passes the oldest on, and loses none") {
    const Fixture fixture(1000);
    FreeHints hints = fixture.of_slot(0);
    FreeHints others = fixture.of_slot(1);
    for (const std::uint32_t index : numbers(0, 1000)) {
        hints.offer(index);
    }
    CHECK(hints.pop() == 999);
    hints.offer(999);
    CHECK(next(others) == 0);
    others.offer(0);
    std::vector<std::uint32_t> found = all(others);
    CHECK(found.front() == 0);
    std::ranges::sort(found);
    CHECK(found == numbers(0, 1000));
}

TEST_CASE("a hint that a sleeping process hoards is found by others") {
    const Fixture fixture(1000);
    FreeHints sleeper = fixture.of_slot(200);
    FreeHints hints = fixture.of_slot(5);
    sleeper.offer(77);
    sleeper.offer(78);
    std::set<std::uint32_t> seen;
    CHECK(hints.find([&](std::uint32_t index) {
        seen.insert(index);
        return false;
    }) == FreeHints::none);
    CHECK(seen == std::set<std::uint32_t>{77, 78});
    CHECK(next(hints) == 78);
}

TEST_CASE("a stale hint costs one look and is gone") {
    const Fixture fixture(100);
    FreeHints hints = fixture.of_slot(0);
    hints.format();
    unsigned look_count = 0;
    CHECK(hints.find([&](std::uint32_t index) {
        ++look_count;
        return index == 42;
    }) == 42);
    CHECK(look_count == 43);
    CHECK(all(hints) == numbers(43, 100));
}

TEST_CASE("a candidate that is given back while it is looked at stays hinted at") {
    const Fixture fixture(100);
    FreeHints hints = fixture.of_slot(0);
    hints.offer(1);
    hints.offer(2);
    unsigned look_count = 0;
    CHECK(hints.find([&](std::uint32_t index) {
        if (++look_count == 1) {
            hints.offer(50); // as a drop of a buffer that turned out to be shared
        }
        return index == 1;
    }) == 1);
    CHECK(next(hints) == FreeHints::none);
    CHECK(look_count == 3);
}

TEST_CASE("a search ends though each candidate is offered again") {
    const Fixture fixture(100);
    FreeHints hints = fixture.of_slot(0);
    hints.offer(1);
    CHECK(hints.find([&](std::uint32_t index) {
        hints.offer(index);
        return false;
    }) == FreeHints::none);
}

TEST_CASE("hints that are lost are offered anew in groups") {
    const Fixture fixture(130);
    FreeHints hints = fixture.of_slot(0);
    hints.format();
    fixture.lose_everything();
    CHECK(next(hints) == FreeHints::none);
    hints.offer_group(0, 0b1010);
    hints.offer_group(2, 0b11);
    CHECK(all(hints) == std::vector<std::uint32_t>{1, 3, 128, 129});
}

TEST_CASE("any bytes lead to buffers that exist, or to none") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    for (int round = 0; round < 60; ++round) {
        const Fixture fixture(1 + random.below(5000U));
        const unsigned density = 1 + random.below(20U);
        for (std::size_t offset = 0; offset + 4 <= fixture.memory.span().size(); offset += 4) {
            if (random.one_in(density)) {
                fixture.memory.at<std::uint32_t>(offset) =
                    static_cast<std::uint32_t>(random.next() >> random.below(40U));
            }
        }
        FreeHints hints = fixture.of_slot(static_cast<std::uint8_t>(random.below(256U)));
        for (int count = 0; count < 100; ++count) {
            const bool takes = random.one_in(2);
            const std::uint32_t found = hints.find([&](std::uint32_t index) {
                if (index >= fixture.buffer_count) {
                    FAIL("candidate " << index << " of " << fixture.buffer_count);
                }
                return takes;
            });
            if (found != FreeHints::none && found >= fixture.buffer_count) {
                FAIL("found " << found << " of " << fixture.buffer_count);
            }
            const std::uint32_t popped = hints.pop();
            if (popped != FreeHints::none && popped >= fixture.buffer_count) {
                FAIL("popped " << popped << " of " << fixture.buffer_count);
            }
            hints.offer(random.below(fixture.buffer_count));
        }
    }
}

TEST_CASE("threads beyond a process's lanes lose no hints and share none") {
    const Fixture fixture(2000);
    FreeHints hints = fixture.of_slot(0);
    hints.format();
    std::vector<std::atomic<unsigned>> owners(fixture.buffer_count);
    std::atomic<bool> is_taken_twice{false};
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < FreeHints::lanes_per_slot + 3; ++number) {
        threads.emplace_back([&] {
            std::vector<std::uint32_t> mine;
            const auto take = [&](std::uint32_t index) {
                unsigned nobody = 0; // the truth, which the hints only lead to
                return owners[index].compare_exchange_strong(nobody, 1);
            };
            for (int round = 0; round < 3000; ++round) {
                const std::uint32_t index = hints.find(take);
                if (index != FreeHints::none) {
                    mine.push_back(index);
                }
                if (mine.size() > 20) {
                    for (int count = 0; count < 15; ++count) {
                        is_taken_twice = is_taken_twice || owners[mine.back()].exchange(0) != 1;
                        hints.offer(mine.back());
                        mine.pop_back();
                    }
                }
            }
            for (const std::uint32_t index : mine) {
                owners[index] = 0;
                hints.offer(index);
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK_FALSE(is_taken_twice);
    FreeHints late = fixture.of_slot(1);
    std::set<std::uint32_t> found;
    CHECK(late.find([&](std::uint32_t index) {
        found.insert(index);
        return false;
    }) == FreeHints::none);
    CHECK(found.size() > 500); // a search is bounded; what it passes by is found by the pool's own scan
}

TEST_CASE("random offers and searches agree with a set") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    for (const std::uint32_t buffer_count : {10U, 64U, 700U, 5000U}) {
        CAPTURE(buffer_count);
        const Fixture fixture(buffer_count);
        FreeHints hints = fixture.of_slot(0);
        hints.format();
        std::set<std::uint32_t> hinted; // each free buffer has exactly one hint
        for (const std::uint32_t index : numbers(0, buffer_count)) {
            hinted.insert(index);
        }
        std::vector<std::uint32_t> taken;
        unsigned take_chance = 2;
        for (int count = 0; count < 20'000; ++count) {
            if (random.one_in(200)) {
                take_chance = 1 + random.below(3U);
            }
            if (random.below(4U) < take_chance) {
                std::uint32_t index = random.one_in(2) ? hints.pop() : FreeHints::none;
                index = index != FreeHints::none ? index : next(hints);
                if (index == FreeHints::none) {
                    if (!hinted.empty()) {
                        FAIL("operation " << count << ": " << hinted.size() << " hints are not found");
                    }
                    continue;
                }
                if (hinted.erase(index) != 1) {
                    FAIL("operation " << count << ": " << index << " is hinted at twice");
                }
                taken.push_back(index);
            } else if (!taken.empty()) {
                const std::size_t place = random.below(taken.size());
                std::swap(taken[place], taken.back());
                hints.offer(taken.back());
                hinted.insert(taken.back());
                taken.pop_back();
            }
        }
    }
}
