// What the word count's programs have in common.
#pragma once

#include "arguments.hpp"

#include <weir/weir.hpp>

#include <cstddef>
#include <cstdint>

namespace word_count {

/// What the text is read in. A chunk is one of these, and the beginning of its first word from the one before.
inline constexpr weir::PoolOptions read_options{.buffer_bytes = 1 << 16, .buffer_count = 16};
inline constexpr weir::PoolOptions chunk_options{.buffer_bytes = 1 << 17, .buffer_count = 64};

/// A port has room for all chunks that there are, and is filled also while nobody is there who takes them.
inline constexpr weir::PortOptions port_options{.capacity = 64, .when_unconsumed = weir::WhenUnconsumed::fill};

/// A chunk's tag is its number, and this where it begins in the middle of a word (which is longer than a chunk then).
inline constexpr std::uint32_t within_word = std::uint32_t{1} << 31;

/// What was counted in a chunk; it goes on in the chunk's buffer, in place of the text.
struct Counts {
    std::uint64_t lines = 0;
    std::uint64_t words = 0;
    std::uint64_t bytes = 0;
};

/// White space as the C locale has it.
[[nodiscard]] constexpr bool is_space(std::byte byte) noexcept {
    return byte == std::byte{' '} || (byte >= std::byte{'\t'} && byte <= std::byte{'\r'});
}

} // namespace word_count
