// Several producer processes to several consumer processes through one port, with real deaths where asked for.
//
//     pipeline --producers 4 --consumers 4 --buffers 150 --messages 250000 [--kills 40] [--stops 40] [--capacity 64]
//
// `messages` are for each producer; where there are kills, each pushes until all are done, and that many at most. What
// must hold is counted in a ledger of its own, a shared array that the library
// knows nothing of: a producer notes what it is about to push and what it has pushed, a consumer what it got. Of what was
// surely pushed, each message arrives exactly once, or a dead consumer had claimed it (the parent looks at what the dead
// held). Of a batch in the middle of which its producer was killed, a prefix arrives. Each consumer gets each producer's
// messages in order. At the end everything is free, and the domain's check finds nothing.
//
// A process is dead when its parent has waited for it. Then it is reaped: by the parent, by two others at once, or by one
// that is itself killed and the parent after it.
#include "scenario.hpp"

#include <algorithm>
#include <array>

using namespace scenario;

namespace {

constexpr unsigned watchdog_s = 400;
constexpr unsigned consumer_max = 16;
constexpr unsigned stream_max = 16;
constexpr std::uint32_t batch_size = 5;

struct Parameters {
    unsigned producer_count;
    unsigned consumer_count;
    unsigned buffer_count;
    unsigned message_count; ///< of each producer
    unsigned kill_count;
    unsigned stop_count;
    unsigned capacity;

    [[nodiscard]] bool disturbs() const { return kill_count + stop_count > 0; }
};

/// What the processes note, outside of the library.
class Ledger {
public:
    Ledger(unsigned stream_count, unsigned message_count)
        : message_count_(message_count),
          segment_(weir::Segment::anonymous(sizeof(Heads) + std::size_t{stream_count} * message_count)) {}

    struct Heads {
        std::atomic<std::uint32_t> begun[stream_max];  ///< pushes of all numbers below have begun
        std::atomic<std::uint32_t> pushed[stream_max]; ///< pushes of all numbers below have ended
        std::atomic<std::uint32_t> next[consumer_max][stream_max];
        std::atomic<bool> is_enough; ///< producers stop
    };
    [[nodiscard]] Heads& heads() const { return *reinterpret_cast<Heads*>(segment_.bytes().data()); }
    /// How often a message arrived.
    [[nodiscard]] std::atomic<std::uint8_t>& arrived(std::uint32_t stream, std::uint32_t number) const {
        return reinterpret_cast<std::atomic<std::uint8_t>*>(
            segment_.bytes().data() + sizeof(Heads))[std::size_t{stream} * message_count_ + number];
    }

private:
    unsigned message_count_;
    weir::Segment segment_;
};

void produce(const test::DomainMemory& memory, const weir::Membership& me, const Ledger& ledger, std::uint32_t stream,
             const Parameters& parameters) {
    test::Member member(memory, me);
    Ledger::Heads& heads = ledger.heads();
    {
        weir::Producer out(member.ports[0]);
        std::uint32_t number = heads.begun[stream];
        while (number < parameters.message_count && !heads.is_enough) {
            // By turns one at a time and in batches.
            const std::uint32_t count =
                number / 64 % 2 == 0 ? 1 : std::min(batch_size, parameters.message_count - number);
            std::array<weir::BufferPtr, batch_size> buffers;
            for (std::uint32_t place = 0; place < count; ++place) {
                buffers[place] = member.pools[0].allocate();
                if (!buffers[place] || buffers[place].use_count() != 1) {
                    fail("a new buffer has %u users", buffers[place].use_count());
                }
                Message::of(stream, number + place).write_to(buffers[place]);
            }
            heads.begun[stream] = number + count;
            const bool is_pushed = count == 1 ? out.push(std::move(buffers[0])) == weir::PushResult::ok
                                              : out.push(std::span(buffers).first(count)) == count;
            if (!is_pushed) {
                fail("push ended with %d, %s", static_cast<int>(out.last_result()), out.last_error().message().c_str());
            }
            heads.pushed[stream] = number + count;
            number += count;
        }
        while (parameters.disturbs() && !heads.is_enough) {
            usleep(200); // there is more dying to be done, of consumers that sleep
        }
    }
    if (member.leave().error) {
        fail("a producer cannot leave");
    }
}

void note(const Ledger& ledger, unsigned consumer, const weir::BufferPtr& buffer, const Parameters& parameters) {
    const Message message = Message::read_from(buffer.bytes().data());
    if (!message.is_whole() || message.stream >= parameters.producer_count ||
        message.number >= parameters.message_count) {
        fail("torn message: stream %u, number %u", message.stream, message.number);
    }
    if (buffer.use_count() != 1) {
        fail("a message that was pushed once has %u users", buffer.use_count());
    }
    if (ledger.arrived(message.stream, message.number).fetch_add(1) != 0) {
        fail("message %u of stream %u arrived twice", message.number, message.stream);
    }
    std::atomic<std::uint32_t>& next = ledger.heads().next[consumer][message.stream];
    if (message.number < next) {
        fail("message %u of stream %u after %u", message.number, message.stream, next.load() - 1);
    }
    next = message.number + 1;
}

void consume(const test::DomainMemory& memory, const weir::Membership& me, const Ledger& ledger, unsigned consumer,
             const Parameters& parameters) {
    test::Member member(memory, me);
    {
        weir::Consumer in(member.ports[0]);
        std::array<weir::BufferPtr, batch_size> buffers;
        for (std::uint64_t round = 0;; ++round) {
            std::size_t count = 1;
            if (round / 32 % 2 == 0) {
                buffers[0] = in.pop();
                count = buffers[0] ? 1 : 0;
            } else {
                count = in.pop(buffers);
            }
            if (count == 0) {
                break;
            }
            for (std::size_t place = 0; place < count; ++place) {
                note(ledger, consumer, buffers[place], parameters);
            }
            if (round % 3 == 0) { // otherwise they are dropped when the next ones come
                std::ranges::fill(buffers, weir::BufferPtr());
            }
        }
        if (in.last_error() || in.stream_end() != weir::StreamEnd::closed) {
            fail("the stream ended with %d, %s", static_cast<int>(in.stream_end()), in.last_error().message().c_str());
        }
    }
    if (member.leave().error) {
        fail("a consumer cannot leave");
    }
}

class Pipeline {
public:
    explicit Pipeline(const Parameters& parameters)
        : parameters_(parameters), memory_({{.buffer_bytes = sizeof(Message), .buffer_count = parameters.buffer_count}},
                                           {{.capacity = parameters.capacity}}),
          ledger_(parameters.producer_count, parameters.message_count), random_(test::seed()),
          claimed_by_dead_(std::size_t{parameters.producer_count} * parameters.message_count),
          in_doubt_(parameters.producer_count), parent_(memory_) {}

    void run() {
        {
            // The parent keeps both ends attached, so that the stream neither ends nor closes while somebody is dead.
            weir::Consumer keeps_open(parent_.ports[0]);
            {
                weir::Producer keeps_running(parent_.ports[0]);
                for (unsigned number = 0; number < parameters_.producer_count; ++number) {
                    start({false, number});
                }
                for (unsigned number = 0; number < parameters_.consumer_count; ++number) {
                    start({true, number});
                }
                while (has_producers()) {
                    disturb();
                }
            }
            while (!living_.empty()) {
                Processes::wait_for(living_.begin()->first);
                living_.erase(living_.begin());
            }
        }
        settle();
    }

private:
    struct Living {
        bool consumes;
        unsigned number;
        weir::Membership me;
    };
    struct Start {
        bool consumes;
        unsigned number;
    };

    void start(const Start& role) {
        // The parent joins for its child, so that it knows under which name the child will have died.
        const weir::Membership me = memory_.table().join();
        const pid_t pid = processes_.start(watchdog_s, [&] {
            if (role.consumes) {
                consume(memory_, me, ledger_, role.number, parameters_);
            } else {
                produce(memory_, me, ledger_, role.number, parameters_);
            }
        });
        living_.emplace(pid, Living{role.consumes, role.number, me});
    }

    /// Whether producers are still at work. Those that have ended are taken off the list.
    [[nodiscard]] bool has_producers() {
        bool found = false;
        for (auto child = living_.begin(); child != living_.end();) {
            if (!child->second.consumes && Processes::has_ended(child->first)) {
                child = living_.erase(child);
            } else {
                found |= !child->second.consumes;
                ++child;
            }
        }
        return found;
    }

    /// Kills or stops somebody, after a while.
    void disturb() {
        usleep(random_.below(3000U));
        if (killed_count_ == parameters_.kill_count && stopped_count_ == parameters_.stop_count) {
            ledger_.heads().is_enough = parameters_.disturbs();
            return;
        }
        auto victim = living_.begin();
        std::advance(victim, static_cast<std::ptrdiff_t>(random_.below(living_.size())));
        if (stopped_count_ < parameters_.stop_count && random_.one_in(2)) {
            ++stopped_count_;
            kill(victim->first, SIGSTOP);
            usleep(random_.below(5000U));
            kill(victim->first, SIGCONT);
        } else if (killed_count_ < parameters_.kill_count) {
            kill(victim->first, SIGKILL);
            const bool was_killed = Processes::wait_for(victim->first, true) < 0;
            const Living dead = victim->second;
            living_.erase(victim);
            if (!was_killed) {
                return; // it had just ended by itself
            }
            ++killed_count_;
            look_at(dead);
            reap(dead.me);
            start({dead.consumes, dead.number});
        }
    }

    /// Notes what nobody else can know: what a dead consumer had claimed, and what a dead producer may have pushed.
    void look_at(const Living& dead) {
        const weir::BufferPoolView& pool = parent_.pools[0].view();
        if (!dead.consumes) {
            const std::uint32_t pushed = ledger_.heads().pushed[dead.number];
            const std::uint32_t begun = ledger_.heads().begun[dead.number];
            if (pushed != begun) {
                in_doubt_[dead.number].emplace_back(pushed, begun);
            }
            return;
        }
        for (std::uint32_t index = 0; index < pool.buffer_count(); ++index) {
            for (unsigned number = 0; number < pool.references_per_buffer(); ++number) {
                const std::uint64_t word = weir::load_reference(pool.reference(index, number));
                if (weir::reference_state(word) != weir::ReferenceState::held ||
                    weir::Owner::of(word) != dead.me.owner()) {
                    continue;
                }
                const Message message = Message::read_from(pool.payload(index));
                if (!message.is_whole()) {
                    fail("a dead consumer held a torn message");
                }
                if (ledger_.arrived(message.stream, message.number) == 0) {
                    bool& claimed = claimed_by_dead_[place_of(message.stream, message.number)].value;
                    if (claimed) {
                        fail("message %u of stream %u was claimed twice", message.number, message.stream);
                    }
                    claimed = true;
                    ++claimed_count_;
                }
            }
        }
    }

    void reap(const weir::Membership& dead) {
        const unsigned way = random_.below(4U);
        if (way == 0) { // two at once
            const auto by_other = [&] {
                const test::Member reaper(memory_);
                if (reaper.reap(dead).error || reaper.leave().error) {
                    fail("a reaper failed");
                }
            };
            const pid_t first = processes_.start(watchdog_s, by_other);
            const pid_t second = processes_.start(watchdog_s, by_other);
            Processes::wait_for(first);
            Processes::wait_for(second);
        } else if (way == 1) { // by one that is killed, and then its own place as well
            const weir::Membership me = memory_.table().join();
            const pid_t reaper = processes_.start(watchdog_s, [&] {
                const test::Member member(memory_, me);
                static_cast<void>(member.reap(dead));
                pause();
            });
            usleep(random_.below(800U));
            kill(reaper, SIGKILL);
            Processes::wait_for(reaper, true);
            if (parent_.reap(me).error) {
                fail("a dead reaper cannot be reaped");
            }
        }
        if (parent_.reap(dead).error || dead.is_alive()) {
            fail("reaping failed");
        }
    }

    [[nodiscard]] std::size_t place_of(std::uint32_t stream, std::uint32_t number) const {
        return std::size_t{stream} * parameters_.message_count + number;
    }

    /// Whether a message has come to its end, once: it arrived, or a dead consumer had claimed it.
    [[nodiscard]] bool is_accounted_for(std::uint32_t stream, std::uint32_t number) const {
        const unsigned arrived = ledger_.arrived(stream, number);
        const bool claimed = claimed_by_dead_[place_of(stream, number)].value;
        if (arrived + (claimed ? 1U : 0U) > 1) {
            fail("message %u of stream %u arrived, and a dead consumer had claimed it", number, stream);
        }
        return arrived + (claimed ? 1U : 0U) == 1;
    }

    void settle() {
        std::uint64_t lost_in_doubt_count = 0;
        std::uint64_t all_count = 0;
        for (std::uint32_t stream = 0; stream < parameters_.producer_count; ++stream) {
            std::uint32_t number = 0;
            for (const auto& [begin, end] : in_doubt_[stream]) {
                for (; number < begin; ++number) {
                    expect(stream, number);
                }
                bool is_prefix_over = false;
                for (; number < end; ++number) {
                    const bool is_there = is_accounted_for(stream, number);
                    if (is_there && is_prefix_over) {
                        fail("of a killed batch of stream %u message %u is there, and one before it is not", stream,
                             number);
                    }
                    is_prefix_over |= !is_there;
                    lost_in_doubt_count += is_there ? 0 : 1;
                }
            }
            const std::uint32_t end = ledger_.heads().begun[stream];
            all_count += end;
            if (!parameters_.disturbs() && end != parameters_.message_count) {
                fail("stream %u ended at %u", stream, end);
            }
            for (; number < end; ++number) {
                expect(stream, number);
            }
            for (; number < parameters_.message_count; ++number) {
                if (ledger_.arrived(stream, number) != 0) {
                    fail("message %u of stream %u arrived and was never pushed", number, stream);
                }
            }
        }
        weir::DomainCensus census;
        const std::string broken = parent_.check(&census);
        if (!broken.empty()) {
            fail("the domain is broken: %s", broken.c_str());
        }
        if (census.free_count != parameters_.buffer_count) {
            fail("%u of %u buffers are free", census.free_count, parameters_.buffer_count);
        }
        const weir::PortCounters pushed = parent_.ports[0].counters(weir::PortEnd::producer);
        const weir::PortCounters popped = parent_.ports[0].counters(weir::PortEnd::consumer);
        if (killed_count_ != parameters_.kill_count || stopped_count_ != parameters_.stop_count) {
            fail("%u of %u killed, %u of %u stopped", killed_count_, parameters_.kill_count, stopped_count_,
                 parameters_.stop_count);
        }
        if (killed_count_ == 0 && (pushed.messages != all_count || popped.messages != all_count ||
                                   pushed.bytes != all_count * sizeof(Message) || popped.bytes != pushed.bytes)) {
            fail("counted %llu and %llu messages", static_cast<unsigned long long>(pushed.messages),
                 static_cast<unsigned long long>(popped.messages));
        }
        std::printf("%llu messages, %u killed, %u stopped; %llu were claimed by the dead, %llu not pushed by the dead; "
                    "producers waited %llu times, consumers %llu times\n",
                    static_cast<unsigned long long>(all_count), killed_count_, stopped_count_,
                    static_cast<unsigned long long>(claimed_count_),
                    static_cast<unsigned long long>(lost_in_doubt_count), static_cast<unsigned long long>(pushed.waits),
                    static_cast<unsigned long long>(popped.waits));
    }

    void expect(std::uint32_t stream, std::uint32_t number) const {
        if (!is_accounted_for(stream, number)) {
            fail("message %u of stream %u was lost", number, stream);
        }
    }

    struct Flag {
        bool value = false;
    };

    Parameters parameters_;
    test::DomainMemory memory_;
    Ledger ledger_;
    test::Random random_;
    Processes processes_;
    std::map<pid_t, Living> living_;
    std::vector<Flag> claimed_by_dead_;
    std::vector<std::vector<std::pair<std::uint32_t, std::uint32_t>>> in_doubt_; ///< [begin, end) of each stream
    std::uint64_t claimed_count_ = 0;
    unsigned killed_count_ = 0;
    unsigned stopped_count_ = 0;
    test::Member parent_;
};

} // namespace

int main(int argument_count, char** arguments) {
    const auto read = [&](const char* name, unsigned otherwise) {
        return option(argument_count, arguments, name, otherwise);
    };
    const Parameters parameters{
        .producer_count = read("--producers", 1),
        .consumer_count = read("--consumers", 1),
        .buffer_count = read("--buffers", 100),
        .message_count = read("--messages", 10'000),
        .kill_count = read("--kills", 0),
        .stop_count = read("--stops", 0),
        .capacity = read("--capacity", 64),
    };
    if (parameters.producer_count > stream_max || parameters.consumer_count > consumer_max) {
        fail("too many processes");
    }
    std::printf("seed: WEIR_TEST_SEED=%llu\n", static_cast<unsigned long long>(test::seed()));
    alarm(watchdog_s + 20);
    Pipeline(parameters).run();
    return 0;
}
