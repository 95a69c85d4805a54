// Schedulers, threads and rings at once, in one process, for ThreadSanitizer.
//
//     streams [--rounds 4000]
//
// One domain. A scheduler lives again and again: a source, a map and a tee stream messages through its workers into ports of
// each policy, and a sink takes what others push; it is stopped and started again on the way, and counted. Other threads push
// to its input and pop from its outputs, one reaps and checks without a pause, and once a life another process joins, takes
// buffers and dies. Beside them threads hand slots around in rings: both ends shared, both exclusive, and one of each; one by
// one and in batches.
//
// Payloads are written and verified with plain loads and stores: a happens-before that is missing is a data race. The other
// process does not write to any, because ThreadSanitizer does not see how it got there. `rounds` is how many messages
// sources and pushers send, and about as many go through each pair of rings.
#include "payload.hpp"

#include "../domain_testing.hpp"

#include <weir/blocks.hpp>
#include <weir/scheduler.hpp>

#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <thread>

#include <spawn.h>

using namespace std::chrono_literals;
using namespace weir;
using namespace stress;

namespace {

constexpr PoolOptions pool_options{.buffer_bytes = sizeof(Payload), .buffer_count = 64, .references_per_buffer = 12};
constexpr const char* pool_name = "buffers";
constexpr PortOptions in_options{.capacity = 8, .when_unconsumed = WhenUnconsumed::fill};
constexpr const char* in_name = "in";
constexpr std::size_t out_count = 3;
constexpr std::array<PortOptions, out_count> out_options{{
    {.capacity = 8, .when_full = WhenFull::wait, .when_unconsumed = WhenUnconsumed::fill},
    {.capacity = 4, .when_full = WhenFull::refuse, .when_unconsumed = WhenUnconsumed::fill},
    {.capacity = 4, .when_full = WhenFull::drop_oldest, .when_unconsumed = WhenUnconsumed::fill, .time_stamps = true},
}};
constexpr std::uint32_t messages_per_life = 200;
constexpr std::uint32_t source_writer = 100;

std::string out_name(std::size_t number) {
    return "out" + std::to_string(number);
}

void verify(const BufferPtr& buffer) {
    if (!payload_of(buffer).is_whole()) {
        fail("a torn payload of %x, number %u", payload_of(buffer).writer, payload_of(buffer).number);
    }
}

/// That each writer's messages come in their order, though some may be missing.
class Order {
public:
    void note(const BufferPtr& buffer) {
        verify(buffer);
        const Payload& payload = payload_of(buffer);
        const auto [last, is_first] = last_.try_emplace(payload.writer, payload.number);
        if (!is_first) {
            if (payload.number <= last->second) {
                fail("of writer %u came %u after %u", payload.writer, payload.number, last->second);
            }
            last->second = payload.number;
        }
        ++count_;
    }
    [[nodiscard]] std::uint64_t count() const { return count_; }

private:
    std::map<std::uint32_t, std::uint32_t> last_;
    std::uint64_t count_ = 0;
};

// ---- The scheduler -----------------------------------------------------------------------------------------

class Source final : public Block {
public:
    Source(BufferPool pool, std::uint32_t& number, std::atomic<bool>& has_ended)
        : Block("source"), pool_(*this, std::move(pool)), number_(number), last_(number + messages_per_life),
          has_ended_(has_ended) {}

    OutputPort out{*this, "out"};

    WorkResult work() override {
        if (number_ == last_) {
            // relaxed: a hint that it is time to end
            has_ended_.store(true, std::memory_order_relaxed);
            return WorkResult::done;
        }
        if (!out.is_ready()) {
            return WorkResult::need_output;
        }
        BufferPtr buffer = pool_.try_allocate();
        if (!buffer) {
            return WorkResult::need_output;
        }
        Payload& payload = payload_of(buffer);
        payload.write(source_writer, number_);
        out.push(std::move(buffer));
#if defined(WEIR_SEEDED_RACE)
        // The same bytes, in a buffer that is not this block's any more.
        *static_cast<volatile std::uint32_t*>(&payload.words[0]) = payload.words[0];
#endif
        ++number_;
        return WorkResult::progress;
    }

private:
    PoolPort pool_;
    std::uint32_t& number_;
    std::uint32_t last_;
    std::atomic<bool>& has_ended_;
};

/// Takes what the pushers send.
class Sink final : public Block {
public:
    explicit Sink(Order& order) : Block("sink"), order_(order) {}

    InputPort in{*this, "in"};

    WorkResult work() override {
        std::array<BufferPtr, 3> buffers;
        const std::size_t count = in.try_pop(buffers);
        for (std::size_t place = 0; place < count; ++place) {
            order_.note(buffers[place]);
        }
        return count == 0 ? WorkResult::need_input : WorkResult::progress;
    }

private:
    Order& order_;
};

/// Joins, takes what it can get, and dies: without a destructor, and without writing to any buffer.
int be_victim(const char* name) {
    Domain domain = Domain::join(name, test::quick());
    BufferPool pool = domain.pool(pool_name);
    Producer out = domain.producer(in_name);
    std::vector<BufferPtr> held;
    while (held.size() < 3) {
        held.push_back(pool.allocate_for(1ms));
    }
    _exit(0);
}

void run_victim(const test::Name& name) {
    std::string program = "/proc/self/exe";
    std::string verb = "--victim";
    std::string domain = name.text();
    char* arguments[] = {program.data(), verb.data(), domain.data(), nullptr};
    pid_t pid = 0;
    int status = 0;
    if (posix_spawn(&pid, program.c_str(), nullptr, nullptr, arguments, environ) != 0 ||
        waitpid(pid, &status, 0) != pid || status != 0) {
        fail("the other process ended with status %d", status);
    }
}

/// One life of a scheduler. Returns how often it was stopped on the way.
unsigned live(const test::Name& name, const Domain& domain, const BufferPool& pool, test::Random& random,
              std::uint32_t& number, Order& pushed) {
    std::atomic<bool> has_ended{false};
    unsigned stop_count = 0;
    const unsigned worker_count = 1 + random.below(3U);
    Scheduler scheduler(domain, {.name = "streams", .worker_count = worker_count});
    auto& source = scheduler.add<Source>(pool, number, has_ended);
    auto& map = scheduler.add<Map>([](BufferPtr& buffer) {
        verify(buffer);
        payload_of(buffer).write(source_writer, payload_of(buffer).number);
    });
    auto& tee = scheduler.add<Tee>(static_cast<unsigned>(out_count));
    auto& sink = scheduler.add<Sink>(pushed);
    for (Block* block : std::initializer_list<Block*>{&source, &map, &tee, &sink}) {
        scheduler.assign(*block, random.below(worker_count));
    }
    scheduler.connect(source.out, map.in);
    scheduler.connect(map.out, tee.in, {.capacity = 4});
    for (std::size_t out = 0; out < out_count; ++out) {
        tee.out[out].bind(out_name(out), {.port = out_options[out]});
    }
    sink.in.bind(in_name, {.port = in_options, .waits_for_producers = true});
    scheduler.start();
    run_victim(name);
    // relaxed: as where it is stored
    while (!has_ended.load(std::memory_order_relaxed)) {
        static_cast<void>(scheduler.counters());
        std::this_thread::sleep_for(std::chrono::microseconds(random.below(2000)));
        if (random.one_in(3)) {
            scheduler.stop();
            scheduler.wait();
            scheduler.start();
            ++stop_count;
        }
    }
    scheduler.drain();
    scheduler.wait();
    return stop_count;
}

// ---- Other threads at its ports ----------------------------------------------------------------------------

void push_all(Domain& domain, BufferPool pool, std::uint32_t writer, unsigned round_count) {
    test::Random random(test::seed() + writer);
    std::optional<Producer> out(domain.producer(in_name, in_options));
    for (std::uint32_t number = 0; number < round_count;) {
        std::vector<BufferPtr> batch;
        const std::size_t wanted = 1 + random.below(3U);
        while (batch.size() < wanted) {
            batch.push_back(pool.allocate());
            payload_of(batch.back()).write(writer, number + static_cast<std::uint32_t>(batch.size()));
        }
        const std::size_t count = random.one_in(2) ? out->try_push(batch) : out->push(batch);
        if (out->last_error()) {
            fail("push: %s", out->last_error().message().c_str());
        }
        number += static_cast<std::uint32_t>(count);
        if (random.one_in(50)) {
            out.emplace(domain.producer(in_name));
        }
    }
}

/// Takes from all outputs, and keeps some messages for a while, until the source will send nothing more.
std::uint64_t pop_all(Domain& domain, const std::atomic<bool>& is_over, std::uint32_t id) {
    test::Random random(test::seed() + id);
    std::vector<Consumer> ins;
    std::vector<Order> orders(out_count); // of this handle: several take from each port
    std::deque<BufferPtr> kept;
    std::uint64_t count = 0;
    for (std::size_t out = 0; out < out_count; ++out) {
        ins.push_back(domain.consumer(out_name(out), out_options[out]));
    }
    for (;;) {
        // relaxed: what is still to come is waited for below
        const bool is_last = is_over.load(std::memory_order_relaxed);
        bool has_any = false;
        for (std::size_t out = 0; out < out_count; ++out) {
            BufferPtr buffer = random.one_in(2) ? ins[out].try_pop() : ins[out].pop_for(200us);
            if (ins[out].last_error()) {
                fail("pop: %s", ins[out].last_error().message().c_str());
            }
            if (buffer) {
                orders[out].note(buffer);
                has_any = true;
                ++count;
                if (random.one_in(4)) {
                    kept.push_back(random.one_in(2) ? buffer.clone() : buffer);
                }
            }
        }
        while (kept.size() > 4 || (!kept.empty() && random.one_in(3))) {
            if (kept.front()) {
                verify(kept.front());
            }
            kept.pop_front();
        }
        if (is_last && !has_any) {
            return count;
        }
    }
}

unsigned check_all(Domain& domain, const std::atomic<bool>& is_over) {
    unsigned look_count = 0;
    // relaxed: one look more or less
    for (; !is_over.load(std::memory_order_relaxed); ++look_count) {
        for (const std::string& broken : domain.check(nullptr, CheckMode::live)) {
            fail("a live domain is broken: %s", broken.c_str());
        }
        if (const ReapReport report = domain.reap(); report.error) {
            fail("reaping: %s", report.note.c_str());
        }
        static_cast<void>(domain.members());
    }
    return look_count;
}

// ---- Rings -------------------------------------------------------------------------------------------------

/// Slots that go around: free ones through one ring, written ones through the other.
struct RingPair {
    static constexpr std::uint32_t slot_count = 8;

    test::Memory free_memory{Ring::bytes(slot_count)};
    test::Memory full_memory{Ring::bytes(slot_count)};
    Ring free{free_memory.span(), slot_count};
    Ring full{full_memory.span(), slot_count};
    std::array<Payload, slot_count> slots{};
};

template <class Handle>
void push_slots(Handle& out, test::Random& random, std::span<const std::uint32_t> slots) {
    while (!slots.empty()) {
        std::size_t count = 0;
        if (random.one_in(2)) {
            count = out.try_push(slots);
        } else if (const RingStatus status = out.try_push(slots[0]); status == RingStatus::ok) {
            count = 1;
        } else if (status == RingStatus::corrupt) {
            fail("a ring is corrupt");
        }
        slots = slots.subspan(count);
        if (count == 0) {
            std::this_thread::yield();
        }
    }
}

template <class Handle>
std::span<std::uint32_t> pop_slots(Handle& in, test::Random& random, std::array<std::uint32_t, 3>& slots) {
    if (random.one_in(2)) {
        return std::span(slots).first(in.try_pop(std::span(slots)));
    }
    const RingStatus status = in.try_pop(slots[0]);
    if (status == RingStatus::corrupt) {
        fail("a ring is corrupt");
    }
    return std::span(slots).first(status == RingStatus::ok ? 1 : 0);
}

/// Takes slots from one ring, writes to them or verifies them, and hands them on. `left` is how many in all threads of a side.
template <class Consumer, class Producer>
void hand_on(RingPair& pair, bool is_writer, std::uint32_t id, std::atomic<std::int64_t>& left) {
    test::Random random(test::seed() + id);
    Consumer in(is_writer ? pair.free : pair.full);
    Producer out(is_writer ? pair.full : pair.free);
    std::array<std::uint32_t, 3> taken{};
    std::uint32_t number = 0;
    // relaxed: a count that hands nothing over
    while (left.load(std::memory_order_relaxed) > 0) {
        const std::span<std::uint32_t> slots = pop_slots(in, random, taken);
        for (const std::uint32_t slot : slots) {
            if (is_writer) {
                pair.slots[slot].write(id, ++number);
            } else if (!pair.slots[slot].is_whole()) {
                fail("slot %u is torn", slot);
            }
        }
        // relaxed: as above
        left.fetch_sub(static_cast<std::int64_t>(slots.size()), std::memory_order_relaxed);
        push_slots(out, random, slots);
        if (slots.empty()) {
            std::this_thread::yield();
        }
    }
}

/// `count` threads on either side of a pair.
template <class FreeConsumer, class FullProducer, class FullConsumer, class FreeProducer>
void start_pair(std::vector<std::thread>& threads, RingPair& pair, std::uint32_t count, std::uint32_t first_id,
                std::atomic<std::int64_t>& left) {
    RingProducer free(pair.free);
    for (std::uint32_t slot = 0; slot < RingPair::slot_count; ++slot) {
        static_cast<void>(free.try_push(slot));
    }
    for (std::uint32_t number = 0; number < count; ++number) {
        threads.emplace_back(
            [&pair, &left, id = first_id + number] { hand_on<FreeConsumer, FullProducer>(pair, true, id, left); });
        threads.emplace_back([&pair, &left, id = first_id + 10 + number] {
            hand_on<FullConsumer, FreeProducer>(pair, false, id, left);
        });
    }
}

} // namespace

int main(int argument_count, char** arguments) {
    if (argument_count == 3 && std::strcmp(arguments[1], "--victim") == 0) {
        return be_victim(arguments[2]);
    }
    const unsigned round_count = option(argument_count, arguments, "--rounds", 4000);
    set_watchdog(round_count);
    test::Random random(test::seed());

    const test::Name name;
    Domain domain = Domain::join(name, test::quick());
    const BufferPool pool = domain.pool(pool_name, pool_options);
    static_cast<void>(domain.port(in_name, in_options));
    std::atomic<bool> is_over{false};

    std::vector<std::thread> ring_threads;
    RingPair shared_pair;
    RingPair exclusive_pair;
    RingPair mixed_pair;
    std::atomic<std::int64_t> shared_left{2 * std::int64_t{round_count}};
    std::atomic<std::int64_t> exclusive_left{2 * std::int64_t{round_count}};
    std::atomic<std::int64_t> mixed_left{2 * std::int64_t{round_count}};
    start_pair<RingConsumer, RingProducer, RingConsumer, RingProducer>(ring_threads, shared_pair, 2, 1000, shared_left);
    start_pair<ExclusiveRingConsumer, ExclusiveRingProducer, ExclusiveRingConsumer, ExclusiveRingProducer>(
        ring_threads, exclusive_pair, 1, 2000, exclusive_left);
    // One writer, and several who read what it wrote.
    start_pair<ExclusiveRingConsumer, ExclusiveRingProducer, RingConsumer, RingProducer>(ring_threads, mixed_pair, 1,
                                                                                         3000, mixed_left);
    ring_threads.emplace_back([&] { hand_on<RingConsumer, RingProducer>(mixed_pair, false, 3020, mixed_left); });
    std::thread ring_checker([&] {
        // relaxed: one look more or less
        while (!is_over.load(std::memory_order_relaxed)) {
            for (const RingPair* pair : {&shared_pair, &exclusive_pair, &mixed_pair}) {
                for (const Ring& ring : {pair->free, pair->full}) {
                    for (const std::string& broken : ring.check()) {
                        fail("a ring is broken: %s", broken.c_str());
                    }
                    static_cast<void>(ring.depth());
                }
            }
            std::this_thread::sleep_for(100us);
        }
    });

    const unsigned pushed_count = round_count / 4;
    std::vector<std::thread> pushers;
    for (std::uint32_t writer = 1; writer <= 2; ++writer) {
        pushers.emplace_back([&, writer] { push_all(domain, pool, writer, pushed_count); });
    }
    std::array<std::uint64_t, 2> popped{};
    std::vector<std::thread> poppers;
    for (std::uint32_t number = 0; number < popped.size(); ++number) {
        poppers.emplace_back([&, number] { popped[number] = pop_all(domain, is_over, 500 + number); });
    }
    unsigned look_count = 0;
    std::thread checker([&] { look_count = check_all(domain, is_over); });

    Order pushed;
    std::uint32_t number = 1;
    unsigned life_count = 0;
    unsigned stop_count = 0;
    while (number < round_count / 2 || pushed.count() < 2 * std::uint64_t{pushed_count}) {
        stop_count += live(name, domain, pool, random, number, pushed);
        ++life_count;
    }
    for (std::thread& thread : pushers) {
        thread.join();
    }
    for (std::thread& thread : ring_threads) {
        thread.join();
    }
    // relaxed: joining the threads orders all else
    is_over.store(true, std::memory_order_relaxed);
    for (std::thread& thread : poppers) {
        thread.join();
    }
    checker.join();
    ring_checker.join();

    // What the pushers sent last may still be there.
    {
        Consumer in = domain.consumer(in_name);
        while (const BufferPtr buffer = in.try_pop()) {
            pushed.note(buffer);
        }
    }
    static_cast<void>(domain.reap());
    if (pushed.count() < 2 * std::uint64_t{pushed_count}) {
        fail("%llu of %u messages came", static_cast<unsigned long long>(pushed.count()), 2 * pushed_count);
    }
    DomainCensus census;
    if (const std::string broken = test::check(domain, &census); !broken.empty()) {
        fail("the domain is broken: %s", broken.c_str());
    }
    if (census.free_count != pool.buffer_count()) {
        fail("%u of %u buffers are free", census.free_count, pool.buffer_count());
    }
    std::printf(
        "%u lives of a scheduler, stopped %u times, %u messages of sources, %llu pushed to it, %llu popped from it, "
        "%u checks\n",
        life_count, stop_count, number - 1, static_cast<unsigned long long>(pushed.count()),
        static_cast<unsigned long long>(popped[0] + popped[1]), look_count);
    return 0;
}
