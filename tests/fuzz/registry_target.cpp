// A registry on hostile memory: process table, records, directories; and the names of files that it leads to.
#include "fuzzing.hpp"

#include <cstddef>
#include <string_view>

namespace {

/// Names come from whoever may write to /dev/shm.
void look_at_name(fuzz::Input& input) {
    const std::span<const std::uint8_t> raw = input.take(input.byte());
    std::string name(raw.begin(), raw.end());
    if (input.flag()) {
        name.insert(0, weir::DomainNames::common_prefix);
    }
    if (const std::optional<weir::DomainNames> names = weir::DomainNames::of(name)) {
        fuzz::expect(name.starts_with(names->prefix()), "a file's name begins with its domain's prefix");
        static_cast<void>(names->parse(name));
    }
    const weir::DomainNames fixed(1000, "camera");
    static_cast<void>(fixed.parse(name));
    name.insert(0, fixed.prefix());
    static_cast<void>(fixed.parse(name));
}

void look_at_directory(const weir::Registry& registry, weir::Directory directory, weir::SegmentKind kind) {
    const weir::DomainNames names(1000, "camera");
    for (unsigned place = 0; place < directory.size(); ++place) {
        const std::uint64_t word = directory.entry(place);
        if (word == 0) {
            break;
        }
        const weir::SegmentKey key = weir::SegmentKey::of(word);
        fuzz::expect(directory.lists(key), "a directory lists what its entries name");
        const std::string name = names.segment(registry.id(), key, kind);
        const std::optional<weir::DomainNames::Parsed> parsed = names.parse(name);
        fuzz::expect(parsed && parsed->key == key && parsed->registry_id == registry.id(),
                     "a segment's name says what it was made of");
        static_cast<void>(weir::segment_path(name));
    }
}

void run(fuzz::Input& input, std::span<std::byte> memory, bool& is_hostile) {
    using State = weir::RegistryState;
    const auto region = [&](std::size_t begin, std::size_t bytes) { return memory.subspan(begin, bytes); };
    const std::span<std::byte> regions[] = {
        region(0, offsetof(State, processes)),
        region(offsetof(State, processes), 64),
        region(offsetof(State, processes), 2048),
        region(offsetof(State, records), 4 * sizeof(weir::MemberRecord)),
        region(offsetof(State, pools), 64),
        region(offsetof(State, ports), 64),
        region(offsetof(State, pools), sizeof(State::pools)),
        memory,
    };
    const std::size_t before_count = input.below(4);
    for (std::size_t number = 0; number < before_count; ++number) {
        fuzz::write_hostile(input, regions);
        is_hostile = true;
    }
    weir::Registry registry(input.flag() ? memory
                                         : memory.first(memory.size() - weir::cache_line_bytes * input.below(2)));
    weir::ProcessTable& table = registry.processes();
    std::vector<weir::Membership> members;
    while (!input.is_empty()) {
        switch (input.below(12)) {
        case 0:
        case 1:
        case 2:
            fuzz::write_hostile(input, regions);
            is_hostile = true;
            break;
        case 3:
            fuzz::attempt([&] {
                const weir::Membership member =
                    input.flag() ? table.join() : table.try_join(input.byte()).value_or(table.join());
                fuzz::expect(is_hostile || member.is_alive(), "who has joined is alive");
                members.push_back(member);
            });
            break;
        case 4:
            if (!members.empty()) {
                const weir::Membership member = members.back();
                members.pop_back();
                const bool has_ended = table.end(member.slot, member.incarnation);
                fuzz::expect(is_hostile || has_ended, "a membership ends once");
                fuzz::expect(!has_ended || !member.is_alive(), "whose membership has ended is not alive");
            }
            break;
        case 5: {
            const weir::ProcessInfo process = registry.process(input.byte());
            fuzz::expect(process.name.size() <= sizeof weir::MemberRecord::name, "a name ends with its record");
            for (const char letter : process.name) {
                fuzz::expect(letter >= ' ' && letter <= '~', "a name can be printed");
            }
            break;
        }
        case 6: {
            const weir::SegmentKey key{input.byte(), input.read<std::uint32_t>() & weir::SegmentKey::incarnation_mask,
                                       static_cast<std::uint16_t>(input.read<std::uint16_t>() | 1)};
            weir::Directory directory = input.flag() ? registry.pools() : registry.ports();
            for (unsigned place = 0; place < directory.size(); ++place) {
                if (directory.publish(place, key.word(input.read<std::uint16_t>()))) {
                    break;
                }
            }
            break;
        }
        case 7: look_at_directory(registry, registry.pools(), weir::SegmentKind::pool_control); break;
        case 8: look_at_directory(registry, registry.ports(), weir::SegmentKind::port); break;
        case 9: {
            const auto now_ns = static_cast<std::int64_t>(input.read<std::uint64_t>() >> 1);
            if (registry.take_check(now_ns, 1'000'000) && input.flag()) {
                registry.give_back_check(now_ns, 1'000'000);
            }
            registry.keep();
            fuzz::expect(registry.is_kept(), "what is kept is kept");
            break;
        }
        case 10: look_at_name(input); break;
        default: {
            const std::vector<std::string> broken = registry.check();
            if (!is_hostile) {
                fuzz::expect_sound(broken);
                fuzz::expect_sound(table.check());
            }
        }
        }
    }
    look_at_directory(registry, registry.pools(), weir::SegmentKind::pool_payload);
    const bool is_sound = registry.check().empty() && table.check().empty();
    fuzz::expect(is_sound || is_hostile, "a registry is sound where nothing hostile was written");
    if (is_sound && registry.ports().entry(0) != 0) {
        fuzz::succeeded();
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static fuzz::Memory memory = [] {
        fuzz::Memory made(weir::Registry::bytes());
        weir::Registry::format(made.span(), 4711);
        made.keep();
        return made;
    }();
    memory.reset();
    fuzz::Input input(data, size);
    bool is_hostile = false;
    fuzz::attempt([&] { run(input, memory.span(), is_hostile); });
    return 0;
}
