// What a full port does, and a port that nobody empties: one port for each policy, in a domain of this process alone.
#include <weir/weir.hpp>

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

#include <unistd.h>

namespace {

using namespace std::chrono_literals;

/// Pushes three messages into a port with room for two, without waiting longer than a moment; what the last push came to.
weir::PushResult push_three(weir::Producer& out, weir::BufferPool& buffers) {
    weir::PushResult result = weir::PushResult::ok;
    for (std::uint32_t number = 0; number < 3; ++number) {
        weir::BufferPtr buffer = buffers.allocate();
        buffer.set_tag(number);
        result = out.push_for(std::move(buffer), 10ms);
    }
    return result;
}

bool is_as_expected(const char* policy, weir::PushResult result, weir::PushResult expected, std::uint32_t oldest) {
    std::printf("%-20s the third push into a port for two is %s; the oldest message is number %u\n", policy,
                result == weir::PushResult::ok ? "ok" : "full", oldest);
    return result == expected;
}

} // namespace

int main() try {
    const std::string name = "policies-" + std::to_string(getpid());
    bool is_fine = true;
    {
        weir::Domain domain = weir::Domain::join(name);
        weir::BufferPool buffers = domain.pool("buffers", {.buffer_bytes = 4'096, .buffer_count = 16});

        // Nothing is lost, and a fast producer goes as fast as its slowest consumer: for files, for work to be done.
        weir::Producer waiting = domain.producer("all", {.capacity = 2, .when_full = weir::WhenFull::wait});

        // The producer is told, and keeps the buffer: it may drop it, count it, or try elsewhere.
        weir::Producer refused = domain.producer("some", {.capacity = 2, .when_full = weir::WhenFull::refuse});

        // The newest messages win, and the producer never waits: for what is live, a camera or a sensor.
        weir::Producer dropping = domain.producer("newest", {.capacity = 2, .when_full = weir::WhenFull::drop_oldest});

        weir::Consumer all = domain.consumer("all");
        weir::Consumer some = domain.consumer("some");
        weir::Consumer newest = domain.consumer("newest");
        const weir::PushResult waited = push_three(waiting, buffers);
        const weir::PushResult was_refused = push_three(refused, buffers);
        const weir::PushResult dropped = push_three(dropping, buffers);
        is_fine &= is_as_expected("wait (for 10 ms)", waited, weir::PushResult::full, all.pop().tag());
        is_fine &= is_as_expected("refuse", was_refused, weir::PushResult::full, some.pop().tag());
        is_fine &= is_as_expected("drop_oldest", dropped, weir::PushResult::ok, newest.pop().tag());

        // A port without consumers: closed to its producers once there were some, or filled for those who come later.
        weir::Producer closing = domain.producer("pipe", {.capacity = 2});
        weir::Producer filling =
            domain.producer("mailbox", {.capacity = 2, .when_unconsumed = weir::WhenUnconsumed::fill});
        static_cast<void>(domain.consumer("pipe")); // comes, and is gone at once
        static_cast<void>(domain.consumer("mailbox"));
        const weir::PushResult closed = closing.push(buffers.allocate());
        const weir::PushResult filled = filling.push(buffers.allocate());
        std::printf("without consumers, a push is %s with close, and %s with fill\n",
                    closed == weir::PushResult::closed ? "closed" : "not closed",
                    filled == weir::PushResult::ok ? "ok" : "not ok");
        is_fine &= closed == weir::PushResult::closed && filled == weir::PushResult::ok;
    }
    weir::Domain::remove(name, {.lock_file = true}); // a name that is not used again
    return is_fine ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "policies: %s\n", error.what());
    return 1;
}
