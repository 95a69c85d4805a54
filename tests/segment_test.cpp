#include "catch.hpp"
#include "testing.hpp"

#include <weir/segment.hpp>

#include <algorithm>
#include <fstream>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

using namespace weir;
using test::error_of;

namespace {

/// A name that no other run uses, taken away at the end.
class Name {
public:
    Name() : text_("weir-segment-test-" + std::to_string(getpid()) + "-" + std::to_string(serial++)) {}
    Name(const Name&) = delete;
    Name& operator=(const Name&) = delete;
    ~Name() { shm_unlink(("/" + text_).c_str()); }
    operator std::string_view() const { return text_; }

    /// Changes the segment behind the library's back.
    template <class Change>
    void tamper(Change&& change) const {
        const int descriptor = shm_open(("/" + text_).c_str(), O_CREAT | O_RDWR, 0600);
        REQUIRE(descriptor >= 0);
        change(descriptor);
        close(descriptor);
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
            setrlimit(RLIMIT_AS, &limits);
            _exit(error_of([] { return Segment::anonymous(std::size_t{1} << 30); }) == errc::no_space ? 0 : 1);
        }).wait();
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
