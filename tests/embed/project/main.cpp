// Uses of weir what an embedder gets: all the headers, and the library behind them.
#include <weir/weir.hpp>

#include <cstddef>
#include <cstdint>
#include <system_error>

int main() {
    alignas(weir::cache_line_bytes) static std::byte memory[weir::Ring::bytes(8)] = {};
    weir::Ring ring(memory, 8);
    weir::RingProducer producer(ring);
    weir::RingConsumer consumer(ring);
    std::uint32_t value = 0;
    if (producer.try_push(42) != weir::RingStatus::ok || consumer.try_pop(value) != weir::RingStatus::ok || value != 42)
        return 1;
    try {
        weir::Ring(memory, 7);
    } catch (const std::system_error& error) {
        // Thrown by the library, told apart here: the two are one category.
        return error.code() == weir::errc::invalid_capacity ? 0 : 2;
    }
    return 3;
}
