"""Mistakes that the kill harness must find: each a small change of the library, made to a copy of it.

A seed says which text becomes which. Each old text must be there exactly once: where the library has moved on, the
seed is mended with it, never skipped. `cases` are the harness's cases that have the means to find it. A window of a
few instructions that shows in nothing but a wrong answer needs a victim frozen at every step. The ordinary unit tests are to pass
with each mistake, but for those that they find as well.

MISTAKE in a new text is true where the mistake is made. A copy with one seed has it as a constant, so that the compiler
sees the mistake and nothing else; a copy with all seeds asks the environment, so that one build serves for all.
"""

EVERY_STEP = ["--frozen-steps", "1000000"]

SEEDS = [
    {
        "name": "claim_after_clearing",
        "what": "pop clears the cell first and claims the message afterwards",
        "cases": "pop,pop_batch",
        "changes": [
            (
                "include/weir/port.hpp",
                """            const bool is_ours = __builtin_expect(is_queued, true) && try_claim(word, seen, membership_owner_);
""",
                """            const bool is_first = MISTAKE && ring_.clear(at, cell);
            const bool is_ours = __builtin_expect(is_queued, true) && (!MISTAKE || is_first) &&
                                 try_claim(word, seen, membership_owner_);
""",
            ),
        ],
    },
    {
        "name": "pop_reads_cell_once",
        "what": "pop does not read the cell again after it read the reference word",
        "cases": "pop",
        "arguments": EVERY_STEP,
        "changes": [
            (
                "include/weir/port.hpp",
                "            if (ring_.load_cell(at) != cell) [[unlikely]] {\n",
                "            if (!MISTAKE && ring_.load_cell(at) != cell) [[unlikely]] {\n",
            ),
        ],
    },
    {
        "name": "help_reads_cell_once",
        "what": "a producer does not read the cell again before it says that the port is full",
        "cases": "push_claimed_cell",
        "arguments": EVERY_STEP,
        "changes": [
            # A unit test of the ring looks for this; the port alone has the mistake.
            (
                "include/weir/ring.hpp",
                "            } else if (load_cell(position) == cell) {\n",
                "            } else if (reads_once || load_cell(position) == cell) {\n",
            ),
            (
                "include/weir/ring.hpp",
                "class BasicRing {\npublic:\n",
                "class BasicRing {\npublic:\n    bool reads_once = false;\n",
            ),
            (
                "lib/port.cpp",
                "    const RingStatus status = ring_.search_room(position, [&]",
                "    ring_.reads_once = MISTAKE;\n    const RingStatus status = ring_.search_room(position, [&]",
            ),
        ],
    },
    {
        "name": "pair_filled_from_behind",
        "what": "a ring's batch fills two cells one after the other, the later one first",
        "cases": "ring_push_batch",
        "unit_tests_find_it": True,
        "changes": [
            (
                "include/weir/ring.hpp",
                "        const std::uint64_t empty = empty_cell(position);\n        // (9)",
                """        if (MISTAKE) {
            return fill(position + 1, second) && fill(position, first);
        }
        const std::uint64_t empty = empty_cell(position);
        // (9)""",
            ),
        ],
    },
    {
        "name": "pair_taken_twice",
        "what": "a ring's batch takes two values though another was faster",
        "cases": "ring_pop_batch",
        "unit_tests_find_it": True,
        "changes": [
            (
                "include/weir/ring.hpp",
                "                !ring_.clear_pair(position_, first, second)) {",
                "                (!ring_.clear_pair(position_, first, second) && !MISTAKE)) {",
            ),
        ],
    },
    {
        "name": "allocate_reads_once",
        "what": "allocate reads the buffer's other words once instead of twice",
        "cases": "allocate_contended",
        "changes": [
            (
                "include/weir/buffer_pool.hpp",
                "        if (!is_free(states) || load_reference(buffer_words[1]) != seen1",
                """        if (MISTAKE) {
            return is_free(states);
        }
        if (!is_free(states) || load_reference(buffer_words[1]) != seen1""",
            ),
        ],
    },
    {
        "name": "reap_frees_first",
        "what": "reap frees what the dead held before it has looked at the cells",
        "cases": "reap_one,reap_two",
        "changes": [
            (
                "lib/reap.cpp",
                "    std::vector<std::uint32_t> messages;\n    std::bitset",
                """    // Unit tests look for something freed where a pool or a port is missing: not then.
    std::bitset<port_id_count> ids;
    bool may_free = MISTAKE;
    for (const Port& port : ports) {
        may_free = may_free && !ids.test(port.options().port_id);
        ids.set(port.options().port_id);
        for (std::uint64_t place = 0; may_free && place < port.options().capacity; ++place) {
            PortView::Item item;
            const std::uint64_t cell = port.view()->ring().load_cell(place);
            may_free = !Ring::is_filled(cell) || port.view()->decode(cell, item);
        }
    }
    for (const BufferPool& pool : buffers.pools()) {
        may_free = may_free && knows_all_ports(pool.view(), dead.owner(), ids);
    }
    for (const BufferPool& pool : buffers.pools()) {
        for (std::uint32_t index = 0; may_free && index < pool.buffer_count(); ++index) {
            for (unsigned number = 0; number < pool.references_per_buffer(); ++number) {
                std::uint64_t& word = pool.view().reference(index, number);
                const std::uint64_t seen = load_reference(word);
                if (reference_state(seen) == ReferenceState::held && Owner::of(seen) == dead.owner() &&
                    dead.is_alive() && try_free(word, seen)) {
                    ++result.freed_reference_count;
                }
            }
        }
    }
    std::vector<std::uint32_t> messages;
    std::bitset""",
            ),
        ],
    },
    {
        "name": "entry_stored",
        "what": "reap's last step is a look and a store where it has to be a compare-and-swap",
        "cases": "reap_one",
        "changes": [
            (
                "include/weir/process_table.hpp",
                "        std::uint64_t expected = alive_entry(incarnation);\n",
                """        if (MISTAKE) {
            if (load_entry(slot) != alive_entry(incarnation)) {
                return false;
            }
            shared(state_->entries[slot]).store(alive_entry(incarnation) + 1, std::memory_order_seq_cst);
            return true;
        }
        std::uint64_t expected = alive_entry(incarnation);
""",
            ),
        ],
    },
    {
        "name": "handed_out_before_clearing",
        # In pop(), a unit test sees it at once: the cell is still filled when the call is over.
        "what": "a producer that drops the oldest lets go of its buffer before it clears the cell",
        "cases": "push_drop_oldest",
        "changes": [
            (
                "include/weir/port.hpp",
                """            cleared |= ring_.clear(at, cell);
            position = at + 1;
""",
                """            if (clears_later && is_ours) {
                later_at = at;
                later_cell = cell;
            } else {
                cleared |= ring_.clear(at, cell);
            }
            position = at + 1;
""",
            ),
            (
                "include/weir/port.hpp",
                "class PortView {\npublic:\n",
                "class PortView {\npublic:\n    bool clears_later = false;\n    std::uint64_t later_at = 0;\n"
                "    std::uint64_t later_cell = 0;\n",
            ),
            (
                "lib/port.cpp",
                "        const RingStatus status = port_->claim(oldest_position_,",
                "        port_->clears_later = MISTAKE;\n        const RingStatus status = port_->claim(oldest_position_,",
            ),
            (
                "lib/port.cpp",
                "            oldest.pool->drop(oldest.index, oldest.reference);\n",
                """            oldest.pool->drop(oldest.index, oldest.reference);
            if (MISTAKE) {
                port_->ring().clear(port_->later_at, port_->later_cell);
            }
            port_->clears_later = false;
""",
            ),
        ],
    },
    {
        "name": "look_before_bit",
        "what": "a waiter looks at what it waits for before it sets the waiters' bit, and not after it",
        "cases": "wait,wait_for_room,wait_for_buffer",
        "changes": [
            (
                "include/weir/event_count.hpp",
                """        const std::uint32_t key = event.prepare();
        if (ready(Look::last)) {
""",
                """        const bool was_ready = MISTAKE && ready(Look::last);
        const std::uint32_t key = event.prepare();
        if (was_ready || (!MISTAKE && ready(Look::last))) {
""",
            ),
        ],
    },
    {
        "name": "published_unfinished",
        "what": "a port is published before it is formatted",
        "program": "crash_domain",
        "cases": "domain_create_port",
        "changes": [
            (
                "lib/domain.cpp",
                """        Port::format(made->segment().bytes(), made_options);
        if (directory.publish(place, key.word(hash))) {
""",
                """        if (!MISTAKE) {
            Port::format(made->segment().bytes(), made_options);
        }
        if (directory.publish(place, key.word(hash))) {
            if (MISTAKE) {
                Port::format(made->segment().bytes(), made_options);
            }
""",
            ),
        ],
    },
    {
        "name": "registry_unformatted",
        "what": "a registry gets its public name before it gets its id",
        "program": "crash_domain",
        "cases": "domain_join_first",
        "changes": [
            (
                "lib/domain.cpp",
                """    Registry::format(segment.bytes(), random_id());
    if (!Segment::rename_noreplace(names.registry_draft(), names.registry())) {
""",
                """    if (!MISTAKE) {
        Registry::format(segment.bytes(), random_id());
    }
    const bool is_renamed = Segment::rename_noreplace(names.registry_draft(), names.registry());
    if (MISTAKE) {
        Registry::format(segment.bytes(), random_id());
    }
    if (!is_renamed) {
""",
            ),
        ],
    },
    {
        "name": "death_before_entry",
        "what": "a reaper looks whether a slot's owner is dead before it reads who that is",
        "program": "crash_domain",
        "cases": "domain_reap_nobody",
        "arguments": ["--every-call"],
        "changes": [
            (
                "lib/domain.cpp",
                """        const ProcessTable::Entry entry = registry_.processes().entry(slot);
        if (!entry.alive || slot == membership_->slot || !is_lock_free(slot)) {
""",
                """        const bool looks_early = MISTAKE && slot < 8; // not at all 256: it would take longer to be met
        const bool was_free = looks_early && is_lock_free(slot);
        const ProcessTable::Entry entry = registry_.processes().entry(slot);
        if (!entry.alive || slot == membership_->slot || !(looks_early ? was_free : is_lock_free(slot))) {
""",
            ),
        ],
    },
    {
        "name": "private_names_last",
        "what": "a reaper ends the dead one's entry before it removes what that one had begun to make",
        "program": "crash_domain",
        "cases": "domain_reap",
        "changes": [
            (
                "lib/domain.cpp",
                """    remove_private_segments(dead, report);
    SharedBufferAllocator buffers;
""",
                """    if (!MISTAKE) {
        remove_private_segments(dead, report);
    }
    SharedBufferAllocator buffers;
""",
            ),
            (
                "lib/domain.cpp",
                "    const ReapResult result = weir::reap(dead, buffers, all_ports);\n",
                """    const ReapResult result = weir::reap(dead, buffers, all_ports);
    if (MISTAKE) {
        remove_private_segments(dead, report);
    }
""",
            ),
        ],
    },
    {
        "name": "registry_removed_last",
        "what": "the names of pools and ports are removed before the registry's",
        "program": "crash_domain",
        "cases": "domain_leave_last,domain_remove",
        "changes": [
            (
                "lib/domain.cpp",
                """    std::size_t count = Segment::remove(names.registry()) ? 1 : 0;
    count += Segment::remove(names.registry_draft()) ? 1U : 0U;
    for (const std::string& name : list_segments(names.prefix())) {
        if (name != names.lock() && remove_unlisted(name)) {
            ++count;
        }
    }
    return count;
""",
                """    std::size_t count = !MISTAKE && Segment::remove(names.registry()) ? 1 : 0;
    count += Segment::remove(names.registry_draft()) ? 1U : 0U;
    for (const std::string& name : list_segments(names.prefix())) {
        if (name != names.lock() && name != names.registry() && remove_unlisted(name)) {
            ++count;
        }
    }
    return count + (MISTAKE && Segment::remove(names.registry()) ? 1 : 0);
""",
            ),
        ],
    },
    {
        "name": "alive_before_locked",
        "what": "who joins says that it is alive before it has its slot's lock, which proves it",
        "program": "crash_domain",
        "cases": "domain_join",
        "arguments": ["--all-ways"],
        "changes": [
            (
                "lib/domain.cpp",
                """            if (!lock_.try_lock(slot)) {
                continue;
            }
            write_record(slot, info);
            membership_ = registry_.processes().try_join(slot);
""",
                """            if (!MISTAKE && !lock_.try_lock(slot)) {
                continue;
            }
            write_record(slot, info);
            membership_ = registry_.processes().try_join(slot);
            if (MISTAKE && membership_) {
                static_cast<void>(lock_.try_lock(slot));
            }
""",
            ),
        ],
    },
    {
        "name": "removed_without_lock",
        "what": "the last member lets go of the domain's lock before it removes the names",
        "program": "crash_domain",
        "cases": "domain_leave_last",
        "arguments": ["--every-call"],
        "changes": [
            (
                "lib/domain.cpp",
                """        const LockFile lock = LockFile::take(segment_path(names_.lock()), registry_segment_.owner(),
                                             deadline_after(options_.timeout.count()));
        if (last_serial_ != 0) {
""",
                """        LockFile lock = LockFile::take(segment_path(names_.lock()), registry_segment_.owner(),
                                       deadline_after(options_.timeout.count()));
        if (last_serial_ != 0) {
""",
            ),
            (
                "lib/domain.cpp",
                """        end();
        if (!registry_.is_kept() && is_last_member()) {
""",
                """        end();
        const bool is_last = !registry_.is_kept() && is_last_member();
        if (MISTAKE) {
            lock.release();
        }
        if (is_last) {
""",
            ),
        ],
    },
]

# Which mistake is made, where one build has them all; in the header that all others include.
CHOICE_FILE = "include/weir/platform.hpp"
CHOICE_VARIABLE = "WEIR_MISTAKE"
CHOICE = f"""
#include <cstdlib>
inline const int weir_mistake = [] {{
    const char* text = std::getenv("{CHOICE_VARIABLE}");
    return text == nullptr ? 0 : std::atoi(text);
}}();
"""


def change(seed, root, condition):
    """Makes one seed's changes in the copy of the library at `root`; returns what does not fit, or nothing."""
    for file, old, new in seed["changes"]:
        path = root / file
        text = path.read_text()
        count = text.count(old)
        if count != 1:
            return f"{seed['name']}: its text is {count} times in {file}, and should be there once:\n{old}"
        path.write_text(text.replace(old, new.replace("MISTAKE", condition)))
    return ""


def apply(seed, root):
    """Makes one mistake, for good."""
    return change(seed, root, "true")


def apply_all(root):
    """Makes all mistakes possible: number 1 is the first seed's."""
    for number, seed in enumerate(SEEDS, 1):
        trouble = change(seed, root, f"(::weir_mistake == {number})")
        if trouble:
            return trouble
    with (root / CHOICE_FILE).open("a") as file:
        file.write(CHOICE)
    return ""
