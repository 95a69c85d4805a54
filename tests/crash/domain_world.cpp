#include "domain_world.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>

namespace crash {

namespace {

constexpr std::uint32_t first_passing_tag = 100;

/// A buffer, though hints of the dead may lead elsewhere for a while.
weir::BufferPtr allocate(weir::BufferPool& pool) {
    for (int attempt = 0; attempt < 1'000; ++attempt) {
        if (weir::BufferPtr buffer = pool.try_allocate()) {
            return buffer;
        }
    }
    return {};
}

std::byte pattern(std::uint32_t tag, std::size_t place) {
    return static_cast<std::byte>(tag * 31 + place * 7);
}

bool is_intact(const weir::BufferPtr& message) {
    for (std::size_t place = 0; place < message.size_bytes(); ++place) {
        if (message.bytes()[place] != pattern(message.tag(), place)) {
            return false;
        }
    }
    return message.size_bytes() == domain_pool.buffer_bytes;
}

} // namespace

weir::JoinOptions Member::options() {
    weir::JoinOptions options;
    options.process_name = "member";
    // Who is in the way here stands still, so that a longer wait would change nothing.
    options.timeout = std::chrono::milliseconds(3);
    options.recheck_interval_ns = 1'000'000;
    return options;
}

void Member::join() {
    domain.emplace(weir::Domain::join(name, options()));
}

void Member::leave() {
    producer.reset();
    consumer.reset();
    port.reset();
    pool.reset();
    if (domain) {
        domain->leave();
        domain.reset();
    }
}

weir::BufferPtr Member::make(weir::BufferPool& from, std::uint32_t tag) {
    weir::BufferPtr buffer = allocate(from);
    if (!buffer) {
        box.fail("no buffer is free");
        return buffer;
    }
    buffer.set_tag(tag);
    for (std::size_t place = 0; place < buffer.size_bytes(); ++place) {
        buffer.bytes()[place] = pattern(tag, place);
    }
    return buffer;
}

void Member::set_up() {
    static_cast<void>(domain->pool("old", domain_pool));
    static_cast<void>(domain->port("old", domain_port));
    weir::SegmentExpectation expected;
    expected.kind = weir::SegmentKind::registry;
    facts.registry_id = weir::Registry(weir::Segment::open(names.registry(), expected).bytes()).id();
    for (std::uint32_t tag = 1; tag <= 3; ++tag) {
        push_old(tag);
    }
}

void Member::push_old(std::uint32_t tag) {
    weir::BufferPool from = domain->pool("old", domain_pool);
    weir::Producer out = domain->producer("old", domain_port);
    box.expect(out.try_push(make(from, tag)) == weir::PushResult::ok, "a message cannot be pushed");
    facts.queued_tags[facts.queued_count++] = tag;
}

void Member::hold_two() {
    weir::BufferPool from = domain->pool("old", domain_pool);
    make(from, 70).forget();
    make(from, 71).forget();
}

void Member::leave_draft() {
    weir::SegmentExpectation expected;
    expected.kind = weir::SegmentKind::registry;
    const std::uint64_t id = weir::Registry(weir::Segment::open(names.registry(), expected).bytes()).id();
    const weir::Membership& me = domain->membership();
    const weir::SegmentKey key{me.slot, static_cast<std::uint32_t>(me.incarnation), 999};
    static_cast<void>(weir::Segment::create(names.segment(id, key, weir::SegmentKind::port), 4096));
}

bool Member::is_same_domain() {
    weir::SegmentExpectation expected;
    expected.kind = weir::SegmentKind::registry;
    return facts.registry_id != 0 &&
           weir::Registry(weir::Segment::open(names.registry(), expected).bytes()).id() == facts.registry_id;
}

void Member::take_and_give_back_old() {
    weir::Producer out = domain->producer("old", domain_port);
    weir::Consumer in = domain->consumer("old", domain_port);
    std::vector<weir::BufferPtr> messages;
    for (std::uint32_t number = 0; number < facts.queued_count; ++number) {
        weir::BufferPtr message = in.try_pop();
        if (!message) {
            box.fail("message %u of %u is lost (%s)", number + 1, facts.queued_count,
                     in.last_error() ? in.last_error().message().c_str() : "the port is empty");
            return;
        }
        if (message.tag() != facts.queued_tags[number] || !is_intact(message)) {
            box.fail("message %u has tag %u, or other bytes than were pushed; should have tag %u", number + 1,
                     message.tag(), facts.queued_tags[number]);
        }
        messages.push_back(std::move(message));
    }
    box.expect(!in.try_pop(), "there is a message more than was pushed");
    for (weir::BufferPtr& message : messages) {
        box.expect(out.try_push(std::move(message)) == weir::PushResult::ok, "a message cannot be pushed again");
    }
}

void Member::pass_messages(weir::BufferPool from, weir::Port through) {
    weir::Producer out(through);
    weir::Consumer in(through);
    // as many as wait there already are passed on, so that all keep their order
    for (std::uint32_t tag = first_passing_tag; tag < first_passing_tag + 3; ++tag) {
        box.expect(out.try_push(make(from, tag)) == weir::PushResult::ok, "a message cannot be pushed");
    }
    for (std::uint32_t tag = first_passing_tag; tag < first_passing_tag + 3; ++tag) {
        const weir::BufferPtr message = in.try_pop();
        if (!message || message.tag() != tag || !is_intact(message)) {
            box.fail("message %u was pushed, %u was popped", tag, message ? message.tag() : 0);
        }
    }
}

void Member::use_everything() {
    if (is_same_domain()) {
        take_and_give_back_old();
    }
    weir::BufferPool old_pool = domain->pool("old", domain_pool);
    static_cast<void>(domain->port("old", domain_port));
    const weir::BufferPool made_pool = domain->pool("made", domain_pool);
    const weir::Port made_port = domain->port("made", domain_port);
    pass_messages(old_pool, made_port);
    pass_messages(made_pool, made_port);
    const auto count_of = [](const std::vector<std::string>& all, const char* wanted) {
        return std::ranges::count(all, wanted);
    };
    for (const char* wanted : {"old", "made"}) {
        if (count_of(domain->pool_names(), wanted) != 1 || count_of(domain->port_names(), wanted) != 1) {
            box.fail("pool or port %s is not there exactly once", wanted);
        }
    }
}

/// In /dev/shm there is what the directory lists, whole, and nothing else.
void Member::check_names() {
    weir::SegmentExpectation expected;
    expected.kind = weir::SegmentKind::registry;
    const weir::Segment segment = weir::Segment::open(names.registry(), expected);
    const weir::Registry registry(segment.bytes());
    std::set<std::string> wanted{names.lock(), names.registry()};
    const auto want_all = [&](const weir::Directory& directory, std::initializer_list<weir::SegmentKind> kinds) {
        for (unsigned place = 0; place < directory.size() && directory.entry(place) != 0; ++place) {
            for (const weir::SegmentKind kind : kinds) {
                wanted.insert(names.segment(registry.id(), weir::SegmentKey::of(directory.entry(place)), kind));
            }
        }
    };
    want_all(registry.pools(), {weir::SegmentKind::pool_control, weir::SegmentKind::pool_payload});
    want_all(registry.ports(), {weir::SegmentKind::port});
    for (const std::string& there : weir::list_segments(names.prefix())) {
        if (wanted.erase(there) == 0) {
            box.fail("%s is left over", there.c_str());
        }
    }
    for (const std::string& missing : wanted) {
        box.fail("%s is missing", missing.c_str());
    }
}

void Member::check_all() {
    weir::DomainCensus census;
    for (const std::string& line : domain->check(&census)) {
        box.fail("%s", line.c_str());
    }
    const std::uint32_t queued = is_same_domain() ? facts.queued_count : 0;
    std::uint32_t total = 0;
    const weir::SharedBufferAllocator pools = domain->pools();
    for (const weir::BufferPool& one : pools.pools()) {
        total += one.buffer_count();
    }
    if (census.held_reference_count != 0 || census.queued_reference_count != queued ||
        census.free_count != total - queued) {
        box.fail("of %u buffers %u are free, %u references held and %u queued, where %u messages are", total,
                 census.free_count, census.held_reference_count, census.queued_reference_count, queued);
    }
    for (const weir::MemberInfo& member : domain->members()) {
        if (!member.is_alive) {
            box.fail("slot %u is still a dead one's after reaping", member.slot);
        }
    }
}

void Member::work_beside(bool is_unnamed) {
    try {
        box.expect(!domain->reap().error, "reaping failed");
        is_unnamed ? use_mapped() : use_everything();
    } catch (const std::exception& thrown) {
        box.fail("exception: %s", thrown.what());
    }
}

void Member::use_mapped() {
    if (domain->reap().error) {
        box.fail("reaping in a domain without names");
    }
    if (facts.registry_id != 0) {
        take_and_give_back_old();
    }
}

void Member::judge() {
    for (int round = 0; round < 2; ++round) {
        const weir::ReapReport report = domain->reap();
        if (report.error || !report.note.empty()) {
            box.fail("reaping: %s %s", report.error.message().c_str(), report.note.c_str());
        }
        box.expect(round == 0 || report.dead_count == 0, "somebody is dead again after reaping");
    }
    box.expect(domain->membership().is_alive(), "who judges was reaped alive");
    if (facts.must_be_same != 0 && !is_same_domain()) {
        box.fail("the domain is another one, though its registry was there when it was left");
    }
    check_names();
    check_all();
    use_everything();
    {
        Member second(name, facts, box); // another membership of this process
        second.join();
        second.use_everything();
        second.leave();
    }
    check_all();
    check_names();
}

// ---- the cases ------------------------------------------------------------------------------------------

namespace {

/// A look at the registry that has the domain's name.
class RegistryLook {
public:
    explicit RegistryLook(const weir::DomainNames& names) {
        weir::SegmentExpectation expected;
        expected.access = weir::SegmentAccess::read_only;
        expected.kind = weir::SegmentKind::registry;
        try {
            segment_.emplace(weir::Segment::open(names.registry(), expected));
            registry_.emplace(segment_->bytes());
        } catch (const std::system_error&) {
            registry_.reset(); // not there
        }
    }
    [[nodiscard]] bool is_there() const { return registry_.has_value(); }
    [[nodiscard]] int alive_count() const {
        int count = 0;
        for (unsigned slot = 0; registry_ && slot < weir::process_slot_count; ++slot) {
            count += registry_->processes().entry(static_cast<std::uint8_t>(slot)).alive ? 1 : 0;
        }
        return count;
    }
    [[nodiscard]] bool is_alive(std::uint32_t slot, std::uint64_t incarnation) const {
        return registry_ && registry_->processes().is_alive(static_cast<std::uint8_t>(slot), incarnation);
    }
    [[nodiscard]] int pool_count() const { return registry_ ? count(registry_->pools()) : 0; }
    [[nodiscard]] int port_count() const { return registry_ ? count(registry_->ports()) : 0; }

private:
    [[nodiscard]] static int count(const weir::Directory& directory) {
        int entries = 0;
        while (directory.entry(static_cast<unsigned>(entries)) != 0) {
            ++entries;
        }
        return entries;
    }
    std::optional<weir::Segment> segment_;
    std::optional<weir::Registry> registry_;
};

void remember_victim(Member& me) {
    me.facts.victim_slot = me.domain->membership().slot;
    me.facts.victim_incarnation = me.domain->membership().incarnation;
}

void join_only(Member& me) {
    me.join();
    remember_victim(me);
}

/// Dies with two buffers, a message under way, and a segment that nobody knows of.
void become_burden(Member& me) {
    me.join();
    me.hold_two();
    me.push_old(4);
    me.leave_draft();
    me.facts.dead_slot = me.domain->membership().slot;
    me.facts.dead_incarnation = me.domain->membership().incarnation;
}

void use_and_leave(Member& me) {
    me.use_everything();
    me.leave();
}

/// The operation's own errors are told like everybody's: no exception may leave it.
MemberWork guarded(MemberWork work) {
    return [work = std::move(work)](Member& me) {
        try {
            work(me);
        } catch (const std::exception& error) {
            me.error = error.what();
        }
    };
}

int dead_stage(const weir::DomainNames& names, const Facts& facts) {
    return RegistryLook(names).is_alive(facts.dead_slot, facts.dead_incarnation) ? 0 : 1;
}

DomainCase join_first_case() {
    DomainCase it;
    it.name = "domain_join_first";
    it.what = "a process joins a domain that is not there, and makes it";
    it.has_keeper = false;
    it.is_alone = true;
    it.operation = [](Member& me) { me.join(); };
    it.afterwards = use_and_leave;
    it.stage = [](const weir::DomainNames& names, const Facts&) {
        const RegistryLook look(names);
        return look.is_there() ? 1 + look.alive_count() : 0;
    };
    it.stages = 3;
    return it;
}

DomainCase join_case() {
    DomainCase it;
    it.name = "domain_join";
    it.what = "a process joins a domain that has a member";
    it.operation = [](Member& me) { me.join(); };
    it.afterwards = use_and_leave;
    it.stage = [](const weir::DomainNames& names, const Facts&) { return RegistryLook(names).alive_count() - 1; };
    it.stages = 2;
    return it;
}

DomainCase join_reaps_case() {
    DomainCase it;
    it.name = "domain_join_reaps";
    it.what = "a process joins and reaps one who died with buffers, a message and a private segment";
    it.has_dead = true;
    it.dead_prepare = become_burden;
    it.operation = [](Member& me) { me.join(); };
    it.afterwards = use_and_leave;
    it.stage = dead_stage;
    it.stages = 2;
    return it;
}

DomainCase leave_case() {
    DomainCase it;
    it.name = "domain_leave";
    it.what = "a process leaves that holds buffers and has a message under way; another stays";
    it.prepare = [](Member& me) {
        join_only(me);
        me.hold_two();
        me.push_old(4);
    };
    it.operation = [](Member& me) { me.leave(); };
    it.stage = [](const weir::DomainNames& names, const Facts& facts) {
        return RegistryLook(names).is_alive(facts.victim_slot, facts.victim_incarnation) ? 0 : 1;
    };
    it.stages = 2;
    return it;
}

DomainCase leave_last_case() {
    DomainCase it;
    it.name = "domain_leave_last";
    it.what = "the last member leaves, and takes the names away";
    it.has_keeper = false;
    it.is_alone = true;
    it.prepare = [](Member& me) {
        join_only(me);
        me.set_up();
    };
    it.operation = [](Member& me) { me.leave(); };
    it.stage = [](const weir::DomainNames& names, const Facts& facts) {
        const RegistryLook look(names);
        return look.is_alive(facts.victim_slot, facts.victim_incarnation) ? 0 : look.is_there() ? 1 : 2;
    };
    it.stages = 3;
    return it;
}

DomainCase create_pool_case() {
    DomainCase it;
    it.name = "domain_create_pool";
    it.what = "a pool is made";
    it.prepare = join_only;
    it.operation = [](Member& me) { me.pool.emplace(me.domain->pool("made", domain_pool)); };
    it.afterwards = use_and_leave;
    it.stage = [](const weir::DomainNames& names, const Facts&) { return RegistryLook(names).pool_count() - 1; };
    it.stages = 2;
    return it;
}

DomainCase open_pool_case() {
    DomainCase it;
    it.name = "domain_open_pool";
    it.what = "a pool is opened that another made";
    it.prepare = join_only;
    it.operation = [](Member& me) { me.pool.emplace(me.domain->pool("old")); };
    it.afterwards = use_and_leave;
    return it;
}

DomainCase create_port_case() {
    DomainCase it;
    it.name = "domain_create_port";
    it.what = "a port is made";
    it.prepare = join_only;
    it.operation = [](Member& me) { me.port.emplace(me.domain->port("made", domain_port)); };
    it.afterwards = use_and_leave;
    it.stage = [](const weir::DomainNames& names, const Facts&) { return RegistryLook(names).port_count() - 1; };
    it.stages = 2;
    return it;
}

DomainCase open_port_case() {
    DomainCase it;
    it.name = "domain_open_port";
    it.what = "a port is opened that another made";
    it.prepare = join_only;
    it.operation = [](Member& me) { me.port.emplace(me.domain->port("old")); };
    it.afterwards = use_and_leave;
    return it;
}

DomainCase publish_case() {
    DomainCase it;
    it.name = "publish";
    it.what = "a pool and a port are made, and another was faster with just these names";
    it.prepare = join_only;
    it.operation = [](Member& me) {
        me.pool.emplace(me.domain->pool("made", domain_pool));
        me.port.emplace(me.domain->port("made", domain_port));
    };
    it.afterwards = use_and_leave;
    it.is_overtaken = true;
    return it;
}

DomainCase reap_case() {
    DomainCase it;
    it.name = "domain_reap";
    it.what = "a member reaps one who died with buffers, a message and a private segment";
    it.has_dead = true;
    it.dead_prepare = become_burden;
    it.prepare = join_only;
    it.operation = [](Member& me) { me.reaped = me.domain->reap(); };
    it.afterwards = [](Member& me) {
        me.box.expect(!me.reaped.error, "reaping failed");
        use_and_leave(me);
    };
    it.stage = dead_stage;
    it.stages = 2;
    return it;
}

DomainCase reap_outside_case() {
    DomainCase it;
    it.name = "domain_reap_outside";
    it.what = "who is no member reaps one who died with buffers, a message and a private segment";
    it.has_dead = true;
    it.dead_prepare = become_burden;
    it.operation = [](Member& me) {
        try {
            me.reaped = weir::Domain::reap(me.name, {});
        } catch (const std::system_error& error) {
            // where the last member left meanwhile, there was nothing to reap
            if (error.code() != weir::errc::not_found) {
                throw;
            }
        }
    };
    it.afterwards = [](Member& me) { me.box.expect(!me.reaped.error, "reaping failed"); };
    it.stage = dead_stage;
    it.stages = 2;
    return it;
}

DomainCase reap_nobody_case() {
    DomainCase it;
    it.name = "domain_reap_nobody";
    it.what = "a member looks for the dead, and nobody is dead";
    it.prepare = join_only;
    it.operation = [](Member& me) { me.reaped = me.domain->reap(); };
    it.afterwards = [](Member& me) {
        me.box.expect(!me.reaped.error && me.reaped.ended_count == 0, "somebody was reaped who is not dead");
        use_and_leave(me);
    };
    return it;
}

DomainCase recheck_case() {
    DomainCase it;
    it.name = "recheck";
    it.what = "a consumer waits for the only producer, which has died";
    it.has_dead = true;
    it.keeper_prepare = [](Member& me) { static_cast<void>(me.domain->port("lone", domain_port)); };
    it.dead_prepare = [](Member& me) {
        become_burden(me);
        me.producer.emplace(me.domain->producer("lone", domain_port));
    };
    it.prepare = [](Member& me) {
        join_only(me);
        me.consumer.emplace(me.domain->consumer("lone", domain_port, {.spin_count = 0}));
    };
    it.operation = [](Member& me) { me.result = !me.consumer->pop(); };
    it.afterwards = [](Member& me) {
        me.box.expect(me.result && me.consumer->stream_end() != weir::StreamEnd::open,
                      "who waited did not come to the end of the stream");
        use_and_leave(me);
    };
    it.stage = dead_stage;
    it.stages = 2;
    return it;
}

DomainCase remove_case() {
    DomainCase it;
    it.name = "domain_remove";
    it.what = "the names of a domain are removed whose members all died";
    it.has_keeper = false;
    it.has_dead = true;
    it.is_alone = true;
    it.is_removal = true;
    it.dead_prepare = [](Member& me) {
        me.join();
        me.set_up();
        me.leave_draft();
    };
    it.operation = [](Member& me) {
        try {
            me.result = weir::Domain::remove(me.name);
        } catch (const std::system_error& error) {
            // who joined beside it is in the way, by right
            if (error.code() != weir::errc::busy || me.facts.newcomer_has_joined == 0) {
                throw;
            }
        }
    };
    it.stage = [](const weir::DomainNames& names, const Facts&) { return RegistryLook(names).is_there() ? 0 : 1; };
    it.stages = 2;
    return it;
}

DomainCase remove_forced_case() {
    DomainCase it;
    it.name = "domain_remove_forced";
    it.what = "the names of a domain are removed that has a member, which goes on";
    it.is_alone = true;
    it.is_removal = true;
    it.operation = [](Member& me) {
        weir::Domain::RemoveOptions options;
        options.force = true;
        me.result = weir::Domain::remove(me.name, options);
    };
    it.stage = [](const weir::DomainNames& names, const Facts&) { return RegistryLook(names).is_there() ? 0 : 1; };
    it.stages = 2;
    return it;
}

} // namespace

const std::vector<std::string>& domain_pair_operations() {
    static const std::vector<std::string> names{"domain_join",        "domain_join_reaps", "domain_leave",
                                                "domain_create_pool", "domain_open_pool",  "domain_create_port",
                                                "domain_open_port",   "domain_reap"};
    return names;
}

std::vector<DomainCase> domain_cases() {
    std::vector<DomainCase> all{join_first_case(),  join_case(),        join_reaps_case(), leave_case(),
                                leave_last_case(),  create_pool_case(), open_pool_case(),  create_port_case(),
                                open_port_case(),   publish_case(),     reap_case(),       reap_outside_case(),
                                reap_nobody_case(), recheck_case(),     remove_case(),     remove_forced_case()};
    for (DomainCase& one : all) {
        one.operation = guarded(one.operation);
    }
    return all;
}

} // namespace crash
