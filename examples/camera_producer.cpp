// A camera that never waits. Start it and camera_consumer.cpp in two terminals, in any order and several of each; kill
// them (-9) and start them again.
//
//     camera_producer [--domain NAME] [--frames N] [--bytes N] [--rate N]
//
// Where viewers are slow the oldest frames are dropped, and they see the newest ones. Where there is no viewer it goes on.
#include "camera.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <thread>

#include <unistd.h>

int main(int argument_count, char** argument_values) try {
    const camera::Arguments arguments(argument_count, argument_values);
    camera::end_by_signals();
    weir::Domain domain = weir::Domain::join(arguments.domain);
    weir::BufferPool frames = domain.pool("frames", camera::pool_options);
    weir::Producer out = domain.producer("raw", camera::port_options);
    std::printf("camera %d films %ju frames a second into domain %s\n", getpid(), std::uintmax_t{arguments.rate},
                arguments.domain.c_str());
    std::fflush(stdout);

    const std::chrono::nanoseconds interval(1'000'000'000 / arguments.rate);
    auto due = std::chrono::steady_clock::now();
    std::uint64_t skipped_count = 0;
    for (std::uint64_t number = 0;
         camera::is_interrupted == 0 && (arguments.frame_count == 0 || number < arguments.frame_count); ++number) {
        if (weir::BufferPtr frame = frames.try_allocate()) {
            frame.resize(arguments.frame_bytes);
            std::ranges::fill(frame.bytes(), static_cast<std::byte>(number)); // a sensor would write here
            frame.set_tag(static_cast<std::uint32_t>(getpid()));
            if (out.try_push(std::move(frame)) == weir::PushResult::failed) {
                std::fprintf(stderr, "cannot push: %s\n", out.last_error().message().c_str());
                return 1;
            }
        } else {
            // All in others' hands. Whoever waits in weir looks for the dead now and then; who never waits does so himself.
            domain.reap();
            ++skipped_count;
        }
        due += interval;
        std::this_thread::sleep_until(due);
    }
    std::printf("camera %d is done; it found no buffer for %ju frames\n", getpid(), std::uintmax_t{skipped_count});
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "camera_producer: %s\n", error.what());
    return 1;
}
