// Whether systemd-logind removes a user's shared memory at a logout (RemoveIPC in logind.conf).
#pragma once

#include "finding.hpp"

#include <filesystem>
#include <string>

#include <sys/types.h>

namespace weir::tool {

struct RemoveIpc {
    bool is_on = true;       ///< what logind does where nobody says anything
    std::string source = {}; ///< the file that says so; empty: none does
};

/// What logind's configuration says, in the file system below `root`.
[[nodiscard]] RemoveIpc read_remove_ipc(const std::filesystem::path& root);

/// What that means for this user's domains.
[[nodiscard]] Finding judge_remove_ipc(const std::filesystem::path& root, uid_t user, const std::string& user_name);

} // namespace weir::tool
