#include <weir/reap.hpp>

#include <algorithm>
#include <bitset>
#include <unordered_map>

namespace weir {

namespace {

/// Names a reference in the domain.
std::uint32_t reference_key(const BufferPoolView& pool, std::uint32_t index, unsigned number) noexcept {
    return (pool.first_buffer() + index) << 4 | number;
}

/// (A) for one port: remembers the messages of the dead, clears what was claimed.
std::error_code look_at_cells(PortView& port, Owner dead, std::vector<std::uint32_t>& messages, ReapResult& result) {
    for (std::uint64_t place = 0; place < port.options().capacity; ++place) {
        for (;;) {
            const std::uint64_t cell = port.ring().load_cell(place);
            if (!Ring::is_filled(cell)) {
                break;
            }
            PortView::Item item;
            if (!port.decode(cell, item)) {
                return errc::reap_incomplete;
            }
            const std::uint64_t word = load_reference(item.word());
            if (port.ring().load_cell(place) != cell) {
                continue; // read again: the word may be of the buffer's next use
            }
            if (!item.is_queued_as(word)) {
                if (port.ring().clear(place, cell)) {
                    ++result.cleared_cell_count;
                }
            } else if (Owner::of(word) == dead) {
                messages.push_back(reference_key(*item.pool, item.index, item.reference));
            }
            break;
        }
    }
    return {};
}

/// Whether all references of the dead that a port's cell may name are of the given ports.
bool knows_all_ports(const BufferPoolView& pool, Owner dead, const std::bitset<port_id_count>& ports) {
    for (std::uint32_t index = 0; index < pool.buffer_count(); ++index) {
        for (unsigned number = 0; number < pool.references_per_buffer(); ++number) {
            const std::uint64_t word = load_reference(pool.reference(index, number));
            // A word that is HELD names port 0 also where it was allocated.
            const bool names_port = reference_state(word) == ReferenceState::queued || reference_port(word) != 0;
            if (!is_free(word) && Owner::of(word) == dead && names_port && !ports.test(reference_port(word))) {
                return false;
            }
        }
    }
    return true;
}

/// (B) for one pool.
void free_references(BufferPoolView& pool, const Membership& dead, const std::vector<std::uint32_t>& messages,
                     ReapResult& result) {
    const Owner owner = dead.owner();
    for (std::uint32_t first = 0; first < pool.buffer_count(); first += 64) {
        std::uint64_t unused = 0;
        const std::uint32_t count = std::min<std::uint32_t>(64, pool.buffer_count() - first);
        for (std::uint32_t place = 0; place < count; ++place) {
            const std::uint32_t index = first + place;
            for (unsigned number = 0; number < pool.references_per_buffer(); ++number) {
                std::uint64_t& word = pool.reference(index, number);
                const std::uint64_t seen = load_reference(word);
                if (is_free(seen) || Owner::of(seen) != owner) {
                    continue;
                }
                if (reference_state(seen) == ReferenceState::queued &&
                    std::ranges::binary_search(messages, reference_key(pool, index, number))) {
                    ++result.kept_message_count;
                    continue;
                }
                // The word has only the low bits of the incarnation: the entry tells whether it is still the dead one's.
                if (dead.is_alive() && try_free(word, seen)) {
                    ++result.freed_reference_count;
                }
            }
            unused |= pool.is_unused(index) ? std::uint64_t{1} << place : 0;
        }
        // Whoever died may have taken hints along, so all buffers that are free are hinted at again.
        if (unused != 0) {
            pool.hints().offer_group(first / 64, unused);
        }
    }
}

/// Wakes all who wait for something that the dead had.
void wake_all(const SharedBufferAllocator& buffers, std::span<const Port> ports) {
    for (const Port& port : ports) {
        port.view()->waiting_event(PortEnd::producer).notify();
        port.view()->waiting_event(PortEnd::consumer).notify();
    }
    for (const BufferPool& pool : buffers.pools()) {
        pool.view().freed_event().notify();
    }
}

} // namespace

ReapResult reap(const Membership& dead, const SharedBufferAllocator& buffers, std::span<const Port> ports) {
    ReapResult result;
    if (std::ranges::any_of(buffers.pools(), [](const BufferPool& pool) { return pool.view().is_foreign(); }) ||
        std::ranges::any_of(ports, [](const Port& port) { return port.view()->is_foreign(); })) {
        result.error = errc::used_after_fork;
        return result;
    }
    if (!dead.is_alive()) {
        return result; // reaped already; "alive" here is what the table says, and it says so until step (C)
    }
    std::vector<std::uint32_t> messages;
    std::bitset<port_id_count> port_ids;
    for (const Port& port : ports) {
        if (port_ids.test(port.options().port_id)) {
            result.error = errc::other_parameters; // two ports of one number cannot be told apart
            wake_all(buffers, ports);
            return result;
        }
        port_ids.set(port.options().port_id);
        result.error = look_at_cells(*port.view(), dead.owner(), messages, result);
        if (result.error) {
            wake_all(buffers, ports); // cleared cells are room
            return result;
        }
    }
    for (const BufferPool& pool : buffers.pools()) {
        if (!knows_all_ports(pool.view(), dead.owner(), port_ids)) {
            result.error = errc::reap_incomplete;
            wake_all(buffers, ports);
            return result;
        }
    }
    std::ranges::sort(messages);
    for (const BufferPool& pool : buffers.pools()) {
        free_references(pool.view(), dead, messages, result);
    }
    ProcessTable table = dead.table;
    result.ended_entry = table.end(dead.slot, dead.incarnation);
    wake_all(buffers, ports);
    return result;
}

ReapResult leave(const Membership& membership, const SharedBufferAllocator& buffers, std::span<const Port> ports) {
    return reap(membership, buffers, ports);
}

std::uint32_t free_held(BufferPoolView& pool, const Membership& membership) noexcept {
    std::uint32_t freed_count = 0;
    for (std::uint32_t index = 0; index < pool.buffer_count(); ++index) {
        for (unsigned number = 0; number < pool.references_per_buffer(); ++number) {
            std::uint64_t& word = pool.reference(index, number);
            const std::uint64_t seen = load_reference(word);
            if (reference_state(seen) == ReferenceState::held && Owner::of(seen) == membership.owner() &&
                try_free(word, seen)) {
                ++freed_count;
                pool.hints().offer_group(index / 64, std::uint64_t{1} << index % 64);
            }
        }
    }
    if (freed_count > 0) {
        pool.freed_event().notify();
    }
    return freed_count;
}

std::vector<std::string> check_domain(const ProcessTable& table, const SharedBufferAllocator& buffers,
                                      std::span<const Port> ports, DomainCensus* census, CheckMode mode) {
    std::vector<std::string> broken = table.check();
    const auto append = [&broken](std::vector<std::string> more) {
        std::ranges::move(more, std::back_inserter(broken));
    };
    // First the words, then the cells, then the words again: a word that has not changed was in its cell meanwhile, unless
    // its owner had not filled that yet. An owner that had ended when its word was read has filled all that it ever will.
    struct Queued {
        const std::uint64_t* shared_word;
        std::uint64_t word;
        bool may_be_unsent;
        unsigned cell_count;
    };
    std::unordered_map<std::uint32_t, Queued> queued;
    DomainCensus counted;
    for (const BufferPool& pool : buffers.pools()) {
        append(pool.check(&table));
        const BufferPoolView& view = pool.view();
        for (std::uint32_t index = 0; index < view.buffer_count(); ++index) {
            bool is_unused = true;
            for (unsigned number = 0; number < view.references_per_buffer(); ++number) {
                const std::uint64_t& shared_word = view.reference(index, number);
                const std::uint64_t word = load_reference(shared_word);
                is_unused = is_unused && is_free(word);
                counted.held_reference_count += reference_state(word) == ReferenceState::held ? 1U : 0U;
                if (reference_state(word) == ReferenceState::queued) {
                    ++counted.queued_reference_count;
                    const Owner owner = Owner::of(word);
                    const ProcessTable::Entry entry = table.entry(owner.slot());
                    const bool may_be_unsent = entry.alive && Owner(owner.slot(), entry.incarnation) == owner;
                    queued.emplace(reference_key(view, index, number), Queued{&shared_word, word, may_be_unsent, 0});
                }
            }
            counted.free_count += is_unused ? 1U : 0U;
        }
    }
    for (const Port& port : ports) {
        append(port.check());
        for (std::uint32_t place = 0; place < port.options().capacity; ++place) {
            const std::uint64_t cell = port.view()->ring().load_cell(place);
            PortView::Item item;
            if (!Ring::is_filled(cell) || !port.view()->decode(cell, item)) {
                continue;
            }
            const auto found = queued.find(reference_key(*item.pool, item.index, item.reference));
            if (found != queued.end() && item.is_queued_as(found->second.word)) {
                ++found->second.cell_count;
            }
        }
    }
    std::vector<std::pair<std::uint32_t, unsigned>> unmatched; // and how many cells name it
    for (const auto& [key, reference] : queued) {
        if (reference.cell_count == 1 || load_reference(*reference.shared_word) != reference.word) {
            continue;
        }
        if (reference.cell_count == 0 && reference.may_be_unsent && mode == CheckMode::live) {
            ++counted.unsent_reference_count;
            continue;
        }
        unmatched.emplace_back(key, reference.cell_count);
    }
    std::ranges::sort(unmatched);
    for (const auto& [key, cell_count] : unmatched) {
        broken.push_back("buffer " + std::to_string(key >> 4) + " reference " + std::to_string(key & 15) +
                         ": queued, but named by " + std::to_string(cell_count) + " cells");
    }
    if (census != nullptr) {
        *census = counted;
    }
    return broken;
}

} // namespace weir
