// A segment's file of each kind, opened as it is or as something else, its contents looked at as what its kind says.
#include "shared_files.hpp"

#include <cstddef>
#include <optional>

namespace {

using weir::SegmentKind;

constexpr weir::BufferPoolOptions pool_options{.buffer_bytes = 64, .buffer_count = 2};
constexpr weir::PortOptions port_options{.capacity = 2};
constexpr std::uint64_t parameters_hash = 4711;

struct Files {
    Files() {
        fuzz::remove_leftovers();
        make();
    }
    ~Files() { remove(); }
    Files(const Files&) = delete;
    Files& operator=(const Files&) = delete;

    void make() {
        for (unsigned kind = 0; kind < 5; ++kind) {
            weir::SegmentOptions options;
            options.kind = static_cast<SegmentKind>(kind);
            options.parameters_hash = parameters_hash;
            options.label = "label";
            const std::size_t bytes[] = {1, weir::Registry::bytes(), weir::BufferPool::control_bytes(pool_options),
                                         weir::BufferPool::payload_bytes(pool_options),
                                         weir::Port::bytes(port_options)};
            all.emplace_back("weir-" + fuzz::own_name() + "." + std::to_string(kind), bytes[kind], options);
        }
        weir::Registry::format(all[1].bytes(), 4711);
        weir::BufferPool::format(all[2].bytes(), pool_options);
        weir::Port::format(all[4].bytes(), port_options);
        for (fuzz::SharedFile& file : all) {
            file.keep();
        }
    }
    void remove() {
        for (const fuzz::SharedFile& file : all) {
            weir::Segment::remove(file.name());
        }
        all.clear();
    }

    std::vector<fuzz::SharedFile> all;
};

/// Views the segment as what it says it is, and returns what a check finds.
std::vector<std::string> check(const weir::Segment& segment, const weir::Membership& nobody) {
    switch (segment.kind()) {
    case SegmentKind::registry: {
        const weir::Registry registry(segment.bytes());
        std::vector<std::string> broken = registry.check();
        for (unsigned slot = 0; slot < weir::process_slot_count; slot += 51) {
            static_cast<void>(registry.process(static_cast<std::uint8_t>(slot)));
        }
        return broken;
    }
    case SegmentKind::pool_control:
        return weir::BufferPool(std::make_shared<weir::BufferPoolView>(segment.bytes(), nobody)).check(&nobody.table);
    case SegmentKind::port: return weir::Port(segment.bytes(), nobody, {}).check();
    default: return {};
    }
}

void run(fuzz::Input& input, const fuzz::SharedFile& file, SegmentKind kind, bool& is_hostile) {
    alignas(weir::cache_line_bytes) static std::byte table_memory[weir::ProcessTable::bytes()];
    const weir::Membership nobody{weir::ProcessTable(table_memory), 0, 0};
    const std::span<std::byte> regions[] = {file.whole().first(64), file.whole().first(64),
                                            file.whole().first(weir::segment_header_bytes), file.bytes().first(256),
                                            file.bytes()};
    weir::SegmentExpectation expected;
    expected.kind = kind;
    const std::uint8_t wish = input.byte();
    expected.access = (wish & 1) != 0 ? weir::SegmentAccess::read_only : weir::SegmentAccess::read_write;
    if ((wish & 2) != 0) {
        expected.kind = std::nullopt;
    }
    if ((wish & 4) != 0) {
        expected.parameters_hash = parameters_hash;
    }
    if ((wish & 8) != 0) {
        expected.owner_user = geteuid();
    }
    expected.prefault = (wish & 16) != 0;
    if ((wish & 32) != 0) {
        expected.access = weir::SegmentAccess::read_only;
        expected.copies_folder = weir::shared_memory_folder;
    }
    if ((wish & 192) == 192) { // cut short before it is opened, and made as long again: a hole
        const std::size_t bytes = input.read<std::uint32_t>() % (file.whole().size() + 1);
        fuzz::expect(truncate(weir::segment_path(file.name()).c_str(), static_cast<off_t>(bytes)) == 0, "truncate");
        if (input.flag()) {
            fuzz::expect(truncate(weir::segment_path(file.name()).c_str(), static_cast<off_t>(file.whole().size())) ==
                             0,
                         "truncate");
        }
        is_hostile = true;
    } else {
        for (std::size_t number = input.below(8); number > 0; --number) {
            fuzz::write_hostile(input, regions);
            is_hostile = true;
        }
    }
    const weir::Segment segment = weir::Segment::open(file.name(), expected);
    fuzz::expect(!expected.kind || segment.kind() == *expected.kind, "a segment is of the kind that was wanted");
    fuzz::expect(segment.label().size() < sizeof weir::SegmentHeader::label + 1, "a label ends with its field");
    fuzz::expect(segment.bytes().size() + weir::segment_header_bytes <= file.whole().size(),
                 "no more is mapped than there is");
    fuzz::expect(weir::name_of(segment.kind()).data() != nullptr, "each kind has a name");
    std::vector<std::string> broken = check(segment, nobody);
    while (!input.is_empty() && (wish & 192) != 192) { // and it changes while it is mapped
        fuzz::write_hostile(input, regions);
        is_hostile = true;
        broken = check(segment, nobody);
    }
    if (!is_hostile) {
        fuzz::expect_sound(broken);
    }
    if (broken.empty()) {
        fuzz::succeeded();
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static Files files;
    fuzz::Input input(data, size);
    const std::size_t kind = input.below(files.all.size());
    if (!files.all[kind].is_there()) { // the last input cut it short
        files.remove();
        files.make();
    }
    files.all[kind].reset();
    const fuzz::OpenFiles open_files;
    fuzz::run_target([&](bool& is_hostile) { run(input, files.all[kind], static_cast<SegmentKind>(kind), is_hostile); },
                     "what was made can be opened");
    return 0;
}
