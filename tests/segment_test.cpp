#include "catch.hpp"
#include "testing.hpp"

#include <weir/segment.hpp>

#include <algorithm>
#include <ctime>
#include <fstream>

#include <cstddef>

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>

using namespace weir;
using test::error_of;

namespace {

/// A name that no other run uses, taken away at the end.
class Name {
public:
    Name() : text_("weir-segment-test-" + std::to_string(getpid()) + "-" + std::to_string(serial++)) {}
    Name(const Name&) = delete;
    Name& operator=(const Name&) = delete;
    ~Name() {
        unlink(path().c_str());
        rmdir(path().c_str());
    }
    operator std::string_view() const { return text_; }
    [[nodiscard]] std::string path() const { return segment_path(text_); }
    [[nodiscard]] struct stat status() const {
        struct stat status {};
        REQUIRE(lstat(path().c_str(), &status) == 0);
        return status;
    }

    /// Changes the segment behind the library's back.
    template <class Change>
    void tamper(Change&& change) const {
        const int descriptor = shm_open(("/" + text_).c_str(), O_CREAT | O_RDWR, 0600);
        REQUIRE(descriptor >= 0);
        change(descriptor);
        close(descriptor);
    }
    /// Puts a file of these bytes there, as somebody else may.
    void write_file(const void* bytes, std::size_t count) const {
        tamper([&](int descriptor) {
            REQUIRE(ftruncate(descriptor, 0) == 0);
            REQUIRE(pwrite(descriptor, bytes, count, 0) == static_cast<ssize_t>(count));
        });
    }
    void write_header(const SegmentHeader& header) const {
        tamper(
            [&](int descriptor) { REQUIRE(pwrite(descriptor, &header, sizeof header, 0) == ssize_t{sizeof header}); });
    }

private:
    static inline int serial = 0;
    std::string text_;
};

/// What the header of a new untyped segment of one page says.
SegmentHeader right_header() {
    SegmentHeader header{};
    header.magic = segment_magic;
    header.layout_version = layout_version;
    header.data_bytes = 4096;
    return header;
}

constexpr uid_t nobody = 65534;
constexpr int kind_count = 5;

/// Asserts in a child, where the framework is not to be used.
void expect(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "FAILED: %s\n", what);
        _exit(1);
    }
}

template <class Body>
void run_in_child(Body&& body) {
    const test::ChildEnd end = test::Child(body).wait();
    CAPTURE(end.said, end.status);
    CHECK(end.succeeded());
    if (end.said.starts_with("skipped")) {
        WARN(end.said);
    }
}

void become(uid_t user, gid_t group) {
    expect(setresgid(group, group, group) == 0 && setresuid(user, user, user) == 0, "setresuid");
}

/// From here on madvise() fails with EINVAL in this process, as in a kernel that knows no advice. False: no seccomp.
bool forget_advice() {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog filter{4, program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

/// How many page faults it takes to read one byte of each page.
long faults_of_reading(std::span<const std::byte> bytes) {
    rusage before{};
    rusage after{};
    getrusage(RUSAGE_SELF, &before);
    for (std::size_t offset = 0; offset < bytes.size(); offset += 4096) {
        static_cast<void>(*static_cast<const volatile std::byte*>(&bytes[offset]));
    }
    getrusage(RUSAGE_SELF, &after);
    return after.ru_minflt - before.ru_minflt;
}

bool is_zeroed(std::span<const std::byte> bytes) {
    return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

bool starts_on_a_page(std::span<const std::byte> bytes) {
    return reinterpret_cast<std::uintptr_t>(bytes.data()) % 4096 == 0;
}

} // namespace

TEST_CASE("anonymous memory is zeroed, starts on a page and has whole pages") {
    for (const std::size_t bytes : {std::size_t{1}, std::size_t{4095}, std::size_t{4096}, std::size_t{4097}}) {
        const Segment segment = Segment::anonymous(bytes);
        CHECK(segment.bytes().size() == round_up(bytes, 4096));
        CHECK(is_zeroed(segment.bytes()));
        CHECK(starts_on_a_page(segment.bytes()));
    }
}

TEST_CASE("children share anonymous memory") {
    const Segment segment = Segment::anonymous(4096);
    segment.bytes()[0] = std::byte{1};
    CHECK(test::Child([&] {
              if (segment.bytes()[0] != std::byte{1}) {
                  _exit(1);
              }
              segment.bytes()[1] = std::byte{2};
          })
              .wait()
              .succeeded());
    CHECK(segment.bytes()[1] == std::byte{2});
}

TEST_CASE("a segment of no bytes or of too many is refused") {
    const Name name;
    for (const std::size_t bytes : {std::size_t{0}, (std::size_t{1} << 46) + 1, ~std::size_t{0}}) {
        CHECK(error_of([&] { return Segment::anonymous(bytes); }) == errc::invalid_size);
        CHECK(error_of([&] { return Segment::create(name, bytes); }) == errc::invalid_size);
    }
    CHECK(error_of([&] { return Segment::open(name); }) == errc::not_found);
}

TEST_CASE("anonymous memory beyond the limit of the process is no space") {
    const test::ChildEnd end =
        test::Child([] {
            std::size_t mapped_pages = 0;
            std::ifstream("/proc/self/statm") >> mapped_pages;
            const rlim_t limit = mapped_pages * 4096 + (rlim_t{64} << 20);
            const rlimit limits{limit, limit};
            rlimit in_force{};
            if (setrlimit(RLIMIT_AS, &limits) != 0 || getrlimit(RLIMIT_AS, &in_force) != 0 ||
                in_force.rlim_cur != limit) {
                _exit(2); // an emulator has the address space to itself, and limits nothing
            }
            _exit(error_of([] { return Segment::anonymous(std::size_t{1} << 30); }) == errc::no_space ? 0 : 1);
        }).wait();
    if (WIFEXITED(end.status) && WEXITSTATUS(end.status) == 2) {
        WARN("this system does not limit the memory of a process");
        return;
    }
    CHECK(end.succeeded());
}

TEST_CASE("a created segment is opened by its name, and both see the same bytes") {
    const Name name;
    const Segment made = Segment::create(name, 10'000);
    const Segment same = Segment::open(name);
    CHECK(made.bytes().size() == 12'288);
    CHECK(same.bytes().size() == 12'288);
    CHECK(is_zeroed(same.bytes()));
    CHECK(starts_on_a_page(made.bytes()));
    CHECK(starts_on_a_page(same.bytes()));
    CHECK(made.bytes().data() != same.bytes().data());
    made.bytes().front() = std::byte{1};
    made.bytes().back() = std::byte{2};
    CHECK(same.bytes().front() == std::byte{1});
    CHECK(same.bytes().back() == std::byte{2});
    same.bytes()[5] = std::byte{3};
    CHECK(made.bytes()[5] == std::byte{3});
}

TEST_CASE("a segment is for its user alone") {
    const Name name;
    const Segment made = Segment::create(name, 4096);
    struct stat status {};
    name.tamper([&](int descriptor) { REQUIRE(fstat(descriptor, &status) == 0); });
    CHECK((status.st_mode & 0777) == 0600);
    CHECK(status.st_uid == geteuid());
}

TEST_CASE("a segment's memory is there when it was created, all of it") {
    const Name name;
    const Segment made = Segment::create(name, std::size_t{1} << 20);
    struct stat status {};
    name.tamper([&](int descriptor) { REQUIRE(fstat(descriptor, &status) == 0); });
    CHECK(status.st_size == (1 << 20) + 4096);
    CHECK(status.st_blocks * 512 >= status.st_size);
}

TEST_CASE("creating what exists already is an error and changes nothing") {
    const Name name;
    const Segment made = Segment::create(name, 4096);
    made.bytes()[0] = std::byte{7};
    CHECK(error_of([&] { return Segment::create(name, 8192); }) == errc::exists);
    CHECK(Segment::open(name).bytes()[0] == std::byte{7});
    CHECK(made.bytes()[0] == std::byte{7});
}

TEST_CASE("opening or removing what does not exist") {
    const Name name;
    CHECK(error_of([&] { return Segment::open(name); }) == errc::not_found);
    CHECK_FALSE(Segment::remove(name));
}

TEST_CASE("a removed name is free again, and mappings of its old memory stay valid") {
    const Name name;
    const Segment old = Segment::create(name, 4096);
    old.bytes()[0] = std::byte{1};
    CHECK(Segment::remove(name));
    CHECK_FALSE(Segment::remove(name));
    const Segment made = Segment::create(name, 4096);
    CHECK(made.bytes()[0] == std::byte{0});
    CHECK(old.bytes()[0] == std::byte{1});
}

TEST_CASE("segment names have 1 to 200 letters, digits, dots, underscores, dashes and plus signs") {
    for (const std::string& bad :
         {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("/a"), std::string("a b"),
          std::string("\xc3\xa4"), std::string("a\0b", 3), std::string("a\n"), std::string(201, 'a')}) {
        CAPTURE(bad);
        CHECK(error_of([&] { return Segment::create(bad, 4096); }) == errc::invalid_name);
        CHECK(error_of([&] { return Segment::open(bad); }) == errc::invalid_name);
        CHECK(error_of([&] { return Segment::remove(bad); }) == errc::invalid_name);
    }
    const std::string prefix = "weir-test-" + std::to_string(getpid()) + "-";
    for (const std::string& good :
         {prefix + std::string(200 - prefix.size(), 'x'), prefix + "AZaz09._-+", prefix + "..."}) {
        CAPTURE(good);
        CHECK(Segment::create(good, 1).bytes().size() == 4096);
        CHECK(Segment::remove(good));
    }
}

TEST_CASE("a read-only opener reads, and dies when it writes") {
    const Name name;
    const Segment made = Segment::create(name, 4096);
    made.bytes()[0] = std::byte{9};
    const Segment reader = Segment::open(name, Segment::Access::read_only);
    CHECK(reader.bytes()[0] == std::byte{9});
    const test::ChildEnd end =
        test::Child([&] { *const_cast<volatile std::byte*>(reader.bytes().data()) = std::byte{1}; }).wait();
    CHECK_FALSE(end.succeeded());
    CHECK(made.bytes()[0] == std::byte{9});
}

TEST_CASE("a segment of somebody else is no permission") {
    const Name name;
    const Segment made = Segment::create(name, 4096);
    name.tamper([](int descriptor) { REQUIRE(fchmod(descriptor, 0) == 0); });
    const test::ChildEnd end =
        test::Child([&] {
            if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) { // root may open everything
                std::perror("setresuid");
                _exit(2);
            }
            const bool is_right =
                error_of([&] { return Segment::open(name); }) == errc::no_permission &&
                error_of([&] { return Segment::open(name, Segment::Access::read_only); }) == errc::no_permission;
            _exit(is_right ? 0 : 1);
        }).wait();
    CAPTURE(end.said);
    CHECK(end.succeeded());
}

TEST_CASE("removing somebody else's segment is no permission") {
    if (geteuid() != 0) {
        WARN("only root can make a segment of another user");
        return;
    }
    const Name name;
    const Segment made = Segment::create(name, 4096);
    const test::ChildEnd end =
        test::Child([&] {
            if (setresuid(65534, 65534, 65534) != 0) {
                _exit(2);
            }
            _exit(error_of([&] { return Segment::remove(name); }) == errc::no_permission ? 0 : 1);
        }).wait();
    CHECK(end.succeeded());
    CHECK(Segment::open(name).bytes().size() == 4096);
}

TEST_CASE("the segment of a creator that died before its header was written is refused, and can be removed") {
    const Name name;
    name.tamper([](int) {}); // created, without a size
    CHECK(error_of([&] { return Segment::open(name); }) == errc::truncated);
    name.tamper([](int descriptor) { REQUIRE(ftruncate(descriptor, 4095) == 0); });
    CHECK(error_of([&] { return Segment::open(name); }) == errc::truncated);
    name.tamper([](int descriptor) { REQUIRE(ftruncate(descriptor, 8192) == 0); }); // allocated, without a header
    CHECK(error_of([&] { return Segment::open(name); }) == errc::wrong_kind);
    CHECK(error_of([&] { return Segment::create(name, 4096); }) == errc::exists);
    CHECK(Segment::remove(name));
    CHECK(Segment::create(name, 4096).bytes().size() == 4096);
}

TEST_CASE("each field of a header that does not fit has an error of its own") {
    const Name name;
    const Segment made = Segment::create(name, 4096);
    const SegmentHeader right = right_header();
    name.write_header(right);
    CHECK(Segment::open(name).bytes().size() == 4096);

    SegmentHeader header = right;
    header.magic ^= 1;
    name.write_header(header);
    CHECK(error_of([&] { return Segment::open(name); }) == errc::wrong_kind);

    header = right;
    header.layout_version += 1;
    name.write_header(header);
    CHECK(error_of([&] { return Segment::open(name); }) == errc::wrong_layout);

    for (const std::uint64_t bytes : {std::uint64_t{4097}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
        header = right;
        header.data_bytes = bytes;
        name.write_header(header);
        CHECK(error_of([&] { return Segment::open(name); }) == errc::truncated);
    }
}

TEST_CASE("any bytes in the header give an error or a segment, never a crash") {
    const Name name;
    static_cast<void>(Segment::create(name, 4096));
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    const SegmentHeader right = right_header();
    for (int count = 0; count < 2000; ++count) {
        SegmentHeader header = right;
        const std::size_t place = random.below(offsetof(SegmentHeader, unused));
        reinterpret_cast<unsigned char*>(&header)[place] ^= static_cast<unsigned char>(1 + random.below(255U));
        name.write_header(header);
        const std::error_code error = error_of([&] {
            const Segment segment = Segment::open(name);
            segment.bytes().front() = segment.bytes().back();
            return 0;
        });
        if (error && error != errc::wrong_kind && error != errc::wrong_layout && error != errc::truncated &&
            error != errc::corrupt) {
            FAIL("byte " << place << ": " << error.message());
        }
    }
}

TEST_CASE("a segment says what it is to whoever opens it") {
    const Name name;
    const Segment made =
        Segment::create(name, 5000, {.kind = SegmentKind::pool_control, .parameters_hash = 4711, .label = "frames"});
    const Segment same = Segment::open(name, {.kind = SegmentKind::pool_control, .parameters_hash = 4711});
    for (const Segment* segment : {&made, &same}) {
        CHECK(segment->kind() == SegmentKind::pool_control);
        CHECK(segment->parameters_hash() == 4711);
        CHECK(segment->label() == "frames");
        CHECK(segment->creator_pid() == getpid());
        CHECK(segment->owner() == own_files_only());
        CHECK(segment->bytes().size() == 8192);
        CHECK(segment->note().empty());
    }
    CHECK(made.file() == same.file());
    CHECK(made.file().inode == name.status().st_ino);
    const Segment any = Segment::open(name, {.kind = std::nullopt});
    CHECK(any.kind() == SegmentKind::pool_control);
    const Name other;
    CHECK(Segment::create(other, 1).file() != made.file());
}

TEST_CASE("a segment of another kind is refused, each against each") {
    for (int kind = 0; kind < kind_count; ++kind) {
        const Name name;
        const Segment made = Segment::create(name, 4096, {.kind = static_cast<SegmentKind>(kind)});
        for (int wanted = 0; wanted < kind_count; ++wanted) {
            CAPTURE(kind, wanted);
            const std::error_code error =
                error_of([&] { return Segment::open(name, {.kind = static_cast<SegmentKind>(wanted)}); });
            CHECK(error == (kind == wanted ? std::error_code() : make_error_code(errc::wrong_kind)));
        }
        CHECK(name_of(static_cast<SegmentKind>(kind)).find("unknown") == std::string_view::npos);
    }
    const Name name;
    static_cast<void>(Segment::create(name, 4096));
    SegmentHeader header = right_header();
    header.kind = kind_count;
    name.write_header(header);
    CHECK(error_of([&] { return Segment::open(name, {.kind = std::nullopt}); }) == errc::wrong_kind);
}

TEST_CASE("a segment of other parameters is refused by who asks for them") {
    const Name name;
    const std::uint64_t hash = hash_parameters({64, 1 << 20, 32});
    const Segment made = Segment::create(name, 4096, {.kind = SegmentKind::port, .parameters_hash = hash});
    CHECK(Segment::open(name, {.kind = SegmentKind::port, .parameters_hash = hash}).bytes().size() == 4096);
    CHECK(Segment::open(name, {.kind = SegmentKind::port}).bytes().size() == 4096);
    for (const std::uint64_t other : {hash_parameters({32, 1 << 20, 64}), hash_parameters({64, 1 << 20}),
                                      hash_parameters({64, 1 << 20, 32, 0}), hash_parameters({}), hash ^ 1}) {
        CHECK(error_of([&] { return Segment::open(name, {.kind = SegmentKind::port, .parameters_hash = other}); }) ==
              errc::other_parameters);
    }
}

TEST_CASE("a label is cut where it is too long, and what is not printable is not printed") {
    const Name name;
    const std::string label = std::string(200, 'x');
    CHECK(Segment::create(name, 4096, {.label = label}).label() == label.substr(0, 127));
    CHECK(Segment::open(name).label() == label.substr(0, 127));
    SegmentHeader header = right_header();
    std::memset(header.label, '\xff', sizeof header.label); // without an end
    std::memcpy(header.label, "a\x1b[2Jb\n", 7);
    name.write_header(header);
    CHECK(Segment::open(name).label() == "a?[2Jb?" + std::string(sizeof header.label - 7, '?'));
}

TEST_CASE("a segment's mode is what was asked for, whatever the umask") {
    for (const mode_t mask : {mode_t{0}, mode_t{022}, mode_t{077}, mode_t{0777}}) {
        for (const mode_t mode : {mode_t{0600}, mode_t{0660}, mode_t{0640}}) {
            const Name name;
            SegmentOwner owner = own_files_only();
            owner.mode = mode;
            bool is_same = false;
            const mode_t before = umask(mask);
            const std::error_code error = error_of([&] {
                const Segment made = Segment::create(name, 4096, {.owner = owner});
                is_same = Segment::open(name).owner() == made.owner();
                return 0;
            });
            umask(before);
            CHECK_FALSE(error);
            CHECK(is_same);
            CHECK((name.status().st_mode & 07777) == mode);
        }
        const Name name;
        const mode_t before = umask(mask);
        static_cast<void>(Segment::create(name, 4096));
        umask(before);
        CHECK((name.status().st_mode & 07777) == 0600);
    }
}

TEST_CASE("a segment that cannot be given to its owner leaves no name") {
    if (geteuid() != 0) {
        WARN("skipped: only root can be two users");
        return;
    }
    const Name name;
    run_in_child([&] {
        become(nobody, nobody);
        expect(error_of([&] {
                   return Segment::create(name, 4096, {.owner = SegmentOwner{0, 0, 0600}});
               }) == errc::no_permission,
               "no permission");
    });
    CHECK(error_of([&] { return Segment::open(name); }) == errc::not_found);
}

TEST_CASE("a group shares the segments that are given to it, and nobody else does") {
    if (geteuid() != 0) {
        WARN("skipped: only root can be two users");
        return;
    }
    constexpr gid_t group = 12345;
    const Name name;
    const Segment made = Segment::create(name, 4096, {.owner = SegmentOwner{nobody, group, 0660}});
    CHECK(name.status().st_uid == nobody);
    CHECK(name.status().st_gid == group);
    CHECK(made.owner() == SegmentOwner{nobody, group, 0660});
    run_in_child([&] {
        become(12346, group);
        const Segment same = Segment::open(name, {.owner_user = nobody});
        same.bytes()[0] = std::byte{5};
    });
    CHECK(made.bytes()[0] == std::byte{5});
    run_in_child([&] {
        become(12346, 12346);
        expect(error_of([&] { return Segment::open(name, {.owner_user = nobody}); }) == errc::no_permission,
               "a stranger is not let in");
    });
}

TEST_CASE("another user's segment under the same name is no permission, even where it may be opened") {
    if (geteuid() != 0) {
        WARN("skipped: only root can be two users");
        return;
    }
    const Name name;
    run_in_child([&] {
        become(nobody, nobody);
        static_cast<void>(Segment::create(name, 4096, {.owner = SegmentOwner{nobody, nobody, 0666}}));
    });
    CHECK(Segment::open(name).owner().user == nobody);
    CHECK(error_of([&] { return Segment::open(name, {.owner_user = geteuid()}); }) == errc::no_permission);
    CHECK(error_of([&] { return Segment::create(name, 4096); }) == errc::exists);
    run_in_child([&] {
        become(12346, 12346);
        expect(error_of([&] { return Segment::open(name, {.owner_user = 12346}); }) == errc::no_permission,
               "not even a third user");
    });
    // What it contains does not matter: it is not looked at.
    const std::vector<char> rubbish(8192, 'x');
    name.write_file(rubbish.data(), rubbish.size());
    CHECK(error_of([&] { return Segment::open(name, {.owner_user = geteuid()}); }) == errc::no_permission);
}

TEST_CASE("what is no regular file is no segment, and opening it neither waits nor follows") {
    const Name name;
    const auto refuses = [&] {
        CHECK(error_of([&] { return Segment::open(name); }) == errc::wrong_kind);
        CHECK(error_of([&] { return Segment::open(name, Segment::Access::read_only); }) == errc::wrong_kind);
        CHECK(error_of([&] { return Segment::create(name, 4096); }) == errc::exists);
    };
    SECTION("a FIFO") {
        REQUIRE(mkfifo(name.path().c_str(), 0600) == 0);
        refuses();
        CHECK(Segment::remove(name));
    }
    SECTION("a folder") {
        REQUIRE(mkdir(name.path().c_str(), 0700) == 0);
        refuses();
        CHECK(error_of([&] { return Segment::remove(name); }) == errc::wrong_kind);
    }
    SECTION("a link to a segment") {
        const Name target;
        const Segment made = Segment::create(target, 4096);
        REQUIRE(symlink(target.path().c_str(), name.path().c_str()) == 0);
        refuses();
        CHECK(Segment::remove(name));
        CHECK(Segment::open(target).bytes().size() == 4096);
    }
    SECTION("a link to nothing") {
        const Name target;
        REQUIRE(symlink(target.path().c_str(), name.path().c_str()) == 0);
        refuses();
        CHECK(error_of([&] { return Segment::open(target); }) == errc::not_found);
    }
    SECTION("a socket") {
        const int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        REQUIRE(name.path().size() < sizeof address.sun_path);
        std::memcpy(address.sun_path, name.path().c_str(), name.path().size());
        REQUIRE(bind(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
        refuses();
        close(descriptor);
    }
}

TEST_CASE("a segment that was truncated, wherever, is refused and never read beyond its end") {
    const Name name;
    static_cast<void>(Segment::create(name, 3 * 4096, {.kind = SegmentKind::registry}));
    for (const off_t bytes : {16383, 12288, 4097, 4096, 4095, 167, 8, 7, 1, 0}) {
        CAPTURE(bytes);
        name.tamper([&](int descriptor) { REQUIRE(ftruncate(descriptor, bytes) == 0); });
        CHECK(error_of([&] { return Segment::open(name, {.kind = SegmentKind::registry}); }) == errc::truncated);
        CHECK(error_of([&] {
                  return Segment::open(name, {.access = SegmentAccess::read_only, .kind = std::nullopt});
              }) == errc::truncated);
    }
}

TEST_CASE("a segment with holes is refused, because its memory may not be there when it is needed") {
    const Name name;
    static_cast<void>(Segment::create(name, 1 << 20));
    name.tamper([](int descriptor) {
        REQUIRE(ftruncate(descriptor, 512 << 10) == 0);
        REQUIRE(ftruncate(descriptor, (1 << 20) + 4096) == 0);
    });
    CHECK(error_of([&] { return Segment::open(name); }) == errc::truncated);
    // A name that nobody has got further with than its size.
    const Name sparse;
    sparse.tamper([](int descriptor) { REQUIRE(ftruncate(descriptor, off_t{1} << 40) == 0); });
    CHECK(error_of([&] { return Segment::open(sparse); }) == errc::wrong_kind);
    SegmentHeader header = right_header();
    header.data_bytes = (std::uint64_t{1} << 40) - 4096;
    sparse.write_header(header);
    CHECK(error_of([&] { return Segment::open(sparse); }) == errc::truncated);
}

TEST_CASE("a file that is larger than its header says is mapped as far as the header says") {
    const Name name;
    static_cast<void>(Segment::create(name, 4096));
    name.tamper([](int descriptor) { REQUIRE(ftruncate(descriptor, off_t{1} << 45) == 0); });
    CHECK(Segment::open(name).bytes().size() == 4096);
}

TEST_CASE("a segment's size is a number of pages that is not zero") {
    const Name name;
    static_cast<void>(Segment::create(name, 3 * 4096));
    for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{4095}, std::uint64_t{4097}}) {
        SegmentHeader header = right_header();
        header.data_bytes = bytes;
        name.write_header(header);
        CHECK(error_of([&] { return Segment::open(name); }) == errc::corrupt);
    }
}

TEST_CASE("a segment of the older layout is another layout, and not something else") {
    // magic, layout version 1, reserved, data bytes: all that a header of version 1 has
    const struct {
        std::uint64_t magic = segment_magic;
        std::uint32_t version = 1;
        std::uint32_t reserved = 0;
        std::uint64_t data_bytes = 4096;
        std::byte rest[8168] = {};
    } old;
    const Name name;
    name.write_file(&old, sizeof old);
    for (int kind = 0; kind < kind_count; ++kind) {
        CHECK(error_of([&] { return Segment::open(name, {.kind = static_cast<SegmentKind>(kind)}); }) ==
              errc::wrong_layout);
    }
}

TEST_CASE("a segment of each kind that another version made is refused, and the error says what to do") {
    const Name name;
    for (int number = 0; number < kind_count; ++number) {
        const auto kind = static_cast<SegmentKind>(number);
        const Segment made = Segment::create(name, 4096, {.kind = kind, .label = "frames"});
        SegmentHeader header = right_header();
        header.kind = static_cast<std::uint32_t>(kind);
        for (const std::uint32_t version : {layout_version - 1, layout_version + 1, 0xffff'ffffU}) {
            header.layout_version = version;
            name.write_header(header);
            for (const std::optional<SegmentKind> wanted : {std::optional(kind), std::optional<SegmentKind>()}) {
                std::string said;
                try {
                    static_cast<void>(Segment::open(name, {.kind = wanted}));
                } catch (const std::system_error& error) {
                    CHECK(error.code() == errc::wrong_layout);
                    said = error.what();
                }
                INFO(said);
                CHECK(said.find(std::string(name)) != std::string::npos);
                CHECK(said.find("it has layout version " + std::to_string(version) + ", this library has " +
                                std::to_string(layout_version)) != std::string::npos);
                CHECK(said.find("use one version of weir in all processes") != std::string::npos);
            }
        }
        REQUIRE(Segment::remove(name));
    }
}

TEST_CASE("a foreign file and random bytes of any length are an error, and stay as they are") {
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    for (int count = 0; count < 300; ++count) {
        const Name name;
        std::vector<std::uint64_t> words(random.below(std::size_t{2048}) + 1);
        for (std::uint64_t& word : words) {
            word = random.next();
        }
        if (random.one_in(2)) { // the beginning is right, the rest is not
            words[0] = segment_magic;
        }
        if (random.one_in(2) && words.size() > 1) {
            words[1] = layout_version | random.below(std::uint64_t{6}) << 32;
        }
        if (random.one_in(2) && words.size() > 2) {
            words[2] = random.below(std::uint64_t{4}) * 4096;
        }
        name.write_file(words.data(), words.size() * 8);
        const struct stat before = name.status();
        for (const auto access : {SegmentAccess::read_only, SegmentAccess::read_write}) {
            const std::error_code error = error_of([&] {
                const Segment segment = Segment::open(name, {.access = access, .kind = std::nullopt, .prefault = true});
                return is_zeroed(segment.bytes()); // all of it can be read
            });
            if (error && error != errc::wrong_kind && error != errc::wrong_layout && error != errc::truncated &&
                error != errc::corrupt) {
                FAIL(error.message());
            }
        }
        const struct stat after = name.status();
        CHECK(before.st_size == after.st_size);
        CHECK(before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
    }
}

TEST_CASE("names that users give have 1 to 64 letters, digits, dots, underscores and dashes") {
    for (const std::string& good :
         {std::string("a"), std::string(64, 'x'), std::string("AZaz09._-"), std::string("...")}) {
        CHECK_FALSE(error_of([&] { return check_name("pool name", good), 0; }));
    }
    for (const std::string& bad :
         {std::string(), std::string(65, 'x'), std::string("."), std::string(".."), std::string("a+b"),
          std::string("a/b"), std::string("a b"), std::string("a\0b", 3), std::string("\xc3\xa4")}) {
        CAPTURE(bad);
        CHECK(error_of([&] { return check_name("pool name", bad), 0; }) == errc::invalid_name);
    }
    try {
        check_name("pool name", "a/\x1b");
        FAIL("it did not throw");
    } catch (const std::system_error& error) {
        CHECK(std::string(error.what()).find("pool name \"a/?\"") != std::string::npos);
    }
}

TEST_CASE("a private name becomes the public one in one step, unless that is there") {
    const Name from;
    const Name to;
    const Segment made = Segment::create(from, 4096);
    made.bytes()[0] = std::byte{1};
    CHECK(Segment::rename_noreplace(from, to));
    CHECK(error_of([&] { return Segment::open(from); }) == errc::not_found);
    CHECK(Segment::open(to).file() == made.file());

    const Segment second = Segment::create(from, 4096);
    CHECK_FALSE(Segment::rename_noreplace(from, to));
    CHECK(Segment::open(to).file() == made.file());
    CHECK(Segment::open(from).file() == second.file());
    CHECK_FALSE(Segment::rename_noreplace(to, to));

    const Name missing;
    CHECK(error_of([&] { return Segment::rename_noreplace(missing, to); }) == errc::not_found);
    CHECK(error_of([&] { return Segment::rename_noreplace("a/b", to); }) == errc::invalid_name);
    CHECK(error_of([&] { return Segment::rename_noreplace(from, ".."); }) == errc::invalid_name);
}

TEST_CASE("of many who publish under one name, one succeeds") {
    for (int round = 0; round < 20; ++round) {
        const Name to;
        std::vector<std::unique_ptr<test::Child>> children;
        for (int number = 0; number < 4; ++number) {
            children.push_back(std::make_unique<test::Child>([&to] {
                const std::string from = "weir-segment-test-rename-" + std::to_string(getpid());
                static_cast<void>(Segment::create(from, 4096));
                const bool is_mine = Segment::rename_noreplace(from, to);
                if (!is_mine) {
                    expect(Segment::remove(from), "it has its own still");
                }
                _exit(is_mine ? 1 : 0);
            }));
        }
        int published = 0;
        for (auto& child : children) {
            const test::ChildEnd end = child->wait();
            CAPTURE(end.said);
            REQUIRE(WIFEXITED(end.status));
            published += WEXITSTATUS(end.status);
        }
        CHECK(published == 1);
    }
}

TEST_CASE("the names that start alike are listed in order") {
    const std::string prefix = "weir-segment-test-list-" + std::to_string(getpid()) + "+";
    CHECK(list_segments(prefix).empty());
    const std::vector<std::string> names{prefix, prefix + "a", prefix + "b", prefix + "b.c"};
    for (const std::string& name : {names[2], names[0], names[3], names[1]}) {
        static_cast<void>(Segment::create(name, 1));
    }
    const std::string strange = std::string(shared_memory_folder) + "/" + prefix + " strange";
    REQUIRE(mkdir(strange.c_str(), 0700) == 0);
    CHECK(list_segments(prefix) == names);
    CHECK(list_segments(prefix + "b") == std::vector<std::string>{names[2], names[3]});
    CHECK(rmdir(strange.c_str()) == 0);
    for (const std::string& name : names) {
        CHECK(Segment::remove(name));
    }
    CHECK(list_segments(prefix).empty());
}

TEST_CASE("huge pages are obtained as verified, or a note says what was") {
    const Name name;
    constexpr std::size_t bytes = std::size_t{6} << 20; // and a header: three huge pages and a rest
    const Segment made = Segment::create(name, bytes, {.huge_pages = true});
    CHECK(made.bytes().size() == bytes);
    CHECK(is_zeroed(made.bytes()));
    CAPTURE(made.note(), made.huge_page_bytes());
    CHECK((made.huge_page_bytes() == bytes) == made.note().empty());
    if (!made.note().empty()) {
        CHECK(made.note().find("huge pages") != std::string::npos);
        WARN(made.note());
    }
    CHECK(name.status().st_blocks * 512 >= static_cast<off_t>(bytes + 4096));
    const Segment same = Segment::open(name);
    made.bytes().back() = std::byte{1};
    CHECK(same.bytes().back() == std::byte{1});

    const Name small;
    const Segment page = Segment::create(small, 4096, {.huge_pages = true});
    CHECK(page.huge_page_bytes() == 0);
    CHECK_FALSE(page.note().empty());
    const Name plain;
    CHECK(Segment::create(plain, bytes).note().empty());
}

TEST_CASE("what was pre-faulted is read without a fault") {
    if (test::is_sanitized) {
        WARN("skipped: the sanitizer's own bookkeeping makes page faults");
        return;
    }
    const Name name;
    constexpr std::size_t page_count = 2000;
    const auto check_all = [&] {
        const Segment made = Segment::create(name, page_count * 4096, {.prefault = true});
        expect(faults_of_reading(made.bytes()) < 20, "made");
        expect(is_zeroed(made.bytes()), "and zero");
        made.bytes()[4096] = std::byte{7};
        const Segment same = Segment::open(name, {.prefault = true});
        expect(faults_of_reading(same.bytes()) < 20, "opened for writing");
        const Segment reader = Segment::open(name, {.access = SegmentAccess::read_only, .prefault = true});
        expect(faults_of_reading(reader.bytes()) < 20, "opened for reading");
        expect(reader.bytes()[4096] == std::byte{7} && same.bytes()[4096] == std::byte{7}, "nothing is written");
        const Segment lazy = Segment::open(name);
        expect(faults_of_reading(lazy.bytes()) >= 20, "without it there are faults (or this test shows nothing)");
    };
    SECTION("by a kernel that knows the advice") {
        run_in_child(check_all);
    }
    SECTION("by one that does not") {
        run_in_child([&] {
            if (!forget_advice()) {
                std::fprintf(stderr, "skipped: no seccomp\n");
                _exit(0);
            }
            check_all();
        });
    }
}

TEST_CASE("a kernel that knows no advice gives a segment on small pages, and a note") {
    const Name name;
    run_in_child([&] {
        if (!forget_advice()) {
            std::fprintf(stderr, "skipped: no seccomp\n");
            _exit(0);
        }
        const Segment made = Segment::create(name, std::size_t{4} << 20, {.huge_pages = true});
        if (made.huge_page_bytes() == 0) { // unless /dev/shm is mounted with huge=always
            expect(made.note().find("huge pages") != std::string::npos, "a note");
        }
        expect(is_zeroed(made.bytes()), "it works");
    });
}

TEST_CASE("a process that gets signals all the time creates a large segment") {
    const Name name;
    run_in_child([&] {
        struct sigaction action {};
        action.sa_handler = [](int) {};
        sigaction(SIGUSR1, &action, nullptr); // without SA_RESTART
        timer_t timer{};
        sigevent event{};
        event.sigev_notify = SIGEV_SIGNAL;
        event.sigev_signo = SIGUSR1;
        expect(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
        itimerspec often{};
        often.it_interval.tv_nsec = 500'000;
        often.it_value.tv_nsec = 500'000;
        expect(timer_settime(timer, 0, &often, nullptr) == 0, "timer_settime");
        const Segment made = Segment::create(name, std::size_t{192} << 20);
        timer_delete(timer);
        expect(made.bytes().size() == std::size_t{192} << 20, "all of it");
    });
    CHECK(name.status().st_blocks * 512 >= off_t{192} << 20);
}

TEST_CASE("a segment beyond the limit of a file's size is no space, and no signal") {
    const Name name;
    run_in_child([&] {
        const rlimit limit{1 << 20, 1 << 20};
        expect(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
        expect(error_of([&] { return Segment::create(name, 1 << 20); }) == errc::no_space, "no space");
        expect(error_of([&] { return Segment::open(name); }) == errc::not_found, "and no name");
        expect(Segment::create(name, (1 << 20) - 4096).bytes().size() == (1 << 20) - 4096, "a smaller one");
    });
}

TEST_CASE("a segment is moved with its mapping") {
    Segment first = Segment::anonymous(4096);
    first.bytes()[0] = std::byte{1};
    const std::byte* address = first.bytes().data();
    Segment second(std::move(first));
    CHECK(second.bytes().data() == address);
    Segment third = Segment::anonymous(8192);
    third = std::move(second);
    CHECK(third.bytes().data() == address);
    CHECK(third.bytes().size() == 4096);
    CHECK(third.bytes()[0] == std::byte{1});
}

TEST_CASE("a cursor hands out lines in order until nothing is left") {
    const test::Memory memory(5 * cache_line_bytes);
    SegmentCursor cursor(memory.span());
    const auto first = cursor.take(1);
    const auto second = cursor.take(64);
    const auto third = cursor.take(65);
    CHECK(first.data() == memory.span().data());
    CHECK(first.size() == 64);
    CHECK(second.data() == first.data() + 64);
    CHECK(third.data() == second.data() + 64);
    CHECK(third.size() == 128);
    CHECK(error_of([&] { return cursor.take(65); }) == errc::invalid_size);
    CHECK(error_of([&] { return cursor.take(~std::size_t{0}); }) == errc::invalid_size);
    CHECK(cursor.take(64).size() == 64);
    CHECK(cursor.take(0).empty());
    CHECK(error_of([&] { return cursor.take(1); }) == errc::invalid_size);
}
