// What the demo streams: which files, in which parts, and which producer streams which of them.
//
// A file goes to one producer as a whole, so that its SHA-256 is the file's. Where there are fewer files than
// producers, the largest are cut into parts with a SHA-256 each, so that every producer has something to do. A part is
// streamed in chunks, one in each buffer.
#pragma once

#include "usage_error.hpp"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weir::demo {

inline constexpr unsigned producer_count = 3;

/// What the user asked for cannot be done; nothing has been started.
using tool::UsageError;

struct PlannedFile {
    std::filesystem::path path;
    std::string label;            ///< what it is called in a table
    std::string copy_name;        ///< unique among the files
    std::uint64_t bytes = 0;      ///< what is streamed of it
    std::uint64_t size_bytes = 0; ///< what it has
    std::uint32_t first_part = 0;
    std::uint32_t part_count = 1;
};

struct Part {
    std::uint32_t file = 0;
    std::uint32_t producer = 0;
    std::uint64_t first_byte = 0;
    std::uint64_t bytes = 0;
    std::uint64_t chunk_count = 0;    ///< an empty part has one chunk of no bytes
    std::uint64_t first_message = 0;  ///< its first chunk's number among all messages of the plan
    std::uint64_t first_sequence = 0; ///< its first chunk's number among the messages of its producer
};

struct Plan {
    std::vector<PlannedFile> files;
    std::vector<Part> parts;
    std::uint64_t chunk_bytes = 0;
    std::uint64_t bytes = 0;
    std::uint64_t message_count = 0;
    std::uint64_t left_out_count = 0; ///< files named that bytes_max left nothing for

    [[nodiscard]] std::uint64_t chunk_size(const Part& part, std::uint64_t chunk) const noexcept {
        const std::uint64_t rest = part.bytes - chunk * chunk_bytes;
        return rest < chunk_bytes ? rest : chunk_bytes;
    }
    [[nodiscard]] std::uint64_t chunk_offset(const Part& part, std::uint64_t chunk) const noexcept {
        return part.first_byte + chunk * chunk_bytes;
    }
    [[nodiscard]] std::uint64_t message_count_of(std::uint32_t producer) const noexcept;
    /// The part that message number `message` of the plan belongs to.
    [[nodiscard]] const Part& part_of(std::uint64_t message) const noexcept;
};

/// Plans to stream `named`, or where none are named, the largest files of the system's library folder.
/// Throws: UsageError.
[[nodiscard]] Plan make_plan(const std::vector<std::string>& named, std::optional<std::uint64_t> bytes_max,
                             std::uint64_t chunk_bytes);

/// The plan as bytes, for the programs that carry it out, and back.
[[nodiscard]] std::string pack(const Plan& plan);
[[nodiscard]] Plan unpack(std::string_view text);

} // namespace weir::demo
