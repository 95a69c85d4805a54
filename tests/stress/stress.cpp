// Threads over one mapping, each a member of its own, that do everything at once and die in the middle. For
// ThreadSanitizer, which cannot see across processes; it runs in ordinary builds, too.
//
//     stress [--rounds 20000] [--steps 120] [--threads 5]
//
// A worker lives again and again: it joins, opens the pools and ports, takes up to `steps` random steps, and then leaves, or
// dies: it touches nothing any more, and hands its membership to the reapers. Some die between the two steps of a push or of
// a pop. All workers together take `rounds` steps, while two reapers reap and another member checks everything. Every buffer's payload is written and verified with plain loads and stores, so that a happens-before that is
// missing is a data race.
//
// Through port 0 go fresh messages only, each pushed once: what was pushed must equal what was popped, claimed by the dead,
// or left over; and no consumer may see a producer's messages out of order. Ports 1 and 2 carry clones, copies and buffers
// that are passed on. At the end everything is free. Threads keep their notes to themselves until they have ended: a lock
// around a shared ledger would order what has to be ordered by the library.
#include "payload.hpp"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <deque>
#include <map>
#include <thread>

using namespace std::chrono_literals;
using namespace weir;
using namespace stress;

namespace {

constexpr WaitOptions short_spin{.spin_count = 10, .recheck_interval_ns = 500'000};

struct Fresh {
    std::uint32_t writer;
    std::uint32_t number;
    friend auto operator<=>(const Fresh&, const Fresh&) = default;
};

/// The dead, until two reapers have seen each. (Knowing that somebody is dead orders what it did before; as in a wait for
/// a process.)
class Mortuary {
public:
    void add(const Membership& dead) {
        const std::lock_guard lock(mutex_);
        dead_.push_back(dead);
        dead_.push_back(dead);
        changed_.notify_all();
    }
    void close() {
        const std::lock_guard lock(mutex_);
        is_closed_ = true;
        changed_.notify_all();
    }
    [[nodiscard]] std::optional<Membership> take() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return is_closed_ || !dead_.empty(); });
        if (dead_.empty()) {
            return std::nullopt;
        }
        const Membership dead = dead_.front();
        dead_.pop_front();
        return dead;
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Membership> dead_;
    bool is_closed_ = false;
};

/// What a worker notes, for itself.
struct Notes {
    std::vector<Fresh> pushed;
    std::vector<Fresh> taken;
    std::map<const char*, unsigned> counts;
};

class Worker {
public:
    Worker(const test::DomainMemory& memory, Mortuary& mortuary, std::uint32_t id)
        : memory_(memory), mortuary_(mortuary), id_(id), random_(test::seed() + id) {}

    void run(unsigned round_count, unsigned step_count) {
        while (round_count > 0) {
            const unsigned steps = std::min(random_.below(step_count) + 1, round_count);
            live(steps);
            round_count -= steps;
        }
    }
    [[nodiscard]] const Notes& notes() const { return notes_; }

private:
    static constexpr std::size_t port_count = 3;

    void live(unsigned steps) {
        member_ = std::make_unique<test::Member>(memory_);
        for (std::size_t port = 0; port < port_count; ++port) {
            open(port);
        }
        for (unsigned step = 0; step < steps; ++step) {
            take_step();
        }
        if (random_.one_in(2)) {
            held_.clear();
            for (std::size_t port = 0; port < port_count; ++port) {
                outs_[port].reset();
                ins_[port].reset();
            }
            if (random_.one_in(3)) { // somebody else makes the same mistake once: a buffer is forgotten
                test::abandon(member_->pools[0].try_allocate());
            }
            if (const ReapResult result = member_->leave(); result.error || !result.ended_entry) {
                fail("leaving: %s", result.error.message().c_str());
            }
            ++notes_.counts["left"];
        } else {
            if (random_.one_in(2)) {
                die_in_push();
            } else {
                die_in_pop();
            }
            for (BufferPtr& buffer : held_) {
                test::abandon(std::move(buffer));
            }
            held_.clear();
            for (std::size_t port = 0; port < port_count; ++port) {
                test::abandon(std::move(outs_[port]));
                test::abandon(std::move(ins_[port]));
            }
            const Membership dead = member_->me;
            member_.reset(); // private memory alone
            mortuary_.add(dead);
            ++notes_.counts["died"];
        }
    }

    void open(std::size_t port) {
        outs_[port] = std::make_unique<Producer>(member_->ports[port], short_spin);
        ins_[port] = std::make_unique<Consumer>(member_->ports[port], short_spin);
        if (port == 0) {
            // Each handle is a writer of its own: the order of one handle's messages is what is promised.
            stream_ = id_ << 16 | ++stream_count_;
            next_number_ = 0;
            last_seen_.clear();
        }
    }

    void take_step() {
        switch (random_.below(16)) {
        case 0:
        case 1: allocate(); break;
        case 2: clone_or_copy(); break;
        case 3:
        case 4: drop(); break;
        case 5:
        case 6: push_fresh(); break;
        case 7: push_fresh_batch(); break;
        case 8:
        case 9: pop_fresh(); break;
        case 10:
        case 11: pass_on(1 + random_.below(2U)); break;
        case 12:
        case 13: take_in(1 + random_.below(2U)); break;
        case 14: look(); break;
        default:
            if (random_.one_in(4)) {
                reopen();
            }
        }
        while (held_.size() > 5) {
            drop();
        }
    }

    [[nodiscard]] BufferPtr new_buffer() {
        const std::size_t bytes = random_.one_in(2) ? sizeof(Payload) : 2 * sizeof(Payload);
        switch (random_.below(3)) {
        case 0: return member_->buffers.try_allocate(bytes);
        case 1: return member_->buffers.allocate_for(bytes, 50us, short_spin);
        default: return member_->pools[random_.below(2U)].allocate_for(20us, short_spin);
        }
    }

    void write(const BufferPtr& buffer, std::uint32_t writer, std::uint32_t number) {
        if (buffer.use_count() != 1) {
            fail("%u users of a buffer that is to be written", buffer.use_count());
        }
        payload_of(buffer).write(writer, number);
    }

    void verify(const BufferPtr& buffer) const {
        if (!payload_of(buffer).is_whole()) {
            fail("a torn payload of %x, number %u", payload_of(buffer).writer, payload_of(buffer).number);
        }
    }

    void allocate() {
        if (BufferPtr buffer = new_buffer()) {
            write(buffer, id_, ++serial_);
            held_.push_back(std::move(buffer));
        }
    }

    void clone_or_copy() {
        if (!held_.empty()) {
            const BufferPtr& one = held_[random_.below(held_.size())];
            BufferPtr another = random_.one_in(2) ? one.clone() : one;
            if (another) {
                verify(another);
                held_.push_back(std::move(another));
            }
        }
    }

    void drop() {
        if (!held_.empty()) {
            const auto place = held_.begin() + static_cast<std::ptrdiff_t>(random_.below(held_.size()));
            verify(*place);
            held_.erase(place);
        }
    }

    [[nodiscard]] BufferPtr fresh() {
        BufferPtr buffer = new_buffer();
        if (buffer) {
            write(buffer, stream_, next_number_);
        }
        return buffer;
    }

    void push_fresh() {
        BufferPtr buffer = fresh();
        if (!buffer) {
            return;
        }
        [[maybe_unused]] Payload& payload = payload_of(buffer);
        const PushResult result =
            random_.one_in(2) ? outs_[0]->try_push(std::move(buffer)) : outs_[0]->push_for(std::move(buffer), 100us);
        if (result == PushResult::ok) {
#if defined(WEIR_SEEDED_RACE)
            // The same bytes, in a buffer that is not the producer's any more.
            *static_cast<volatile std::uint32_t*>(&payload.words[0]) = payload.words[0];
#endif
            notes_.pushed.push_back({stream_, next_number_++});
        } else if (result == PushResult::failed) {
            fail("push: %s", outs_[0]->last_error().message().c_str());
        }
    }

    void push_fresh_batch() {
        std::vector<BufferPtr> batch;
        const std::uint32_t first = next_number_;
        while (batch.size() < 3) {
            BufferPtr buffer = fresh();
            if (!buffer) {
                break;
            }
            ++next_number_;
            batch.push_back(std::move(buffer));
        }
        const std::size_t count = outs_[0]->try_push(batch);
        for (std::uint32_t place = 0; place < count; ++place) {
            notes_.pushed.push_back({stream_, first + place});
        }
    }

    void note_fresh(const BufferPtr& buffer) {
        verify(buffer);
        const Payload& payload = payload_of(buffer);
        const auto [last, is_first] = last_seen_.try_emplace(payload.writer, payload.number);
        if (!is_first) {
            if (payload.number <= last->second) {
                fail("of writer %x came %u after %u", payload.writer, payload.number, last->second);
            }
            last->second = payload.number;
        }
        notes_.taken.push_back({payload.writer, payload.number});
    }

    void pop_fresh() {
        std::vector<BufferPtr> batch;
        switch (random_.below(3)) {
        case 0: batch.push_back(ins_[0]->try_pop()); break;
        case 1: batch.push_back(ins_[0]->pop_for(100us)); break;
        default: batch.resize(3); static_cast<void>(ins_[0]->try_pop(batch));
        }
        for (BufferPtr& buffer : batch) {
            if (buffer) {
                note_fresh(buffer);
                if (random_.one_in(2)) {
                    write(buffer, id_, ++serial_); // it is this worker's alone now
                }
                held_.push_back(std::move(buffer));
            }
        }
        if (ins_[0]->last_error()) {
            fail("pop: %s", ins_[0]->last_error().message().c_str());
        }
    }

    /// Pushes something that is held, of which there may be clones and copies.
    void pass_on(std::size_t port) {
        if (held_.empty()) {
            return;
        }
        std::swap(held_[random_.below(held_.size())], held_.back());
        BufferPtr buffer = std::move(held_.back());
        held_.pop_back();
        verify(buffer);
        if (buffer.use_count() == 1) {
            write(buffer, id_, ++serial_);
        }
        const PushResult result = outs_[port]->try_push(std::move(buffer));
        if (result == PushResult::failed && outs_[port]->last_error() != errc::too_many_references) {
            fail("push: %s", outs_[port]->last_error().message().c_str());
        }
        if (result != PushResult::ok) {
            verify(buffer);
        }
    }

    void take_in(std::size_t port) {
        BufferPtr buffer = random_.one_in(2) ? ins_[port]->try_pop() : ins_[port]->pop_for(50us);
        if (buffer) {
            verify(buffer);
            static_cast<void>(buffer.sequence());
            held_.push_back(std::move(buffer));
        } else if (ins_[port]->last_error()) {
            fail("pop: %s", ins_[port]->last_error().message().c_str());
        }
    }

    void look() {
        const std::size_t port = random_.below(port_count);
        static_cast<void>(ins_[port]->stream_end());
        static_cast<void>(member_->ports[port].counters(PortEnd::producer));
        static_cast<void>(member_->pools[0].free_count());
    }

    void reopen() {
        const std::size_t port = random_.below(port_count);
        outs_[port].reset();
        ins_[port].reset();
        ++notes_.counts["reopened"];
        open(port);
    }

    /// The first step of a push alone.
    void die_in_push() {
        BufferPtr buffer = new_buffer();
        if (buffer) {
            write(buffer, id_, ++serial_);
            PortView& port = *member_->ports[random_.below(port_count)].view();
            set_queued(buffer.pool()->reference(buffer.index(), buffer.reference()), member_->me.owner(),
                       port.options().port_id);
            test::abandon(std::move(buffer));
            ++notes_.counts["died in a push"];
        }
    }

    /// The steps of a pop up to the claim.
    void die_in_pop() {
        PortView& port = *member_->ports[0].view();
        std::uint64_t position = 0;
        std::uint64_t cell = 0;
        PortView::Item item;
        if (port.ring().find_item(position, cell) != RingStatus::ok || !port.decode(cell, item)) {
            return;
        }
        const std::uint64_t seen = load_reference(item.word());
        if (port.ring().load_cell(position) == cell && item.is_queued_as(seen) &&
            try_claim(item.word(), seen, member_->me.owner())) {
            const auto* payload = reinterpret_cast<const Payload*>(item.pool->payload(item.index));
            notes_.taken.push_back({payload->writer, payload->number});
            ++notes_.counts["died in a pop"];
        }
    }

    const test::DomainMemory& memory_;
    Mortuary& mortuary_;
    std::uint32_t id_;
    test::Random random_;
    std::unique_ptr<test::Member> member_;
    std::array<std::unique_ptr<Producer>, port_count> outs_;
    std::array<std::unique_ptr<Consumer>, port_count> ins_;
    std::vector<BufferPtr> held_;
    std::uint32_t stream_ = 0;
    std::uint32_t stream_count_ = 0;
    std::uint32_t next_number_ = 0;
    std::uint32_t serial_ = 0;
    std::map<std::uint32_t, std::uint32_t> last_seen_;
    Notes notes_;
};

void reap_all(const test::DomainMemory& memory, Mortuary& mortuary) {
    const test::Member me(memory);
    while (const std::optional<Membership> dead = mortuary.take()) {
        if (const ReapResult result = me.reap(*dead); result.error || dead->is_alive()) {
            fail("reaping: %s", result.error.message().c_str());
        }
    }
    static_cast<void>(me.leave());
}

/// Looks at everything while everybody is at work. Returns how often.
unsigned check_all(const test::DomainMemory& memory, const std::atomic<bool>& is_over) {
    const test::Member me(memory);
    unsigned look_count = 0;
    // relaxed: one look more or less
    for (; !is_over.load(std::memory_order_relaxed); ++look_count) {
        for (const std::string& broken : check_domain(me.me.table, me.buffers, me.ports, nullptr, CheckMode::live)) {
            fail("a live domain is broken: %s", broken.c_str());
        }
    }
    static_cast<void>(me.leave());
    return look_count;
}

} // namespace

int main(int argument_count, char** arguments) {
    const unsigned round_count = option(argument_count, arguments, "--rounds", 20'000);
    const unsigned step_count = option(argument_count, arguments, "--steps", 120);
    const unsigned thread_count = option(argument_count, arguments, "--threads", 5);
    set_watchdog(round_count);

    const test::DomainMemory memory(
        {{.buffer_bytes = sizeof(Payload), .buffer_count = 20},
         {.buffer_bytes = 2 * sizeof(Payload), .buffer_count = 12, .references_per_buffer = 12, .first_buffer = 100}},
        {{.capacity = 8, .port_id = 1, .when_unconsumed = WhenUnconsumed::fill},
         {.capacity = 4, .port_id = 2, .when_full = WhenFull::refuse},
         {.capacity = 4, .port_id = 3, .when_full = WhenFull::drop_oldest, .time_stamps = true}});
    Mortuary mortuary;
    std::vector<std::unique_ptr<Worker>> workers;
    std::vector<std::thread> threads;
    for (std::uint32_t id = 1; id <= thread_count; ++id) {
        workers.push_back(std::make_unique<Worker>(memory, mortuary, id));
        threads.emplace_back([&worker = *workers.back(), rounds = round_count / thread_count, step_count] {
            worker.run(rounds, step_count);
        });
    }
    std::vector<std::thread> reapers;
    for (int number = 0; number < 2; ++number) {
        reapers.emplace_back([&] { reap_all(memory, mortuary); });
    }
    std::atomic<bool> is_over{false};
    unsigned look_count = 0;
    std::thread checker([&] { look_count = check_all(memory, is_over); });
    for (std::thread& thread : threads) {
        thread.join();
    }
    mortuary.close();
    for (std::thread& reaper : reapers) {
        reaper.join();
    }
    // relaxed: joining the thread orders all else
    is_over.store(true, std::memory_order_relaxed);
    checker.join();

    // Everybody is gone. What is left in the ports is taken out; then all buffers are free.
    test::Member last(memory);
    if (const std::string broken = last.check(); !broken.empty()) {
        fail("the domain is broken: %s", broken.c_str());
    }
    std::vector<Fresh> pushed;
    std::vector<Fresh> taken;
    std::map<std::string, unsigned> counts{{"checks", look_count}};
    for (std::size_t port = 0; port < last.ports.size(); ++port) {
        Consumer in(last.ports[port]);
        while (const BufferPtr buffer = in.pop()) { // until the end of the stream: every producer closed, or died
            const Payload& payload = payload_of(buffer);
            if (!payload.is_whole()) {
                fail("a torn payload was left in port %zu", port);
            }
            if (port == 0) {
                taken.push_back({payload.writer, payload.number});
                ++counts["left over"];
            }
        }
        if (in.stream_end() == StreamEnd::open) {
            fail("port %zu is not at its end: %s", port, in.last_error().message().c_str());
        }
    }
    for (const std::unique_ptr<Worker>& worker : workers) {
        const Notes& notes = worker->notes();
        pushed.insert(pushed.end(), notes.pushed.begin(), notes.pushed.end());
        taken.insert(taken.end(), notes.taken.begin(), notes.taken.end());
        for (const auto& [what, count] : notes.counts) {
            counts[what] += count;
        }
    }
    std::ranges::sort(pushed);
    std::ranges::sort(taken);
    if (const auto twice = std::ranges::adjacent_find(taken); twice != taken.end()) {
        fail("message %u of writer %x was taken twice", twice->number, twice->writer);
    }
    if (pushed != taken) {
        fail("%zu messages were pushed, %zu taken", pushed.size(), taken.size());
    }
    if (const DomainCensus census = last.census(); census.free_count != 32) {
        fail("%u of 32 buffers are free", census.free_count);
    }
    static_cast<void>(last.leave());
    std::printf("%zu messages", pushed.size());
    for (const auto& [what, count] : counts) {
        std::printf(", %s: %u", what.c_str(), count);
    }
    std::printf("\n");
    return 0;
}
