// A file that others may read at any moment: they find the old text or the new one, never a part.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <sys/types.h>

namespace weir::tool {

/// Writes `text` to the standard output, or, where `path` is not empty, under another name beside it, which is then
/// renamed. What is no file (a pipe, a terminal) is written as it is. Without a mode the umask decides.
/// Throws: std::runtime_error.
void write_output(const std::string& path, std::string_view text, std::optional<mode_t> mode = {});

} // namespace weir::tool
