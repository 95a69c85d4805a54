// The ring and the reference words in every order of a few processes' accesses: explorer.hpp, docs/interleavings.md.
//
// What each process saw of a queue must be explained by one order of all operations on a plain FIFO (history.hpp): nothing
// lost, nothing twice, the order kept, never full or empty without being so; of who died inside an operation, that it
// happened or not.
//
//     interleavings_test [--preemptions N] [--expect-wrong] SCENARIO
//
// Exit status: 0, nothing is wrong in any interleaving; 1, something is, which is said; 2, there is no such scenario.
// --expect-wrong turns 0 and 1 around, for a scenario that breaks a rule, and for a ring that has a mistake.
#include "explorer.hpp"

#include "../crash/history.hpp"

// The ring's members that the library has for its own words alone.
#include "../../lib/ring.cpp"

#include <weir/reference.hpp>
#include <weir/ring.hpp>

#include <algorithm>
#include <array>
#include <optional>

#include <string_view>

#include <unistd.h>

using namespace interleavings;
using namespace weir;
using crash::Event;
using crash::What;

namespace {

using WatchedRing = BasicRing<WatchedWord>;

constexpr std::uint32_t capacity = 2;

template <std::uint32_t cell_count = capacity>
struct RingMemory {
    alignas(cache_line_bytes) std::array<std::byte, WatchedRing::bytes(cell_count)> bytes{};

    [[nodiscard]] WatchedRing ring() { return {bytes, cell_count}; }
};

/// What the processes of a run saw; what one is doing when it dies stays `maybe`.
struct Seen {
    std::array<std::vector<Event>, 4> by;

    [[nodiscard]] std::string explain(const std::vector<std::uint32_t>& before,
                                      const std::vector<std::uint32_t>& content) const {
        crash::History history(capacity, before);
        for (const std::vector<Event>& events : by) {
            history.add(events);
        }
        return history.explains(content) ? "" : history.describe(content);
    }
};

// ---- The ring alone ----------------------------------------------------------------------------------------

template <RingEnd end>
std::function<void()> pushes(WatchedRing ring, std::vector<Event>& seen, std::uint32_t first, std::uint32_t count) {
    return [=, &seen] {
        BasicRingProducer<end, WatchedWord> producer(ring);
        for (std::uint32_t value = first; value < first + count; ++value) {
            seen.push_back({What::maybe_push, value});
            seen.back().what = producer.try_push(value) == RingStatus::ok ? What::push : What::push_full;
        }
    };
}

template <RingEnd end>
std::function<void()> pops(WatchedRing ring, std::vector<Event>& seen, std::uint32_t count) {
    return [=, &seen] {
        BasicRingConsumer<end, WatchedWord> consumer(ring);
        for (std::uint32_t attempt = 0; attempt < count; ++attempt) {
            std::uint32_t value = 0;
            seen.push_back({What::maybe_pop, 0});
            const bool popped = consumer.try_pop(value) == RingStatus::ok;
            seen.back() = {popped ? What::pop : What::pop_empty, value};
        }
    };
}

std::vector<std::uint32_t> content_of(WatchedRing ring) {
    std::vector<std::uint32_t> content;
    BasicRingConsumer<RingEnd::shared, WatchedWord> consumer(ring);
    for (std::uint32_t value = 0; consumer.try_pop(value) == RingStatus::ok;) {
        content.push_back(value);
    }
    return content;
}

std::string broken_invariants(const WatchedRing& ring) {
    std::string text;
    for (const std::string& broken : ring.check()) {
        text += broken + "; ";
    }
    return text;
}

/// Producers that push two values each, consumers that try three times.
template <RingEnd producer_end, RingEnd consumer_end>
std::string share_ring(Run& run, std::size_t producer_count, std::size_t consumer_count) {
    RingMemory<> memory;
    Seen seen;
    for (std::uint32_t number = 0; number < producer_count; ++number) {
        run.thread(pushes<producer_end>(memory.ring(), seen.by[number], 10 * (number + 1), 2));
    }
    for (std::size_t number = 0; number < consumer_count; ++number) {
        run.thread(pops<consumer_end>(memory.ring(), seen.by[producer_count + number], 3));
    }
    run.go();
    const std::string broken = broken_invariants(memory.ring());
    return broken.empty() ? seen.explain({}, content_of(memory.ring())) : broken;
}

std::string two_producers_and_a_consumer(Run& run) {
    return share_ring<RingEnd::shared, RingEnd::shared>(run, 2, 1);
}

std::string a_producer_and_two_consumers(Run& run) {
    return share_ring<RingEnd::shared, RingEnd::shared>(run, 1, 2);
}

std::string exclusive_ends(Run& run) {
    return share_ring<RingEnd::exclusive, RingEnd::exclusive>(run, 1, 1);
}

std::string two_producers_of_an_exclusive_end(Run& run) {
    return share_ring<RingEnd::exclusive, RingEnd::shared>(run, 2, 1);
}

/// Two processes push, or pop, all-or-nothing batches of two, two each, of which there are four times as many: none is refused.
template <class Handle, class Try>
std::string batches_of_two(Run& run, WatchedRing ring, Try&& try_batch) {
    bool was_refused = false;
    for (int number = 0; number < 2; ++number) {
        run.thread([ring, &was_refused, &try_batch] {
            Handle handle(ring);
            for (int attempt = 0; attempt < 2; ++attempt) {
                was_refused = try_batch(handle) == 0 || was_refused;
            }
        });
    }
    run.go();
    const std::string broken = broken_invariants(ring);
    return was_refused ? "a batch was refused though there was enough all the time" : broken;
}

std::string popped_batches(Run& run) {
    RingMemory<16> memory;
    BasicRingProducer<RingEnd::shared, WatchedWord> producer(memory.ring());
    for (std::uint32_t value = 0; value < 16; ++value) {
        static_cast<void>(producer.try_push(value));
    }
    std::array<unsigned, 16> count{};
    using Consumer = BasicRingConsumer<RingEnd::shared, WatchedWord>;
    std::string wrong = batches_of_two<Consumer>(run, memory.ring(), [&](Consumer& consumer) {
        std::array<std::uint32_t, 2> values{};
        const std::size_t popped = consumer.try_pop(std::span(values), 2);
        for (std::size_t place = 0; place < popped; ++place) {
            ++count[values[place]];
        }
        return popped;
    });
    for (const std::uint32_t value : content_of(memory.ring())) {
        ++count[value];
    }
    return wrong.empty() && std::ranges::count(count, 1U) != 16 ? "a value is lost, or came twice" : wrong;
}

std::string pushed_batches(Run& run) {
    RingMemory<16> memory;
    unsigned count = 0;
    using Producer = BasicRingProducer<RingEnd::shared, WatchedWord>;
    std::string wrong = batches_of_two<Producer>(run, memory.ring(), [&](Producer& producer) {
        const std::array<std::uint32_t, 2> values{5, 6};
        const std::size_t pushed = producer.try_push(std::span(values), 2);
        count += static_cast<unsigned>(pushed);
        return pushed;
    });
    return wrong.empty() && content_of(memory.ring()).size() != count ? "a value is lost, or came twice" : wrong;
}

// ---- Reference words ---------------------------------------------------------------------------------------

/// Two processes hold a word, one after the other: while one holds it, nobody else does.
std::string one_holder(Run& run) {
    WatchedWord word{};
    std::array<Owner, 3> owners{Owner(1, 7), Owner(2, 7), Owner(3, 7)};
    unsigned holder_count = 0;
    std::string wrong;
    for (const Owner me : owners) {
        run.thread([&, me] {
            for (int attempt = 0; attempt < 2; ++attempt) {
                const std::uint64_t seen = load_reference(word);
                if (is_free(seen) && try_hold(word, seen, me)) {
                    if (++holder_count != 1) {
                        wrong = "two hold one word";
                    }
                    static_cast<void>(load_reference(word)); // a place for others to go on
                    --holder_count;
                    if (!set_free(word, me)) {
                        wrong = "a word that was held is another's";
                    }
                }
            }
        });
    }
    run.go();
    return is_free(word.value) ? wrong : "the word is not free in the end";
}

/// A dead process's word is freed by two reapers, and held by another process: each transition happens once.
std::string two_reapers(Run& run) {
    const Owner dead(1, 7);
    const Owner next(2, 7);
    WatchedWord word{next_reference(0, ReferenceState::held, dead, 0)};
    unsigned freed_count = 0;
    bool is_held = false;
    for (int reaper = 0; reaper < 2; ++reaper) {
        run.thread([&] {
            const std::uint64_t seen = load_reference(word);
            if (Owner::of(seen) == dead && !is_free(seen)) {
                freed_count += try_free(word, seen) ? 1U : 0U;
            }
        });
    }
    run.thread([&] {
        const std::uint64_t seen = load_reference(word);
        is_held = is_free(seen) && try_hold(word, seen, next);
    });
    run.go();
    if (freed_count != 1) {
        return "the dead one's word was freed " + std::to_string(freed_count) + " times";
    }
    return is_held == (Owner::of(word.value) == next) ? "" : "the next holder's word was taken from it";
}

// ---- Both: messages ----------------------------------------------------------------------------------------

/// As a port does it (port.hpp): buffer b's reference word is words[b], and a cell holds b and the low bits of its generation.
struct Messages {
    RingMemory<> memory;
    std::array<WatchedWord, 4> words{};

    static constexpr unsigned generation_shift = 20;
    static constexpr std::uint32_t generation_mask = 15;

    [[nodiscard]] static std::uint32_t buffer_of(std::uint64_t cell) {
        return WatchedRing::value(cell) & ((1U << generation_shift) - 1);
    }
    /// Whether the item in `cell` has been taken, though the cell was not cleared.
    [[nodiscard]] bool is_queued_as(std::uint64_t cell, std::uint64_t word) const {
        return reference_state(word) == ReferenceState::queued &&
               (reference_generation(word) & generation_mask) == WatchedRing::value(cell) >> generation_shift;
    }

    /// `buffer` is held by `me`.
    bool push(std::uint64_t& position, std::uint32_t buffer, Owner me) {
        WatchedRing ring = memory.ring();
        const std::uint64_t queued = set_queued(words[buffer], me, 1);
        const std::uint32_t value = buffer | (reference_generation(queued) & generation_mask) << generation_shift;
        while (!ring.fill(position, value)) {
            const RingStatus status = ring.search_room(position, [&](std::uint64_t cell) {
                return !is_queued_as(cell, load_reference(words[buffer_of(cell)]));
            });
            if (status != RingStatus::ok) {
                set_held(words[buffer], me);
                return false;
            }
        }
        ++position;
        return true;
    }

    /// The buffer, which `me` holds then; or none.
    std::uint32_t pop(std::uint64_t& position, Owner me) {
        WatchedRing ring = memory.ring();
        std::uint64_t cell = 0;
        while (ring.find_item(position, cell) == RingStatus::ok) {
            const std::uint32_t buffer = buffer_of(cell);
            const std::uint64_t seen = load_reference(words[buffer]);
            if (ring.load_cell(position) != cell) {
                continue;
            }
            const bool is_mine = is_queued_as(cell, seen) && try_claim(words[buffer], seen, me);
            ring.clear(position, cell);
            ++position;
            if (is_mine) {
                return buffer;
            }
        }
        return none;
    }

    static constexpr std::uint32_t none = UINT32_MAX;
};

/// A full port, to which a producer pushes one message more. One consumer takes two messages, and pushes the second again;
/// another takes one.
std::string messages(Run& run) {
    Messages port;
    Seen seen;
    const std::array<Owner, 4> owners{Owner(1, 7), Owner(2, 7), Owner(3, 7), Owner(4, 7)};
    std::uint64_t tail = 0;
    for (std::uint32_t buffer = 0; buffer < 3; ++buffer) {
        static_cast<void>(try_hold(port.words[buffer], 0, owners[0]));
    }
    static_cast<void>(port.push(tail, 0, owners[0]));
    static_cast<void>(port.push(tail, 1, owners[0]));
    run.thread([&] {
        std::uint64_t position = tail;
        for (int attempt = 0; attempt < 2; ++attempt) {
            seen.by[0].push_back({What::maybe_push, 2});
            const bool is_pushed = port.push(position, 2, owners[0]);
            seen.by[0].back().what = is_pushed ? What::push : What::push_full;
            if (is_pushed) {
                break;
            }
        }
    });
    for (std::uint32_t number = 1; number <= 2; ++number) {
        run.thread([&, number] {
            std::uint64_t head = 0;
            std::uint64_t own_tail = tail;
            for (int attempt = 0; attempt < 3 - static_cast<int>(number); ++attempt) {
                seen.by[number].push_back({What::maybe_pop, 0});
                const std::uint32_t buffer = port.pop(head, owners[number]);
                seen.by[number].back() = {buffer == Messages::none ? What::pop_empty : What::pop, buffer};
                if (number == 1 && attempt == 1 && buffer != Messages::none) {
                    seen.by[number].push_back({What::maybe_push, buffer});
                    seen.by[number].back().what =
                        port.push(own_tail, buffer, owners[number]) ? What::push : What::push_full;
                }
            }
        });
    }
    run.go();
    if (const std::string broken = broken_invariants(port.memory.ring()); !broken.empty()) {
        return broken;
    }
    std::vector<std::uint32_t> content;
    std::uint64_t head = 0;
    for (std::uint32_t buffer = 0; (buffer = port.pop(head, owners[3])) != Messages::none;) {
        content.push_back(buffer);
    }
    return seen.explain({0, 1}, content);
}

struct Scenario {
    std::string_view name;
    Limits limits;
    std::string (*run)(Run&);
};

constexpr std::array scenarios{
    Scenario{"two producers and a consumer",
             {.preemption_count_max = 3, .death_count_max = 1},
             two_producers_and_a_consumer},
    Scenario{"a producer and two consumers",
             {.preemption_count_max = 4, .death_count_max = 1},
             a_producer_and_two_consumers},
    Scenario{"exclusive ends", {.preemption_count_max = 8, .death_count_max = 2}, exclusive_ends},
    Scenario{"popped batches", {.preemption_count_max = 4}, popped_batches},
    Scenario{"pushed batches", {.preemption_count_max = 4}, pushed_batches},
    Scenario{"one holder", {.preemption_count_max = 4}, one_holder},
    Scenario{"two reapers", {.preemption_count_max = 9}, two_reapers},
    Scenario{"messages", {.preemption_count_max = 2, .death_count_max = 1}, messages},
    // Against the rules: this one is found out.
    Scenario{"two producers of an exclusive end", {.preemption_count_max = 2}, two_producers_of_an_exclusive_end},
};

} // namespace

int main(int argument_count, char** arguments) {
    alarm(200);
    bool expects_wrong = false;
    std::optional<unsigned> preemption_count_max;
    int place = 1;
    for (; place + 1 < argument_count; ++place) {
        const std::string_view option = arguments[place];
        if (option == "--expect-wrong") {
            expects_wrong = true;
        } else if (option == "--preemptions") {
            preemption_count_max = static_cast<unsigned>(std::atoi(arguments[++place]));
        } else {
            break;
        }
    }
    const auto scenario = std::ranges::find(
        scenarios, std::string_view(place + 1 == argument_count ? arguments[place] : ""), &Scenario::name);
    if (scenario == scenarios.end()) {
        std::fprintf(stderr, "usage: interleavings_test [--preemptions N] [--expect-wrong] SCENARIO; scenarios are:\n");
        for (const Scenario& each : scenarios) {
            std::fprintf(stderr, "    %s\n", each.name.data());
        }
        return 2;
    }
    Limits limits = scenario->limits;
    limits.preemption_count_max = preemption_count_max.value_or(limits.preemption_count_max);
    const Explored explored = explore(limits, scenario->run);
    std::printf("%llu interleavings with at most %u preemptions and %u deaths; in the last one: %s\n",
                static_cast<unsigned long long>(explored.run_count), limits.preemption_count_max,
                limits.death_count_max, explored.wrong.empty() ? "nothing is wrong" : explored.wrong.c_str());
    return explored.wrong.empty() == expects_wrong ? 1 : 0;
}
