// How handles wait: at once asleep, or with an eye open for long; and not for ever.
#include <weir/weir.hpp>

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

#include <unistd.h>

int main() try {
    using namespace std::chrono_literals;
    const std::string name = "waiting-" + std::to_string(getpid());
    std::uint64_t wait_count = 0;
    bool is_empty = false;
    {
        // How often this member looks for the dead while it waits, and what its handles use unless they say otherwise.
        weir::Domain domain = weir::Domain::join(name, {.recheck_interval_ns = 20'000'000});
        weir::Producer out = domain.producer("ticks", {.capacity = 8});

        // Asleep at once: for a consumer that has all the time in the world, and many of which share few processors.
        weir::Consumer patient = domain.consumer("ticks", {}, {.spin_count = 0});
        // Looks for some milliseconds before it sleeps: for one that has a processor of its own.
        weir::Consumer eager = domain.consumer("ticks", {}, {.spin_count = 100'000});
        // Never longer than that; an empty result is then "not now" as long as the stream is open.
        is_empty = !patient.pop_for(50ms) && patient.stream_end() == weir::StreamEnd::open;

        const weir::PortCounters counters = domain.port("ticks").counters(weir::PortEnd::consumer);
        wait_count = counters.waits; // how often consumers went to sleep
        std::printf("in 50 ms nothing came, and the consumer went to sleep %ju times\n", std::uintmax_t{wait_count});
    }
    weir::Domain::remove(name, {.lock_file = true}); // a name that is not used again
    return is_empty && wait_count >= 1 ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "waiting: %s\n", error.what());
    return 1;
}
