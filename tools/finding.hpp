// What `weir doctor` finds: each thing that it looked at, how it is, and what to do where it is not well.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <sys/types.h>

namespace weir::tool {

enum class Level : std::uint8_t {
    fine,
    note,    ///< it works, and something could be better
    warning, ///< it works now, and will not always
    problem, ///< it does not work
};

struct Finding {
    Level level = Level::fine;
    std::string check;       ///< what was looked at, for machines
    std::string what;        ///< how it is
    std::string to_do = {};  ///< empty where it is fine
    std::string domain = {}; ///< empty: it is the machine's
    uid_t user = 0;          ///< whose domain
};

using Findings = std::vector<Finding>;

} // namespace weir::tool
