// SHA-256 as FIPS 180-4 has it, in plain C++: the demo compares files with it, and nobody has to install a
// cryptography library for that. It is as fast as portable code gets and keeps no secrets; do not sign with it.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

namespace weir::tool {

using Sha256Digest = std::array<std::uint8_t, 32>;

class Sha256 {
public:
    void update(std::span<const std::byte> bytes) noexcept {
        byte_count_ += bytes.size();
        if (pending_count_ > 0) {
            const std::size_t count = std::min(bytes.size(), block_bytes - pending_count_);
            std::memcpy(pending_.data() + pending_count_, bytes.data(), count);
            pending_count_ += count;
            bytes = bytes.subspan(count);
            if (pending_count_ < block_bytes) {
                return;
            }
            compress(pending_.data());
            pending_count_ = 0;
        }
        for (; bytes.size() >= block_bytes; bytes = bytes.subspan(block_bytes)) {
            compress(bytes.data());
        }
        if (!bytes.empty()) {
            std::memcpy(pending_.data(), bytes.data(), bytes.size());
            pending_count_ = bytes.size();
        }
    }

    /// The digest of all that update() was given; after it, the object is used up.
    [[nodiscard]] Sha256Digest finish() noexcept {
        const std::uint64_t bit_count = byte_count_ * 8;
        std::array<std::byte, 2 * block_bytes> tail{std::byte{0x80}};
        // The padding is a 1 bit, zeros, and the length in the last 8 bytes of a block.
        const std::size_t zeros_end = (pending_count_ < block_bytes - 8 ? 1 : 2) * block_bytes - 8;
        const std::size_t tail_bytes = zeros_end - pending_count_ + 8;
        for (std::size_t place = 0; place < 8; ++place) {
            tail[tail_bytes - 1 - place] = static_cast<std::byte>(bit_count >> 8 * place);
        }
        update(std::span(tail).first(tail_bytes));
        Sha256Digest digest{};
        for (std::size_t place = 0; place < digest.size(); ++place) {
            digest[place] = static_cast<std::uint8_t>(state_[place / 4] >> (24 - 8 * (place % 4)));
        }
        return digest;
    }

private:
    static constexpr std::size_t block_bytes = 64;

    static constexpr std::array<std::uint32_t, 64> round_constants{
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

    static void mix(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t& d, std::uint32_t e,
                    std::uint32_t f, std::uint32_t g, std::uint32_t& h, std::uint32_t word) noexcept {
        const std::uint32_t first =
            h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + (g ^ (e & (f ^ g))) + word;
        d += first;
        h = first + (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) | (c & (a | b)));
    }

    void compress(const std::byte* block) noexcept {
        std::array<std::uint32_t, 64> schedule;
        for (std::size_t round = 0; round < 16; ++round) {
            const std::byte* word = block + 4 * round;
            schedule[round] = std::to_integer<std::uint32_t>(word[0]) << 24 |
                              std::to_integer<std::uint32_t>(word[1]) << 16 |
                              std::to_integer<std::uint32_t>(word[2]) << 8 | std::to_integer<std::uint32_t>(word[3]);
        }
        for (std::size_t round = 16; round < 64; ++round) {
            const std::uint32_t early = schedule[round - 15];
            const std::uint32_t late = schedule[round - 2];
            schedule[round] = schedule[round - 16] + schedule[round - 7] +
                              (std::rotr(early, 7) ^ std::rotr(early, 18) ^ early >> 3) +
                              (std::rotr(late, 17) ^ std::rotr(late, 19) ^ late >> 10);
        }
        auto [a, b, c, d, e, f, g, h] = state_;
        // The eight variables change places in every round; written out for eight rounds, they need not move.
        for (std::size_t round = 0; round < 64; round += 8) {
            const std::uint32_t* keys = round_constants.data() + round;
            const std::uint32_t* words = schedule.data() + round;
            mix(a, b, c, d, e, f, g, h, keys[0] + words[0]);
            mix(h, a, b, c, d, e, f, g, keys[1] + words[1]);
            mix(g, h, a, b, c, d, e, f, keys[2] + words[2]);
            mix(f, g, h, a, b, c, d, e, keys[3] + words[3]);
            mix(e, f, g, h, a, b, c, d, keys[4] + words[4]);
            mix(d, e, f, g, h, a, b, c, keys[5] + words[5]);
            mix(c, d, e, f, g, h, a, b, keys[6] + words[6]);
            mix(b, c, d, e, f, g, h, a, keys[7] + words[7]);
        }
        const std::array<std::uint32_t, 8> mixed{a, b, c, d, e, f, g, h};
        for (std::size_t place = 0; place < state_.size(); ++place) {
            state_[place] += mixed[place];
        }
    }

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::byte, block_bytes> pending_{};
    std::size_t pending_count_ = 0;
    std::uint64_t byte_count_ = 0;
};

[[nodiscard]] inline Sha256Digest sha256(std::span<const std::byte> bytes) noexcept {
    Sha256 hash;
    hash.update(bytes);
    return hash.finish();
}

/// As sha256sum prints it.
[[nodiscard]] inline std::string hexadecimal(const Sha256Digest& digest) {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const std::uint8_t byte : digest) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

} // namespace weir::tool
