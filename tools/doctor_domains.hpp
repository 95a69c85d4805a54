// The part of `weir doctor` that looks at domains, from outside: it joins none and changes nothing.
#pragma once

#include "finding.hpp"

#include <string>
#include <vector>

namespace weir::tool {

/// Looks at the domains that this user may read (root: everybody's), or at those of these names alone.
[[nodiscard]] Findings look_at_domains(const std::vector<std::string>& names);

} // namespace weir::tool
