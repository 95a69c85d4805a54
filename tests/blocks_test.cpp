#include "blocks_testing.hpp"
#include "catch.hpp"

#include <weir/blocks.hpp>

#include <memory>
#include <numeric>
#include <thread>

using namespace weir;
using test::Collector;
using test::error_of;
using test::first_numbers;
using test::Maker;
using test::numbers;
using test::Place;

namespace {

const bool has_wait_path = test::require_wait_path();

/// Takes one message from each of two inputs, in turn.
class Join final : public Block {
public:
    Join() : Block("join") {}

    InputPort one{*this, "one"};
    InputPort two{*this, "two"};
    std::size_t pair_count = 0;
    bool are_equal = true;

    WorkResult work() override {
        if (!first_) {
            first_ = one.try_pop();
        }
        if (!first_) {
            return WorkResult::need_input;
        }
        const BufferPtr second = two.try_pop();
        if (!second) {
            return WorkResult::need_input;
        }
        are_equal = are_equal && first_.id() == second.id();
        first_.reset();
        ++pair_count;
        return WorkResult::progress;
    }

private:
    BufferPtr first_;
};

} // namespace

TEST_CASE("a NullSource sends as many messages as it was told, and a NullSink counts them", "[blocks]") {
    Place place;
    const std::uint64_t count = GENERATE(std::uint64_t{1}, std::uint64_t{7}, std::uint64_t{16}, std::uint64_t{1000});
    {
        Scheduler scheduler(place.domain);
        auto& source = scheduler.add<NullSource>(place.pool, count);
        auto& sink = scheduler.add<NullSink>();
        scheduler.connect(source.out, sink.in);
        scheduler.run();
        CHECK(sink.message_count() == count);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a NullSource's messages are whole buffers, or as large as it was told", "[blocks]") {
    Place place(4096);
    const std::optional<std::size_t> bytes =
        GENERATE(std::optional<std::size_t>(), std::optional<std::size_t>(0), std::optional<std::size_t>(100),
                 std::optional<std::size_t>(4096));
    Scheduler scheduler(place.domain);
    auto& source = scheduler.add<NullSource>(place.pool, 10U, bytes);
    auto& sink = scheduler.add<Collector>();
    scheduler.connect(source.out, sink.in);
    scheduler.run();
    CHECK(sink.sizes == std::vector<std::size_t>(10, bytes.value_or(4096)));
    CHECK(error_of([&] { return NullSource(place.pool, 1, 4097).name(); }) == errc::invalid_size);
}

TEST_CASE("a NullSource without a count sends until the scheduler stops or drains", "[blocks]") {
    Place place;
    const bool drains = GENERATE(false, true);
    {
        Scheduler scheduler(place.domain, {.worker_count = 2});
        auto& source = scheduler.add<NullSource>(place.pool);
        auto& sink = scheduler.add<NullSink>();
        scheduler.connect(source.out, sink.in);
        scheduler.start();
        while (sink.message_count() < 10'000) {
            std::this_thread::yield();
        }
        if (drains) {
            scheduler.drain();
        } else {
            scheduler.stop();
        }
        scheduler.wait();
        CHECK(sink.message_count() >= 10'000);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a Map's function changes each message in place", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain);
        auto& maker = scheduler.add<Maker>(place.pool, numbers(1000));
        auto& map = scheduler.add<Map>(
            [](BufferPtr& message) { test::write_number(message, test::read_number<std::uint32_t>(message) * 3); });
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(maker.out, map.in);
        scheduler.connect(map.out, collector.in);
        scheduler.run();
        auto expected = first_numbers(1000);
        for (std::uint32_t& number : expected) {
            number *= 3;
        }
        CHECK(collector.collected_numbers() == expected);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a Map's function returns what is sent instead, and what it leaves empty is not sent", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain);
        auto& maker = scheduler.add<Maker>(place.pool, numbers(100));
        auto& by_value = scheduler.add<Map>(
            [](BufferPtr message) { return message.tag() % 2 == 0 ? std::move(message) : BufferPtr(); });
        auto& by_reference = scheduler.add<Map>(
            [](BufferPtr& message) { return message.tag() % 3 == 0 ? std::move(message) : BufferPtr(); });
        // What it owns cannot be copied.
        auto& in_place = scheduler.add<Map>([dropped = std::make_unique<int>(0)](BufferPtr& message) mutable {
            if (message.tag() == 6) {
                message.reset();
                ++*dropped;
            }
        });
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(maker.out, by_value.in);
        scheduler.connect(by_value.out, by_reference.in);
        scheduler.connect(by_reference.out, in_place.in);
        scheduler.connect(in_place.out, collector.in);
        scheduler.run();
        std::vector<std::uint32_t> expected;
        for (std::uint32_t tag = 0; tag < 100; tag += 6) {
            if (tag != 6) {
                expected.push_back(tag);
            }
        }
        CHECK(collector.tags == expected);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a Map whose function throws ends with an error that names it, and what it sent before arrives", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain);
        auto& maker = scheduler.add<Maker>(place.pool, numbers(1'000'000));
        auto& map = scheduler.add<Map>(
            [](BufferPtr& message) {
                if (message.tag() == 10) {
                    throw std::runtime_error("ten is too much");
                }
            },
            "careful");
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(maker.out, map.in);
        scheduler.connect(map.out, collector.in);
        const test::RunError error = test::error_of_run(scheduler);
        CHECK(error.block == "careful");
        CHECK(error.what == "block careful: ten is too much");
        CHECK(collector.tags == first_numbers(10));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a Filter lets through what its function says yes to", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain);
        auto& maker = scheduler.add<Maker>(place.pool, numbers(1000));
        auto& filter = scheduler.add<Filter>([](const BufferPtr& message) { return message.tag() >= 990; });
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(maker.out, filter.in);
        scheduler.connect(filter.out, collector.in);
        scheduler.run();
        CHECK(collector.tags == std::vector<std::uint32_t>{990, 991, 992, 993, 994, 995, 996, 997, 998, 999});
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a Tee sends each message to all of its outputs, without copying it", "[blocks]") {
    const unsigned count = GENERATE(1U, 2U, 4U, 12U);
    Place place(64, 32, count <= 4 ? 4 : 12);
    {
        Scheduler scheduler(place.domain, {.worker_count = 2});
        auto& maker = scheduler.add<Maker>(place.pool, numbers(500));
        auto& tee = scheduler.add<Tee>(count);
        scheduler.connect(maker.out, tee.in);
        std::vector<Collector*> collectors;
        for (OutputPort& output : tee.out) {
            collectors.push_back(&scheduler.add<Collector>());
            scheduler.connect(output, collectors.back()->in);
        }
        scheduler.run();
        REQUIRE(collectors.size() == count);
        for (const Collector* collector : collectors) {
            CHECK(collector->tags == first_numbers(500));
            CHECK(collector->ids == collectors.front()->ids);
        }
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a Tee goes on when the taker of one of its outputs has ended, and ends with the last", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain);
        auto& maker = scheduler.add<Maker>(place.pool, numbers(std::numeric_limits<std::uint32_t>::max()));
        auto& tee = scheduler.add<Tee>(3U);
        auto& few = scheduler.add<Collector>(10U);
        auto& none = scheduler.add<Collector>(0U);
        auto& many = scheduler.add<Collector>(2000U);
        scheduler.connect(maker.out, tee.in);
        scheduler.connect(tee.out[0], few.in);
        scheduler.connect(tee.out[1], none.in);
        scheduler.connect(tee.out[2], many.in);
        scheduler.run();
        CHECK(few.tags == first_numbers(10));
        CHECK(none.tags.empty());
        CHECK(many.tags == first_numbers(2000));
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a Tee whose outputs meet again in one block does not stand still", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain, {.worker_count = 2});
        auto& maker = scheduler.add<Maker>(place.pool, numbers(3000));
        auto& tee = scheduler.add<Tee>();
        auto& map = scheduler.add<Map>([](const BufferPtr&) {});
        auto& join = scheduler.add<Join>();
        scheduler.connect(maker.out, tee.in);
        scheduler.connect(tee.out[0], join.one, {.capacity = 2});
        scheduler.connect(tee.out[1], map.in, {.capacity = 2});
        scheduler.connect(map.out, join.two, {.capacity = 2});
        scheduler.run();
        CHECK(join.pair_count == 3000);
        CHECK(join.are_equal);
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("a Tee with more outputs than the buffers have references says so, and has sent nothing", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain);
        auto& maker = scheduler.add<Maker>(place.pool, numbers(100));
        auto& tee = scheduler.add<Tee>(5U, "tee");
        scheduler.connect(maker.out, tee.in);
        std::vector<Collector*> collectors;
        for (OutputPort& output : tee.out) {
            collectors.push_back(&scheduler.add<Collector>());
            scheduler.connect(output, collectors.back()->in);
        }
        const test::RunError error = test::error_of_run(scheduler);
        CHECK(error.block == "tee");
        CHECK(error.code == errc::too_many_references);
        for (const Collector* collector : collectors) {
            CHECK(collector->tags.empty());
        }
    }
    CHECK(place.leftover().empty());
    CHECK(error_of([] { return Tee(0).name(); }) == errc::invalid_size);
    CHECK(error_of([] { return Tee(13).name(); }) == errc::invalid_size);
}

TEST_CASE("a RateLimit lets through its burst at once, and the rest not before its time", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain);
        auto& maker = scheduler.add<Maker>(place.pool, numbers(60));
        auto& limit = scheduler.add<RateLimit>(1000.0, 10U);
        std::vector<std::int64_t> times_ns;
        auto& map = scheduler.add<Map>([&](const BufferPtr&) { times_ns.push_back(monotonic_ns()); });
        auto& sink = scheduler.add<NullSink>();
        scheduler.connect(maker.out, limit.in);
        scheduler.connect(limit.out, map.in);
        scheduler.connect(map.out, sink.in);
        const std::int64_t begin_ns = monotonic_ns();
        scheduler.run();
        REQUIRE(times_ns.size() == 60);
        for (std::size_t number = 10; number < times_ns.size(); ++number) {
            // One millisecond each, beyond the burst; a nanosecond for rounding.
            CHECK(times_ns[number] - begin_ns >= static_cast<std::int64_t>(number - 9) * 1'000'000 - 1000);
        }
    }
    CHECK(place.leftover().empty());
    CHECK(error_of([] { return RateLimit(0).name(); }) == errc::invalid_size);
    CHECK(error_of([] { return RateLimit(-1).name(); }) == errc::invalid_size);
    CHECK(error_of([] { return RateLimit(std::nan("")).name(); }) == errc::invalid_size);
    CHECK(error_of([] { return RateLimit(1, 0).name(); }) == errc::invalid_size);
}

TEST_CASE("a RateLimit whose rate is beyond all measure limits nothing", "[blocks]") {
    Place place;
    Scheduler scheduler(place.domain);
    auto& source = scheduler.add<NullSource>(place.pool, 10'000U);
    auto& limit = scheduler.add<RateLimit>(1e15);
    auto& sink = scheduler.add<NullSink>();
    scheduler.connect(source.out, limit.in);
    scheduler.connect(limit.out, sink.in);
    scheduler.run();
    CHECK(sink.message_count() == 10'000);
}

TEST_CASE("a Counter counts messages and bytes, and other threads read them meanwhile", "[blocks]") {
    Place place;
    {
        Scheduler scheduler(place.domain, {.worker_count = 2});
        auto& source = scheduler.add<NullSource>(place.pool, 0U, 50U);
        auto& counter = scheduler.add<Counter>();
        auto& sink = scheduler.add<NullSink>();
        scheduler.connect(source.out, counter.in);
        scheduler.connect(counter.out, sink.in);
        scheduler.start();
        std::uint64_t seen = 0;
        bool is_monotonic = true;
        while (seen < 10'000) {
            const std::uint64_t count = counter.message_count();
            is_monotonic = is_monotonic && count >= seen;
            seen = count;
            std::this_thread::yield();
        }
        scheduler.drain();
        scheduler.wait();
        CHECK(is_monotonic);
        CHECK(counter.message_count() == sink.message_count());
        CHECK(counter.byte_count() == 50 * sink.message_count());
    }
    CHECK(place.leftover().empty());
}

TEST_CASE("all blocks between a source and a sink, on several workers", "[blocks]") {
    Place place(256, 64);
    const unsigned worker_count = GENERATE(1U, 2U, 5U);
    {
        Scheduler scheduler(place.domain, {.worker_count = worker_count});
        auto& maker = scheduler.add<Maker>(place.pool, numbers(20'000));
        auto& before = scheduler.add<Counter>();
        auto& filter = scheduler.add<Filter>([](const BufferPtr& message) { return message.tag() % 4 != 0; });
        auto& limit = scheduler.add<RateLimit>(1e9, 100U);
        auto& tee = scheduler.add<Tee>();
        auto& map = scheduler.add<Map>([](const BufferPtr&) {});
        auto& after = scheduler.add<Counter>();
        auto& sink = scheduler.add<NullSink>();
        auto& collector = scheduler.add<Collector>();
        scheduler.connect(maker.out, before.in);
        scheduler.connect(before.out, filter.in);
        scheduler.connect(filter.out, limit.in);
        scheduler.connect(limit.out, tee.in);
        scheduler.connect(tee.out[0], map.in);
        scheduler.connect(tee.out[1], collector.in);
        scheduler.connect(map.out, after.in);
        scheduler.connect(after.out, sink.in);
        scheduler.run();
        auto expected = first_numbers(20'000);
        std::erase_if(expected, [](std::uint32_t number) { return number % 4 == 0; });
        CHECK(collector.tags == expected);
        CHECK(before.message_count() == 20'000);
        CHECK(after.message_count() == 15'000);
        CHECK(sink.message_count() == 15'000);
    }
    CHECK(place.leftover().empty());
}
