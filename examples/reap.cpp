// A process is killed while it holds a buffer, and what it held comes back.
//
// The child pushes one message, keeps a second buffer in its hands, and is killed. Its parent learns of the death from
// waitpid(), which is a proof, and reaps it: the buffer in its hands is free again, and the message that it had pushed
// is still there. The parent joins for the child before it forks, so that it knows whom to reap.
#include <weir/weir.hpp>

#include <csignal>
#include <cstdio>
#include <span>

#include <sys/wait.h>
#include <unistd.h>

int main() {
    const weir::BufferPoolOptions buffer_options{.buffer_bytes = 4'096, .buffer_count = 2};
    const weir::PortOptions port_options{.capacity = 2};
    weir::Segment segment = weir::Segment::anonymous(1 << 20);
    weir::SegmentCursor cursor(segment.bytes());
    weir::ProcessTable processes(cursor.take(weir::ProcessTable::bytes()));
    const auto control = cursor.take(weir::BufferPool::control_bytes(buffer_options));
    const auto payload = cursor.take(weir::BufferPool::payload_bytes(buffer_options));
    const auto queue = cursor.take(weir::Port::bytes(port_options));
    weir::BufferPool::format(control, buffer_options);
    weir::Port::format(queue, port_options);

    const weir::Membership child = processes.join();
    const pid_t child_pid = fork();
    if (child_pid == 0) {
        weir::BufferPool buffers(control, payload, child);
        weir::Producer out(weir::Port(queue, child, weir::SharedBufferAllocator(buffers)));
        out.push(buffers.allocate());
        const weir::BufferPtr in_its_hands = buffers.allocate();
        raise(SIGKILL);
    }
    int status = 0;
    waitpid(child_pid, &status, 0);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
        return 1;
    }

    const weir::Membership me = processes.join();
    weir::BufferPool buffers(control, payload, me);
    weir::Port port(queue, me, weir::SharedBufferAllocator(buffers));
    std::printf("killed: %u of 2 buffers are free\n", buffers.free_count());

    const weir::ReapResult result = weir::reap(child, weir::SharedBufferAllocator(buffers), {&port, 1});
    std::printf("reaped: %u of 2 buffers are free, %u message of the dead is still in the port\n", buffers.free_count(),
                result.kept_message_count);
    if (result.error || buffers.free_count() != 1) {
        return 1;
    }

    weir::Consumer in(port);
    const bool has_message = static_cast<bool>(in.pop());
    const bool is_at_its_end = !in.pop() && in.stream_end() == weir::StreamEnd::died;
    std::printf("taken: %u of 2 buffers are free; the stream ended with the death of its producer\n",
                buffers.free_count());
    return has_message && is_at_its_end && buffers.free_count() == 2 ? 0 : 1;
}
