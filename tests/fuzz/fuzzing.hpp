// What the fuzz targets share.
//
// An input is a program: each byte that a target takes from it chooses what comes next, an operation of the library or a
// hostile write into the memory that it works on. So a mutated input gets as deep as its parent, and what another process
// may write at any time is written between any two operations. What is left at the input's end reads as 0.
//
// The library has to answer with values and errors. AddressSanitizer, UndefinedBehaviorSanitizer and the assertions see
// what else it does; a target adds what it can tell by itself (expect()): above all that nothing is wrong where nothing
// hostile was written.
#pragma once

#include <weir/weir.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fuzz {

/// How many inputs came to the last line of the target's success path; replay.cpp wants one at least.
inline std::uint64_t success_count = 0;
inline void succeeded() noexcept {
    ++success_count;
}

/// Ends the run as a crash, which keeps the input.
inline void expect(bool is_so, const char* what) noexcept {
    if (!is_so) {
        std::fprintf(stderr, "fuzz: not so: %s\n", what);
        std::abort();
    }
}

inline void expect_sound(const std::vector<std::string>& broken) noexcept {
    for (const std::string& what : broken) {
        std::fprintf(stderr, "fuzz: broken: %s\n", what.c_str());
    }
    expect(broken.empty(), "a check() finds nothing where nothing hostile was written");
}

/// Calls what may fail with one of the library's errors, and with nothing else. False: it failed.
template <class Call>
bool attempt(Call&& call) {
    try {
        call();
        return true;
    } catch (const std::system_error& error) {
        expect(error.code().category() == weir::error_category(), error.what());
        return false;
    }
}

/// Runs a target's program, `run(is_hostile)`. What it opens first may fail only where something hostile was written before.
template <class Run>
void run_target(Run&& run, const char* what_can_be_opened) {
    bool is_hostile = false;
    const bool was_opened = attempt([&] { run(is_hostile); });
    expect(was_opened || is_hostile, what_can_be_opened);
}

class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) noexcept : rest_(data, size) {}

    [[nodiscard]] bool is_empty() const noexcept { return rest_.empty(); }
    [[nodiscard]] std::uint8_t byte() noexcept { return read<std::uint8_t>(); }
    [[nodiscard]] bool flag() noexcept { return (byte() & 1) != 0; }
    [[nodiscard]] std::size_t below(std::size_t end) noexcept { return byte() % end; }

    template <class Number>
    [[nodiscard]] Number read() noexcept {
        Number number = 0;
        const std::span<const std::uint8_t> taken = take(sizeof number);
        if (!taken.empty()) { // memcpy from nowhere is undefined
            std::memcpy(&number, taken.data(), taken.size());
        }
        return number;
    }
    [[nodiscard]] std::span<const std::uint8_t> take(std::size_t size_max) noexcept {
        const std::span<const std::uint8_t> taken = rest_.first(std::min(size_max, rest_.size()));
        rest_ = rest_.subspan(taken.size());
        return taken;
    }

private:
    std::span<const std::uint8_t> rest_;
};

/// What memory is set back to before each input. Most of it belongs to process slots that no target uses: that it stays as it
/// is, is only looked at once in a while.
class Fresh {
public:
    Fresh() = default;
    Fresh(std::span<const std::byte> memory, std::size_t quiet_begin, std::size_t quiet_bytes)
        : bytes_(memory.begin(), memory.end()), quiet_begin_(quiet_begin), quiet_bytes_(quiet_bytes) {}

    void restore(std::span<std::byte> memory) noexcept {
        const std::size_t quiet_end = quiet_begin_ + quiet_bytes_;
        std::memcpy(memory.data(), bytes_.data(), quiet_begin_);
        std::memcpy(memory.data() + quiet_end, bytes_.data() + quiet_end, bytes_.size() - quiet_end);
        if (++count_ % look_interval == 0) {
            expect(std::memcmp(memory.data() + quiet_begin_, bytes_.data() + quiet_begin_, quiet_bytes_) == 0,
                   "nothing is written into what belongs to other process slots");
        }
    }

private:
    static constexpr std::uint64_t look_interval = 1000;

    std::vector<std::byte> bytes_;
    std::size_t quiet_begin_ = 0;
    std::size_t quiet_bytes_ = 0;
    std::uint64_t count_ = 0;
};

/// Memory of exactly the size that was asked for, so that AddressSanitizer sees the first byte beyond it.
class Memory {
public:
    explicit Memory(std::size_t bytes) : begin_(new (alignment) std::byte[bytes]()), bytes_(bytes) { keep(); }

    [[nodiscard]] std::span<std::byte> span() const noexcept { return {begin_.get(), bytes_}; }
    /// What is in it now is what reset() makes of it.
    void keep(std::size_t quiet_begin = 0, std::size_t quiet_bytes = 0) {
        fresh_ = Fresh(span(), quiet_begin, quiet_bytes);
    }
    void reset() noexcept { fresh_.restore(span()); }

private:
    static constexpr std::align_val_t alignment{weir::cache_line_bytes};
    struct Delete {
        void operator()(std::byte* begin) const noexcept { operator delete[](begin, alignment); }
    };
    std::unique_ptr<std::byte[], Delete> begin_;
    std::size_t bytes_;
    Fresh fresh_;
};

/// Where a pool's control memory has the lanes of slot `slot` and later ones.
constexpr std::size_t lanes_offset(std::size_t slot) noexcept {
    constexpr std::size_t lane_bytes = 2 * weir::cache_line_bytes;
    constexpr std::size_t used_bytes = weir::process_slot_count * weir::FreeHints::lanes_per_slot / 8;
    return sizeof(weir::BufferPoolState) + used_bytes + slot * weir::FreeHints::lanes_per_slot * lane_bytes;
}

/// A reference word out of what is likely to be near one of the small domains' words.
inline std::uint64_t reference_word(Input& input) noexcept {
    const std::uint8_t what = input.byte();
    const std::uint8_t when = input.byte();
    const weir::Owner owner(what >> 3 & 3, when >> 4 & 3);
    const std::uint64_t before = std::uint64_t{when & 15U} << weir::reference_generation_shift;
    return weir::next_reference(before, static_cast<weir::ReferenceState>(what & 7), owner, what >> 5 & 3);
}

/// A ring's cell, likewise.
inline std::uint64_t ring_cell(Input& input) noexcept {
    const std::uint64_t turn = input.byte() & 15;
    const std::uint64_t buffer = input.byte() & 31;
    return turn << weir::ring_value_bits | buffer << 8 | input.byte();
}

/// A hostile write into one of the regions, of 8 bytes or more each: a word, some raw bytes, or a slight change.
inline void write_hostile(Input& input, std::span<const std::span<std::byte>> regions) noexcept {
    const std::span<std::byte> region = regions[input.below(regions.size())];
    const std::size_t how = input.below(9);
    const auto at = [&](std::size_t unit) noexcept {
        return region.data() + input.read<std::uint32_t>() % (region.size() / unit) * unit;
    };
    const auto store = [](std::byte* where, auto number) noexcept { std::memcpy(where, &number, sizeof number); };
    const auto load = [](const std::byte* where) noexcept {
        std::uint64_t number = 0;
        std::memcpy(&number, where, sizeof number);
        return number;
    };
    std::byte* const where = at(how == 0 ? 1 : how == 1 ? 4 : 8);
    switch (how) {
    case 0: store(where, input.byte()); break;
    case 1: store(where, input.read<std::uint32_t>()); break;
    case 2: store(where, input.read<std::uint64_t>()); break;
    case 3: store(where, load(where) + input.read<std::uint8_t>() - 128); break;
    case 4: store(where, load(where) ^ std::uint64_t{1} << input.below(64)); break;
    case 5: store(where, load(at(8))); break;
    case 6: store(where, reference_word(input)); break;
    case 7: store(where, ring_cell(input)); break;
    default:
        const auto room = static_cast<std::size_t>(region.data() + region.size() - where);
        const std::span<const std::uint8_t> raw = input.take(std::min<std::size_t>(input.byte(), room));
        if (!raw.empty()) {
            std::memcpy(where, raw.data(), raw.size());
        }
    }
}

} // namespace fuzz
