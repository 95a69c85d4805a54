// What a look at a domain gives, in words and as JSON; what the verbs that look share.
#pragma once

#include "domains.hpp"

#include <weir/observer.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace weir::tool {

using Json = nlohmann::ordered_json;

[[nodiscard]] std::string_view name_of(MemberLife life) noexcept;
/// "open" where somebody is attached, "unused" where nobody ever was, else "closed" or "died".
[[nodiscard]] std::string_view state_of(const ObservedEnd& end) noexcept;

/// The member of a slot, if it is the one that `incarnation` tells; else null.
[[nodiscard]] const ObservedMember* find_member(const DomainSnapshot& domain, std::uint8_t slot,
                                                std::uint64_t incarnation) noexcept;
/// The member that a reference word names; null, where that one has ended.
[[nodiscard]] const ObservedMember* find_member(const DomainSnapshot& domain, Owner owner) noexcept;

/// A member as people name it: camera(4711). "slot 7" for one that has ended.
[[nodiscard]] std::string label_of(const ObservedMember* member, std::uint8_t slot);

/// References of all pools, in the member's hands, and pushed by it and still in ports.
struct MemberReferences {
    std::uint64_t held_count = 0;
    std::uint64_t queued_count = 0;
};
[[nodiscard]] MemberReferences references_of(const DomainSnapshot& domain, const ObservedMember& member) noexcept;

/// Everything. The names are part of the command's interface: what is there keeps its name and its meaning.
[[nodiscard]] Json json_of(const DomainSnapshot& domain);
/// As a list.
void print_json(const std::vector<DomainSnapshot>& domains);

/// Looks at the chosen domains and has them shown. Says on stderr what could not be looked at. Returns the exit status.
[[nodiscard]] int show_snapshots(const DomainListArguments& arguments,
                                 const std::function<void(const std::vector<DomainSnapshot>&)>& show);

} // namespace weir::tool
