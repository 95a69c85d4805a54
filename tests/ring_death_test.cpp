// Processes that push and pop batches through a ring used alone, killed at random: each value comes once at most, and only
// those are lost that a killed consumer had taken. (What one operation leaves is killed at every instruction by the harness,
// for the ring inside of a port: tests/crash/.)
#include "catch.hpp"
#include "testing.hpp"

#include <weir/ring.hpp>
#include <weir/segment.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include <unistd.h>

using namespace weir;

namespace {

constexpr std::uint32_t ring_capacity = 256;
constexpr unsigned batch_max = 64;
constexpr unsigned life_max = 400;
constexpr unsigned number_bits = 16;
constexpr std::uint32_t number_max = std::uint32_t{1} << number_bits;

/// What all processes share. A value is a producer's life and its number in it.
struct Shared {
    std::array<std::uint32_t, life_max> pushed; ///< the producer says so after a batch
    std::uint32_t popped_count;                 ///< of all consumers; for the test's clock
};

class Scene {
public:
    Scene()
        : segment_(Segment::anonymous(round_up(sizeof(Shared), cache_line_bytes) + Ring::bytes(ring_capacity) +
                                      std::size_t{life_max} * number_max)) {}

    [[nodiscard]] Shared& shared_state() const { return *reinterpret_cast<Shared*>(segment_.bytes().data()); }
    [[nodiscard]] Ring ring() const { return {segment_.bytes().subspan(ring_offset()), ring_capacity}; }
    /// How often a value came.
    [[nodiscard]] std::uint8_t& seen(std::uint32_t value) const {
        return reinterpret_cast<std::uint8_t&>(segment_.bytes()[ring_offset() + Ring::bytes(ring_capacity) + value]);
    }

private:
    [[nodiscard]] static std::size_t ring_offset() { return round_up(sizeof(Shared), cache_line_bytes); }

    Segment segment_;
};

template <class Producer>
[[noreturn]] void produce(const Scene& scene, unsigned life, std::uint64_t seed) {
    test::Random random(seed);
    Producer producer(scene.ring());
    std::array<std::uint32_t, batch_max> batch{};
    std::uint32_t& pushed = scene.shared_state().pushed[life];
    for (std::uint32_t number = 0; number + batch_max < number_max;) {
        std::iota(batch.begin(), batch.end(), life << number_bits | number);
        const auto length = 1 + random.below(batch_max);
        const std::size_t count =
            producer.try_push(std::span<const std::uint32_t>(batch).first(length), random.below(2U) == 0 ? length : 1);
        number += static_cast<std::uint32_t>(count);
        shared(pushed).store(number, std::memory_order_relaxed); // relaxed: the parent looks when we are dead
    }
    for (;;) {
        pause(); // more than its numbers it cannot push
    }
}

void take(const Scene& scene, std::span<const std::uint32_t> values) {
    for (const std::uint32_t value : values) {
        // relaxed: the parent looks when we are dead
        shared(scene.seen(value)).fetch_add(1, std::memory_order_relaxed);
    }
    // relaxed: a clock
    shared(scene.shared_state().popped_count)
        .fetch_add(static_cast<std::uint32_t>(values.size()), std::memory_order_relaxed);
}

template <class Consumer>
[[noreturn]] void consume(const Scene& scene, std::uint64_t seed) {
    test::Random random(seed);
    Consumer consumer(scene.ring());
    std::array<std::uint32_t, batch_max> batch{};
    for (;;) {
        const auto length = 1 + random.below(batch_max);
        const std::size_t count = consumer.try_pop(std::span(batch).first(length), random.below(2U) == 0 ? length : 1);
        take(scene, std::span(batch).first(count));
    }
}

template <class Producer, class Consumer>
void kill_at_random(unsigned producer_count, unsigned consumer_count) {
    test::Random random(test::seed());
    const Scene scene;
    unsigned life_count = 0, killed_consumer_count = 0;
    std::vector<unsigned> lives(producer_count); ///< of the producers that are alive
    const auto start_producer = [&](unsigned place) {
        const unsigned life = lives[place] = life_count++;
        const std::uint64_t seed = test::seed() + life;
        return std::make_unique<test::Child>([&] { produce<Producer>(scene, life, seed); });
    };
    const auto start_consumer = [&] {
        const std::uint64_t seed = test::seed() + 1000 + killed_consumer_count;
        return std::make_unique<test::Child>([&] { consume<Consumer>(scene, seed); });
    };
    std::vector<std::unique_ptr<test::Child>> producers, consumers;
    for (unsigned count = 0; count < producer_count; ++count) {
        producers.push_back(start_producer(count));
    }
    for (unsigned count = 0; count < consumer_count; ++count) {
        consumers.push_back(start_consumer());
    }
    const auto popped_count = [&] {
        // relaxed: a clock
        return shared(scene.shared_state().popped_count).load(std::memory_order_relaxed);
    };
    const auto all_pushed = [&] {
        return std::ranges::all_of(lives, [&](unsigned life) {
            // relaxed: as above
            return shared(scene.shared_state().pushed[life]).load(std::memory_order_relaxed) + batch_max >= number_max;
        });
    };
    const unsigned kill_count = test::is_sanitized ? 30 : 100;
    for (unsigned count = 0; count < kill_count; ++count) {
        // Some have to move before the next dies: nobody is blocked by the last death.
        const std::uint32_t before = popped_count();
        const std::uint32_t wanted = 1 + random.below(20'000U);
        while (popped_count() - before < wanted && !all_pushed()) {
            std::this_thread::yield();
        }
        const bool is_producer = random.below(2U) == 0;
        const unsigned place = random.below(is_producer ? producer_count : consumer_count);
        auto& victim = is_producer ? producers[place] : consumers[place];
        victim->kill(SIGKILL);
        static_cast<void>(victim->wait());
        killed_consumer_count += is_producer ? 0 : 1;
        victim = is_producer ? start_producer(place) : start_consumer();
    }
    producers.clear();
    killed_consumer_count += consumer_count;
    consumers.clear();

    Consumer consumer(scene.ring());
    std::array<std::uint32_t, batch_max> batch{};
    while (const std::size_t count = consumer.try_pop(std::span(batch))) {
        take(scene, std::span(batch).first(count));
    }
    CHECK(scene.ring().check().empty());
    std::uint64_t lost_count = 0, value_count = 0;
    for (std::uint32_t life = 0; life < life_count; ++life) {
        const std::uint32_t pushed = scene.shared_state().pushed[life];
        for (std::uint32_t number = 0; number < pushed + batch_max && number < number_max; ++number) {
            const unsigned times = scene.seen(life << number_bits | number);
            if (times > 1) {
                FAIL("life " << life << ", number " << number << " came " << times << " times");
            }
            lost_count += number < pushed && times == 0 ? 1 : 0;
            value_count += times;
        }
    }
    CAPTURE(test::seed(), value_count, killed_consumer_count);
    CHECK(lost_count <= std::uint64_t{killed_consumer_count} * batch_max);
    CHECK(value_count > 0);
}

} // namespace

TEST_CASE("of batches that are killed at random nothing comes twice, and only what a consumer had taken is lost") {
    CAPTURE(test::seed());
    SECTION("ends that several share") {
        kill_at_random<RingProducer, RingConsumer>(2, 2);
    }
    SECTION("ends that one has for itself, one after the other") {
        kill_at_random<ExclusiveRingProducer, ExclusiveRingConsumer>(1, 1);
    }
}
