// Files in /dev/shm for the targets that open segments by name: made once, and set back before each input.
#pragma once

#include "fuzzing.hpp"

#include <cerrno>
#include <csignal>
#include <string>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fuzz {

/// What all of a process's names have in common; other processes fuzz beside it.
inline std::string own_name() {
    return "fuzz." + std::to_string(getpid());
}

/// Removes what fuzzers that crashed have left, segments as well as domains.
inline void remove_leftovers() {
    for (const std::string_view prefix : {"weir-fuzz.", "weir+"}) {
        for (const std::string& file : weir::list_segments(prefix)) {
            const std::size_t mark = file.find("fuzz.");
            if (mark == std::string::npos) {
                continue;
            }
            const int pid = std::atoi(file.c_str() + mark + 5);
            if (pid > 0 && kill(pid, 0) != 0 && errno == ESRCH) {
                weir::Segment::remove(file);
            }
        }
    }
}

/// A segment in a file, header and all.
class SharedFile {
public:
    SharedFile(std::string name, std::size_t bytes, const weir::SegmentOptions& options)
        : name_(std::move(name)), segment_(weir::Segment::create(name_, bytes, options)) {
        keep();
    }
    SharedFile(SharedFile&&) = default;

    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return segment_.bytes(); }
    [[nodiscard]] std::span<std::byte> whole() const noexcept {
        const std::span<std::byte> bytes = segment_.bytes();
        return {bytes.data() - weir::segment_header_bytes, bytes.size() + weir::segment_header_bytes};
    }
    /// As Memory's; places are those behind the header.
    void keep(std::size_t quiet_begin = 0, std::size_t quiet_bytes = 0) {
        fresh_ = Fresh(whole(), weir::segment_header_bytes + quiet_begin, quiet_bytes);
    }
    void reset() noexcept { fresh_.restore(whole()); }

    /// Whether the name still is this file's, and the file as long as it was made.
    [[nodiscard]] bool is_there() const {
        struct stat status {};
        return stat(weir::segment_path(name_).c_str(), &status) == 0 && status.st_ino == segment_.file().inode &&
               static_cast<std::size_t>(status.st_size) == whole().size();
    }

private:
    std::string name_;
    weir::Segment segment_;
    Fresh fresh_;
};

/// Whether an input leaves as many files open as there were before.
class OpenFiles {
public:
    OpenFiles() noexcept : lowest_free_(lowest_free()) {}
    OpenFiles(const OpenFiles&) = delete;
    OpenFiles& operator=(const OpenFiles&) = delete;
    ~OpenFiles() { expect(lowest_free() == lowest_free_, "what was opened is closed"); }

private:
    static int lowest_free() noexcept {
        const int number = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
        close(number);
        return number;
    }
    int lowest_free_;
};

inline constexpr const char* pool_name = "frames";
inline constexpr const char* port_names[] = {"raw", "done"};

/// A domain of which all members are dead: one pool, two ports, with messages in them and a buffer that a dead one held.
class DomainFiles {
public:
    DomainFiles() : names_(geteuid(), own_name()) {
        remove_leftovers();
        make();
    }
    DomainFiles(const DomainFiles&) = delete;
    DomainFiles& operator=(const DomainFiles&) = delete;
    ~DomainFiles() { remove(); }

    [[nodiscard]] const std::string& domain() const noexcept { return names_.domain(); }
    [[nodiscard]] const std::vector<std::span<std::byte>>& regions() const noexcept { return regions_; }

    /// Sets the files back; makes them anew where the last input had them removed.
    void reset() {
        bool are_there = true;
        for (SharedFile& file : files_) {
            are_there = are_there && file.is_there();
            file.reset();
        }
        if (!are_there) {
            remove();
            make();
        }
    }

private:
    static constexpr std::uint64_t registry_id = 4711;
    static constexpr std::uint8_t dead_slot = 2;
    static constexpr std::size_t slot_count = 40; ///< beyond what hostile writes can make the first free slot
    static constexpr weir::BufferPoolOptions pool_options{.buffer_bytes = 64, .buffer_count = 6};
    static constexpr weir::PortOptions port_options[] = {{.capacity = 4, .port_id = 0}, {.capacity = 2, .port_id = 1}};

    void remove() {
        files_.clear();
        weir::Domain::RemoveOptions options;
        options.force = true;
        options.lock_file = true;
        weir::Domain::remove(names_.domain(), options);
    }

    std::span<std::byte> make_file(const std::string& name, weir::SegmentKind kind, std::size_t bytes,
                                   const std::string& label, std::uint64_t parameters_hash = 0) {
        weir::SegmentOptions options;
        options.kind = kind;
        options.label = label;
        options.parameters_hash = parameters_hash;
        files_.emplace_back(name, bytes, options);
        return files_.back().bytes();
    }

    void make() {
        using weir::SegmentKind;
        const std::span<std::byte> registry_memory =
            make_file(names_.registry(), SegmentKind::registry, weir::Registry::bytes(), names_.domain(),
                      weir::Registry::parameters_hash());
        weir::Registry::format(registry_memory, registry_id);
        weir::Registry registry(registry_memory);
        registry.keep();
        const weir::Membership dead = registry.processes().try_join(dead_slot).value();
        registry.record(dead_slot).pid = 1;
        std::strcpy(registry.record(dead_slot).name, "camera");

        const auto segment = [&](std::uint16_t serial, SegmentKind kind, std::size_t bytes, const char* label) {
            const weir::SegmentKey key{dead_slot, 0, serial};
            return make_file(names_.segment(registry_id, key, kind), kind, bytes, label);
        };
        const auto publish = [&](weir::Directory directory, unsigned place, std::uint16_t serial, const char* label) {
            const weir::SegmentKey key{dead_slot, 0, serial};
            expect(directory.publish(place, key.word(weir::name_hash(label))), "an empty directory has room");
        };
        const std::span<std::byte> control =
            segment(1, SegmentKind::pool_control, weir::BufferPool::control_bytes(pool_options), pool_name);
        const std::span<std::byte> payload =
            segment(1, SegmentKind::pool_payload, weir::BufferPool::payload_bytes(pool_options), pool_name);
        weir::BufferPool::format(control, pool_options);
        weir::BufferPool pool(control, payload, dead);
        publish(registry.pools(), 0, 1, pool_name);
        for (unsigned place = 0; place < 2; ++place) {
            const auto serial = static_cast<std::uint16_t>(2 + place);
            const std::span<std::byte> memory =
                segment(serial, SegmentKind::port, weir::Port::bytes(port_options[place]), port_names[place]);
            weir::Port::format(memory, port_options[place]);
            publish(registry.ports(), place, serial, port_names[place]);
            const weir::Port port(memory, dead, weir::SharedBufferAllocator(pool));
            weir::Producer producer(port);
            expect(producer.try_push(pool.try_allocate()) == weir::PushResult::ok, "a new port has room");
            port.view()->attach(weir::PortEnd::producer); // and it never leaves
        }
        pool.try_allocate().forget();

        regions_.clear();
        for (SharedFile& file : files_) {
            file.keep();
            regions_.push_back(file.whole().first(64));
            regions_.push_back(file.bytes().first(256));
        }
        const std::size_t first_records = slot_count * sizeof(weir::MemberRecord);
        files_[0].keep(offsetof(weir::RegistryState, records) + first_records,
                       sizeof(weir::RegistryState::records) - first_records);
        files_[1].keep(lanes_offset(slot_count), lanes_offset(weir::process_slot_count) - lanes_offset(slot_count));
        const std::size_t headers_offset =
            sizeof(weir::BufferPoolState) + weir::FreeHints::bytes(pool_options.buffer_count);
        regions_.push_back(registry_memory.subspan(offsetof(weir::RegistryState, processes), 64));
        regions_.push_back(registry_memory.subspan(offsetof(weir::RegistryState, records), 1024));
        regions_.push_back(registry_memory.subspan(offsetof(weir::RegistryState, pools), 64));
        regions_.push_back(registry_memory.subspan(offsetof(weir::RegistryState, ports), 64));
        regions_.push_back(control.subspan(headers_offset, pool_options.buffer_count * sizeof(weir::BufferHeader)));
        for (std::size_t number = files_.size() - 2; number < files_.size(); ++number) {
            const std::span<std::byte> memory = files_[number].bytes();
            regions_.push_back(memory.subspan(offsetof(weir::PortState, members), 64));
            regions_.push_back(memory.subspan(sizeof(weir::PortState), weir::Ring::bytes(4)));
            regions_.push_back(memory.subspan(sizeof(weir::PortState) + sizeof(weir::RingState), 32));
        }
    }

    weir::DomainNames names_;
    std::vector<SharedFile> files_;
    std::vector<std::span<std::byte>> regions_;
};

} // namespace fuzz
