// A domain at work, to be watched: processes with handles on many ports, some of which stream while the others sleep.
//
//     top_load DOMAIN [PROCESSES PORTS STREAMS]
//
// It prints `ready` with the pids once all have joined. Then each line that it reads is answered: the messages that the
// consumers of the streams have taken so far, and the time (CLOCK_MONOTONIC, ns). When nothing more comes, it ends its
// processes and removes the domain.

#include <weir/weir.hpp>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

struct Load {
    std::string domain;
    unsigned process_count = 32;
    unsigned port_count = 64;
    unsigned stream_count = 1;
};

struct alignas(weir::cache_line_bytes) Taken {
    std::atomic<std::uint64_t> count;
};

constexpr weir::PoolOptions pool_options{.buffer_bytes = 4096, .buffer_count = 1024};
constexpr weir::PortOptions port_options{.capacity = 64};

std::string port_name(unsigned number) {
    return "port-" + std::to_string(number);
}

/// Streams are ports 0 to stream_count - 1, each between two processes of its own. The other ports lead from each process
/// to the next, and nothing comes through them.
[[noreturn]] void work(const Load& load, unsigned number, Taken& taken, int ready) {
    const std::string name = "worker-" + std::to_string(number);
    weir::Domain domain = weir::Domain::join(load.domain, {.process_name = name});
    weir::BufferPool frames = domain.pool("frames", pool_options);
    std::vector<weir::Producer> producers;
    std::vector<weir::Consumer> consumers;
    for (unsigned port = 0; port < load.port_count; ++port) {
        const bool is_stream = port < load.stream_count;
        const unsigned producer = is_stream ? 2 * port : port % load.process_count;
        const unsigned consumer = is_stream ? 2 * port + 1 : (port + 1) % load.process_count;
        if (producer == number) {
            producers.push_back(domain.producer(port_name(port), port_options));
        }
        if (consumer == number) {
            consumers.push_back(domain.consumer(port_name(port), port_options));
        }
    }
    if (write(ready, "r", 1) != 1) {
        std::exit(1);
    }
    close(ready); // so that the parent reads the end of it when one of us died before
    const bool streams = number < 2 * load.stream_count;
    if (streams && number % 2 == 0) {
        for (;;) {
            static_cast<void>(producers.front().push(frames.allocate()));
        }
    }
    // Nothing more comes where the producer is gone.
    while (!consumers.empty()) {
        if (!consumers.front().pop()) {
            break;
        }
        if (streams) {
            // relaxed: a count to look at
            taken.count.store(taken.count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        }
    }
    for (;;) {
        pause();
    }
}

void run(const Load& load) {
    void* memory =
        mmap(nullptr, sizeof(Taken) * load.process_count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int ends[2];
    if (memory == MAP_FAILED || pipe(ends) != 0) {
        throw std::system_error(errno, std::system_category(), "cannot prepare");
    }
    auto* taken = static_cast<Taken*>(memory);
    std::vector<pid_t> pids;
    for (unsigned number = 0; number < load.process_count; ++number) {
        const pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            try {
                work(load, number, taken[number], ends[1]);
            } catch (const std::exception& error) {
                std::fprintf(stderr, "top_load: %s\n", error.what());
            }
            _exit(1);
        }
        pids.push_back(pid);
    }
    close(ends[1]);
    for (std::size_t count = 0; count < pids.size(); ++count) {
        char byte = 0;
        if (read(ends[0], &byte, 1) != 1) {
            throw std::runtime_error("a process did not get ready");
        }
    }
    std::printf("ready");
    for (const pid_t pid : pids) {
        std::printf(" %d", pid);
    }
    std::printf("\n");
    std::fflush(stdout);
    for (int letter = 0; (letter = std::getchar()) != EOF;) {
        if (letter == '\n') {
            std::uint64_t sum = 0;
            for (unsigned number = 0; number < load.process_count; ++number) {
                sum += taken[number].count.load(std::memory_order_relaxed); // relaxed: as above
            }
            std::printf("%llu %lld\n", static_cast<unsigned long long>(sum),
                        static_cast<long long>(weir::monotonic_ns()));
            std::fflush(stdout);
        }
    }
    for (const pid_t pid : pids) {
        kill(pid, SIGKILL);
    }
    for (const pid_t pid : pids) {
        waitpid(pid, nullptr, 0);
    }
    static_cast<void>(weir::Domain::remove(load.domain, {.force = true, .lock_file = true}));
}

} // namespace

int main(int argument_count, char** arguments) {
    if (argument_count != 2 && argument_count != 5) {
        std::fprintf(stderr, "usage: top_load DOMAIN [PROCESSES PORTS STREAMS]\n");
        return 2;
    }
    Load load;
    load.domain = arguments[1];
    if (argument_count == 5) {
        const auto number = [arguments](int place) {
            return static_cast<unsigned>(std::strtoul(arguments[place], nullptr, 10));
        };
        load.process_count = number(2);
        load.port_count = number(3);
        load.stream_count = number(4);
    }
    if (load.stream_count * 2 > load.process_count || load.stream_count > load.port_count) {
        std::fprintf(stderr, "top_load: a stream wants a port and two processes of its own\n");
        return 2;
    }
    try {
        run(load);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "top_load: %s\n", error.what());
        return 1;
    }
    return 0;
}
