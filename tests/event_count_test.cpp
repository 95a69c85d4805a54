#include "catch.hpp"
#include "testing.hpp"

#include <weir/event_count.hpp>

#include <algorithm>
#include <functional>
#include <thread>

using namespace weir;

namespace {

/// A kernel of one word whose sleepers are counted, and whose clock moves only when somebody sleeps to the end.
class FakeKernel {
public:
    FakeKernel() {
        now_ns = 1'000'000;
        wait_count = wake_count = asleep_count = 0;
        deadlines_ns.clear();
        in_sleep = nullptr;
        wakes_late = false;
        before_ = replace_futex_ops({wait, wake, []() noexcept { return now_ns; }});
    }
    FakeKernel(const FakeKernel&) = delete;
    FakeKernel& operator=(const FakeKernel&) = delete;
    ~FakeKernel() { static_cast<void>(replace_futex_ops(before_)); }

    static inline std::int64_t now_ns = 0;
    static inline unsigned wait_count = 0;   ///< system calls
    static inline unsigned wake_count = 0;   ///< system calls
    static inline unsigned asleep_count = 0; ///< who sleeps now
    static inline std::vector<DeadlineNs> deadlines_ns;
    static inline std::function<void()> in_sleep; ///< what others do while a waiter sleeps
    static inline bool wakes_late = false;        ///< a wake is only counted; deliver_wake() does it
    static void deliver_wake() { asleep_count = 0; }

private:
    static void wait(const std::uint32_t& word, std::uint32_t expected, DeadlineNs deadline_ns) noexcept {
        ++wait_count;
        if (word != expected) {
            return;
        }
        deadlines_ns.push_back(deadline_ns);
        ++asleep_count;
        if (in_sleep) {
            in_sleep();
            if (asleep_count != 0) { // nobody woke it
                asleep_count = 0;
                now_ns = deadline_ns;
            }
        }
    }
    static std::uint32_t wake(const std::uint32_t&, std::uint32_t count_max) noexcept {
        ++wake_count;
        const std::uint32_t count = std::min(asleep_count, count_max);
        if (!wakes_late) {
            asleep_count -= count;
        }
        return count;
    }

    FutexOps before_{};
};

constexpr WaitOptions at_once{.spin_count = 0, .recheck_interval_ns = 100};

/// Calls `visit` with every order in which the steps of several parties can happen; orders[i] is whose step comes i-th.
void for_each_order(std::vector<unsigned> left, std::vector<unsigned>& order,
                    const std::function<void(const std::vector<unsigned>&)>& visit) {
    bool is_done = true;
    for (unsigned party = 0; party < left.size(); ++party) {
        if (left[party] != 0) {
            is_done = false;
            --left[party];
            order.push_back(party);
            for_each_order(left, order, visit);
            order.pop_back();
            ++left[party];
        }
    }
    if (is_done) {
        visit(order);
    }
}

} // namespace

TEST_CASE("without a waiter a notification is no system call and writes nothing") {
    const FakeKernel kernel;
    std::uint32_t word = 0;
    EventCount event(word);
    for (int count = 0; count < 1000; ++count) {
        if (event.notify()) {
            FAIL("it sent a wake");
        }
    }
    CHECK(kernel.wake_count == 0);
    CHECK(word == 0);
}

TEST_CASE("many waiters cost one wake, and then none") {
    const FakeKernel kernel;
    std::uint32_t word = 0;
    EventCount event(word);
    const std::uint32_t first_key = event.prepare();
    CHECK(event.prepare() == first_key);
    event.sleep(first_key, deadline_never);
    event.sleep(first_key, deadline_never);
    CHECK(kernel.asleep_count == 2);
    CHECK(event.notify());
    CHECK(kernel.wake_count == 1);
    CHECK(kernel.asleep_count == 0);
    CHECK_FALSE(event.notify());
    CHECK(kernel.wake_count == 1);
}

TEST_CASE("a waiter that was killed after it prepared costs exactly one needless wake") {
    const FakeKernel kernel;
    std::uint32_t word = 0;
    EventCount event(word);
    static_cast<void>(event.prepare());
    unsigned sent_count = 0;
    for (int count = 0; count < 100; ++count) {
        sent_count += event.notify() ? 1U : 0U;
    }
    CHECK(sent_count == 1);
    CHECK(kernel.wake_count == 1);
}

TEST_CASE("a process that was killed in its sleep costs exactly one needless wake") {
    const Segment segment = Segment::anonymous(4096);
    auto& word = *reinterpret_cast<std::uint32_t*>(segment.bytes().data());
    EventCount event(word);
    test::Child waiter([&] {
        for (;;) {
            event.sleep(event.prepare(), deadline_never);
        }
    });
    while (futex_wake(word, 1) == 0) { // a wake that reaches it says that it slept
        std::this_thread::yield();
    }
    waiter.kill(SIGKILL);
    CHECK(waiter.wait().signal() == SIGKILL);
    const test::CountedFutex futex;
    CHECK(event.notify());
    CHECK(futex.wake_count == 1);
    for (int count = 0; count < 100; ++count) {
        CHECK_FALSE(event.notify());
    }
    CHECK(futex.wake_count == 1);
}

TEST_CASE("a notification between prepare and sleep is not slept over") {
    const FakeKernel kernel;
    std::uint32_t word = 0;
    EventCount event(word);
    const std::uint32_t key = event.prepare();
    CHECK(event.notify());
    event.sleep(key, deadline_never);
    CHECK(kernel.wait_count == 1);
    CHECK(kernel.asleep_count == 0);
}

TEST_CASE("in no order of their steps does a waiter sleep over a publication") {
    // A waiter's steps: prepare, look, sleep. A notifier's: publish, notify up to its wake, the wake.
    struct Party {
        bool waits;
        bool done = false;
        bool sent = false;
        std::uint32_t key = 0;
        unsigned step = 0;
    };
    unsigned order_count = 0;
    unsigned slept_count = 0;
    for (const std::vector<bool>& waits : {std::vector<bool>{true, false}, {true, true, false}, {true, false, false}}) {
        std::vector<unsigned> order;
        for_each_order(std::vector<unsigned>(waits.size(), 3), order, [&](const std::vector<unsigned>& steps) {
            FakeKernel kernel;
            kernel.wakes_late = true;
            std::uint32_t word = 0;
            EventCount event(word);
            unsigned published_count = 0;
            std::vector<Party> parties;
            for (const bool party_waits : waits) {
                parties.push_back(Party{party_waits});
            }
            for (const unsigned number : steps) {
                Party& party = parties[number];
                switch (party.step++) {
                case 0:
                    if (party.waits) {
                        party.key = event.prepare();
                    } else {
                        ++published_count;
                    }
                    break;
                case 1:
                    if (party.waits) {
                        party.done = published_count != 0;
                    } else {
                        party.sent = event.notify();
                    }
                    break;
                default:
                    if (party.waits && !party.done) {
                        const unsigned asleep_before = kernel.asleep_count;
                        event.sleep(party.key, deadline_never);
                        slept_count += kernel.asleep_count - asleep_before;
                    } else if (!party.waits && party.sent) {
                        FakeKernel::deliver_wake();
                    }
                }
            }
            ++order_count;
            if (kernel.asleep_count != 0) {
                std::string text;
                for (const unsigned number : steps) {
                    text += std::to_string(number) + " ";
                }
                FAIL("a waiter sleeps on: " << text);
            }
        });
    }
    CHECK(order_count == 20 + 1680 + 1680);
    CHECK(slept_count > 0);
}

TEST_CASE("the check above finds a waiter that looks before it prepares") {
    // The lost wake: look, publish, notify (nobody waits), prepare, sleep.
    const FakeKernel kernel;
    std::uint32_t word = 0;
    EventCount event(word);
    CHECK_FALSE(event.notify());
    event.sleep(event.prepare(), deadline_never);
    CHECK(kernel.asleep_count == 1);
}

TEST_CASE("the epoch wraps without losing the bit or a wake") {
    const FakeKernel kernel;
    std::uint32_t word = 0xffff'fffe;
    EventCount event(word);
    const std::uint32_t key = event.prepare();
    CHECK(key == 0xffff'ffff);
    CHECK(event.notify());
    CHECK(word == 0);
    event.sleep(key, deadline_never);
    CHECK(kernel.asleep_count == 0);
    CHECK(event.prepare() == 1);
}

TEST_CASE("any bits in the word are a valid state") {
    for (const std::uint32_t bits : {0x1U, 0x7fff'ffffU, 0x8000'0000U, 0xffff'ffffU}) {
        const FakeKernel kernel;
        std::uint32_t word = bits;
        EventCount event(word);
        CHECK(event.notify() == ((bits & 1) != 0));
        const std::uint32_t key = event.prepare();
        CHECK(event.notify());
        CHECK(word != key);
        CHECK((word & 1) == 0);
    }
}

TEST_CASE("a wait whose condition holds makes no system call and sets no bit while it spins") {
    const FakeKernel kernel;
    std::uint32_t word = 0;
    CHECK(wait_until(
        EventCount(word), {.spin_count = 1}, deadline_never, [](Look) { return true; }, [] {}));
    CHECK(word == 0);
    CHECK(kernel.wait_count == 0);
    unsigned look_count = 0;
    CHECK(wait_until(
        EventCount(word), {.spin_count = 50}, deadline_never, [&](Look) { return ++look_count == 50; }, [] {}));
    CHECK(word == 0);
}

TEST_CASE("a wait looks as often as it was told to before it sleeps") {
    const FakeKernel kernel;
    std::uint32_t word = 0;
    unsigned look_count = 0;
    std::vector<unsigned> looks_before_sleep;
    kernel.in_sleep = [] {};
    CHECK(wait_until(
        EventCount(word), {.spin_count = 7, .recheck_interval_ns = 10}, deadline_never,
        [&](Look) { return ++look_count == 10; }, [&] { looks_before_sleep.push_back(look_count); }));
    CHECK(looks_before_sleep == std::vector<unsigned>{8, 9});
    CHECK(kernel.wait_count == 2);
}

TEST_CASE("a wait whose deadline has passed looks once and does not sleep") {
    const FakeKernel kernel;
    std::uint32_t word = 0;
    unsigned look_count = 0;
    const auto look = [&](Look) { return ++look_count == 2; };
    CHECK_FALSE(wait_until(EventCount(word), at_once, kernel.now_ns, look, [] { FAIL("it slept"); }));
    CHECK(look_count == 1);
    CHECK(wait_until(EventCount(word), at_once, kernel.now_ns - 5, look, [] { FAIL("it slept"); }));
    CHECK(kernel.wait_count == 0);
}

TEST_CASE("each sleep ends at the next re-check or at the deadline, whichever is first") {
    FakeKernel kernel;
    kernel.in_sleep = [] {};
    std::uint32_t word = 0;
    const std::int64_t start_ns = kernel.now_ns;
    unsigned sleep_count = 0;
    CHECK_FALSE(wait_until(
        EventCount(word), at_once, start_ns + 250, [](Look) { return false; }, [&] { ++sleep_count; }));
    CHECK(kernel.deadlines_ns == std::vector<DeadlineNs>{start_ns + 100, start_ns + 200, start_ns + 250});
    CHECK(sleep_count == 3);
    CHECK(kernel.now_ns == start_ns + 250);
}

TEST_CASE("a wait without a deadline sleeps one re-check interval at a time") {
    FakeKernel kernel;
    kernel.in_sleep = [] {};
    std::uint32_t word = 0;
    const std::int64_t start_ns = kernel.now_ns;
    unsigned look_count = 0;
    CHECK(wait_until(
        EventCount(word), at_once, deadline_never, [&](Look) { return ++look_count == 3; }, [] {}));
    CHECK(kernel.deadlines_ns == std::vector<DeadlineNs>{start_ns + 100, start_ns + 200});
}

TEST_CASE("a notifier that was killed between publishing and waking delays by one re-check interval") {
    FakeKernel kernel;
    bool published = false;
    kernel.in_sleep = [&] { published = true; }; // and then it dies
    std::uint32_t word = 0;
    CHECK(wait_until(
        EventCount(word), at_once, deadline_never, [&](Look) { return published; }, [] {}));
    CHECK(kernel.wait_count == 1);
    CHECK(kernel.wake_count == 0);
}

TEST_CASE("a notification during the sleep ends it") {
    FakeKernel kernel;
    std::uint32_t word = 0;
    EventCount event(word);
    bool published = false;
    kernel.in_sleep = [&] {
        published = true;
        CHECK(event.notify());
    };
    const std::int64_t start_ns = kernel.now_ns;
    CHECK(wait_until(
        event, at_once, deadline_never, [&](Look) { return published; }, [] {}));
    CHECK(kernel.now_ns == start_ns);
    CHECK(kernel.wake_count == 1);
}

TEST_CASE("a wait that is over costs one needless wake at most") {
    FakeKernel kernel;
    std::uint32_t word = 0;
    EventCount event(word);
    kernel.in_sleep = [] {};
    CHECK_FALSE(wait_until(
        event, at_once, kernel.now_ns + 1000, [](Look) { return false; }, [] {}));
    unsigned sent_count = 0;
    for (int count = 0; count < 100; ++count) {
        sent_count += event.notify() ? 1U : 0U;
    }
    CHECK(sent_count <= 1);
    CHECK(kernel.wake_count == sent_count);
}

TEST_CASE("whether there are waiters is the bit, and asking changes nothing") {
    std::uint32_t word = 0;
    EventCount event(word);
    CHECK_FALSE(event.has_waiters());
    static_cast<void>(event.prepare());
    CHECK(event.has_waiters());
    CHECK(event.has_waiters());
    const FakeKernel kernel;
    CHECK(event.notify());
    CHECK_FALSE(event.has_waiters());
}

TEST_CASE("a wait looks thoroughly now and then while it spins, and at everything before it sleeps") {
    FakeKernel kernel;
    kernel.in_sleep = [] {};
    std::uint32_t word = 0;
    std::vector<Look> looks;
    CHECK_FALSE(wait_until(
        EventCount(word), {.spin_count = 600, .recheck_interval_ns = 10}, kernel.now_ns + 15,
        [&](Look look) {
            looks.push_back(look);
            return false;
        },
        [] {}));
    REQUIRE(looks.size() == 603);
    CHECK(std::count(looks.begin(), looks.begin() + 600, Look::thorough) == 2);
    CHECK(std::count(looks.begin(), looks.begin() + 600, Look::last) == 0);
    CHECK(std::count(looks.begin() + 600, looks.end(), Look::last) == 3);
}

TEST_CASE("a long spin ends at the deadline") {
    const FakeKernel kernel;
    std::uint32_t word = 0;
    unsigned look_count = 0;
    CHECK_FALSE(wait_until(
        EventCount(word), {.spin_count = 4'000'000'000}, kernel.now_ns,
        [&](Look) {
            ++look_count;
            return false;
        },
        [] {}));
    CHECK(look_count <= 256);
    CHECK(kernel.wait_count == 0);
}

TEST_CASE("who waits may shorten its own sleep") {
    FakeKernel kernel;
    kernel.in_sleep = [] {};
    std::uint32_t word = 0;
    WaitOptions options = at_once;
    const std::int64_t start_ns = kernel.now_ns;
    unsigned look_count = 0;
    CHECK(wait_until(
        EventCount(word), options, deadline_never,
        [&](Look) {
            options.recheck_interval_ns = 7;
            return ++look_count == 2;
        },
        [] {}));
    CHECK(kernel.deadlines_ns == std::vector<DeadlineNs>{start_ns + 7});
}

TEST_CASE("a wait goes on where it was woken for nothing") {
    FakeKernel kernel;
    std::uint32_t word = 0;
    EventCount event(word);
    unsigned wake_count = 0;
    kernel.in_sleep = [&] {
        ++wake_count;
        static_cast<void>(event.notify());
    };
    CHECK(wait_until(
        event, at_once, deadline_never, [&](Look) { return wake_count == 5; }, [] {}));
    CHECK(kernel.wait_count == 5);
}

TEST_CASE("random waiters and notifiers agree with a plain model") {
    struct Key {
        std::uint32_t value;
        std::uint64_t wake_count; ///< of the event when it was made
    };
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    const FakeKernel kernel;
    std::uint32_t word = 0xffff'fff0; // so that the epoch wraps on the way
    EventCount event(word);
    bool is_waited_for = false;
    std::uint64_t sent_count = 0;
    std::vector<Key> keys;
    for (int count = 0; count < 50'000; ++count) {
        switch (random.below(3)) {
        case 0:
            keys.push_back({event.prepare(), sent_count});
            is_waited_for = true;
            break;
        case 1:
            if (event.notify() != is_waited_for) {
                FAIL("operation " << count << ": a wake too many or too few");
            }
            sent_count += is_waited_for ? 1 : 0;
            is_waited_for = false;
            break;
        default:
            if (!keys.empty()) {
                const Key key = keys[random.below(keys.size())];
                const unsigned asleep_before = kernel.asleep_count;
                event.sleep(key.value, deadline_never);
                if ((kernel.asleep_count != asleep_before) != (key.wake_count == sent_count)) {
                    FAIL("operation " << count << ": slept with an old key, or not with a new one");
                }
            }
        }
        if (keys.size() > 100) {
            keys.erase(keys.begin(), keys.begin() + 50);
        }
    }
    CHECK(kernel.wake_count == sent_count);
}

TEST_CASE("two processes hand each other a number by event counts alone") {
    struct Shared {
        std::uint32_t events[2];
        std::uint32_t number;
    };
    const Segment segment = Segment::anonymous(4096);
    auto& state = *reinterpret_cast<Shared*>(segment.bytes().data());
    constexpr std::uint32_t last = 4000;
    // No re-check helps out within the watchdog's time.
    constexpr WaitOptions wait{.spin_count = 0, .recheck_interval_ns = 3'600'000'000'000};
    const auto play = [&](unsigned me) {
        for (std::uint32_t number = me; number < last; number += 2) {
            static_cast<void>(wait_until(
                EventCount(state.events[me]), wait, deadline_never,
                [&](Look) { return shared(state.number).load(std::memory_order_seq_cst) == number; }, [] {}));
            shared(state.number).store(number + 1, std::memory_order_seq_cst);
            EventCount(state.events[1 - me]).notify();
        }
    };
    test::Child other([&] { play(1); });
    test::Child one([&] { play(0); });
    CHECK(one.wait().succeeded());
    CHECK(other.wait().succeeded());
    CHECK(state.number == last);
}
