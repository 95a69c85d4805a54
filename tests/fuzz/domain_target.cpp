// A domain that somebody joins whose files are hostile: pools and ports opened by name, the dead reaped, all left again.
#include "shared_files.hpp"

namespace {

constexpr weir::WaitOptions at_once{.spin_count = 0};

void use(const weir::BufferPtr& buffer) {
    for (std::byte& byte : buffer.bytes()) {
        byte ^= std::byte{1};
    }
}

std::uint32_t drain(weir::Domain& domain, const char* name) {
    weir::Consumer consumer = domain.consumer(name, {}, at_once);
    std::uint32_t count = 0;
    while (const weir::BufferPtr buffer = consumer.try_pop()) {
        use(buffer);
        fuzz::expect(++count <= consumer.view()->options().capacity,
                     "a port that nobody fills has no more messages than cells");
    }
    return count;
}

void step(fuzz::Input& input, weir::Domain& domain, bool is_hostile) {
    const char* const port = fuzz::port_names[input.below(2)];
    switch (input.below(8)) {
    case 0: drain(domain, port); break;
    case 1: {
        weir::BufferPool pool = domain.pool(fuzz::pool_name);
        weir::Producer producer = domain.producer(port, {}, at_once);
        for (std::size_t count = input.below(6); count > 0; --count) {
            weir::BufferPtr buffer = pool.try_allocate();
            if (buffer) {
                use(buffer);
            }
            if (producer.push_until(std::move(buffer), 0) != weir::PushResult::ok) {
                break;
            }
        }
        break;
    }
    case 2: {
        const weir::ReapReport report = domain.reap();
        fuzz::expect(is_hostile || !report.error, "the dead can be reaped where nothing hostile was written");
        break;
    }
    case 3: {
        const std::vector<std::string> broken =
            domain.check(nullptr, input.flag() ? weir::CheckMode::live : weir::CheckMode::quiet);
        if (!is_hostile) {
            fuzz::expect_sound(broken);
        }
        break;
    }
    case 4: static_cast<void>(domain.members()); break;
    case 5:
        static_cast<void>(domain.pool_names());
        static_cast<void>(domain.port_names());
        static_cast<void>(domain.notes());
        break;
    case 6: {
        const weir::Port claimed = domain.port(port);
        fuzz::expect(domain.try_claim(claimed), "nobody else claims ports here");
        domain.release_claim(claimed);
        break;
    }
    default: {
        const weir::BufferPtr buffer = domain.pools().try_allocate(input.below(65));
        if (buffer) {
            use(buffer);
        }
    }
    }
}

void run(fuzz::Input& input, const fuzz::DomainFiles& files, bool& is_hostile) {
    const std::size_t before_count = input.below(8);
    for (std::size_t number = 0; number < before_count; ++number) {
        fuzz::write_hostile(input, files.regions());
        is_hostile = true;
    }
    if (input.below(4) == 1) {
        const weir::ReapReport report = weir::Domain::reap(files.domain(), {});
        fuzz::expect(is_hostile || report.ended_count == 1, "the dead is reaped from outside");
    }
    weir::JoinOptions options;
    options.create = false;
    options.timeout = std::chrono::seconds(0);
    weir::Domain domain = weir::Domain::join(files.domain(), options);
    while (!input.is_empty()) {
        if (input.flag()) {
            fuzz::write_hostile(input, files.regions());
            is_hostile = true;
        } else {
            const bool was_fine = fuzz::attempt([&] { step(input, domain, is_hostile); });
            fuzz::expect(was_fine || is_hostile, "nothing fails where nothing hostile was written");
        }
    }
    const std::uint32_t popped_count = drain(domain, fuzz::port_names[0]) + drain(domain, fuzz::port_names[1]);
    weir::DomainCensus census;
    const std::vector<std::string> broken = domain.check(&census);
    if (!is_hostile) {
        fuzz::expect_sound(broken);
        fuzz::expect(census.held_reference_count == 0 && census.queued_reference_count == 0,
                     "all buffers are free at the end");
    }
    domain.leave();
    if (broken.empty() && popped_count > 0) {
        fuzz::succeeded();
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static fuzz::DomainFiles files;
    files.reset();
    const fuzz::OpenFiles open_files;
    fuzz::Input input(data, size);
    fuzz::run_target([&](bool& is_hostile) { run(input, files, is_hostile); }, "what was made can be joined");
    return 0;
}
