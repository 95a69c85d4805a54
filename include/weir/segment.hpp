// segment.hpp (layer 2): shared memory and its mapping: anonymous, for forked processes, or under a name.
//
//     weir::Segment shared = weir::Segment::anonymous(1 << 20);          // children forked from here share it
//
//     weir::Segment made = weir::Segment::create("weir-4711-7", 1 << 20);
//     weir::Segment same = weir::Segment::open("weir-4711-7");            // in another process
//     weir::Segment::remove("weir-4711-7");                               // mappings stay valid
//
// A named segment is made with O_CREAT | O_EXCL and its whole size is allocated before it is used, so that a full
// /dev/shm is errc::no_space at creation and never a SIGBUS later. It starts with a header of one page, hidden from
// bytes(), that says what it is, how large, and by which parameters it is laid out; its magic is written last: who opens
// a half-made segment gets an error and never half of it. Where that is not enough, a segment is made under a private
// name and published by rename_noreplace(). Segments never shrink. New memory is zeroed, which is a valid empty state of
// everything in weir. An anonymous segment has no header: who inherits the mapping knows what it is.
//
// Opening trusts nothing that it finds: a FIFO, a link, a folder, another user's file, a short one, one with holes (which
// could be a SIGBUS on a full /dev/shm) or one with any bytes in it is an error. What it cannot guard against is who may
// write the file and shrinks it later.
//
// Each mismatch has an error of its own: wrong_kind (not ours at all, or a segment of another kind), wrong_layout,
// other_parameters, truncated, no_permission (not to be opened, or of an owner who is not the expected one), corrupt.
//
// anything || anything: yes, on different objects.
// Progress: blocking, for set-up alone.
// If the caller dies here: a creator leaves a name without a valid header, which remove() takes away; else the name is
// there, or moved, or it is not. [crash: domain_join_first, domain_create_pool, domain_remove]
#pragma once

#include <weir/error.hpp>
#include <weir/file.hpp>
#include <weir/platform.hpp>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#pragma GCC visibility push(default)
namespace weir {

/// Where the kernel keeps named shared memory: a tmpfs that every Linux mounts here.
inline constexpr std::string_view shared_memory_folder = "/dev/shm";

inline constexpr std::size_t name_length_max = 64;          ///< of a domain, pool, port or process
inline constexpr std::size_t segment_name_length_max = 200; ///< of a segment: made of several such names

/// What lies in a segment.
enum class SegmentKind : std::uint32_t {
    untyped = 0, ///< private to who made it
    registry = 1,
    pool_control = 2,
    pool_payload = 3,
    port = 4,
};

/// The kind, for people to read.
[[nodiscard]] std::string_view name_of(SegmentKind kind) noexcept;

/// What a named segment begins with, in a page of its own.
struct SegmentHeader {
    std::uint64_t magic;
    std::uint32_t layout_version;
    std::uint32_t kind;
    std::uint64_t data_bytes;      ///< what follows this page, in whole pages
    std::uint64_t parameters_hash; ///< of what its layout depends on: capacity, counts, sizes of structures
    std::uint32_t creator_pid;     ///< for people to read, as are the following
    std::uint32_t reserved;
    char label[128]; ///< what it is called in its domain, ended by a zero
    char unused[4096 - 168];
};

inline constexpr std::uint64_t segment_magic = 0x3130'7365'6769'6577; // "wieges01" on little-endian machines
/// Which layout of shared memory this is; segments of another are refused.
inline constexpr std::uint32_t layout_version = 2;
inline constexpr std::size_t segment_header_bytes = 4096;
static_assert(sizeof(SegmentHeader) == segment_header_bytes);
static_assert(offsetof(SegmentHeader, layout_version) == 8 && offsetof(SegmentHeader, kind) == 12 &&
              offsetof(SegmentHeader, data_bytes) == 16 && offsetof(SegmentHeader, parameters_hash) == 24 &&
              offsetof(SegmentHeader, creator_pid) == 32 && offsetof(SegmentHeader, label) == 40);

/// One number for what a layout depends on. The order counts.
[[nodiscard]] constexpr std::uint64_t hash_parameters(std::initializer_list<std::uint64_t> parameters) noexcept {
    std::uint64_t hash = 0x9e37'79b9'7f4a'7c15 + parameters.size();
    for (const std::uint64_t parameter : parameters) { // the finalizer of splitmix64
        hash = (hash ^ parameter) + 0x9e37'79b9'7f4a'7c15;
        hash = (hash ^ (hash >> 30)) * 0xbf58'476d'1ce4'e5b9;
        hash = (hash ^ (hash >> 27)) * 0x94d0'49bb'1331'11eb;
        hash ^= hash >> 31;
    }
    return hash;
}

/// For names that users give: 1 to 64 of [A-Za-z0-9._-], not . or .. `what` says what it is the name of.
/// Throws: invalid_name.
void check_name(std::string_view what, std::string_view name);

/// Whom a segment belongs to.
using SegmentOwner = FileOwner;

/// How a segment is mapped.
enum class SegmentAccess { read_write, read_only };

/// How a segment is made.
struct SegmentOptions {
    SegmentKind kind = SegmentKind::untyped;
    std::uint64_t parameters_hash = 0;
    std::string_view label = {};            ///< cut after 127 bytes
    std::optional<SegmentOwner> owner = {}; ///< this user alone (mode 0600), unless given; umask does not matter
    bool huge_pages = false;                ///< tried; Segment::note() tells what came of it
    bool prefault = false;                  ///< all pages are in this process's page table before it returns
};

/// What an opener wants, and what the segment has to be for that.
struct SegmentExpectation {
    SegmentAccess access = SegmentAccess::read_write;
    std::optional<SegmentKind> kind = SegmentKind::untyped; ///< std::nullopt: any
    std::optional<std::uint64_t> parameters_hash = {};      ///< std::nullopt: any
    std::optional<uid_t> owner_user = {};                   ///< std::nullopt: any
    bool prefault = false;
    std::string_view copies_folder = {}; ///< where copies of segments lie, to be read only: holes in them are zeroes
};

/// Owns one mapping of shared memory.
class Segment {
public:
    /// How it is mapped.
    using Access = SegmentAccess;

    /// Zeroed memory that children share after fork(). `bytes` is rounded up to whole pages.
    /// Throws: invalid_size, no_space.
    [[nodiscard]] static Segment anonymous(std::size_t bytes);

    /// Makes the segment `name` (1 to 200 of [A-Za-z0-9._+-], not . or ..).
    /// Throws: invalid_name, invalid_size, exists, no_space, no_permission (also: the owner cannot be set); then there
    /// is no such name, unless it exists.
    [[nodiscard]] static Segment create(std::string_view name, std::size_t bytes, const SegmentOptions& options = {});

    /// Throws: invalid_name, not_found, no_permission, wrong_kind, wrong_layout, other_parameters, truncated, corrupt.
    [[nodiscard]] static Segment open(std::string_view name, const SegmentExpectation& expected = {});
    [[nodiscard]] static Segment open(std::string_view name, Access access) {
        SegmentExpectation expected;
        expected.access = access;
        return open(name, expected);
    }

    /// Takes the name away; who has it mapped keeps the memory. False: there was no such name.
    /// Throws: invalid_name, no_permission, wrong_kind (a folder).
    static bool remove(std::string_view name);

    /// Gives the segment another name, in one step: published, or not. False: `to` is there already, and nothing has
    /// changed.
    /// Throws: invalid_name, not_found (`from`), no_permission.
    [[nodiscard]] static bool rename_noreplace(std::string_view from, std::string_view to);

    Segment(Segment&& other) noexcept;
    Segment& operator=(Segment&& other) noexcept;
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;
    ~Segment();

    /// What lies behind the header; starts on a page.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        return {mapping_ + header_bytes_, mapping_bytes_ - header_bytes_};
    }

    /// Which file is mapped, whatever it is called now. All zero for anonymous memory.
    [[nodiscard]] const FileId& file() const noexcept { return file_; }
    /// Whose it was when it was opened or made.
    [[nodiscard]] const SegmentOwner& owner() const noexcept { return owner_; }
    /// What its header said when it was opened or made.
    [[nodiscard]] SegmentKind kind() const noexcept { return kind_; }
    [[nodiscard]] std::uint64_t parameters_hash() const noexcept { return parameters_hash_; }
    [[nodiscard]] const std::string& label() const noexcept { return label_; }
    [[nodiscard]] pid_t creator_pid() const noexcept { return creator_pid_; }

    /// How many of its bytes were on huge pages when it was made; 0 where that was not asked for.
    [[nodiscard]] std::size_t huge_page_bytes() const noexcept { return huge_page_bytes_; }
    /// What was asked for and not obtained, for people to read; empty when all was.
    [[nodiscard]] const std::string& note() const noexcept { return note_; }

private:
    Segment() noexcept = default;

    std::byte* mapping_ = nullptr;
    std::size_t mapping_bytes_ = 0;
    std::size_t header_bytes_ = 0;
    std::size_t huge_page_bytes_ = 0;
    FileId file_{};
    SegmentOwner owner_{};
    SegmentKind kind_ = SegmentKind::untyped;
    pid_t creator_pid_ = 0;
    std::uint64_t parameters_hash_ = 0;
    std::string label_;
    std::string note_;
};

/// The segment's file; for LockDescriptor and LockFile.
/// Throws: invalid_name.
[[nodiscard]] std::string segment_path(std::string_view name);

/// The names in shared memory, or in a folder with copies, that start with `prefix`, sorted. What cannot be a segment's
/// name is left out.
/// Throws: not_found, no_permission (the folder).
[[nodiscard]] std::vector<std::string> list_segments(std::string_view prefix,
                                                     std::string_view folder = shared_memory_folder);

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
#pragma GCC visibility pop
