// Descriptors that forked children close, before fork() returns there.
#pragma once

#include <cstdint>
#include <functional>

namespace weir::detail {

struct DescriptorNode;

/// A descriptor in the list of those; nothing where `number` is negative.
struct [[gnu::visibility("hidden")]] ListedDescriptor {
    int number = -1;
    DescriptorNode* node = nullptr;
    std::uint64_t listed = 0; ///< what the node says while it lists this descriptor

    /// Whether the list still has it: not so in a forked child.
    [[nodiscard]] bool is_listed() const noexcept;
    /// Takes it out of the list. False: it was not in it.
    bool unlist() noexcept;
};

/// Lists what `open` returns. Where another thread forks meanwhile, and the child may have it without its entry, it is
/// closed by `close` and opened again. A negative number: nothing was opened, and errno tells why.
[[nodiscard]] ListedDescriptor open_listed(const std::function<int()>& open, const std::function<void(int)>& close);

} // namespace weir::detail
