// The two shortest ways in which one thread's plain writes reach another: a buffer that is dropped and allocated, and a
// value that goes through a ring. Built with the headers as they are it is free of data races; built with headers in which
// one memory order is weakened, ThreadSanitizer must find one.
//
//     handover buffers|values [--rounds 20000]
#include "../testing.hpp"

#include <string_view>
#include <thread>

using namespace weir;

namespace {

struct Payload {
    std::uint64_t words[8];
};

/// Two members take a pool's only buffer from each other.
void hand_over_buffers(unsigned round_count) {
    const test::DomainMemory memory({{.buffer_bytes = sizeof(Payload), .buffer_count = 1}}, {});
    const auto work = [&memory, round_count](std::uint64_t id) {
        test::Member me(memory);
        for (unsigned round = 0; round < round_count; ++round) {
            BufferPtr buffer = me.pools[0].try_allocate();
            if (!buffer) {
                std::this_thread::yield();
                continue;
            }
            auto& payload = *reinterpret_cast<Payload*>(buffer.bytes().data());
            for (std::uint64_t& word : payload.words) {
                word = id << 32 | round;
            }
        }
    };
    std::thread other(work, 1);
    work(2);
    other.join();
}

/// A producer writes slots and sends their numbers; a consumer reads the slots, and sends them back.
void hand_over_values(unsigned round_count) {
    constexpr std::uint32_t slot_count = 4;
    const test::Memory there_memory(Ring::bytes(slot_count));
    const test::Memory back_memory(Ring::bytes(slot_count));
    const Ring there(there_memory.span(), slot_count);
    const Ring back(back_memory.span(), slot_count);
    std::vector<Payload> slots(slot_count);
    std::thread consumer([&] {
        RingConsumer in(there);
        RingProducer out(back);
        for (unsigned round = 0; round < round_count; ++round) {
            std::uint32_t slot = 0;
            while (in.try_pop(slot) != RingStatus::ok) {
                std::this_thread::yield();
            }
            for (const std::uint64_t word : slots[slot].words) {
                if (word != round) {
                    std::fprintf(stderr, "FAILED: slot %u holds %llu in round %u\n", slot,
                                 static_cast<unsigned long long>(word), round);
                    _exit(1);
                }
            }
            while (out.try_push(slot) != RingStatus::ok) {
                std::this_thread::yield();
            }
        }
    });
    RingProducer out(there);
    RingConsumer in(back);
    for (unsigned round = 0; round < round_count; ++round) {
        std::uint32_t slot = round;
        while (round >= slot_count && in.try_pop(slot) != RingStatus::ok) {
            std::this_thread::yield();
        }
        for (std::uint64_t& word : slots[slot].words) {
            word = round;
        }
        while (out.try_push(slot) != RingStatus::ok) {
            std::this_thread::yield();
        }
    }
    consumer.join();
}

} // namespace

int main(int argument_count, char** arguments) {
    alarm(100);
    const std::string_view what = argument_count > 1 ? arguments[1] : "";
    const unsigned round_count = argument_count > 3 ? static_cast<unsigned>(std::atoi(arguments[3])) : 20'000;
    if (what == "buffers") {
        hand_over_buffers(round_count);
    } else if (what == "values") {
        hand_over_values(round_count);
    } else {
        std::fprintf(stderr, "usage: handover buffers|values [--rounds N]\n");
        return 2;
    }
    return 0;
}
