// Buffers from one process to another: the child fills them, the parent reads them where they lie.
#include <weir/weir.hpp>

#include <algorithm>
#include <cstdio>
#include <span>

#include <sys/wait.h>
#include <unistd.h>

int main() {
    int received = 0;

    const weir::BufferPoolOptions frame_options{.buffer_bytes = 65'536, .buffer_count = 16};
    const weir::PortOptions port_options{.capacity = 8};
    weir::Segment segment = weir::Segment::anonymous(2 << 20); // children forked from here on share it
    weir::SegmentCursor cursor(segment.bytes());
    weir::ProcessTable processes(cursor.take(weir::ProcessTable::bytes()));
    const auto control = cursor.take(weir::BufferPool::control_bytes(frame_options));
    const auto payload = cursor.take(weir::BufferPool::payload_bytes(frame_options));
    const auto queue = cursor.take(weir::Port::bytes(port_options));
    weir::BufferPool::format(control, frame_options);
    weir::Port::format(queue, port_options);

    const pid_t child = fork();
    const weir::Membership me = processes.join();
    weir::BufferPool frames(control, payload, me);
    weir::Port port(queue, me, weir::SharedBufferAllocator(frames));
    if (child == 0) {
        weir::Producer out(port);
        for (int number = 0; number < 100; ++number) {
            weir::BufferPtr frame = frames.allocate(); // waits for a free one
            std::ranges::fill(frame.bytes(), static_cast<std::byte>(number));
            out.push(std::move(frame)); // waits for room; the frame stays where it is
        }
    } else {
        weir::Consumer in(port);
        while (weir::BufferPtr frame = in.pop()) { // empty at the end of the stream
            received += frame.bytes().back() == static_cast<std::byte>(frame.sequence()) ? 1 : 0;
        }
    }
    weir::leave(me, weir::SharedBufferAllocator(frames), {&port, 1});

    if (child == 0) {
        return 0;
    }
    int status = -1;
    waitpid(child, &status, 0);
    std::printf("%d of 100 frames came as they were sent; %u of 16 buffers are free again\n", received,
                frames.free_count());
    return received == 100 && frames.free_count() == 16 && status == 0 ? 0 : 1;
}
