// Sends numbers to consumer.cpp, which may be started before it or after it.
//
//     producer DOMAIN
#include <weir/weir.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <system_error>
#include <utility>

namespace {

/// Whether what the library throws is told apart here: the two have to agree on its type, and on the category of its code.
bool is_error_told_apart() {
    alignas(weir::cache_line_bytes) static std::byte memory[weir::Ring::bytes(8)] = {};
    try {
        weir::Ring(memory, 7);
    } catch (const std::system_error& error) {
        return error.code() == weir::errc::invalid_capacity;
    }
    return false;
}

} // namespace

int main(int argument_count, char** arguments) try {
    if (argument_count != 2 || !is_error_told_apart()) {
        return 2;
    }
    weir::Domain domain = weir::Domain::join(arguments[1]);
    weir::BufferPool pool = domain.pool("numbers", {.buffer_bytes = 64, .buffer_count = 16});
    weir::Producer out = domain.producer("numbers", {.capacity = 8});
    for (std::uint32_t number = 1; number <= 1000; ++number) {
        weir::BufferPtr buffer = pool.allocate();
        std::memcpy(buffer.bytes().data(), &number, sizeof(number));
        if (out.push(std::move(buffer)) != weir::PushResult::ok) {
            return 1;
        }
    }
    std::printf("sent 1000 numbers\n");
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
