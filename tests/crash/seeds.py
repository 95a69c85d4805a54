"""Mistakes that the kill harness must find: each a small change of the library, made to a copy of it.

A seed says which text becomes which. Each old text must be there exactly once: where the library has moved on, the
seed is mended with it, never skipped. `cases` are the harness's cases that have the means to find it. A window of a
few instructions that shows in nothing but a wrong answer needs a victim frozen at every step.
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
            // Before the buffer is handed out: no reference is dropped or pushed on while a cell still names it.
            cleared |= ring_.clear(at, cell);
""",
                """            const bool is_first = ring_.clear(at, cell);
            cleared |= is_first;
            const bool is_ours = is_first && is_queued && try_claim(word, seen, membership_owner_);
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
                """            if (ring_.load_cell(at) != cell) [[unlikely]] {
                continue; // read again: `seen` may be of the buffer's next use, which is not this message
            }
""",
                "",
            ),
        ],
    },
    {
        "name": "help_reads_cell_once",
        "what": "a producer does not read the cell again before it says that the port is full",
        "cases": "push_claimed_cell",
        "arguments": EVERY_STEP,
        "changes": [
            (
                "include/weir/ring.hpp",
                "            } else if (load_cell(position) == cell) {\n",
                "            } else {\n",
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
                """        if (!is_free(states) || load_reference(buffer_words[1]) != seen1 || load_reference(buffer_words[2]) != seen2 ||
            load_reference(buffer_words[3]) != seen3) {
            return false;
        }
""",
                """        if (!is_free(states)) {
            return false;
        }
""",
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
                """    for (const BufferPool& pool : buffers.pools()) {
        for (std::uint32_t index = 0; index < pool.buffer_count(); ++index) {
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
        "what": "reap's last step is a plain store where it has to be a compare-and-swap",
        "cases": "reap_one",
        "changes": [
            (
                "include/weir/process_table.hpp",
                """        return shared(state_->entries[slot])
            .compare_exchange_strong(expected, alive_entry(incarnation) + 1, std::memory_order_seq_cst,
                                     std::memory_order_acquire);
""",
                """        const bool is_first = load_entry(slot) == expected;
        expected = alive_entry(incarnation) + 1;
        shared(state_->entries[slot]).store(expected, std::memory_order_seq_cst);
        return is_first;
""",
            ),
        ],
    },
    {
        "name": "handed_out_before_clearing",
        "what": "pop hands the buffer out and leaves its cell to be cleared by the next pop",
        "cases": "pop,push_claimed_cell,two_at_once",
        "changes": [
            (
                "include/weir/port.hpp",
                """            // Before the buffer is handed out: no reference is dropped or pushed on while a cell still names it.
            cleared |= ring_.clear(at, cell);
""",
                """            if (is_ours) {
                later_at_ = at;
                later_cell_ = cell;
            } else {
                cleared |= ring_.clear(at, cell);
            }
""",
            ),
            (
                "include/weir/port.hpp",
                """                                                       Failure& failure) noexcept {
        for (;;) {
            std::uint64_t at = ring_.head_from(position);
""",
                """                                                       Failure& failure) noexcept {
        if (later_cell_ != 0) {
            cleared |= ring_.clear(later_at_, later_cell_);
            later_cell_ = 0;
        }
        for (;;) {
            std::uint64_t at = ring_.head_from(position);
""",
            ),
            (
                "include/weir/port.hpp",
                "    BufferPoolView* first_pool_ = nullptr;",
                "    std::uint64_t later_at_ = 0;\n    std::uint64_t later_cell_ = 0;\n"
                "    BufferPoolView* first_pool_ = nullptr;",
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
            return true;
        }
""",
                """        if (ready(Look::last)) {
            return true;
        }
        const std::uint32_t key = event.prepare();
""",
            ),
        ],
    },
]


def apply(seed, root):
    """Changes the copy of the library at `root`; returns what does not fit, or nothing."""
    for file, old, new in seed["changes"]:
        path = root / file
        text = path.read_text()
        count = text.count(old)
        if count != 1:
            return f"{seed['name']}: its text is {count} times in {file}, and should be there once:\n{old}"
        path.write_text(text.replace(old, new))
    return ""
