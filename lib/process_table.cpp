#include <weir/process_table.hpp>

namespace weir {

ProcessTable::ProcessTable(std::span<std::byte> memory) {
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % cache_line_bytes != 0) {
        throw_error(errc::misaligned, "a process table's memory starts on a cache line of 64 bytes");
    }
    if (memory.size() < bytes()) {
        throw_error(errc::invalid_size, "a process table needs " + std::to_string(bytes()) + " bytes, was given " +
                                            std::to_string(memory.size()));
    }
    state_ = reinterpret_cast<ProcessTableState*>(memory.data());
}

std::vector<std::string> ProcessTable::check() const {
    std::vector<std::string> broken;
    for (unsigned slot = 0; slot < process_slot_count; ++slot) {
        if (load_entry(static_cast<std::uint8_t>(slot)) >> 49 != 0) {
            broken.push_back("process table entry " + std::to_string(slot) + ": incarnation is beyond 48 bits");
        }
    }
    return broken;
}

} // namespace weir
