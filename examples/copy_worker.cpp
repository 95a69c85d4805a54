// Works on a file that is copied: masks its bytes with a key (XOR), so that who masks them again with the same key has the
// file as it was. See copy_source.cpp.
//
//     copy_worker [--key N] [--from PORT] [--to PORT] [--work-ms N] [--domain NAME]
//
// Start several, kill them (-9), start them again. They may also follow each other: what one sends --to a port, another
// takes --from it. With --work-ms each chunk takes so much longer, for those who want to see who waits for whom.
#include "copy.hpp"

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <thread>

int main(int argument_count, char** argument_values) try {
    const Arguments arguments(argument_count, argument_values,
                              "[--key N] [--from PORT] [--to PORT] [--work-ms N] [--domain NAME]", 0);
    const auto key = static_cast<std::byte>(arguments.number("--key", 0, 255));
    const std::chrono::milliseconds work_time(arguments.number("--work-ms", 0, 3'600'000));

    weir::Domain domain = weir::Domain::join(arguments.text("--domain", "copy"));
    weir::Scheduler scheduler(domain, {.name = "worker"});
    auto& mask = scheduler.add<weir::Map>([&](weir::BufferPtr& chunk) {
        for (std::byte& byte : chunk.bytes()) {
            byte ^= key;
        }
        if (work_time.count() > 0) {
            std::fprintf(stderr, "copy_worker: works on chunk %u\n", chunk.tag());
            std::this_thread::sleep_for(work_time);
        }
    });
    mask.in.bind(arguments.text("--from", "read"), copy::bind_options());
    mask.out.bind(arguments.text("--to", "worked"), copy::bind_options());
    std::fprintf(stderr, "copy_worker: is there\n");
    copy::run_until_over(scheduler, domain);
    std::fprintf(stderr, "copy_worker: done\n");
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "copy_worker: %s\n", error.what());
    return 1;
}
