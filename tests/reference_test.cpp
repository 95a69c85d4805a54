#include "catch.hpp"
#include "testing.hpp"

#include <weir/reference.hpp>

using namespace weir;

namespace {

constexpr Owner me(7, 100);
constexpr Owner other(200, 5);

} // namespace

TEST_CASE("zeroed bytes are a free reference that nobody owns") {
    const std::uint64_t word = 0;
    CHECK(is_free(load_reference(word)));
    CHECK(reference_state(word) == ReferenceState::free);
    CHECK(reference_generation(word) == 0);
    CHECK(Owner::of(word) == Owner());
    CHECK(Owner::of(word).slot() == 0);
}

TEST_CASE("a word keeps its five fields apart at their bounds") {
    for (const unsigned slot : {0U, 1U, 255U}) {
        for (const std::uint64_t incarnation : {0U, 1U, 2047U}) {
            for (const unsigned port : {0U, 1U, 1023U}) {
                for (const std::uint64_t generation :
                     {std::uint64_t{0}, std::uint64_t{0x7fff'ffff}, std::uint64_t{0xffff'fffe}}) {
                    for (const ReferenceState state :
                         {ReferenceState::free, ReferenceState::held, ReferenceState::queued}) {
                        const Owner owner(static_cast<std::uint8_t>(slot), incarnation);
                        const std::uint64_t word = next_reference(generation << 32, state, owner, port);
                        CAPTURE(slot, incarnation, port, generation);
                        CHECK(reference_state(word) == state);
                        CHECK(Owner::of(word) == owner);
                        CHECK(Owner::of(word).slot() == slot);
                        CHECK(reference_port(word) == port);
                        CHECK(reference_generation(word) == generation + 1);
                    }
                }
            }
        }
    }
}

TEST_CASE("a word holds the low 11 bits of an incarnation") {
    CHECK(Owner(3, 5) == Owner(3, 5 + 2048));
    CHECK(Owner(3, 5) != Owner(3, 5 + 1024));
    CHECK(Owner(3, 5) != Owner(4, 5));
    CHECK(Owner(3, incarnation_mask) == Owner(3, 2047));
}

TEST_CASE("generations wrap after 32 bits and touch no other field") {
    std::uint64_t word = next_reference(std::uint64_t{0xffff'fffe} << 32, ReferenceState::held, me, 0);
    CHECK(reference_generation(word) == 0xffff'ffff);
    const std::uint64_t before = word;
    const std::uint64_t queued = set_queued(word, me, 1023);
    CHECK(queued == word);
    CHECK(reference_generation(word) == 0);
    CHECK(reference_state(word) == ReferenceState::queued);
    CHECK(Owner::of(word) == me);
    CHECK(reference_port(word) == 1023);
    CHECK_FALSE(try_free(word, before));
}

TEST_CASE("each transition writes its state, its owner and the next generation") {
    std::uint64_t word = 0;
    REQUIRE(try_hold(word, 0, me));
    CHECK(word == next_reference(0, ReferenceState::held, me, 0));

    std::uint64_t before = word;
    CHECK(set_queued(word, me, 9) == next_reference(before, ReferenceState::queued, me, 9));

    before = word;
    REQUIRE(try_claim(word, word, other));
    CHECK(word == next_reference(before, ReferenceState::held, other, 9)); // the port that it came from stays named

    before = word;
    CHECK(set_free(word, other));
    CHECK(word == next_reference(before, ReferenceState::free, Owner(), 0));

    REQUIRE(try_hold(word, word, me));
    before = set_queued(word, me, 9);
    set_held(word, me);
    CHECK(word == next_reference(before, ReferenceState::held, me, 0));

    before = word;
    REQUIRE(try_free(word, before));
    CHECK(word == next_reference(before, ReferenceState::free, Owner(), 0));

    REQUIRE(try_hold(word, word, me));
    before = set_queued(word, me, 9);
    REQUIRE(try_free(word, before));
    CHECK(word == next_reference(before, ReferenceState::free, Owner(), 0));
    CHECK(reference_generation(word) == 11);
}

TEST_CASE("a compare-and-swap with a word of an earlier use fails and changes nothing") {
    std::uint64_t word = 0;
    REQUIRE(try_hold(word, 0, me));
    const std::uint64_t held_once = word;
    const std::uint64_t queued_once = set_queued(word, me, 1);
    REQUIRE(try_claim(word, queued_once, other));
    REQUIRE(set_free(word, other));
    REQUIRE(try_hold(word, word, me));
    const std::uint64_t held_again = word;
    CHECK(held_again != held_once);
    CHECK_FALSE(try_free(word, held_once));
    CHECK_FALSE(try_hold(word, 0, other));
    CHECK(word == held_again);
    set_queued(word, me, 1);
    const std::uint64_t queued_again = word;
    CHECK(queued_again != queued_once);
    CHECK_FALSE(try_claim(word, queued_once, other));
    CHECK_FALSE(try_free(word, queued_once));
    CHECK(word == queued_again);
}

TEST_CASE("of two who hold or claim the same word at once one succeeds") {
    std::uint64_t word = 0;
    CHECK(try_hold(word, 0, me));
    CHECK_FALSE(try_hold(word, 0, other));
    const std::uint64_t queued = set_queued(word, me, 0);
    CHECK(try_claim(word, queued, other));
    CHECK_FALSE(try_claim(word, queued, me));
    CHECK(Owner::of(word) == other);
}

TEST_CASE("a word that its owner does not hold is not freed") {
    std::uint64_t word = 0;
    CHECK_FALSE(set_free(word, me));
    CHECK(word == 0);
    REQUIRE(try_hold(word, 0, other));
    const std::uint64_t held = word;
    CHECK_FALSE(set_free(word, me)); // what a BufferPtr does that outlives its reaped membership
    CHECK(word == held);
}

TEST_CASE("a word that its owner does not hold is not queued") {
    std::uint64_t word = 0;
    CHECK(set_queued(word, Owner(), 0) == 0);
    CHECK(word == 0);
    REQUIRE(try_hold(word, 0, other));
    const std::uint64_t held = word;
    CHECK(set_queued(word, me, 0) == 0);
    CHECK(word == held);
    const std::uint64_t queued = set_queued(word, other, 0);
    CHECK(queued == word);
    CHECK(set_queued(word, other, 0) == 0);
    CHECK(word == queued);
}

TEST_CASE("random transitions of many owners agree with a plain model") {
    struct Model {
        ReferenceState state = ReferenceState::free;
        Owner owner;
        unsigned port = 0;
        std::uint32_t generation;
    };
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    Model model{ReferenceState::free, Owner(), 0, 0xffff'f000}; // so that it wraps on the way
    std::uint64_t word = std::uint64_t{model.generation} << 32;
    std::vector<std::uint64_t> old_words{word};
    const auto step = [&](ReferenceState state, Owner owner, unsigned port) {
        model = {state, owner, port, model.generation + 1};
    };
    for (int count = 0; count < 50'000; ++count) {
        const Owner owner(static_cast<std::uint8_t>(random.below(256U)), random.next());
        const unsigned port = random.below(1024U);
        const std::uint64_t seen = load_reference(word);
        const std::uint64_t guess = random.one_in(4) ? old_words[random.below(old_words.size())] : seen;
        const bool is_current = guess == seen;
        bool fits = true;
        switch (model.state) {
        case ReferenceState::free:
            fits = try_hold(word, guess, owner) == is_current;
            if (is_current) {
                step(ReferenceState::held, owner, 0);
            }
            break;
        case ReferenceState::held:
            switch (random.below(3)) {
            case 0:
                set_queued(word, model.owner, port);
                step(ReferenceState::queued, model.owner, port);
                break;
            case 1:
                fits = set_free(word, model.owner);
                step(ReferenceState::free, Owner(), 0);
                break;
            default:
                fits = try_free(word, guess) == is_current;
                if (is_current) {
                    step(ReferenceState::free, Owner(), 0);
                }
            }
            break;
        case ReferenceState::queued:
            switch (random.below(3)) {
            case 0:
                fits = try_claim(word, guess, owner) == is_current;
                if (is_current) {
                    step(ReferenceState::held, owner, model.port);
                }
                break;
            case 1:
                set_held(word, model.owner);
                step(ReferenceState::held, model.owner, 0);
                break;
            default:
                fits = try_free(word, guess) == is_current;
                if (is_current) {
                    step(ReferenceState::free, Owner(), 0);
                }
            }
            break;
        }
        if (!fits || reference_state(word) != model.state || Owner::of(word) != model.owner ||
            reference_port(word) != model.port || reference_generation(word) != model.generation) {
            FAIL("operation " << count << ": word " << std::hex << word);
        }
        if (old_words.size() < 64) {
            old_words.push_back(word);
        } else {
            old_words[random.below(old_words.size())] = word;
        }
    }
    CHECK(model.generation < 0xffff'f000);
}
