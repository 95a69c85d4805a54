// A full /dev/shm is an error where a segment is created, and no SIGBUS later.
//
// In a mount namespace of its own this program puts a small file system in the place of /dev/shm. That takes root, or
// user namespaces; where there is neither, it is skipped (exit status 77).
#include "../testing.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

using weir::errc;
using weir::Segment;

namespace {

constexpr int skipped = 77;

[[noreturn]] void skip(const char* what) {
    std::printf("SKIP: a small /dev/shm needs root or user namespaces (%s: %s)\n", what, std::strerror(errno));
    std::exit(skipped);
}

void check(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "FAILED: %s\n", what);
        std::exit(1);
    }
}

void write_file(const char* path, const std::string& text) {
    const int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0 || write(descriptor, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
        skip(path);
    }
    close(descriptor);
}

/// From here on this process alone sees another /dev/shm.
void enter_own_namespace() {
    const uid_t user = geteuid();
    const gid_t group = getegid();
    if (unshare(CLONE_NEWNS) != 0) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
            skip("unshare");
        }
        write_file("/proc/self/setgroups", "deny");
        write_file("/proc/self/uid_map", "0 " + std::to_string(user) + " 1");
        write_file("/proc/self/gid_map", "0 " + std::to_string(group) + " 1");
    }
    if (!test::hide_mounts_at("/dev/shm")) {
        skip("hide mounts");
    }
}

void mount_shm(const char* options) {
    if (mount("tmpfs", "/dev/shm", "tmpfs", 0, options) != 0) {
        skip("mount /dev/shm");
    }
}

} // namespace

int main() {
    alarm(60);
    enter_own_namespace();
    mount_shm("size=1m,mode=1777");
    {
        const Segment small = Segment::create("small", 256 << 10);
        check(test::error_of([] { return Segment::create("large", 8 << 20); }) == errc::no_space,
              "a segment larger than /dev/shm is no_space");
        check(test::error_of([] { return Segment::open("large"); }) == errc::not_found,
              "a segment that could not be created leaves no name");
        check(test::error_of([] { return Segment::create("huge", std::size_t{1} << 40); }) == errc::no_space,
              "a segment of a terabyte is no_space");
        for (std::byte& byte : small.bytes()) { // all of it is there
            byte = std::byte{1};
        }
        const Segment second = Segment::create("second", 512 << 10);
        check(test::error_of([] { return Segment::create("third", 512 << 10); }) == errc::no_space,
              "what others left is not enough");
        for (std::byte& byte : second.bytes()) {
            byte = std::byte{2};
        }
        check(small.bytes().back() == std::byte{1}, "others keep their bytes");
    }
    check(Segment::remove("small") && Segment::remove("second"), "what was created is removed");
    check(Segment::create("third", 768 << 10).bytes().size() == 768 << 10, "there is room again");

    mount_shm("size=4m,mode=1777");
    {
        // Each kind of creation meets the full file system in its own way, and leaves no name.
        const Segment first = Segment::create("first", 3 << 20);
        for (const weir::SegmentOptions& options :
             {weir::SegmentOptions{}, weir::SegmentOptions{.prefault = true}, weir::SegmentOptions{.huge_pages = true},
              weir::SegmentOptions{.huge_pages = true, .prefault = true}}) {
            check(test::error_of([&] { return Segment::create("second", 2 << 20, options); }) == errc::no_space,
                  "a segment larger than the rest of /dev/shm is no_space, however it is asked for");
            check(weir::list_segments("") == std::vector<std::string>{"first"}, "and leaves nothing");
        }
        const std::size_t rest = (1 << 20) - 2 * 4096; // both have a header
        std::optional<Segment> second = Segment::create("second", rest, {.prefault = true});
        check(test::error_of([] { return Segment::create("third", 1); }) == errc::no_space, "now it is full");
        for (std::byte& byte : second->bytes()) {
            byte = std::byte{3};
        }
        // What others left there with holes in it would be a SIGBUS where it is read.
        for (const char* name : {"sparse", "sparse-header"}) {
            const int descriptor = open(("/dev/shm/" + std::string(name)).c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
            check(descriptor >= 0 && ftruncate(descriptor, 1 << 20) == 0, "a file of holes needs no memory");
            close(descriptor);
            for (const weir::SegmentAccess access : {weir::SegmentAccess::read_only, weir::SegmentAccess::read_write}) {
                check(test::error_of([&] {
                          return Segment::open(name, {.access = access, .kind = std::nullopt, .prefault = true});
                      }) == errc::wrong_kind,
                      "a file of holes is no segment");
            }
            check(Segment::remove(name), "it is removed");
        }
        second.reset();
        check(Segment::remove("second"), "there is a little room");
        {
            const Segment third = Segment::create("third", 4096);
            const int descriptor = open("/dev/shm/third", O_RDWR | O_CLOEXEC);
            weir::SegmentHeader header{};
            check(pread(descriptor, &header, sizeof header, 0) == sizeof header, "a right header");
            header.data_bytes = 512 << 10;
            check(pwrite(descriptor, &header, sizeof header, 0) == sizeof header &&
                      ftruncate(descriptor, 4096 + (512 << 10)) == 0,
                  "with holes behind it");
            close(descriptor);
        }
        const Segment fourth = Segment::create("fourth", rest - 4 * 4096);
        check(test::error_of([] { return Segment::open("third", {.prefault = true}); }) == errc::truncated,
              "a right header with holes behind it is truncated");
        // The lock file needs no memory, so joining finds the same full file system and says so.
        check(weir::LockFile::take(weir::segment_path("lock"), weir::own_files_only(), 0).is_held(),
              "the lock file has no pages");
    }

    mount_shm("nr_inodes=2,mode=1777");
    const Segment only = Segment::create("only", 4096);
    check(test::error_of([] { return Segment::create("another", 4096); }) == errc::no_space,
          "a file system without free inodes is no_space");
    check(test::error_of([] { return weir::LockFile::take(weir::segment_path("lock"), weir::own_files_only(), 0); }) ==
              errc::no_space,
          "nor is there room for a lock file");
    return 0;
}
