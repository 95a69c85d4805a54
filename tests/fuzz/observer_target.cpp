// A domain's files looked at from outside, as weir check and weir stat do, live and as copies, while they change.
#include "shared_files.hpp"

namespace {

/// Whether all was seen, and is sound.
bool look(fuzz::Input& input, weir::DomainObserver& observer, bool is_hostile) {
    const weir::DomainSnapshot seen = observer.look(input.flag());
    fuzz::expect(is_hostile || (seen.notes.empty() && seen.members.size() == 1 && seen.pools.size() == 1 &&
                                seen.ports.size() == 2 && seen.ports[0].depth == 1),
                 "all that there is is seen");
    weir::DomainCensus census;
    const std::vector<std::string> live = observer.check(&census, weir::CheckMode::live);
    const std::vector<std::string> quiet = observer.check(&census, weir::CheckMode::quiet);
    fuzz::expect(live.size() <= quiet.size(), "what is broken in a live domain is in a quiet one");
    if (!is_hostile) {
        fuzz::expect_sound(quiet);
    }
    return seen.notes.empty() && quiet.empty() && observer.is_current();
}

void run(fuzz::Input& input, const fuzz::DomainFiles& files, bool& is_hostile) {
    weir::DomainObserver::Options options;
    if (input.flag()) {
        options.folder += "/"; // any other folder is one with copies
    }
    const std::size_t before_count = input.below(8);
    for (std::size_t number = 0; number < before_count; ++number) {
        fuzz::write_hostile(input, files.regions());
        is_hostile = true;
    }
    weir::DomainObserver observer(files.domain(), options);
    while (!input.is_empty()) {
        if (input.below(4) == 0) {
            static_cast<void>(look(input, observer, is_hostile));
        } else {
            fuzz::write_hostile(input, files.regions());
            is_hostile = true;
        }
    }
    if (look(input, observer, is_hostile)) {
        fuzz::succeeded();
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static fuzz::DomainFiles files;
    files.reset();
    const fuzz::OpenFiles open_files;
    fuzz::Input input(data, size);
    fuzz::run_target([&](bool& is_hostile) { run(input, files, is_hostile); }, "what was made can be opened");
    return 0;
}
