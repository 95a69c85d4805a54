// What the completion scripts of the shells ask: `weir complete WORD...`.
//
// The scripts (completion/) are a few lines each and know no verb and no option: the command knows its own.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace weir::tool {

inline constexpr const char* complete_verb = "complete";

/// Candidates for the last of `words`, which follow the command's name. None: the shell may offer files.
[[nodiscard]] std::vector<std::string> candidates(const CLI::App& weir, const std::vector<std::string>& words);

} // namespace weir::tool
