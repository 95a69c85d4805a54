// The part of `weir doctor` that looks at the machine: it tries what weir needs, and never goes by a version number.
#pragma once

#include "finding.hpp"

namespace weir::tool {

/// Leaves nothing behind in /dev/shm, unless it is killed: then it is a domain called doctor.<pid>.
[[nodiscard]] Findings look_at_machine();

} // namespace weir::tool
