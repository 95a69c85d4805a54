// What the killed do: producers push to raw, direct and latest; workers pop from raw and push on to cooked, and clones to
// copies and latest; collectors pop from all but raw; reapers reap; visitors join and leave; founders make a domain of
// their own and leave it, which removes it.
#include "soak.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <vector>

#include <poll.h>
#include <sys/prctl.h>

namespace soak {

using namespace std::chrono_literals;
using weir::BufferPtr;

// --- Messages and records --------------------------------------------------------------------------------------------

std::string name_of(MessageId message) {
    return std::to_string(message >> 32) + ":" + std::to_string(message & 0xffff'ffff);
}

const char* name_of(Role role) {
    constexpr std::array<const char*, 6> names{"producer", "worker", "collector", "reaper", "visitor", "founder"};
    return names.at(static_cast<std::size_t>(role));
}

namespace {

[[nodiscard]] std::uint64_t next_word(std::uint64_t word) {
    return word * 6364136223846793005U + 1442695040888963407U;
}

} // namespace

void write_message(BufferPtr& buffer, MessageId message) {
    const std::span<std::byte> bytes = buffer.bytes();
    std::uint64_t word = message;
    for (std::size_t place = 0; place < bytes.size(); place += sizeof word) {
        std::memcpy(&bytes[place], &word, sizeof word);
        word = next_word(word);
    }
    buffer.set_tag(static_cast<std::uint32_t>(message));
}

std::optional<MessageId> read_message(const BufferPtr& buffer) {
    const std::span<const std::byte> bytes = buffer.bytes();
    MessageId message = 0;
    if (bytes.size() < sizeof message || bytes.size() % sizeof message != 0) {
        return std::nullopt;
    }
    std::memcpy(&message, bytes.data(), sizeof message);
    std::uint64_t expected = message;
    for (std::size_t place = 0; place < bytes.size(); place += sizeof expected) {
        if (std::memcmp(&bytes[place], &expected, sizeof expected) != 0) {
            return std::nullopt;
        }
        expected = next_word(expected);
    }
    return buffer.tag() == static_cast<std::uint32_t>(message) ? std::optional(message) : std::nullopt;
}

void Diary::add(Event event, unsigned port, std::size_t count, unsigned detail, MessageId message) {
    if (count_ == record_max) {
        flush();
    }
    records_[count_++] = {weir::monotonic_ns(),
                          message,
                          life_,
                          event,
                          static_cast<std::uint8_t>(port),
                          static_cast<std::uint8_t>(count),
                          static_cast<std::uint8_t>(detail)};
}

void Diary::flush() {
    const std::size_t bytes = count_ * sizeof(Record);
    count_ = 0;
    while (bytes > 0) {
        const ssize_t written = write(descriptor_, records_.data(), bytes);
        if (written == static_cast<ssize_t>(bytes)) {
            return;
        }
        if (written >= 0 || errno != EINTR) {
            _exit(1); // the bookkeeper is gone
        }
    }
}

// --- What all lives share --------------------------------------------------------------------------------------------

namespace {

constexpr unsigned watchdog_s = 300;
constexpr unsigned watchdog_rounds = 256;

volatile std::sig_atomic_t is_over = 0;

/// A message that a life holds on to.
struct Held {
    BufferPtr buffer;
    MessageId message;
};

class Actor {
public:
    explicit Actor(const Life& life) : life_(life), diary_(life.diary, life.number), random_(life.seed) {}

    void run() {
        while (is_over == 0) {
            try {
                run_role();
            } catch (const std::system_error& error) {
                // Others join and leave all the time, and are stopped in the middle of it.
                if (error.code() != weir::errc::busy) {
                    fail("%s (%s)", error.what(), error.code().message().c_str());
                }
                diary_.add(Event::refused);
            }
            if (!life_.is_steady && random_.one_in(3)) {
                break; // the next life of this seat is another process
            }
        }
        diary_.flush();
    }

private:
    [[noreturn, gnu::format(printf, 2, 3)]] void fail(const char* format, ...) {
        va_list arguments;
        va_start(arguments, format);
        char text[512];
        std::vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        std::fprintf(stderr, "soak: FAILED in life %u, a %s, process %d: %s\n", life_.number, name_of(life_.role),
                     static_cast<int>(getpid()), text);
        diary_.add(Event::failed);
        diary_.flush();
        _exit(1);
    }

    void run_role() {
        switch (life_.role) {
        case Role::producer: return produce();
        case Role::worker: return work();
        case Role::collector: return collect();
        case Role::reaper: return reap();
        case Role::visitor: return visit();
        case Role::founder: return found();
        }
    }

    // --- Membership

    [[nodiscard]] weir::Domain join(const std::string& name, weir::JoinOptions options) {
        options.process_name = name_of(life_.role);
        options.recheck_interval_ns = recheck_interval_ns;
        diary_.add(Event::joining);
        diary_.flush();
        weir::Domain domain = weir::Domain::join(name, options);
        diary_.add(Event::joined);
        diary_.flush();
        return domain;
    }
    [[nodiscard]] weir::Domain join(bool read_only = false) {
        weir::JoinOptions options;
        options.keep = true;
        options.read_only_payload = read_only;
        return join(life_.domain, options);
    }
    void leave(weir::Domain& domain) {
        diary_.add(Event::leaving);
        diary_.flush();
        domain.leave();
        diary_.add(Event::left);
    }

    /// Called in each round: who is stopped, however long, is alive, and nobody may reap it.
    void check_alive(const weir::Domain& domain) {
        if (!domain.membership().is_alive()) {
            fail("it was reaped, and is alive");
        }
        if (++round_count_ % watchdog_rounds == 0) {
            alarm(watchdog_s);
        }
    }

    [[nodiscard]] weir::Port port(weir::Domain& domain, PortNumber number) {
        return domain.port(port_plans[number].name, port_plans[number].options);
    }
    [[nodiscard]] weir::WaitOptions wait_options() {
        weir::WaitOptions wait;
        wait.recheck_interval_ns = recheck_interval_ns;
        wait.spin_count = random_.one_in(2) ? 0 : 50;
        return wait;
    }
    [[nodiscard]] weir::Producer producer(weir::Domain& domain, PortNumber number) {
        return domain.producer(port_plans[number].name, port_plans[number].options, wait_options());
    }
    [[nodiscard]] weir::Consumer consumer(weir::Domain& domain, PortNumber number) {
        return domain.consumer(port_plans[number].name, port_plans[number].options, wait_options());
    }
    [[nodiscard]] weir::BufferPool pool(weir::Domain& domain, std::size_t number) {
        return domain.pool(pool_plans[number].name, pool_plans[number].options);
    }

    [[nodiscard]] unsigned rounds() {
        return life_.is_steady ? 20'000 : 20 + random_.below(random_.one_in(8) ? 10'000U : 500U);
    }
    [[nodiscard]] std::chrono::nanoseconds patience() { return std::chrono::microseconds(random_.below(10'000)); }

    void rest() {
        if (random_.one_in(life_.is_steady ? 2 : 50)) {
            usleep(random_.below(400U)); // who lives long leaves the others some of the machine
        }
    }

    /// Of another program's doing: a child that was forked by accident, and lives on without its parent.
    void maybe_fork(weir::Domain& domain) {
        if (!random_.one_in(2000)) {
            return;
        }
        std::signal(SIGCHLD, SIG_IGN);
        const unsigned sleep_us = random_.below(10'000U);
        const pid_t pid = fork();
        if (pid != 0) {
            return;
        }
        if (domain.reap().error != weir::errc::used_after_fork) {
            fail("a forked child can use its parent's membership");
        }
        usleep(sleep_us);
        _exit(0);
    }

    // --- Pushing and popping

    /// Allocates up to `count`; fewer where few are free.
    void allocate(weir::BufferPool& pool, std::size_t count, std::vector<Held>& held) {
        for (std::size_t number = 0; number < count; ++number) {
            BufferPtr buffer = random_.one_in(4) ? pool.allocate_for(patience(), wait_options()) : pool.try_allocate();
            if (!buffer) {
                return;
            }
            buffer.resize(64 * (1 + random_.below(pool.buffer_bytes() / 64)));
            const MessageId message = message_id(life_.number, next_number_++);
            write_message(buffer, message);
            held.push_back({std::move(buffer), message});
        }
    }

    /// Pushes all, as far as it goes, with the library's batch or one after the other. What was not pushed is dropped.
    void push(weir::Producer& out, PortNumber port, std::vector<Held> messages) {
        std::array<BufferPtr, batch_max> buffers;
        const std::size_t count = std::min(messages.size(), buffers.size());
        if (count == 0) {
            return;
        }
        for (std::size_t place = 0; place < count; ++place) {
            buffers[place] = std::move(messages[place].buffer);
            diary_.add(Event::push_begun, port, count, static_cast<unsigned>(place), messages[place].message);
        }
        diary_.flush();
        std::size_t pushed = 0;
        const auto batch = std::span(buffers).first(count);
        switch (random_.below(life_.is_steady ? 3U : 4U)) {
        case 0: pushed = out.try_push(batch); break;
        case 1:
            while (pushed < count && out.try_push(std::move(buffers[pushed])) == weir::PushResult::ok) {
                ++pushed;
            }
            break;
        case 2:
            while (pushed < count && out.push_for(std::move(buffers[pushed]), patience()) == weir::PushResult::ok) {
                ++pushed;
            }
            break;
        default: pushed = out.push(batch); break;
        }
        diary_.add(Event::push_ended, port, pushed);
        if (pushed < count && out.last_result() == weir::PushResult::failed) {
            fail("push to %s: %s (%s)", port_plans[port].name, out.last_error().message().c_str(),
                 out.last_error_field());
        }
        if (pushed == count && out.last_result() != weir::PushResult::ok) {
            fail("push to %s: all were pushed, and the last result says otherwise", port_plans[port].name);
        }
    }

    [[nodiscard]] MessageId read(const BufferPtr& buffer, const char* when) {
        const std::optional<MessageId> message = read_message(buffer);
        if (!message) {
            std::uint64_t words[2]{};
            std::memcpy(words, buffer.bytes().data(), std::min(sizeof words, buffer.bytes().size()));
            fail("torn message in buffer %u, %s: %zu bytes, tag %u, begins %s %016llx", buffer.id(), when,
                 buffer.size_bytes(), buffer.tag(), name_of(words[0]).c_str(),
                 static_cast<unsigned long long>(words[1]));
        }
        return *message;
    }

    /// Pops up to `count`.
    [[nodiscard]] std::vector<Held> pop(weir::Consumer& in, PortNumber port, std::size_t count) {
        std::array<BufferPtr, batch_max> buffers;
        const auto batch = std::span(buffers).first(count);
        diary_.add(Event::pop_begun, port, count);
        diary_.flush();
        std::size_t popped = 0;
        switch (random_.below(life_.is_steady ? 3U : 4U)) {
        case 0: popped = in.try_pop(batch); break;
        case 1:
            while (popped < count && (buffers[popped] = in.try_pop())) {
                ++popped;
            }
            break;
        case 2:
            while (popped < count && (buffers[popped] = in.pop_for(patience()))) {
                ++popped;
            }
            break;
        default: popped = in.pop(batch); break;
        }
        std::vector<Held> messages;
        diary_.add(Event::pop_ended, port, popped);
        for (BufferPtr& buffer : batch.first(popped)) {
            const MessageId message = read(buffer, "popped");
            diary_.add(Event::popped, port, 0, 0, message);
            messages.push_back({std::move(buffer), message});
        }
        if (popped < count && in.last_error()) {
            fail("pop from %s: %s (%s)", port_plans[port].name, in.last_error().message().c_str(),
                 in.last_error_field());
        }
        if (popped == 0 && in.stream_end() != weir::StreamEnd::open) {
            static_cast<void>(in.wait_for_producer(patience()));
        }
        return messages;
    }

    /// What is held is nobody else's to write.
    void drop(std::vector<Held>& held) {
        for (const Held& one : held) {
            if (read(one.buffer, "held") != one.message) {
                fail("the message in held buffer %u changed from %s", one.buffer.id(), name_of(one.message).c_str());
            }
        }
        held.clear();
    }
    void maybe_drop(std::vector<Held>& held, std::size_t count_max) {
        if (held.size() > count_max || random_.one_in(16)) {
            drop(held);
        }
    }

    // --- Roles

    void produce() {
        weir::Domain domain = join();
        {
            std::vector<weir::BufferPool> pools;
            for (std::size_t number = 0; number < pool_plans.size(); ++number) {
                pools.push_back(pool(domain, number));
            }
            constexpr std::array ports{raw, direct, latest};
            std::vector<weir::Producer> outs;
            for (const PortNumber port : ports) {
                outs.push_back(producer(domain, port));
            }
            std::vector<Held> hoard;
            for (unsigned round = rounds(); round > 0 && is_over == 0; --round) {
                std::vector<Held> messages;
                allocate(pools[random_.below(pools.size())], 1 + random_.below(batch_max), messages);
                if (random_.one_in(20)) {
                    std::ranges::move(messages, std::back_inserter(hoard));
                } else {
                    const std::size_t way = random_.one_in(2) ? 0 : random_.below(outs.size());
                    push(outs[way], ports[way], std::move(messages));
                }
                maybe_drop(hoard, 6);
                check_alive(domain);
                maybe_fork(domain);
                rest();
            }
            drop(hoard);
        }
        leave(domain);
    }

    void work() {
        weir::Domain domain = join();
        {
            weir::Consumer in = consumer(domain, raw);
            weir::Producer on = producer(domain, cooked);
            weir::Producer aside = producer(domain, copies);
            weir::Producer newest = producer(domain, latest);
            std::vector<Held> hoard;
            for (unsigned round = rounds(); round > 0 && is_over == 0; --round) {
                std::vector<Held> messages = pop(in, raw, 1 + random_.below(batch_max));
                std::vector<Held> first_clones;
                std::vector<Held> second_clones;
                for (const Held& message : messages) {
                    for (std::vector<Held>* clones : {&first_clones, &second_clones}) {
                        if (BufferPtr clone = random_.one_in(2) ? message.buffer.clone() : BufferPtr()) {
                            clones->push_back({std::move(clone), message.message});
                        }
                    }
                }
                push(aside, copies, std::move(first_clones));
                if (random_.one_in(8)) {
                    std::ranges::move(messages, std::back_inserter(hoard));
                } else {
                    push(on, cooked, std::move(messages));
                }
                push(newest, latest, std::move(second_clones));
                maybe_drop(hoard, 10);
                check_alive(domain);
                maybe_fork(domain);
                rest();
            }
            drop(hoard);
        }
        leave(domain);
    }

    void collect() {
        weir::Domain domain = join(random_.one_in(4));
        {
            std::vector<PortNumber> ports{cooked, copies, latest, direct};
            while (ports.size() > 1 && random_.one_in(2)) {
                ports.erase(ports.begin() + static_cast<std::ptrdiff_t>(random_.below(ports.size())));
            }
            std::vector<weir::Consumer> ins;
            for (const PortNumber port : ports) {
                ins.push_back(consumer(domain, port));
            }
            std::vector<Held> hoard;
            for (unsigned round = rounds(); round > 0 && is_over == 0; --round) {
                const std::size_t way = random_.below(ins.size());
                std::ranges::move(pop(ins[way], ports[way], 1 + random_.below(batch_max)), std::back_inserter(hoard));
                maybe_drop(hoard, 12);
                check_alive(domain);
                rest();
            }
            drop(hoard);
        }
        leave(domain);
    }

    void reap() {
        weir::Domain domain = join();
        {
            std::optional<weir::PeerWatch> watch;
            if (random_.one_in(2)) {
                watch.emplace(domain);
            }
            for (unsigned round = rounds(); round > 0 && is_over == 0; --round) {
                weir::ReapReport report;
                if (watch) {
                    pollfd wanted{watch->descriptor(), POLLIN, 0};
                    static_cast<void>(poll(&wanted, 1, 2));
                    report = watch->handle();
                } else {
                    report = domain.reap();
                }
                if (report.error) {
                    fail("reap: %s (%s)", report.error.message().c_str(), report.note.c_str());
                }
                if (report.ended_count > 0) {
                    diary_.add(Event::reaped, 0, report.ended_count);
                    diary_.flush();
                }
                check_alive(domain);
                usleep(random_.below(1000U));
            }
        }
        leave(domain);
    }

    void visit() {
        weir::Domain domain = join();
        std::optional<weir::Domain> twice;
        if (random_.one_in(4)) {
            twice = join();
        }
        for (unsigned round = random_.below(4U); round > 0; --round) {
            switch (random_.below(3U)) {
            case 0: static_cast<void>(pool(domain, random_.below(pool_plans.size()))); break;
            case 1: static_cast<void>(producer(domain, static_cast<PortNumber>(random_.below(+port_count)))); break;
            default: static_cast<void>(consumer(domain, static_cast<PortNumber>(random_.below(+port_count)))); break;
            }
            check_alive(domain);
        }
        if (twice) {
            check_alive(*twice);
            leave(*twice);
        }
        leave(domain);
    }

    /// Here nothing is counted: what was queued goes with the domain.
    void found() {
        weir::Domain domain = join(side_domain(life_.domain), {});
        {
            weir::BufferPool pool = domain.pool("some", {.buffer_bytes = 64, .buffer_count = 16});
            std::optional<weir::BufferPool> more;
            if (random_.one_in(2)) {
                more = domain.pool("more", {.buffer_bytes = 128, .buffer_count = 4, .references_per_buffer = 12});
            }
            weir::Producer out = domain.producer("there", {.capacity = 4}, wait_options());
            weir::Consumer in = domain.consumer("there");
            weir::Consumer other = domain.consumer("and-back", {.capacity = 2, .when_full = weir::WhenFull::refuse});
            for (unsigned round = random_.below(20U); round > 0 && is_over == 0; --round) {
                BufferPtr buffer = more && random_.one_in(2) ? more->try_allocate() : pool.try_allocate();
                if (buffer) {
                    buffer.resize(64);
                    write_message(buffer, message_id(life_.number, next_number_++));
                    if (out.try_push(std::move(buffer)) == weir::PushResult::failed) {
                        fail("push in the side domain: %s", out.last_error().message().c_str());
                    }
                }
                if (const BufferPtr got = in.try_pop()) {
                    static_cast<void>(read(got, "popped in the side domain"));
                } else if (in.last_error()) {
                    fail("pop in the side domain: %s", in.last_error().message().c_str());
                }
                check_alive(domain);
            }
        }
        leave(domain);
    }

    const Life& life_;
    Diary diary_;
    test::Random random_;
    std::uint32_t next_number_ = 0;
    unsigned round_count_ = 0;
};

} // namespace

void live(const Life& life) {
    struct sigaction action {};
    action.sa_handler = [](int) { is_over = 1; };
    action.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &action, nullptr);
    std::signal(SIGINT, SIG_IGN);
    alarm(watchdog_s);
    Actor(life).run();
}

} // namespace soak
