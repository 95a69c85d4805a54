// One producer process that sends each buffer to several ports at once, and a consumer process at each.
//
//     fan_out --ports 3 --buffers 32 --messages 20000
//
// Each consumer gets every message, in order and unmoved; nobody writes while it is shared; the last one to drop it makes
// it free. With 4 references a buffer goes to 4 ports at most, with 12 to 12.
#include "scenario.hpp"

#include <array>

using namespace scenario;

namespace {

constexpr unsigned watchdog_s = 200;

void produce(const test::DomainMemory& memory, std::uint32_t message_count) {
    test::Member member(memory);
    {
        std::vector<weir::Producer> outs;
        for (const weir::Port& port : member.ports) {
            outs.emplace_back(port);
        }
        for (std::uint32_t number = 0; number < message_count; ++number) {
            weir::BufferPtr buffer = member.pools[0].allocate();
            Message::of(0, number).write_to(buffer);
            buffer.set_tag(number);
            // By turns as clones and as copies, of which the push takes a reference itself.
            std::vector<weir::BufferPtr> references;
            for (std::size_t place = 1; place < outs.size(); ++place) {
                references.push_back(number % 2 == 0 ? buffer.clone() : buffer);
            }
            references.push_back(std::move(buffer));
            for (std::size_t place = 0; place < outs.size(); ++place) {
                if (outs[place].push(std::move(references[place])) != weir::PushResult::ok) {
                    fail("push ended with %d: %s", static_cast<int>(outs[place].last_result()),
                         outs[place].last_error().message().c_str());
                }
            }
        }
    }
    static_cast<void>(member.leave());
}

void consume(const test::DomainMemory& memory, std::size_t place, std::uint32_t message_count) {
    test::Member member(memory);
    {
        weir::Consumer in(member.ports[place]);
        std::uint32_t expected = 0;
        while (const weir::BufferPtr buffer = in.pop()) {
            const Message message = Message::read_from(buffer.bytes().data());
            if (!message.is_whole() || message.number != expected || buffer.tag() != expected ||
                buffer.sequence() != expected) {
                fail("port %zu: message %u (sequence %llu, tag %u) instead of %u", place, message.number,
                     static_cast<unsigned long long>(buffer.sequence()), buffer.tag(), expected);
            }
            const std::uint32_t use_count = buffer.use_count();
            if (use_count == 0 || use_count > member.ports.size()) {
                fail("a buffer for %zu ports has %u users", member.ports.size(), use_count);
            }
            ++expected;
        }
        if (expected != message_count || in.stream_end() != weir::StreamEnd::closed) {
            fail("port %zu got %u messages of %u", place, expected, message_count);
        }
    }
    static_cast<void>(member.leave());
}

} // namespace

int main(int argument_count, char** arguments) {
    const unsigned port_count = option(argument_count, arguments, "--ports", 3);
    const unsigned buffer_count = option(argument_count, arguments, "--buffers", 32);
    const unsigned message_count = option(argument_count, arguments, "--messages", 20'000);
    std::vector<weir::PortOptions> ports;
    for (std::uint32_t number = 0; number < port_count; ++number) {
        ports.push_back({.capacity = 8, .port_id = number});
    }
    const test::DomainMemory memory({{.buffer_bytes = sizeof(Message),
                                      .buffer_count = buffer_count,
                                      .references_per_buffer = port_count <= 4 ? 4U : 12U}},
                                    ports);
    alarm(watchdog_s + 20);
    Processes processes;
    std::vector<pid_t> children;
    for (std::size_t place = 0; place < port_count; ++place) {
        children.push_back(processes.start(watchdog_s, [&] { consume(memory, place, message_count); }));
    }
    children.push_back(processes.start(watchdog_s, [&] { produce(memory, message_count); }));
    for (const pid_t child : children) {
        Processes::wait_for(child);
    }
    const test::Member observer(memory);
    weir::DomainCensus census;
    const std::string broken = observer.check(&census);
    if (!broken.empty() || census.free_count != buffer_count) {
        fail("%u of %u buffers are free; %s", census.free_count, buffer_count, broken.c_str());
    }
    return 0;
}
