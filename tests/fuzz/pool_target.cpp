// Buffer pools: opened on hostile control memory, and used while it changes.
#include "small_domain.hpp"

namespace {

void run(fuzz::Input& input, const fuzz::SmallDomain& memory, bool& is_hostile) {
    weir::ProcessTable table = memory.table();
    const weir::Membership members[] = {table.join(), table.join()};
    const std::size_t before_count = input.below(4);
    for (std::size_t number = 0; number < before_count; ++number) {
        fuzz::write_hostile(input, memory.regions());
        is_hostile = true;
    }
    std::vector<weir::BufferPool> pools;
    for (std::size_t number = 0; number < 2 * fuzz::pool_count; ++number) {
        const std::size_t place = number % fuzz::pool_count;
        pools.emplace_back(memory.control(place), memory.payload(place), members[number / fuzz::pool_count]);
    }
    std::vector<weir::BufferPtr> held;
    const auto chosen = [&]() -> weir::BufferPtr& { return held[input.below(held.size())]; };
    constexpr std::size_t held_max = 64;
    while (!input.is_empty()) {
        weir::BufferPool& pool = pools[input.below(pools.size())];
        const std::size_t what = input.below(14);
        if (what >= 8 && held.empty()) {
            continue;
        }
        switch (what) {
        case 0:
        case 1:
        case 2:
            fuzz::write_hostile(input, memory.regions());
            is_hostile = true;
            break;
        case 3:
        case 4:
        case 5: {
            weir::WaitOptions at_once;
            at_once.spin_count = 0;
            weir::BufferPtr buffer = what == 3   ? pool.try_allocate()
                                     : what == 4 ? pool.try_allocate_by_scan()
                                                 : pool.allocate_until(0, at_once);
            if (buffer && held.size() < held_max) {
                fuzz::use(memory, buffer);
                held.push_back(std::move(buffer));
            }
            break;
        }
        case 6: {
            const std::uint32_t count = pool.free_count();
            fuzz::expect(count <= pool.buffer_count(), "there are not more free buffers than buffers");
            break;
        }
        case 7: {
            const std::vector<std::string> broken = pool.check(input.flag() ? &table : nullptr);
            if (!is_hostile) {
                fuzz::expect_sound(broken);
            }
            break;
        }
        case 8:
        case 9: {
            weir::BufferPtr& buffer = chosen();
            std::swap(buffer, held.back());
            held.pop_back();
            break;
        }
        case 10:
        case 11: {
            weir::BufferPtr other = what == 10 ? chosen().clone() : weir::BufferPtr(chosen());
            if (other && held.size() < held_max) {
                held.push_back(std::move(other));
            }
            break;
        }
        case 12: chosen().resize(input.byte() % 65); break;
        default: fuzz::use(memory, chosen());
        }
    }
    held.clear();
    for (std::size_t number = 0; number < pools.size(); ++number) {
        const std::uint32_t count = weir::free_held(pools[number].view(), members[number / fuzz::pool_count]);
        fuzz::expect(is_hostile || count == 0, "what all handles have dropped is held by nobody");
    }
    bool is_sound = true;
    for (const weir::BufferPool& pool : pools) {
        is_sound = is_sound && pool.check(&table).empty() && pool.free_count() == pool.buffer_count();
    }
    fuzz::expect(is_sound || is_hostile, "all buffers are free where nothing hostile was written");
    if (is_sound) {
        fuzz::succeeded();
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static fuzz::SmallDomain memory;
    memory.reset();
    fuzz::Input input(data, size);
    fuzz::run_target([&](bool& is_hostile) { run(input, memory, is_hostile); }, "what was formatted can be opened");
    return 0;
}
