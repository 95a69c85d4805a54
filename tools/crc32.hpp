// CRC-32 as in gzip and Ethernet, eight bytes a step: what the demo's workers compute over each buffer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace weir::tool {

namespace detail {

/// [0] advances a checksum by one byte, [k] by one byte that k further bytes follow.
inline constexpr auto crc32_tables = [] {
    std::array<std::array<std::uint32_t, 256>, 8> tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t rest = byte;
        for (int bit = 0; bit < 8; ++bit) {
            rest = rest >> 1 ^ ((rest & 1) != 0 ? 0xedb88320U : 0U);
        }
        tables[0][byte] = rest;
    }
    for (std::size_t following = 1; following < tables.size(); ++following) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = tables[following - 1][byte];
            tables[following][byte] = before >> 8 ^ tables[0][before & 255];
        }
    }
    return tables;
}();

} // namespace detail

[[nodiscard]] inline std::uint32_t crc32(std::span<const std::byte> bytes) noexcept {
    const auto& tables = detail::crc32_tables;
    std::uint32_t sum = 0xffffffff;
    for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
        std::uint32_t next = 0;
        for (std::size_t place = 0; place < 4; ++place) {
            const auto mixed = std::to_integer<std::uint32_t>(bytes[place]) ^ (sum >> 8 * place & 255);
            next ^= tables[7 - place][mixed];
        }
        for (std::size_t place = 4; place < 8; ++place) {
            next ^= tables[7 - place][std::to_integer<std::size_t>(bytes[place])];
        }
        sum = next;
    }
    for (const std::byte byte : bytes) {
        sum = sum >> 8 ^ tables[0][(sum ^ std::to_integer<std::uint32_t>(byte)) & 255];
    }
    return ~sum;
}

} // namespace weir::tool
