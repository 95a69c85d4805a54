#include "catch.hpp"
#include "testing.hpp"

#include <weir/offset_ptr.hpp>

#include <array>
#include <cstring>
#include <limits>

#include <sys/mman.h>

namespace {

using weir::OffsetPtr;

struct Node {
    OffsetPtr<Node> next;
    int value;
};

/// One piece of memory that is mapped twice, at different addresses.
class TwoMappings {
public:
    TwoMappings() {
        const int descriptor = memfd_create("offset_ptr_test", MFD_CLOEXEC);
        if (descriptor < 0 || ftruncate(descriptor, page_bytes) != 0) {
            throw std::system_error(errno, std::system_category(), "memfd_create");
        }
        for (void*& mapping : mappings_) {
            mapping = mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
            if (mapping == MAP_FAILED) {
                throw std::system_error(errno, std::system_category(), "mmap");
            }
        }
        close(descriptor);
    }
    TwoMappings(const TwoMappings&) = delete;
    TwoMappings& operator=(const TwoMappings&) = delete;
    ~TwoMappings() {
        for (void* mapping : mappings_) {
            munmap(mapping, page_bytes);
        }
    }
    [[nodiscard]] Node* nodes(unsigned number) const { return static_cast<Node*>(mappings_[number]); }

    static constexpr std::size_t page_bytes = 4096;

private:
    void* mappings_[2];
};

void write_offset(OffsetPtr<int>& pointer, std::int64_t offset_bytes) {
    std::memcpy(static_cast<void*>(&pointer), &offset_bytes, sizeof offset_bytes);
}

} // namespace

TEST_CASE("zeroed bytes are a null pointer") {
    alignas(8) std::byte bytes[sizeof(OffsetPtr<int>)] = {};
    const auto& pointer = *reinterpret_cast<const OffsetPtr<int>*>(bytes);
    CHECK(pointer.get() == nullptr);
    CHECK(pointer == nullptr);
    CHECK_FALSE(static_cast<bool>(pointer));
}

TEST_CASE("a list that is built through one mapping is read through another") {
    const TwoMappings memory;
    Node* nodes = memory.nodes(0);
    REQUIRE(nodes != memory.nodes(1));
    for (int number = 0; number < 10; ++number) {
        nodes[number].value = number;
        nodes[number].next = number == 9 ? nullptr : &nodes[number + 1];
    }
    int expected = 0;
    for (const Node* node = memory.nodes(1); node != nullptr; node = node->next.get()) {
        CHECK(node->value == expected++);
        CHECK((node >= memory.nodes(1) && node < memory.nodes(1) + 10));
    }
    CHECK(expected == 10);
}

TEST_CASE("a list is read by a process that has the memory elsewhere") {
    const TwoMappings memory;
    memory.nodes(0)[0].next = &memory.nodes(0)[7];
    memory.nodes(0)[7].value = 42;
    const test::ChildEnd end = test::Child([&] {
                                   munmap(memory.nodes(0), TwoMappings::page_bytes);
                                   _exit(memory.nodes(1)->next->value == 42 ? 0 : 1);
                               }).wait();
    CHECK(end.succeeded());
}

TEST_CASE("a copy points at the same target from another place") {
    std::array<int, 4> targets{1, 2, 3, 4};
    OffsetPtr<int> first(&targets[2]);
    OffsetPtr<int> second(first);
    OffsetPtr<int> third;
    third = first;
    CHECK(first.get() == &targets[2]);
    CHECK(second.get() == &targets[2]);
    CHECK(third.get() == &targets[2]);
    CHECK(*third == 3);
    CHECK(first == second);
    third = &targets[0];
    CHECK_FALSE(third == first);
    third = nullptr;
    CHECK(third == nullptr);
    CHECK(OffsetPtr<int>(third).get() == nullptr);
}

TEST_CASE("a target lies before its pointer as well as behind it") {
    struct {
        int before = 1;
        OffsetPtr<int> pointer;
        int after = 2;
    } memory;
    memory.pointer = &memory.before;
    CHECK(*memory.pointer == 1);
    memory.pointer = &memory.after;
    CHECK(*memory.pointer == 2);
}

TEST_CASE("a pointer to itself is refused by an assertion") {
    CHECK(test::breaks_rule("cannot point at itself", [] {
        Node node{};
        node.next = &node; // next lies at offset 0
    }));
}

TEST_CASE("a checked pointer leads to nothing outside of the bounds") {
    struct {
        OffsetPtr<int> pointer;
        int values[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    } memory;
    const std::span<const std::byte> middle = std::as_bytes(std::span(memory.values).subspan(2, 4));

    memory.pointer = &memory.values[2];
    CHECK(memory.pointer.get(middle) == &memory.values[2]);
    memory.pointer = &memory.values[5];
    CHECK(memory.pointer.get(middle) == &memory.values[5]);
    memory.pointer = &memory.values[1];
    CHECK(memory.pointer.get(middle) == nullptr);
    memory.pointer = &memory.values[6];
    CHECK(memory.pointer.get(middle) == nullptr);
    memory.pointer = nullptr;
    CHECK(memory.pointer.get(middle) == nullptr);
    memory.pointer = &memory.values[2];
    CHECK(memory.pointer.get({}) == nullptr);
    CHECK(memory.pointer.get(middle.first(3)) == nullptr);
}

TEST_CASE("a checked pointer leads to nothing that is misaligned or ends beyond the bounds") {
    struct {
        OffsetPtr<int> pointer;
        int values[8] = {};
    } memory;
    const auto distance = reinterpret_cast<std::byte*>(memory.values) - reinterpret_cast<std::byte*>(&memory.pointer);
    const std::span<const std::byte> all = std::as_bytes(std::span(memory.values));
    for (const int more : {1, 2, 3, 29, 30, 31}) {
        write_offset(memory.pointer, distance + more);
        CHECK(memory.pointer.get(all) == nullptr);
    }
    write_offset(memory.pointer, distance + 28);
    CHECK(memory.pointer.get(all) == &memory.values[7]);
}

TEST_CASE("a checked pointer survives any bytes") {
    struct {
        OffsetPtr<int> pointer;
        int values[8] = {};
    } memory;
    const std::span<const std::byte> all = std::as_bytes(std::span(memory.values));
    const std::uint64_t seed = test::seed();
    CAPTURE(seed);
    test::Random random(seed);
    std::vector<std::int64_t> offsets{std::numeric_limits<std::int64_t>::min(),
                                      std::numeric_limits<std::int64_t>::max(), -1, 1, -4096};
    for (int count = 0; count < 10'000; ++count) {
        offsets.push_back(static_cast<std::int64_t>(random.next() >> random.below(64U)));
    }
    for (const std::int64_t offset : offsets) {
        write_offset(memory.pointer, offset);
        const int* target = memory.pointer.get(all);
        if (target != nullptr && (target < std::begin(memory.values) || target >= std::end(memory.values))) {
            FAIL("offset " << offset << " leads out of the bounds");
        }
    }
}
