// A ring alone, on hostile cells and hints.
#include "fuzzing.hpp"

#include <deque>
#include <optional>

namespace {

constexpr std::uint32_t capacities[] = {2, 4, 8, 16, 64};
constexpr std::size_t batch_size_max = 40;

std::uint64_t drain(weir::Ring ring) {
    weir::RingConsumer consumer(ring);
    std::uint64_t count = 0;
    for (std::uint32_t value = 0; consumer.try_pop(value) == weir::RingStatus::ok;) {
        fuzz::expect(value <= weir::ring_value_max, "a value has 28 bits");
        fuzz::expect(++count <= ring.capacity(), "a ring that nobody fills has no more values than cells");
    }
    return count;
}

/// The handles of one end, of which an exclusive end has one.
template <class Shared, class Exclusive>
struct Handles {
    Handles(weir::Ring ring, bool is_exclusive) : first(ring), second(ring) {
        if (is_exclusive) {
            exclusive.emplace(ring);
        }
    }
    template <class Call>
    auto with(bool wants_second, Call&& call) {
        return exclusive ? call(*exclusive) : call(wants_second ? second : first);
    }
    Shared first;
    Shared second;
    std::optional<Exclusive> exclusive;
};

/// How few values a batch of `size` is content with.
std::size_t choose_least(fuzz::Input& input, std::size_t size, std::uint32_t capacity) {
    const std::size_t most = std::min<std::size_t>(size, capacity);
    return most > 1 && input.flag() ? 1 + input.below(most) : 1;
}

/// Whether that is how many a batch moves, of which there are or there is room for `possible`.
bool is_batch(std::size_t moved, std::size_t wanted, std::size_t possible, std::size_t least) {
    const std::size_t most = std::min(wanted, possible);
    if (most < least || wanted <= weir::Ring::line_cells) {
        return moved == (most < least ? 0 : most);
    }
    return moved <= most && moved >= std::max(least, most / 2);
}

void run(fuzz::Input& input, weir::Ring ring, std::span<std::byte> memory) {
    const std::span<std::byte> regions[] = {memory.first(sizeof(weir::RingState)),
                                            memory.subspan(sizeof(weir::RingState))};
    const std::uint8_t exclusive = input.byte();
    const std::size_t before_count = input.below(4);
    bool is_hostile = before_count > 0;
    for (std::size_t number = 0; number < before_count; ++number) {
        fuzz::write_hostile(input, regions);
    }
    Handles<weir::RingProducer, weir::ExclusiveRingProducer> producers(ring, (exclusive & 1) != 0);
    Handles<weir::RingConsumer, weir::ExclusiveRingConsumer> consumers(ring, (exclusive & 2) != 0);
    std::deque<std::uint32_t> model;
    while (!input.is_empty()) {
        switch (input.below(8)) {
        case 0:
        case 1:
            fuzz::write_hostile(input, regions);
            is_hostile = true;
            break;
        case 2: {
            const std::uint32_t value = input.read<std::uint32_t>() & weir::ring_value_max;
            const weir::RingStatus status =
                producers.with(input.flag(), [&](auto& producer) { return producer.try_push(value); });
            fuzz::expect(status != weir::RingStatus::empty, "a push is never refused because the ring is empty");
            fuzz::expect(is_hostile || (status == weir::RingStatus::ok) == (model.size() < ring.capacity()),
                         "a push succeeds where there is room");
            if (status == weir::RingStatus::ok) {
                model.push_back(value);
            }
            break;
        }
        case 3: {
            std::uint32_t value = 0;
            const weir::RingStatus status =
                consumers.with(input.flag(), [&](auto& consumer) { return consumer.try_pop(value); });
            fuzz::expect(status != weir::RingStatus::full, "a pop is never refused because the ring is full");
            fuzz::expect(is_hostile || (status == weir::RingStatus::ok) == !model.empty(),
                         "a pop succeeds where there is a value");
            if (status == weir::RingStatus::ok && !model.empty()) {
                fuzz::expect(is_hostile || value == model.front(), "values come in the order of their pushes");
                model.pop_front();
            }
            break;
        }
        case 4: {
            const std::vector<std::uint32_t> values(input.below(batch_size_max + 1), input.byte());
            const std::size_t least = choose_least(input, values.size(), ring.capacity());
            const std::size_t count = producers.with(
                input.flag(), [&](auto& producer) { return producer.try_push(std::span(values), least); });
            fuzz::expect(count <= values.size(), "no more is pushed than there is");
            fuzz::expect(is_hostile || is_batch(count, values.size(), ring.capacity() - model.size(), least),
                         "a batch pushes about as much as there is room for");
            model.insert(model.end(), values.data(), values.data() + count);
            break;
        }
        case 5: {
            std::vector<std::uint32_t> values(input.below(batch_size_max + 1));
            const std::size_t least = choose_least(input, values.size(), ring.capacity());
            const std::size_t count = consumers.with(
                input.flag(), [&](auto& consumer) { return consumer.try_pop(std::span(values), least); });
            fuzz::expect(count <= values.size(), "no more is popped than fits");
            fuzz::expect(is_hostile || is_batch(count, values.size(), model.size(), least),
                         "a batch pops about as much as there is");
            fuzz::expect(is_hostile || std::equal(values.data(), values.data() + count, model.begin()),
                         "a batch comes in the order of its pushes");
            model.erase(model.begin(), model.begin() + static_cast<std::ptrdiff_t>(std::min(count, model.size())));
            break;
        }
        case 6: {
            const std::uint64_t depth = ring.depth();
            fuzz::expect(is_hostile ? depth <= ring.capacity() : depth == model.size(), "the depth is right");
            break;
        }
        default: {
            const std::vector<std::string> broken = ring.check();
            if (!is_hostile) {
                fuzz::expect_sound(broken);
            }
        }
        }
    }
    const bool is_sound = ring.check().empty();
    fuzz::expect(is_sound || is_hostile, "a ring is sound where nothing hostile was written");
    const std::uint64_t count = drain(ring);
    fuzz::expect(is_hostile || count == model.size(), "all that was pushed is popped");
    if (is_sound && count > 0 && ring.check().empty() && drain(ring) == 0) {
        fuzz::succeeded();
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static std::vector<fuzz::Memory> memories;
    if (memories.empty()) {
        for (const std::uint32_t capacity : capacities) {
            memories.emplace_back(weir::Ring::bytes(capacity));
        }
    }
    fuzz::Input input(data, size);
    const std::size_t shape = input.below(memories.size());
    memories[shape].reset();
    const std::span<std::byte> memory = memories[shape].span();
    run(input, weir::Ring(memory, capacities[shape]), memory);
    return 0;
}
