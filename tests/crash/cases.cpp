// The cases: each operation, from the starting states in which it does something different.
#include "world.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <sched.h>

namespace crash {

namespace {

using weir::PortEnd;
using weir::PushResult;
using weir::ReferenceState;
using weir::WhenFull;

std::uint32_t tag_of(Role role, std::uint32_t number) {
    return 1000 + 100 * role + number;
}

using Attempts = std::vector<Log::Entry>;

Attempts maybe_pushes(Role role, std::uint32_t count) {
    Attempts attempts;
    for (std::uint32_t i = 0; i < count; ++i) {
        attempts.push_back({main_port, {What::maybe_push, tag_of(role, i)}});
    }
    return attempts;
}

Attempts maybe_pops(std::size_t count) {
    return Attempts(count, Log::Entry{main_port, {What::maybe_pop, 0}});
}

std::vector<std::uint32_t> without_first(std::vector<std::uint32_t> tags, std::size_t count) {
    tags.erase(tags.begin(), tags.begin() + static_cast<std::ptrdiff_t>(std::min(count, tags.size())));
    return tags;
}

std::vector<std::uint32_t> with(std::vector<std::uint32_t> tags, Role role, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
        tags.push_back(tag_of(role, i));
    }
    return tags;
}

// The number of the content that is in the main port now; -1: none of these.
int which(World& world, const std::vector<std::vector<std::uint32_t>>& contents) {
    const auto found = std::ranges::find(contents, world.content(main_port));
    return found == contents.end() ? -1 : static_cast<int>(found - contents.begin());
}

int held_by(World& world, Role role) {
    return static_cast<int>(world.words_of(world.members[role], ReferenceState::held));
}

// ---- what operations do ---------------------------------------------------------------------------------

// The values that a role pushes into the ring.
std::uint32_t value_of(Role role, std::uint32_t number) {
    return tag_of(role, 20 + number);
}

// How many of the victim's values the ring holds behind what was in it; -1: it holds something else.
int pushed_values(World& world) {
    std::vector<std::uint32_t> expected = world.ring_before;
    const std::vector<std::uint32_t> now = world.ring_content();
    while (expected.size() < now.size()) {
        expected.push_back(value_of(victim, static_cast<std::uint32_t>(expected.size() - world.ring_before.size())));
    }
    return now == expected ? static_cast<int>(now.size() - world.ring_before.size()) : -1;
}

// How many values are gone from the ring's front; likewise.
int popped_values(World& world) {
    const std::vector<std::uint32_t> now = world.ring_content();
    const std::size_t count = world.ring_before.size() - std::min(now.size(), world.ring_before.size());
    return now == without_first(world.ring_before, count) ? static_cast<int>(count) : -1;
}

// A role's part in any case: prepare, do, and note what came of it.
struct Operation {
    std::string name;
    ActorWork prepare;
    ActorWork operation;
    ActorWork afterwards;
    std::function<Attempts(Role)> attempted = [](Role) { return Attempts{}; };
};

void expect_own(Actor& actor, const weir::BufferPtr& buffer) {
    if (buffer && !actor.is_only_holder(buffer)) {
        actor.box.fail("buffer %u was allocated, and somebody else holds it", buffer.id());
    }
}

void note_pushed(Actor& actor, std::uint32_t tag) {
    switch (actor.pushed) {
    case PushResult::ok: actor.note(main_port, {What::push, tag}); break;
    case PushResult::full: actor.note(main_port, {What::push_full, 0}); break;
    default: actor.box.fail("a push failed"); break;
    }
}

Operation allocate_operation() {
    return {"allocate",
            {},
            [](Actor& actor) { actor.buffer = actor.pool.try_allocate(); },
            [](Actor& actor) { expect_own(actor, actor.buffer); }};
}

Operation clone_operation() {
    return {"clone", [](Actor& actor) { actor.buffer = actor.make(actor.new_tag()); },
            [](Actor& actor) { actor.second = actor.buffer.clone(); },
            [](Actor& actor) {
                actor.box.expect(actor.second && actor.second.id() == actor.buffer.id() &&
                                     actor.second.reference() != actor.buffer.reference(),
                                 "a clone is not another reference of the same buffer");
            }};
}

Operation drop_operation() {
    return {"drop",
            [](Actor& actor) { actor.buffer = actor.make(actor.new_tag()); },
            [](Actor& actor) { actor.buffer.reset(); },
            {}};
}

Operation push_operation() {
    return {"push",
            [](Actor& actor) {
                actor.attach();
                actor.buffer = actor.make(tag_of(actor.role, 0));
            },
            [](Actor& actor) { actor.pushed = actor.out[main_port]->try_push(std::move(actor.buffer)); },
            [](Actor& actor) { note_pushed(actor, tag_of(actor.role, 0)); },
            [](Role role) { return maybe_pushes(role, 1); }};
}

Operation pop_operation() {
    return {"pop", [](Actor& actor) { actor.attach(); },
            [](Actor& actor) { actor.buffer = actor.in[main_port]->try_pop(); },
            [](Actor& actor) { actor.note_popped(main_port, actor.buffer); }, [](Role) { return maybe_pops(1); }};
}

// What a push or a pop of so many values may have come to.
Attempts maybe_values(What what, Role role, std::uint32_t count) {
    Attempts attempts;
    for (std::uint32_t i = 0; i < count; ++i) {
        attempts.push_back({ring_place, {what, what == What::maybe_push ? value_of(role, i) : 0}});
    }
    return attempts;
}

Operation ring_push_operation() {
    return {"ring_push",
            {},
            [](Actor& actor) { actor.value_status = actor.values_out.try_push(value_of(actor.role, 0)); },
            [](Actor& actor) {
                actor.note_value(actor.value_status, {What::push, value_of(actor.role, 0)});
            },
            [](Role role) { return maybe_values(What::maybe_push, role, 1); }};
}

Operation ring_pop_operation() {
    return {"ring_pop",
            {},
            [](Actor& actor) { actor.value_status = actor.values_in.try_pop(actor.values[0]); },
            [](Actor& actor) {
                actor.note_value(actor.value_status, {What::pop, actor.values[0]});
            },
            [](Role role) { return maybe_values(What::maybe_pop, role, 1); }};
}

// A batch that does not do all was not in the way of a full or empty ring: it goes for a half, a quarter.
Operation ring_push_batch_operation() {
    return {"ring_push_batch",
            [](Actor& actor) {
                for (std::uint32_t i = 0; i < ring_batch; ++i) {
                    actor.values[i] = value_of(actor.role, i);
                }
            },
            [](Actor& actor) { actor.batch_done = actor.values_out.try_push(std::span(std::as_const(actor.values))); },
            [](Actor& actor) {
                for (std::uint32_t i = 0; i < actor.batch_done; ++i) {
                    actor.note(ring_place, {What::push, value_of(actor.role, i)});
                }
            },
            [](Role role) { return maybe_values(What::maybe_push, role, ring_batch); }};
}

Operation ring_pop_batch_operation() {
    return {"ring_pop_batch",
            {},
            [](Actor& actor) { actor.batch_done = actor.values_in.try_pop(std::span(actor.values)); },
            [](Actor& actor) {
                for (std::uint32_t i = 0; i < actor.batch_done; ++i) {
                    actor.note(ring_place, {What::pop, actor.values[i]});
                }
            },
            [](Role role) { return maybe_values(What::maybe_pop, role, ring_batch); }};
}

Operation push_batch_operation() {
    return {"push_batch",
            [](Actor& actor) {
                actor.attach();
                for (std::uint32_t i = 0; i < 3; ++i) {
                    actor.batch.push_back(actor.make(tag_of(actor.role, i)));
                }
            },
            [](Actor& actor) { actor.batch_done = actor.out[main_port]->try_push(std::span(actor.batch)); },
            [](Actor& actor) {
                for (std::uint32_t i = 0; i < actor.batch_done; ++i) {
                    actor.note(main_port, {What::push, tag_of(actor.role, i)});
                }
                if (actor.batch_done < actor.batch.size()) {
                    actor.note(main_port, {What::push_full, 0});
                }
            },
            [](Role role) { return maybe_pushes(role, 3); }};
}

Operation pop_batch_operation() {
    return {"pop_batch",
            [](Actor& actor) {
                actor.attach();
                actor.batch.resize(3);
            },
            [](Actor& actor) { actor.batch_done = actor.in[main_port]->try_pop(std::span(actor.batch)); },
            [](Actor& actor) {
                for (std::uint32_t i = 0; i < actor.batch_done; ++i) {
                    actor.note_popped(main_port, actor.batch[i]);
                }
                if (actor.batch_done < actor.batch.size()) {
                    actor.note(main_port, {What::pop_empty, 0});
                }
            },
            [](Role) { return maybe_pops(3); }};
}

void do_it(Definition& definition, const Operation& operation) {
    definition.prepare = operation.prepare;
    definition.operation = operation.operation;
    definition.afterwards = operation.afterwards;
    definition.attempted = operation.attempted(victim);
}

// ---- what others do meanwhile ---------------------------------------------------------------------------

using Act = Definition::Act;

Act act_as(Role role, std::string name, ActorWork work) {
    return {std::move(name), [role, work = std::move(work)](World& world) { world.act(role, work); }};
}

// Each message is popped, and its buffer pushed again: 2 generations on in each round. After 8 rounds of its own a
// reference word shows the 4 low bits of its generation that a cell carries again, while it is QUEUED elsewhere.
Act rotate_forward(unsigned rounds) {
    return act_as(worker, "rotate, passing on, " + std::to_string(rounds), [rounds](Actor& actor) {
        actor.attach();
        for (unsigned round = 0; round < rounds; ++round) {
            weir::BufferPtr message = actor.pop(main_port);
            if (!message) {
                break;
            }
            actor.label(message, actor.new_tag());
            actor.push(main_port, std::move(message));
        }
    });
}

// The same with a drop and an allocation in between: 4 generations a round.
Act rotate_dropping(unsigned rounds) {
    return act_as(worker, "rotate, dropping, " + std::to_string(rounds), [rounds](Actor& actor) {
        actor.attach();
        for (unsigned round = 0; round < rounds; ++round) {
            weir::BufferPtr message = actor.pop(main_port);
            if (!message) {
                break;
            }
            message.reset();
            actor.push(main_port, actor.make(actor.new_tag()));
        }
    });
}

// The oldest message's buffer moves through the other port, and stays there QUEUED, 16 generations on.
Act move_to_other_port() {
    return act_as(worker, "the oldest moves to the other port", [](Actor& actor) {
        actor.attach();
        weir::BufferPtr message = actor.pop(main_port);
        for (unsigned round = 0; message && round < 8; ++round) {
            actor.label(message, actor.new_tag());
            actor.push(other_port, std::move(message));
            if (round < 7) {
                message = actor.pop(other_port);
            }
        }
    });
}

Act drain() {
    return act_as(worker, "drain", [](Actor& actor) {
        actor.attach();
        while (weir::BufferPtr message = actor.pop(main_port)) {
        }
    });
}

Act pop_one() {
    return act_as(worker, "pop one", [](Actor& actor) {
        actor.attach();
        actor.pop(main_port);
    });
}

Act fill() {
    return act_as(worker, "fill", [](Actor& actor) {
        actor.attach();
        while (actor.push(main_port, actor.make(actor.new_tag()))) {
        }
    });
}

// So many values leave the ring, and come in anew.
Act rotate_values(unsigned count) {
    return act_as(worker, "rotate values, " + std::to_string(count), [count](Actor& actor) {
        for (unsigned i = 0; i < count && actor.pop_value(); ++i) {
            actor.push_value(actor.new_tag());
        }
    });
}

Act fill_values() {
    return act_as(worker, "fill with values", [](Actor& actor) {
        while (actor.push_value(actor.new_tag())) {
        }
    });
}

Act drain_values() {
    return act_as(worker, "drain values", [](Actor& actor) {
        while (actor.pop_value()) {
        }
    });
}

// Whole laps of the ring, so that the victim's position is left far behind.
Act laps() {
    return act_as(worker, "three laps", [](Actor& actor) {
        actor.attach();
        for (unsigned lap = 0; lap < 3; ++lap) {
            while (weir::BufferPtr message = actor.pop(main_port)) {
            }
            for (unsigned i = 0; i + 1 < actor.world.port_options[main_port].capacity; ++i) {
                actor.push(main_port, actor.make(actor.new_tag()));
            }
        }
    });
}

Act churn() {
    return act_as(worker, "allocate and drop", [](Actor& actor) {
        for (unsigned round = 0; round < 4; ++round) {
            weir::BufferPtr first = actor.pool.try_allocate();
            weir::BufferPtr second = actor.pool.try_allocate();
            expect_own(actor, first);
            expect_own(actor, second);
            first.reset();
        }
    });
}

// Takes every free buffer, and dies with them.
Act take_all() {
    return {"take all buffers", [](World& world) {
                world.act(worker, [](Actor& actor) {
                    while (weir::BufferPtr one = actor.pool.try_allocate()) {
                        expect_own(actor, one);
                        one.forget();
                    }
                });
                world.dead.push_back(world.members[worker]);
            }};
}

Act let_go_on(Role role) {
    return {"the other goes on", [role](World& world) { world.finish_helper(role); }};
}

Act both(const Act& first, const Act& second) {
    return {first.name + ", then " + second.name, [first, second](World& world) {
                first.run(world);
                second.run(world);
            }};
}

Act push_one() {
    return act_as(worker, "push one", [](Actor& actor) {
        actor.attach();
        actor.push(main_port, actor.make(actor.new_tag()));
    });
}

// ---- helpers --------------------------------------------------------------------------------------------

HelperSpec claiming_consumer(HelperSpec::Fate fate) {
    HelperSpec spec;
    const Operation pop = pop_operation();
    spec.prepare = pop.prepare;
    spec.operation = pop.operation;
    spec.afterwards = pop.afterwards;
    spec.there = [](World& world) { return world.has_claimed_cell(main_port); };
    spec.fate = fate;
    return spec;
}

// Holds a buffer, pushed a message, and is killed while it pops: its claim stands, the cell is not cleared.
HelperSpec dead_consumer() {
    HelperSpec spec = claiming_consumer(HelperSpec::Fate::dead);
    spec.prepare = [](Actor& actor) {
        actor.attach();
        actor.held.push_back(actor.make(actor.new_tag()));
        actor.second = actor.held.front().clone();
        actor.push(main_port, actor.make(tag_of(helper, 7)));
    };
    return spec;
}

// Is killed while it pushes: its word says QUEUED, and no cell names it.
HelperSpec dead_producer() {
    HelperSpec spec;
    spec.role = extra;
    const Operation push = push_operation();
    spec.prepare = [push](Actor& actor) {
        push.prepare(actor);
        actor.held.push_back(actor.make(actor.new_tag()));
    };
    spec.operation = push.operation;
    spec.afterwards = push.afterwards;
    spec.there = [](World& world) { return world.has_unlisted_word(extra); };
    return spec;
}

// Is killed while it reaps, in the middle of freeing.
HelperSpec dead_reaper() {
    HelperSpec spec;
    spec.role = extra;
    spec.prepare = [](Actor& actor) { actor.held.push_back(actor.make(actor.new_tag())); };
    spec.operation = [](Actor& actor) {
        actor.reaped[0] = weir::reap(actor.world.members[helper], actor.buffers, actor.ports);
    };
    spec.there = [](World& world) {
        // the dead consumer left three words: a buffer and its clone, and the message that it had claimed
        return held_by(world, helper) == 2;
    };
    return spec;
}

// While a reaper stands frozen, another finishes its work, and a newcomer takes the slot and uses it.
Act replace_the_dead() {
    return {"another reaps, and a newcomer takes the slot", [](World& world) {
                world.act(worker, [](Actor& actor) {
                    for (const weir::Membership& membership : actor.world.dead) {
                        actor.box.expect(!weir::reap(membership, actor.buffers, actor.ports).error, "reaping failed");
                    }
                });
                const weir::Membership gone = world.dead.front();
                world.dead.clear();
                world.newcomer.emplace(world.table().join());
                if (world.newcomer->slot != gone.slot || world.newcomer->incarnation != gone.incarnation + 1) {
                    world.find("the newcomer did not get the dead one's slot");
                }
                world.members[helper] = *world.newcomer;
                world.act(helper, [](Actor& actor) {
                    actor.attach();
                    actor.push(main_port, actor.make(actor.new_tag()));
                    for (int i = 0; i < 2; ++i) {
                        weir::BufferPtr kept = actor.make(actor.new_tag());
                        kept.forget();
                    }
                });
                world.newcomer_words = 2;
            }};
}

// While a reaper stands frozen, its victim's buffers are used by others as far as they are free.
Act reuse_buffers() {
    return act_as(worker, "free buffers go round in the other port", [](Actor& actor) {
        actor.attach();
        std::vector<weir::BufferPtr> free;
        while (weir::BufferPtr one = actor.pool.try_allocate()) {
            expect_own(actor, one);
            free.push_back(std::move(one));
        }
        for (weir::BufferPtr& one : free) {
            // until the 4 low bits of its generation have been everything that a QUEUED word can show
            for (unsigned round = 0; round < 8; ++round) {
                actor.label(one, 5);
                actor.box.expect(actor.out[other_port]->try_push(std::move(one)) == PushResult::ok, "a push failed");
                one = actor.in[other_port]->try_pop();
                if (!one) {
                    actor.box.fail("a pushed buffer cannot be popped");
                    return;
                }
            }
        }
        // and now most stay QUEUED there, each with the generation of its first push
        for (std::size_t i = 0; i < free.size() && i < 8; ++i) {
            actor.label(free[i], actor.new_tag());
            actor.push(other_port, std::move(free[i]));
        }
    });
}

// ---- the cases ------------------------------------------------------------------------------------------

Definition allocate_case() {
    Definition it;
    it.name = "allocate";
    it.what = "try_allocate() with most buffers free";
    it.hot_path = true;
    do_it(it, allocate_operation());
    it.stage = [](World& world) { return held_by(world, victim); };
    it.stages = 2;
    it.scripts = {take_all(), churn()};
    return it;
}

constexpr std::uint32_t contended_index = 12;

// Whenever the victim has read one of the words 1 to 3 of the contended buffer, the buffer's holder moves its only
// reference there: each single reading finds a word FREE, though one of them is in use at any time.
void hide_behind_the_reader(World& world, Child& child) {
    Actor holder(world, helper);
    weir::BufferPoolView& view = holder.pool.view();
    // the processor can watch four words: of twelve, some in both lines
    const unsigned last = world.references() - 1;
    const std::vector<unsigned> numbers = {1, 2, last == 3 ? 0U : 6U, last};
    std::vector<const std::uint64_t*> words;
    for (const unsigned number : numbers) {
        words.push_back(&view.reference(contended_index, number));
    }
    unsigned mine = last;
    std::size_t accessed = 0;
    for (int moves = 0; child.run_to_access(words, accessed) == Stop::stepped; ++moves) {
        const unsigned read = numbers[accessed];
        if (moves == 10'000) {
            world.find("try_allocate() goes on for ever against a holder that hides");
            return;
        }
        if (read == 0 || read == mine || !weir::is_free(world.word(contended_index, read))) {
            continue;
        }
        // clones take the lowest word that is free: so many of them until it is the wanted one
        std::vector<unsigned> clones;
        unsigned number = 0;
        do {
            if (!view.try_clone(contended_index, number)) {
                world.find("no word is left for a clone");
                return;
            }
            clones.push_back(number);
        } while (number != read);
        clones.back() = std::exchange(mine, number);
        for (const unsigned other : clones) {
            view.drop(contended_index, other);
        }
    }
}

Definition allocate_contended_case() {
    Definition it;
    it.name = "allocate_contended";
    it.what = "try_allocate() where the first candidates are taken, one of them by its last reference";
    it.hot_path = true;
    it.counted = {"allocate", "pop"};
    it.arrange = [](World& world) {
        // Hints still say free of all of these: they are taken without asking the hints.
        Actor& actor = *world.keeper_actor;
        for (std::uint32_t index = 0; index < buffer_count; ++index) {
            if (index == contended_index || index == contended_index + 2) {
                continue;
            }
            if (!actor.pool.view().try_take(index)) {
                world.find("the set-up cannot take a buffer");
            }
            actor.held.emplace_back(actor.pool.view(), index, 0);
            ++world.kept;
        }
        // One buffer has word 0 free, and is held by its last word.
        weir::BufferPool pool(world.control_memory(), world.payload_memory(), world.members[helper]);
        weir::BufferPoolView& view = pool.view();
        if (!view.try_take(contended_index)) {
            world.find("the set-up cannot take the contended buffer");
        }
        for (unsigned expected = 1; expected < world.references(); ++expected) {
            unsigned number = 0;
            if (!view.try_clone(contended_index, number) || number != expected) {
                world.find("the set-up cannot clone");
            }
        }
        for (unsigned number = 0; number + 1 < world.references(); ++number) {
            view.drop(contended_index, number);
        }
        ++world.kept;
    };
    do_it(it, allocate_operation());
    it.stage = [](World& world) { return std::min(held_by(world, victim), 1); };
    it.stages = 0; // it takes a candidate and gives it back, so it goes to and fro
    const Act hop = act_as(helper, "its holder clones to a lower word and drops the higher", [](Actor& actor) {
        weir::BufferPoolView& view = actor.pool.view();
        for (unsigned number = 0; number < actor.world.references(); ++number) {
            const std::uint64_t word = actor.world.word(contended_index, number);
            if (weir::reference_state(word) == ReferenceState::held && weir::Owner::of(word) == actor.me.owner()) {
                unsigned lower = 0;
                if (!view.try_clone(contended_index, lower)) {
                    actor.box.fail("no word is left for a clone");
                    return;
                }
                view.drop(contended_index, number);
                return;
            }
        }
        actor.box.fail("the holder of a buffer lost it");
    });
    it.scripts = {hop, both(hop, hop), take_all()};
    it.opponents = {{"its holder hides in the word that was read last", hide_behind_the_reader}};
    return it;
}

Definition allocate_contended_12_case() {
    Definition it = allocate_contended_case();
    it.name = "allocate_contended_12";
    it.what = "the same in a pool with 12 references a buffer";
    it.references = 12;
    return it;
}

Definition clone_case() {
    Definition it;
    it.name = "clone";
    it.what = "clone() of a buffer with one reference";
    it.hot_path = true;
    do_it(it, clone_operation());
    it.stage = [](World& world) { return held_by(world, victim) - 1; };
    it.stages = 2;
    it.scripts = {churn(), take_all()};
    return it;
}

Definition drop_case() {
    Definition it;
    it.name = "drop";
    it.what = "the last reference goes; the process's candidates are full, so some return to the bitmap";
    it.hot_path = true;
    do_it(it, drop_operation());
    it.prepare = [](Actor& actor) {
        std::vector<weir::BufferPtr> many;
        for (unsigned i = 0; i < weir::FreeHints::lane_candidate_max + 1; ++i) {
            many.push_back(actor.make(actor.new_tag()));
        }
        actor.buffer = std::move(many.back());
        many.pop_back();
    };
    it.stage = [](World& world) { return 1 - held_by(world, victim); };
    it.stages = 2;
    it.scripts = {churn(), take_all()};
    return it;
}

Definition drop_shared_case() {
    Definition it;
    it.name = "drop_shared";
    it.what = "one of two references goes; the other process's goes at the same time";
    it.hot_path = true;
    do_it(it, drop_operation());
    // The word that the other process holds was cloned by the victim and handed over through the other port.
    it.prepare = [](Actor& actor) {
        actor.attach();
        actor.buffer = actor.make(actor.new_tag());
        weir::BufferPtr clone = actor.buffer.clone();
        actor.push(other_port, std::move(clone));
    };
    it.stage = [](World& world) { return 1 - held_by(world, victim); };
    it.stages = 2;
    it.scripts = {act_as(worker, "the other reference is popped and dropped",
                         [](Actor& actor) {
                             actor.attach();
                             actor.pop(other_port);
                         }),
                  both(take_all(), act_as(extra, "the other reference is popped and dropped", [](Actor& actor) {
                           actor.attach();
                           actor.pop(other_port);
                       }))};
    return it;
}

Definition push_case() {
    Definition it;
    it.name = "push";
    it.what = "try_push() into a port with room";
    it.hot_path = true;
    it.queued = 2;
    do_it(it, push_operation());
    it.stage = [](World& world) { return which(world, {world.before, with(world.before, victim, 1)}); };
    it.stages = 2;
    it.scripts = {fill(), rotate_forward(15), drain(), laps()};
    return it;
}

Definition push_full_case() {
    Definition it;
    it.name = "push_full";
    it.what = "try_push() into a full port that refuses";
    it.hot_path = true;
    it.queued = 4;
    do_it(it, push_operation());
    it.stage = [](World& world) { return which(world, {world.before}); };
    it.stages = 1;
    it.scripts = {pop_one(), drain(), rotate_dropping(9), laps()};
    return it;
}

Definition push_full_again_case() {
    Definition it = push_full_case();
    it.name = "push_full_again";
    it.what = "the same by a producer that found it full before: it looks for room first";
    it.prepare = [](Actor& actor) {
        push_operation().prepare(actor);
        weir::BufferPtr refused = actor.make(actor.new_tag());
        actor.push(main_port, std::move(refused));
    };
    return it;
}

Definition push_overtaken_case() {
    Definition it;
    it.name = "push_overtaken";
    it.what = "try_push() that found room, but the port is filled by others before its cell";
    it.hot_path = true;
    it.queued = 2;
    do_it(it, push_operation());
    it.interrupt_where = [](World& world) { return world.has_unlisted_word(victim); };
    it.on_interrupt = [](World& world) { fill().run(world); };
    // Its message never goes in; what is in it belongs to others.
    it.stage = [](World& world) {
        const std::vector<std::uint32_t> content = world.content(main_port);
        return std::ranges::find(content, tag_of(victim, 0)) == content.end() ? 0 : -1;
    };
    it.stages = 1;
    it.scripts = {pop_one(), rotate_forward(9)};
    return it;
}

Definition push_claimed_cell_case() {
    Definition it;
    it.name = "push_claimed_cell";
    it.what = "try_push() into a full ring whose oldest message is claimed, its cell not cleared";
    it.hot_path = true;
    it.turned = 0;
    it.queued = 4;
    it.helpers = {claiming_consumer(HelperSpec::Fate::either)};
    do_it(it, push_operation());
    it.stage = [](World& world) { return which(world, {world.before, with(world.before, victim, 1)}); };
    it.stages = 2;
    // Ends with the claimed message's buffer QUEUED in another cell, with the low generation bits of its first message,
    // while the port was never full.
    const Act elsewhere = act_as(worker, "its buffer is QUEUED in another cell", [](Actor& actor) {
        actor.attach();
        while (weir::BufferPtr message = actor.pop(main_port)) {
        }
        for (unsigned round = 0; round < 4; ++round) {
            if (!actor.pool.view().try_take(actor.world.first_index)) {
                actor.box.fail("the first message's buffer is not free");
                return;
            }
            weir::BufferPtr first(actor.pool.view(), actor.world.first_index, 0);
            actor.label(first, actor.new_tag());
            actor.push(main_port, std::move(first));
            if (round < 3) {
                actor.pop(main_port);
            }
        }
    });
    it.scripts = {both(let_go_on(helper), elsewhere), let_go_on(helper), both(let_go_on(helper), fill()), fill(),
                  laps()};
    return it;
}

Definition push_drop_oldest_case() {
    Definition it;
    it.name = "push_drop_oldest";
    it.what = "try_push() into a full port that drops the oldest";
    it.hot_path = true;
    it.queued = 4;
    it.when_full = WhenFull::drop_oldest;
    do_it(it, push_operation());
    it.afterwards = [](Actor& actor) {
        // others may have filled the port again, so it may have made room several times
        for (int i = 0; i < 2; ++i) {
            actor.note(main_port, {What::discard, 0});
        }
        note_pushed(actor, tag_of(actor.role, 0));
    };
    it.attempted = maybe_pops(1);
    it.attempted.push_back({main_port, {What::maybe_push, tag_of(victim, 0)}});
    it.stage = [](World& world) {
        const std::vector<std::uint32_t> rest = without_first(world.before, 1);
        return which(world, {world.before, rest, with(rest, victim, 1)});
    };
    it.stages = 3;
    it.scripts = {drain(), pop_one(), act_as(worker, "rotate, passing on, 15", [](Actor& actor) {
                      actor.attach();
                      for (unsigned round = 0; round < 15; ++round) {
                          weir::BufferPtr message = actor.pop(main_port);
                          if (!message) {
                              break;
                          }
                          actor.label(message, actor.new_tag());
                          actor.push(main_port, std::move(message));
                      }
                  })};
    return it;
}

Definition pop_case() {
    Definition it;
    it.name = "pop";
    it.what = "try_pop() of the oldest of two messages";
    it.hot_path = true;
    it.queued = 2;
    do_it(it, pop_operation());
    it.stage = [](World& world) { return which(world, {world.before, without_first(world.before, 1)}); };
    it.stages = 2;
    it.scripts = {rotate_forward(15), rotate_dropping(7), move_to_other_port(), drain(), laps()};
    return it;
}

Definition pop_behind_claim_case() {
    Definition it;
    it.name = "pop_behind_claim";
    it.what = "try_pop() where the oldest message is claimed by another, its cell not cleared";
    it.hot_path = true;
    it.queued = 3;
    it.helpers = {claiming_consumer(HelperSpec::Fate::either)};
    do_it(it, pop_operation());
    it.stage = [](World& world) { return which(world, {world.before, without_first(world.before, 1)}); };
    it.stages = 2;
    it.scripts = {both(let_go_on(helper), rotate_dropping(10)), rotate_forward(15), drain(), laps()};
    return it;
}

Definition push_batch_case() {
    Definition it;
    it.name = "push_batch";
    it.what = "try_push() of three buffers at once";
    it.hot_path = true;
    it.capacity = 8;
    it.turned = 6;
    it.queued = 2;
    do_it(it, push_batch_operation());
    it.stage = [](World& world) {
        return which(world, {world.before, with(world.before, victim, 1), with(world.before, victim, 2),
                             with(world.before, victim, 3)});
    };
    it.stages = 4;
    it.scripts = {fill(), rotate_forward(15), drain()};
    return it;
}

Definition pop_batch_case() {
    Definition it;
    it.name = "pop_batch";
    it.what = "try_pop() of three messages at once";
    it.hot_path = true;
    it.capacity = 8;
    it.turned = 6;
    it.queued = 4;
    do_it(it, pop_batch_operation());
    it.stage = [](World& world) {
        return which(world, {world.before, without_first(world.before, 1), without_first(world.before, 2),
                             without_first(world.before, 3)});
    };
    it.stages = 4;
    it.scripts = {rotate_forward(31), rotate_dropping(15), drain()};
    return it;
}

// Each of the ring's own operations, where its head is at an even and its tail at an odd place: a batch of pushes begins with one
// cell, one of pops ends with one, and all others go two at once.
Definition ring_case(const Operation& operation, std::string what, unsigned queued) {
    Definition it;
    it.name = operation.name;
    it.what = std::move(what);
    it.hot_path = true;
    it.counted = {"ring_push", "ring_pop"};
    it.ring_turned = 6;
    it.ring_queued = queued;
    do_it(it, operation);
    it.scripts = {rotate_values(3), rotate_values(2 * ring_capacity + 5), drain_values(), fill_values()};
    return it;
}

Definition ring_push_case() {
    Definition it = ring_case(ring_push_operation(), "try_push() of a value into a ring that is used alone", 3);
    it.stage = pushed_values;
    it.stages = 2;
    return it;
}

Definition ring_pop_case() {
    Definition it = ring_case(ring_pop_operation(), "try_pop() of a value from a ring that is used alone", 3);
    it.stage = popped_values;
    it.stages = 2;
    return it;
}

Definition ring_push_batch_case() {
    Definition it = ring_case(ring_push_batch_operation(), "try_push() of eleven values at once", 3);
    it.stage = pushed_values;
    it.stages = static_cast<int>(ring_batch) + 1;
    return it;
}

Definition ring_pop_batch_case() {
    Definition it = ring_case(ring_pop_batch_operation(), "try_pop() of eleven values at once", 13);
    it.stage = popped_values;
    it.stages = static_cast<int>(ring_batch) + 1;
    return it;
}

Definition fan_out_case() {
    Definition it;
    it.name = "fan_out";
    it.what = "one buffer goes into two ports, three times in all; copies take further references";
    it.hot_path = true;
    it.queued = 1;
    it.prepare = [](Actor& actor) {
        actor.attach();
        actor.buffer = actor.make(tag_of(victim, 0));
        // the first copy of a process allocates private memory for all: not in the operation
        const weir::BufferPtr copy = actor.buffer; // NOLINT(performance-unnecessary-copy-initialization)
    };
    it.operation = [](Actor& actor) {
        for (const unsigned port : {main_port, other_port}) {
            actor.fanned[port] = actor.out[port]->try_push(weir::BufferPtr(actor.buffer));
        }
        actor.pushed = actor.out[main_port]->try_push(std::move(actor.buffer));
    };
    it.afterwards = [](Actor& actor) {
        for (const unsigned port : {main_port, other_port}) {
            if (actor.fanned[port] == PushResult::ok) {
                actor.note(port, {What::push, tag_of(victim, 0)});
            } else {
                actor.box.expect(actor.fanned[port] == PushResult::full, "a push failed");
                actor.note(port, {What::push_full, 0});
            }
        }
        note_pushed(actor, tag_of(victim, 0));
    };
    const Event maybe{What::maybe_push, tag_of(victim, 0)};
    it.attempted = {{main_port, maybe}, {other_port, maybe}, {main_port, maybe}};
    it.stage = [](World& world) {
        const auto pushed = [&world](unsigned port) {
            return static_cast<int>(std::ranges::count(world.content(port), tag_of(victim, 0)));
        };
        const int in_main = pushed(main_port);
        const int in_other = pushed(other_port);
        // the first goes to the main port, the second to the other one, the third to the main port
        return (in_other == 0 && in_main <= 1) || (in_other == 1 && in_main >= 1) ? in_main + in_other : -1;
    };
    it.stages = 4;
    it.scripts = {fill(), drain(), rotate_dropping(9),
                  act_as(worker, "all references that arrive are cloned and dropped", [](Actor& actor) {
                      actor.attach();
                      for (const unsigned port : {main_port, other_port}) {
                          while (weir::BufferPtr message = actor.pop(port)) {
                              const weir::BufferPtr clone = message.clone();
                          }
                      }
                  })};
    return it;
}

Definition wait_case() {
    Definition it;
    it.name = "wait";
    it.what = "pop() in an empty port: it sleeps, and a message wakes it";
    it.hot_path = true;
    it.prepare = [](Actor& actor) { actor.attach(); };
    it.operation = [](Actor& actor) { actor.buffer = actor.in[main_port]->pop(); };
    it.afterwards = [](Actor& actor) { actor.note_popped(main_port, actor.buffer); };
    it.attempted = maybe_pops(1);
    it.on_blocked = [](World& world) { push_one().run(world); };
    it.stage = [](World& world) { return held_by(world, victim); };
    it.stages = 2;
    it.scripts = {push_one()};
    return it;
}

Definition wait_for_room_case() {
    Definition it;
    it.name = "wait_for_room";
    it.what = "push() into a full port: it sleeps, and a pop wakes it";
    it.hot_path = true;
    it.queued = 4;
    it.when_full = WhenFull::wait;
    it.counted = {"allocate", "pop", "clone", "drop"};
    do_it(it, push_operation());
    it.operation = [](Actor& actor) { actor.pushed = actor.out[main_port]->push(std::move(actor.buffer)); };
    it.on_blocked = [](World& world) { pop_one().run(world); };
    it.stage = [](World& world) {
        const std::vector<std::uint32_t> content = world.content(main_port);
        return std::ranges::find(content, tag_of(victim, 0)) == content.end() ? 0 : 1;
    };
    it.stages = 2;
    it.scripts = {pop_one()};
    return it;
}

Definition wait_for_buffer_case() {
    Definition it;
    it.name = "wait_for_buffer";
    it.what = "allocate() where no buffer is free: it sleeps, and a drop wakes it";
    it.hot_path = true;
    it.counted = {"allocate", "pop"};
    it.turned = 0;
    it.queued = 1;
    it.arrange = [](World& world) { world.occupy(buffer_count - 1); };
    it.operation = [](Actor& actor) {
        actor.buffer = actor.pool.allocate({.spin_count = 2, .recheck_interval_ns = hour_ns});
    };
    it.afterwards = [](Actor& actor) {
        actor.box.expect(static_cast<bool>(actor.buffer), "allocate() returned nothing");
        expect_own(actor, actor.buffer);
    };
    it.on_blocked = [](World& world) { pop_one().run(world); };
    it.stage = [](World& world) { return held_by(world, victim); };
    it.stages = 2;
    it.scripts = {pop_one()};
    return it;
}

Definition notify_case() {
    Definition it;
    it.name = "notify";
    it.what = "try_push() while a consumer sleeps in pop()";
    it.hot_path = true;
    it.others_run = true;
    it.turned = 0;
    HelperSpec sleeper;
    sleeper.prepare = [](Actor& actor) {
        actor.attach({.spin_count = 0, .recheck_interval_ns = actor.world.is_frozen_run ? hour_ns : 20'000'000});
    };
    sleeper.operation = [](Actor& actor) { actor.buffer = actor.in[main_port]->pop(); };
    sleeper.afterwards = [](Actor& actor) { actor.note_popped(main_port, actor.buffer); };
    sleeper.fate = HelperSpec::Fate::frozen; // it is awake, or asleep, as it likes
    sleeper.asleep = true;
    sleeper.took_effect = false;
    it.helpers = {sleeper};
    do_it(it, push_operation());
    it.prepare = [prepare = it.prepare](Actor& actor) {
        prepare(actor);
        // Who attaches wakes the consumer, which has to be waiting again.
        while (!actor.ports[main_port].view()->waiting_event(weir::PortEnd::consumer).has_waiters()) {
            sched_yield();
        }
    };
    it.stages = 0; // the consumer takes the message as soon as it wakes
    it.scripts = {push_one()};
    return it;
}

Definition attach_case() {
    Definition it;
    it.name = "attach";
    it.what = "a Producer and a Consumer are made";
    it.operation = [](Actor& actor) {
        actor.out[lone_port].emplace(actor.ports[lone_port]);
        actor.in[lone_port].emplace(actor.ports[lone_port]);
    };
    it.stage = [](World& world) { return static_cast<int>(world.handles_of(victim)); };
    it.stages = 3;
    it.judge_more = [](World&, Actor& actor) {
        weir::Consumer consumer(actor.ports[lone_port]);
        actor.box.expect(consumer.stream_end() != weir::StreamEnd::closed, "a stream is closed that nobody closed");
    };
    return it;
}

Definition detach_case() {
    Definition it;
    it.name = "detach";
    it.what = "the last Producer and the last Consumer of a port go";
    it.prepare = [](Actor& actor) {
        actor.out[lone_port].emplace(actor.ports[lone_port]);
        actor.in[lone_port].emplace(actor.ports[lone_port]);
    };
    it.operation = [](Actor& actor) {
        actor.out[lone_port].reset();
        actor.in[lone_port].reset();
    };
    it.stage = [](World& world) { return 2 - static_cast<int>(world.handles_of(victim)); };
    it.stages = 3;
    it.judge_more = [](World&, Actor& actor) {
        weir::Consumer consumer(actor.ports[lone_port]);
        actor.box.expect(consumer.stream_end() != weir::StreamEnd::open, "a stream goes on without a producer");
    };
    return it;
}

Definition join_case() {
    Definition it;
    it.name = "join";
    it.what = "a process takes a slot";
    it.arrange = [](World& world) {
        // the victim's slot is free, and its next owner has the next incarnation
        weir::ProcessTable table = world.table();
        if (!table.end(victim, world.members[victim].incarnation)) {
            world.find("the set-up cannot free a slot");
        }
        ++world.members[victim].incarnation;
    };
    it.operation = [](Actor& actor) {
        weir::ProcessTable table = actor.world.table();
        actor.joined.emplace(table.join());
    };
    it.afterwards = [](Actor& actor) {
        actor.box.expect(actor.joined->is_alive() && actor.joined->slot == victim, "joined elsewhere");
        weir::leave(*actor.joined, actor.buffers, actor.ports);
    };
    it.stage = [](World& world) { return world.members[victim].is_alive() ? 1 : 0; };
    it.stages = 2;
    return it;
}

Definition leave_case() {
    Definition it;
    it.name = "leave";
    it.what = "a process leaves with buffers in hand and messages under way";
    it.queued = 1;
    it.prepare = [](Actor& actor) {
        actor.attach();
        actor.push(main_port, actor.make(tag_of(victim, 7)));
        for (int i = 0; i < 2; ++i) {
            weir::BufferPtr kept = actor.make(actor.new_tag());
            kept.forget();
        }
        actor.detach();
    };
    it.operation = [](Actor& actor) { actor.reaped[0] = weir::leave(actor.me, actor.buffers, actor.ports); };
    it.afterwards = [](Actor& actor) {
        actor.box.expect(!actor.reaped[0].error && actor.reaped[0].ended_entry &&
                             actor.reaped[0].freed_reference_count == 2,
                         "leaving did not give back what was held");
    };
    it.stage = [](World& world) { return world.members[victim].is_alive() ? 0 : 1; };
    it.stages = 2;
    return it;
}

void reap_expect(Actor& actor, unsigned which_one) {
    if (actor.reaped[which_one].error) {
        actor.box.fail("reaping failed: %s", actor.reaped[which_one].error.message().c_str());
    }
}

Definition reap_one_case() {
    Definition it;
    it.name = "reap_one";
    it.what = "a process is reaped that held a buffer twice, had a message queued, and died between claim and clear";
    it.capacity = 8;
    it.turned = 6;
    it.queued = 2;
    it.helpers = {dead_consumer()};
    it.operation = [](Actor& actor) {
        actor.reaped[0] = weir::reap(actor.world.members[helper], actor.buffers, actor.ports);
    };
    it.afterwards = [](Actor& actor) { reap_expect(actor, 0); };
    it.stage = [](World& world) { return world.dead.front().is_alive() ? 0 : 1; };
    it.stages = 2;
    it.scripts = {replace_the_dead(), reuse_buffers(), rotate_forward(17), drain(), take_all()};
    return it;
}

Definition reap_two_case() {
    Definition it;
    it.name = "reap_two";
    it.what = "two are reaped: that one, and one that died between QUEUED and its cell";
    it.capacity = 8;
    it.turned = 6;
    it.queued = 2;
    it.helpers = {dead_consumer(), dead_producer()};
    it.operation = [](Actor& actor) {
        actor.reaped[0] = weir::reap(actor.world.members[helper], actor.buffers, actor.ports);
        actor.reaped[1] = weir::reap(actor.world.members[extra], actor.buffers, actor.ports);
    };
    it.afterwards = [](Actor& actor) {
        reap_expect(actor, 0);
        reap_expect(actor, 1);
    };
    it.stage = [](World& world) { return (world.dead[0].is_alive() ? 0 : 1) + (world.dead[1].is_alive() ? 0 : 1); };
    it.stages = 3;
    it.scripts = {replace_the_dead(), reuse_buffers(), rotate_forward(17)};
    return it;
}

Definition reap_killed_reaper_case() {
    Definition it;
    it.name = "reap_killed_reaper";
    it.what = "a reaper was killed while it freed; another reaps its victim and it";
    it.capacity = 8;
    it.turned = 6;
    it.queued = 2;
    it.helpers = {dead_consumer(), dead_reaper()};
    it.operation = [](Actor& actor) {
        actor.reaped[0] = weir::reap(actor.world.members[helper], actor.buffers, actor.ports);
        actor.reaped[1] = weir::reap(actor.world.members[extra], actor.buffers, actor.ports);
    };
    it.afterwards = [](Actor& actor) {
        reap_expect(actor, 0);
        reap_expect(actor, 1);
    };
    it.stage = [](World& world) { return (world.dead[0].is_alive() ? 0 : 1) + (world.dead[1].is_alive() ? 0 : 1); };
    it.stages = 3;
    it.scripts = {replace_the_dead(), reuse_buffers()};
    return it;
}

std::vector<Definition> definitions() {
    return {allocate_case(),
            allocate_contended_case(),
            allocate_contended_12_case(),
            clone_case(),
            drop_case(),
            drop_shared_case(),
            push_case(),
            push_full_case(),
            push_full_again_case(),
            push_overtaken_case(),
            push_claimed_cell_case(),
            push_drop_oldest_case(),
            pop_case(),
            pop_behind_claim_case(),
            push_batch_case(),
            pop_batch_case(),
            ring_push_case(),
            ring_pop_case(),
            ring_push_batch_case(),
            ring_pop_batch_case(),
            fan_out_case(),
            wait_case(),
            wait_for_room_case(),
            wait_for_buffer_case(),
            notify_case(),
            attach_case(),
            detach_case(),
            join_case(),
            leave_case(),
            reap_one_case(),
            reap_two_case(),
            reap_killed_reaper_case()};
}

constexpr const char* pair_name = "two_at_once";

// Gives back what the third one held.
Operation reap_operation() {
    Operation it;
    it.name = "reap";
    it.operation = [](Actor& actor) {
        actor.reaped[0] = weir::reap(actor.world.members[extra], actor.buffers, actor.ports);
    };
    it.afterwards = [](Actor& actor) { reap_expect(actor, 0); };
    return it;
}

std::vector<Operation> pair_operations() {
    return {allocate_operation(),      clone_operation(), drop_operation(),
            push_operation(),          pop_operation(),   push_batch_operation(),
            pop_batch_operation(),     reap_operation(),  ring_push_batch_operation(),
            ring_pop_batch_operation()};
}

// The world lives as long as the program: cases and their children refer to it.
World& the_world() {
    static World world;
    return world;
}

std::vector<Operation> counted_operations() {
    return {allocate_operation(), pop_operation(),       clone_operation(),   drop_operation(),
            push_operation(),     ring_push_operation(), ring_pop_operation()};
}

Case make_case(World& world, const Definition& definition) {
    Case made;
    made.name = definition.name;
    made.what = definition.what;
    made.hot_path = definition.hot_path;
    made.stages = definition.stages;
    made.others_run = definition.others_run;
    made.mailbox = &world.box(victim);
    made.reset = [&world, &definition](unsigned variation) {
        world.reset(definition, variation);
        world.stage_helpers(definition, definition.helpers.size());
    };
    made.task = world.task(victim, definition.prepare, definition.operation, definition.afterwards);
    made.invariant = [&world] { return world.invariant() + world.take_findings(); };
    made.stage = [&world, &definition] { return definition.stage ? definition.stage(world) : 0; };
    made.judge_death = [&world, &definition](unsigned variation) { return world.judge_death(definition, variation); };
    made.judge_life = [&world, &definition] { return world.judge_life(definition); };
    for (const Definition::Act& act : definition.scripts) {
        made.scripts.push_back({act.name, [&world, act] {
                                    act.run(world);
                                    return world.take_findings();
                                }});
    }
    for (const Definition::Opponent& opponent : definition.opponents) {
        made.duels.push_back({opponent.name, [&world, opponent](Child& child) {
                                  opponent.fight(world, child);
                                  return world.take_findings();
                              }});
    }
    if (definition.on_blocked) {
        made.hooks.on_blocked = [&world, &definition] { definition.on_blocked(world); };
    }

    made.broken = world.warm_up(definition);
    made.watched = world.watched();
    if (!made.broken.empty()) {
        return made;
    }
    made.reset(0);
    if (definition.interrupt_where) {
        Child child = Child::start(made.task, *made.mailbox);
        const std::int64_t step = step_until(child, [&] { return definition.interrupt_where(world); });
        if (step <= 0) {
            made.broken = "the victim never stands where it is to be overtaken";
            return made;
        }
        made.hooks.interrupt_step = static_cast<std::uint32_t>(step);
        made.hooks.on_interrupt = [&world, &definition] { definition.on_interrupt(world); };
    }

    const std::vector<Operation> operations = counted_operations();
    for (std::size_t i = 0; definition.hot_path && i < operations.size(); ++i) {
        if (std::ranges::find(definition.counted, operations[i].name) != definition.counted.end()) {
            made.counted.push_back(i);
        }
    }
    constexpr std::uint32_t watchable_count = 4; // debug registers
    if (definition.hot_path && definition.capacity <= watchable_count) {
        const auto* first = reinterpret_cast<const std::uint64_t*>(world.port_memory(main_port).data() +
                                                                   sizeof(weir::PortState) + sizeof(weir::RingState));
        for (std::uint32_t place = 0; place < definition.capacity; ++place) {
            made.cells.push_back(first + place);
        }
    }
    return made;
}

PairCase make_pair_case(World& world) {
    static const Definition common = [] {
        Definition it;
        it.name = pair_name;
        it.capacity = 4;
        it.queued = 3;
        it.ring_turned = 6;
        it.ring_queued = 9;
        HelperSpec gone = claiming_consumer(HelperSpec::Fate::dead);
        gone.role = extra;
        it.helpers = {gone};
        return it;
    }();
    static const std::vector<Operation> operations = pair_operations();
    PairCase made;
    made.name = pair_name;
    made.what = "two processes in two operations: one frozen and one killed, or both stepped in turns; a third one "
                "died between claim and clear";
    for (const Operation& operation : operations) {
        made.operations.push_back(operation.name);
    }
    made.reset = [&world] {
        world.reset(common, frozen_variation);
        world.stage_helpers(common, common.helpers.size());
    };
    const auto task = [&world](Role role) {
        return [&world, role](std::size_t number) {
            const Operation& operation = operations[number];
            return world.task(role, operation.prepare, operation.operation, operation.afterwards);
        };
    };
    made.first_task = task(helper);
    made.second_task = task(victim);
    made.first_mailbox = &world.box(helper);
    made.second_mailbox = &world.box(victim);
    made.watched = world.watched();
    made.invariant = [&world] { return world.invariant() + world.take_findings(); };
    made.act_beside_death = [&world](std::size_t second) {
        world.dead.push_back(world.members[victim]);
        world.attempts.emplace_back(victim, operations[second].attempted(victim));
        world.act(worker, [](Actor& actor) {
            actor.attach();
            for (const weir::Membership& membership : actor.world.dead) {
                actor.box.expect(!weir::reap(membership, actor.buffers, actor.ports).error, "reaping failed");
            }
        });
        rotate_dropping(5).run(world);
        return world.take_findings();
    };
    made.judge = [&world] { return world.judge_life(common); };
    made.broken = world.warm_up(common);
    return made;
}

} // namespace

std::vector<std::string> case_names() {
    std::vector<std::string> names;
    for (const Definition& definition : definitions()) {
        names.push_back(definition.name);
    }
    names.emplace_back(pair_name);
    return names;
}

Cases make_cases(const std::vector<std::string>& wanted) {
    static const std::vector<Definition> all = definitions();
    World& world = the_world();
    const auto is_wanted = [&wanted](const std::string& name) {
        return wanted.empty() || std::ranges::find(wanted, name) != wanted.end();
    };
    Cases cases;
    for (const Definition& definition : all) {
        if (is_wanted(definition.name)) {
            cases.single.push_back(make_case(world, definition));
        }
    }
    if (is_wanted(pair_name)) {
        cases.pairs.push_back(make_pair_case(world));
    }
    for (const Operation& operation : counted_operations()) {
        cases.counted.emplace_back(operation.name, [&world, operation] {
            return world.task(worker, operation.prepare, operation.operation, operation.afterwards);
        });
    }
    cases.counted_mailbox = &world.box(worker);
    cases.reset_for_counting = [&world] {
        static const Definition plain = [] {
            Definition it;
            it.name = "counted";
            it.queued = 2;
            it.ring_queued = 2;
            return it;
        }();
        world.reset(plain, frozen_variation);
    };
    cases.end_setup = [&world] { world.clear(); };
    cases.begin_worker = [&world] { world.region.make_own(); };
    return cases;
}

} // namespace crash
