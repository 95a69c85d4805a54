#include "catch.hpp"
#include "testing.hpp"

#include <weir/reap.hpp>

#include <algorithm>
#include <array>
#include <deque>
#include <thread>

using namespace weir;
using test::Member;

namespace {

constexpr WaitOptions park_at_once{.spin_count = 0, .recheck_interval_ns = 3'600'000'000'000};

BufferPoolOptions pool_of(std::uint32_t buffer_count, std::uint32_t references_per_buffer = 4,
                          std::uint32_t first_buffer = 0) {
    return {.buffer_bytes = 64,
            .buffer_count = buffer_count,
            .references_per_buffer = references_per_buffer,
            .first_buffer = first_buffer};
}

/// Two pools, two ports; `survivor` lives, `victim` is what a test lets die.
struct Fixture {
    Fixture()
        : memory({pool_of(16, 4, 0), pool_of(8, 12, 500)},
                 {{.capacity = 8, .port_id = 3}, {.capacity = 8, .port_id = 5}}),
          survivor(memory), victim(memory) {}

    [[nodiscard]] std::string check() const { return survivor.check(); }
    [[nodiscard]] ReapResult reap() const { return survivor.reap(victim.me); }
    /// The reference word of a buffer's handle.
    [[nodiscard]] static std::uint64_t& word(const BufferPtr& buffer) {
        return buffer.pool()->reference(buffer.index(), buffer.reference());
    }

    test::DomainMemory memory;
    Member survivor;
    Member victim;
};

constexpr std::uint32_t all_buffer_count = 24;

BufferPtr buffer_with(Member& member, int number, std::size_t pool = 0) {
    BufferPtr buffer = member.pools[pool].try_allocate();
    if (!buffer) {
        throw std::logic_error("no buffer is free");
    }
    test::write_number(buffer, number);
    return buffer;
}

void push(Member& member, int number, std::size_t port = 0, std::size_t pool = 0) {
    Producer out(member.ports[port]);
    if (out.try_push(buffer_with(member, number, pool)) != PushResult::ok) {
        throw std::logic_error("no room");
    }
}

/// What is queued, taken out by a consumer.
std::vector<int> drain(Member& member, std::size_t port = 0) {
    Consumer in(member.ports[port]);
    std::vector<int> numbers;
    while (const BufferPtr buffer = in.try_pop()) {
        numbers.push_back(test::read_number(buffer));
    }
    return numbers;
}

/// The item in the cell of `position`, claimed by `member`, which dies before it clears the cell.
void claim_and_die(const Member& member, std::uint64_t position, std::size_t port = 0) {
    PortView& view = *member.ports[port].view();
    PortView::Item item;
    if (!view.decode(view.ring().load_cell(position), item) ||
        !try_claim(item.word(), load_reference(item.word()), member.me.owner())) {
        throw std::logic_error("there is nothing to claim");
    }
}

/// A push of which only the first step was done.
void queue_and_die(Member& member, std::size_t port = 0, std::size_t pool = 0) {
    BufferPtr buffer = member.pools[pool].try_allocate();
    set_queued(Fixture::word(buffer), member.me.owner(), member.ports[port].options().port_id);
    test::abandon(std::move(buffer));
}

} // namespace

// ---- What reaping gives back, and what it leaves

TEST_CASE("what a dead process held is free again, in every pool and with every reference") {
    Fixture fixture;
    for (const std::size_t pool : {0U, 1U}) {
        BufferPtr buffer = buffer_with(fixture.victim, 1, pool);
        BufferPtr clone = buffer.clone();
        BufferPtr only_clone = buffer_with(fixture.victim, 2, pool);
        BufferPtr kept = only_clone.clone();
        only_clone.reset();
        test::abandon(std::move(buffer));
        test::abandon(std::move(clone));
        test::abandon(std::move(kept));
    }
    CHECK(fixture.survivor.census().free_count == all_buffer_count - 4);
    const ReapResult result = fixture.reap();
    CHECK_FALSE(result.error);
    CHECK(result.freed_reference_count == 6);
    CHECK(result.kept_message_count == 0);
    CHECK(result.cleared_cell_count == 0);
    CHECK(result.ended_entry);
    CHECK_FALSE(fixture.victim.me.is_alive());
    CHECK(fixture.survivor.census().free_count == all_buffer_count);
    CHECK(fixture.check() == "");
}

TEST_CASE("what a dead process had pushed stays and arrives once") {
    Fixture fixture;
    for (int number = 0; number < 5; ++number) {
        push(number % 2 == 0 ? fixture.victim : fixture.survivor, number, 0, number % 3 == 0 ? 1 : 0);
        push(fixture.victim, 100 + number, 1);
    }
    const ReapResult result = fixture.reap();
    CHECK(result.freed_reference_count == 0);
    CHECK(result.kept_message_count == 8);
    CHECK(fixture.check() == "");
    CHECK(fixture.survivor.census().queued_reference_count == 10);
    CHECK(drain(fixture.survivor) == std::vector<int>{0, 1, 2, 3, 4});
    CHECK(drain(fixture.survivor, 1) == std::vector<int>{100, 101, 102, 103, 104});
    CHECK(fixture.survivor.census().free_count == all_buffer_count);
    CHECK(fixture.check() == "");
}

TEST_CASE("a message that a dead process claimed is gone, its cell cleared and its buffer free") {
    Fixture fixture;
    for (int number = 0; number < 4; ++number) {
        push(fixture.survivor, number);
    }
    claim_and_die(fixture.victim, 0);
    claim_and_die(fixture.victim, 1);
    const ReapResult result = fixture.reap();
    CHECK(result.cleared_cell_count == 2);
    CHECK(result.freed_reference_count == 2);
    CHECK(result.kept_message_count == 0);
    CHECK(fixture.check() == "");
    CHECK(drain(fixture.survivor) == std::vector<int>{2, 3});
    CHECK(fixture.survivor.census().free_count == all_buffer_count);
}

TEST_CASE("a push that ended before its cell was filled did not happen") {
    Fixture fixture;
    push(fixture.victim, 1);
    queue_and_die(fixture.victim);
    queue_and_die(fixture.victim, 1, 1);
    const ReapResult result = fixture.reap();
    CHECK(result.freed_reference_count == 2);
    CHECK(result.kept_message_count == 1);
    CHECK(fixture.check() == "");
    CHECK(drain(fixture.survivor) == std::vector<int>{1});
    CHECK(fixture.survivor.census().free_count == all_buffer_count);
}

TEST_CASE("a fan-out that ended in the middle reached some of its ports") {
    Fixture fixture;
    BufferPtr buffer = buffer_with(fixture.victim, 7);
    BufferPtr clone = buffer.clone();
    BufferPtr another = buffer.clone();
    {
        Producer out(fixture.victim.ports[1]);
        REQUIRE(out.try_push(std::move(clone)) == PushResult::ok);
    }
    test::abandon(std::move(buffer));
    test::abandon(std::move(another));
    const ReapResult result = fixture.reap();
    CHECK(result.freed_reference_count == 2);
    CHECK(result.kept_message_count == 1);
    CHECK(drain(fixture.survivor).empty());
    CHECK(drain(fixture.survivor, 1) == std::vector<int>{7});
    CHECK(fixture.survivor.census().free_count == all_buffer_count);
}

TEST_CASE("what the living hold, claim and have pushed is not touched") {
    Fixture fixture;
    BufferPtr held = buffer_with(fixture.survivor, 1);
    const BufferPtr clone = held.clone();
    const BufferPtr copy(held);
    push(fixture.survivor, 2);
    push(fixture.survivor, 3);
    claim_and_die(fixture.survivor, 0); // it goes on later
    BufferPtr pushing = buffer_with(fixture.survivor, 4);
    set_queued(Fixture::word(pushing), fixture.survivor.me.owner(), 3); // and here, too
    test::abandon(buffer_with(fixture.victim, 5));

    const ReapResult result = fixture.reap();
    CHECK(result.freed_reference_count == 1);
    CHECK(result.cleared_cell_count == 1); // what is claimed is cleared by anyone, also for the living
    CHECK(held.use_count() == 3);
    CHECK(Owner::of(Fixture::word(pushing)) == fixture.survivor.me.owner());
    CHECK(reference_state(Fixture::word(pushing)) == ReferenceState::queued);
    set_held(Fixture::word(pushing), fixture.survivor.me.owner());
    CHECK(fixture.survivor.census().held_reference_count == 4);
    CHECK(drain(fixture.survivor) == std::vector<int>{3});
}

TEST_CASE("a buffer that the dead and the living share stays until the living drop it") {
    Fixture fixture;
    push(fixture.survivor, 1);
    Consumer first(fixture.survivor.ports[0]);
    BufferPtr mine = first.try_pop();
    REQUIRE(mine);
    Producer out(fixture.survivor.ports[0]);
    REQUIRE(out.try_push(mine.clone()) == PushResult::ok);
    Consumer in(fixture.victim.ports[0]);
    BufferPtr theirs = in.try_pop();
    REQUIRE(theirs);
    CHECK(mine.use_count() == 2);
    test::abandon(std::move(theirs));
    CHECK(fixture.reap().freed_reference_count == 1);
    CHECK(mine.use_count() == 1);
    CHECK(test::read_number(mine) == 1);
    mine.reset();
    CHECK(fixture.survivor.census().free_count == all_buffer_count);
}

TEST_CASE("all references of a buffer with 12 come back") {
    Fixture fixture;
    BufferPtr buffer = buffer_with(fixture.victim, 1, 1);
    while (BufferPtr clone = buffer.clone()) {
        test::abandon(std::move(clone));
    }
    CHECK(buffer.use_count() == 12);
    test::abandon(std::move(buffer));
    CHECK(fixture.reap().freed_reference_count == 12);
    CHECK(fixture.survivor.census().free_count == all_buffer_count);
}

TEST_CASE("hints that the dead took along are found again") {
    test::DomainMemory memory({pool_of(640)}, {});
    const Member survivor(memory);
    Member victim(memory);
    {
        std::vector<BufferPtr> all;
        while (BufferPtr buffer = victim.pools[0].try_allocate()) {
            all.push_back(std::move(buffer));
        }
        CHECK(all.size() == 640);
    }
    std::ranges::fill(memory.hints(), std::byte{0});
    REQUIRE(survivor.reap(victim.me).ended_entry);
    FreeHints& hints = survivor.pools[0].view().hints();
    std::vector<bool> found(640);
    while (true) {
        const std::uint32_t index = hints.find([](std::uint32_t) { return true; });
        if (index == FreeHints::none) {
            break;
        }
        CHECK_FALSE(found[index]);
        found[index] = true;
    }
    CHECK(std::ranges::count(found, true) == 640);
}

TEST_CASE("hints whose summary was lost between two steps of an offer are found again") {
    test::DomainMemory memory({pool_of(640)}, {});
    const Member survivor(memory);
    const Member victim(memory);
    // The bitmap's lowest level is as it was; those above it say that it is empty.
    const std::size_t lowest_end = memory.hints().size() - 2 * cache_line_bytes;
    std::ranges::fill(memory.hints().subspan(lowest_end), std::byte{0});
    FreeHints& hints = survivor.pools[0].view().hints();
    REQUIRE(hints.find([](std::uint32_t) { return true; }) == FreeHints::none);
    REQUIRE(survivor.reap(victim.me).ended_entry);
    unsigned found_count = 0;
    while (hints.find([](std::uint32_t) { return true; }) != FreeHints::none) {
        ++found_count;
    }
    CHECK(found_count == 640);
}

// ---- Once, twice, several at once, in parts

TEST_CASE("reaping when nobody is dead changes nothing") {
    Fixture fixture;
    test::abandon(buffer_with(fixture.victim, 1));
    push(fixture.survivor, 2);
    claim_and_die(fixture.survivor, 0);
    REQUIRE(fixture.reap().ended_entry);
    queue_and_die(fixture.survivor);
    const std::vector<std::byte> before(fixture.memory.bytes().begin(), fixture.memory.bytes().end());
    for (const Membership& nobody : {fixture.victim.me, Membership{fixture.memory.table(), 99, 0},
                                     Membership{fixture.memory.table(), fixture.survivor.me.slot, 7}}) {
        const ReapResult result = fixture.survivor.reap(nobody);
        CHECK_FALSE(result.error);
        CHECK_FALSE(result.ended_entry);
        CHECK(result.freed_reference_count + result.kept_message_count + result.cleared_cell_count == 0);
    }
    CHECK(std::ranges::equal(before, fixture.memory.bytes()));
}

TEST_CASE("reaping twice equals reaping once") {
    Fixture fixture;
    test::abandon(buffer_with(fixture.victim, 1));
    push(fixture.victim, 2);
    queue_and_die(fixture.victim);
    CHECK(fixture.reap().ended_entry);
    const std::vector<std::byte> once(fixture.memory.bytes().begin(), fixture.memory.bytes().end());
    CHECK_FALSE(fixture.reap().ended_entry);
    CHECK(std::ranges::equal(once, fixture.memory.bytes()));
}

TEST_CASE("a reaper that is late takes nothing from the slot's next owner") {
    Fixture fixture;
    REQUIRE(fixture.reap().ended_entry);
    Member newcomer(fixture.memory);
    REQUIRE(newcomer.me.slot == fixture.victim.me.slot);
    const BufferPtr held = buffer_with(newcomer, 1);
    push(newcomer, 2);
    const ReapResult late = fixture.reap();
    CHECK_FALSE(late.ended_entry);
    CHECK(late.freed_reference_count == 0);
    CHECK(newcomer.me.is_alive());
    CHECK(held.use_count() == 1);
    CHECK(drain(fixture.survivor) == std::vector<int>{2});
}

TEST_CASE("a reaper that died in the middle is continued by another") {
    // Its first half is done by hand: some cells cleared, some words freed, the entry not ended.
    for (const unsigned done_count : {0U, 1U, 2U, 3U}) {
        CAPTURE(done_count);
        Fixture fixture;
        push(fixture.survivor, 1);
        push(fixture.victim, 2);
        claim_and_die(fixture.victim, 0);
        std::vector<std::uint64_t*> words;
        for (int number = 0; number < 2; ++number) {
            BufferPtr buffer = buffer_with(fixture.victim, 3);
            words.push_back(&Fixture::word(buffer));
            test::abandon(std::move(buffer));
        }
        if (done_count > 0) {
            Ring& ring = fixture.survivor.ports[0].view()->ring();
            REQUIRE(ring.clear(0, ring.load_cell(0)));
        }
        for (unsigned number = 1; number < done_count; ++number) {
            REQUIRE(try_free(*words[number - 1], *words[number - 1]));
        }
        const ReapResult result = fixture.reap();
        CHECK(result.ended_entry);
        CHECK(result.kept_message_count == 1);
        CHECK(result.freed_reference_count == (done_count < 2 ? 3 : 4 - done_count));
        CHECK(fixture.check() == "");
        CHECK(drain(fixture.survivor) == std::vector<int>{2});
        CHECK(fixture.survivor.census().free_count == all_buffer_count);
    }
}

TEST_CASE("several who reap at once free everything once") {
    for (int round = 0; round < 60; ++round) {
        Fixture fixture;
        std::vector<Member> reapers;
        for (int number = 0; number < 3; ++number) {
            reapers.emplace_back(fixture.memory);
        }
        for (int number = 0; number < 6; ++number) {
            test::abandon(buffer_with(fixture.victim, number, static_cast<std::size_t>(number % 2)));
        }
        push(fixture.survivor, 100);
        push(fixture.victim, 101);
        push(fixture.victim, 102);
        claim_and_die(fixture.victim, 0);
        queue_and_die(fixture.victim);
        std::vector<ReapResult> results(reapers.size());
        std::atomic<unsigned> ready_count{0};
        std::vector<std::thread> threads;
        for (std::size_t number = 0; number < reapers.size(); ++number) {
            threads.emplace_back([&, number] {
                ++ready_count;
                while (ready_count < reapers.size()) {
                    std::this_thread::yield();
                }
                results[number] = reapers[number].reap(fixture.victim.me);
            });
        }
        ReapResult sum;
        unsigned ended_count = 0;
        for (std::size_t number = 0; number < threads.size(); ++number) {
            threads[number].join();
            REQUIRE_FALSE(results[number].error);
            sum.freed_reference_count += results[number].freed_reference_count;
            sum.cleared_cell_count += results[number].cleared_cell_count;
            ended_count += results[number].ended_entry ? 1U : 0U;
        }
        CHECK(sum.freed_reference_count == 8);
        CHECK(sum.cleared_cell_count == 1);
        CHECK(ended_count == 1);
        CHECK(fixture.check() == "");
        CHECK(drain(fixture.survivor) == std::vector<int>{101, 102});
        CHECK(fixture.survivor.census().free_count == all_buffer_count);
    }
}

TEST_CASE("two who died are reaped in either order") {
    for (const bool first_first : {true, false}) {
        Fixture fixture;
        Member second(fixture.memory);
        push(fixture.victim, 1);
        push(second, 2);
        push(fixture.victim, 3);
        claim_and_die(second, 0); // one dead process's message, claimed by the other
        test::abandon(buffer_with(second, 4));
        CHECK(fixture.survivor.reap(first_first ? fixture.victim.me : second.me).ended_entry);
        CHECK(fixture.survivor.reap(first_first ? second.me : fixture.victim.me).ended_entry);
        CHECK(fixture.check() == "");
        CHECK(drain(fixture.survivor) == std::vector<int>{2, 3});
        CHECK(fixture.survivor.census().free_count == all_buffer_count);
    }
}

TEST_CASE("a slot's later owners neither lose nor free what an owner with the same low bits left queued") {
    Fixture fixture;
    push(fixture.victim, 1);
    push(fixture.victim, 2);
    REQUIRE(fixture.reap().ended_entry);
    const auto slot_word = reinterpret_cast<std::uint64_t*>(fixture.memory.bytes().data()) + fixture.victim.me.slot;
    *slot_word = (fixture.victim.me.incarnation + 2048) << 1;
    Member young(fixture.memory);
    REQUIRE(young.me.slot == fixture.victim.me.slot);
    REQUIRE(young.me.owner() == fixture.victim.me.owner());
    push(young, 3);
    test::abandon(buffer_with(young, 4));
    CHECK_FALSE(fixture.reap().ended_entry); // the old one, once more
    const ReapResult result = fixture.survivor.reap(young.me);
    CHECK(result.freed_reference_count == 1);
    CHECK(result.kept_message_count == 3);
    CHECK(fixture.check() == "");
    CHECK(drain(fixture.survivor) == std::vector<int>{1, 2, 3});
}

// ---- Not everything was given

TEST_CASE("where a cell names a pool that the reaper was not given nothing is freed") {
    Fixture fixture;
    test::abandon(buffer_with(fixture.victim, 1));
    push(fixture.survivor, 2, 0, 1);
    const SharedBufferAllocator some(fixture.survivor.pools[0]);
    const std::vector<Port> narrow{Port(fixture.memory.port(0), fixture.survivor.me, some),
                                   Port(fixture.memory.port(1), fixture.survivor.me, some)};
    const ReapResult result = weir::reap(fixture.victim.me, some, narrow);
    CHECK(result.error == errc::reap_incomplete);
    CHECK(result.freed_reference_count == 0);
    CHECK_FALSE(result.ended_entry);
    CHECK(fixture.victim.me.is_alive());
    CHECK(fixture.survivor.census().free_count == all_buffer_count - 2);
    const ReapResult whole = fixture.reap();
    CHECK_FALSE(whole.error);
    CHECK(whole.freed_reference_count == 1);
    CHECK(fixture.check() == "");
}

TEST_CASE("where the dead has something in a port that the reaper was not given nothing is freed") {
    const int how = GENERATE(0, 1, 2);
    CAPTURE(how);
    Fixture fixture;
    test::abandon(buffer_with(fixture.victim, 1));
    if (how == 0) {
        push(fixture.victim, 2, 1);
    } else if (how == 1) {
        push(fixture.survivor, 2, 1);
        claim_and_die(fixture.victim, 0, 1);
    } else {
        queue_and_die(fixture.victim, 1);
    }
    const ReapResult result =
        weir::reap(fixture.victim.me, fixture.survivor.buffers, std::span(fixture.survivor.ports).first(1));
    CHECK(result.error == errc::reap_incomplete);
    CHECK(result.freed_reference_count == 0);
    CHECK_FALSE(result.ended_entry);
    CHECK(fixture.victim.me.is_alive());
    CHECK(fixture.reap().ended_entry);
    CHECK(fixture.check() == "");
    CHECK(drain(fixture.survivor, 1) == (how == 0 ? std::vector<int>{2} : std::vector<int>{}));
    CHECK(fixture.survivor.census().free_count == all_buffer_count);
}

TEST_CASE("two ports of one number are refused") {
    test::DomainMemory memory({pool_of(4)}, {{.capacity = 2, .port_id = 1}, {.capacity = 2, .port_id = 1}});
    const Member survivor(memory);
    Member victim(memory);
    test::abandon(buffer_with(victim, 1));
    const ReapResult result = survivor.reap(victim.me);
    CHECK(result.error == errc::other_parameters);
    CHECK(result.freed_reference_count == 0);
    CHECK_FALSE(result.ended_entry);
}

TEST_CASE("a cell that names no buffer stops a reaper before it frees anything") {
    Fixture fixture;
    test::abandon(buffer_with(fixture.victim, 1));
    fixture.memory.cell(5) = std::uint64_t{1} << ring_value_bits | ring_value_max;
    const ReapResult result = fixture.reap();
    CHECK(result.error == errc::reap_incomplete);
    CHECK(result.freed_reference_count == 0);
    CHECK_FALSE(result.ended_entry);
}

TEST_CASE("a reaper of any bytes ends, and frees nothing of the living that are attributed to them") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    for (int round = 0; round < 300; ++round) {
        Fixture fixture;
        BufferPtr held = buffer_with(fixture.survivor, round);
        for (std::uint64_t place = 0; place < 8; ++place) {
            if (random.one_in(2)) {
                fixture.memory.cell(place) = random.next() >> random.below(64U);
            }
            for (const BufferPool& pool : fixture.survivor.pools) {
                const std::uint32_t index = random.below(pool.buffer_count());
                if (index != held.index()) {
                    pool.view().reference(index, random.below(4U)) = random.next();
                }
            }
        }
        const std::uint64_t word = Fixture::word(held);
        static_cast<void>(fixture.reap());
        static_cast<void>(fixture.check());
        if (Fixture::word(held) != word) {
            FAIL("round " << round << ": what a living member holds was changed");
        }
    }
}

// ---- Waking

TEST_CASE("reaping wakes who waits for a buffer, for room and for messages") {
    for (const int what : {0, 1, 2}) {
        CAPTURE(what);
        test::DomainMemory memory({pool_of(4)}, {{.capacity = 2}});
        const Member survivor(memory);
        Member victim(memory);
        Member waiter(memory);
        test::abandon(std::make_unique<Producer>(victim.ports[0]));
        if (what == 0) {
            while (BufferPtr buffer = victim.pools[0].try_allocate()) {
                test::abandon(std::move(buffer));
            }
        }
        const test::CountedFutex futex;
        std::thread thread([&] {
            if (what == 0) {
                if (!waiter.pools[0].allocate(park_at_once)) {
                    std::abort();
                }
            } else if (what == 1) {
                Consumer in(waiter.ports[0], park_at_once);
                if (in.pop() || in.stream_end() != StreamEnd::died) {
                    std::abort();
                }
            } else {
                // A consumer dies that is the only one: its producers learn that the port is closed.
                auto in = std::make_unique<Consumer>(victim.ports[0]);
                test::abandon(std::move(in));
                Producer out(waiter.ports[0], park_at_once);
                PushResult result = PushResult::ok;
                while (result == PushResult::ok) {
                    result = out.push(waiter.pools[0].allocate(park_at_once));
                }
                if (result != PushResult::closed) {
                    std::abort();
                }
            }
        });
        while (futex.wait_count == 0) {
            std::this_thread::yield();
        }
        REQUIRE(survivor.reap(victim.me).ended_entry);
        thread.join();
    }
}

TEST_CASE("a reaper that clears a claimed cell wakes who waits for its room") {
    test::DomainMemory memory({pool_of(4)}, {{.capacity = 2}});
    Member survivor(memory);
    const Member victim(memory);
    Member waiter(memory);
    const Consumer in(survivor.ports[0]);
    push(survivor, 1);
    push(survivor, 2);
    const test::CountedFutex futex;
    std::thread thread([&] {
        Producer out(waiter.ports[0], park_at_once);
        if (out.push(waiter.pools[0].allocate()) != PushResult::ok) {
            std::abort();
        }
    });
    while (futex.wait_count == 0) {
        std::this_thread::yield();
    }
    claim_and_die(victim, 0);
    REQUIRE(survivor.reap(victim.me).ended_entry);
    thread.join();
}

TEST_CASE("reaping where nobody waits makes no system call") {
    Fixture fixture;
    test::abandon(buffer_with(fixture.victim, 1));
    push(fixture.victim, 2);
    const test::CountedFutex futex;
    REQUIRE(fixture.reap().ended_entry);
    CHECK(futex.wake_count == 0);
}

// ---- Leaving

TEST_CASE("who leaves gives back what it still holds, and its messages stay") {
    Fixture fixture;
    push(fixture.victim, 1);
    test::abandon(buffer_with(fixture.victim, 2)); // forgotten, not dropped
    const ReapResult result = fixture.victim.leave();
    CHECK_FALSE(result.error);
    CHECK(result.ended_entry);
    CHECK(result.freed_reference_count == 1);
    CHECK(result.kept_message_count == 1);
    CHECK_FALSE(fixture.victim.me.is_alive());
    CHECK(fixture.check() == "");
    CHECK(drain(fixture.survivor) == std::vector<int>{1});
    CHECK_FALSE(fixture.victim.leave().ended_entry);
}

TEST_CASE("a slot that was left is taken by the next who joins, under the next incarnation") {
    Fixture fixture;
    fixture.victim.leave();
    const Membership next = fixture.memory.table().join();
    CHECK(next.slot == fixture.victim.me.slot);
    CHECK(next.incarnation == fixture.victim.me.incarnation + 1);
}

TEST_CASE("who leaves wakes who waits for what it gives back") {
    test::DomainMemory memory({pool_of(1)}, {});
    Member leaver(memory);
    Member waiter(memory);
    test::abandon(buffer_with(leaver, 1));
    const test::CountedFutex futex;
    std::thread thread([&] {
        if (!waiter.pools[0].allocate(park_at_once)) {
            std::abort();
        }
    });
    while (futex.wait_count == 0) {
        std::this_thread::yield();
    }
    leaver.leave();
    thread.join();
}

TEST_CASE("when the last member has left, the messages are still there for who joins next") {
    test::DomainMemory memory({pool_of(4)}, {{.capacity = 4}});
    {
        Member only(memory);
        push(only, 1);
        push(only, 2);
        CHECK(only.leave().ended_entry);
    }
    Member next(memory);
    CHECK(next.me.incarnation == 1);
    CHECK(next.check() == "");
    CHECK(drain(next) == std::vector<int>{1, 2});
}

// ---- Checking a domain

TEST_CASE("the census counts what is free, held and queued") {
    Fixture fixture;
    const BufferPtr held = buffer_with(fixture.survivor, 1);
    const BufferPtr clone = held.clone();
    push(fixture.survivor, 2);
    push(fixture.victim, 3, 1, 1);
    const DomainCensus census = fixture.survivor.census();
    CHECK(census.free_count == all_buffer_count - 3);
    CHECK(census.held_reference_count == 2);
    CHECK(census.queued_reference_count == 2);
    CHECK(fixture.check() == "");
}

TEST_CASE("checking a domain names what is broken in its table, pools, ports and between them") {
    Fixture fixture;
    push(fixture.survivor, 1);
    REQUIRE(fixture.check() == "");
    auto* slots = reinterpret_cast<std::uint64_t*>(fixture.memory.bytes().data());
    const auto says = [&](const char* words) { return fixture.check().find(words) != std::string::npos; };

    slots[250] = std::uint64_t{1} << 60;
    CHECK(says("process table entry 250"));
    slots[250] = 0;

    std::uint64_t& word = fixture.survivor.pools[1].view().reference(2, 9);
    word = 6;
    CHECK(says("buffer 502 reference 9: state 6"));
    word = next_reference(0, ReferenceState::queued, fixture.survivor.me.owner(), 5);
    CHECK(says("buffer 502 reference 9: queued, but named by 0 cells"));
    word = next_reference(0, ReferenceState::held, Owner(77, 0), 0);
    CHECK(says("buffer 502 reference 9: is held by slot 77"));
    word = 0;

    fixture.memory.cell(0, 1) = fixture.memory.cell(0, 0); // the same message in two ports
    CHECK(says("named by 2 cells"));
    CHECK(says("port 5 cell 0: its reference is queued in port 3"));
    fixture.memory.cell(0, 1) = 0;
    CHECK(fixture.check() == "");
}

// ---- All at once

TEST_CASE("random deaths and reaping agree with a plain model") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    constexpr std::size_t member_count = 5;
    test::DomainMemory memory({pool_of(12, 4, 0), pool_of(6, 12, 100)},
                              {{.capacity = 8, .port_id = 1}, {.capacity = 4, .port_id = 2}});
    Member observer(memory);
    std::vector<std::unique_ptr<Member>> members(member_count);
    std::vector<std::vector<BufferPtr>> held(member_count);
    std::array<std::deque<int>, 2> queued;
    std::uint64_t death_count = 0;
    int next_number = 0;
    const auto let_die = [&](std::size_t who) {
        for (BufferPtr& buffer : held[who]) {
            test::abandon(std::move(buffer));
        }
        held[who].clear();
        Membership dead = members[who]->me;
        members[who].reset();
        if (random.one_in(3)) { // the observer's first attempt lacks a port
            static_cast<void>(weir::reap(dead, observer.buffers, std::span(observer.ports).first(1)));
        }
        const ReapResult result = observer.reap(dead);
        if (result.error || (!result.ended_entry && dead.is_alive())) {
            FAIL("reaping failed: " << result.error.message());
        }
        ++death_count;
    };
    for (int count = 0; count < 15'000; ++count) {
        const std::size_t who = random.below(member_count);
        if (!members[who]) {
            members[who] = std::make_unique<Member>(memory);
            continue;
        }
        Member& member = *members[who];
        const std::size_t where = random.below(2U);
        switch (random.below(12)) {
        case 0:
        case 1:
        case 2:
            if (BufferPtr buffer = member.pools[random.below(2U)].try_allocate()) {
                test::write_number(buffer, next_number++);
                held[who].push_back(std::move(buffer));
            }
            break;
        case 3:
            if (!held[who].empty() && held[who].size() < 10) {
                if (BufferPtr clone = held[who].front().clone()) {
                    held[who].push_back(std::move(clone));
                }
            }
            break;
        case 4:
        case 5:
        case 6:
            if (!held[who].empty()) {
                Producer out(member.ports[where]);
                const int number = test::read_number(held[who].back());
                const PushResult result = out.try_push(std::move(held[who].back()));
                // Consumers come and go: a port without one is closed.
                if (result == PushResult::ok) {
                    held[who].pop_back();
                    queued[where].push_back(number);
                } else if (result == PushResult::failed) {
                    FAIL("operation " << count << ": push failed: " << out.last_error().message());
                }
            }
            break;
        case 7:
        case 8: {
            Consumer in(member.ports[where]);
            BufferPtr buffer = in.try_pop();
            if (static_cast<bool>(buffer) == queued[where].empty() ||
                (buffer && test::read_number(buffer) != queued[where].front())) {
                FAIL("operation " << count << ": pop of " << queued[where].size());
            }
            if (buffer) {
                queued[where].pop_front();
                held[who].push_back(std::move(buffer));
            }
            break;
        }
        case 9:
            if (!held[who].empty()) {
                held[who].erase(held[who].begin() + static_cast<std::ptrdiff_t>(random.below(held[who].size())));
            }
            break;
        case 10:
            if (random.one_in(4)) { // dies in the middle of a push or a pop
                PortView& port = *member.ports[where].view();
                if (random.one_in(2) && !held[who].empty()) {
                    BufferPtr buffer = std::move(held[who].back());
                    held[who].pop_back();
                    set_queued(Fixture::word(buffer), member.me.owner(), port.options().port_id);
                    test::abandon(std::move(buffer));
                    let_die(who);
                } else if (!queued[where].empty()) {
                    std::uint64_t position = 0;
                    std::uint64_t cell = 0;
                    REQUIRE(port.ring().find_item(position, cell) == RingStatus::ok);
                    claim_and_die(member, position, where);
                    queued[where].pop_front();
                    let_die(who);
                }
            }
            break;
        default:
            if (random.one_in(3)) {
                let_die(who);
            } else if (held[who].empty() && random.one_in(3)) {
                member.leave();
                members[who].reset();
            }
        }
        if (count % 300 == 0) {
            const std::string broken = observer.check();
            std::size_t held_count = 0;
            for (const std::vector<BufferPtr>& mine : held) {
                held_count += mine.size();
            }
            const DomainCensus census = observer.census();
            if (!broken.empty() || census.held_reference_count != held_count ||
                census.queued_reference_count != queued[0].size() + queued[1].size()) {
                FAIL("operation " << count << ": " << broken);
            }
        }
    }
    CHECK(death_count > 100);
    for (std::size_t who = 0; who < member_count; ++who) {
        if (members[who]) {
            let_die(who);
        }
    }
    CHECK(observer.check() == "");
    for (const std::size_t where : {std::size_t{0}, std::size_t{1}}) {
        CHECK(drain(observer, where) == std::vector<int>(queued[where].begin(), queued[where].end()));
    }
    CHECK(observer.census().free_count == 18);
}
