// One operation a number of times, in one process, for bench/callgrind.py to count instructions in.
//
//     bench_instructions OPERATION COUNT       bench_instructions --list
#include "graph.hpp"
#include "vyukov_queue.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr std::uint32_t capacity = 256;

/// Everything that the operations need, on one core.
struct Setting {
    bench::SharedDomain domain{{{.buffer_bytes = 64, .buffer_count = capacity}}, {{.capacity = capacity}}};
    bench::SharedDomain::Member member = domain.join();
    weir::BufferPool& pool = member.pools[0];
    weir::Producer producer{member.ports[0]};
    weir::Consumer consumer{member.ports[0]};
    weir::Segment ring_memory = weir::Segment::anonymous(weir::Ring::bytes(capacity));
    weir::Ring ring{ring_memory.bytes(), capacity};
    weir::RingProducer ring_producer{ring};
    weir::RingConsumer ring_consumer{ring};
    weir::Segment vyukov_memory = weir::Segment::anonymous(bench::VyukovQueue::bytes(capacity));
    bench::VyukovQueue vyukov{vyukov_memory.bytes(), capacity};
    weir::BufferPtr held = pool.try_allocate();

    weir::BufferPtr message() {
        weir::BufferPtr buffer = pool.try_allocate();
        bench::require(static_cast<bool>(buffer), "no buffer is free");
        bench::write_word(buffer, 1);
        return buffer;
    }
    weir::BufferPtr pop() {
        weir::BufferPtr buffer = consumer.try_pop();
        bench::require(static_cast<bool>(buffer), "no message");
        return buffer;
    }
    void push(weir::BufferPtr&& buffer) {
        bench::require(producer.try_push(std::move(buffer)) == weir::PushResult::ok, "no room");
    }
};

struct Operation {
    const char* name;
    void (*run)(Setting&);
};

constexpr std::size_t batch = 16;

constexpr Operation operations[] = {
    {"nothing", [](Setting&) {}},
    {"ring push + pop",
     [](Setting& setting) {
         std::uint32_t value = 0;
         bench::require(setting.ring_producer.try_push(1) == weir::RingStatus::ok &&
                            setting.ring_consumer.try_pop(value) == weir::RingStatus::ok && value == 1,
                        "not what was pushed");
     }},
    {"Vyukov push + pop",
     [](Setting& setting) {
         std::uint32_t value = 0;
         bench::require(setting.vyukov.try_push(1) && setting.vyukov.try_pop(value) && value == 1,
                        "not what was pushed");
     }},
    {"allocate + drop", [](Setting& setting) { weir::BufferPtr buffer = setting.message(); }},
    {"allocate + drop, 32 at a time, for each 32",
     [](Setting& setting) {
         std::array<weir::BufferPtr, 32> buffers;
         for (weir::BufferPtr& buffer : buffers) {
             buffer = setting.message();
         }
     }},
    {"malloc + free",
     [](Setting&) {
         void* block = std::malloc(64);
         benchmark::DoNotOptimize(block);
         std::free(block);
     }},
    {"clone + drop",
     [](Setting& setting) {
         const weir::BufferPtr clone = setting.held.clone();
         bench::require(static_cast<bool>(clone), "no reference word is free");
     }},
    {"push + pop of a held buffer",
     [](Setting& setting) {
         setting.push(std::move(setting.held));
         setting.held = setting.pop();
     }},
    {"pop of an empty port",
     [](Setting& setting) { bench::require(!setting.consumer.try_pop(), "a message from nowhere"); }},
    {"message: allocate, push, pop, drop",
     [](Setting& setting) {
         setting.push(setting.message());
         const weir::BufferPtr popped = setting.pop();
         bench::require(bench::read_word(popped) == 1, "not what was pushed");
     }},
    {"batch of 16 messages, for each 16",
     [](Setting& setting) {
         std::array<weir::BufferPtr, batch> buffers;
         for (weir::BufferPtr& buffer : buffers) {
             buffer = setting.message();
         }
         bench::require(setting.producer.try_push(buffers) == batch, "no room");
         bench::require(setting.consumer.try_pop(buffers) == batch, "no messages");
     }},
};

/// What one worker does so often by itself.
struct Graph {
    const char* name;
    void (*run)(const weir::Domain&, std::uint64_t count);
};

template <unsigned map_count, unsigned burst>
void run_graph(const weir::Domain& domain, std::uint64_t count) {
    static_cast<void>(bench::graph_ns(domain, bench::one_worker(), count, map_count, burst));
}

constexpr Graph graphs[] = {
    {"work() that makes progress",
     [](const weir::Domain& domain, std::uint64_t count) {
         weir::Scheduler scheduler(domain, bench::one_worker());
         scheduler.add<bench::Ticker>(count);
         scheduler.run();
     }},
    {"message from a source to a sink, one a call", run_graph<0, 1>},
    {"message from a source to a sink, up to 16 a call", run_graph<0, bench::burst_usual>},
    {"message through three blocks, one a call", run_graph<1, 1>},
    {"message through three blocks, up to 16 a call", run_graph<1, bench::burst_usual>},
    {"message from NullSource to NullSink",
     [](const weir::Domain& domain, std::uint64_t count) {
         weir::Domain member = domain;
         weir::Scheduler scheduler(domain, bench::one_worker());
         auto& source = scheduler.add<weir::NullSource>(member.pool("pool"), count);
         auto& sink = scheduler.add<weir::NullSink>();
         scheduler.connect(source.out, sink.in, {.capacity = capacity});
         scheduler.run();
         bench::require(sink.message_count() == count, "messages were lost");
     }},
};

} // namespace

int main(int argc, char** argv) {
    if (argc == 2 && std::string(argv[1]) == "--list") {
        for (const Operation& operation : operations) {
            std::puts(operation.name);
        }
        for (const Graph& graph : graphs) {
            std::puts(graph.name);
        }
        return 0;
    }
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s OPERATION COUNT | --list\n", argv[0]);
        return 2;
    }
    const unsigned long count = std::strtoul(argv[2], nullptr, 10);
    for (const Graph& graph : graphs) {
        if (std::string(argv[1]) == graph.name) {
            const bench::Home home({.buffer_bytes = 64, .buffer_count = capacity});
            graph.run(home.join(), count);
            return 0;
        }
    }
    for (const Operation& operation : operations) {
        if (std::string(argv[1]) == operation.name) {
            Setting setting;
            setting.vyukov.format();
            for (unsigned long number = 0; number < count; ++number) {
                operation.run(setting);
            }
            return 0;
        }
    }
    std::fprintf(stderr, "no such operation: %s\n", argv[1]);
    return 2;
}
