#include "catch.hpp"
#include "testing.hpp"

#include <weir/port.hpp>

#include <algorithm>
#include <array>
#include <deque>
#include <optional>
#include <thread>

using namespace std::chrono_literals;
using namespace weir;
using test::error_of;

namespace {

constexpr WaitOptions park_at_once{.spin_count = 0, .recheck_interval_ns = 3'600'000'000'000};

BufferPoolOptions pool_of(std::uint32_t buffer_count, std::uint32_t references_per_buffer = 4,
                          std::uint32_t first_buffer = 0) {
    return {.buffer_bytes = 64,
            .buffer_count = buffer_count,
            .references_per_buffer = references_per_buffer,
            .first_buffer = first_buffer};
}

/// One pool and one port, and as many members as a test wants.
struct Fixture {
    explicit Fixture(const PortOptions& options, std::uint32_t buffer_count = 20)
        : memory({pool_of(buffer_count)}, {options}), member(memory) {}
    Fixture(std::vector<BufferPoolOptions> pools, std::vector<PortOptions> ports)
        : memory(std::move(pools), std::move(ports)), member(memory) {}

    [[nodiscard]] Port& port(std::size_t number = 0) { return member.ports.at(number); }
    [[nodiscard]] BufferPool& pool(std::size_t number = 0) { return member.pools.at(number); }
    [[nodiscard]] BufferPtr buffer_with(int number) {
        BufferPtr buffer = pool().try_allocate();
        if (buffer) {
            test::write_number(buffer, number);
        }
        return buffer;
    }
    [[nodiscard]] std::string check() { return member.check(); }

    test::DomainMemory memory;
    test::Member member;
};

std::optional<int> pop_number(Consumer& in) {
    const BufferPtr buffer = in.try_pop();
    return buffer ? std::optional(test::read_number(buffer)) : std::nullopt;
}

std::optional<int> wait_for_number(Consumer& in) {
    const BufferPtr buffer = in.pop();
    return buffer ? std::optional(test::read_number(buffer)) : std::nullopt;
}

/// Claims the oldest message as a consumer does that is killed before it clears the cell. Returns the cell.
std::uint64_t claim_and_die(const test::Member& victim, std::uint64_t position) {
    PortView& port = *victim.ports.front().view();
    const std::uint64_t cell = port.ring().load_cell(position);
    PortView::Item item;
    if (!Ring::is_filled(cell) || !port.decode(cell, item) ||
        !try_claim(item.word(), load_reference(item.word()), victim.me.owner())) {
        throw std::logic_error("there is nothing to claim");
    }
    return cell;
}

} // namespace

// ---- Making and opening ports

TEST_CASE("a port's parameters have bounds") {
    for (const std::uint32_t capacity : {0U, 1U, 3U, 100U, 131'072U, ~0U}) {
        CAPTURE(capacity);
        CHECK(error_of([&] { return Port::bytes({.capacity = capacity}); }) == errc::invalid_capacity);
    }
    CHECK_FALSE(error_of([] { return Port::bytes({.capacity = 2, .port_id = 1023}); }));
    CHECK_FALSE(error_of([] { return Port::bytes({.capacity = 65'536}); }));
    CHECK(error_of([] { return Port::bytes({.capacity = 2, .port_id = 1024}); }) == errc::invalid_size);
}

TEST_CASE("a port is formatted in aligned memory that is large enough") {
    const PortOptions options{.capacity = 16};
    const test::Memory memory(Port::bytes(options) + 64);
    const auto format = [&](std::span<std::byte> bytes, const PortOptions& some_options) {
        return error_of([&] {
            Port::format(bytes, some_options);
            return 0;
        });
    };
    CHECK(format(memory.span().subspan(8), options) == errc::misaligned);
    CHECK(format(memory.span().first(Port::bytes(options) - 1), options) == errc::invalid_size);
    CHECK(format(memory.span(), {.capacity = 7}) == errc::invalid_capacity);
    CHECK_FALSE(format(memory.span(), options));
}

TEST_CASE("each reason why a port cannot be opened has an error of its own") {
    Fixture fixture({.capacity = 16});
    const std::span<std::byte> bytes = fixture.memory.port();
    const auto open = [&](std::span<std::byte> some_bytes) {
        return error_of([&] { return Port(some_bytes, fixture.member.me, fixture.member.buffers); });
    };
    CHECK_FALSE(open(bytes));
    CHECK(open(bytes.subspan(8)) == errc::misaligned);
    CHECK(open(bytes.first(sizeof(PortState) - 1)) == errc::truncated);
    CHECK(open(bytes.first(bytes.size() - 64)) == errc::truncated);
    CHECK(open({}) == errc::truncated);
    const test::Memory unformatted(bytes.size());
    CHECK(open(unformatted.span()) == errc::wrong_kind);
}

TEST_CASE("each parameter that no format writes is corrupt") {
    Fixture fixture({.capacity = 16});
    PortState& state = fixture.memory.port_state();
    const auto open = [&](auto PortState::*field, auto value) {
        const auto right = state.*field;
        state.*field = static_cast<std::remove_reference_t<decltype(state.*field)>>(value);
        const std::error_code error =
            error_of([&] { return Port(fixture.memory.port(), fixture.member.me, fixture.member.buffers); });
        state.*field = right;
        return error;
    };
    CHECK(open(&PortState::capacity, 0) == errc::corrupt);
    CHECK(open(&PortState::capacity, 15) == errc::corrupt);
    CHECK(open(&PortState::capacity, 131'072) == errc::corrupt);
    CHECK(open(&PortState::capacity, 65'536) == errc::truncated); // possible, but there is no memory for it
    CHECK(open(&PortState::port_id, 1024) == errc::corrupt);
    CHECK(open(&PortState::when_full, 3) == errc::corrupt);
    CHECK(open(&PortState::when_unconsumed, 2) == errc::corrupt);
    CHECK(open(&PortState::time_stamps, 2) == errc::corrupt);
    CHECK_FALSE(open(&PortState::port_id, 1023));
}

TEST_CASE("a port tells how it was formatted") {
    const PortOptions options{.capacity = 32,
                              .port_id = 77,
                              .when_full = WhenFull::drop_oldest,
                              .when_unconsumed = WhenUnconsumed::fill,
                              .time_stamps = true};
    Fixture fixture(options);
    CHECK(fixture.port().options().capacity == 32);
    CHECK(fixture.port().options().port_id == 77);
    CHECK(fixture.port().options().when_full == WhenFull::drop_oldest);
    CHECK(fixture.port().options().when_unconsumed == WhenUnconsumed::fill);
    CHECK(fixture.port().options().time_stamps);
}

TEST_CASE("a port and its pools are opened with one membership") {
    Fixture fixture({.capacity = 16});
    const test::Member other(fixture.memory);
    CHECK(error_of([&] { return Port(fixture.memory.port(), other.me, fixture.member.buffers); }) ==
          errc::not_a_member);
}

TEST_CASE("who is no member any more gets no handle") {
    Fixture fixture({.capacity = 16});
    fixture.member.leave();
    CHECK(error_of([&] { return Producer(fixture.port()); }) == errc::not_a_member);
    CHECK(error_of([&] { return Consumer(fixture.port()); }) == errc::not_a_member);
}

TEST_CASE("a process has at most 32,767 handles on one end") {
    Fixture fixture({.capacity = 16});
    std::vector<Producer> producers;
    producers.reserve(32'767);
    for (int count = 0; count < 32'767; ++count) {
        producers.emplace_back(fixture.port());
    }
    CHECK(error_of([&] { return Producer(fixture.port()); }) == errc::table_full);
    producers.pop_back();
    CHECK_FALSE(error_of([&] { return Producer(fixture.port()); }));
    Consumer in(fixture.port());
    CHECK(in.stream_end() == StreamEnd::open);
    producers.clear();
    CHECK(in.stream_end() == StreamEnd::closed);
}

// ---- Pushing and popping

TEST_CASE("a message arrives in the buffer in which it was written") {
    Fixture fixture({.capacity = 4});
    test::Member receiver(fixture.memory);
    Producer out(fixture.port());
    Consumer in(receiver.ports[0]);
    BufferPtr buffer = fixture.buffer_with(42);
    buffer.resize(10);
    buffer.set_tag(7);
    const std::uint64_t offset_bytes = buffer.payload_offset_bytes();
    const std::uint32_t id = buffer.id();
    REQUIRE(out.try_push(std::move(buffer)) == PushResult::ok);
    CHECK_FALSE(buffer);
    const BufferPtr received = in.try_pop();
    REQUIRE(received);
    CHECK(received.payload_offset_bytes() == offset_bytes);
    CHECK(received.id() == id);
    CHECK(received.size_bytes() == 10);
    CHECK(received.tag() == 7);
    CHECK(test::read_number(received) == 42);
    CHECK(received.use_count() == 1);
    CHECK(received.pool()->owner() == receiver.me.owner());
    CHECK(fixture.check() == "");
}

TEST_CASE("messages arrive in order, lap after lap, at every capacity") {
    for (const std::uint32_t capacity : {2U, 4U, 64U}) {
        CAPTURE(capacity);
        Fixture fixture({.capacity = capacity}, 100);
        Producer out(fixture.port());
        Consumer in(fixture.port());
        int next_in = 0;
        int next_out = 0;
        for (int round = 0; round < 20; ++round) {
            while (true) {
                BufferPtr buffer = fixture.buffer_with(next_in);
                if (!buffer || out.try_push(std::move(buffer)) != PushResult::ok) {
                    break;
                }
                ++next_in;
            }
            CHECK(next_in - next_out == static_cast<int>(capacity));
            CHECK(fixture.check() == "");
            while (const auto number = pop_number(in)) {
                CHECK(*number == next_out++);
            }
        }
        CHECK(next_in == next_out);
        CHECK(fixture.pool().free_count() == 100);
    }
}

TEST_CASE("a popped buffer is pushed on unmoved through a chain of ports") {
    Fixture fixture({pool_of(4)},
                    {{.capacity = 2, .port_id = 1}, {.capacity = 2, .port_id = 2}, {.capacity = 2, .port_id = 3}});
    std::vector<Producer> outs;
    std::vector<Consumer> ins;
    for (Port& port : fixture.member.ports) {
        outs.emplace_back(port);
        ins.emplace_back(port);
    }
    for (int round = 0; round < 10; ++round) {
        BufferPtr buffer = fixture.buffer_with(round);
        const std::uint64_t offset_bytes = buffer.payload_offset_bytes();
        for (std::size_t stage = 0; stage < outs.size(); ++stage) {
            REQUIRE(outs[stage].try_push(std::move(buffer)) == PushResult::ok);
            CHECK(fixture.check() == "");
            buffer = ins[stage].try_pop();
            REQUIRE(buffer);
        }
        CHECK(buffer.payload_offset_bytes() == offset_bytes);
        CHECK(test::read_number(buffer) == round);
        CHECK(buffer.use_count() == 1);
    }
    CHECK(fixture.pool().free_count() == 4);
}

TEST_CASE("an empty BufferPtr cannot be pushed") {
    Fixture fixture({.capacity = 4});
    Producer out(fixture.port());
    CHECK(out.try_push(BufferPtr()) == PushResult::failed);
    CHECK(out.last_error() == errc::no_buffer);
    CHECK(out.push(BufferPtr()) == PushResult::failed);
    CHECK(fixture.check() == "");
}

TEST_CASE("a port that refuses says full and leaves the buffer with the caller") {
    Fixture fixture({.capacity = 2, .when_full = WhenFull::refuse});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    REQUIRE(out.push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(out.push(fixture.buffer_with(1)) == PushResult::ok);
    BufferPtr third = fixture.buffer_with(2);
    CHECK(out.push(std::move(third)) == PushResult::full); // at once, though it is the waiting call
    CHECK(out.push_for(std::move(third), 1h) == PushResult::full);
    CHECK(out.try_push(std::move(third)) == PushResult::full);
    CHECK(out.last_result() == PushResult::full);
    REQUIRE(third);
    CHECK(test::read_number(third) == 2);
    CHECK(third.use_count() == 1);
    CHECK(fixture.check() == "");
    CHECK(pop_number(in) == 0);
    CHECK(out.try_push(std::move(third)) == PushResult::ok);
    CHECK(pop_number(in) == 1);
    CHECK(pop_number(in) == 2);
}

TEST_CASE("a push into a full port waits until its deadline, and the buffer stays with the caller") {
    Fixture fixture({.capacity = 2});
    Producer out(fixture.port());
    const Consumer in(fixture.port());
    REQUIRE(out.push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(out.push(fixture.buffer_with(1)) == PushResult::ok);
    BufferPtr third = fixture.buffer_with(2);
    CHECK(out.push_for(std::move(third), 0ns) == PushResult::full);
    CHECK(out.push_for(std::move(third), -1h) == PushResult::full);
    CHECK(out.push_until(std::move(third), 0) == PushResult::full);
    const std::int64_t start_ns = monotonic_ns();
    CHECK(out.push_for(std::move(third), 3ms) == PushResult::full);
    CHECK(monotonic_ns() - start_ns >= 3'000'000);
    REQUIRE(third);
    CHECK(third.use_count() == 1);
    CHECK(fixture.check() == "");
}

TEST_CASE("a pop from an empty port waits until its deadline, and the stream is open") {
    Fixture fixture({.capacity = 2});
    const Producer out(fixture.port());
    Consumer in(fixture.port());
    CHECK_FALSE(in.pop_for(0ns));
    CHECK_FALSE(in.pop_for(-1h));
    const std::int64_t start_ns = monotonic_ns();
    CHECK_FALSE(in.pop_for(3ms));
    CHECK(monotonic_ns() - start_ns >= 3'000'000);
    CHECK(in.stream_end() == StreamEnd::open);
    CHECK_FALSE(in.last_error());
}

TEST_CASE("a deadline that has passed keeps nothing from being done that can be done at once") {
    Fixture fixture({.capacity = 2});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    CHECK(out.push_until(fixture.buffer_with(1), 0) == PushResult::ok);
    CHECK(in.pop_until(0));
}

TEST_CASE("a port that drops the oldest always takes the newest") {
    Fixture fixture({.capacity = 4, .when_full = WhenFull::drop_oldest}, 6);
    Producer out(fixture.port());
    Consumer in(fixture.port());
    for (int number = 0; number < 23; ++number) {
        REQUIRE(out.push(fixture.buffer_with(number)) == PushResult::ok);
    }
    CHECK(fixture.pool().free_count() == 2);
    CHECK(fixture.port().counters(PortEnd::producer).dropped == 19);
    CHECK(fixture.check() == "");
    for (int number = 19; number < 23; ++number) {
        CHECK(pop_number(in) == number);
    }
    CHECK_FALSE(pop_number(in));
    CHECK(fixture.pool().free_count() == 6);
}

TEST_CASE("a producer that drops the oldest and a consumer share the messages between them") {
    Fixture fixture({.capacity = 8, .when_full = WhenFull::drop_oldest}, 30);
    test::Member receiver(fixture.memory);
    constexpr int message_count = 5000;
    std::thread thread([&] {
        Producer out(fixture.port());
        for (int number = 0; number < message_count; ++number) {
            BufferPtr buffer = fixture.pool().allocate();
            test::write_number(buffer, number);
            if (out.push(std::move(buffer)) != PushResult::ok) {
                std::abort();
            }
        }
    });
    int last = -1;
    std::uint64_t received_count = 0;
    Consumer in(receiver.ports[0]);
    while (const auto number = wait_for_number(in)) {
        if (*number <= last) {
            FAIL(*number << " after " << last);
        }
        last = *number;
        ++received_count;
    }
    thread.join();
    CHECK(last == message_count - 1);
    CHECK(received_count + fixture.port().counters(PortEnd::producer).dropped == message_count);
    CHECK(fixture.check() == "");
    CHECK(fixture.pool().free_count() == 30);
}

TEST_CASE("a handle that was idle for ten laps finds its place") {
    Fixture fixture({.capacity = 4});
    Producer idle_out(fixture.port());
    Consumer idle_in(fixture.port());
    REQUIRE(idle_out.try_push(fixture.buffer_with(-1)) == PushResult::ok);
    REQUIRE(pop_number(idle_in) == -1);
    Producer out(fixture.port());
    Consumer in(fixture.port());
    for (int number = 0; number < 41; ++number) {
        REQUIRE(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
        REQUIRE(pop_number(in) == number);
    }
    if (GENERATE(true, false)) { // a stopped process publishes a position of long ago
        fixture.memory.ring_state() = {};
    }
    REQUIRE(out.try_push(fixture.buffer_with(100)) == PushResult::ok);
    REQUIRE(idle_out.try_push(fixture.buffer_with(101)) == PushResult::ok);
    CHECK(pop_number(idle_in) == 100);
    CHECK(pop_number(in) == 101);
    CHECK_FALSE(pop_number(idle_in));
    CHECK(fixture.check() == "");
}

TEST_CASE("a port goes on where its ring's turns and its references' generations wrap") {
    constexpr std::uint64_t lap_count = std::uint64_t{1} << 35;
    Fixture fixture({.capacity = 4}, 8);
    for (std::uint64_t place = 0; place < 4; ++place) {
        fixture.memory.cell(place) = (lap_count - 2) << (ring_value_bits + 1);
    }
    fixture.memory.ring_state() = {(lap_count - 2) * 4, (lap_count - 2) * 4};
    for (std::uint32_t index = 0; index < 8; ++index) {
        fixture.pool().view().reference(index, 0) = std::uint64_t{0xffff'fff8} << 32;
    }
    Producer out(fixture.port());
    Consumer in(fixture.port());
    for (int number = 0; number < 60; number += 3) {
        for (int more = 0; more < 3; ++more) {
            REQUIRE(out.try_push(fixture.buffer_with(number + more)) == PushResult::ok);
        }
        REQUIRE(fixture.check() == "");
        for (int more = 0; more < 3; ++more) {
            REQUIRE(pop_number(in) == number + more);
        }
    }
    CHECK(fixture.memory.cell(0) >> (ring_value_bits + 1) < 20);
    CHECK(reference_generation(fixture.pool().view().reference(0, 0)) < 1000);
    CHECK(fixture.pool().free_count() == 8);
}

// ---- A consumer or producer that dies in the middle

TEST_CASE("a consumer killed between claim and clear leaves the port usable") {
    Fixture fixture({.capacity = 4});
    const test::Member victim(fixture.memory);
    Producer out(fixture.port());
    Consumer in(fixture.port());
    for (int number = 0; number < 4; ++number) {
        REQUIRE(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
    }
    claim_and_die(victim, 0);
    CHECK(fixture.check() == ""); // a claimed cell is a sound state

    CHECK(out.try_push(fixture.buffer_with(4)) == PushResult::ok); // clears the cell and takes its room
    for (int number = 1; number < 5; ++number) {
        CHECK(pop_number(in) == number);
    }
    CHECK_FALSE(pop_number(in));
    CHECK(fixture.pool().free_count() == 19);
    CHECK(fixture.member.reap(victim.me).freed_reference_count == 1);
    CHECK(fixture.pool().free_count() == 20);
    CHECK(fixture.check() == "");
}

TEST_CASE("a consumer goes past a message that another claimed and did not clear") {
    Fixture fixture({.capacity = 4});
    const test::Member victim(fixture.memory);
    Producer out(fixture.port());
    Consumer in(fixture.port());
    for (int number = 0; number < 3; ++number) {
        REQUIRE(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
    }
    const std::uint64_t cell = claim_and_die(victim, 0);
    CHECK(pop_number(in) == 1);
    CHECK_FALSE(Ring::is_filled(fixture.memory.cell(0)));
    // The claimer was only stopped, and goes on: its clear comes too late and changes nothing.
    CHECK_FALSE(victim.ports[0].view()->ring().clear(0, cell));
    CHECK(pop_number(in) == 2);
    CHECK_FALSE(pop_number(in));
    CHECK(fixture.check() == "");
}

TEST_CASE("the last message claimed and not cleared is the end of the stream") {
    Fixture fixture({.capacity = 4});
    const test::Member victim(fixture.memory);
    Consumer in(fixture.port());
    {
        Producer out(fixture.port());
        REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    }
    claim_and_die(victim, 0);
    CHECK(in.stream_end() == StreamEnd::closed);
    CHECK_FALSE(in.pop());
    CHECK(fixture.check() == "");
}

TEST_CASE("a producer killed between its store and its cell leaves no message and no leak") {
    Fixture fixture({.capacity = 4});
    test::Member victim(fixture.memory);
    Consumer in(fixture.port());
    BufferPtr buffer = victim.pools[0].try_allocate();
    set_queued(victim.pools[0].view().reference(buffer.index(), 0), victim.me.owner(), 0);
    test::abandon(std::move(buffer));
    CHECK_FALSE(pop_number(in));
    CHECK(fixture.check().find("named by 0 cells") != std::string::npos); // not sound until it is reaped
    const ReapResult result = fixture.member.reap(victim.me);
    CHECK(result.freed_reference_count == 1);
    CHECK(result.kept_message_count == 0);
    CHECK(fixture.check() == "");
    CHECK(fixture.pool().free_count() == 20);
}

TEST_CASE("a full port of messages that were all claimed and not cleared has room") {
    Fixture fixture({.capacity = 4, .when_full = WhenFull::refuse});
    const test::Member victim(fixture.memory);
    Producer out(fixture.port());
    for (int number = 0; number < 4; ++number) {
        REQUIRE(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
    }
    for (std::uint64_t position = 0; position < 4; ++position) {
        claim_and_die(victim, position);
    }
    for (int number = 4; number < 8; ++number) {
        CHECK(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
    }
    CHECK(out.try_push(fixture.buffer_with(8)) == PushResult::full);
    CHECK(fixture.check() == "");
}

TEST_CASE("asking for the end of the stream makes room where it clears, and wakes who waits for it") {
    Fixture fixture({.capacity = 2});
    const test::Member victim(fixture.memory);
    Producer out(fixture.port());
    Consumer in(fixture.port());
    REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    claim_and_die(victim, 0);
    static_cast<void>(fixture.port().view()->waiting_event(PortEnd::producer).prepare());
    const test::CountedFutex futex;
    {
        const Producer gone(std::move(out)); // closes the end when it goes
    }
    CHECK(in.stream_end() == StreamEnd::closed);
    CHECK(futex.wake_count == 1);
}

// ---- References, copies and several pools

TEST_CASE("pushing a copied BufferPtr takes a further reference and leaves the copies") {
    Fixture fixture({.capacity = 4});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    BufferPtr buffer = fixture.buffer_with(5);
    BufferPtr copy(buffer);
    REQUIRE(out.try_push(std::move(copy)) == PushResult::ok);
    CHECK_FALSE(copy);
    REQUIRE(buffer);
    CHECK(buffer.use_count() == 2); // its own word and the queued one
    CHECK_FALSE(buffer.is_copied());
    const BufferPtr received = in.try_pop();
    REQUIRE(received);
    CHECK(received.id() == buffer.id());
    CHECK(received.reference() != buffer.reference());
    CHECK(received.use_count() == 2);
    CHECK(fixture.pool().free_count() == 19);
    CHECK(fixture.check() == "");
}

TEST_CASE("a BufferPtr whose copies are gone is pushed with its own reference") {
    Fixture fixture({.capacity = 4});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    BufferPtr buffer = fixture.buffer_with(5);
    { const BufferPtr copy(buffer); }
    REQUIRE(out.try_push(std::move(buffer)) == PushResult::ok);
    const BufferPtr received = in.try_pop();
    CHECK(received.reference() == 0);
    CHECK(received.use_count() == 1);
}

TEST_CASE("one buffer goes to as many ports as it has references, and no further") {
    const std::uint32_t references = GENERATE(4U, 12U);
    std::vector<PortOptions> ports;
    for (std::uint32_t number = 0; number <= references; ++number) {
        ports.push_back({.capacity = 2, .port_id = number});
    }
    Fixture fixture({pool_of(2, references)}, ports);
    std::vector<Producer> outs;
    std::vector<Consumer> ins;
    for (Port& port : fixture.member.ports) {
        outs.emplace_back(port);
        ins.emplace_back(port);
    }
    BufferPtr buffer = fixture.buffer_with(9);
    for (std::uint32_t number = 0; number + 1 < references; ++number) {
        REQUIRE(outs[number].try_push(BufferPtr(buffer)) == PushResult::ok);
        CHECK(buffer.use_count() == number + 2);
    }
    BufferPtr copy(buffer);
    CHECK(outs[references - 1].try_push(std::move(copy)) == PushResult::failed);
    CHECK(outs[references - 1].last_error() == errc::too_many_references);
    CHECK(outs[references - 1].push(std::move(copy)) == PushResult::failed); // waiting does not help
    CHECK(copy);
    CHECK_FALSE(ins[references - 1].try_pop());
    CHECK(fixture.check() == "");
    copy.reset();
    CHECK(outs[references - 1].try_push(std::move(buffer)) == PushResult::ok); // its own word suffices for the last
    for (std::uint32_t number = 0; number < references; ++number) {
        CHECK(pop_number(ins[number]) == 9);
    }
    CHECK(fixture.pool().free_count() == 2);
    CHECK(fixture.check() == "");
}

TEST_CASE("a buffer that was taken away from its holder is not pushed, and the error says how") {
    Fixture fixture({.capacity = 4});
    Producer out(fixture.port());
    BufferPtr buffer = fixture.buffer_with(1);
    std::uint64_t& word = fixture.pool().view().reference(buffer.index(), buffer.reference());
    const std::uint64_t held = word;
    word = 0;
    CHECK(out.try_push(std::move(buffer)) == PushResult::failed);
    CHECK(out.last_error() == errc::corrupt);
    CHECK(std::string(out.last_error_field()) == "reference word: owner");
    CHECK(word == 0);
    word = held;
    const test::Member other(fixture.memory);
    CHECK(other.reap(fixture.member.me).ended_entry);
    CHECK(out.try_push(std::move(buffer)) == PushResult::failed);
    CHECK(out.last_error() == errc::not_a_member);
    CHECK(is_free(word));
}

TEST_CASE("a copied BufferPtr that finds the port full leaves no further reference behind") {
    Fixture fixture({.capacity = 2, .when_full = WhenFull::refuse});
    Producer out(fixture.port());
    REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(out.try_push(fixture.buffer_with(1)) == PushResult::ok);
    BufferPtr buffer = fixture.buffer_with(2);
    BufferPtr copy(buffer);
    CHECK(out.try_push(std::move(copy)) == PushResult::full);
    CHECK(copy);
    CHECK(buffer.use_count() == 2); // one word, two copies
    CHECK(fixture.check() == "");
}

TEST_CASE("one port carries buffers of several pools") {
    Fixture fixture(
        {pool_of(5, 4, 0), {.buffer_bytes = 4096, .buffer_count = 5, .references_per_buffer = 12, .first_buffer = 100}},
        {{.capacity = 16}});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    for (int number = 0; number < 10; ++number) {
        BufferPtr buffer = fixture.member.buffers.try_allocate(number % 2 == 0 ? 10 : 1000);
        REQUIRE(buffer);
        test::write_number(buffer, number);
        REQUIRE(out.try_push(std::move(buffer)) == PushResult::ok);
    }
    CHECK(fixture.check() == "");
    for (int number = 0; number < 10; ++number) {
        const BufferPtr buffer = in.try_pop();
        REQUIRE(buffer);
        CHECK(test::read_number(buffer) == number);
        CHECK(buffer.capacity_bytes() == (number % 2 == 0 ? 64U : 4096U));
        CHECK(buffer.id() / 100 == static_cast<std::uint32_t>(number % 2));
    }
}

TEST_CASE("a buffer of a pool that the port was not given is not pushed") {
    Fixture fixture({pool_of(5, 4, 0), pool_of(5, 4, 5)}, {{.capacity = 4}});
    const Port narrow(fixture.memory.port(), fixture.member.me, SharedBufferAllocator(fixture.pool(0)));
    Producer out(narrow);
    BufferPtr stranger = fixture.pool(1).try_allocate();
    CHECK(out.try_push(std::move(stranger)) == PushResult::failed);
    CHECK(out.last_error() == errc::unknown_buffer);
    CHECK(std::string(out.last_error_field()).find("pool") != std::string::npos);
    REQUIRE(stranger);
    CHECK(stranger.use_count() == 1);
    CHECK(out.try_push(fixture.pool(0).try_allocate()) == PushResult::ok);
}

TEST_CASE("a message of an unknown pool stays for who knows the pool") {
    Fixture fixture({pool_of(5, 4, 0), pool_of(5, 4, 5)}, {{.capacity = 2, .when_full = WhenFull::refuse}});
    const Port narrow(fixture.memory.port(), fixture.member.me, SharedBufferAllocator(fixture.pool(0)));
    Producer out(fixture.port());
    Consumer in(fixture.port());
    Producer narrow_out(narrow);
    Consumer narrow_in(narrow);
    BufferPtr strange = fixture.pool(1).try_allocate();
    test::write_number(strange, 1);
    REQUIRE(out.try_push(std::move(strange)) == PushResult::ok);
    REQUIRE(out.try_push(fixture.buffer_with(2)) == PushResult::ok);

    CHECK_FALSE(narrow_in.try_pop());
    CHECK(narrow_in.last_error() == errc::unknown_buffer);
    CHECK(std::string(narrow_in.last_error_field()) == "ring cell: buffer");
    CHECK_FALSE(narrow_in.pop()); // and does not wait for it either
    CHECK(narrow_in.last_error() == errc::unknown_buffer);
    CHECK(narrow_in.stream_end() == StreamEnd::open);
    BufferPtr known = fixture.buffer_with(3);
    CHECK(narrow_out.try_push(std::move(known)) == PushResult::failed); // it cannot tell whether there is room
    CHECK(narrow_out.last_error() == errc::unknown_buffer);
    REQUIRE(known);

    CHECK(pop_number(in) == 1);
    CHECK(narrow_out.try_push(std::move(known)) == PushResult::ok);
    CHECK(pop_number(narrow_in) == 2);
    CHECK(pop_number(narrow_in) == 3);
    CHECK_FALSE(narrow_in.try_pop());
    CHECK_FALSE(narrow_in.last_error()); // the port is just empty now
    CHECK(fixture.check() == "");
}

// ---- Corrupt bytes

TEST_CASE("a cell that names no buffer is an error at both ends") {
    for (const std::uint32_t value : {ring_value_max, 20U << 8, 5U << 4, 15U << 4}) {
        CAPTURE(value);
        Fixture fixture({.capacity = 2, .when_full = WhenFull::refuse}); // 20 buffers of 4 references
        Producer out(fixture.port());
        Consumer in(fixture.port());
        REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
        REQUIRE(out.try_push(fixture.buffer_with(1)) == PushResult::ok);
        const std::uint64_t right = fixture.memory.cell(0);
        fixture.memory.cell(0) = (right & ~std::uint64_t{ring_value_max}) | value;
        CHECK_FALSE(in.try_pop());
        CHECK(in.last_error() == errc::unknown_buffer);
        std::array<BufferPtr, 3> batch;
        CHECK(in.try_pop(batch) == 0);
        CHECK(in.pop(batch) == 0);
        CHECK(in.last_error() == errc::unknown_buffer);
        CHECK(in.stream_end() == StreamEnd::open);
        BufferPtr buffer = fixture.buffer_with(2);
        CHECK(out.try_push(std::move(buffer)) == PushResult::failed);
        CHECK(out.last_error() == errc::unknown_buffer);
        CHECK(buffer);
        CHECK(fixture.check().find("cell 0 names a buffer or reference that does not exist") != std::string::npos);
        fixture.memory.cell(0) = right;
        CHECK(fixture.check() == "");
        CHECK(pop_number(in) == 0);
    }
}

TEST_CASE("a turn that cannot be is corrupt at both ends, and names the field") {
    Fixture fixture({.capacity = 2});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    for (int number = 0; number < 10; ++number) {
        REQUIRE(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
        REQUIRE(pop_number(in) == number);
    }
    fixture.memory.cell(0) = fixture.memory.cell(1) = 0;
    BufferPtr buffer = fixture.buffer_with(0);
    CHECK(out.push(std::move(buffer)) == PushResult::failed);
    CHECK(out.last_error() == errc::corrupt);
    CHECK(std::string(out.last_error_field()) == "ring cell: turn");
    CHECK(buffer);
    CHECK(buffer.use_count() == 1);
    CHECK_FALSE(in.pop());
    CHECK(in.last_error() == errc::corrupt);
    CHECK(std::string(in.last_error_field()) == "ring cell: turn");
}

TEST_CASE("a port that drops the oldest does not go round in circles in corrupt bytes") {
    Fixture fixture({.capacity = 2, .when_full = WhenFull::drop_oldest});
    Producer out(fixture.port());
    REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(out.try_push(fixture.buffer_with(1)) == PushResult::ok);
    // Full for producers, and empty for consumers, whose hint is a lap ahead.
    fixture.memory.ring_state().head_hint = 2;
    Producer late(fixture.port()); // begins at the hint
    BufferPtr buffer = fixture.buffer_with(2);
    CHECK(late.try_push(std::move(buffer)) == PushResult::failed);
    CHECK(late.last_error() == errc::corrupt);
    CHECK(buffer);
}

TEST_CASE("a handle that knows its place does not go by hints that are wrong") {
    Fixture fixture({.capacity = 4});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    fixture.memory.ring_state().head_hint = fixture.memory.ring_state().tail_hint = 2;
    for (int number = 0; number < 3; ++number) {
        REQUIRE(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
    }
    for (int number = 0; number < 3; ++number) {
        const BufferPtr buffer = in.try_pop();
        REQUIRE(buffer);
        CHECK(test::read_number(buffer) == number);
    }
    CHECK_FALSE(in.try_pop());
    CHECK_FALSE(in.last_error());
}

TEST_CASE("check names each kind of broken port") {
    Fixture fixture({.capacity = 4, .port_id = 7});
    Producer out(fixture.port());
    REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(fixture.check() == "");
    std::uint64_t& word = fixture.pool().view().reference(0, 0);
    const std::uint64_t right = word;

    word = next_reference(right - (std::uint64_t{1} << 32), ReferenceState::queued, fixture.member.me.owner(), 8);
    CHECK(fixture.check().find("port 7 cell 0: its reference is queued in port 8") != std::string::npos);
    word = 0;
    CHECK(fixture.check().find("port 7 cell 0: its reference is neither queued") != std::string::npos);
    word = right;

    fixture.memory.cell(1) = fixture.memory.cell(0);
    CHECK(fixture.check().find("named by 2 cells") != std::string::npos);
    fixture.memory.cell(1) = 0;

    PortState& state = fixture.memory.port_state();
    state.members[1][200] = 1 << 1 | 1;
    CHECK(fixture.check().find("port 7 member 200: closed, but with handles") != std::string::npos);
    state.members[1][200] = 0;
    fixture.memory.cell(2) = 3;
    CHECK(fixture.check().find("ring cell 2 is empty but holds the value 3") != std::string::npos);
    fixture.memory.cell(2) = 0;
    CHECK(fixture.check() == "");
}

TEST_CASE("any bytes in a port give results, never a crash or a hang") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    const auto when_full = GENERATE(WhenFull::refuse, WhenFull::drop_oldest, WhenFull::wait);
    unsigned failure_count = 0;
    for (int round = 0; round < 400; ++round) {
        Fixture fixture({.capacity = 4, .when_full = when_full});
        const std::span<std::byte> behind_parameters = fixture.memory.port().subspan(offsetof(PortState, ends));
        const bool only_ring = random.one_in(2);
        const std::span<std::byte> target =
            only_ring ? fixture.memory.port().subspan(sizeof(PortState)) : behind_parameters;
        const unsigned density = 1 + random.below(60U);
        for (std::byte& byte : target) {
            byte = random.one_in(density) ? static_cast<std::byte>(random.next()) : std::byte{0};
        }
        if (random.one_in(2)) { // references of any bytes, too
            for (std::uint32_t index = 0; index < 20; ++index) {
                fixture.pool().view().reference(index, random.below(4U)) = random.next();
            }
        }
        std::vector<BufferPtr> kept;
        {
            Producer out(fixture.port(), {.spin_count = 1});
            Consumer in(fixture.port(), {.spin_count = 1});
            for (int count = 0; count < 10; ++count) {
                if (BufferPtr buffer = fixture.pool().try_allocate()) {
                    failure_count += out.push_until(std::move(buffer), 0) == PushResult::failed ? 1U : 0U;
                    // The bytes may have changed owners: what is left is not dropped.
                    test::abandon(std::move(buffer));
                }
                BufferPtr buffer = in.pop_until(0);
                if (buffer) {
                    static_cast<void>(buffer.bytes());
                    test::abandon(std::move(buffer));
                }
                static_cast<void>(in.stream_end());
            }
            static_cast<void>(fixture.port().counters(PortEnd::producer));
            static_cast<void>(fixture.check());
        }
        static_cast<void>(fixture.member.leave());
    }
    CHECK(failure_count > 0);
}

// ---- End of stream

TEST_CASE("before the first producer the stream is open, and a consumer waits") {
    Fixture fixture({.capacity = 4});
    Consumer in(fixture.port(), park_at_once);
    CHECK(in.stream_end() == StreamEnd::open);
    CHECK_FALSE(in.try_pop());
    CHECK_FALSE(in.pop_for(1ms));
    CHECK(in.stream_end() == StreamEnd::open);
    test::Member sender(fixture.memory);
    std::thread thread([&] {
        Producer out(sender.ports[0]);
        BufferPtr buffer = sender.pools[0].allocate();
        test::write_number(buffer, 11);
        if (out.push(std::move(buffer)) != PushResult::ok) {
            std::abort();
        }
    });
    CHECK(wait_for_number(in) == 11);
    thread.join();
    CHECK_FALSE(wait_for_number(in));
    CHECK(in.stream_end() == StreamEnd::closed);
}

TEST_CASE("messages come before the end of the stream") {
    Fixture fixture({.capacity = 4});
    Consumer in(fixture.port());
    {
        Producer out(fixture.port());
        REQUIRE(out.try_push(fixture.buffer_with(1)) == PushResult::ok);
        REQUIRE(out.try_push(fixture.buffer_with(2)) == PushResult::ok);
        CHECK(in.stream_end() == StreamEnd::open);
    }
    CHECK(in.stream_end() == StreamEnd::open);
    CHECK(wait_for_number(in) == 1);
    CHECK(in.stream_end() == StreamEnd::open);
    CHECK(wait_for_number(in) == 2);
    CHECK(in.stream_end() == StreamEnd::closed);
    CHECK_FALSE(in.pop());
    CHECK_FALSE(in.try_pop());
    CHECK_FALSE(in.pop_for(1h)); // at once
    std::array<BufferPtr, 2> batch;
    CHECK(in.pop(batch) == 0);
}

TEST_CASE("the end is reached when the last of several producers is gone, of this process or another") {
    Fixture fixture({.capacity = 4});
    const test::Member other(fixture.memory);
    Consumer in(fixture.port());
    auto first = std::make_unique<Producer>(fixture.port());
    auto second = std::make_unique<Producer>(fixture.port());
    auto third = std::make_unique<Producer>(other.ports[0]);
    first.reset();
    CHECK(in.stream_end() == StreamEnd::open);
    third.reset();
    CHECK(in.stream_end() == StreamEnd::open);
    second.reset();
    CHECK(in.stream_end() == StreamEnd::closed);
}

TEST_CASE("a moved producer closes its end once") {
    Fixture fixture({.capacity = 4});
    Consumer in(fixture.port());
    {
        std::vector<Producer> producers;
        producers.emplace_back(fixture.port());
        producers.emplace_back(std::move(producers.front()));
        CHECK(in.stream_end() == StreamEnd::open);
        CHECK(producers.back().try_push(fixture.buffer_with(1)) == PushResult::ok);
        CHECK(pop_number(in) == 1);
    }
    CHECK(in.stream_end() == StreamEnd::closed);
    Consumer moved(std::move(in));
    CHECK(moved.stream_end() == StreamEnd::closed);
}

TEST_CASE("a new producer reopens the stream") {
    Fixture fixture({.capacity = 4});
    Consumer in(fixture.port());
    for (int round = 0; round < 3; ++round) {
        {
            Producer out(fixture.port());
            CHECK(in.stream_end() == StreamEnd::open);
            REQUIRE(out.try_push(fixture.buffer_with(round)) == PushResult::ok);
        }
        CHECK(wait_for_number(in) == round);
        CHECK_FALSE(wait_for_number(in));
        CHECK(in.stream_end() == StreamEnd::closed);
    }
}

TEST_CASE("a producer that died ends the stream when it was reaped, and the consumer learns that it died") {
    Fixture fixture({.capacity = 4});
    const test::Member victim(fixture.memory);
    Consumer in(fixture.port());
    test::abandon(std::make_unique<Producer>(victim.ports[0]));
    CHECK(in.stream_end() == StreamEnd::open);
    REQUIRE(fixture.member.reap(victim.me).ended_entry);
    CHECK(in.stream_end() == StreamEnd::died);
    CHECK_FALSE(in.pop());
    {
        const Producer out(fixture.port());
        CHECK(in.stream_end() == StreamEnd::open);
    }
    CHECK(in.stream_end() == StreamEnd::closed); // the last one closed; deaths before are not how it ended
}

TEST_CASE("where one producer died and another closed before it was reaped the stream ends by a death") {
    Fixture fixture({.capacity = 4});
    const test::Member victim(fixture.memory);
    Consumer in(fixture.port());
    test::abandon(std::make_unique<Producer>(victim.ports[0]));
    { const Producer out(fixture.port()); }
    CHECK(in.stream_end() == StreamEnd::open); // it counts as attached
    REQUIRE(fixture.member.reap(victim.me).ended_entry);
    CHECK(in.stream_end() == StreamEnd::died);
}

TEST_CASE("the slot of a producer that died may be used anew without reopening the stream") {
    Fixture fixture({.capacity = 4});
    const test::Member victim(fixture.memory);
    Consumer in(fixture.port());
    test::abandon(std::make_unique<Producer>(victim.ports[0]));
    REQUIRE(fixture.member.reap(victim.me).ended_entry);
    const test::Member newcomer(fixture.memory);
    REQUIRE(newcomer.me.slot == victim.me.slot);
    CHECK(in.stream_end() == StreamEnd::died);
    {
        const Producer out(newcomer.ports[0]);
        CHECK(in.stream_end() == StreamEnd::open);
    }
    CHECK(in.stream_end() == StreamEnd::closed);
}

TEST_CASE("a consumer that waits is woken by the end of the stream") {
    Fixture fixture({.capacity = 4});
    const bool dies = GENERATE(false, true);
    const test::Member sender(fixture.memory);
    auto out = std::make_unique<Producer>(sender.ports[0]);
    Consumer in(fixture.port(), park_at_once);
    const test::CountedFutex futex;
    std::thread thread([&] {
        while (futex.wait_count == 0) {
            std::this_thread::yield();
        }
        if (dies) {
            static_cast<void>(fixture.member.reap(sender.me));
            test::abandon(std::move(out));
        } else {
            out.reset();
        }
    });
    CHECK_FALSE(in.pop());
    CHECK(in.stream_end() == (dies ? StreamEnd::died : StreamEnd::closed));
    thread.join();
}

// ---- Closed for producers

TEST_CASE("before the first consumer a port is filled") {
    Fixture fixture({.capacity = 2});
    Producer out(fixture.port());
    CHECK(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    CHECK(out.try_push(fixture.buffer_with(1)) == PushResult::ok);
    CHECK(out.try_push(fixture.buffer_with(2)) == PushResult::full);
}

TEST_CASE("after the last consumer a port is closed for producers, and a new consumer reopens it") {
    Fixture fixture({.capacity = 4});
    Producer out(fixture.port());
    {
        const Consumer first(fixture.port());
        const Consumer second(fixture.port());
        CHECK(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    }
    BufferPtr buffer = fixture.buffer_with(1);
    CHECK(out.try_push(std::move(buffer)) == PushResult::closed);
    CHECK(out.push(std::move(buffer)) == PushResult::closed);
    CHECK(out.push_for(std::move(buffer), 1h) == PushResult::closed);
    CHECK(out.last_result() == PushResult::closed);
    REQUIRE(buffer);
    std::array<BufferPtr, 1> batch{std::move(buffer)};
    CHECK(out.try_push(batch) == 0);
    CHECK(out.push(batch) == 0);
    CHECK(out.last_result() == PushResult::closed);
    Consumer in(fixture.port());
    CHECK(out.try_push(std::move(batch[0])) == PushResult::ok);
    CHECK(pop_number(in) == 0);
    CHECK(pop_number(in) == 1);
    CHECK(fixture.check() == "");
}

TEST_CASE("a port that was formatted to be filled goes on without consumers") {
    Fixture fixture({.capacity = 4, .when_unconsumed = WhenUnconsumed::fill});
    Producer out(fixture.port());
    { const Consumer in(fixture.port()); }
    for (int number = 0; number < 4; ++number) {
        CHECK(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
    }
    CHECK(out.try_push(fixture.buffer_with(4)) == PushResult::full);
}

TEST_CASE("a producer notices within 256 pushes that the last consumer died and was reaped") {
    Fixture fixture({.capacity = 1024}, 400);
    const test::Member victim(fixture.memory);
    test::abandon(std::make_unique<Consumer>(victim.ports[0]));
    Producer out(fixture.port());
    REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(fixture.member.reap(victim.me).ended_entry);
    int pushed_count = 0;
    PushResult result = PushResult::ok;
    while (result == PushResult::ok && pushed_count < 400) {
        result = out.try_push(fixture.buffer_with(1));
        ++pushed_count;
    }
    CHECK(result == PushResult::closed);
    CHECK(pushed_count <= 256);
}

TEST_CASE("a producer that waits for room is woken when the last consumer goes, or died and is reaped") {
    const bool dies = GENERATE(false, true);
    Fixture fixture({.capacity = 2});
    const test::Member receiver(fixture.memory);
    auto in = std::make_unique<Consumer>(receiver.ports[0]);
    Producer out(fixture.port(), park_at_once);
    REQUIRE(out.push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(out.push(fixture.buffer_with(1)) == PushResult::ok);
    const test::CountedFutex futex;
    std::thread thread([&] {
        while (futex.wait_count == 0) {
            std::this_thread::yield();
        }
        if (dies) {
            static_cast<void>(fixture.member.reap(receiver.me));
            test::abandon(std::move(in));
        } else {
            in.reset();
        }
    });
    BufferPtr buffer = fixture.buffer_with(2);
    CHECK(out.push(std::move(buffer)) == PushResult::closed);
    CHECK(buffer);
    thread.join();
}

// ---- Waiting and notifying

TEST_CASE("where nobody waits, pushing and popping makes no system call") {
    Fixture fixture({.capacity = 8});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    const test::CountedFutex futex;
    for (int number = 0; number < 5000; ++number) {
        REQUIRE(out.push(fixture.buffer_with(number)) == PushResult::ok);
        REQUIRE(wait_for_number(in) == number);
    }
    CHECK(futex.wake_count == 0);
    CHECK(futex.wait_count == 0);
}

TEST_CASE("a consumer that waits is woken by one push, and a producer by one pop") {
    Fixture fixture({.capacity = 2});
    test::Member receiver(fixture.memory);
    Producer out(fixture.port(), park_at_once);
    constexpr int message_count = 300;
    std::thread thread([&] {
        Consumer in(receiver.ports[0], park_at_once);
        for (int number = 0; number < message_count; ++number) {
            if (wait_for_number(in) != number) {
                std::abort();
            }
            if (number % 7 == 0) {
                std::this_thread::yield();
            }
        }
    });
    for (int number = 0; number < message_count; ++number) {
        BufferPtr buffer = fixture.pool().allocate(park_at_once);
        test::write_number(buffer, number);
        REQUIRE(out.push(std::move(buffer)) == PushResult::ok);
    }
    thread.join();
    CHECK(fixture.check() == "");
}

TEST_CASE("waiters that were killed cost one needless wake at each end") {
    Fixture fixture({.capacity = 4});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    for (const PortEnd end : {PortEnd::producer, PortEnd::consumer}) {
        static_cast<void>(fixture.port().view()->waiting_event(end).prepare());
        static_cast<void>(fixture.port().view()->waiting_event(end).prepare());
    }
    const test::CountedFutex futex;
    for (int number = 0; number < 100; ++number) {
        REQUIRE(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
        REQUIRE(pop_number(in) == number);
    }
    CHECK(futex.wake_count == 2);
    CHECK(fixture.port().counters(PortEnd::producer).wakes == 1);
    CHECK(fixture.port().counters(PortEnd::consumer).wakes == 1);
}

// ---- Batches

TEST_CASE("a batch is pushed and popped in order with one notification") {
    Fixture fixture({.capacity = 16});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    std::vector<BufferPtr> batch;
    for (int number = 0; number < 10; ++number) {
        batch.push_back(fixture.buffer_with(number));
    }
    static_cast<void>(fixture.port().view()->waiting_event(PortEnd::consumer).prepare());
    static_cast<void>(fixture.port().view()->waiting_event(PortEnd::producer).prepare());
    const test::CountedFutex futex;
    CHECK(out.try_push(batch) == 10);
    CHECK(futex.wake_count == 1);
    CHECK(std::ranges::none_of(batch, [](const BufferPtr& buffer) { return static_cast<bool>(buffer); }));
    CHECK(fixture.memory.ring_state().tail_hint == 10);
    std::vector<BufferPtr> received(16);
    CHECK(in.try_pop(received) == 10);
    CHECK(futex.wake_count == 2);
    CHECK(fixture.memory.ring_state().head_hint == 10);
    for (int number = 0; number < 10; ++number) {
        CHECK(test::read_number(received[static_cast<std::size_t>(number)]) == number);
    }
    CHECK_FALSE(received[10]);
    CHECK(in.try_pop(received) == 0);
    CHECK_FALSE(received[0]); // the place that was tried was emptied
    CHECK(fixture.pool().free_count() == 11);
}

TEST_CASE("a batch for which there is not room enough leaves its rest with the caller") {
    Fixture fixture({.capacity = 4, .when_full = WhenFull::refuse});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    std::vector<BufferPtr> batch;
    for (int number = 0; number < 6; ++number) {
        batch.push_back(fixture.buffer_with(number));
    }
    CHECK(out.try_push(batch) == 4);
    CHECK(out.last_result() == PushResult::full);
    CHECK_FALSE(batch[3]);
    CHECK((batch[4] && batch[5]));
    const std::span<BufferPtr> rest = std::span(batch).subspan(4);
    CHECK(out.push(rest) == 0); // a port that refuses does not wait
    CHECK(pop_number(in) == 0);
    CHECK(out.push(rest) == 1);
    CHECK(out.try_push(rest.subspan(1)) == 0);
    CHECK(test::read_number(rest[1]) == 5);
    for (int number = 1; number < 5; ++number) {
        CHECK(pop_number(in) == number);
    }
    CHECK(out.try_push(std::span<BufferPtr>()) == 0);
    CHECK(in.try_pop(std::span<BufferPtr>()) == 0);
    CHECK(in.pop(std::span<BufferPtr>()) == 0);
}

TEST_CASE("a batch larger than the port is pushed whole while another pops") {
    Fixture fixture({.capacity = 4}, 64);
    test::Member receiver(fixture.memory);
    std::thread thread([&] {
        Consumer in(receiver.ports[0], park_at_once);
        std::vector<BufferPtr> batch(3);
        int expected = 0;
        while (const std::size_t count = in.pop(batch)) {
            for (std::size_t place = 0; place < count; ++place) {
                if (test::read_number(batch[place]) != expected++) {
                    std::abort();
                }
                batch[place].reset();
            }
        }
        if (expected != 500) {
            std::abort();
        }
    });
    {
        Producer out(fixture.port(), park_at_once);
        for (int number = 0; number < 500; number += 50) {
            std::vector<BufferPtr> batch;
            for (int more = 0; more < 50; ++more) {
                batch.push_back(fixture.pool().allocate(park_at_once));
                test::write_number(batch.back(), number + more);
            }
            CHECK(out.push(batch) == 50);
        }
    }
    thread.join();
    CHECK(fixture.pool().free_count() == 64);
    CHECK(fixture.check() == "");
}

TEST_CASE("a batch with a buffer that cannot be pushed stops in front of it") {
    Fixture fixture({.capacity = 8});
    Producer out(fixture.port());
    std::array<BufferPtr, 3> batch{fixture.buffer_with(0), BufferPtr(), fixture.buffer_with(2)};
    CHECK(out.try_push(batch) == 1);
    CHECK(out.last_result() == PushResult::failed);
    CHECK(out.last_error() == errc::no_buffer);
    CHECK(batch[2]);
    CHECK(out.push(std::span(batch).subspan(1)) == 0);
}

// ---- What is counted and stamped

TEST_CASE("both ends count messages, bytes, stalls, waits and wakes") {
    Fixture fixture({.capacity = 2});
    Producer out(fixture.port(), {.spin_count = 0, .recheck_interval_ns = 1000});
    Consumer in(fixture.port(), {.spin_count = 0, .recheck_interval_ns = 1000});
    CHECK_FALSE(in.try_pop());
    CHECK_FALSE(in.pop_for(20ms));
    for (std::size_t bytes = 10; bytes < 12; ++bytes) {
        BufferPtr buffer = fixture.buffer_with(0);
        buffer.resize(bytes);
        REQUIRE(out.try_push(std::move(buffer)) == PushResult::ok);
    }
    BufferPtr third = fixture.buffer_with(0);
    CHECK(out.try_push(std::move(third)) == PushResult::full);
    CHECK(out.push_for(std::move(third), 20ms) == PushResult::full);
    CHECK(in.try_pop());

    const PortCounters pushed = fixture.port().counters(PortEnd::producer);
    CHECK(pushed.messages == 2);
    CHECK(pushed.bytes == 21);
    CHECK(pushed.stalls == 2);
    CHECK(pushed.waits >= 1);
    CHECK(pushed.wakes == 1); // the consumer had waited
    CHECK(pushed.dropped == 0);
    CHECK(pushed.high_water_mark == 2);
    const PortCounters popped = fixture.port().counters(PortEnd::consumer);
    CHECK(popped.messages == 1);
    CHECK(popped.bytes == 10);
    CHECK(popped.stalls == 2);
    CHECK(popped.waits >= 1);
    CHECK(popped.wakes == 1);
}

TEST_CASE("totals stay when handles go, and are summed over many handles and processes") {
    Fixture fixture({.capacity = 64}, 64);
    const test::Member other(fixture.memory);
    Consumer in(fixture.port());
    std::uint64_t pushed_count = 0;
    for (int round = 0; round < 3; ++round) {
        std::vector<Producer> producers; // 40 of two processes: more than there are lines
        for (int number = 0; number < 40; ++number) {
            producers.emplace_back(number % 2 == 0 ? fixture.port() : other.ports[0]);
        }
        for (std::size_t number = 0; number < producers.size(); ++number) {
            BufferPtr buffer = (number % 2 == 0 ? fixture.pool() : BufferPool(other.pools[0])).try_allocate();
            REQUIRE(producers[number].try_push(std::move(buffer)) == PushResult::ok);
            ++pushed_count;
        }
        CHECK(fixture.port().counters(PortEnd::producer).messages == pushed_count);
        while (in.try_pop()) {
        }
    }
    CHECK(fixture.port().counters(PortEnd::producer).messages == 120);
    CHECK(fixture.port().counters(PortEnd::producer).bytes == 120 * 64);
    CHECK(fixture.port().counters(PortEnd::consumer).messages == 120);
}

TEST_CASE("a line of counters is taken over from the dead with its totals") {
    Fixture fixture({.capacity = 64}, 64);
    for (int round = 0; round < 3; ++round) {
        test::Member victim(fixture.memory);
        for (unsigned number = 0; number < port_counter_line_count; ++number) {
            auto out = std::make_unique<Producer>(victim.ports[0]); // takes a line, and never gives it back
            if (number % 8 == 0) {
                REQUIRE(out->try_push(victim.pools[0].try_allocate()) == PushResult::ok);
            }
            test::abandon(std::move(out));
        }
        REQUIRE(fixture.member.reap(victim.me).ended_entry);
    }
    CHECK(fixture.port().counters(PortEnd::producer).messages == 12);
    CHECK(fixture.memory.port_state().shared_counters[0].counts[0] == 0); // there were lines for all
    Producer out(fixture.port());
    REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    CHECK(fixture.port().counters(PortEnd::producer).messages == 13);
    CHECK(fixture.memory.port_state().shared_counters[0].counts[0] == 0);
}

TEST_CASE("handles beyond the lines share one and lose no count") {
    Fixture fixture({.capacity = 64}, 64);
    std::vector<Producer> producers;
    for (unsigned number = 0; number < port_counter_line_count + 3; ++number) {
        producers.emplace_back(fixture.port());
        REQUIRE(producers.back().try_push(fixture.buffer_with(0)) == PushResult::ok);
    }
    CHECK(fixture.memory.port_state().shared_counters[0].counts[0] == 3);
    CHECK(fixture.port().counters(PortEnd::producer).messages == port_counter_line_count + 3);
}

TEST_CASE("the high-water mark is the capacity once the port was full, and not before it was used") {
    Fixture fixture({.capacity = 4});
    Producer out(fixture.port());
    CHECK(fixture.port().counters(PortEnd::producer).high_water_mark == 0);
    while (out.try_push(fixture.buffer_with(0)) == PushResult::ok) {
    }
    CHECK(fixture.port().counters(PortEnd::producer).high_water_mark == 4);
}

TEST_CASE("the high-water mark samples the depth of a port that is not full") {
    Fixture fixture({.capacity = 1024}, 600);
    Producer out(fixture.port());
    for (int number = 0; number < 512; ++number) {
        REQUIRE(out.try_push(fixture.buffer_with(number)) == PushResult::ok);
    }
    CHECK(fixture.port().counters(PortEnd::producer).high_water_mark == 512);
}

TEST_CASE("each producer numbers its messages from 0 on") {
    Fixture fixture({.capacity = 16});
    Consumer in(fixture.port());
    for (int round = 0; round < 2; ++round) {
        Producer first(fixture.port());
        Producer second(fixture.port());
        for (std::uint64_t number = 0; number < 3; ++number) {
            REQUIRE(first.try_push(fixture.buffer_with(0)) == PushResult::ok);
            REQUIRE(second.try_push(fixture.buffer_with(1)) == PushResult::ok);
        }
        for (std::uint64_t number = 0; number < 6; ++number) {
            CHECK(in.try_pop().sequence() == number / 2);
        }
    }
}

TEST_CASE("a message that was refused does not use up a number") {
    Fixture fixture({.capacity = 2, .when_full = WhenFull::refuse});
    Producer out(fixture.port());
    Consumer in(fixture.port());
    REQUIRE(out.try_push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(out.try_push(fixture.buffer_with(1)) == PushResult::ok);
    BufferPtr third = fixture.buffer_with(2);
    REQUIRE(out.try_push(std::move(third)) == PushResult::full);
    CHECK(in.try_pop().sequence() == 0);
    REQUIRE(out.try_push(std::move(third)) == PushResult::ok);
    CHECK(in.try_pop().sequence() == 1);
    CHECK(in.try_pop().sequence() == 2);
}

TEST_CASE("of clones that are pushed to several ports the first push numbers all") {
    Fixture fixture({pool_of(4)}, {{.capacity = 4, .port_id = 0}, {.capacity = 4, .port_id = 1}});
    Producer first(fixture.port(0));
    Producer second(fixture.port(1));
    Consumer first_in(fixture.port(0));
    Consumer second_in(fixture.port(1));
    for (int number = 0; number < 3; ++number) { // so that the two count differently
        REQUIRE(second.try_push(fixture.buffer_with(0)) == PushResult::ok);
        CHECK(second_in.try_pop());
    }
    for (std::uint64_t number = 0; number < 5; ++number) {
        BufferPtr buffer = fixture.buffer_with(1);
        BufferPtr clone = buffer.clone();
        REQUIRE(first.try_push(std::move(buffer)) == PushResult::ok);
        REQUIRE(second.try_push(std::move(clone)) == PushResult::ok);
        CHECK(first_in.try_pop().sequence() == number);
        CHECK(second_in.try_pop().sequence() == number);
    }
}

TEST_CASE("a clone that finds its port full leaves the number that another clone's push gave") {
    Fixture fixture({pool_of(8)}, {{.capacity = 4, .port_id = 0}, {.capacity = 2, .port_id = 1}});
    Producer first(fixture.port(0));
    Producer second(fixture.port(1));
    Consumer first_in(fixture.port(0));
    Consumer second_in(fixture.port(1));
    for (int number = 0; number < 2; ++number) {
        REQUIRE(second.try_push(fixture.buffer_with(0)) == PushResult::ok);
    }
    BufferPtr buffer = fixture.buffer_with(1);
    BufferPtr clone = buffer.clone();
    REQUIRE(first.try_push(std::move(buffer)) == PushResult::ok);
    for (int attempt = 0; attempt < 3; ++attempt) {
        REQUIRE(second.try_push(std::move(clone)) == PushResult::full);
    }
    CHECK(second_in.try_pop().sequence() == 0);
    REQUIRE(second.try_push(std::move(clone)) == PushResult::ok);
    CHECK(first_in.try_pop().sequence() == 0); // not the 2 that the second producer would have given it
    CHECK(second_in.try_pop().sequence() == 1);
    CHECK(second_in.try_pop().sequence() == 0);
}

TEST_CASE("a message that is pushed on as the only reference is numbered anew") {
    Fixture fixture({pool_of(4)}, {{.capacity = 4, .port_id = 0}, {.capacity = 4, .port_id = 1}});
    Producer first(fixture.port(0));
    Producer second(fixture.port(1));
    Consumer first_in(fixture.port(0));
    Consumer second_in(fixture.port(1));
    REQUIRE(first.try_push(fixture.buffer_with(0)) == PushResult::ok);
    REQUIRE(first.try_push(fixture.buffer_with(1)) == PushResult::ok);
    CHECK(first_in.try_pop());
    REQUIRE(second.try_push(first_in.try_pop()) == PushResult::ok);
    CHECK(second_in.try_pop().sequence() == 0);
}

TEST_CASE("a port with time stamps says when each message was pushed, and one without says 0") {
    Fixture fixture({pool_of(4)}, {{.capacity = 4, .port_id = 0, .time_stamps = true}, {.capacity = 4, .port_id = 1}});
    Producer stamped(fixture.port(0));
    Producer plain(fixture.port(1));
    Consumer stamped_in(fixture.port(0));
    Consumer plain_in(fixture.port(1));
    static std::int64_t now_ns;
    const FutexOps before = replace_futex_ops({nullptr, nullptr, []() noexcept { return now_ns; }});
    for (now_ns = 1'000'000; now_ns < 1'000'005; ++now_ns) {
        CHECK(stamped.try_push(fixture.buffer_with(0)) == PushResult::ok);
        BufferPtr buffer = stamped_in.try_pop();
        CHECK(buffer.time_ns() == static_cast<std::uint64_t>(now_ns));
        CHECK(plain.try_push(std::move(buffer)) == PushResult::ok);
        CHECK(plain_in.try_pop().time_ns() == 0);
    }
    static_cast<void>(replace_futex_ops(before));
}

// ---- All at once

TEST_CASE("random operations of several members agree with a deque") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    const auto when_full = GENERATE(WhenFull::refuse, WhenFull::drop_oldest);
    for (const std::uint32_t capacity : {2U, 16U}) {
        CAPTURE(capacity);
        Fixture fixture({pool_of(24, 4, 0), pool_of(24, 12, 1000)},
                        {{.capacity = capacity, .when_full = when_full, .when_unconsumed = WhenUnconsumed::fill}});
        std::vector<test::Member> members;
        std::vector<Producer> outs;
        std::vector<Consumer> ins;
        for (std::size_t number = 0; number < 3; ++number) {
            members.emplace_back(fixture.memory);
            outs.emplace_back(members[number].ports[0]);
            ins.emplace_back(members[number].ports[0]);
        }
        std::vector<RingState> old_hints{fixture.memory.ring_state()};
        std::deque<int> model;
        std::uint64_t dropped_count = 0;
        std::vector<BufferPtr> held; // copies that keep references of messages that are on their way
        for (int number = 0; number < 12'000; ++number) {
            const std::size_t who = random.below(members.size());
            if (random.one_in(2)) {
                BufferPtr buffer = members[who].pools[random.below(2U)].try_allocate();
                if (!buffer) {
                    FAIL("operation " << number << ": no buffer");
                }
                test::write_number(buffer, number);
                if (random.one_in(3)) {
                    held.push_back(random.one_in(2) ? buffer : buffer.clone());
                }
                const bool was_full = model.size() == capacity;
                const PushResult expected =
                    was_full && when_full == WhenFull::refuse ? PushResult::full : PushResult::ok;
                if (outs[who].push(std::move(buffer)) != expected) {
                    FAIL("operation " << number << ": push of " << model.size());
                }
                if (expected == PushResult::ok) {
                    if (was_full) {
                        model.pop_front();
                        ++dropped_count;
                    }
                    model.push_back(number);
                }
            } else {
                const std::optional<int> popped = pop_number(ins[who]);
                if (popped.has_value() == model.empty() || (popped && *popped != model.front())) {
                    FAIL("operation " << number << ": pop of " << model.size());
                }
                if (popped) {
                    model.pop_front();
                }
            }
            if (held.size() > 5) {
                held.erase(held.begin());
            }
            if (random.one_in(40)) {
                fixture.memory.ring_state() = old_hints[random.below(old_hints.size())];
            } else if (random.one_in(40)) {
                old_hints.push_back(fixture.memory.ring_state());
            }
            if (number % 1000 == 0 && !fixture.check().empty()) {
                FAIL("operation " << number << ": " << fixture.check());
            }
        }
        held.clear();
        CHECK(fixture.check() == "");
        CHECK(fixture.member.census().queued_reference_count == model.size());
        CHECK(fixture.port().counters(PortEnd::producer).dropped == dropped_count);
        while (!model.empty()) {
            CHECK(pop_number(ins[0]) == model.front());
            model.pop_front();
        }
        CHECK(fixture.member.census().free_count == 48);
    }
}
