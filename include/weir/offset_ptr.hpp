// offset_ptr.hpp (layer 1): OffsetPtr<T>, a pointer that holds in every mapping.
//
// Two processes map the same shared memory at different addresses, so a plain pointer stored in it is wrong for one
// of them. OffsetPtr stores the distance from itself to what it points at; as long as both lie in one mapping, that
// distance is the same everywhere.
//
//     struct Node { weir::OffsetPtr<Node> next; int value; };   // lies in shared memory
//     node->next = other;                                       // other lies in the same mapping
//     for (Node* n = first; n != nullptr; n = n->next.get()) { ... }
//
// Zeroed bytes are a null pointer. An OffsetPtr can therefore not point at itself, which asks for a type that contains
// its own pointer at offset 0 and points at it; an assertion names the rule. The bytes may be untrusted: get(bounds)
// returns null for a target outside the given range instead of an address that must not be used.
//
// get || get: yes; anything || assignment: no, the caller orders it (it is a plain integer, not an atomic).
// Progress: wait-free.
// If the caller dies here: an assignment is one aligned 8-byte store; it happened or it did not. [crash: none, one store]
// Source: self-relative pointers, as in most shared-memory libraries; the idea is that of position-independent code.
#pragma once

#include <weir/platform.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

#pragma GCC visibility push(default)
namespace weir {

/// A pointer to something in the same mapping.
template <class T>
class OffsetPtr {
public:
    OffsetPtr() noexcept = default;
    /// They point at their target, and where that is null, at nothing; a copy points at the same.
    OffsetPtr(T* target) noexcept { set(target); }
    OffsetPtr(const OffsetPtr& other) noexcept { set(other.get()); }
    OffsetPtr& operator=(const OffsetPtr& other) noexcept {
        set(other.get());
        return *this;
    }
    OffsetPtr& operator=(T* target) noexcept {
        set(target);
        return *this;
    }
    ~OffsetPtr() = default;

    [[nodiscard]] T* get() const noexcept {
        return offset_bytes_ == 0 ? nullptr : reinterpret_cast<T*>(self() + static_cast<std::uintptr_t>(offset_bytes_));
    }

    /// The target, or null where not all of it lies in `bounds` or it is not aligned.
    [[nodiscard]] T* get(std::span<const std::byte> bounds) const noexcept {
        const std::uintptr_t target = self() + static_cast<std::uintptr_t>(offset_bytes_);
        const auto first = reinterpret_cast<std::uintptr_t>(bounds.data());
        if (offset_bytes_ == 0 || bounds.size() < sizeof(T) || target < first ||
            target - first > bounds.size() - sizeof(T) || target % alignof(T) != 0) {
            return nullptr;
        }
        return reinterpret_cast<T*>(target);
    }

    [[nodiscard]] T& operator*() const noexcept { return *get(); }
    [[nodiscard]] T* operator->() const noexcept { return get(); }
    [[nodiscard]] explicit operator bool() const noexcept { return offset_bytes_ != 0; }
    friend bool operator==(const OffsetPtr& left, const OffsetPtr& right) noexcept { return left.get() == right.get(); }
    friend bool operator==(const OffsetPtr& left, std::nullptr_t) noexcept { return left.offset_bytes_ == 0; }

private:
    [[nodiscard]] std::uintptr_t self() const noexcept { return reinterpret_cast<std::uintptr_t>(this); }

    void set(T* target) noexcept {
        const auto address = reinterpret_cast<std::uintptr_t>(target);
        WEIR_ASSERT(address != self(), "an OffsetPtr cannot point at itself: that is its null value");
        offset_bytes_ = target == nullptr ? 0 : static_cast<std::int64_t>(address - self());
    }

    std::int64_t offset_bytes_ = 0;
};

static_assert(sizeof(OffsetPtr<int>) == 8 && alignof(OffsetPtr<int>) == 8);

} // namespace weir
#pragma GCC visibility pop
