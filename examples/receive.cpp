// Buffers from another program: see send.cpp.
#include <weir/weir.hpp>

#include <cstdio>
#include <exception>

int main(int argument_count, char** arguments) try {
    const char* name = argument_count > 1 ? arguments[1] : "hello";
    int received = 0;

    weir::Domain domain = weir::Domain::join(name);
    weir::Consumer in = domain.consumer("raw", {.capacity = 8}); // the same options, or none where it has to be there
    while (const weir::BufferPtr frame = in.pop()) {             // waits; empty at the end of the stream
        received += frame.bytes().back() == static_cast<std::byte>(frame.sequence()) ? 1 : 0;
    }
    const bool is_whole = in.stream_end() == weir::StreamEnd::closed; // or died: the sender was killed

    std::printf("%d frames came as they were sent; the sender %s\n", received, is_whole ? "is done" : "died");
    return is_whole && received == 100 ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
