// A domain that is as small as one can be and still have two of everything, for the targets that work on memory.
#pragma once

#include "fuzzing.hpp"

#include <optional>

namespace fuzz {

inline constexpr std::size_t pool_count = 2;
inline constexpr std::size_t port_count = 2;
inline constexpr weir::BufferPoolOptions pool_options[pool_count] = {
    {.buffer_bytes = 64, .buffer_count = 5, .references_per_buffer = 4, .first_buffer = 0},
    {.buffer_bytes = 128, .buffer_count = 3, .references_per_buffer = 12, .first_buffer = 5},
};
inline constexpr std::uint32_t buffer_count = 8;
inline constexpr weir::PortOptions port_options[port_count] = {
    {.capacity = 4, .port_id = 0},
    {.capacity = 2, .port_id = 1, .time_stamps = true},
};

/// Its memory: a process table, pools and ports, each in a piece of its own.
class SmallDomain {
public:
    SmallDomain() {
        for (std::size_t number = 0; number < pool_count; ++number) {
            weir::BufferPool::format(control(number), pool_options[number]);
            controls_[number].keep(lanes_offset(slot_count),
                                   lanes_offset(weir::process_slot_count) - lanes_offset(slot_count));
        }
        for (std::size_t number = 0; number < port_count; ++number) {
            weir::Port::format(port(number), port_options[number]);
            ports_[number].keep();
        }
    }

    void reset() {
        table_.reset();
        for (Memory& control : controls_) {
            control.reset();
        }
        for (Memory& port : ports_) {
            port.reset();
        }
    }
    /// How the ports do when they are full or nobody consumes. Nobody has opened them yet.
    void set_policies(std::uint8_t choice) const {
        for (std::size_t number = 0; number < port_count; ++number) {
            auto& state = *reinterpret_cast<weir::PortState*>(port(number).data());
            state.when_full = static_cast<std::uint8_t>((choice >> (4 * number) & 3) % 3);
            state.when_unconsumed = choice >> (4 * number + 2) & 1;
        }
    }

    [[nodiscard]] weir::ProcessTable table() const { return weir::ProcessTable(table_.span()); }
    [[nodiscard]] std::span<std::byte> control(std::size_t number) const { return controls_[number].span(); }
    [[nodiscard]] std::span<std::byte> payload(std::size_t number) const { return payloads_[number].span(); }
    [[nodiscard]] std::span<std::byte> port(std::size_t number) const { return ports_[number].span(); }

    /// Where hostile writes go: the words that decide something more often than the large rest.
    [[nodiscard]] const std::vector<std::span<std::byte>>& regions() const noexcept { return regions_; }

private:
    static constexpr std::size_t slot_count = 4; ///< of which members are

    [[nodiscard]] std::vector<std::span<std::byte>> find_regions() const {
        std::vector<std::span<std::byte>> regions{table_.span().first(4 * sizeof(std::uint64_t)), table_.span()};
        for (std::size_t number = 0; number < pool_count; ++number) {
            const std::span<std::byte> all = control(number);
            const std::size_t headers_offset =
                sizeof(weir::BufferPoolState) + weir::FreeHints::bytes(pool_options[number].buffer_count);
            const std::size_t bitmap_offset = lanes_offset(weir::process_slot_count);
            regions.push_back(all.first(sizeof(weir::BufferPoolState)));
            regions.push_back(all.subspan(headers_offset));
            regions.push_back(all.subspan(bitmap_offset, headers_offset - bitmap_offset));
            regions.push_back(all.subspan(lanes_offset(0), lanes_offset(slot_count) - lanes_offset(0)));
        }
        for (std::size_t number = 0; number < port_count; ++number) {
            const std::span<std::byte> all = port(number);
            regions.push_back(all.first(offsetof(weir::PortState, members)));
            for (const std::size_t end : {0U, 1U}) {
                regions.push_back(
                    all.subspan(offsetof(weir::PortState, members) + end * sizeof(weir::PortState::members[0]), 32));
            }
            regions.push_back(all.subspan(offsetof(weir::PortState, counter_lines)).first(128));
            regions.push_back(all.subspan(sizeof(weir::PortState), sizeof(weir::RingState)));
            regions.push_back(all.subspan(sizeof(weir::PortState) + sizeof(weir::RingState)));
            regions.push_back(all.subspan(sizeof(weir::PortState) + sizeof(weir::RingState)));
            regions.push_back(all);
        }
        return regions;
    }

    Memory table_{weir::ProcessTable::bytes()};
    Memory controls_[pool_count] = {Memory(weir::BufferPool::control_bytes(pool_options[0])),
                                    Memory(weir::BufferPool::control_bytes(pool_options[1]))};
    Memory payloads_[pool_count] = {Memory(weir::BufferPool::payload_bytes(pool_options[0])),
                                    Memory(weir::BufferPool::payload_bytes(pool_options[1]))};
    Memory ports_[port_count] = {Memory(weir::Port::bytes(port_options[0])),
                                 Memory(weir::Port::bytes(port_options[1]))};
    std::vector<std::span<std::byte>> regions_ = find_regions();
};

/// One membership's views of a small domain. This process stands for several.
struct Member {
    Member(const SmallDomain& memory, const weir::Membership& membership) : me(membership) {
        for (std::size_t number = 0; number < pool_count; ++number) {
            buffers.add(weir::BufferPool(memory.control(number), memory.payload(number), me));
        }
        for (std::size_t number = 0; number < port_count; ++number) {
            ports.emplace_back(memory.port(number), me, buffers);
        }
    }
    [[nodiscard]] weir::BufferPool pool(std::size_t number) const { return buffers.pools()[number]; }

    weir::Membership me;
    weir::SharedBufferAllocator buffers;
    std::vector<weir::Port> ports;
};

/// Reads and writes all of a message.
inline void use(const SmallDomain& memory, const weir::BufferPtr& buffer) {
    const std::span<std::byte> bytes = buffer.bytes();
    bool lies_in_payload = bytes.empty();
    for (std::size_t number = 0; number < pool_count; ++number) {
        const std::span<std::byte> payload = memory.payload(number);
        lies_in_payload = lies_in_payload || (bytes.data() >= payload.data() &&
                                              bytes.data() + bytes.size() <= payload.data() + payload.size());
    }
    expect(lies_in_payload, "a message lies within its pool's payload");
    for (std::byte& byte : bytes) {
        byte ^= std::byte{1};
    }
    static_cast<void>(buffer.tag() + buffer.sequence() + buffer.time_ns() + buffer.use_count());
}

/// Pops until there is nothing, which has to come.
inline std::uint32_t drain(const SmallDomain& memory, const weir::Port& port) {
    weir::Consumer consumer(port);
    std::uint32_t count = 0;
    while (const weir::BufferPtr buffer = consumer.try_pop()) {
        use(memory, buffer);
        expect(++count <= port.options().capacity, "a port that nobody fills has no more messages than cells");
    }
    return count;
}

/// The end of a run: what is queued is popped, `leave()` is called, and then nothing is held where nothing hostile was written.
template <class Leave>
void end_well(const SmallDomain& memory, const Member& member, bool is_hostile, Leave&& leave) {
    std::uint32_t popped_count = 0;
    for (const weir::Port& port : member.ports) {
        popped_count += drain(memory, port);
    }
    leave();
    weir::DomainCensus census;
    const std::vector<std::string> broken = weir::check_domain(member.me.table, member.buffers, member.ports, &census);
    if (!is_hostile) {
        expect_sound(broken);
        expect(census.free_count == buffer_count, "all buffers are free at the end");
    }
    if (broken.empty() && popped_count > 0) {
        succeeded();
    }
}

} // namespace fuzz
