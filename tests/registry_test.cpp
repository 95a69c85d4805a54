#include "catch.hpp"
#include "testing.hpp"

#include <weir/registry.hpp>

#include <set>
#include <thread>

using namespace weir;
using test::error_of;

namespace {

struct Fixture {
    Fixture() { Registry::format(memory.span(), 4711); }

    test::Memory memory{Registry::bytes()};
};

} // namespace

TEST_CASE("a segment's key and its name's hash survive the way through a directory entry", "[registry]") {
    test::Random random(test::seed());
    CAPTURE(test::seed());
    for (int round = 0; round < 1000; ++round) {
        const SegmentKey key{static_cast<std::uint8_t>(random.next()),
                             static_cast<std::uint32_t>(random.next()) & SegmentKey::incarnation_mask,
                             static_cast<std::uint16_t>(random.next())};
        const auto hash = static_cast<std::uint32_t>(random.next()) & SegmentKey::hash_mask;
        const std::uint64_t word = key.word(hash);
        REQUIRE(word != 0);
        REQUIRE(SegmentKey::of(word) == key);
        REQUIRE(SegmentKey::hash_of(word) == hash);
    }
}

TEST_CASE("segments' names say whose they are, and no other domain's name is taken for one", "[registry]") {
    const DomainNames names(1000, "cam.era");
    const SegmentKey key{255, SegmentKey::incarnation_mask, 65'535};
    const std::uint64_t id = 0xffff'ffff'ffff'ffff;
    for (const SegmentKind kind : {SegmentKind::pool_control, SegmentKind::pool_payload, SegmentKind::port}) {
        const std::string name = names.segment(id, key, kind);
        CHECK(name.size() <= segment_name_length_max);
        const auto parsed = names.parse(name);
        REQUIRE(parsed);
        CHECK(parsed->registry_id == id);
        CHECK(parsed->key == key);
        CHECK_FALSE(DomainNames(1000, "cam").parse(name));
        CHECK_FALSE(DomainNames(100, "cam.era").parse(name));
        CHECK_FALSE(names.parse(name.substr(0, name.size() - 13)));
    }
    CHECK(names.segment(id, key, SegmentKind::pool_control) != names.segment(id, key, SegmentKind::pool_payload));
    for (const std::string& name : {names.lock(), names.registry(), names.registry_draft(), names.prefix()}) {
        CHECK_FALSE(names.parse(name));
    }
    CHECK_FALSE(names.parse(names.prefix() + "1.256.0.1.port"));
    CHECK_FALSE(names.parse(names.prefix() + "1.2.0.65536.port"));
    CHECK_FALSE(names.parse(names.prefix() + "x.2.0.1.port"));
    CHECK(DomainNames::of("weir+1000+cam.era+lock"));
    CHECK_FALSE(DomainNames::of("weir+01000+cam.era+lock")); // the domain of no user, and not one of user 1000
    CHECK(error_of([] { return DomainNames(0, "a+b"); }) == errc::invalid_name);
    CHECK(DomainNames(0, std::string(64, 'n')).segment(id, key, SegmentKind::pool_control).size() <=
          segment_name_length_max);
}

TEST_CASE("a directory is filled from the front, and one of two wins a place", "[registry]") {
    const Fixture it;
    const Registry registry(it.memory.span());
    Directory ports = registry.ports();
    constexpr int thread_count = 4;
    constexpr std::uint16_t per_thread = 100;
    std::vector<std::thread> threads;
    for (std::uint8_t slot = 0; slot < thread_count; ++slot) {
        threads.emplace_back([&ports, slot] {
            for (std::uint16_t serial = 1; serial <= per_thread; ++serial) {
                for (unsigned place = 0; place < ports.size(); ++place) {
                    if (ports.entry(place) == 0 && ports.publish(place, SegmentKey{slot, 0, serial}.word(slot))) {
                        break;
                    }
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    std::set<std::uint64_t> words;
    for (unsigned place = 0; place < thread_count * per_thread; ++place) {
        words.insert(ports.entry(place));
    }
    CHECK(words.size() == thread_count * per_thread);
    CHECK(words.count(0) == 0);
    CHECK(ports.entry(thread_count * per_thread) == 0);
    CHECK(ports.lists({2, 0, 100}));
    CHECK_FALSE(ports.lists({2, 0, 101}));
    CHECK_FALSE(ports.publish(0, 1));
    CHECK(registry.check().empty());
}

TEST_CASE("one caller an interval is elected to look for the dead", "[registry]") {
    const Fixture it;
    Registry registry(it.memory.span());
    CHECK(registry.take_check(1000, 100));
    CHECK_FALSE(registry.take_check(1000, 100));
    CHECK_FALSE(registry.take_check(1099, 100));
    CHECK(registry.take_check(1100, 100));
    CHECK(registry.take_check(50, 100)); // of another time namespace, or after bad bytes
    std::atomic<int> elected_count{0};
    std::vector<std::thread> threads;
    for (int number = 0; number < 4; ++number) {
        threads.emplace_back([&] {
            for (std::int64_t now_ns = 10'000; now_ns < 20'000; ++now_ns) {
                elected_count += registry.take_check(now_ns / 100 * 100, 100) ? 1 : 0;
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(elected_count >= 100);
}

TEST_CASE("a registry that nobody formatted, and one with bad entries, are reported", "[registry]") {
    const Fixture it;
    Registry registry(it.memory.span());
    CHECK_FALSE(registry.is_kept());
    registry.keep();
    CHECK(registry.is_kept());
    CHECK(registry.check().empty());
    REQUIRE(registry.ports().publish(3, SegmentKey{1, 0, 1}.word(0)));
    CHECK(registry.check().size() == 1); // behind an empty one
    REQUIRE(registry.pools().publish(0, 2));
    CHECK(registry.check().size() == 2);
    it.memory.at<std::uint64_t>(offsetof(RegistryState, id)) = 12;
    CHECK(registry.check().size() == 3);
    it.memory.at<std::uint64_t>(offsetof(RegistryState, id)) = 0;
    CHECK(error_of([&] { return Registry(it.memory.span()); }) == errc::corrupt);
    CHECK(error_of([&] { return Registry(it.memory.span().first(100)); }) == errc::truncated);
    CHECK(error_of([&] { return Registry(it.memory.span().subspan(8)); }) == errc::misaligned);
}
