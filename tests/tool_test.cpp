// What the weir command computes by itself: digests, checksums, numbers for people, and the plan of the demo.
#include "../tools/crc32.hpp"
#include "../tools/demo_plan.hpp"
#include "../tools/sha256.hpp"
#include "../tools/text.hpp"

#include "catch.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using namespace weir;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
    return std::as_bytes(std::span(text));
}

std::string sha256_of(const std::string& text) {
    return tool::hexadecimal(tool::sha256(bytes_of(text)));
}

/// Bit by bit, as the definition has it.
std::uint32_t plain_crc32(const std::string& text) {
    std::uint32_t rest = 0xffffffff;
    for (const char letter : text) {
        rest ^= static_cast<unsigned char>(letter);
        for (int bit = 0; bit < 8; ++bit) {
            rest = rest >> 1 ^ ((rest & 1) != 0 ? 0xedb88320U : 0U);
        }
    }
    return ~rest;
}

std::string random_text(std::mt19937& random, std::size_t size) {
    std::string text(size, '\0');
    std::ranges::generate(text, [&random] { return static_cast<char>(random()); });
    return text;
}

/// A folder with files of given sizes, all holes.
class Folder {
public:
    explicit Folder(const std::vector<std::uint64_t>& sizes) {
        std::string name = std::filesystem::temp_directory_path() / "weir-plan-XXXXXX";
        REQUIRE(mkdtemp(name.data()) != nullptr);
        path_ = name;
        for (const std::uint64_t size : sizes) {
            names.push_back(path_ / std::to_string(names.size()));
            std::ofstream(names.back()).flush();
            std::filesystem::resize_file(names.back(), size);
        }
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { std::filesystem::remove_all(path_); }

    std::vector<std::string> names;

private:
    std::filesystem::path path_;
};

} // namespace

TEST_CASE("SHA-256 gives the digests of FIPS 180-4's examples") {
    CHECK(sha256_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(
        sha256_of("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmno"
                  "pqrstnopqrstu") == "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    CHECK(sha256_of(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("SHA-256 does not depend on how the bytes are cut into updates") {
    const auto seed = std::random_device()();
    INFO("seed " << seed);
    std::mt19937 random(seed);
    for (std::size_t size = 0; size < 300; ++size) {
        const std::string text = random_text(random, size);
        tool::Sha256 hash;
        for (std::size_t begin = 0; begin < size;) {
            const std::size_t count = std::min<std::size_t>(size - begin, random() % 130);
            hash.update(bytes_of(text).subspan(begin, count));
            begin += count;
        }
        REQUIRE(hash.finish() == tool::sha256(bytes_of(text)));
    }
}

TEST_CASE("CRC-32 is gzip's, at every length and alignment") {
    CHECK(tool::crc32(bytes_of("123456789")) == 0xcbf43926);
    const auto seed = std::random_device()();
    INFO("seed " << seed);
    std::mt19937 random(seed);
    for (std::size_t size = 0; size < 200; ++size) {
        const std::string text = random_text(random, size);
        const std::size_t begin = std::min<std::size_t>(size, random() % 8);
        REQUIRE(tool::crc32(bytes_of(text).subspan(begin)) == plain_crc32(text.substr(begin)));
    }
}

TEST_CASE("numbers are written for people") {
    CHECK(tool::grouped(0) == "0");
    CHECK(tool::grouped(999) == "999");
    CHECK(tool::grouped(1'000) == "1,000");
    CHECK(tool::grouped(1'234'567) == "1,234,567");
    CHECK(tool::sized(1'023) == "1023 B");
    CHECK(tool::sized(1'024) == "1.0 KiB");
    CHECK(tool::sized(1'048'575) == "1.0 MiB");
    CHECK(tool::sized(std::uint64_t{5} << 50) == "5120.0 TiB");
    CHECK(tool::rated(1'048'576, 500'000'000) == "2.0 MiB/s");
    CHECK(tool::rated(1, 0) == "-");
    CHECK(tool::counted(1, "file") == "1 file");
    CHECK(tool::counted(2'000, "file") == "2,000 files");
}

TEST_CASE("sizes are read as people write them") {
    CHECK(tool::parsed_size("500000") == 500'000U);
    CHECK(tool::parsed_size("64k") == 65'536U);
    CHECK(tool::parsed_size("64KB") == 65'536U);
    CHECK(tool::parsed_size("1.5 MiB") == 1'572'864U);
    CHECK(tool::parsed_size("2G") == std::uint64_t{2} << 30);
    CHECK(tool::parsed_size("8b") == 8U);
    for (const char* text : {"", "x", "-5", "+5", "nan", "inf", "1x", "1kx", "1 2", "9e30", "k"}) {
        INFO(text);
        CHECK_FALSE(tool::parsed_size(text).has_value());
    }
}

TEST_CASE("names of files are printed without what would confuse a terminal, and fit a column") {
    CHECK(tool::printable("a\nb\033[31m") == "a?b?[31m");
    CHECK(tool::printable("grün") == "grün");
    CHECK(tool::shortened("libc.so.6", 9) == "libc.so.6");
    CHECK(tool::shortened("libstdc++.so.6", 9) == "..++.so.6");
    CHECK(tool::shortened("üüüüü", 4) == "..üü");
    tool::Table table({"name", ">size"});
    table.add({"ü", "10"});
    table.add({"abcdef", "9"});
    CHECK(table.text() == "  name     size\n  ü          10\n  abcdef      9\n");
}

TEST_CASE("a plan covers each file once, in chunks, and gives every producer its share") {
    constexpr std::uint64_t chunk_bytes = 1'000;
    const auto [sizes, bytes_max] = GENERATE(table<std::vector<std::uint64_t>, std::uint64_t>({
        {{0}, 0},
        {{1}, 0},
        {{1'000}, 0},
        {{1'001}, 0},
        {{999'999}, 0},
        {{5'000, 70'000}, 0},
        {{70'000, 5'000}, 0},
        {{0, 0}, 0},
        {{1, 2'000, 3, 400'000, 5, 6'000, 70'000}, 0},
        {{1, 2'000, 3, 400'000, 5, 6'000, 70'000}, 5'500},
        {{10'000}, 2'500},
        {{1'000, 1'000, 1'000}, 1'000},
    }));
    CAPTURE(sizes, bytes_max);
    const Folder folder(sizes);
    const demo::Plan plan = demo::make_plan(
        folder.names, bytes_max == 0 ? std::nullopt : std::optional<std::uint64_t>(bytes_max), chunk_bytes);

    std::uint64_t wanted_bytes = 0;
    for (const std::uint64_t size : sizes) {
        wanted_bytes += size;
    }
    CHECK(plan.bytes == (bytes_max == 0 ? wanted_bytes : std::min(wanted_bytes, bytes_max)));
    CHECK(plan.files.size() + plan.left_out_count == sizes.size());
    CHECK((bytes_max != 0 || plan.left_out_count == 0));

    std::uint64_t message = 0;
    std::uint32_t part_number = 0;
    std::array<std::uint64_t, demo::producer_count> sequences{};
    for (std::uint32_t file = 0; file < plan.files.size(); ++file) {
        CHECK(plan.files[file].first_part == part_number);
        std::uint64_t byte = 0;
        for (std::uint32_t place = 0; place < plan.files[file].part_count; ++place, ++part_number) {
            const demo::Part& part = plan.parts.at(part_number);
            CHECK(part.file == file);
            CHECK(part.first_byte == byte);
            CHECK(part.first_message == message);
            CHECK(part.first_sequence == sequences.at(part.producer));
            REQUIRE(part.chunk_count > 0);
            for (std::uint64_t chunk = 0; chunk < part.chunk_count; ++chunk, ++message) {
                CHECK(&plan.part_of(message) == &part);
                CHECK(plan.chunk_offset(part, chunk) == byte);
                CHECK((plan.chunk_size(part, chunk) > 0 || plan.files[file].bytes == 0));
                CHECK(plan.chunk_size(part, chunk) <= chunk_bytes);
                byte += plan.chunk_size(part, chunk);
            }
            sequences.at(part.producer) += part.chunk_count;
        }
        CHECK(byte == plan.files[file].bytes);
    }
    CHECK(part_number == plan.parts.size());
    CHECK(message == plan.message_count);
    if (plan.message_count >= demo::producer_count) {
        CHECK(std::ranges::min(sequences) > 0);
    }
}

TEST_CASE("copies of files of one name have names of their own") {
    Folder folder({1, 1, 1});
    folder.names = {folder.names[0], folder.names[0], folder.names[1], folder.names[0]};
    const demo::Plan plan = demo::make_plan(folder.names, {}, 1'000);
    std::vector<std::string> names;
    for (const demo::PlannedFile& file : plan.files) {
        names.push_back(file.copy_name);
    }
    CHECK(names == std::vector<std::string>{"0", "0.2", "1", "0.3"});
}

TEST_CASE("a plan that is packed and unpacked is the same plan") {
    const Folder folder({0, 1, 2'000, 70'000, 999'999});
    const demo::Plan plan = demo::make_plan(folder.names, 900'000, 1'000);
    const std::string text = demo::pack(plan);
    const demo::Plan same = demo::unpack(text);
    CHECK(demo::pack(same) == text);
    REQUIRE(same.files.size() == plan.files.size());
    REQUIRE(same.parts.size() == plan.parts.size());
    CHECK(same.message_count == plan.message_count);
    CHECK(same.left_out_count == plan.left_out_count);
    for (std::size_t place = 0; place < plan.files.size(); ++place) {
        CHECK(same.files[place].path == plan.files[place].path);
        CHECK(same.files[place].label == plan.files[place].label);
        CHECK(same.files[place].copy_name == plan.files[place].copy_name);
        CHECK(same.files[place].bytes == plan.files[place].bytes);
        CHECK(same.files[place].size_bytes == plan.files[place].size_bytes);
    }
    for (std::uint32_t producer = 0; producer < demo::producer_count; ++producer) {
        CHECK(same.message_count_of(producer) == plan.message_count_of(producer));
    }
    for (std::size_t bytes = 0; bytes < text.size(); ++bytes) {
        CHECK_THROWS_AS(demo::unpack(std::string_view(text).substr(0, bytes)), std::runtime_error);
    }
}
