// All operations at once, by threads over one mapping, each with a membership of its own: made for ThreadSanitizer, which
// sees neither across processes nor through two mappings of a page.
//
//     stress [ROUNDS]              each thread lives that many lives; WEIR_TEST_SEED sets the seed
//     stress --expect-race         a build with ThreadSanitizer must find a write to a payload after its push
//
// A life: join, open the pools and ports, allocate, write, push, pop, verify, forward, clone, copy, drop, wait, in batches
// and one by one, attach and detach; then it leaves, or it stops where it is and two reapers give back what it held. Death
// is handed to the reapers under a mutex, as a parent learns of it from the kernel. At the end all is drained, and every
// buffer must be free.

#include <weir/weir.hpp>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr unsigned thread_count = 5;
constexpr unsigned operations_per_life = 60;
constexpr std::chrono::nanoseconds wait_time{200'000};
constexpr unsigned watchdog_seconds = 900;

using Random = std::minstd_rand;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "stress: %s\n", what.c_str());
    std::_Exit(1);
}

/// The shared memory, and each membership's views of it.
struct Shared {
    static constexpr std::array<weir::BufferPoolOptions, 2> pool_options{
        {{.buffer_bytes = 64, .buffer_count = 24},
         {.buffer_bytes = 256, .buffer_count = 12, .references_per_buffer = 12, .first_buffer = 24}}};
    static constexpr std::array<weir::PortOptions, 3> port_options{
        {{.capacity = 8, .port_id = 0, .when_unconsumed = weir::WhenUnconsumed::fill},
         {.capacity = 4, .port_id = 1, .when_full = weir::WhenFull::refuse, .time_stamps = true},
         {.capacity = 4,
          .port_id = 2,
          .when_full = weir::WhenFull::drop_oldest,
          .when_unconsumed = weir::WhenUnconsumed::fill}}};

    Shared() : segment(weir::Segment::anonymous(4 << 20)) {
        weir::SegmentCursor cursor(segment.bytes());
        table_memory = cursor.take(weir::ProcessTable::bytes());
        for (std::size_t index = 0; index < pool_options.size(); ++index) {
            control[index] = cursor.take(weir::BufferPool::control_bytes(pool_options[index]));
            payload[index] = cursor.take(weir::BufferPool::payload_bytes(pool_options[index]));
            weir::BufferPool::format(control[index], pool_options[index]);
        }
        for (std::size_t index = 0; index < port_options.size(); ++index) {
            port_memory[index] = cursor.take(weir::Port::bytes(port_options[index]));
            weir::Port::format(port_memory[index], port_options[index]);
        }
    }

    weir::Segment segment;
    std::span<std::byte> table_memory;
    std::array<std::span<std::byte>, pool_options.size()> control;
    std::array<std::span<std::byte>, pool_options.size()> payload;
    std::array<std::span<std::byte>, port_options.size()> port_memory;
};

struct Member {
    explicit Member(const Shared& shared) : membership(weir::ProcessTable(shared.table_memory).join()) {
        for (std::size_t index = 0; index < shared.control.size(); ++index) {
            buffers.add(weir::BufferPool(shared.control[index], shared.payload[index], membership));
        }
        for (const auto& memory : shared.port_memory) {
            ports.emplace_back(memory, membership, buffers);
        }
    }

    weir::Membership membership;
    weir::SharedBufferAllocator buffers;
    std::vector<weir::Port> ports;
};

/// Who died, for the reapers; and what the dead leave behind in private memory, which nobody touches again.
class Morgue {
public:
    struct Body {
        std::unique_ptr<Member> member;
        std::vector<std::unique_ptr<weir::Producer>> producers;
        std::vector<std::unique_ptr<weir::Consumer>> consumers;
    };

    void bury(Body body) {
        const std::lock_guard lock(mutex_);
        for (std::deque<weir::Membership>& dead : dead_) {
            dead.push_back(body.member->membership);
        }
        // Their destructors would go on where the dead stopped.
        for (auto& producer : body.producers) {
            remains_producers_.push_back(producer.release());
        }
        for (auto& consumer : body.consumers) {
            remains_consumers_.push_back(consumer.release());
        }
        remains_members_.push_back(std::move(body.member));
        changed_.notify_all();
    }

    /// The next dead for reaper `number`; false at the end.
    bool next(unsigned number, weir::Membership& dead) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return closed_ || !dead_[number].empty(); });
        if (dead_[number].empty()) {
            return false;
        }
        dead = dead_[number].front();
        dead_[number].pop_front();
        return true;
    }

    void close() {
        const std::lock_guard lock(mutex_);
        closed_ = true;
        changed_.notify_all();
    }

    [[nodiscard]] std::size_t size() {
        const std::lock_guard lock(mutex_);
        return remains_members_.size();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::array<std::deque<weir::Membership>, 2> dead_;
    std::vector<weir::Producer*> remains_producers_;
    std::vector<weir::Consumer*> remains_consumers_;
    std::vector<std::unique_ptr<Member>> remains_members_;
    bool closed_ = false;
};

/// What is in a message: every word of it follows from the first.
void write_payload(weir::BufferPtr& buffer, std::uint64_t first) {
    std::uint64_t word = first;
    for (std::size_t offset = 0; offset + sizeof(word) <= buffer.size_bytes(); offset += sizeof(word), ++word) {
        std::memcpy(buffer.bytes().data() + offset, &word, sizeof(word));
    }
}

std::uint64_t verify_payload(const weir::BufferPtr& buffer) {
    std::uint64_t first = 0;
    std::memcpy(&first, buffer.bytes().data(), sizeof(first));
    for (std::size_t offset = 0; offset + sizeof(first) <= buffer.size_bytes(); offset += sizeof(first)) {
        std::uint64_t word = 0;
        std::memcpy(&word, buffer.bytes().data() + offset, sizeof(word));
        if (word != first + offset / sizeof(word)) {
            fail("a payload changed while it was a message");
        }
    }
    return first;
}

class Life {
public:
    Life(const Shared& shared, Random& random, bool makes_race)
        : member_(std::make_unique<Member>(shared)), random_(&random), makes_race_(makes_race) {
        attach();
    }

    void live() {
        const unsigned count = below(operations_per_life) + 1;
        for (unsigned number = 0; number < count; ++number) {
            operate();
        }
    }

    void die(Morgue& morgue) {
        for (weir::BufferPtr& buffer : held_) {
            buffer.forget();
        }
        morgue.bury({std::move(member_), std::move(producers_), std::move(consumers_)});
    }

    void leave() {
        held_.clear();
        producers_.clear();
        consumers_.clear();
        if (weir::leave(member_->membership, member_->buffers, member_->ports).error) {
            fail("leave() did not give everything back");
        }
    }

private:
    [[nodiscard]] unsigned below(unsigned bound) { return static_cast<unsigned>((*random_)() >> 8) % bound; }

    void attach() {
        const weir::WaitOptions wait{.spin_count = below(3) * 20, .recheck_interval_ns = 1'000'000};
        for (const weir::Port& port : member_->ports) {
            producers_.push_back(std::make_unique<weir::Producer>(port, wait));
            consumers_.push_back(std::make_unique<weir::Consumer>(port, wait));
        }
    }

    void hold(weir::BufferPtr buffer) {
        if (buffer) {
            held_.push_back(std::move(buffer));
        }
        while (held_.size() > 6) {
            held_.pop_front();
        }
    }

    [[nodiscard]] weir::BufferPtr allocate() {
        const std::size_t bytes = below(2) == 0 ? 64 : 200;
        weir::BufferPtr buffer =
            below(4) == 0 ? member_->buffers.allocate_for(bytes, wait_time) : member_->buffers.try_allocate(bytes);
        if (buffer) {
            buffer.set_tag(static_cast<std::uint32_t>(bytes));
            write_payload(buffer, (*random_)());
        }
        return buffer;
    }

    void check(const weir::BufferPtr& buffer) {
        if (buffer) {
            verify_payload(buffer);
            if (buffer.tag() != buffer.size_bytes()) {
                fail("a message's tag and size are of two messages");
            }
        }
    }

    void push(weir::BufferPtr buffer) {
        if (!buffer) {
            return;
        }
        weir::Producer& producer = *producers_[below(3)];
        std::byte* const payload = buffer.bytes().data();
        const weir::PushResult result =
            below(3) == 0 ? producer.push_for(std::move(buffer), wait_time) : producer.try_push(std::move(buffer));
        if (result == weir::PushResult::failed && producer.last_error() != weir::errc::too_many_references) {
            fail("push failed: " + producer.last_error().message());
        }
        if (makes_race_ && result == weir::PushResult::ok) {
            // the seeded race: the buffer is the consumer's now. The value stays, so that only ThreadSanitizer sees it.
            volatile std::byte& theirs = payload[8];
            const std::byte value = theirs;
            theirs = value;
        }
        hold(std::move(buffer));
    }

    void pop() {
        weir::Consumer& consumer = *consumers_[below(3)];
        weir::BufferPtr buffer = below(3) == 0 ? consumer.pop_for(wait_time) : consumer.try_pop();
        check(buffer);
        if (below(2) == 0) {
            push(std::move(buffer));
        } else {
            hold(std::move(buffer));
        }
    }

    void push_batch() {
        std::array<weir::BufferPtr, 3> batch;
        for (weir::BufferPtr& buffer : batch) {
            buffer = allocate();
            if (!buffer) {
                return;
            }
        }
        static_cast<void>(producers_[below(3)]->try_push(batch));
    }

    void pop_batch() {
        std::array<weir::BufferPtr, 3> batch;
        const std::size_t count = consumers_[below(3)]->try_pop(batch);
        for (std::size_t place = 0; place < count; ++place) {
            check(batch[place]);
        }
    }

    /// Fan-out: clones and copies of one buffer, to several ports.
    void fan_out() {
        weir::BufferPtr buffer = allocate();
        if (!buffer) {
            return;
        }
        weir::BufferPtr clone = buffer.clone();
        weir::BufferPtr copy = buffer;
        check(copy);
        push(std::move(clone));
        push(std::move(copy));
        push(std::move(buffer));
    }

    void operate() {
        switch (below(10)) {
        case 0:
        case 1:
        case 2: push(allocate()); break;
        case 3:
        case 4:
        case 5: pop(); break;
        case 6: push_batch(); break;
        case 7: pop_batch(); break;
        case 8: fan_out(); break;
        default: operate_rarely();
        }
    }

    void operate_rarely() {
        const std::size_t place = below(3);
        switch (below(5)) {
        case 0: producers_[place] = std::make_unique<weir::Producer>(member_->ports[place]); break;
        case 1: consumers_[place] = std::make_unique<weir::Consumer>(member_->ports[place]); break;
        case 2: static_cast<void>(consumers_[place]->stream_end()); break;
        case 3: static_cast<void>(member_->ports[place].counters(weir::PortEnd::producer)); break;
        default: held_.clear();
        }
    }

    std::unique_ptr<Member> member_;
    Random* random_;
    bool makes_race_;
    std::vector<std::unique_ptr<weir::Producer>> producers_;
    std::vector<std::unique_ptr<weir::Consumer>> consumers_;
    std::deque<weir::BufferPtr> held_;
};

int run(unsigned life_count, unsigned seed, bool makes_race) {
    const Shared shared;
    Morgue morgue;
    std::vector<std::thread> lives;
    std::vector<std::thread> reapers;
    for (unsigned number = 0; number < 2; ++number) {
        reapers.emplace_back([&shared, &morgue, number] {
            Member member(shared);
            weir::Membership dead = member.membership;
            while (morgue.next(number, dead)) {
                const weir::ReapResult result = weir::reap(dead, member.buffers, member.ports);
                if (result.error) {
                    fail("reap: " + result.error.message());
                }
            }
            static_cast<void>(weir::leave(member.membership, member.buffers, member.ports));
        });
    }
    for (unsigned number = 0; number < thread_count; ++number) {
        lives.emplace_back([&shared, &morgue, life_count, seed, number, makes_race] {
            Random random(seed + number * 7919);
            for (unsigned count = 0; count < life_count; ++count) {
                Life life(shared, random, makes_race);
                life.live();
                if (random() % 3 == 0) {
                    life.die(morgue);
                } else {
                    life.leave();
                }
            }
        });
    }
    for (std::thread& thread : lives) {
        thread.join();
    }
    morgue.close();
    for (std::thread& thread : reapers) {
        thread.join();
    }

    Member last(shared);
    unsigned drained_count = 0;
    for (const weir::Port& port : last.ports) {
        weir::Consumer consumer(port);
        while (const weir::BufferPtr buffer = consumer.try_pop()) {
            verify_payload(buffer);
            ++drained_count;
        }
    }
    weir::DomainCensus census;
    const std::vector<std::string> broken =
        weir::check_domain(last.membership.table, last.buffers, last.ports, &census);
    for (const std::string& line : broken) {
        std::fprintf(stderr, "stress: %s\n", line.c_str());
    }
    std::uint32_t buffer_count = 0;
    for (const weir::BufferPoolOptions& options : Shared::pool_options) {
        buffer_count += options.buffer_count;
    }
    std::printf("%u lives, %zu ended by death; %u messages drained at the end; %u of %u buffers free\n",
                life_count * thread_count, morgue.size(), drained_count, census.free_count, buffer_count);
    return broken.empty() && census.free_count == buffer_count ? 0 : 1;
}

/// Runs the seeded race in a child, which ThreadSanitizer has to end with its own exit status.
int expect_race(unsigned seed) {
    constexpr int thread_sanitizer_status = 66;
    const pid_t child = fork();
    if (child == 0) {
        setenv("TSAN_OPTIONS", "halt_on_error=1:exitcode=66", 1);
        const std::string seed_text = std::to_string(seed);
        setenv("WEIR_TEST_SEED", seed_text.c_str(), 1);
        execl("/proc/self/exe", "stress", "--race", static_cast<char*>(nullptr));
        std::_Exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) {
        fail("cannot run the seeded race");
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != thread_sanitizer_status) {
        fail("ThreadSanitizer did not find the seeded race; status " + std::to_string(status));
    }
    std::puts("ThreadSanitizer found the seeded race");
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    alarm(watchdog_seconds);
    const char* const seed_text = std::getenv("WEIR_TEST_SEED");
    const unsigned seed =
        seed_text != nullptr ? static_cast<unsigned>(std::strtoul(seed_text, nullptr, 10)) : std::random_device{}();
    std::printf("WEIR_TEST_SEED=%u\n", seed);
    std::fflush(stdout);
    const std::string word = argc > 1 ? argv[1] : "3000";
    if (word == "--expect-race") {
        return expect_race(seed);
    }
    if (word == "--race") {
        return run(400, seed, true);
    }
    const unsigned long life_count = std::strtoul(word.c_str(), nullptr, 10);
    if (life_count == 0 || life_count > 10'000'000) {
        std::fprintf(stderr, "usage: stress [LIVES | --expect-race]\n");
        return 2;
    }
    return run(static_cast<unsigned>(life_count), seed, false);
}
