#include "catch.hpp"
#include "testing.hpp"

#include <weir/futex.hpp>

#include <thread>

#include <sys/mman.h>

using namespace weir;

namespace {

/// Wakes until `count` sleepers were woken: there is no other way to know that they sleep.
void wake_sleepers(const std::uint32_t& word, std::uint32_t count) {
    for (std::uint32_t woken = 0; woken < count; std::this_thread::yield()) {
        woken += futex_wake(word, count - woken);
    }
}

} // namespace

TEST_CASE("a wait for a word that has changed already returns at once") {
    const std::uint32_t word = 5;
    futex_wait(word, 4, deadline_never);
    SUCCEED();
}

TEST_CASE("a wait ends at its deadline") {
    const std::uint32_t word = 5;
    const std::int64_t start_ns = monotonic_ns();
    futex_wait(word, 5, start_ns + 2'000'000);
    CHECK(monotonic_ns() >= start_ns + 2'000'000);
}

TEST_CASE("a deadline that has passed, even one before the clock's start, does not wait") {
    const std::uint32_t word = 5;
    futex_wait(word, 5, monotonic_ns() - 1);
    futex_wait(word, 5, 0);
    futex_wait(word, 5, -1'000'000'000'000);
    SUCCEED();
}

TEST_CASE("waking where nobody sleeps wakes nobody") {
    const std::uint32_t word = 0;
    CHECK(futex_wake(word, 1) == 0);
    CHECK(futex_wake(word, ~std::uint32_t{0}) == 0);
}

TEST_CASE("as many sleepers are woken as asked for") {
    std::uint32_t word = 0;
    std::atomic<unsigned> awake_count{0};
    std::vector<std::thread> sleepers;
    for (int number = 0; number < 3; ++number) {
        sleepers.emplace_back([&] {
            futex_wait(word, 0, deadline_never);
            ++awake_count;
        });
    }
    wake_sleepers(word, 1);
    while (awake_count < 1) {
        std::this_thread::yield();
    }
    CHECK(awake_count == 1);
    wake_sleepers(word, 2);
    for (std::thread& sleeper : sleepers) {
        sleeper.join();
    }
    CHECK(awake_count == 3);
}

TEST_CASE("a process sleeps on a word that another has mapped elsewhere") {
    const int descriptor = memfd_create("futex_test", MFD_CLOEXEC);
    REQUIRE(descriptor >= 0);
    REQUIRE(ftruncate(descriptor, 4096) == 0);
    const auto map = [&] {
        return static_cast<std::uint32_t*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0));
    };
    std::uint32_t* here = map();
    std::uint32_t* there = map();
    REQUIRE((here != MAP_FAILED && there != MAP_FAILED && here != there));
    test::Child child([&] {
        munmap(here, 4096);
        futex_wait(*there, 0, deadline_never);
    });
    wake_sleepers(*here, 1);
    CHECK(child.wait().succeeded());
    munmap(here, 4096);
    munmap(there, 4096);
    close(descriptor);
}

TEST_CASE("a deadline beyond the clock's range is never") {
    CHECK(deadline_after(std::numeric_limits<std::int64_t>::max()) == deadline_never);
    CHECK(deadline_after(deadline_never - monotonic_ns()) == deadline_never);
    CHECK(deadline_after(deadline_never - monotonic_ns() - 3'600'000'000'000) < deadline_never);
}

TEST_CASE("a deadline counts from now, also backwards") {
    const std::int64_t before_ns = monotonic_ns();
    CHECK(deadline_after(1000) >= before_ns + 1000);
    CHECK(deadline_after(0) >= before_ns);
    CHECK(deadline_after(-1'000'000'000'000) < before_ns);
    CHECK(deadline_after(std::numeric_limits<std::int64_t>::min()) < before_ns);
}

TEST_CASE("the clock does not run backwards") {
    std::int64_t last_ns = monotonic_ns();
    for (int count = 0; count < 1000; ++count) {
        const std::int64_t now_ns = monotonic_ns();
        if (now_ns < last_ns) {
            FAIL("from " << last_ns << " to " << now_ns);
        }
        last_ns = now_ns;
    }
}

TEST_CASE("replaced functions are called with what the caller gave, until the old ones are put back") {
    static const std::uint32_t* word_seen;
    static std::uint32_t number_seen;
    static DeadlineNs deadline_seen_ns;
    const FutexOps before = replace_futex_ops({
        [](const std::uint32_t& word, std::uint32_t expected, DeadlineNs deadline_ns) noexcept {
            word_seen = &word;
            number_seen = expected;
            deadline_seen_ns = deadline_ns;
        },
        [](const std::uint32_t& word, std::uint32_t count_max) noexcept {
            word_seen = &word;
            number_seen = count_max;
            return std::uint32_t{17};
        },
        []() noexcept { return std::int64_t{1000}; },
    });
    const std::uint32_t word = 0;
    futex_wait(word, 3, 44);
    CHECK(word_seen == &word);
    CHECK(number_seen == 3);
    CHECK(deadline_seen_ns == 44);
    word_seen = nullptr;
    CHECK(futex_wake(word, 5) == 17);
    CHECK(word_seen == &word);
    CHECK(number_seen == 5);
    CHECK(monotonic_ns() == 1000);
    CHECK(deadline_after(5) == 1005);
    const FutexOps replaced = replace_futex_ops(before);
    CHECK(replaced.monotonic_ns() == 1000);
    CHECK(monotonic_ns() != 1000);
    CHECK(futex_wake(word, 5) == 0);
}
