// The scheduler, on the wait path that WEIR_WAIT_PATH names: Meson runs this program once for each.
#include "catch.hpp"
#include "domain_testing.hpp"

#include <weir/scheduler.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <optional>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

using weir::Block;
using weir::BufferPool;
using weir::BufferPtr;
using weir::Domain;
using weir::InputPort;
using weir::OutputPort;
using weir::PoolPort;
using weir::Scheduler;
using weir::WorkResult;

namespace {

std::uint64_t number_in(const BufferPtr& buffer) {
    std::uint64_t number = 0;
    std::memcpy(&number, buffer.bytes().data(), sizeof number);
    return number;
}

/// Sends the numbers from `first` on.
class Source : public Block {
public:
    Source(BufferPool pool, std::uint64_t count, std::uint64_t first = 0)
        : frames(*this, std::move(pool)), next_(first), end_(first + count) {}

    WorkResult work() override {
        if (next_ == end_) {
            return WorkResult::done;
        }
        if (!out.is_ready()) {
            return WorkResult::need_output;
        }
        BufferPtr frame = frames.try_allocate();
        if (!frame) {
            return WorkResult::need_output;
        }
        test::write_number(frame, next_);
        out.push(std::move(frame));
        sent_count = ++next_;
        return WorkResult::progress;
    }

    PoolPort frames;
    OutputPort out{*this};
    std::atomic<std::uint64_t> sent_count{0};

private:
    std::uint64_t next_;
    std::uint64_t end_;
};

constexpr std::uint64_t endless = std::uint64_t{1} << 60;

/// Passes on what it gets, after `each`.
class Pass : public Block {
public:
    explicit Pass(std::function<void(const BufferPtr&)> each = {}, std::string name = {})
        : Block(std::move(name)), each_(std::move(each)) {}

    WorkResult work() override {
        if (!out.is_ready()) {
            return WorkResult::need_output;
        }
        BufferPtr frame = in.try_pop();
        if (!frame) {
            return WorkResult::need_input;
        }
        if (each_) {
            each_(frame);
        }
        out.push(std::move(frame));
        return WorkResult::progress;
    }

    InputPort in{*this};
    OutputPort out{*this};

private:
    std::function<void(const BufferPtr&)> each_;
};

/// Keeps the numbers that it gets, as many as it wants.
class Sink : public Block {
public:
    explicit Sink(std::size_t count_max = ~std::size_t{0}) : count_max_(count_max) {}

    WorkResult work() override {
        if (numbers.size() == count_max_) {
            return WorkResult::done;
        }
        const BufferPtr frame = in.try_pop();
        if (!frame) {
            return WorkResult::need_input;
        }
        numbers.push_back(number_in(frame));
        count = numbers.size();
        return WorkResult::progress;
    }

    InputPort in{*this};
    std::vector<std::uint64_t> numbers; ///< read when the scheduler does not run
    std::atomic<std::size_t> count{0};

private:
    std::size_t count_max_;
};

/// Has as many ports as it is told to, and does what it is told to.
class Custom : public Block {
public:
    Custom(std::size_t input_count, std::size_t output_count, std::function<WorkResult(Custom&)> body,
           std::string name = {})
        : Block(std::move(name)), body_(std::move(body)) {
        for (std::size_t number = 0; number < input_count; ++number) {
            ins.emplace_back(*this, "in" + std::to_string(number));
        }
        for (std::size_t number = 0; number < output_count; ++number) {
            outs.emplace_back(*this, "out" + std::to_string(number));
        }
    }
    WorkResult work() override {
        ++call_count;
        return body_(*this);
    }
    void start() override {
        if (on_start) {
            on_start(*this);
        }
    }
    void finish() noexcept override { ++finish_count; }

    using Block::requests_in_flight;
    using Block::submit;
    using Block::wake_at;

    std::deque<InputPort> ins;
    std::deque<OutputPort> outs;
    std::function<void(Custom&)> on_start;
    std::atomic<std::uint64_t> call_count{0};
    int finish_count = 0;

private:
    std::function<WorkResult(Custom&)> body_;
};

std::vector<std::uint64_t> numbers_up_to(std::uint64_t count) {
    std::vector<std::uint64_t> numbers(count);
    for (std::uint64_t number = 0; number < count; ++number) {
        numbers[number] = number;
    }
    return numbers;
}

/// A domain with a pool, which has to be whole in the end.
struct World {
    explicit World(std::uint32_t buffer_count = 64, std::uint32_t references = 4)
        : domain(Domain::join(name, test::quick())),
          pool(domain.pool("frames",
                           {.buffer_bytes = 64, .buffer_count = buffer_count, .references_per_buffer = references})) {}
    void check() {
        CHECK(test::check(domain).empty());
        CHECK(pool.free_count() == pool.buffer_count());
    }

    test::Name name;
    Domain domain;
    BufferPool pool;
};

template <class Condition>
void wait_for(Condition&& condition) {
    while (!condition()) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
}

constexpr std::uint64_t many = test::is_sanitized ? 5'000 : 100'000;

} // namespace

TEST_CASE("what a source sends arrives in order, in one worker and across two") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& source = scheduler.add<Source>(world.pool, many);
        auto& sink = scheduler.add<Sink>();
        scheduler.connect(source.out, sink.in, {.capacity = 8});
        scheduler.run();
        CHECK(sink.numbers == numbers_up_to(many));
        CHECK_FALSE(scheduler.is_running());
        CHECK(scheduler.wait_path() != weir::WaitPath::automatic);
        CHECK(scheduler.counters().work_calls >= 2 * many);
    }
    world.check();
}

TEST_CASE("a chain of blocks over several workers keeps the order, with spinning and without") {
    const std::uint32_t spin_count = GENERATE(0U, 200U);
    World world(16);
    {
        Scheduler scheduler(world.domain, {.worker_count = 3, .spin_count = spin_count});
        auto& source = scheduler.add<Source>(world.pool, many / 20);
        OutputPort* last = &source.out;
        for (int number = 0; number < 9; ++number) {
            auto& pass = scheduler.add<Pass>();
            scheduler.assign(pass, static_cast<unsigned>(number) % 3);
            scheduler.connect(*last, pass.in, {.capacity = 2});
            last = &pass.out;
        }
        auto& sink = scheduler.add<Sink>();
        scheduler.connect(*last, sink.in, {.capacity = 2});
        scheduler.run();
        CHECK(sink.numbers == numbers_up_to(many / 20));
    }
    world.check();
}

TEST_CASE("one output feeds several inputs with the same buffers, as fast as the slowest goes") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& source = scheduler.add<Source>(world.pool, many / 10);
        std::vector<Sink*> sinks;
        std::array<std::vector<std::uint32_t>, 2> ids;
        for (int number = 0; number < 2; ++number) {
            auto& pass = scheduler.add<Pass>([&ids, number](const BufferPtr& frame) {
                ids[static_cast<std::size_t>(number)].push_back(frame.id());
            });
            scheduler.connect(source.out, pass.in, {.capacity = 4});
            sinks.push_back(&scheduler.add<Sink>());
            scheduler.connect(pass.out, sinks.back()->in, {.capacity = number == 0 ? 2U : 64U});
        }
        sinks.push_back(&scheduler.add<Sink>());
        scheduler.connect(source.out, sinks.back()->in, {.capacity = 2});
        scheduler.run();
        for (const Sink* sink : sinks) {
            CHECK(sink->numbers == numbers_up_to(many / 10));
        }
        CHECK(ids[0] == ids[1]);
    }
    world.check();
}

TEST_CASE("a buffer with fewer references than an output has edges goes to nobody, and the error names the block") {
    World world(64, 4);
    {
        Scheduler scheduler(world.domain);
        auto& source = scheduler.add<Source>(world.pool, 3);
        std::vector<Sink*> sinks;
        for (int number = 0; number < 5; ++number) {
            sinks.push_back(&scheduler.add<Sink>());
            scheduler.connect(source.out, sinks.back()->in);
        }
        try {
            scheduler.run();
            FAIL("it ran");
        } catch (const weir::BlockError& error) {
            CHECK(error.block_name() == "Source");
            try {
                std::rethrow_if_nested(error);
                FAIL("nothing is nested");
            } catch (const std::system_error& nested) {
                CHECK(nested.code() == weir::errc::too_many_references);
            }
        }
        for (const Sink* sink : sinks) {
            CHECK(sink->numbers.empty());
        }
    }
    world.check();
}

TEST_CASE("several outputs feed one input, and its stream ends with the last of them") {
    const unsigned worker_count = GENERATE(1U, 3U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& first = scheduler.add<Source>(world.pool, many / 10);
        auto& second = scheduler.add<Source>(world.pool, many / 5, many);
        auto& sink = scheduler.add<Sink>();
        scheduler.connect(first.out, sink.in);
        scheduler.connect(second.out, sink.in);
        scheduler.run();
        REQUIRE(sink.numbers.size() == many / 10 + many / 5);
        std::uint64_t next_first = 0;
        std::uint64_t next_second = many;
        for (const std::uint64_t number : sink.numbers) {
            CHECK(number == (number < many ? next_first++ : next_second++));
        }
    }
    world.check();
}

TEST_CASE("a block that throws ends its streams, is named, and the rest drains") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& source = scheduler.add<Source>(world.pool, endless);
        auto& other_source = scheduler.add<Source>(world.pool, endless);
        auto& broken = scheduler.add<Pass>(
            [](const BufferPtr& frame) {
                if (number_in(frame) == 100) {
                    throw std::runtime_error("one hundred is too much");
                }
            },
            "picky");
        auto& sink = scheduler.add<Sink>();
        auto& other_sink = scheduler.add<Sink>();
        scheduler.connect(source.out, broken.in);
        scheduler.connect(broken.out, sink.in);
        scheduler.connect(other_source.out, other_sink.in);
        try {
            scheduler.run();
            FAIL("it ran");
        } catch (const weir::BlockError& error) {
            CHECK(error.block_name() == "picky");
            CHECK(std::string(error.what()) == "block picky: one hundred is too much");
        }
        CHECK(sink.numbers == numbers_up_to(100));
        CHECK(other_sink.numbers == numbers_up_to(other_source.sent_count));
    }
    world.check();
}

TEST_CASE("a block whose start throws is named, and the others end") {
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = 2});
        auto& source = scheduler.add<Source>(world.pool, endless);
        auto& custom = scheduler.add<Custom>(
            1, 0, [](Custom&) { return WorkResult::need_input; }, "unready");
        custom.on_start = [](Custom&) { throw std::runtime_error("not today"); };
        scheduler.connect(source.out, custom.ins[0]);
        CHECK_THROWS_AS(scheduler.run(), weir::BlockError);
        CHECK(custom.finish_count == 1);
    }
    world.check();
}

TEST_CASE("a consumer that has enough ends its producers, and what it did not take is free again") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& source = scheduler.add<Source>(world.pool, endless);
        auto& pass = scheduler.add<Pass>();
        auto& sink = scheduler.add<Sink>(1000);
        scheduler.connect(source.out, pass.in);
        scheduler.connect(pass.out, sink.in);
        scheduler.run();
        CHECK(sink.numbers == numbers_up_to(1000));
        CHECK(world.pool.free_count() == world.pool.buffer_count());
    }
    world.check();
}

TEST_CASE("an input says its end, and the block may send something more") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& source = scheduler.add<Source>(world.pool, 10);
        std::uint64_t sum = 0;
        int end_count = 0;
        auto& adder = scheduler.add<Custom>(1, 1, [&](Custom& self) {
            if (const BufferPtr frame = self.ins[0].try_pop()) {
                sum += number_in(frame);
                return WorkResult::progress;
            }
            if (self.ins[0].is_at_end()) {
                ++end_count;
                BufferPtr frame = world.pool.try_allocate();
                test::write_number(frame, sum);
                self.outs[0].push(std::move(frame));
                return WorkResult::done;
            }
            return WorkResult::need_input;
        });
        auto& sink = scheduler.add<Sink>();
        scheduler.connect(source.out, adder.ins[0]);
        scheduler.connect(adder.outs[0], sink.in);
        scheduler.run();
        CHECK(end_count == 1);
        CHECK(adder.finish_count == 1);
        CHECK(sink.numbers == std::vector<std::uint64_t>{45});
    }
    world.check();
}

TEST_CASE("a block waits for exactly the input that it found empty, and ends when that one's stream does") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& shorter = scheduler.add<Source>(world.pool, 100);
        auto& longer = scheduler.add<Source>(world.pool, endless, 1000);
        BufferPtr held;
        std::uint64_t pair_count = 0;
        auto& zip = scheduler.add<Custom>(2, 0, [&](Custom& self) {
            if (!held) {
                held = self.ins[0].try_pop();
            }
            if (!held) {
                return WorkResult::need_input;
            }
            const BufferPtr second = self.ins[1].try_pop();
            if (!second) {
                return WorkResult::need_input;
            }
            CHECK(number_in(second) == number_in(held) + 1000);
            ++pair_count;
            held.reset();
            return WorkResult::progress;
        });
        // Small edges: the longer stream must not get all the buffers while the other one needs some.
        scheduler.connect(shorter.out, zip.ins[0], {.capacity = 8});
        scheduler.connect(longer.out, zip.ins[1], {.capacity = 8});
        scheduler.run();
        CHECK(pair_count == 100);
    }
    world.check();
}

TEST_CASE("a token goes round a cycle, and the cycle has ended when it is taken out") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        std::uint64_t round_count = 0;
        bool has_begun = false;
        auto& head = scheduler.add<Custom>(1, 1, [&](Custom& self) {
            if (!has_begun) {
                has_begun = true;
                self.outs[0].push(world.pool.try_allocate());
                return WorkResult::progress;
            }
            BufferPtr token = self.ins[0].try_pop();
            if (!token) {
                return WorkResult::need_input;
            }
            if (++round_count < 100) {
                self.outs[0].push(std::move(token));
            }
            return WorkResult::progress;
        });
        OutputPort* last = &head.outs[0];
        for (int number = 0; number < 4; ++number) {
            auto& pass = scheduler.add<Pass>();
            scheduler.connect(*last, pass.in);
            last = &pass.out;
        }
        scheduler.connect(*last, head.ins[0]);
        scheduler.run();
        CHECK(round_count == 100);
    }
    world.check();
}

TEST_CASE("a cycle that is fed from outside drains with its source") {
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = 2});
        auto& source = scheduler.add<Source>(world.pool, 1000);
        std::uint64_t round_count = 0;
        auto& loop = scheduler.add<Custom>(1, 1, [&](Custom& self) {
            if (!self.outs[0].is_ready()) {
                return WorkResult::need_output;
            }
            BufferPtr frame = self.ins[0].try_pop();
            if (!frame) {
                return WorkResult::need_input;
            }
            ++round_count;
            frame.set_tag(frame.tag() + 1);
            if (frame.tag() < 3) {
                self.outs[0].push(std::move(frame));
            }
            return WorkResult::progress;
        });
        auto& back = scheduler.add<Pass>();
        scheduler.connect(source.out, loop.ins[0], {.capacity = 64});
        scheduler.connect(loop.outs[0], back.in, {.capacity = 64});
        scheduler.connect(back.out, loop.ins[0]);
        scheduler.run();
        CHECK(round_count == 3000);
    }
    world.check();
}

TEST_CASE("a scheduler that was stopped goes on where it was: nothing is lost, nothing comes twice") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& source = scheduler.add<Source>(world.pool, many);
        auto& pass = scheduler.add<Pass>();
        auto& sink = scheduler.add<Sink>();
        scheduler.connect(source.out, pass.in);
        scheduler.connect(pass.out, sink.in);
        for (std::size_t round = 1; round <= 10; ++round) {
            scheduler.start();
            wait_for([&] { return sink.count >= round * many / 20; });
            scheduler.stop();
            scheduler.wait();
        }
        scheduler.run();
        CHECK(sink.numbers == numbers_up_to(many));
    }
    world.check();
}

TEST_CASE("a scheduler that is destroyed while it runs gives all buffers back") {
    World world;
    for (int round = 0; round < 20; ++round) {
        Scheduler scheduler(world.domain, {.worker_count = 2});
        auto& source = scheduler.add<Source>(world.pool, endless);
        auto& pass = scheduler.add<Pass>();
        auto& custom = scheduler.add<Custom>(
            1, 0, [](Custom& self) { return self.ins[0].try_pop() ? WorkResult::progress : WorkResult::need_input; });
        scheduler.connect(source.out, pass.in);
        scheduler.connect(pass.out, custom.ins[0]);
        scheduler.start();
        wait_for([&] { return source.sent_count > 100; });
    }
    world.check();
}

TEST_CASE("draining ends the sources, and all that they sent arrives") {
    const unsigned worker_count = GENERATE(1U, 2U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        auto& source = scheduler.add<Source>(world.pool, endless);
        auto& pass = scheduler.add<Pass>();
        auto& sink = scheduler.add<Sink>();
        scheduler.connect(source.out, pass.in);
        scheduler.connect(pass.out, sink.in);
        scheduler.start();
        wait_for([&] { return sink.count > 1000; });
        scheduler.drain();
        scheduler.wait();
        CHECK(sink.numbers == numbers_up_to(source.sent_count));
    }
    world.check();
}

TEST_CASE("a port that was bound by name keeps its messages when the scheduler drains, and its next life takes them") {
    World world;
    const weir::BindOptions queue{.port = {.capacity = 64, .when_unconsumed = weir::WhenUnconsumed::fill}};
    std::vector<std::uint64_t> numbers;
    weir::Producer keeps_open = world.domain.producer("queue", queue.port);
    {
        Scheduler scheduler(world.domain, {.name = "first"});
        auto& source = scheduler.add<Source>(world.pool, 50);
        source.out.bind("queue", queue);
        scheduler.run();
    }
    for (const char* name : {"second", "third"}) {
        Scheduler scheduler(world.domain, {.name = name});
        auto& custom = scheduler.add<Custom>(1, 0, [&](Custom& self) {
            const BufferPtr frame = self.ins[0].try_pop();
            if (!frame) {
                return WorkResult::need_input;
            }
            numbers.push_back(number_in(frame));
            if (numbers.size() == 20) {
                scheduler.drain();
                return WorkResult::need_input; // of the rest, what it pops after this is still its own
            }
            return WorkResult::progress;
        });
        custom.ins[0].bind("queue", queue);
        if (std::string(name) == "third") {
            scheduler.start();
            wait_for([&] { return custom.call_count >= 30; });
            scheduler.drain();
            scheduler.wait();
        } else {
            scheduler.run();
        }
    }
    CHECK(numbers == numbers_up_to(50));
    world.check();
}

TEST_CASE("a block that looks at the clock is called at that time and not before") {
    World world;
    Scheduler scheduler(world.domain);
    int tick_count = 0;
    weir::DeadlineNs due_ns = 0;
    auto& ticker = scheduler.add<Custom>(0, 0, [&](Custom& self) {
        const weir::DeadlineNs now_ns = weir::monotonic_ns();
        if (now_ns >= due_ns) {
            if (++tick_count == 20) {
                return WorkResult::done;
            }
            due_ns = now_ns + 2'000'000;
        }
        self.wake_at(due_ns);
        return WorkResult::need_input;
    });
    scheduler.run();
    CHECK(tick_count == 20);
    CHECK(ticker.call_count <= 40); // once for each tick, and perhaps once too early
}

TEST_CASE("a block that found nothing wanting is called once a re-check interval, and no oftener") {
    World world;
    Scheduler scheduler(world.domain);
    auto& idler = scheduler.add<Custom>(
        0, 0, [&](Custom& self) { return self.call_count == 10 ? WorkResult::done : WorkResult::need_input; });
    scheduler.run();
    CHECK(idler.call_count == 10);
    CHECK(scheduler.counters().rechecks >= 9);
}

TEST_CASE("blocks that wait are not called") {
    World world;
    weir::Producer keeps_open = world.domain.producer("quiet", test::small_port);
    Scheduler scheduler(world.domain, {.worker_count = 2});
    std::vector<Custom*> blocks;
    for (int number = 0; number < 100; ++number) {
        blocks.push_back(&scheduler.add<Custom>(1, 0, [](Custom& self) {
            static_cast<void>(self.ins[0].try_pop());
            return WorkResult::need_input;
        }));
        blocks.back()->ins[0].bind("quiet", {.port = test::small_port});
    }
    scheduler.start();
    wait_for([&] { return scheduler.counters().rechecks > 20; });
    scheduler.stop();
    scheduler.wait();
    for (const Custom* block : blocks) {
        CHECK(block->call_count <= 3);
    }
}

TEST_CASE("a pool that is empty is waited for, and blocks of another member take turns with it") {
    World world(2);
    Domain other = Domain::join(world.name, test::quick());
    std::vector<BufferPtr> held;
    BufferPool pool = other.pool("frames");
    while (BufferPtr buffer = pool.try_allocate()) {
        held.push_back(std::move(buffer));
    }
    {
        Scheduler scheduler(world.domain, {.worker_count = 2, .spin_count = 0});
        std::vector<Sink*> sinks;
        for (int number = 0; number < 3; ++number) {
            auto& source = scheduler.add<Source>(world.pool, 200);
            sinks.push_back(&scheduler.add<Sink>());
            scheduler.connect(source.out, sinks.back()->in);
        }
        scheduler.start();
        wait_for([&] { return scheduler.counters().sleeps >= 2; });
        held.clear();
        scheduler.wait();
        for (const Sink* sink : sinks) {
            CHECK(sink->numbers == numbers_up_to(200));
        }
    }
    world.check();
}

TEST_CASE("more words are waited for than one system call may be given") {
    World world(400);
    Domain other = Domain::join(world.name, test::quick());
    {
        Scheduler scheduler(world.domain, {.worker_count = 2});
        constexpr std::size_t port_count = 300;
        std::vector<Sink*> sinks;
        std::vector<weir::Producer> producers;
        for (std::size_t number = 0; number < port_count; ++number) {
            const std::string port = "port." + std::to_string(number);
            sinks.push_back(&scheduler.add<Sink>(3));
            sinks.back()->in.bind(port, {.port = {.capacity = 2}});
            producers.push_back(other.producer(port, {.capacity = 2}));
        }
        scheduler.start();
        BufferPool pool = other.pool("frames");
        for (std::uint64_t round = 0; round < 3; ++round) {
            for (std::size_t number = 0; number < port_count; ++number) {
                BufferPtr frame = pool.allocate();
                test::write_number(frame, round);
                REQUIRE(producers[number].push(std::move(frame)) == weir::PushResult::ok);
            }
            wait_for([&] { return std::ranges::all_of(sinks, [&](const Sink* sink) { return sink->count > round; }); });
        }
        scheduler.wait();
    }
    world.check();
}

TEST_CASE("a message whose pusher was killed before it told anyone is found by a re-check") {
    World world;
    Domain other = Domain::join(world.name, test::quick());
    weir::Producer producer = other.producer("silent", test::small_port);
    {
        Scheduler scheduler(world.domain);
        auto& sink = scheduler.add<Sink>(1);
        sink.in.bind("silent", {.port = test::small_port});
        scheduler.start();
        wait_for([&] { return scheduler.counters().sleeps > 0; });
        BufferPtr frame = other.pool("frames").allocate();
        test::write_number(frame, std::uint64_t{0});
        weir::PortView& port = *producer.view();
        std::uint64_t position = 0;
        bool looks_first = false;
        weir::PortView::Failure failure;
        REQUIRE(port.enqueue(position, frame.pool()->reference(frame.index(), frame.reference()),
                             weir::PortView::name_of(*frame.pool(), frame.index(), frame.reference()), looks_first,
                             failure, [] {}) == weir::RingStatus::ok);
        frame.forget();
        scheduler.wait();
        CHECK(sink.numbers == numbers_up_to(1));
    }
    world.check();
}

TEST_CASE("edges that drop the oldest and edges that refuse never hold their producer up") {
    const weir::WhenFull when_full = GENERATE(weir::WhenFull::drop_oldest, weir::WhenFull::refuse);
    World world;
    {
        Scheduler scheduler(world.domain);
        auto& source = scheduler.add<Source>(world.pool, 1000);
        bool is_open = false;
        auto& gate = scheduler.add<Custom>(1, 0, [&](Custom& self) {
            if (!is_open) {
                is_open = source.sent_count == 1000;
                self.wake_at(weir::monotonic_ns() + 100'000);
                return WorkResult::need_input;
            }
            return self.ins[0].try_pop() ? WorkResult::progress : WorkResult::need_input;
        });
        scheduler.connect(source.out, gate.ins[0], {.capacity = 4, .when_full = when_full});
        scheduler.run();
        CHECK(source.sent_count == 1000);
    }
    world.check();
}

TEST_CASE("two memberships that run schedulers of one name do not meet in their edges") {
    World world;
    Domain other = Domain::join(world.name, test::quick());
    BufferPool other_pool = other.pool("frames");
    {
        std::array<Scheduler, 2> schedulers{Scheduler(world.domain, {.name = "twin"}),
                                            Scheduler(other, {.name = "twin"})};
        std::array<Sink*, 2> sinks{};
        for (std::size_t number = 0; number < 2; ++number) {
            auto& source = schedulers[number].add<Source>(number == 0 ? world.pool : other_pool, 5000);
            sinks[number] = &schedulers[number].add<Sink>();
            schedulers[number].connect(source.out, sinks[number]->in);
            schedulers[number].start();
        }
        for (std::size_t number = 0; number < 2; ++number) {
            schedulers[number].wait();
            CHECK(sinks[number]->numbers == numbers_up_to(5000));
        }
        CHECK(sinks[0]->in.port_name() == "twin.Sink.in");
        CHECK(sinks[1]->in.port_name() == "twin.Sink.in.2");
    }
    {
        Scheduler scheduler(other, {.name = "twin"}); // the names are free again
        auto& source = scheduler.add<Source>(other_pool, 1);
        auto& sink = scheduler.add<Sink>();
        scheduler.connect(source.out, sink.in);
        scheduler.run();
        CHECK(sink.in.port_name() == "twin.Sink.in");
    }
    world.check();
}

TEST_CASE("what was queued in the edges of a scheduler whose process was killed is delivered in its next life") {
    World world;
    test::Victim victim([&](auto&& ready) {
        Domain domain = Domain::join(world.name, test::quick());
        Scheduler scheduler(domain, {.name = "phoenix"});
        auto& source = scheduler.add<Source>(domain.pool("frames"), 5);
        auto& sink = scheduler.add<Custom>(
            1, 0, [](Custom&) { return WorkResult::need_input; }, "sink");
        scheduler.connect(source.out, sink.ins[0]);
        scheduler.start();
        wait_for([&] { return source.sent_count == 5; });
        ready();
    });
    victim.kill();
    {
        Scheduler scheduler(world.domain, {.name = "phoenix"});
        auto& source = scheduler.add<Source>(world.pool, 5, 5);
        std::vector<std::uint64_t> numbers;
        auto& sink = scheduler.add<Custom>(
            1, 0,
            [&](Custom& self) {
                const BufferPtr frame = self.ins[0].try_pop();
                if (frame) {
                    numbers.push_back(number_in(frame));
                }
                return frame ? WorkResult::progress : WorkResult::need_input;
            },
            "sink");
        scheduler.connect(source.out, sink.ins[0]);
        scheduler.run();
        CHECK(numbers == numbers_up_to(10));
    }
    world.check();
}

TEST_CASE("an input whose producer's process is killed ends, or waits for the next one where it was bound so") {
    const bool waits = GENERATE(false, true);
    World world;
    const auto send = [&](std::uint64_t first) {
        return test::Victim([&world, first](auto&& ready) {
            Domain domain = Domain::join(world.name, test::quick());
            weir::Producer out = domain.producer("raw", test::small_port);
            BufferPool pool = domain.pool("frames");
            for (std::uint64_t number = first; number < first + 5; ++number) {
                BufferPtr frame = pool.allocate();
                test::write_number(frame, number);
                out.push(std::move(frame));
            }
            ready();
        });
    };
    {
        test::Victim first = send(0);
        Scheduler scheduler(world.domain);
        auto& sink = scheduler.add<Sink>(waits ? 10 : 1000);
        sink.in.bind("raw", {.port = test::small_port, .waits_for_producers = waits});
        scheduler.start();
        wait_for([&] { return sink.count == 5; });
        first.kill();
        if (waits) {
            wait_for(
                [&, before = scheduler.counters().rechecks] { return scheduler.counters().rechecks > before + 5; });
            test::Victim second = send(5);
            scheduler.wait();
            second.kill();
        } else {
            scheduler.wait();
        }
        CHECK(sink.numbers == numbers_up_to(waits ? 10 : 5));
    }
    world.domain.reap();
    world.check();
}

TEST_CASE("an output whose last consumer is killed ends its block, or fills the port for the next one") {
    const bool fills = GENERATE(false, true);
    World world;
    const weir::PortOptions options{
        .capacity = 8, .when_unconsumed = fills ? weir::WhenUnconsumed::fill : weir::WhenUnconsumed::close};
    test::Victim victim([&](auto&& ready) {
        Domain domain = Domain::join(world.name, test::quick());
        weir::Consumer in = domain.consumer("raw", options);
        ready();
    });
    {
        Scheduler scheduler(world.domain);
        auto& source = scheduler.add<Source>(world.pool, fills ? 100 : endless);
        source.out.bind("raw", {.port = options});
        scheduler.start();
        wait_for([&] { return source.sent_count >= 8; });
        victim.kill();
        if (fills) {
            weir::Consumer in = world.domain.consumer("raw");
            for (std::uint64_t number = 0; number < 100; ++number) {
                CHECK(number_in(in.pop()) == number);
            }
        }
        scheduler.wait();
    }
    {
        weir::Consumer rest = world.domain.consumer("raw");
        while (rest.try_pop()) {
        }
    }
    world.check();
}

TEST_CASE("workers run on the CPUs that they were given, and blocks in the workers that they were assigned to") {
    World world;
    cpu_set_t allowed;
    REQUIRE(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
    std::vector<unsigned> cpus;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (CPU_ISSET(cpu, &allowed)) {
            cpus.push_back(cpu);
        }
    }
    Scheduler scheduler(world.domain, {.worker_count = 2, .cpus = cpus});
    std::array<int, 3> ran_on{};
    std::array<std::thread::id, 3> threads;
    for (std::size_t number = 0; number < 3; ++number) {
        auto& block = scheduler.add<Custom>(0, 0, [&, number](Custom&) {
            ran_on[number] = sched_getcpu();
            threads[number] = std::this_thread::get_id();
            return WorkResult::done;
        });
        scheduler.assign(block, number == 1 ? 1 : 0);
    }
    scheduler.run();
    CHECK(ran_on[0] == static_cast<int>(cpus[0]));
    CHECK(ran_on[1] == static_cast<int>(cpus[1 % cpus.size()]));
    CHECK(threads[0] == threads[2]);
    CHECK(threads[0] != threads[1]);
}

TEST_CASE("requests are carried out beside the blocks, and a pipe that nobody writes to holds nobody up") {
    World world;
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    const int zeros = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    {
        Scheduler scheduler(world.domain);
        std::array<std::byte, 64> from_pipe{};
        std::array<std::byte, 64> from_zeros{};
        from_zeros.fill(std::byte{1});
        weir::IoRequest slow;
        slow.descriptor = ends[0];
        slow.offset = -1;
        slow.bytes = from_pipe;
        weir::IoRequest fast = slow;
        fast.descriptor = zeros;
        fast.bytes = from_zeros;
        auto& reader = scheduler.add<Custom>(0, 0, [&](Custom& self) {
            if (self.call_count == 1) {
                self.submit(slow);
                self.submit(fast);
            }
            return slow.is_done ? WorkResult::done : WorkResult::need_input;
        });
        scheduler.start();
        wait_for([&] { return reader.call_count >= 2; });
        scheduler.stop();
        scheduler.wait();
        CHECK(fast.is_done);
        CHECK(fast.result == 64);
        CHECK(from_zeros == std::array<std::byte, 64>{});
        CHECK_FALSE(slow.is_done); // cancelled, and submitted again by the next start
        scheduler.start();
        CHECK(write(ends[1], "hello", 5) == 5);
        scheduler.wait();
        CHECK(slow.result == 5);
        CHECK(std::memcmp(from_pipe.data(), "hello", 5) == 0);
        CHECK(scheduler.counters().requests >= 3);
    }
    close(zeros);
    close(ends[0]);
    close(ends[1]);
}

TEST_CASE("a block that throws with a request in flight is finished when that has ended") {
    World world;
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    {
        Scheduler scheduler(world.domain);
        std::array<std::byte, 64> bytes{};
        weir::IoRequest request;
        request.descriptor = ends[0];
        request.offset = -1;
        request.bytes = bytes;
        auto& reader = scheduler.add<Custom>(0, 0, [&](Custom& self) -> WorkResult {
            self.submit(request);
            throw std::runtime_error("too early");
        });
        CHECK_THROWS_AS(scheduler.run(), weir::BlockError);
        CHECK(request.is_done);
        CHECK(request.result == -ECANCELED);
        CHECK(reader.finish_count == 1);
    }
    close(ends[0]);
    close(ends[1]);
}

TEST_CASE("a message that waits for room is sent when there is some, also where its block waits for something else") {
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = 2});
        // Looks at its input first, and so never asks its output again.
        const auto reply = [](Custom& self) {
            BufferPtr frame = self.ins[0].try_pop();
            if (!frame) {
                return WorkResult::need_input;
            }
            if (!self.outs[0].is_ready()) {
                throw std::logic_error("there was room for all");
            }
            self.outs[0].push(std::move(frame));
            return WorkResult::progress;
        };
        std::uint64_t reply_count = 0;
        std::uint64_t sent_count = 0;
        auto& asker = scheduler.add<Custom>(1, 1, [&](Custom& self) {
            if (sent_count < 3 && self.outs[0].is_ready()) {
                ++sent_count;
                self.outs[0].push(world.pool.try_allocate());
                return WorkResult::progress;
            }
            if (!self.ins[0].try_pop()) {
                return WorkResult::need_input;
            }
            ++reply_count;
            return WorkResult::progress;
        });
        auto& echo = scheduler.add<Custom>(1, 1, reply);
        scheduler.connect(asker.outs[0], echo.ins[0], {.capacity = 2});
        scheduler.connect(echo.outs[0], asker.ins[0], {.capacity = 2});
        scheduler.run();
        CHECK(sent_count == 3);
        CHECK(reply_count == 3);
    }
    world.check();
}

TEST_CASE("a cycle has ended also where a worker has no blocks, and what its blocks send at the end arrives") {
    const unsigned worker_count = GENERATE(1U, 3U);
    World world;
    {
        Scheduler scheduler(world.domain, {.worker_count = worker_count});
        bool has_begun = false;
        auto& first = scheduler.add<Custom>(1, 1, [&](Custom& self) {
            if (!has_begun) {
                has_begun = true;
                self.outs[0].push(world.pool.try_allocate());
            }
            return self.ins[0].try_pop() ? WorkResult::progress : WorkResult::need_input;
        });
        auto& second = scheduler.add<Custom>(1, 2, [&](Custom& self) {
            BufferPtr frame = self.ins[0].try_pop();
            if (frame) {
                self.outs[0].push(std::move(frame));
                return WorkResult::progress;
            }
            if (self.ins[0].is_at_end()) {
                BufferPtr last = world.pool.try_allocate();
                test::write_number(last, std::uint64_t{0});
                self.outs[1].push(std::move(last));
                return WorkResult::done;
            }
            return WorkResult::need_input;
        });
        auto& sink = scheduler.add<Sink>();
        scheduler.connect(first.outs[0], second.ins[0]);
        scheduler.connect(second.outs[0], first.ins[0]);
        scheduler.connect(second.outs[1], sink.in);
        for (Block* block : std::initializer_list<Block*>{&first, &second, &sink}) {
            scheduler.assign(*block, 0);
        }
        scheduler.run();
        CHECK(sink.numbers == numbers_up_to(1));
    }
    world.check();
}

TEST_CASE("a scheduler that waits for messages from outside does not end for want of them") {
    const bool has_producer = GENERATE(false, true); // of the same membership, or none yet
    World world;
    std::optional<weir::Producer> out;
    if (has_producer) {
        out.emplace(world.domain.producer("raw", test::small_port));
    }
    {
        Scheduler scheduler(world.domain, {.worker_count = 2});
        auto& sink = scheduler.add<Sink>(1);
        sink.in.bind("raw", {.port = test::small_port, .waits_for_producers = !has_producer});
        scheduler.start();
        wait_for([&] { return scheduler.counters().rechecks > 10; });
        CHECK(scheduler.is_running());
        if (!out) {
            out.emplace(world.domain.producer("raw", test::small_port));
        }
        BufferPtr frame = world.pool.allocate();
        test::write_number(frame, std::uint64_t{0});
        CHECK(out->push(std::move(frame)) == weir::PushResult::ok);
        scheduler.wait();
        CHECK(sink.numbers == numbers_up_to(1));
    }
    world.check();
}

TEST_CASE("an input that was at its end stays there, and its block waits on for the other one") {
    World world;
    {
        Scheduler scheduler(world.domain);
        auto& two = scheduler.add<Custom>(2, 0, [](Custom& self) {
            const bool has_any = self.ins[0].try_pop() || self.ins[1].try_pop();
            return has_any ? WorkResult::progress : WorkResult::need_input;
        });
        std::optional<weir::Producer> first = world.domain.producer("first", test::small_port);
        std::optional<weir::Producer> second = world.domain.producer("second", test::small_port);
        two.ins[0].bind("first", {.port = test::small_port});
        two.ins[1].bind("second", {.port = test::small_port});
        scheduler.start();
        first.reset();
        const auto wait_a_while = [&] {
            wait_for(
                [&, before = scheduler.counters().rechecks] { return scheduler.counters().rechecks > before + 5; });
        };
        wait_a_while();
        first.emplace(world.domain.producer("first"));
        wait_a_while();
        CHECK(scheduler.is_running());
        CHECK(two.call_count < 20);
        second.reset();
        scheduler.wait();
    }
    world.check();
}

TEST_CASE("draining ends also an input that is filled faster than it is emptied") {
    World world;
    Domain other = Domain::join(world.name, test::quick());
    std::atomic<bool> is_over{false};
    std::thread feeder([&] {
        BufferPool pool = other.pool("frames");
        weir::Producer out = other.producer("raw", test::small_port);
        while (!is_over) {
            if (BufferPtr frame = pool.try_allocate()) {
                static_cast<void>(out.try_push(std::move(frame)));
            }
        }
    });
    {
        Scheduler scheduler(world.domain);
        auto& sink = scheduler.add<Custom>(
            1, 0, [](Custom& self) { return self.ins[0].try_pop() ? WorkResult::progress : WorkResult::need_input; });
        sink.ins[0].bind("raw", {.port = test::small_port});
        scheduler.start();
        wait_for([&] { return sink.call_count > 1000; });
        scheduler.drain();
        scheduler.wait();
    }
    is_over = true;
    feeder.join();
    weir::Consumer rest = world.domain.consumer("raw");
    while (rest.try_pop()) {
    }
    world.check();
}

TEST_CASE("an output that is pushed to while it is not ready is an error that names the block") {
    World world;
    {
        Scheduler scheduler(world.domain);
        auto& hasty = scheduler.add<Custom>(
            0, 1,
            [&](Custom& self) {
                for (int number = 0; number < 4; ++number) {
                    self.outs[0].push(world.pool.try_allocate());
                }
                return WorkResult::done;
            },
            "hasty");
        auto& sink = scheduler.add<Custom>(
            1, 0, [](Custom& self) { return self.ins[0].try_pop() ? WorkResult::progress : WorkResult::need_input; });
        scheduler.connect(hasty.outs[0], sink.ins[0], {.capacity = 2});
        CHECK_THROWS_AS(scheduler.run(), weir::BlockError);
        CHECK(sink.call_count >= 3); // the three that it sent before
    }
    world.check();
}

TEST_CASE("a stop that comes before the start is not forgotten, and after a start that failed the next one works") {
    World world;
    Scheduler scheduler(world.domain, {.worker_count = 2});
    auto& sink = scheduler.add<Sink>(1);
    sink.in.bind("raw"); // which is not there yet
    CHECK(test::error_of([&] { scheduler.start(); }) == weir::errc::not_found);
    CHECK_FALSE(scheduler.is_running());
    weir::Producer out = world.domain.producer("raw", test::small_port);
    scheduler.stop();
    scheduler.start();
    scheduler.wait();
    CHECK(sink.numbers.empty());
    BufferPtr frame = world.pool.allocate();
    test::write_number(frame, std::uint64_t{0});
    CHECK(out.push(std::move(frame)) == weir::PushResult::ok);
    scheduler.run();
    CHECK(sink.numbers == numbers_up_to(1));
}

TEST_CASE("a block that takes long keeps neither timers nor messages of others waiting for many of its calls") {
    World world;
    Scheduler scheduler(world.domain);
    std::atomic<std::uint64_t> slow_count{0};
    auto& slow = scheduler.add<Custom>(0, 0, [&](Custom&) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        ++slow_count;
        return WorkResult::progress;
    });
    std::uint64_t calls_at_most = 0;
    std::uint64_t due_at_call = 0;
    weir::DeadlineNs due_ns = 0;
    int tick_count = 0;
    scheduler.add<Custom>(0, 0, [&](Custom& self) {
        const weir::DeadlineNs now_ns = weir::monotonic_ns();
        if (now_ns >= due_ns) {
            if (tick_count++ > 5) { // it has learnt by then how long the other one takes
                calls_at_most = std::max(calls_at_most, slow_count - due_at_call);
            }
            if (tick_count == 20) {
                scheduler.stop();
                return WorkResult::done;
            }
            due_ns = now_ns + 100'000;
            due_at_call = slow_count;
        }
        self.wake_at(due_ns);
        return WorkResult::need_output;
    });
    scheduler.run();
    CHECK(calls_at_most <= 4);
    CHECK(slow.call_count >= 1);
}

TEST_CASE("what cannot be is refused with what to do, and nothing has changed") {
    World world;
    CHECK(test::error_of([&] { Scheduler(world.domain, {.worker_count = 0}); }) == weir::errc::invalid_size);
    CHECK(test::error_of([&] { Scheduler(world.domain, {.worker_count = 257}); }) == weir::errc::invalid_size);
    CHECK(test::error_of([&] { Scheduler(world.domain, {.name = "a/b"}); }) == weir::errc::invalid_name);
    Scheduler scheduler(world.domain);
    Scheduler stranger(world.domain);
    auto& source = scheduler.add<Source>(world.pool, 10);
    auto& sink = scheduler.add<Sink>();
    auto& strange = stranger.add<Sink>();
    CHECK_THROWS_AS(scheduler.connect(source.out, strange.in), std::invalid_argument);
    CHECK_THROWS_AS(scheduler.assign(sink, 1), std::invalid_argument);
    CHECK_THROWS_AS(scheduler.assign(strange, 0), std::invalid_argument);
    CHECK_THROWS_AS(stranger.start(), std::invalid_argument); // an input without an edge
    CHECK(test::error_of([&] { scheduler.connect(source.out, sink.in, {.capacity = 3}); }) ==
          weir::errc::invalid_capacity);
    scheduler.connect(source.out, sink.in);
    CHECK_THROWS_AS(scheduler.connect(source.out, sink.in), std::invalid_argument);
    scheduler.run();
    CHECK(sink.numbers == numbers_up_to(10));
    CHECK_THROWS_AS(scheduler.add<Sink>(), std::logic_error);
    CHECK_THROWS_AS(scheduler.connect(source.out, sink.in), std::invalid_argument);

    Scheduler elsewhere(world.domain, {.cpus = {100'000}});
    elsewhere.add<Custom>(0, 0, [](Custom&) { return WorkResult::done; });
    CHECK_THROWS_AS(elsewhere.run(), std::system_error);
}

TEST_CASE("a scheduler without blocks ends at once") {
    World world;
    Scheduler scheduler(world.domain, {.worker_count = 3});
    scheduler.run();
}

TEST_CASE("in a forked child an inherited scheduler throws, and its destructor ends nothing") {
    World world;
    auto scheduler = std::make_unique<Scheduler>(world.domain, weir::SchedulerOptions{.worker_count = 2});
    auto& source = scheduler->add<Source>(world.pool, endless);
    auto& sink = scheduler->add<Sink>();
    scheduler->connect(source.out, sink.in);
    if (!test::is_sanitized) {
        scheduler->start();
        wait_for([&] { return source.sent_count > 1000; });
    }
    test::Child child([&] {
        const auto throws = [](auto&& call) { return test::error_of(call) == weir::errc::used_after_fork; };
        if (!throws([&] { scheduler->start(); }) || !throws([&] { scheduler->wait(); }) ||
            !throws([&] { scheduler->run(); })) {
            test::fail_child("an inherited scheduler was used");
        }
        scheduler->stop();
        scheduler.reset();
    });
    const test::ChildEnd end = child.wait();
    CHECK(end.succeeded());
    CHECK(end.said == "");
    if (!test::is_sanitized) {
        const std::uint64_t before = source.sent_count;
        wait_for([&] { return source.sent_count > before + 1000; });
    }
    scheduler.reset();
    world.check();
}
