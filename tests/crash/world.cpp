#include "world.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <map>
#include <numeric>
#include <set>
#include <sys/wait.h>
#include <unistd.h>

namespace crash {

namespace {

const char* const role_names[role_count] = {"keeper", "victim", "helper", "judge", "worker", "extra"};

constexpr std::uint32_t first_port_id = 5;
constexpr std::uint32_t capacity_max = 8;
constexpr std::uint32_t first_free_tag = 100;

std::byte pattern(std::uint32_t tag, std::size_t place) {
    return static_cast<std::byte>((tag * 31 + place * 7) & 0xff);
}

// What a cell holds, or nothing.
struct Named {
    std::uint64_t position;
    weir::PortView::Item item;
    std::uint64_t word;
    bool queued;
};

std::vector<Named> filled_cells(const weir::Port& port, std::string* broken) {
    std::vector<Named> cells;
    const std::uint64_t capacity = port.options().capacity;
    for (std::uint64_t place = 0; place < capacity; ++place) {
        const std::uint64_t cell = port.view()->ring().load_cell(place);
        if (!weir::Ring::is_filled(cell)) {
            continue;
        }
        Named named{};
        named.position = (cell >> (weir::ring_value_bits + 1)) * capacity + place;
        if (!port.view()->decode(cell, named.item)) {
            if (broken != nullptr) {
                *broken += "a cell names no buffer; ";
            }
            continue;
        }
        named.word = weir::load_reference(named.item.word());
        named.queued = named.item.is_queued_as(named.word);
        cells.push_back(named);
    }
    std::ranges::sort(cells, {}, &Named::position);
    return cells;
}

} // namespace

// ----------------------------------------------------------------------------------------------------------
// Actor

Actor::Actor(World& in_world, Role in_role)
    : world(in_world), role(in_role), me(in_world.members[in_role]), box(in_world.box(in_role)),
      pool(in_world.control_memory(), in_world.payload_memory(), me), buffers(pool), values_out(in_world.ring()),
      values_in(in_world.ring()) {
    for (unsigned port = 0; port < port_count; ++port) {
        ports.emplace_back(world.port_memory(port), me, buffers);
    }
    // no operation under test allocates memory for these
    held.reserve(buffer_count);
    batch.reserve(buffer_count);
}

void Actor::attach(const weir::WaitOptions& wait) {
    for (const unsigned port : {main_port, other_port}) {
        out[port].emplace(ports[port], wait);
        in[port].emplace(ports[port], wait);
    }
}

void Actor::detach() {
    for (unsigned port = 0; port < port_count; ++port) {
        out[port].reset();
        in[port].reset();
    }
}

void Actor::vanish() {
    leave_child(box);
}

std::uint32_t Actor::new_tag() {
    return std::atomic_ref(world.next_tag()).fetch_add(1);
}

bool Actor::is_only_holder(const weir::BufferPtr& message) {
    for (unsigned number = 0; number < world.references(); ++number) {
        if (number != message.reference() && !weir::is_free(world.word(message.index(), number))) {
            return false;
        }
    }
    return true;
}

void Actor::label(weir::BufferPtr& message, std::uint32_t tag) {
    message.resize(message_bytes);
    message.set_tag(tag);
    for (std::size_t place = 0; place < message_bytes; ++place) {
        message.bytes()[place] = pattern(tag, place);
    }
}

weir::BufferPtr Actor::make(std::uint32_t tag) {
    weir::BufferPtr message = pool.try_allocate();
    if (!message) {
        box.fail("%s: no buffer is free", role_names[role]);
        leave_child(box);
    }
    if (!is_only_holder(message)) {
        box.fail("%s was given buffer %u, which others hold", role_names[role], message.id());
    }
    label(message, tag);
    return message;
}

void Actor::note(unsigned port, Event event) {
    Log& log = world.log(role);
    if (log.count == Log::entry_max) {
        box.fail("%s: the log is full", role_names[role]);
        leave_child(box);
    }
    log.entries[log.count++] = {port, event};
}

bool Actor::push(unsigned port, weir::BufferPtr&& message) {
    const std::uint32_t tag = message.tag();
    const weir::PushResult result = out[port]->try_push(std::move(message));
    if (result == weir::PushResult::ok) {
        if (world.port_options[port].when_full == weir::WhenFull::drop_oldest) {
            note(port, {What::discard, 0});
        }
        note(port, {What::push, tag});
        return true;
    }
    if (result == weir::PushResult::full) {
        note(port, {What::push_full, 0});
    } else {
        box.fail("%s: a push failed: %s", role_names[role],
                 result == weir::PushResult::closed ? "closed" : out[port]->last_error_field());
    }
    return false;
}

void Actor::note_popped(unsigned port, const weir::BufferPtr& message) {
    if (!message) {
        if (in[port]->last_error()) {
            box.fail("%s: a pop failed: %s", role_names[role], in[port]->last_error_field());
        }
        note(port, {What::pop_empty, 0});
        return;
    }
    note(port, {What::pop, message.tag()});
    bool intact = message.size_bytes() == message_bytes;
    for (std::size_t place = 0; intact && place < message_bytes; ++place) {
        intact = message.bytes()[place] == pattern(message.tag(), place);
    }
    if (!intact) {
        box.fail("%s popped message %u with other bytes than were pushed", role_names[role], message.tag());
    }
}

void Actor::note_value(weir::RingStatus status, Event done) {
    if (status == weir::RingStatus::corrupt) {
        box.fail("%s: the ring is corrupt", role_names[role]);
    }
    const What nothing = done.what == What::push ? What::push_full : What::pop_empty;
    note(ring_place, status == weir::RingStatus::ok ? done : Event{nothing, 0});
}

bool Actor::push_value(std::uint32_t value) {
    const weir::RingStatus status = values_out.try_push(value);
    note_value(status, {What::push, value});
    return status == weir::RingStatus::ok;
}

bool Actor::pop_value() {
    std::uint32_t value = 0;
    const weir::RingStatus status = values_in.try_pop(value);
    note_value(status, {What::pop, value});
    return status == weir::RingStatus::ok;
}

weir::BufferPtr Actor::pop(unsigned port) {
    weir::BufferPtr message = in[port]->try_pop();
    note_popped(port, message);
    return message;
}

// ----------------------------------------------------------------------------------------------------------
// World: set-up

World::World() : region(1 << 18) {
    pool_options = {.buffer_bytes = message_bytes,
                    .buffer_count = buffer_count,
                    .references_per_buffer = weir::references_per_buffer_max,
                    .first_buffer = 3};
    std::size_t offset = 32768;
    const auto take = [&offset](std::size_t bytes) {
        const std::size_t begin = offset;
        offset += weir::round_up(bytes, weir::cache_line_bytes);
        return begin;
    };
    static_assert(misc_offset + 64 <= 32768);
    static_assert(sizeof(Mailbox) <= mailbox_stride && sizeof(Log) <= log_stride);
    control_bytes = weir::BufferPool::control_bytes(pool_options);
    payload_bytes = weir::BufferPool::payload_bytes(pool_options);
    table_offset = take(weir::ProcessTable::bytes());
    control_offset = take(control_bytes);
    payload_offset = take(payload_bytes);
    ring_offset = take(weir::Ring::bytes(ring_capacity));
    for (unsigned port = 0; port < port_count; ++port) {
        port_options[port].capacity = capacity_max;
        port_options[port].port_id = first_port_id + port;
        port_offsets[port] = take(weir::Port::bytes(port_options[port]));
    }
    if (offset > region.size()) {
        std::fprintf(stderr, "the world needs %zu bytes\n", offset);
        std::abort();
    }
}

Watched World::watched() const {
    return {{region.data() + table_offset,
             port_offsets[port_count - 1] - table_offset + weir::Port::bytes(port_options[port_count - 1])}};
}

void World::occupy(unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
        keeper_actor->held.push_back(keeper_actor->make(keeper_actor->new_tag()));
    }
    kept += count;
}

void World::clear() {
    for (HelperState& state : helpers) {
        state.child.reset();
    }
    helpers.clear();
    if (keeper_actor) {
        for (weir::BufferPtr& buffer : keeper_actor->held) {
            buffer.forget(); // the memory is about to be zeroed, and may hold anything
        }
        keeper_actor.reset();
    }
    region.clear();
}

void World::reset(const Definition& definition, unsigned variation) {
    clear();
    members.clear();
    dead.clear();
    attempts.clear();
    newcomer.reset();
    newcomer_words = 0;
    before.clear();
    findings_.clear();
    kept = 0;
    is_frozen_run = (variation & frozen_variation) != 0;

    next_tag() = first_free_tag;
    for (unsigned port = 0; port < port_count; ++port) {
        port_options[port].capacity = port == main_port ? definition.capacity : capacity_max;
        port_options[port].when_full = port == main_port ? definition.when_full : weir::WhenFull::refuse;
        weir::Port::format(port_memory(port), port_options[port]);
    }
    pool_options.references_per_buffer = definition.references;
    weir::BufferPool::format(control_memory(), pool_options);
    weir::ProcessTable processes = table();
    for (unsigned role = 0; role < role_count; ++role) {
        members.push_back(processes.join());
    }
    keeper_actor = std::make_unique<Actor>(*this, keeper);
    keeper_actor->attach();
    Actor& actor = *keeper_actor;
    for (unsigned i = 0; i < definition.turned; ++i) {
        if (actor.out[main_port]->try_push(actor.make(1)) != weir::PushResult::ok || !actor.in[main_port]->try_pop()) {
            find("the set-up cannot push and pop");
        }
    }
    for (std::uint32_t tag = 1; tag <= definition.queued; ++tag) {
        if (actor.out[main_port]->try_push(actor.make(tag)) != weir::PushResult::ok) {
            find("the set-up cannot push");
        }
        before.push_back(tag);
    }
    for (unsigned i = 0; i < definition.ring_turned; ++i) {
        std::uint32_t value = 0;
        if (actor.values_out.try_push(1) != weir::RingStatus::ok ||
            actor.values_in.try_pop(value) != weir::RingStatus::ok) {
            find("the set-up cannot push and pop values");
        }
    }
    for (std::uint32_t value = 1; value <= definition.ring_queued; ++value) {
        if (actor.values_out.try_push(value) != weir::RingStatus::ok) {
            find("the set-up cannot push values");
        }
    }
    // So that handles begin where the ends are.
    ring().hint_head(definition.ring_turned);
    ring().hint_tail(definition.ring_turned + definition.ring_queued);
    if (const std::vector<Named> cells = filled_cells(actor.ports[main_port], nullptr); !cells.empty()) {
        first_index = cells.front().item.index;
    }
    if (definition.arrange) {
        definition.arrange(*this);
    }
}

Task World::task(Role role, const ActorWork& prepare, const ActorWork& operation, const ActorWork& afterwards) {
    auto place = std::make_shared<Actor*>(nullptr); // filled in the child
    return {
        [this, role, prepare, place](Mailbox&) {
            *place = new Actor(*this, role);
            if (prepare) {
                prepare(**place);
            }
        },
        [operation, place](Mailbox&) { operation(**place); },
        [afterwards, place](Mailbox&) {
            if (afterwards) {
                afterwards(**place);
            }
            delete *place;
        },
    };
}

void World::stage_helpers(const Definition& definition, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const HelperSpec& spec = definition.helpers[i];
        HelperState& state = helpers.emplace_back();
        state.spec = &spec;
        state.child.emplace(
            Child::start(task(spec.role, spec.prepare, spec.operation, spec.afterwards), box(spec.role)));
        if (spec.asleep) {
            if (state.child->run_to_return(true) != Stop::blocked) {
                find(std::string("the helper does not sleep: ") + name_of(state.child->stop()));
            }
        } else {
            const StagedTrace& staged = staged_.at(definition.name + std::to_string(i));
            const std::string error = reach(*state.child, staged.trace, {staged.step, false}, watched(), {});
            if (!error.empty()) {
                find("the helper: " + error);
            } else if (!spec.there(*this)) {
                find("the helper does not stand where it is to stand");
            }
        }
        state.dead = spec.fate == HelperSpec::Fate::dead || (spec.fate == HelperSpec::Fate::either && !is_frozen_run);
        if (state.dead) {
            state.child->kill();
            dead.push_back(members[spec.role]);
        }
    }
    // History begins here: what was done before shows in what is in the port.
    before = content(main_port);
    ring_before = ring_content();
    for (unsigned role = 0; role < role_count; ++role) {
        log(static_cast<Role>(role)).count = 0;
    }
}

std::string World::warm_up(const Definition& definition) {
    for (std::size_t i = 0; i < definition.helpers.size(); ++i) {
        const HelperSpec& spec = definition.helpers[i];
        if (spec.asleep) {
            continue;
        }
        const Task helper_task = task(spec.role, spec.prepare, spec.operation, spec.afterwards);
        reset(definition, 0);
        stage_helpers(definition, i);
        Hooks hooks;
        hooks.until = [&] { return spec.there(*this); };
        StagedTrace staged;
        staged.trace = record(helper_task, box(spec.role), watched(), hooks);
        staged.step = staged.trace.steps();
        if (!staged.trace.ended) {
            return std::string("the ") + role_names[spec.role] +
                   " never stands where it is to stand: " + staged.trace.error;
        }
        staged_.emplace(definition.name + std::to_string(i), std::move(staged));
    }
    return {};
}

// ----------------------------------------------------------------------------------------------------------
// World: processes

void World::find(const std::string& text) {
    findings_ += text + "\n";
}

std::string World::take_findings() {
    return std::exchange(findings_, {});
}

void World::act(Role role, const ActorWork& work) {
    const bool fine = run_apart(box(role), [&](Mailbox&) {
        Actor actor(*this, role);
        work(actor);
    });
    if (!fine) {
        find(std::string(role_names[role]) + ": " + box(role).findings);
    }
}

void World::finish_helper(Role role) {
    for (HelperState& state : helpers) {
        if (state.spec->role != role || state.dead || state.finished) {
            continue;
        }
        state.finished = true;
        if (state.spec->asleep && box(role).phase < phase::finished && content(main_port).empty()) {
            act(worker, [](Actor& actor) {
                actor.attach();
                actor.push(main_port, actor.make(actor.new_tag()));
            });
        }
        // A waiter whose waker was killed may sleep for a re-check interval; otherwise nobody has to sleep any more.
        if (state.child->finish(is_frozen_run || !state.spec->asleep) == Stop::blocked) {
            find(std::string(role_names[role]) + " sleeps on, though it has something to do");
        }
        if (box(role).failed != 0) {
            find(std::string(role_names[role]) + ": " + box(role).findings);
        }
    }
}

void World::finish_helpers() {
    for (std::size_t i = 0; i < helpers.size(); ++i) {
        finish_helper(helpers[i].spec->role);
    }
}

bool World::has_live_helper() const {
    return std::ranges::any_of(helpers, [](const HelperState& state) { return !state.dead && !state.finished; });
}

// ----------------------------------------------------------------------------------------------------------
// World: looks

std::uint64_t World::word(std::uint32_t index, unsigned number) const {
    return weir::load_reference(keeper_actor->pool.view().reference(index, number));
}

std::vector<std::uint32_t> World::content(unsigned port) {
    std::vector<std::uint32_t> tags;
    for (const Named& named : filled_cells(keeper_actor->ports[port], nullptr)) {
        if (named.queued) {
            tags.push_back(named.item.pool->header(named.item.index).tag);
        }
    }
    return tags;
}

std::vector<std::uint32_t> World::ring_content() {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> filled; // lap and place, value
    for (std::uint32_t place = 0; place < ring_capacity; ++place) {
        const std::uint64_t cell = ring().load_cell(place);
        if (weir::Ring::is_filled(cell)) {
            filled.emplace_back((cell >> (weir::ring_value_bits + 1)) * ring_capacity + place, weir::Ring::value(cell));
        }
    }
    std::ranges::sort(filled);
    std::vector<std::uint32_t> values;
    for (const auto& [position, value] : filled) {
        values.push_back(value);
    }
    return values;
}

unsigned World::words_of(const weir::Membership& membership, weir::ReferenceState state) {
    unsigned count = 0;
    for (std::uint32_t index = 0; index < buffer_count; ++index) {
        for (unsigned number = 0; number < references(); ++number) {
            const std::uint64_t seen = word(index, number);
            count += weir::reference_state(seen) == state && weir::Owner::of(seen) == membership.owner() ? 1U : 0U;
        }
    }
    return count;
}

unsigned World::handles_of(Role role) {
    unsigned count = 0;
    for (const auto& members_of_end : keeper_actor->ports[lone_port].view()->state().members) {
        count += (weir::shared(members_of_end[role]).load() >> 1 & 0x7fff) != 0 ? 1U : 0U;
    }
    return count;
}

bool World::has_claimed_cell(unsigned port) {
    return std::ranges::any_of(filled_cells(keeper_actor->ports[port], nullptr),
                               [](const Named& named) { return !named.queued; });
}

bool World::has_unlisted_word(Role role) {
    std::set<const std::uint64_t*> named_words;
    for (const weir::Port& port : keeper_actor->ports) {
        for (const Named& named : filled_cells(port, nullptr)) {
            if (named.queued) {
                named_words.insert(&named.item.word());
            }
        }
    }
    for (std::uint32_t index = 0; index < buffer_count; ++index) {
        for (unsigned number = 0; number < references(); ++number) {
            const std::uint64_t seen = word(index, number);
            if (weir::reference_state(seen) == weir::ReferenceState::queued &&
                weir::Owner::of(seen) == members[role].owner() &&
                !named_words.contains(&keeper_actor->pool.view().reference(index, number))) {
                return true;
            }
        }
    }
    return false;
}

std::string World::invariant() {
    // A filled cell's reference word is QUEUED with the cell's generation, or held by its claimer with the next one.
    std::string broken;
    std::set<const std::uint64_t*> named_words;
    for (const weir::Port& port : keeper_actor->ports) {
        for (const Named& named : filled_cells(port, &broken)) {
            const std::string name = "the cell at position " + std::to_string(named.position) + " of port " +
                                     std::to_string(port.options().port_id - first_port_id);
            if (!named_words.insert(&named.item.word()).second) {
                broken += name + " names a reference that another cell names too; ";
            }
            if (named.queued) {
                if (weir::reference_port(named.word) != port.options().port_id) {
                    broken += name + " names a message of another port; ";
                }
            } else if (weir::reference_state(named.word) != weir::ReferenceState::held) {
                broken += name + " names a reference in state " + std::to_string(named.word & 7) +
                          ", neither queued with its generation nor held; ";
            } else if (((weir::reference_generation(named.word) - named.item.generation_low) & 15) != 1) {
                broken += name + " names a reference that was handed on while the cell was still filled; ";
            }
        }
    }
    return broken.empty() ? broken : "invariant: " + broken + "\n";
}

// ----------------------------------------------------------------------------------------------------------
// World: verdicts

void World::reap_the_dead(Actor& actor, unsigned way) {
    // Who looks before anybody has reaped finds nothing that could not be.
    for (const std::string& broken :
         weir::check_domain(table(), actor.buffers, actor.ports, nullptr, weir::CheckMode::live)) {
        actor.box.fail("check before reaping: %s", broken.c_str());
    }
    const auto reap_all = [&](Actor& reaper) {
        for (const weir::Membership& membership : dead) {
            const weir::ReapResult result = weir::reap(membership, reaper.buffers, reaper.ports);
            if (result.error) {
                reaper.box.fail("reaping failed: %s", result.error.message().c_str());
            }
        }
    };
    pid_t second = -1;
    if (way == 2) {
        // at the same time as another process
        std::fflush(nullptr);
        second = fork();
        if (second == 0) {
            Actor other(*this, worker);
            reap_all(other);
            _exit(0);
        }
    }
    reap_all(actor);
    if (second > 0) {
        int status = 0;
        while (waitpid(second, &status, 0) == -1 && errno == EINTR) {
        }
        actor.box.expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the second reaper crashed");
    }
    for (const weir::Membership& membership : dead) {
        actor.box.expect(!membership.is_alive(), "a reaped process counts as alive still");
    }
    if (way == 1) {
        const std::uint64_t once = hash_of(watched());
        reap_all(actor);
        // a helper that lives may be doing something itself
        actor.box.expect(has_live_helper() || hash_of(watched()) == once, "reaping a second time changed something");
    }
}

void World::look_around(Actor& actor) {
    weir::DomainCensus census;
    for (const std::string& broken : weir::check_domain(table(), actor.buffers, actor.ports, &census)) {
        actor.box.fail("check: %s", broken.c_str());
    }
    std::size_t queued = 0;
    for (unsigned port = 0; port < port_count; ++port) {
        queued += content(port).size();
    }
    if (census.held_reference_count != kept) {
        actor.box.fail("%u references are held, %u by living processes", census.held_reference_count, kept);
    }
    if (census.queued_reference_count != queued) {
        actor.box.fail("%u references say they are queued, %zu are in cells", census.queued_reference_count, queued);
    }
}

void World::drain_and_explain(Actor& actor) {
    actor.detach();
    actor.attach();
    const auto explain = [&](unsigned place, std::uint32_t capacity, const std::vector<std::uint32_t>& content_before) {
        History history(capacity, content_before);
        for (unsigned role = 0; role < role_count; ++role) {
            std::vector<Event> events;
            const Log& noted = log(static_cast<Role>(role));
            const bool known = std::ranges::any_of(helpers, [role](const HelperState& state) {
                return state.spec->role == role && !state.dead && state.spec->took_effect;
            });
            for (std::uint32_t i = known ? 1 : 0; i < noted.count; ++i) {
                if (noted.entries[i].port == place) {
                    events.push_back(noted.entries[i].event);
                }
            }
            for (const auto& [attempting, attempted] : attempts) {
                for (const Log::Entry& entry : attempted) {
                    if (attempting == role && entry.port == place) {
                        events.push_back(entry.event);
                    }
                }
            }
            if (!events.empty()) {
                history.add(std::move(events));
            }
        }
        if (!history.explains({})) {
            actor.box.fail("no order explains %s %u: %s", place == ring_place ? "the ring," : "port", place,
                           history.describe({}).c_str());
        }
    };
    for (const unsigned port : {main_port, other_port}) {
        while (weir::BufferPtr message = actor.pop(port)) {
        }
        explain(port, port_options[port].capacity, port == main_port ? before : std::vector<std::uint32_t>{});
    }
    while (actor.pop_value()) {
    }
    explain(ring_place, ring_capacity, ring_before);
    weir::DomainCensus census;
    for (const std::string& broken : weir::check_domain(table(), actor.buffers, actor.ports, &census)) {
        actor.box.fail("check when drained: %s", broken.c_str());
    }
    if (census.held_reference_count != kept || census.queued_reference_count != 0) {
        actor.box.fail("when all is drained, %u references are held (%u by living processes), %u queued",
                       census.held_reference_count, kept, census.queued_reference_count);
    }
}

void World::exercise(Actor& actor) {
    Mailbox& mailbox = actor.box;
    const std::uint32_t free = actor.pool.free_count();

    // allocate all there are, each once
    std::vector<weir::BufferPtr> all;
    std::set<std::uint32_t> ids;
    while (weir::BufferPtr one = actor.pool.try_allocate()) {
        ids.insert(one.id());
        actor.label(one, one.id());
        all.push_back(std::move(one));
        if (all.size() > buffer_count) {
            break;
        }
    }
    if (all.size() != free || ids.size() != free) {
        mailbox.fail("%u buffers are free, %zu were allocated, %zu different ones", free, all.size(), ids.size());
    }
    if (all.empty()) {
        return; // the case keeps them all
    }

    // clone until no reference is left
    {
        std::vector<weir::BufferPtr> clones;
        while (weir::BufferPtr clone = all.front().clone()) {
            clones.push_back(std::move(clone));
        }
        mailbox.expect(clones.size() == references() - 1, "a buffer has not all of its references");
    }
    mailbox.expect(all.front().use_count() == 1, "dropped clones are still counted");

    // push until the port is full, and pop in order
    const std::uint32_t capacity = port_options[main_port].capacity;
    if (all.size() > capacity) {
        std::vector<std::uint32_t> expected;
        for (std::size_t i = 0; i < capacity; ++i) {
            expected.push_back(all[i].tag());
            mailbox.expect(actor.out[main_port]->try_push(std::move(all[i])) == weir::PushResult::ok,
                           "a push into a port with room failed");
        }
        const std::uint32_t surplus = all[capacity].tag();
        const weir::PushResult result = actor.out[main_port]->try_push(std::move(all[capacity]));
        if (port_options[main_port].when_full == weir::WhenFull::drop_oldest) {
            mailbox.expect(result == weir::PushResult::ok, "a push that drops the oldest failed");
            expected.erase(expected.begin());
            expected.push_back(surplus);
        } else {
            mailbox.expect(result == weir::PushResult::full, "a push into a full port did not say so");
        }
        for (const std::uint32_t tag : expected) {
            weir::BufferPtr message = actor.in[main_port]->try_pop();
            mailbox.expect(message && message.tag() == tag, "a pop did not get the oldest message");
        }
        mailbox.expect(!actor.in[main_port]->try_pop(), "a pop from an empty port got something");
    }
    all.clear();

    // batches
    for (std::uint32_t i = 0; i < 3 && i < free; ++i) {
        all.push_back(actor.make(i));
    }
    const std::size_t count = all.size();
    mailbox.expect(actor.out[other_port]->try_push(std::span(all)) == count, "a batch was not pushed whole");
    std::vector<weir::BufferPtr> popped(count + 1);
    mailbox.expect(actor.in[other_port]->try_pop(std::span(popped)) == count, "a batch was not popped whole");
    for (std::uint32_t i = 0; i < count; ++i) {
        mailbox.expect(popped[i] && popped[i].tag() == i, "a batch came in another order");
    }
    popped.clear();
    all.clear();

    // the ring: full, with batches at either end, and empty
    std::vector<std::uint32_t> numbers(ring_capacity);
    std::iota(numbers.begin(), numbers.end(), 1);
    std::size_t pushed_count = 0;
    while (const std::size_t more = actor.values_out.try_push(std::span(numbers).subspan(pushed_count))) {
        pushed_count += more;
    }
    mailbox.expect(pushed_count == ring_capacity && actor.values_out.try_push(0) == weir::RingStatus::full,
                   "an empty ring has not room for its capacity");
    std::vector<std::uint32_t> taken(ring_capacity);
    std::size_t popped_count = 0;
    while (const std::size_t more = actor.values_in.try_pop(std::span(taken).subspan(popped_count))) {
        popped_count += more;
    }
    std::uint32_t value = 0;
    mailbox.expect(taken == numbers && actor.values_in.try_pop(value) == weir::RingStatus::empty,
                   "a full ring gave other values");
    mailbox.expect(ring().check().empty(), "the ring's check() names something");

    // join and leave: a slot's next owner has the next incarnation
    weir::ProcessTable processes = table();
    const weir::Membership first = processes.join();
    mailbox.expect(first.is_alive(), "a new member is not alive");
    mailbox.expect(weir::leave(first, actor.buffers, actor.ports).ended_entry, "a member cannot leave");
    const weir::Membership next = processes.join();
    mailbox.expect(next.slot == first.slot && next.incarnation == first.incarnation + 1,
                   "the next member is not the slot's next incarnation");
    weir::leave(next, actor.buffers, actor.ports);

    // a stream begins and ends
    {
        weir::Consumer consumer(actor.ports[lone_port]);
        {
            weir::Producer producer(actor.ports[lone_port]);
            mailbox.expect(consumer.stream_end() == weir::StreamEnd::open, "a new producer does not reopen the stream");
        }
        mailbox.expect(consumer.stream_end() == weir::StreamEnd::closed, "the last producer's close is not the end");
    }

    for (const std::string& broken : weir::check_domain(processes, actor.buffers, actor.ports)) {
        mailbox.fail("check at the end: %s", broken.c_str());
    }
    if (actor.pool.free_count() != free) {
        mailbox.fail("%u buffers were free, %u are at the end", free, actor.pool.free_count());
    }
}

void World::exchange_with_another(Actor& actor) {
    // The other sleeps until this one pushes: with a re-check interval of an hour, only a wake ends that.
    std::fflush(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
        Actor other(*this, worker);
        other.attach({.spin_count = 0, .recheck_interval_ns = hour_ns});
        weir::BufferPtr message = other.in[other_port]->pop();
        const bool fine = message && message.tag() == 4711;
        message.reset();
        other.detach();
        _exit(fine ? 0 : 1);
    }
    const std::uint32_t& event =
        actor.ports[other_port].view()->state().ends[static_cast<unsigned>(weir::PortEnd::consumer)].waiting_event;
    while ((weir::shared(event).load() & 1) == 0) {
        usleep(50); // the case's watchdog ends it
    }
    weir::BufferPtr message = actor.make(4711);
    actor.box.expect(actor.out[other_port]->push(std::move(message)) == weir::PushResult::ok, "a push failed");
    int status = 0;
    while (waitpid(pid, &status, 0) == -1 && errno == EINTR) {
    }
    actor.box.expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a waiting consumer did not get its message");
}

void World::judge_all(const Definition& definition, unsigned variation) {
    const unsigned way = variation & 3;
    const auto begin = [&](Actor& actor) {
        actor.attach();
        if (way == 3) {
            // nobody waits for the dead: work goes on before anyone reaps them
            for (int round = 0; round < 3; ++round) {
                if (actor.pool.free_count() > 0) {
                    if (weir::BufferPtr message = actor.pool.try_allocate()) {
                        actor.label(message, actor.new_tag());
                        actor.push(main_port, std::move(message));
                    }
                }
                actor.pop(main_port);
            }
        }
        reap_the_dead(actor, way);
        if (definition.judge_more && !is_frozen_run) {
            definition.judge_more(*this, actor);
        }
    };
    const auto end = [&](Actor& actor) {
        look_around(actor);
        drain_and_explain(actor);
        exercise(actor);
        if ((variation & 12) == 12) {
            exchange_with_another(actor);
        }
    };
    if (has_live_helper()) {
        act(judge, begin);
        finish_helpers();
        act(judge, end);
    } else {
        act(judge, [&](Actor& actor) {
            begin(actor);
            end(actor);
        });
    }
}

std::string World::judge_death(const Definition& definition, unsigned variation) {
    dead.push_back(members[victim]);
    attempts.emplace_back(victim, definition.attempted);
    judge_all(definition, variation);
    return take_findings();
}

std::string World::judge_life(const Definition& definition) {
    if (newcomer) {
        if (!newcomer->is_alive()) {
            find("a newcomer's entry in the process table was ended");
        }
        if (words_of(*newcomer, weir::ReferenceState::held) != newcomer_words) {
            find("a newcomer holds " + std::to_string(words_of(*newcomer, weir::ReferenceState::held)) +
                 " references instead of " + std::to_string(newcomer_words));
        }
        dead.push_back(*newcomer); // its process is gone, and it gave nothing back
    }
    judge_all(definition, 0);
    return take_findings();
}

} // namespace crash
