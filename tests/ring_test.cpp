#include "catch.hpp"
#include "testing.hpp"

#include <weir/ring.hpp>

#include <algorithm>
#include <array>
#include <deque>
#include <numeric>
#include <optional>
#include <thread>

using namespace weir;
using test::error_of;

namespace {

constexpr std::uint64_t lap_count = std::uint64_t{1} << 35; ///< laps until the turns wrap

/// A ring in memory of its own whose bytes a test may write.
struct Fixture {
    explicit Fixture(std::uint32_t capacity) : memory(Ring::bytes(capacity)), ring(memory.span(), capacity) {}

    [[nodiscard]] RingState& state() const { return memory.at<RingState>(0); }
    [[nodiscard]] std::uint64_t& cell(std::uint64_t place) const {
        return memory.at<std::uint64_t>(sizeof(RingState) + place * sizeof(std::uint64_t));
    }
    /// Makes it an empty ring that has gone `laps` laps already.
    void start_at_lap(std::uint64_t laps) const {
        for (std::uint64_t place = 0; place < ring.capacity(); ++place) {
            cell(place) = empty_cell(laps);
        }
        state().tail_hint = state().head_hint = laps * ring.capacity();
    }
    [[nodiscard]] static std::uint64_t empty_cell(std::uint64_t lap) { return lap << (ring_value_bits + 1); }

    test::Memory memory;
    Ring ring;
};

std::optional<std::uint32_t> pop(RingConsumer& consumer) {
    std::uint32_t value = 0;
    return consumer.try_pop(value) == RingStatus::ok ? std::optional(value) : std::nullopt;
}

/// Whether a batch of up to `wanted` values may have moved `moved` of those that are `possible`: all, where they may be a
/// line of cells or fewer; else a half of them at least.
bool is_batch(std::size_t moved, std::size_t wanted, std::size_t possible) {
    const std::size_t most = std::min(wanted, possible);
    return moved <= most && moved >= (wanted > Ring::line_cells ? most / 2 : most);
}

} // namespace

TEST_CASE("a ring's capacity is a power of two from 2 to 65,536") {
    const test::Memory memory(Ring::bytes(ring_capacity_max));
    for (const std::uint32_t capacity : {0U, 1U, 3U, 6U, 100U, 65'535U, 65'537U, 131'072U, 0x8000'0000U, ~0U}) {
        CAPTURE(capacity);
        CHECK(error_of([&] { return Ring(memory.span(), capacity); }) == errc::invalid_capacity);
    }
    for (std::uint32_t capacity = 2; capacity <= ring_capacity_max; capacity *= 2) {
        CHECK(Ring(memory.span(), capacity).capacity() == capacity);
    }
}

TEST_CASE("a ring wants a cache line's alignment and all of its bytes") {
    const test::Memory memory(Ring::bytes(64) + 64);
    CHECK(error_of([&] { return Ring(memory.span().subspan(8), 64); }) == errc::misaligned);
    CHECK(error_of([&] { return Ring(memory.span().first(Ring::bytes(64) - 1), 64); }) == errc::invalid_size);
    CHECK_FALSE(error_of([&] { return Ring(memory.span().first(Ring::bytes(64)), 64); }));
}

TEST_CASE("zeroed bytes are an empty ring") {
    const Fixture fixture(8);
    RingConsumer consumer(fixture.ring);
    std::uint32_t value = 0;
    CHECK(consumer.try_pop(value) == RingStatus::empty);
    CHECK(fixture.ring.check().empty());
}

TEST_CASE("values come out in the order in which they went in, up to the capacity and no further") {
    for (const std::uint32_t capacity : {2U, 4U, 64U, 65'536U}) {
        CAPTURE(capacity);
        const Fixture fixture(capacity);
        RingProducer producer(fixture.ring);
        RingConsumer consumer(fixture.ring);
        for (std::uint32_t round = 0; round < 3; ++round) {
            std::uint32_t pushed_count = 0;
            while (producer.try_push(round * capacity + pushed_count) == RingStatus::ok) {
                ++pushed_count;
            }
            CHECK(pushed_count == capacity);
            CHECK(producer.try_push(0) == RingStatus::full);
            CHECK(fixture.ring.check().empty());
            std::uint32_t popped_count = 0;
            while (const auto value = pop(consumer)) {
                if (*value != round * capacity + popped_count) {
                    FAIL("popped " << *value);
                }
                ++popped_count;
            }
            CHECK(popped_count == capacity);
            CHECK(fixture.ring.check().empty());
        }
    }
}

TEST_CASE("a value has 28 bits") {
    const Fixture fixture(2);
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    REQUIRE(producer.try_push(ring_value_max) == RingStatus::ok);
    REQUIRE(producer.try_push(0) == RingStatus::ok);
    CHECK(pop(consumer) == ring_value_max);
    CHECK(pop(consumer) == 0U);
    CHECK(test::breaks_rule("28-bit values", [&] { static_cast<void>(producer.try_push(ring_value_max + 1)); }));
    const std::vector<std::uint32_t> batch(16, ring_value_max + 1);
    CHECK(test::breaks_rule("28-bit values",
                            [&] { static_cast<void>(producer.try_push(std::span<const std::uint32_t>(batch))); }));
}

TEST_CASE("a handle that was idle for ten laps finds its place") {
    const Fixture fixture(8);
    RingProducer idle_producer(fixture.ring);
    RingConsumer idle_consumer(fixture.ring);
    REQUIRE(idle_producer.try_push(1) == RingStatus::ok);
    REQUIRE(pop(idle_consumer) == 1U);
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    for (std::uint32_t number = 0; number < 80; ++number) {
        REQUIRE(producer.try_push(number) == RingStatus::ok);
        REQUIRE(pop(consumer) == number);
    }
    const bool has_hints = GENERATE(true, false);
    if (!has_hints) {
        fixture.state().tail_hint = fixture.state().head_hint = 0;
    }
    REQUIRE(producer.try_push(100) == RingStatus::ok);
    REQUIRE(idle_producer.try_push(101) == RingStatus::ok);
    REQUIRE(producer.try_push(102) == RingStatus::ok);
    CHECK(pop(idle_consumer) == 100U);
    CHECK(pop(consumer) == 101U);
    CHECK(pop(idle_consumer) == 102U);
    CHECK_FALSE(pop(idle_consumer));
    CHECK_FALSE(pop(consumer));
}

TEST_CASE("an idle handle on a full ring learns that it is full, and one on an empty ring that it is empty") {
    const Fixture fixture(4);
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    for (std::uint32_t number = 0; number < 41; ++number) {
        REQUIRE(producer.try_push(number) == RingStatus::ok);
        REQUIRE(pop(consumer) == number);
    }
    fixture.state().tail_hint = fixture.state().head_hint = 0;
    RingConsumer late_consumer(fixture.ring);
    CHECK_FALSE(pop(late_consumer));
    for (std::uint32_t number = 0; number < 4; ++number) {
        REQUIRE(producer.try_push(number) == RingStatus::ok);
    }
    fixture.state().tail_hint = fixture.state().head_hint = 0;
    RingProducer late_producer(fixture.ring);
    CHECK(late_producer.try_push(9) == RingStatus::full);
    for (std::uint32_t number = 0; number < 4; ++number) {
        CHECK(pop(late_consumer) == number);
    }
}

TEST_CASE("a late handle skips nothing that lies between its lap and the next") {
    // Half of the cells show the next lap already: jumping a whole lap would skip the other half.
    const Fixture fixture(8);
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    for (std::uint32_t number = 0; number < 12; ++number) {
        REQUIRE(producer.try_push(number) == RingStatus::ok);
        if (number < 5) {
            REQUIRE(pop(consumer) == number);
        }
    }
    fixture.state().head_hint = 0;
    RingConsumer late(fixture.ring);
    for (std::uint32_t number = 5; number < 12; ++number) {
        CHECK(pop(late) == number);
    }
    CHECK_FALSE(pop(late));
}

TEST_CASE("turns wrap after 36 bits in the middle of traffic") {
    for (const std::uint32_t capacity : {2U, 8U, 64U}) {
        CAPTURE(capacity);
        const Fixture fixture(capacity);
        fixture.start_at_lap(lap_count - 3);
        CHECK(fixture.ring.check().empty());
        RingProducer producer(fixture.ring);
        RingConsumer consumer(fixture.ring);
        RingConsumer idle_consumer(fixture.ring);
        CHECK_FALSE(pop(idle_consumer));
        std::deque<std::uint32_t> model;
        for (std::uint32_t number = 0; number < 6 * capacity; ++number) {
            if (model.size() == capacity) {
                CHECK(producer.try_push(number) == RingStatus::full);
                CHECK(pop(consumer) == model.front());
                model.pop_front();
            }
            REQUIRE(producer.try_push(number) == RingStatus::ok);
            model.push_back(number);
            if (!fixture.ring.check().empty()) {
                FAIL("number " << number << ": " << fixture.ring.check().front());
            }
        }
        CHECK(fixture.cell(0) >> (ring_value_bits + 1) < 10);
        CHECK(pop(idle_consumer) == model.front());
        model.pop_front();
        for (const std::uint32_t number : model) {
            CHECK(pop(consumer) == number);
        }
        CHECK_FALSE(pop(consumer));
        CHECK_FALSE(pop(idle_consumer));
    }
}

TEST_CASE("a handle made after the turns have wrapped finds its place by the hints") {
    const Fixture fixture(8);
    fixture.start_at_lap(lap_count - 1);
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    for (std::uint32_t number = 0; number < 32; ++number) {
        REQUIRE(producer.try_push(number) == RingStatus::ok);
        REQUIRE(pop(consumer) == number);
    }
    RingProducer new_producer(fixture.ring);
    RingConsumer new_consumer(fixture.ring);
    REQUIRE(new_producer.try_push(77) == RingStatus::ok);
    CHECK(pop(new_consumer) == 77U);
}

TEST_CASE("of two who fill or clear one cell one succeeds") {
    Fixture fixture(4);
    CHECK(fixture.ring.fill(0, 5));
    CHECK_FALSE(fixture.ring.fill(0, 6));
    const std::uint64_t cell = fixture.ring.load_cell(0);
    CHECK(Ring::is_filled(cell));
    CHECK(Ring::value(cell) == 5);
    CHECK(fixture.ring.clear(0, cell));
    CHECK_FALSE(fixture.ring.clear(0, cell));
    CHECK_FALSE(Ring::is_filled(fixture.ring.load_cell(0)));
    CHECK_FALSE(fixture.ring.fill(0, 7)); // its lap is over
    CHECK(fixture.ring.fill(4, 7));
}

TEST_CASE("a producer clears an item of the last lap that was taken and goes on") {
    Fixture fixture(2);
    std::uint64_t tail = 0;
    const auto none_taken = [](std::uint64_t) { return false; };
    for (std::uint32_t number = 0; number < 2; ++number) {
        REQUIRE(fixture.ring.find_room(tail, none_taken) == RingStatus::ok);
        REQUIRE(fixture.ring.fill(tail, number));
        ++tail;
    }
    CHECK(fixture.ring.find_room(tail, none_taken) == RingStatus::full);
    unsigned asked_count = 0;
    CHECK(fixture.ring.find_room(tail, [&](std::uint64_t cell) {
        ++asked_count;
        return Ring::value(cell) == 0;
    }) == RingStatus::ok);
    CHECK(asked_count == 1);
    CHECK(tail == 2);
    CHECK_FALSE(Ring::is_filled(fixture.ring.load_cell(0)));
    CHECK(fixture.ring.check().empty());
}

TEST_CASE("an item that goes while a producer asks about it is not reported as a full ring") {
    Fixture fixture(2);
    std::uint64_t tail = 0;
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    REQUIRE(producer.try_push(0) == RingStatus::ok);
    REQUIRE(producer.try_push(1) == RingStatus::ok);
    CHECK(fixture.ring.find_room(tail, [&](std::uint64_t) {
        CHECK(pop(consumer) == 0U);
        return false;
    }) == RingStatus::ok);
    CHECK(tail == 2);
}

TEST_CASE("a turn that lies in the past is corrupt, at both ends") {
    const Fixture fixture(4);
    fixture.start_at_lap(10);
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    std::uint32_t value = 0;
    for (const std::uint64_t turns_back :
         {std::uint64_t{2}, std::uint64_t{3}, std::uint64_t{20}, std::uint64_t{1} << 34}) {
        CAPTURE(turns_back);
        fixture.cell(0) = Fixture::empty_cell(10) - (turns_back << ring_value_bits);
        CHECK(producer.try_push(1) == RingStatus::corrupt);
        CHECK(consumer.try_pop(value) == RingStatus::corrupt);
    }
    fixture.cell(0) = Fixture::empty_cell(10);
    CHECK(producer.try_push(1) == RingStatus::ok);
    CHECK(consumer.try_pop(value) == RingStatus::ok);
}

TEST_CASE("hints into the future are corrupt and not believed") {
    for (const std::uint64_t hint : {std::uint64_t{8}, (std::uint64_t{1} << 30) + 5, std::uint64_t{1} << 35}) {
        CAPTURE(hint);
        const Fixture fixture(4);
        fixture.state().tail_hint = fixture.state().head_hint = hint;
        RingProducer producer(fixture.ring);
        RingConsumer consumer(fixture.ring);
        std::uint32_t value = 0;
        CHECK(producer.try_push(1) == RingStatus::corrupt);
        CHECK(consumer.try_pop(value) == RingStatus::corrupt);
    }
}

TEST_CASE("batches go on where positions wrap, which only hostile bytes lead to soon") {
    const Fixture fixture(16);
    fixture.start_at_lap((std::uint64_t{1} << 60) - 1);
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    std::array<std::uint32_t, 12> values{};
    std::iota(values.begin(), values.end(), 7U);
    for (int batch = 0; batch < 4; ++batch) {
        CHECK(producer.try_push(std::span<const std::uint32_t>(values)) == 12);
        std::array<std::uint32_t, 12> popped{};
        CHECK(consumer.try_pop(std::span(popped)) == 12);
        CHECK(popped == values);
    }
}

TEST_CASE("an empty cell with a value is corrupt for a producer, and no endless attempt to fill it") {
    const Fixture fixture(4);
    fixture.cell(0) = 5;
    RingProducer producer(fixture.ring);
    CHECK(producer.try_push(1) == RingStatus::corrupt);
    CHECK(producer.try_push(1) == RingStatus::corrupt);
    fixture.cell(0) = 0;
    CHECK(producer.try_push(1) == RingStatus::ok);
}

TEST_CASE("turns that lead around in circles are corrupt and no endless search") {
    // Each cell is a quarter of all turns ahead of the one before it, so there is always a later one.
    const Fixture fixture(4);
    for (std::uint64_t place = 0; place < 4; ++place) {
        fixture.cell(place) = Fixture::empty_cell((place + 1) * (lap_count / 4));
    }
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    std::uint32_t value = 0;
    CHECK(producer.try_push(1) == RingStatus::corrupt);
    CHECK(consumer.try_pop(value) == RingStatus::corrupt);
}

TEST_CASE("any bytes give a status, never a crash or an endless search") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    unsigned corrupt_count = 0;
    for (int round = 0; round < 4000; ++round) {
        const Fixture fixture(1U << (1 + random.below(5U)));
        const auto turn = [&] { return random.next() >> random.below(64U); };
        for (std::uint32_t place = 0; place < fixture.ring.capacity(); ++place) {
            fixture.cell(place) = turn() << random.below(40U);
        }
        if (random.one_in(2)) {
            fixture.state().tail_hint = turn();
            fixture.state().head_hint = turn();
        }
        RingProducer producer(fixture.ring);
        RingConsumer consumer(fixture.ring);
        for (int count = 0; count < 20; ++count) {
            std::uint32_t value = 0;
            corrupt_count += producer.try_push(1) == RingStatus::corrupt ? 1U : 0U;
            corrupt_count += consumer.try_pop(value) == RingStatus::corrupt ? 1U : 0U;
        }
        static_cast<void>(fixture.ring.check());
    }
    CHECK(corrupt_count > 0);
}

TEST_CASE("check names each kind of broken cell") {
    const Fixture fixture(4);
    RingProducer producer(fixture.ring);
    REQUIRE(producer.try_push(1) == RingStatus::ok);
    REQUIRE(fixture.ring.check().empty());

    fixture.cell(2) |= 5; // an empty cell with a value
    REQUIRE(fixture.ring.check().size() == 1);
    CHECK(fixture.ring.check()[0].find("cell 2 is empty but holds the value 5") != std::string::npos);
    fixture.cell(2) = 0;

    fixture.cell(3) = Fixture::empty_cell(2); // two laps further than its neighbours
    std::string all;
    for (const std::string& broken : fixture.ring.check()) {
        all += broken + "\n";
    }
    CHECK(all.find("next pushes") != std::string::npos);
    CHECK(all.find("next pops") != std::string::npos);
    fixture.cell(3) = 0;
    CHECK(fixture.ring.check().empty());

    fixture.cell(3) = (std::uint64_t{1} << ring_value_bits) | 9; // an item behind a gap
    CHECK_FALSE(fixture.ring.check().empty());
}

TEST_CASE("the size by the hints is never beyond the capacity") {
    Fixture fixture(8);
    CHECK(fixture.ring.size_hint(0) == 0);
    CHECK(fixture.ring.size_hint(8) == 8);
    CHECK(fixture.ring.size_hint(9) == 0);
    fixture.ring.publish_head(5);
    CHECK(fixture.ring.size_hint(8) == 3);
    CHECK(fixture.ring.size_hint(4) == 0);
}

TEST_CASE("the depth is right in a small ring, of which the hints lie several laps behind") {
    const std::uint32_t capacity = GENERATE(2U, 4U, 8U);
    Fixture fixture(capacity);
    RingProducer producer(fixture.ring);
    RingConsumer consumer(fixture.ring);
    for (std::uint32_t count = 0; count < 40; ++count) {
        REQUIRE(producer.try_push(count) == RingStatus::ok);
        CHECK(fixture.ring.depth() == 1);
        CHECK(pop(consumer) == count);
        CHECK(fixture.ring.depth() == 0);
    }
}

TEST_CASE("random operations of several handles agree with a deque") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    for (const bool starts_at_wrap : {false, true}) {
        for (const std::uint32_t capacity : {2U, 4U, 16U, 128U}) {
            CAPTURE(starts_at_wrap, capacity);
            const Fixture fixture(capacity);
            fixture.start_at_lap(starts_at_wrap ? lap_count - 20 : 0);
            std::vector<RingProducer> producers(3, RingProducer(fixture.ring));
            std::vector<RingConsumer> consumers(3, RingConsumer(fixture.ring));
            std::vector<RingState> old_hints{fixture.state()};
            std::deque<std::uint32_t> model;
            unsigned full_count = 0;
            unsigned empty_count = 0;
            unsigned push_chance = 2;
            for (std::uint32_t number = 0; number < 20'000; ++number) {
                if (random.one_in(100)) {
                    push_chance = 1 + random.below(3U); // long runs of more pushes or more pops
                }
                if (random.below(4U) < push_chance) {
                    const RingStatus expected = model.size() == capacity ? RingStatus::full : RingStatus::ok;
                    if (producers[random.below(producers.size())].try_push(number) != expected) {
                        FAIL("operation " << number << ": push with " << model.size() << " values");
                    }
                    if (expected == RingStatus::ok) {
                        model.push_back(number);
                    }
                    full_count += expected == RingStatus::full ? 1U : 0U;
                } else {
                    std::uint32_t value = 0;
                    const RingStatus expected = model.empty() ? RingStatus::empty : RingStatus::ok;
                    if (consumers[random.below(consumers.size())].try_pop(value) != expected ||
                        (!model.empty() && value != model.front())) {
                        FAIL("operation " << number << ": pop with " << model.size() << " values");
                    }
                    if (!model.empty()) {
                        model.pop_front();
                    }
                    empty_count += expected == RingStatus::empty ? 1U : 0U;
                }
                if (random.one_in(50)) {
                    producers[random.below(producers.size())] = RingProducer(fixture.ring);
                    consumers[random.below(consumers.size())] = RingConsumer(fixture.ring);
                }
                if (random.one_in(40)) { // a stopped process publishes a position of long ago
                    fixture.state() = old_hints[random.below(old_hints.size())];
                } else if (random.one_in(40)) {
                    old_hints.push_back(fixture.state());
                }
                if (number % 500 == 0 && !fixture.ring.check().empty()) {
                    FAIL("operation " << number << ": " << fixture.ring.check().front());
                }
            }
            CHECK(full_count > 0);
            CHECK(empty_count > 0);
        }
    }
}

TEST_CASE("ends that are exclusive, one after the other and beside shared ones, carry the same") {
    test::Random random(test::seed());
    CAPTURE(test::seed());
    for (const bool starts_at_wrap : {false, true}) {
        for (const std::uint32_t capacity : {2U, 4U, 16U, 128U}) {
            CAPTURE(starts_at_wrap, capacity);
            const Fixture fixture(capacity);
            fixture.start_at_lap(starts_at_wrap ? lap_count - 20 : 0);
            std::deque<std::uint32_t> model;
            std::uint32_t next = 0;
            const auto push = [&](auto&& producer) {
                for (unsigned count = random.below(20U); count > 0; --count) {
                    const RingStatus expected = model.size() == capacity ? RingStatus::full : RingStatus::ok;
                    if (producer.try_push(next) != expected) {
                        FAIL("push of " << next << " with " << model.size() << " values");
                    }
                    if (expected == RingStatus::ok) {
                        model.push_back(next++);
                    }
                }
                std::vector<std::uint32_t> batch(random.below(80U));
                for (std::uint32_t& value : batch) {
                    value = next + static_cast<std::uint32_t>(&value - batch.data());
                }
                const std::size_t pushed = producer.try_push(std::span<const std::uint32_t>(batch));
                if (!is_batch(pushed, batch.size(), capacity - model.size())) {
                    FAIL("a batch of " << batch.size() << " beside " << model.size() << " values: " << pushed);
                }
                model.insert(model.end(), batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(pushed));
                next += static_cast<std::uint32_t>(pushed);
            };
            const auto pop_some = [&](auto&& consumer) {
                std::vector<std::uint32_t> batch(random.below(80U));
                const std::size_t popped = consumer.try_pop(std::span(batch));
                if (!is_batch(popped, batch.size(), model.size())) {
                    FAIL("a batch of " << batch.size() << " of " << model.size() << " values: " << popped);
                }
                for (std::size_t place = 0; place < popped; ++place) {
                    if (batch[place] != model.front()) {
                        FAIL("popped " << batch[place]);
                    }
                    model.pop_front();
                }
                std::uint32_t value = 0;
                if (!model.empty() && (consumer.try_pop(value) != RingStatus::ok || value != model.front())) {
                    FAIL("a pop of " << model.size() << " values");
                } else if (!model.empty()) {
                    model.pop_front();
                }
            };
            for (int round = 0; round < 300; ++round) {
                ExclusiveRingProducer producer(fixture.ring);
                ExclusiveRingConsumer consumer(fixture.ring);
                for (int turn = 0; turn < 5; ++turn) {
                    push(producer);
                    pop_some(consumer);
                }
                RingProducer shared_producer(fixture.ring);
                RingConsumer shared_consumer(fixture.ring);
                push(shared_producer);
                pop_some(shared_consumer);
                pop_some(consumer); // an exclusive end may stay while the other is shared
                if (!fixture.ring.check().empty()) {
                    FAIL(fixture.ring.check().front());
                }
            }
        }
    }
}

TEST_CASE("a ring that is checked while it is used is sound") {
    const Fixture fixture(256);
    std::atomic<bool> is_over{false};
    std::thread moving([&] {
        RingProducer producer(fixture.ring);
        RingConsumer consumer(fixture.ring);
        for (std::uint32_t number = 0; !is_over; ++number) {
            std::uint32_t value = 0;
            if (producer.try_push(number & ring_value_max) == RingStatus::full || number % 1000 < 500) {
                static_cast<void>(consumer.try_pop(value));
            }
            if (number % 5'000 == 0) {
                std::this_thread::yield();
            }
        }
    });
    std::vector<std::string> broken;
    for (int round = 0; round < 20'000 && broken.empty(); ++round) {
        broken = fixture.ring.check();
    }
    is_over = true;
    moving.join();
    CHECK(broken.empty());
    CHECK(fixture.ring.check().empty());
}

TEST_CASE("a batch takes all, or about a half, a quarter and so on, as far as the ring goes") {
    const Fixture fixture(64);
    fixture.start_at_lap(lap_count - 1);
    RingProducer shared_in(fixture.ring);
    RingConsumer shared_out(fixture.ring);
    const auto both = [](auto& producer, auto& consumer) {
        std::vector<std::uint32_t> values(64), popped(64);
        std::iota(values.begin(), values.end(), 100U);
        const std::span<const std::uint32_t> all(values);
        const std::span<std::uint32_t> room(popped);
        CHECK(consumer.try_pop(room) == 0);
        CHECK(producer.try_push(all.first(41)) == 41);
        CHECK(producer.try_push(all.subspan(41, 23)) == 23);
        CHECK(producer.try_push(all) == 0);
        CHECK(consumer.try_pop(room.first(3)) == 3);
        CHECK(consumer.try_pop(room.subspan(3, 20)) == 20);
        CHECK(consumer.try_pop(room.subspan(23)) == 41);
        CHECK(popped == values);
        CHECK(producer.try_push(all.first(40)) == 40);
        CHECK(producer.try_push(all.subspan(40)) == 24);
        CHECK(consumer.try_pop(room.first(33)) == 33);
        CHECK(consumer.try_pop(room.subspan(33, 26)) == 26);
        CHECK(producer.try_push(all) == 32); // there is room for 59
        CHECK(producer.try_push(all) == 16);
        CHECK(producer.try_push(all) == 8);
        CHECK(producer.try_push(all) == 3);
        CHECK(consumer.try_pop(room.first(5)) == 5);
        CHECK(consumer.try_pop(room) == 32); // there are 59
        CHECK(consumer.try_pop(room) == 16);
        CHECK(consumer.try_pop(room) == 8);
        CHECK(consumer.try_pop(room) == 3);
        CHECK(consumer.try_pop(room) == 0);
        CHECK(consumer.try_pop(room, 2) == 0);
        CHECK(producer.try_push(all.first(30), 30) == 30);
        CHECK(producer.try_push(all.first(40), 35) == 0);
        CHECK(producer.try_push(all.first(40), 34) == 34); // and not 20
        CHECK(producer.try_push(all.first(2), 2) == 0);
        CHECK(consumer.try_pop(room.first(5), 5) == 5);
        CHECK(consumer.try_pop(room, 60) == 0);
        CHECK(consumer.try_pop(room, 59) == 59);
        CHECK(popped[24] == 129);
        CHECK(popped[25] == 100);
        CHECK(consumer.try_pop(room.first(3), 3) == 0);
    };
    both(shared_in, shared_out);
    ExclusiveRingProducer alone_in(fixture.ring);
    ExclusiveRingConsumer alone_out(fixture.ring);
    both(alone_in, alone_out);
    CHECK(fixture.ring.check().empty());
}

TEST_CASE("a handle that others have left behind finds the ring's end before it says that a batch has no room") {
    const Fixture fixture(16);
    RingProducer early_in(fixture.ring);
    RingConsumer early_out(fixture.ring);
    const std::array<std::uint32_t, 16> values{};
    std::array<std::uint32_t, 16> popped{};
    for (int lap = 0; lap < 5; ++lap) {
        RingProducer producer(fixture.ring);
        RingConsumer consumer(fixture.ring);
        REQUIRE(producer.try_push(std::span(values), 16) == 16);
        REQUIRE(consumer.try_pop(std::span(popped).first(13), 13) == 13);
        REQUIRE(consumer.try_pop(std::span(popped).first(3), 3) == 3);
    }
    CHECK(early_out.try_pop(std::span(popped).first(4), 4) == 0);
    CHECK(early_in.try_push(std::span(values).first(12), 12) == 12);
    CHECK(early_out.try_pop(std::span(popped).first(12), 12) == 12);
}

TEST_CASE("several handles of an end get whole batches in turn, and know too few for what they are") {
    const Fixture fixture(1024);
    std::array<RingProducer, 2> in{RingProducer(fixture.ring), RingProducer(fixture.ring)};
    std::array<RingConsumer, 2> out{RingConsumer(fixture.ring), RingConsumer(fixture.ring)};
    std::array<std::uint32_t, 64> values{};
    for (std::size_t batch = 0; batch < 16; ++batch) {
        CHECK(in[batch % 2].try_push(std::span<const std::uint32_t>(values)) == 64);
    }
    for (std::size_t batch = 0; batch < 15; ++batch) {
        CHECK(out[batch % 2].try_pop(std::span(values)) == 64);
    }
    // One value is left behind the cell that the second one would look at first, which has been emptied.
    CHECK(out[1].try_pop(std::span(values).first(62)) == 62);
    CHECK(out[0].try_pop(std::span(values).first(1)) == 1);
    CHECK(out[1].try_pop(std::span(values).first(40), 2) == 0);
    CHECK(out[1].try_pop(std::span(values).first(40)) == 1);
}

static_assert(std::is_copy_constructible_v<RingProducer> && std::is_copy_constructible_v<RingConsumer>);
static_assert(!std::is_copy_constructible_v<ExclusiveRingProducer> &&
              std::is_move_constructible_v<ExclusiveRingProducer>);
static_assert(!std::is_copy_constructible_v<ExclusiveRingConsumer> &&
              std::is_move_constructible_v<ExclusiveRingConsumer>);

TEST_CASE("two threads with the ends for themselves hand slots to and fro, and what lies in them") {
    constexpr std::uint32_t message_count = 60'000;
    const std::uint32_t capacity = GENERATE(2U, 64U);
    const Fixture there(capacity);
    const Fixture back(capacity);
    there.start_at_lap(lap_count - 100);
    std::vector<std::uint32_t> slots(capacity); // no atomics: who has a slot's number has the slot
    std::thread producing([&] {
        ExclusiveRingProducer out(there.ring);
        ExclusiveRingConsumer in(back.ring);
        for (std::uint32_t number = 0; number < message_count; ++number) {
            std::uint32_t slot = number;
            while (number >= capacity && in.try_pop(slot) != RingStatus::ok) {
                std::this_thread::yield();
            }
            slots[slot] = number;
            while (out.try_push(slot) != RingStatus::ok) {
                std::this_thread::yield();
            }
        }
    });
    bool is_right = true;
    ExclusiveRingConsumer in(there.ring);
    ExclusiveRingProducer out(back.ring);
    std::uint32_t taken[5] = {};
    for (std::uint32_t expected = 0; expected < message_count;) {
        const std::size_t count = in.try_pop(std::span(taken));
        for (std::size_t place = 0; place < count; ++place) {
            is_right = is_right && slots[taken[place]] == expected++;
            is_right = is_right && out.try_push(taken[place]) == RingStatus::ok;
        }
        if (count == 0) {
            std::this_thread::yield();
        }
    }
    producing.join();
    CHECK(is_right);
    CHECK(there.ring.check().empty());
    CHECK(back.ring.check().empty());
}

TEST_CASE("threads lose nothing, get nothing twice and keep each producer's order") {
    constexpr std::uint32_t per_producer_count = 30'000;
    constexpr unsigned producer_count = 2;
    const std::uint32_t capacity = GENERATE(2U, 64U);
    const Fixture fixture(capacity);
    fixture.start_at_lap(lap_count - 100);
    std::atomic<std::uint32_t> popped_count{0};
    std::atomic<unsigned> failure_count{0};
    std::vector<std::vector<std::uint32_t>> popped(2);
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < producer_count; ++number) {
        threads.emplace_back([&, number] {
            RingProducer producer(fixture.ring);
            test::Random random(test::seed() + number);
            std::array<std::uint32_t, 40> batch{};
            for (std::uint32_t count = 0; count < per_producer_count;) {
                switch (producer.try_push(number << 20 | count)) {
                case RingStatus::ok: ++count; break;
                case RingStatus::full: std::this_thread::yield(); break;
                default: ++failure_count; return;
                }
                std::iota(batch.begin(), batch.end(), number << 20 | count);
                const auto length = std::min<std::size_t>(random.below(41U), per_producer_count - count);
                count +=
                    static_cast<std::uint32_t>(producer.try_push(std::span<const std::uint32_t>(batch).first(length)));
            }
        });
    }
    for (std::vector<std::uint32_t>& mine : popped) {
        threads.emplace_back([&] {
            RingConsumer consumer(fixture.ring);
            std::array<std::uint32_t, 40> batch{};
            while (popped_count < producer_count * per_producer_count && failure_count == 0) {
                const std::size_t count = consumer.try_pop(std::span(batch).first(mine.size() % batch.size()));
                mine.insert(mine.end(), batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(count));
                popped_count += static_cast<std::uint32_t>(count);
                std::uint32_t value = 0;
                switch (consumer.try_pop(value)) {
                case RingStatus::ok:
                    mine.push_back(value);
                    ++popped_count;
                    break;
                case RingStatus::empty: std::this_thread::yield(); break;
                default: ++failure_count; return;
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(failure_count == 0);
    std::vector<unsigned> seen_count(producer_count * per_producer_count);
    for (const std::vector<std::uint32_t>& mine : popped) {
        std::int64_t last[producer_count] = {-1, -1};
        for (const std::uint32_t value : mine) {
            const std::uint32_t producer = value >> 20;
            const std::uint32_t count = value & 0xfffff;
            REQUIRE(producer < producer_count);
            REQUIRE(count < per_producer_count);
            if (count <= last[producer]) {
                FAIL("producer " << producer << ": " << count << " after " << last[producer]);
            }
            last[producer] = count;
            ++seen_count[producer * per_producer_count + count];
        }
    }
    CHECK(std::ranges::count(seen_count, 1U) == producer_count * per_producer_count);
    CHECK(fixture.ring.check().empty());
}
