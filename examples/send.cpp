// Buffers to another program: start this and receive.cpp in two terminals, in any order.
//
// It waits where the receiver is slow or not there yet. The name of the domain may be given as an argument.
#include <weir/weir.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>

int main(int argument_count, char** arguments) try {
    const char* name = argument_count > 1 ? arguments[1] : "hello";

    weir::Domain domain = weir::Domain::join(name); // whoever comes first makes it
    weir::BufferPool frames = domain.pool("frames", {.buffer_bytes = 65'536, .buffer_count = 16});
    weir::Producer out = domain.producer("raw", {.capacity = 8});
    for (int number = 0; number < 100; ++number) {
        weir::BufferPtr frame = frames.allocate(); // waits for a free one
        std::ranges::fill(frame.bytes(), static_cast<std::byte>(number));
        if (out.push(std::move(frame)) != weir::PushResult::ok) { // waits for room; the frame stays where it is
            std::printf("nobody is there any more who wants frame %d\n", number);
            return 1;
        }
    }
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
