// Ports between two members: opened on hostile memory, pushed into, popped from and drained while it changes.
#include "small_domain.hpp"

namespace {

constexpr std::size_t held_max = 32;
constexpr std::size_t handle_max = 6;
constexpr weir::WaitOptions at_once{.spin_count = 0};

/// A member with what it has: buffers, and ends of ports.
struct Side {
    Side(const fuzz::SmallDomain& memory, const weir::Membership& membership) : member(memory, membership) {}

    fuzz::Member member;
    std::vector<weir::Producer> producers;
    std::vector<weir::Consumer> consumers;
    std::vector<weir::BufferPtr> held;
};

template <class Things>
void end_one(fuzz::Input& input, Things& things) {
    if (!things.empty()) {
        // Handles are not assigned to each other: the others are moved into a new list.
        const std::size_t chosen = input.below(things.size());
        Things rest;
        for (std::size_t number = 0; number < things.size(); ++number) {
            if (number != chosen) {
                rest.push_back(std::move(things[number]));
            }
        }
        things = std::move(rest);
    }
}

void keep(Side& side, const fuzz::SmallDomain& memory, weir::BufferPtr buffer) {
    if (buffer) {
        fuzz::use(memory, buffer);
        if (side.held.size() < held_max) {
            side.held.push_back(std::move(buffer));
        }
    }
}

void push(fuzz::Input& input, Side& side) {
    if (side.producers.empty() || side.held.empty()) {
        return;
    }
    weir::Producer& producer = side.producers[input.below(side.producers.size())];
    weir::BufferPtr& buffer = side.held[input.below(side.held.size())];
    weir::PushResult result{};
    switch (input.below(4)) {
    case 0: result = producer.push_until(std::move(buffer), 0); break;
    case 1: result = producer.retry_push(std::move(buffer), input.flag()); break;
    case 2: {
        std::vector<weir::BufferPtr> batch;
        batch.swap(side.held);
        static_cast<void>(producer.try_push(std::span(batch)));
        for (weir::BufferPtr& rest : batch) {
            if (rest) {
                side.held.push_back(std::move(rest));
            }
        }
        return;
    }
    default: result = producer.try_push(std::move(buffer));
    }
    fuzz::expect((result == weir::PushResult::ok) == !buffer, "a push takes the buffer if and only if it succeeds");
    fuzz::expect(result != weir::PushResult::failed || producer.last_error(), "a push that failed says why");
    if (!buffer) {
        std::swap(buffer, side.held.back());
        side.held.pop_back();
    }
}

void pop(fuzz::Input& input, Side& side, const fuzz::SmallDomain& memory) {
    if (side.consumers.empty()) {
        return;
    }
    weir::Consumer& consumer = side.consumers[input.below(side.consumers.size())];
    switch (input.below(3)) {
    case 0: keep(side, memory, consumer.pop_until(0)); break;
    case 1: {
        std::vector<weir::BufferPtr> batch(3);
        static_cast<void>(consumer.try_pop(std::span(batch)));
        for (weir::BufferPtr& buffer : batch) {
            keep(side, memory, std::move(buffer));
        }
        break;
    }
    default: keep(side, memory, consumer.try_pop());
    }
}

void look(fuzz::Input& input, Side& side, const fuzz::SmallDomain& memory, bool is_hostile) {
    const weir::Port& port = side.member.ports[input.below(fuzz::port_count)];
    const std::vector<std::string> broken = port.check();
    if (!is_hostile) {
        fuzz::expect_sound(broken);
    }
    for (const weir::PortEnd end : {weir::PortEnd::producer, weir::PortEnd::consumer}) {
        static_cast<void>(port.counters(end));
        static_cast<void>(port.view()->handles(end));
        static_cast<void>(port.view()->is_attached_by_us(end));
    }
    for (weir::Consumer& consumer : side.consumers) {
        static_cast<void>(consumer.may_have_message());
        static_cast<void>(consumer.has_message());
        static_cast<void>(consumer.stream_end());
        static_cast<void>(consumer.wait_for_producer(std::chrono::nanoseconds(-1)));
    }
    for (const weir::BufferPtr& buffer : side.held) {
        fuzz::use(memory, buffer);
    }
}

void run(fuzz::Input& input, const fuzz::SmallDomain& memory, bool& is_hostile) {
    weir::ProcessTable table = memory.table();
    const weir::Membership members[] = {table.join(), table.join()};
    const std::size_t before_count = input.below(4);
    for (std::size_t number = 0; number < before_count; ++number) {
        fuzz::write_hostile(input, memory.regions());
        is_hostile = true;
    }
    Side sides[] = {Side(memory, members[0]), Side(memory, members[1])};
    while (!input.is_empty()) {
        Side& side = sides[input.below(std::size(sides))];
        switch (input.below(16)) {
        case 0:
        case 1:
        case 2:
            fuzz::write_hostile(input, memory.regions());
            is_hostile = true;
            break;
        case 3:
        case 4: keep(side, memory, side.member.pool(input.below(fuzz::pool_count)).try_allocate()); break;
        case 5: keep(side, memory, side.member.buffers.try_allocate(input.byte())); break;
        case 6:
            if (side.producers.size() < handle_max) {
                fuzz::attempt(
                    [&] { side.producers.emplace_back(side.member.ports[input.below(fuzz::port_count)], at_once); });
            }
            break;
        case 7:
            if (side.consumers.size() < handle_max) {
                fuzz::attempt(
                    [&] { side.consumers.emplace_back(side.member.ports[input.below(fuzz::port_count)], at_once); });
            }
            break;
        case 8:
        case 9: push(input, side); break;
        case 10:
        case 11: pop(input, side, memory); break;
        case 12:
            if (!side.held.empty()) {
                const weir::BufferPtr& buffer = side.held[input.below(side.held.size())];
                keep(side, memory, input.flag() ? buffer.clone() : weir::BufferPtr(buffer));
            }
            break;
        case 13: end_one(input, side.held); break;
        case 14:
            if (input.flag()) {
                end_one(input, side.producers);
            } else {
                end_one(input, side.consumers);
            }
            break;
        default: look(input, side, memory, is_hostile);
        }
    }
    for (Side& side : sides) {
        side.held.clear();
        side.producers.clear();
        side.consumers.clear();
    }
    fuzz::end_well(memory, sides[0].member, is_hostile, [] {});
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static fuzz::SmallDomain memory;
    memory.reset();
    fuzz::Input input(data, size);
    memory.set_policies(input.byte());
    fuzz::run_target([&](bool& is_hostile) { run(input, memory, is_hostile); }, "what was formatted can be opened");
    return 0;
}
