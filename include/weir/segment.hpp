// segment.hpp (layer 2): shared memory and its mapping: anonymous, for forked processes, or under a private name.
//
//     weir::Segment shared = weir::Segment::anonymous(1 << 20);          // children forked from here share it
//
//     weir::Segment made = weir::Segment::create("weir-4711-7", 1 << 20);
//     weir::Segment same = weir::Segment::open("weir-4711-7");            // in another process
//     weir::Segment::remove("weir-4711-7");                               // mappings stay valid
//
// A named segment is made with O_CREAT | O_EXCL and its whole size is allocated before it is used, so that a full
// /dev/shm is errc::no_space at creation and never a SIGBUS later. It starts with a header of one page, hidden from
// bytes(), with magic, layout version and size, which is written last: who opens a half-made segment gets an error and
// never half of it. Segments never shrink. New memory is zeroed, which is a valid empty state of everything in weir.
// An anonymous segment has no header: who inherits the mapping knows what it is.
//
// anything || anything: yes, on different objects.
// Progress: blocking, for set-up alone.
// If the creator dies inside, a private name without a valid header is left; remove() takes it away.
#pragma once

#include <weir/error.hpp>
#include <weir/platform.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace weir {

struct SegmentHeader {
    std::uint64_t magic;
    std::uint32_t layout_version;
    std::uint32_t reserved;
    std::uint64_t data_bytes;
};

inline constexpr std::uint64_t segment_magic = 0x3130'7365'6769'6577; // "wieges01" on little-endian machines
inline constexpr std::uint32_t layout_version = 1;
inline constexpr std::size_t segment_header_bytes = 4096;
static_assert(sizeof(SegmentHeader) == 24 && sizeof(SegmentHeader) <= segment_header_bytes);

/// Owns one mapping of shared memory.
class Segment {
public:
    enum class Access { read_write, read_only };

    /// Zeroed memory that children share after fork(). `bytes` is rounded up to whole pages.
    /// Throws: invalid_size, no_space.
    [[nodiscard]] static Segment anonymous(std::size_t bytes);

    /// Makes the segment `name` (1 to 64 of [A-Za-z0-9._-]) for this user alone (mode 0600).
    /// Throws: invalid_name, invalid_size, exists, no_space, no_permission.
    [[nodiscard]] static Segment create(std::string_view name, std::size_t bytes);

    /// Throws: invalid_name, not_found, no_permission, wrong_kind, wrong_layout, truncated.
    [[nodiscard]] static Segment open(std::string_view name, Access access = Access::read_write);

    /// Takes the name away; who has it mapped keeps the memory. False: there was no such name.
    /// Throws: invalid_name, no_permission.
    static bool remove(std::string_view name);

    Segment(Segment&& other) noexcept;
    Segment& operator=(Segment&& other) noexcept;
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;
    ~Segment();

    /// What lies behind the header; starts on a page.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        return {mapping_ + header_bytes_, mapping_bytes_ - header_bytes_};
    }

private:
    Segment(std::byte* mapping, std::size_t mapping_bytes, std::size_t header_bytes) noexcept
        : mapping_(mapping), mapping_bytes_(mapping_bytes), header_bytes_(header_bytes) {}

    std::byte* mapping_ = nullptr;
    std::size_t mapping_bytes_ = 0;
    std::size_t header_bytes_ = 0;
};

/// Hands out consecutive cache-line aligned pieces of a segment, in the same order in every process that maps it.
class SegmentCursor {
public:
    explicit SegmentCursor(std::span<std::byte> bytes) noexcept : rest_(bytes) {}

    /// Throws: invalid_size, where not that much is left.
    [[nodiscard]] std::span<std::byte> take(std::size_t bytes);

private:
    std::span<std::byte> rest_;
};

} // namespace weir
