// A camera that never waits: when the viewer is slow, the oldest frames are dropped, and it sees the newest ones.
//
// A port that was formatted with `drop_oldest` is never full: its producer takes the oldest message out itself, as a
// consumer would. So the camera needs as many buffers as the port holds, and one for each frame that is being written
// or looked at.
#include <weir/weir.hpp>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr std::uint64_t frame_count = 200;

void film(weir::BufferPool& frames, const weir::Port& port) {
    weir::Producer out(port);
    for (std::uint64_t number = 0; number < frame_count; ++number) {
        weir::BufferPtr frame = frames.allocate();
        std::memcpy(frame.bytes().data(), &number, sizeof(number));
        out.push(std::move(frame));
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
}

/// How many frames it saw; 0 where they came in the wrong order.
std::uint64_t view(const weir::Port& port) {
    weir::Consumer in(port);
    std::uint64_t seen_count = 0;
    std::uint64_t next = 0;
    while (const weir::BufferPtr frame = in.pop()) {
        std::uint64_t number = 0;
        std::memcpy(&number, frame.bytes().data(), sizeof(number));
        if (number < next || number != frame.sequence()) {
            return 0;
        }
        next = number + 1;
        ++seen_count;
        std::this_thread::sleep_for(std::chrono::milliseconds(1)); // slower than the camera
    }
    return seen_count;
}

} // namespace

int main() {
    const weir::BufferPoolOptions frame_options{.buffer_bytes = 4'096, .buffer_count = 6};
    const weir::PortOptions port_options{.capacity = 4, .when_full = weir::WhenFull::drop_oldest};
    weir::Segment segment = weir::Segment::anonymous(1 << 20);
    weir::SegmentCursor cursor(segment.bytes());
    weir::ProcessTable processes(cursor.take(weir::ProcessTable::bytes()));
    const auto control = cursor.take(weir::BufferPool::control_bytes(frame_options));
    const auto payload = cursor.take(weir::BufferPool::payload_bytes(frame_options));
    const auto queue = cursor.take(weir::Port::bytes(port_options));
    weir::BufferPool::format(control, frame_options);
    weir::Port::format(queue, port_options);

    const pid_t camera = fork();
    const weir::Membership me = processes.join();
    weir::BufferPool frames(control, payload, me);
    weir::Port port(queue, me, weir::SharedBufferAllocator(frames));
    if (camera == 0) {
        film(frames, port);
        weir::leave(me, weir::SharedBufferAllocator(frames), {&port, 1});
        return 0;
    }
    const std::uint64_t seen_count = view(port);
    int status = -1;
    waitpid(camera, &status, 0);
    const std::uint64_t dropped_count = port.counters(weir::PortEnd::producer).dropped;
    std::printf("%ju frames filmed, %ju seen in order, %ju dropped\n", std::uintmax_t{frame_count},
                std::uintmax_t{seen_count}, std::uintmax_t{dropped_count});
    return seen_count > 0 && seen_count + dropped_count == frame_count && status == 0 ? 0 : 1;
}
