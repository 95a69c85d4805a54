#include <weir/segment.hpp>

#include "files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace weir {

namespace {

using detail::Descriptor;
using detail::throw_errno;

constexpr std::size_t page_bytes = 4096;
constexpr std::size_t allocation_chunk_bytes = std::size_t{64} << 20;
constexpr std::size_t usual_huge_page_bytes = std::size_t{2} << 20;

// Older headers of the C library do not know these; older kernels say EINVAL.
constexpr int advice_populate_read = 22;
constexpr int advice_populate_write = 23;
constexpr int advice_collapse = 25;
constexpr unsigned int rename_noreplace_flag = 1;

constexpr std::string_view name_characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
constexpr std::string_view segment_name_characters =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+";

bool is_name(std::string_view name, std::size_t length_max, std::string_view characters) noexcept {
    return !name.empty() && name.size() <= length_max && name.find_first_not_of(characters) == std::string_view::npos &&
           name != "." && name != "..";
}

void check_size(std::size_t bytes) {
    constexpr std::size_t bytes_max = std::size_t{1} << 46;
    if (bytes == 0 || bytes > bytes_max) {
        throw_error(errc::invalid_size, "a segment has 1 byte to 64 TiB; asked for " + std::to_string(bytes));
    }
}

void set_size(int descriptor, std::size_t bytes, const std::string& what) {
    rlimit limit{};
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur) {
        throw_error(errc::no_space, what + ": the limit of a file's size is " + std::to_string(limit.rlim_cur) +
                                        " bytes (ulimit -f); raise it"); // going on would be SIGXFSZ
    }
    if (ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) {
        throw_errno(errno, what);
    }
}

void allocate(int descriptor, std::size_t bytes, const std::string& what) {
    std::size_t chunk_max = allocation_chunk_bytes;
    for (std::size_t offset = 0; offset < bytes;) {
        const std::size_t chunk = std::min(bytes - offset, chunk_max);
        const int error = posix_fallocate(descriptor, static_cast<off_t>(offset), static_cast<off_t>(chunk));
        if (error == EINTR) {
            // The kernel takes an interrupted chunk back as a whole; smaller ones get done between frequent signals.
            chunk_max = std::max(chunk / 2 / page_bytes * page_bytes, page_bytes);
            continue;
        }
        if (error != 0) {
            throw_errno(error, what);
        }
        offset += chunk;
    }
}

std::size_t huge_page_size() noexcept {
    std::size_t bytes = 0;
    if (std::FILE* file = std::fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "re")) {
        if (std::fscanf(file, "%zu", &bytes) != 1) {
            bytes = 0;
        }
        std::fclose(file);
    }
    return bytes != 0 && bytes % page_bytes == 0 ? bytes : usual_huge_page_bytes;
}

/// Maps a file from its beginning; on a huge page's boundary, where it is large enough for one.
std::byte* map_file(int descriptor, std::size_t bytes, bool writes, const std::string& what) {
    const int protection = writes ? PROT_READ | PROT_WRITE : PROT_READ;
    const std::size_t alignment = bytes >= usual_huge_page_bytes ? huge_page_size() : page_bytes;
    std::byte* place = nullptr;
    if (bytes >= alignment && alignment > page_bytes) {
        const std::size_t reserved_bytes = bytes + alignment;
        void* reserved = mmap(nullptr, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (reserved != MAP_FAILED) {
            auto* begin = static_cast<std::byte*>(reserved);
            const std::size_t skipped =
                round_up(reinterpret_cast<std::uintptr_t>(begin), alignment) - reinterpret_cast<std::uintptr_t>(begin);
            place = begin + skipped;
            if (skipped != 0) {
                munmap(begin, skipped);
            }
            const std::size_t kept = round_up(bytes, page_bytes);
            if (reserved_bytes > skipped + kept) {
                munmap(place + kept, reserved_bytes - skipped - kept);
            }
        }
    }
    void* address = mmap(place, bytes, protection, MAP_SHARED | (place != nullptr ? MAP_FIXED : 0), descriptor, 0);
    if (address == MAP_FAILED) {
        const int error = errno;
        if (place != nullptr) {
            munmap(place, bytes);
        }
        throw_errno(error, what);
    }
    return static_cast<std::byte*>(address);
}

/// Brings all pages in, without changing a byte.
void prefault(std::byte* mapping, std::size_t bytes, bool writes) noexcept {
    if (madvise(mapping, bytes, writes ? advice_populate_write : advice_populate_read) == 0 || errno != EINVAL) {
        return;
    }
    for (std::size_t offset = 0; offset < bytes; offset += page_bytes) {
        auto& word = *reinterpret_cast<std::uint64_t*>(mapping + offset);
        if (writes) {
            // relaxed: adds nothing; it is the page fault that counts
            shared(word).fetch_add(0, std::memory_order_relaxed);
        } else {
            // relaxed: as above, and what is read is not used
            static_cast<void>(shared(word).load(std::memory_order_relaxed));
        }
    }
}

/// How many bytes of [begin, begin + bytes) are mapped by huge pages, as the kernel tells; std::nullopt: it does not.
std::optional<std::size_t> mapped_huge_bytes(const std::byte* begin, std::size_t bytes) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen("/proc/self/smaps", "re"), std::fclose);
    if (file == nullptr) {
        return std::nullopt;
    }
    const auto first = reinterpret_cast<std::uintptr_t>(begin);
    std::size_t sum = 0;
    bool is_ours = false;
    bool was_seen = false;
    char line[4352]; // a path is the longest of what a line holds
    while (std::fgets(line, sizeof line, file.get()) != nullptr) {
        unsigned long long from = 0;
        unsigned long long to = 0;
        std::size_t kilobytes = 0;
        if (std::sscanf(line, "%llx-%llx ", &from, &to) == 2) {
            is_ours = from >= first && from < first + bytes;
            was_seen |= is_ours;
        } else if (is_ours && std::sscanf(line, "ShmemPmdMapped: %zu kB", &kilobytes) == 1) {
            sum += kilobytes * 1024;
        }
    }
    return was_seen ? std::optional(std::min(sum, bytes)) : std::nullopt;
}

/// Tries all that makes the kernel use huge pages; what it allocates by the way is allocated.
void ask_for_huge_pages(std::byte* mapping, std::size_t bytes) noexcept {
    madvise(mapping, bytes, MADV_HUGEPAGE);
    // Where the kernel may do so, the fault itself brings a huge page. A full file system is an error here and no
    // SIGBUS, and is reported by who allocates the rest.
    madvise(mapping, bytes, advice_populate_write);
}

/// Collapses what is on small pages still. Returns what was obtained, and says in `note` what was not.
std::size_t collapse_huge_pages(std::byte* mapping, std::size_t bytes, std::string& note) {
    const std::size_t size = huge_page_size();
    const std::size_t possible = bytes / size * size;
    if (possible == 0) {
        note = "no huge pages: " + std::to_string(bytes) + " bytes are less than one of " + std::to_string(size);
        return 0;
    }
    int error = 0;
    for (std::size_t offset = 0; offset < possible; offset += size) {
        int tries = 3; // EAGAIN: something was in use for the moment
        while (madvise(mapping + offset, size, advice_collapse) != 0 && (error = errno) == EAGAIN && --tries > 0) {
        }
        if (error == EINVAL) {
            break; // this kernel does not, and will not for the next
        }
    }
    const std::optional<std::size_t> obtained = mapped_huge_bytes(mapping, bytes);
    if (!obtained) {
        note =
            "huge pages were asked for; whether there are any is not known, because /proc/self/smaps is not readable";
        return 0;
    }
    if (*obtained < possible) {
        note = "huge pages for " + std::to_string(*obtained) + " of " + std::to_string(bytes) +
               " bytes, the rest is on small pages: ";
        note += error == EINVAL
                    ? "set /sys/kernel/mm/transparent_hugepage/shmem_enabled to advise, or use a kernel from 6.1 on"
                    : "the kernel has no contiguous memory at the moment";
    }
    return *obtained;
}

std::string what_it_is(std::uint32_t kind) {
    return std::string(name_of(static_cast<SegmentKind>(kind)));
}

/// Whether `header`, a copy of what a file of `file_bytes` starts with, is what the opener wants.
void check_header(const SegmentHeader& header, std::size_t file_bytes, const SegmentExpectation& expected,
                  const std::string& what) {
    if (header.magic != segment_magic) {
        throw_error(errc::wrong_kind, what + ": it is no weir segment, or its creator is not done");
    }
    if (header.layout_version != layout_version) {
        throw_error(errc::wrong_layout, what + ": it has layout version " + std::to_string(header.layout_version) +
                                            ", this library has " + std::to_string(layout_version) +
                                            "; use one version of weir in all processes, or remove it once those "
                                            "of the other have ended (weir rm --force)");
    }
    if (header.kind > static_cast<std::uint32_t>(SegmentKind::port)) {
        throw_error(errc::wrong_kind,
                    what + ": its kind is " + std::to_string(header.kind) + ", which this library does not know");
    }
    if (expected.kind && header.kind != static_cast<std::uint32_t>(*expected.kind)) {
        throw_error(errc::wrong_kind,
                    what + ": it is " + what_it_is(header.kind) + ", not " + std::string(name_of(*expected.kind)));
    }
    if (header.data_bytes > file_bytes - segment_header_bytes) {
        throw_error(errc::truncated, what + ": its header says " + std::to_string(header.data_bytes) +
                                         " bytes, there are " + std::to_string(file_bytes - segment_header_bytes));
    }
    if (header.data_bytes == 0 || header.data_bytes % page_bytes != 0) {
        throw_error(errc::corrupt, what + ": its header's data_bytes is " + std::to_string(header.data_bytes) +
                                       ", no number of whole pages; remove it");
    }
    if (expected.parameters_hash && header.parameters_hash != *expected.parameters_hash) {
        throw_error(errc::other_parameters, what + ": it was made with other parameters (capacity, counts or sizes); "
                                                   "open it with the same, or use another name");
    }
}

} // namespace

std::string_view name_of(SegmentKind kind) noexcept {
    switch (kind) {
    case SegmentKind::untyped: return "an untyped segment";
    case SegmentKind::registry: return "a registry";
    case SegmentKind::pool_control: return "a pool's control segment";
    case SegmentKind::pool_payload: return "a pool's payload";
    case SegmentKind::port: return "a port";
    }
    return "a segment of an unknown kind";
}

void check_name(std::string_view what, std::string_view name) {
    if (!is_name(name, name_length_max, name_characters)) {
        throw_error(errc::invalid_name, std::string(what) + " \"" + detail::printable(name.data(), name.size()) +
                                            "\": use 1 to 64 of [A-Za-z0-9._-], not . or ..");
    }
}

std::string segment_path(std::string_view name) {
    if (!is_name(name, segment_name_length_max, segment_name_characters)) {
        throw_error(errc::invalid_name, "segment name \"" + detail::printable(name.data(), name.size()) +
                                            "\": use 1 to 200 of [A-Za-z0-9._+-], not . or ..");
    }
    return std::string(shared_memory_folder) + "/" + std::string(name);
}

std::vector<std::string> list_segments(std::string_view prefix, std::string_view folder) {
    const std::string path(folder);
    const std::unique_ptr<DIR, int (*)(DIR*)> entries(opendir(path.c_str()), closedir);
    if (entries == nullptr) {
        throw_errno(errno, "cannot list " + path);
    }
    std::vector<std::string> names;
    while (const dirent* entry = readdir(entries.get())) {
        const std::string_view name = entry->d_name;
        if (name.starts_with(prefix) && is_name(name, segment_name_length_max, segment_name_characters)) {
            names.emplace_back(name);
        }
    }
    std::ranges::sort(names);
    return names;
}

Segment Segment::anonymous(std::size_t bytes) {
    check_size(bytes);
    Segment segment;
    segment.mapping_bytes_ = round_up(bytes, page_bytes);
    void* address = mmap(nullptr, segment.mapping_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) {
        throw_errno(errno,
                    "cannot map " + std::to_string(segment.mapping_bytes_) + " bytes of anonymous shared memory");
    }
    segment.mapping_ = static_cast<std::byte*>(address);
    segment.owner_ = own_files_only();
    segment.creator_pid_ = getpid();
    return segment;
}

Segment Segment::create(std::string_view name, std::size_t bytes, const SegmentOptions& options) {
    check_size(bytes);
    const std::string path = segment_path(name);
    const std::string what = "cannot create segment " + path + " of " + std::to_string(bytes) + " bytes";
    const std::size_t data_bytes = round_up(bytes, page_bytes);
    const std::size_t mapping_bytes = segment_header_bytes + data_bytes;
    const Descriptor descriptor(detail::open_file(path, O_CREAT | O_EXCL | O_RDWR, 0600));
    if (descriptor.number() < 0 && errno == ENOENT) {
        throw_error(errc::not_found,
                    what + ": there is no " + std::string(shared_memory_folder) + "; mount a tmpfs there");
    }
    if (descriptor.number() < 0) {
        throw_errno(errno, what);
    }
    try {
        Segment segment;
        segment.owner_ = options.owner.value_or(own_files_only());
        if (const int error = detail::give_to(descriptor.number(), segment.owner_); error != 0) {
            throw_errno(error, what + " for user " + std::to_string(segment.owner_.user) + " and group " +
                                   std::to_string(segment.owner_.group));
        }
        set_size(descriptor.number(), mapping_bytes, what);
        if (!options.huge_pages) {
            allocate(descriptor.number(), mapping_bytes, what);
        }
        segment.mapping_ = map_file(descriptor.number(), mapping_bytes, true, what);
        segment.mapping_bytes_ = mapping_bytes;
        segment.header_bytes_ = segment_header_bytes;
        if (options.huge_pages) {
            ask_for_huge_pages(segment.mapping_, mapping_bytes);
            allocate(descriptor.number(), mapping_bytes, what);
            segment.huge_page_bytes_ = collapse_huge_pages(segment.mapping_, mapping_bytes, segment.note_);
        }
        if (options.prefault) {
            prefault(segment.mapping_, mapping_bytes, true);
        }
        struct stat status {};
        if (fstat(descriptor.number(), &status) != 0) {
            throw_errno(errno, what);
        }
        segment.file_ = detail::id_of(status);
        segment.kind_ = options.kind;
        segment.parameters_hash_ = options.parameters_hash;
        segment.creator_pid_ = getpid();
        auto* header = reinterpret_cast<SegmentHeader*>(segment.mapping_);
        header->layout_version = layout_version;
        header->kind = static_cast<std::uint32_t>(options.kind);
        header->data_bytes = data_bytes;
        header->parameters_hash = options.parameters_hash;
        header->creator_pid = static_cast<std::uint32_t>(segment.creator_pid_);
        options.label.copy(header->label, sizeof header->label - 1);
        segment.label_ = detail::printable(header->label, sizeof header->label);
        // (1) release: who sees the magic sees the rest of the header; pairs with (2)
        shared(header->magic).store(segment_magic, std::memory_order_release);
        return segment;
    } catch (...) {
        unlink(path.c_str());
        throw;
    }
}

Segment Segment::open(std::string_view name, const SegmentExpectation& expected) {
    const bool is_copy = !expected.copies_folder.empty();
    std::string path = segment_path(name);
    if (is_copy) {
        path = std::string(expected.copies_folder) + "/" + std::string(name);
    }
    const std::string what = "cannot open segment " + path;
    const bool writes = expected.access == Access::read_write;
    WEIR_ASSERT(!is_copy || !writes, "copies of segments are read only");
    const Descriptor descriptor(detail::open_file(path, writes ? O_RDWR : O_RDONLY));
    if (descriptor.number() < 0) {
        throw_errno(errno, what);
    }
    struct stat status {};
    if (fstat(descriptor.number(), &status) != 0) {
        throw_errno(errno, what);
    }
    if (!S_ISREG(status.st_mode)) {
        throw_error(errc::wrong_kind, what + ": it is no regular file; remove what is there under this name");
    }
    if (expected.owner_user && status.st_uid != *expected.owner_user) {
        throw_error(errc::no_permission, what + ": it belongs to user " + std::to_string(status.st_uid) +
                                             " and not to " + std::to_string(*expected.owner_user) +
                                             "; let that user, or root, remove it");
    }
    // The size that was there when it was opened bounds all that is read: segments never shrink.
    const auto file_bytes = static_cast<std::size_t>(status.st_size);
    if (file_bytes < segment_header_bytes) {
        throw_error(errc::truncated, what + ": it is shorter than a header; its creator died early, or is not done");
    }
    // Read first and mapped later: reading a hole through a mapping allocates it, which is a SIGBUS on a full /dev/shm.
    SegmentHeader header{};
    ssize_t count = 0;
    do {
        count = pread(descriptor.number(), &header, sizeof header, 0);
    } while (count < 0 && errno == EINTR);
    if (count < 0) {
        throw_errno(errno, what);
    }
    if (static_cast<std::size_t>(count) < sizeof header) {
        throw_error(errc::truncated, what + ": it became shorter than a header while it was opened");
    }
    check_header(header, file_bytes, expected, what);
    const std::size_t mapping_bytes = segment_header_bytes + header.data_bytes;
    constexpr std::size_t block_bytes = 512;
    if (!is_copy && static_cast<std::size_t>(status.st_blocks) < mapping_bytes / block_bytes) {
        throw_error(errc::truncated, what + ": of its " + std::to_string(mapping_bytes) + " bytes only " +
                                         std::to_string(static_cast<std::size_t>(status.st_blocks) * block_bytes) +
                                         " were ever allocated; remove it");
    }
    Segment segment;
    segment.mapping_ = map_file(descriptor.number(), mapping_bytes, writes, what);
    segment.mapping_bytes_ = mapping_bytes;
    segment.header_bytes_ = segment_header_bytes;
    const auto* mapped = reinterpret_cast<const SegmentHeader*>(segment.mapping_);
    // (2) acquire: the rest of the header, and what its creator wrote, is there where the magic is; pairs with (1)
    header.magic = shared(mapped->magic).load(std::memory_order_acquire);
    header.kind = mapped->kind;
    header.layout_version = mapped->layout_version;
    header.parameters_hash = mapped->parameters_hash;
    std::memcpy(header.label, mapped->label, sizeof header.label);
    check_header(header, file_bytes, expected, what);
    segment.file_ = detail::id_of(status);
    segment.owner_ = {status.st_uid, status.st_gid, static_cast<mode_t>(status.st_mode & 0777)};
    segment.kind_ = static_cast<SegmentKind>(header.kind);
    segment.parameters_hash_ = header.parameters_hash;
    segment.creator_pid_ = static_cast<pid_t>(header.creator_pid);
    segment.label_ = detail::printable(header.label, sizeof header.label);
    if (expected.prefault) {
        prefault(segment.mapping_, mapping_bytes, writes);
    }
    return segment;
}

bool Segment::remove(std::string_view name) {
    const std::string path = segment_path(name);
    if (unlink(path.c_str()) == 0) {
        return true;
    }
    if (errno == ENOENT) {
        return false;
    }
    throw_errno(errno, "cannot remove segment " + path);
}

bool Segment::rename_noreplace(std::string_view from, std::string_view to) {
    const std::string from_path = segment_path(from);
    const std::string to_path = segment_path(to);
    if (syscall(SYS_renameat2, AT_FDCWD, from_path.c_str(), AT_FDCWD, to_path.c_str(), rename_noreplace_flag) == 0) {
        return true;
    }
    if (errno == EEXIST) {
        return false;
    }
    throw_errno(errno, "cannot rename segment " + from_path + " to " + to_path);
}

Segment::Segment(Segment&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)), mapping_bytes_(std::exchange(other.mapping_bytes_, 0)),
      header_bytes_(std::exchange(other.header_bytes_, 0)), huge_page_bytes_(other.huge_page_bytes_),
      file_(other.file_), owner_(other.owner_), kind_(other.kind_), creator_pid_(other.creator_pid_),
      parameters_hash_(other.parameters_hash_), label_(std::move(other.label_)), note_(std::move(other.note_)) {}

Segment& Segment::operator=(Segment&& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapping_bytes_, other.mapping_bytes_);
    std::swap(header_bytes_, other.header_bytes_);
    std::swap(huge_page_bytes_, other.huge_page_bytes_);
    std::swap(file_, other.file_);
    std::swap(owner_, other.owner_);
    std::swap(kind_, other.kind_);
    std::swap(creator_pid_, other.creator_pid_);
    std::swap(parameters_hash_, other.parameters_hash_);
    label_.swap(other.label_);
    note_.swap(other.note_);
    return *this;
}

Segment::~Segment() {
    if (mapping_ != nullptr) {
        munmap(mapping_, mapping_bytes_);
    }
}

std::span<std::byte> SegmentCursor::take(std::size_t bytes) {
    const std::size_t padded = round_up(bytes, cache_line_bytes);
    if (padded < bytes || padded > rest_.size()) {
        throw_error(errc::invalid_size, "the segment has " + std::to_string(rest_.size()) + " bytes left, " +
                                            std::to_string(bytes) + " are needed");
    }
    const std::span<std::byte> piece = rest_.first(padded);
    rest_ = rest_.subspan(padded);
    return piece;
}

} // namespace weir
