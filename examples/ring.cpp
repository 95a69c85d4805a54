// A ring alone, in memory of one's own: numbers from a child to its parent.
//
// Any mapping that the processes share will do, and zeroed bytes are an empty ring. A ring does not wait: where there is
// no room or nothing to take, the caller decides what to do meanwhile.
#include <weir/ring.hpp>

#include <cstdint>
#include <cstdio>
#include <span>

#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int main() {
    constexpr std::uint32_t capacity = 256;
    constexpr std::uint32_t number_count = 10'000;
    constexpr std::size_t bytes = weir::Ring::bytes(capacity);

    void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        std::perror("mmap");
        return 1;
    }
    const weir::Ring ring(std::span(static_cast<std::byte*>(mapping), bytes), capacity);

    const pid_t child = fork();
    if (child == 0) {
        weir::RingProducer producer(ring);
        for (std::uint32_t number = 0; number < number_count; ++number) {
            while (producer.try_push(number) == weir::RingStatus::full) {
                sched_yield();
            }
        }
        return 0;
    }

    weir::RingConsumer consumer(ring);
    bool in_order = true;
    for (std::uint32_t expected = 0; expected < number_count; ++expected) {
        std::uint32_t number = 0;
        while (consumer.try_pop(number) == weir::RingStatus::empty) {
            sched_yield();
        }
        in_order = in_order && number == expected;
    }
    int status = -1;
    waitpid(child, &status, 0);
    std::printf("%u numbers came %s\n", number_count, in_order ? "in order" : "IN DISORDER");
    return in_order && status == 0 && ring.check().empty() ? 0 : 1;
}
