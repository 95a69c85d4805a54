#include <weir/segment.hpp>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir {

namespace {

constexpr std::size_t page_bytes = 4096;
constexpr std::size_t allocation_chunk_bytes = std::size_t{64} << 20;

class Descriptor {
public:
    explicit Descriptor(int number) noexcept : number_(number) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (number_ >= 0) {
            close(number_);
        }
    }
    [[nodiscard]] int number() const noexcept { return number_; }

private:
    int number_;
};

std::string shm_path(std::string_view name) {
    constexpr std::string_view allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    if (name.empty() || name.size() > 64 || name.find_first_not_of(allowed) != std::string_view::npos || name == "." ||
        name == "..") {
        throw_error(errc::invalid_name,
                    "segment name \"" + std::string(name) + "\": use 1 to 64 of [A-Za-z0-9._-], not . or ..");
    }
    return "/" + std::string(name);
}

[[noreturn]] void throw_errno(int error, const std::string& what) {
    switch (error) {
    case EEXIST: throw_error(errc::exists, what + ": remove it, or open it instead");
    case ENOENT: throw_error(errc::not_found, what + ": nobody has made it yet");
    case EACCES:
    case EPERM: throw_error(errc::no_permission, what + ": it belongs to another user, or its mode forbids it");
    case ENOSPC:
    case EFBIG:
    case ENOMEM: throw_error(errc::no_space, what + ": free some of /dev/shm, or ask for less");
    default: throw std::system_error(error, std::system_category(), what);
    }
}

void check_size(std::size_t bytes) {
    constexpr std::size_t bytes_max = std::size_t{1} << 46;
    if (bytes == 0 || bytes > bytes_max) {
        throw_error(errc::invalid_size, "a segment has 1 byte to 64 TiB; asked for " + std::to_string(bytes));
    }
}

std::byte* map(int descriptor, std::size_t bytes, int protection, int flags, const std::string& what) {
    void* address = mmap(nullptr, bytes, protection, flags, descriptor, 0);
    if (address == MAP_FAILED) {
        throw_errno(errno, what);
    }
    return static_cast<std::byte*>(address);
}

void allocate(int descriptor, std::size_t bytes, const std::string& what) {
    for (std::size_t offset = 0; offset < bytes;) {
        const std::size_t chunk = std::min(bytes - offset, allocation_chunk_bytes);
        const int error = posix_fallocate(descriptor, static_cast<off_t>(offset), static_cast<off_t>(chunk));
        if (error == EINTR) {
            continue; // chunks are small enough that a signal now and then does not stop the work for good
        }
        if (error != 0) {
            throw_errno(error, what);
        }
        offset += chunk;
    }
}

} // namespace

Segment Segment::anonymous(std::size_t bytes) {
    check_size(bytes);
    const std::size_t mapping_bytes = round_up(bytes, page_bytes);
    std::byte* mapping = map(-1, mapping_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                             "cannot map " + std::to_string(mapping_bytes) + " bytes of anonymous shared memory");
    return {mapping, mapping_bytes, 0};
}

Segment Segment::create(std::string_view name, std::size_t bytes) {
    check_size(bytes);
    const std::string path = shm_path(name);
    const std::string what = "cannot create segment " + path + " of " + std::to_string(bytes) + " bytes";
    const std::size_t data_bytes = round_up(bytes, page_bytes);
    const std::size_t mapping_bytes = segment_header_bytes + data_bytes;
    const Descriptor descriptor(shm_open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
    if (descriptor.number() < 0) {
        throw_errno(errno, what);
    }
    try {
        allocate(descriptor.number(), mapping_bytes, what);
        std::byte* mapping = map(descriptor.number(), mapping_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, what);
        auto* header = reinterpret_cast<SegmentHeader*>(mapping);
        header->layout_version = layout_version;
        header->data_bytes = data_bytes;
        // (1) release: who sees the magic sees the rest of the header; pairs with (2)
        shared(header->magic).store(segment_magic, std::memory_order_release);
        return {mapping, mapping_bytes, segment_header_bytes};
    } catch (...) {
        shm_unlink(path.c_str());
        throw;
    }
}

Segment Segment::open(std::string_view name, Access access) {
    const std::string path = shm_path(name);
    const std::string what = "cannot open segment " + path;
    const bool writes = access == Access::read_write;
    const Descriptor descriptor(shm_open(path.c_str(), (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC, 0));
    if (descriptor.number() < 0) {
        throw_errno(errno, what);
    }
    struct stat status {};
    if (fstat(descriptor.number(), &status) != 0) {
        throw_errno(errno, what);
    }
    const auto file_bytes = static_cast<std::size_t>(status.st_size);
    if (file_bytes < segment_header_bytes) {
        throw_error(errc::truncated, what + ": it is shorter than a header; its creator died early, or is not done");
    }
    // The size that was there when it was opened bounds all that is read: segments never shrink.
    Segment segment(map(descriptor.number(), file_bytes, writes ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, what),
                    file_bytes, segment_header_bytes);
    const auto* header = reinterpret_cast<const SegmentHeader*>(segment.mapping_);
    // (2) acquire: the rest of the header is there where the magic is; pairs with (1)
    if (shared(header->magic).load(std::memory_order_acquire) != segment_magic) {
        throw_error(errc::wrong_kind, what + ": it is no weir segment, or its creator is not done");
    }
    if (header->layout_version != layout_version) {
        throw_error(errc::wrong_layout, what + ": it has layout version " + std::to_string(header->layout_version) +
                                            ", this library has " + std::to_string(layout_version) +
                                            "; use one version of weir in all processes");
    }
    const std::uint64_t data_bytes = header->data_bytes;
    if (data_bytes > file_bytes - segment_header_bytes) {
        throw_error(errc::truncated, what + ": its header says " + std::to_string(data_bytes) + " bytes, there are " +
                                         std::to_string(file_bytes - segment_header_bytes));
    }
    return segment;
}

bool Segment::remove(std::string_view name) {
    const std::string path = shm_path(name);
    if (shm_unlink(path.c_str()) == 0) {
        return true;
    }
    if (errno == ENOENT) {
        return false;
    }
    throw_errno(errno, "cannot remove segment " + path);
}

Segment::Segment(Segment&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)), mapping_bytes_(std::exchange(other.mapping_bytes_, 0)),
      header_bytes_(std::exchange(other.header_bytes_, 0)) {}

Segment& Segment::operator=(Segment&& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapping_bytes_, other.mapping_bytes_);
    std::swap(header_bytes_, other.header_bytes_);
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
