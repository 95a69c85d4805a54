// The ledger's accounts have to find what the soak looks for; nothing else would tell if they did not.
#include "../catch.hpp"

#include "ledger.hpp"

#include <algorithm>

using namespace soak;

namespace {

constexpr std::int64_t ms = 1'000'000;

/// A ledger with a port that waits and one that drops, and a clock that goes on by 10 ms with each record.
class Story {
public:
    Ledger ledger{{{"waits", false}, {"drops", true}}};

    void tell(std::uint32_t life, Event event, unsigned port = 0, unsigned count = 0, unsigned detail = 0,
              MessageId message = 0) {
        now_ns_ += 10 * ms;
        const Record record{now_ns_,
                            message,
                            life,
                            event,
                            static_cast<std::uint8_t>(port),
                            static_cast<std::uint8_t>(count),
                            static_cast<std::uint8_t>(detail)};
        ledger.take(std::span(&record, 1));
        if (reads_each_) {
            ledger.end_round();
        }
    }
    void start(std::uint32_t life) { tell(life, Event::started); }
    void kill(std::uint32_t life) { tell(life, Event::ended, 0, 0, static_cast<unsigned>(End::killed)); }
    void leave(std::uint32_t life) { tell(life, Event::ended, 0, 0, static_cast<unsigned>(End::by_itself)); }
    void begin_push(std::uint32_t life, std::vector<std::uint32_t> numbers, unsigned port = 0) {
        for (unsigned place = 0; place < numbers.size(); ++place) {
            tell(life, Event::push_begun, port, static_cast<unsigned>(numbers.size()), place,
                 message_id(life, numbers[place]));
        }
    }
    void end_push(std::uint32_t life, unsigned count, unsigned port = 0) {
        tell(life, Event::push_ended, port, count);
        pushed_[port] += count;
    }
    void push(std::uint32_t life, std::vector<std::uint32_t> numbers, unsigned port = 0) {
        begin_push(life, numbers, port);
        end_push(life, static_cast<unsigned>(numbers.size()), port);
    }
    void begin_pop(std::uint32_t life, unsigned count, unsigned port = 0) { tell(life, Event::pop_begun, port, count); }
    void end_pop(std::uint32_t life, std::vector<MessageId> messages, unsigned port = 0) {
        tell(life, Event::pop_ended, port, static_cast<unsigned>(messages.size()));
        for (const MessageId message : messages) {
            tell(life, Event::popped, port, 0, 0, message);
            ++popped_[port];
        }
    }
    void pop(std::uint32_t life, std::vector<MessageId> messages, unsigned port = 0) {
        begin_pop(life, static_cast<unsigned>(messages.size()), port);
        end_pop(life, std::move(messages), port);
    }
    void read_each_record_alone() { reads_each_ = true; }

    /// What the ledger finds, with counters that agree with the story but for what is given.
    [[nodiscard]] std::string settle(std::uint64_t dropped = 0, std::uint64_t uncounted = 0) {
        const std::array<Ledger::PortTotals, 2> totals{
            {{pushed_[0], popped_[0] - uncounted, 0}, {pushed_[1], popped_[1], dropped}}};
        ledger.settle(totals);
        std::string all;
        for (const std::string& fault : ledger.faults()) {
            all += fault + "\n";
        }
        return all;
    }

private:
    std::int64_t now_ns_ = weir::monotonic_ns();
    std::array<std::uint64_t, 2> pushed_{};
    std::array<std::uint64_t, 2> popped_{};
    bool reads_each_ = false;
};

[[nodiscard]] bool says(const std::string& faults, const std::string& words) {
    return faults.find(words) != std::string::npos;
}

} // namespace

TEST_CASE("a story in which everything arrives has no faults", "[soak]") {
    Story story;
    if (GENERATE(false, true)) {
        story.read_each_record_alone();
    }
    story.start(1);
    story.start(2);
    story.push(1, {1, 2, 3});
    story.begin_push(1, {4, 5});
    story.end_push(1, 1);
    story.pop(2, {message_id(1, 1), message_id(1, 2)});
    story.pop(2, {message_id(1, 3), message_id(1, 4)});
    story.leave(1);
    story.leave(2);
    CHECK(story.settle().empty());
    CHECK(story.ledger.balance(0).refused == 1);
    CHECK(story.ledger.open_count() == 0);
}

TEST_CASE("a message that never arrived is named, unless somebody was killed who can have claimed it", "[soak]") {
    Story story;
    story.start(1);
    story.start(2);
    story.start(3);
    SECTION("nobody was killed") {
        story.push(1, {1, 2});
        story.pop(2, {message_id(1, 2)});
        story.leave(2);
        story.leave(1);
        story.leave(3);
        CHECK(says(story.settle(), "message 1:1 was pushed into waits"));
        CHECK(story.ledger.balance(0).unaccounted == 1);
    }
    SECTION("somebody was killed in a pop meanwhile") {
        story.push(1, {1, 2});
        story.begin_pop(2, 1);
        story.pop(3, {message_id(1, 2)});
        story.kill(2);
        story.leave(1);
        story.leave(3);
        CHECK(story.settle().empty());
        CHECK(story.ledger.balance(0).claimed_by_dead == 1);
    }
    SECTION("somebody was killed in a pop, who asked for fewer") {
        story.push(1, {1, 2, 3});
        story.begin_pop(2, 1);
        story.pop(3, {message_id(1, 3)});
        story.kill(2);
        story.leave(1);
        story.leave(3);
        CHECK(says(story.settle(), "never arrived"));
        CHECK(story.ledger.balance(0).unaccounted == 1);
    }
    SECTION("somebody was killed in a pop that was over before the push") {
        story.begin_pop(2, 8);
        story.kill(2);
        story.push(1, {1, 2});
        story.pop(3, {message_id(1, 2)});
        story.leave(1);
        story.leave(3);
        CHECK(says(story.settle(), "message 1:1"));
    }
    SECTION("somebody was killed in a pop that began when a later message had been popped") {
        story.push(1, {1});
        story.push(1, {2});
        story.pop(3, {message_id(1, 2)});
        story.begin_pop(2, 8);
        story.kill(2);
        story.leave(1);
        story.leave(3);
        CHECK(says(story.settle(), "message 1:1"));
    }
    SECTION("somebody was killed in a pop that was over before an earlier message was popped") {
        story.push(1, {1});
        story.push(1, {2});
        story.begin_pop(2, 8);
        story.kill(2);
        story.pop(3, {message_id(1, 1)});
        story.leave(1);
        story.leave(3);
        CHECK(says(story.settle(), "message 1:2"));
    }
    SECTION("somebody was killed, but not in a pop") {
        story.push(1, {1, 2});
        story.pop(2, {message_id(1, 2)});
        story.kill(2);
        story.leave(1);
        story.leave(3);
        CHECK(says(story.settle(), "message 1:1"));
    }
}

TEST_CASE("a message that arrives twice, or that nobody pushed, is named", "[soak]") {
    Story story;
    if (GENERATE(false, true)) {
        story.read_each_record_alone();
    }
    story.start(1);
    story.start(2);
    story.push(1, {1});
    story.pop(2, {message_id(1, 1)});
    SECTION("twice") {
        story.pop(2, {message_id(1, 1)});
        CHECK(says(story.settle(), "message 1:1 was popped from waits by life 2"));
    }
    SECTION("never pushed") {
        story.pop(2, {message_id(1, 7)});
        CHECK(says(story.settle(), "message 1:7 was popped from waits by life 2"));
    }
    SECTION("pushed into another port") {
        story.push(1, {2}, 1);
        story.pop(2, {message_id(1, 2)});
        CHECK(says(story.settle(), "message 1:2 was popped from waits by life 2"));
    }
    SECTION("its push had said that it was not pushed") {
        story.begin_push(1, {2});
        story.pop(2, {message_id(1, 2)});
        story.end_push(1, 0);
        CHECK(says(story.settle(), "message 1:2"));
    }
}

TEST_CASE("a consumer that gets a producer's messages out of order is named", "[soak]") {
    Story story;
    story.start(1);
    story.start(2);
    story.push(1, {1, 2});
    story.pop(2, {message_id(1, 2), message_id(1, 1)});
    story.leave(1);
    story.leave(2);
    CHECK(says(story.settle(), "message 1:1, number 1 of life 1 in waits, was popped by life 2 after number 2"));
}

TEST_CASE("of a batch whose pusher was killed, a prefix arrives", "[soak]") {
    Story story;
    story.start(1);
    story.start(2);
    story.begin_push(1, {1, 2, 3, 4});
    SECTION("a prefix") {
        story.kill(1);
        story.pop(2, {message_id(1, 1), message_id(1, 2)});
        story.leave(2);
        CHECK(story.settle(0, 2).find("counter of messages popped") != std::string::npos);
        CHECK(story.ledger.balance(0).doubtful == 4);
        CHECK(story.ledger.balance(0).doubtful_sure == 2);
        CHECK(story.ledger.balance(0).unaccounted == 0);
    }
    SECTION("nothing") {
        story.kill(1);
        story.leave(2);
        CHECK(story.settle().empty());
    }
    SECTION("a hole, before the pusher was seen to be dead or after") {
        if (GENERATE(false, true)) {
            story.kill(1);
            story.pop(2, {message_id(1, 2)});
        } else {
            story.pop(2, {message_id(1, 2)});
            story.kill(1);
        }
        story.leave(2);
        CHECK(says(story.settle(), "message 1:1 was pushed into waits"));
    }
}

TEST_CASE("what a port dropped need not arrive, and nothing else is missing", "[soak]") {
    Story story;
    story.start(1);
    story.start(2);
    story.push(1, {1, 2, 3}, 1);
    story.pop(2, {message_id(1, 3)}, 1);
    story.leave(1);
    story.leave(2);
    SECTION("as many") {
        CHECK(story.settle(2).empty());
    }
    SECTION("fewer") {
        CHECK(says(story.settle(1), "drops: the number of messages pushed and not popped is 2"));
    }
    SECTION("more") {
        CHECK(says(story.settle(3), "drops: the number of messages pushed and not popped is 2"));
    }
}

TEST_CASE("a life that ends in the middle of a call, or fails, or does not end, is named", "[soak]") {
    Story story;
    story.start(1);
    SECTION("in a push") {
        story.begin_push(1, {1});
        story.leave(1);
        CHECK(says(story.settle(), "life 1 left in the middle of a call"));
    }
    SECTION("in a pop") {
        story.begin_pop(1, 1);
        story.leave(1);
        CHECK(says(story.settle(), "life 1 left in the middle of a call"));
    }
    SECTION("with an error") {
        story.tell(1, Event::failed);
        CHECK(says(story.settle(), "life 1 failed"));
    }
    SECTION("not at all") {
        CHECK(says(story.settle(), "life 1 did not end"));
    }
}

TEST_CASE("missing messages are matched to killed pops, each as far as it goes", "[soak]") {
    // The first two can only be the first pop's, the third either's: it moves to the second.
    const std::vector<KilledPop> pops{{100, 200, 2}, {150, 300, 1}};
    const std::vector<Missing> three{{3, 160, 190}, {1, 100, 120}, {2, 110, 130}};
    CHECK(unexplained(three, pops).empty());
    std::vector<Missing> four = three;
    four.push_back({4, 180, 300});
    CHECK(unexplained(four, pops).size() == 1);
    CHECK(unexplained({{5, 301, 400}}, pops).size() == 1);
    CHECK(unexplained({{5, 0, 99}}, pops).size() == 1);

    // Against a matching that tries everything.
    test::Random random(test::seed());
    CAPTURE(test::seed());
    for (int round = 0; round < 300; ++round) {
        std::vector<KilledPop> some_pops;
        for (std::size_t number = random.below(5U); number > 0; --number) {
            const auto begin = random.below(std::int64_t{20});
            some_pops.push_back({begin, begin + random.below(std::int64_t{8}), 1 + random.below(2U)});
        }
        std::vector<Missing> some;
        for (std::size_t number = random.below(7U); number > 0; --number) {
            const auto begin = random.below(std::int64_t{20});
            some.push_back({number, begin, begin + random.below(std::int64_t{8})});
        }
        // How many of the messages from `first` on can be placed at most.
        const auto best = [&](const auto& self, std::size_t first, std::vector<KilledPop>& left) -> std::size_t {
            if (first == some.size()) {
                return 0;
            }
            std::size_t most = self(self, first + 1, left);
            for (KilledPop& pop : left) {
                if (pop.count > 0 && pop.begun_ns <= some[first].latest_ns && pop.ended_ns >= some[first].earliest_ns) {
                    --pop.count;
                    most = std::max(most, 1 + self(self, first + 1, left));
                    ++pop.count;
                }
            }
            return most;
        };
        std::vector<KilledPop> left = some_pops;
        const std::size_t most = best(best, 0, left);
        CHECK(unexplained(some, some_pops).size() == some.size() - most);
    }
}
