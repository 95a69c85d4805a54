#include "catch.hpp"
#include "testing.hpp"

#include <weir/process_table.hpp>

#include <map>
#include <set>
#include <thread>

using namespace weir;
using test::error_of;

namespace {

struct Fixture {
    test::Memory memory{ProcessTable::bytes()};
    ProcessTable table{memory.span()};

    [[nodiscard]] std::uint64_t& word(unsigned slot) const { return memory.at<std::uint64_t>(slot * 8); }
};

} // namespace

TEST_CASE("zeroed bytes are an empty table") {
    const Fixture fixture;
    for (unsigned slot = 0; slot < process_slot_count; ++slot) {
        CHECK_FALSE(fixture.table.entry(static_cast<std::uint8_t>(slot)).alive);
        CHECK_FALSE(fixture.table.is_alive(static_cast<std::uint8_t>(slot), 0));
    }
    CHECK(fixture.table.check().empty());
}

TEST_CASE("a table wants a cache line's alignment and all of its bytes") {
    const test::Memory memory(ProcessTable::bytes() + 64);
    CHECK(error_of([&] { return ProcessTable(memory.span().subspan(8)); }) == errc::misaligned);
    CHECK(error_of([&] { return ProcessTable(memory.span().first(ProcessTable::bytes() - 1)); }) == errc::invalid_size);
    CHECK_FALSE(error_of([&] { return ProcessTable(memory.span().first(ProcessTable::bytes())); }));
}

TEST_CASE("each member has a slot of its own, 256 at most") {
    Fixture fixture;
    std::set<unsigned> slots;
    for (unsigned count = 0; count < process_slot_count; ++count) {
        const Membership me = fixture.table.join();
        CHECK(me.is_alive());
        CHECK(me.incarnation == 0);
        CHECK(me.owner() == Owner(me.slot, 0));
        slots.insert(me.slot);
    }
    CHECK(slots.size() == 256);
    CHECK(error_of([&] { return fixture.table.join(); }) == errc::table_full);
    REQUIRE(fixture.table.end(77, 0));
    CHECK(fixture.table.join().slot == 77);
    CHECK(error_of([&] { return fixture.table.join(); }) == errc::table_full);
}

TEST_CASE("a slot's next owner has the next incarnation") {
    Fixture fixture;
    for (std::uint64_t incarnation = 0; incarnation < 5000; ++incarnation) {
        const Membership me = fixture.table.join();
        if (me.slot != 0 || me.incarnation != incarnation || !me.is_alive() || !fixture.table.end(0, incarnation) ||
            me.is_alive()) {
            FAIL("incarnation " << incarnation);
        }
    }
}

TEST_CASE("ending an incarnation twice ends it once") {
    Fixture fixture;
    const Membership me = fixture.table.join();
    CHECK(fixture.table.end(me.slot, me.incarnation));
    CHECK_FALSE(fixture.table.end(me.slot, me.incarnation));
    CHECK(fixture.table.entry(me.slot).incarnation == me.incarnation + 1);
    CHECK_FALSE(fixture.table.entry(me.slot).alive);
}

TEST_CASE("a late reaper does not end the slot's next owner") {
    Fixture fixture;
    const Membership dead = fixture.table.join();
    REQUIRE(fixture.table.end(dead.slot, dead.incarnation));
    const Membership newcomer = fixture.table.join();
    REQUIRE(newcomer.slot == dead.slot);
    CHECK_FALSE(fixture.table.end(dead.slot, dead.incarnation));
    CHECK(newcomer.is_alive());
    CHECK_FALSE(dead.is_alive());
}

TEST_CASE("an incarnation that never joined cannot be ended") {
    Fixture fixture;
    CHECK_FALSE(fixture.table.end(3, 0));
    CHECK(fixture.word(3) == 0);
}

TEST_CASE("owners 2048 incarnations apart look the same in a word and different in the table") {
    Fixture fixture;
    const Membership old = fixture.table.join();
    REQUIRE(fixture.table.end(old.slot, old.incarnation));
    fixture.word(0) = (old.incarnation + 2048) << 1;
    const Membership young = fixture.table.join();
    CHECK(young.incarnation == old.incarnation + 2048);
    CHECK(young.owner() == old.owner());
    CHECK(young.is_alive());
    CHECK_FALSE(old.is_alive());
}

TEST_CASE("incarnations are whole up to 48 bits") {
    Fixture fixture;
    fixture.word(0) = (incarnation_mask - 1) << 1;
    const Membership me = fixture.table.join();
    CHECK(me.incarnation == incarnation_mask - 1);
    CHECK(me.is_alive());
    CHECK(fixture.table.end(me.slot, me.incarnation));
    const Membership last = fixture.table.join();
    CHECK(last.incarnation == incarnation_mask);
    CHECK(last.is_alive());
    CHECK(fixture.table.check().empty());
}

TEST_CASE("an entry beyond 48 bits is named by check, and its owner is nobody") {
    Fixture fixture;
    fixture.word(9) = std::uint64_t{1} << 49;
    fixture.word(0) = ~std::uint64_t{0} - 1;
    const std::vector<std::string> broken = fixture.table.check();
    REQUIRE(broken.size() == 2);
    CHECK(broken[0].find("entry 0") != std::string::npos);
    CHECK(broken[1].find("entry 9") != std::string::npos);
    CHECK_FALSE(fixture.table.join().is_alive());
}

TEST_CASE("who joins at the same time gets different slots") {
    Fixture fixture;
    std::vector<std::vector<Membership>> joined(4);
    std::vector<std::thread> threads;
    for (std::vector<Membership>& mine : joined) {
        threads.emplace_back([&fixture, &mine] {
            for (int count = 0; count < 40; ++count) {
                mine.push_back(fixture.table.join());
            }
        });
    }
    std::set<unsigned> slots;
    for (std::size_t number = 0; number < threads.size(); ++number) {
        threads[number].join();
        for (const Membership& member : joined[number]) {
            slots.insert(member.slot);
            CHECK(member.is_alive());
        }
    }
    CHECK(slots.size() == 160);
}

TEST_CASE("of several who end an incarnation at once one does, and the slot counts them one by one") {
    Fixture fixture;
    constexpr std::uint64_t round_count = 300;
    std::atomic<std::uint64_t> ended_count{0};
    std::vector<std::thread> threads;
    for (int number = 0; number < 3; ++number) {
        threads.emplace_back([&] {
            for (;;) {
                const ProcessTable::Entry entry = fixture.table.entry(0);
                if (entry.incarnation == round_count) {
                    return;
                }
                if (!entry.alive) {
                    std::this_thread::yield();
                } else {
                    ended_count += fixture.table.end(0, entry.incarnation) ? 1 : 0;
                }
            }
        });
    }
    ProcessTable table = fixture.table;
    for (std::uint64_t joined_count = 0; joined_count < round_count;) {
        const Membership me = table.join();
        if (me.slot == 0) {
            ++joined_count;
        } else {
            static_cast<void>(table.end(me.slot, me.incarnation));
            std::this_thread::yield();
        }
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(ended_count == round_count);
    CHECK(fixture.table.entry(0).incarnation == round_count);
}

TEST_CASE("random joins and ends agree with a plain model") {
    Fixture fixture;
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    std::map<unsigned, std::uint64_t> alive;
    std::map<unsigned, std::uint64_t> next_incarnation;
    std::vector<Membership> ever;
    for (int count = 0; count < 30'000; ++count) {
        if (alive.size() < 20 && random.one_in(2)) {
            const Membership me = fixture.table.join();
            const bool is_right = !alive.contains(me.slot) && me.incarnation == next_incarnation[me.slot];
            if (!is_right) {
                FAIL("operation " << count << " joined slot " << unsigned{me.slot});
            }
            alive[me.slot] = me.incarnation;
            ever.push_back(me);
        } else if (!ever.empty()) {
            const Membership one = ever[random.below(ever.size())];
            const auto entry = alive.find(one.slot);
            const bool expected = entry != alive.end() && entry->second == one.incarnation;
            const bool is_right =
                one.is_alive() == expected && fixture.table.end(one.slot, one.incarnation) == expected;
            if (!is_right) {
                FAIL("operation " << count << " ended slot " << unsigned{one.slot});
            }
            if (expected) {
                next_incarnation[one.slot] = one.incarnation + 1;
                alive.erase(entry);
            }
        }
        if (ever.size() > 200) {
            ever.erase(ever.begin(), ever.begin() + 100);
        }
    }
    CHECK(fixture.table.check().empty());
}
