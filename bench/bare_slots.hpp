// bare_slots.hpp: the least that handing whole messages from one process to another takes: slots that are used in turn,
// each with a word that says whether it is full. It numbers nothing, counts nothing and survives no kill; it is what weir's
// ports are held against where payloads are written and read. A message of up to 56 bytes lies in its word's own cache
// line: that is the bare cache line; one who sleeps does so on a bare futex.
#pragma once

#include "harness.hpp"

#include <algorithm>
#include <span>

namespace bench {

/// Writes all of a message.
inline void write_words(std::span<std::byte> bytes, std::uint64_t word) noexcept {
    std::fill_n(reinterpret_cast<std::uint64_t*>(bytes.data()), bytes.size() / sizeof(word), word);
}
/// Reads all of a message.
[[nodiscard]] inline bool all_words_are(std::span<const std::byte> bytes, std::uint64_t word) noexcept {
    const auto* words = reinterpret_cast<const std::uint64_t*>(bytes.data());
    std::uint64_t difference = 0;
    for (std::size_t number = 0; number < bytes.size() / sizeof(word); ++number) {
        difference |= words[number] ^ word;
    }
    return difference == 0;
}

/// One process's view, as the sender or as the receiver. Zeroed memory is empty slots.
class BareSlots {
public:
    [[nodiscard]] static std::size_t bytes(std::size_t message_bytes, std::size_t slot_count) noexcept {
        return weir::cache_line_bytes + slot_count * stride(message_bytes);
    }

    /// With `sleeps` the receiver sleeps where there is nothing.
    BareSlots(std::span<std::byte> memory, std::size_t message_bytes, std::size_t slot_count, bool sleeps) noexcept
        : memory_(memory), message_bytes_(message_bytes), slot_count_(slot_count), sleeps_(sleeps) {}

    /// Waits for a free slot, has `write` fill its bytes, and hands it over.
    template <class Write>
    void send(Write&& write) {
        const std::span<std::byte> slot = next_slot();
        std::uint64_t& full = full_word(slot);
        until_true<Backoff>([&] { return weir::shared(full).load(std::memory_order_acquire) == 0; });
        write(payload(slot));
        if (!sleeps_) {
            weir::shared(full).store(1, std::memory_order_release);
            return;
        }
        // seq_cst: the slot is full before the sleeper is looked for, as in an event count
        weir::shared(full).store(1, std::memory_order_seq_cst);
        std::uint32_t& asleep = asleep_word();
        if (weir::shared(asleep).load(std::memory_order_seq_cst) != 0) {
            weir::shared(asleep).store(0, std::memory_order_seq_cst);
            weir::futex_wake(asleep, 1);
        }
    }

    /// Waits for a message, by `Wait` unless asleep, has `read` look at its bytes, and frees its slot.
    template <class Wait, class Read>
    void receive(Read&& read) {
        const std::span<std::byte> slot = next_slot();
        std::uint64_t& full = full_word(slot);
        if (sleeps_) {
            std::uint32_t& asleep = asleep_word();
            while (weir::shared(full).load(std::memory_order_acquire) == 0) {
                weir::shared(asleep).store(1, std::memory_order_seq_cst);
                if (weir::shared(full).load(std::memory_order_seq_cst) == 0) {
                    weir::futex_wait(asleep, 1, weir::deadline_never);
                }
            }
        } else {
            until_true<Wait>([&] { return weir::shared(full).load(std::memory_order_acquire) != 0; });
        }
        read(payload(slot));
        weir::shared(full).store(0, std::memory_order_release);
    }

private:
    [[nodiscard]] static std::size_t payload_offset(std::size_t message_bytes) noexcept {
        return message_bytes <= weir::cache_line_bytes - sizeof(std::uint64_t) ? sizeof(std::uint64_t)
                                                                               : weir::cache_line_bytes;
    }
    [[nodiscard]] static std::size_t stride(std::size_t message_bytes) noexcept {
        return weir::round_up(payload_offset(message_bytes) + message_bytes, weir::cache_line_bytes);
    }
    [[nodiscard]] std::span<std::byte> next_slot() noexcept {
        const std::size_t number = next_;
        next_ = next_ + 1 == slot_count_ ? 0 : next_ + 1;
        return memory_.subspan(weir::cache_line_bytes + number * stride(message_bytes_), stride(message_bytes_));
    }
    [[nodiscard]] std::span<std::byte> payload(std::span<std::byte> slot) const noexcept {
        return slot.subspan(payload_offset(message_bytes_), message_bytes_);
    }
    [[nodiscard]] static std::uint64_t& full_word(std::span<std::byte> slot) noexcept {
        return *reinterpret_cast<std::uint64_t*>(slot.data());
    }
    [[nodiscard]] std::uint32_t& asleep_word() const noexcept {
        return *reinterpret_cast<std::uint32_t*>(memory_.data());
    }

    std::span<std::byte> memory_;
    std::size_t message_bytes_;
    std::size_t slot_count_;
    bool sleeps_;
    std::size_t next_ = 0;
};

} // namespace bench
