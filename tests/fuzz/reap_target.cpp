// What the dead leave, in every state that a kill can leave it in and in states that none can: reaped, and checked as
// weir check does, live and quiet.
#include "small_domain.hpp"

namespace {

/// What one process does, which dies at any time: as words in memory, without handles, whose destructors would tidy up.
class Victim {
public:
    Victim(const fuzz::SmallDomain& memory, const weir::Membership& membership) : member_(memory, membership) {}

    [[nodiscard]] const weir::Membership& membership() const noexcept { return member_.me; }

    void step(fuzz::Input& input) {
        weir::BufferPoolView& pool = member_.pool(input.below(fuzz::pool_count)).view();
        weir::PortView& port = *member_.ports[input.below(fuzz::port_count)].view();
        const auto index = static_cast<std::uint32_t>(input.below(pool.buffer_count()));
        switch (input.below(6)) {
        case 0: static_cast<void>(pool.try_take(index)); break;
        case 1: // in the middle of an allocation
            if (const std::uint64_t seen = weir::load_reference(pool.reference(index, 0)); weir::is_free(seen)) {
                static_cast<void>(weir::try_hold(pool.reference(index, 0), seen, pool.owner()));
            }
            break;
        case 2: // in the middle of a push
            if (pool.try_take(index)) {
                weir::set_queued(pool.reference(index, 0), pool.owner(), port.options().port_id);
            }
            break;
        case 3: // a whole push
            if (pool.try_take(index)) {
                std::uint64_t position = port.ring().tail_hint();
                bool looks_first = false;
                weir::PortView::Failure failure;
                static_cast<void>(port.enqueue(position, pool.reference(index, 0),
                                               weir::PortView::name_of(pool, index, 0), looks_first, failure, [] {}));
            }
            break;
        case 4: { // a pop, or the first half of one
            std::uint64_t position = port.ring().head_hint();
            std::uint64_t cell = 0;
            weir::PortView::Item item;
            if (port.ring().find_item(position, cell) == weir::RingStatus::ok && port.decode(cell, item)) {
                const std::uint64_t seen = weir::load_reference(item.word());
                if (item.is_queued_as(seen) && weir::try_claim(item.word(), seen, pool.owner()) && input.flag()) {
                    port.ring().clear(position, cell);
                }
            }
            break;
        }
        default: fuzz::attempt([&] { port.attach(input.flag() ? weir::PortEnd::producer : weir::PortEnd::consumer); });
        }
    }

private:
    fuzz::Member member_;
};

std::vector<std::string> check(const fuzz::Member& member, weir::CheckMode mode) {
    weir::DomainCensus census;
    std::vector<std::string> broken = weir::check_domain(member.me.table, member.buffers, member.ports, &census, mode);
    fuzz::expect(census.free_count <= fuzz::buffer_count, "there are not more free buffers than buffers");
    return broken;
}

void reap(const fuzz::Member& member, const weir::Membership& dead, bool is_hostile) {
    const weir::ReapResult first = weir::reap(dead, member.buffers, member.ports);
    fuzz::expect(is_hostile || !first.error, "the dead can be reaped where nothing hostile was written");
    const weir::ReapResult second = weir::reap(dead, member.buffers, member.ports);
    fuzz::expect(!first.ended_entry || (!second.ended_entry && second.freed_reference_count == 0),
                 "who was reaped is not reaped again");
}

void run(fuzz::Input& input, const fuzz::SmallDomain& memory, bool& is_hostile) {
    weir::ProcessTable table = memory.table();
    const weir::Membership memberships[] = {table.join(), table.join(), table.join()};
    const std::size_t before_count = input.below(4);
    for (std::size_t number = 0; number < before_count; ++number) {
        fuzz::write_hostile(input, memory.regions());
        is_hostile = true;
    }
    const fuzz::Member survivor(memory, memberships[0]);
    std::vector<Victim> victims;
    victims.emplace_back(memory, memberships[1]);
    victims.emplace_back(memory, memberships[2]);
    while (!input.is_empty()) {
        const std::size_t place = input.below(victims.size());
        switch (input.below(12)) {
        case 0:
        case 1:
        case 2:
            fuzz::write_hostile(input, memory.regions());
            is_hostile = true;
            break;
        case 3:
        case 4:
        case 5:
        case 6:
        case 7: victims[place].step(input); break;
        case 8: { // dies, is reaped, and the slot has another owner
            const weir::Membership dead = victims[place].membership();
            reap(survivor, dead, is_hostile);
            if (const std::optional<weir::Membership> next = table.try_join(dead.slot)) {
                if (fuzz::attempt([&] { victims.emplace_back(memory, *next); })) {
                    std::swap(victims[place], victims.back());
                    victims.pop_back();
                }
            }
            break;
        }
        case 9: {
            const weir::Port& port = survivor.ports[input.below(fuzz::port_count)];
            fuzz::attempt([&] { fuzz::drain(memory, port); });
            break;
        }
        case 10:
            static_cast<void>(weir::free_held(survivor.pool(input.below(fuzz::pool_count)).view(), survivor.me));
            break;
        default: {
            const std::vector<std::string> broken =
                check(survivor, input.flag() ? weir::CheckMode::live : weir::CheckMode::quiet);
            const std::vector<std::string> broken_live = check(survivor, weir::CheckMode::live);
            fuzz::expect(broken_live.size() <= broken.size(), "what is broken in a live domain is in a quiet one");
            if (!is_hostile) {
                fuzz::expect_sound(broken_live);
            }
        }
        }
    }
    for (unsigned slot = 1; slot <= 2; ++slot) {
        const weir::ProcessTable::Entry entry = table.entry(static_cast<std::uint8_t>(slot));
        if (entry.alive) {
            reap(survivor, {table, static_cast<std::uint8_t>(slot), entry.incarnation}, is_hostile);
        }
    }
    fuzz::end_well(memory, survivor, is_hostile, [&] { weir::leave(survivor.me, survivor.buffers, survivor.ports); });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static fuzz::SmallDomain memory;
    memory.reset();
    fuzz::Input input(data, size);
    fuzz::run_target([&](bool& is_hostile) { run(input, memory, is_hostile); }, "what was formatted can be opened");
    return 0;
}
