#include <weir/ring.hpp>

#include <algorithm>

namespace weir {

template <class Word>
BasicRing<Word>::BasicRing(std::span<std::byte> memory, std::uint32_t capacity) {
    if (!std::has_single_bit(capacity) || capacity < ring_capacity_min || capacity > ring_capacity_max) {
        throw_error(errc::invalid_capacity,
                    "a ring holds 2 to 65,536 values, a power of two; asked for " + std::to_string(capacity));
    }
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % cache_line_bytes != 0) {
        throw_error(errc::misaligned, "a ring's memory starts on a cache line of 64 bytes");
    }
    if (memory.size() < bytes(capacity)) {
        throw_error(errc::invalid_size, "a ring of " + std::to_string(capacity) + " values needs " +
                                            std::to_string(bytes(capacity)) + " bytes, was given " +
                                            std::to_string(memory.size()));
    }
    state_ = reinterpret_cast<State*>(memory.data());
    cells_ = reinterpret_cast<Word*>(memory.data() + sizeof(State));
    mask_ = capacity - 1;
    capacity_log2_ = static_cast<unsigned>(std::countr_zero(capacity));
}

template <class Word>
RingStatus BasicRing<Word>::search_item(std::uint64_t& position, std::uint64_t& cell) const noexcept {
    const std::uint64_t hint = load_hint(state_->head_hint);
    if (later(position, hint) != position) {
        position = hint;
        cell = load_cell(position);
    }
    Search search(*this, state_->head_hint);
    for (;;) {
        const std::int64_t ahead = turns_ahead(cell, empty_cell(position) | filled_bit);
        if (ahead == 0) {
            return RingStatus::ok;
        }
        if (ahead < 0) {
            return ahead == -1 ? RingStatus::empty : RingStatus::corrupt;
        }
        if (!search.advance(position, ahead)) {
            return RingStatus::corrupt;
        }
        cell = load_cell(position);
    }
}

template <class Word>
std::uint64_t BasicRing<Word>::depth() const noexcept {
    const std::uint64_t capacity = mask_ + 1;
    // The hint may lie several laps of a small ring behind.
    std::uint64_t head = head_hint();
    std::uint64_t cell = load_cell(head);
    if (search_item(head, cell) != RingStatus::ok) {
        return 0;
    }
    std::uint64_t tail = later(head, tail_hint());
    while (tail - head < capacity && is_item_of(tail, load_cell(tail))) {
        ++tail;
    }
    return std::min(tail - head, capacity);
}

template <class Word>
std::vector<std::uint64_t> BasicRing<Word>::load_cells() const {
    std::vector<std::uint64_t> cells(mask_ + 1);
    for (std::uint64_t index = 0; index < cells.size(); ++index) {
        cells[index] = load_cell(index);
    }
    return cells;
}

template <class Word>
std::vector<std::string> BasicRing<Word>::check() const {
    std::vector<std::string> broken;
    const auto capacity = static_cast<std::int64_t>(mask_ + 1);
    // Turns only grow: what was read twice, in two readings one after the other, is what the ring was in between.
    std::vector<std::uint64_t> cells = load_cells();
    bool stood_still = false;
    for (int attempt = 0; attempt < 3 && !stood_still; ++attempt) {
        std::vector<std::uint64_t> again = load_cells();
        stood_still = again == cells;
        cells = std::move(again);
    }
    // The position that each cell is filled with or empty for; all lie within one lap. They are compared with the first
    // cell's by their difference, because turns wrap.
    const std::uint64_t first_turn = cells[0] >> ring_value_bits;
    std::int64_t push_first = 0, push_last = 0, pop_first = 0, pop_last = 0;
    for (std::int64_t index = 0; index < capacity; ++index) {
        const std::uint64_t cell = cells[static_cast<std::size_t>(index)];
        if (!is_filled(cell) && value(cell) != 0) {
            broken.push_back("ring cell " + std::to_string(index) + " is empty but holds the value " +
                             std::to_string(value(cell)));
        }
        const std::int64_t turns = turns_ahead(cell, (first_turn & ~std::uint64_t{1}) << ring_value_bits);
        const std::int64_t pop = (turns >> 1) * capacity + index;
        const std::int64_t push = pop + (is_filled(cell) ? capacity : 0);
        push_first = index == 0 ? push : std::min(push_first, push);
        push_last = index == 0 ? push : std::max(push_last, push);
        pop_first = index == 0 ? pop : std::min(pop_first, pop);
        pop_last = index == 0 ? pop : std::max(pop_last, pop);
    }
    if (stood_still && push_last - push_first >= capacity) {
        broken.emplace_back("ring turns: the cells' next pushes are more than one lap apart");
    }
    if (stood_still && pop_last - pop_first >= capacity) {
        broken.emplace_back("ring turns: the cells' next pops are more than one lap apart");
    }
    return broken;
}

template BasicRing<std::uint64_t>::BasicRing(std::span<std::byte>, std::uint32_t);
template RingStatus BasicRing<std::uint64_t>::search_item(std::uint64_t&, std::uint64_t&) const noexcept;
template std::uint64_t BasicRing<std::uint64_t>::depth() const noexcept;
template std::vector<std::uint64_t> BasicRing<std::uint64_t>::load_cells() const;
template std::vector<std::string> BasicRing<std::uint64_t>::check() const;

} // namespace weir
