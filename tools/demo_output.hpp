// The folder that the demo's copies are written to.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace weir::demo {

/// A temporary folder, which goes with this object and all that is in it, or the one that the user wants to keep.
class OutputFolder {
public:
    /// Makes a temporary folder where `keep` is empty; else `keep`, which must be new or empty.
    /// Throws: UsageError.
    explicit OutputFolder(const std::string& keep);
    OutputFolder(const OutputFolder&) = delete;
    OutputFolder& operator=(const OutputFolder&) = delete;
    ~OutputFolder();

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    [[nodiscard]] bool is_temporary() const noexcept { return is_temporary_; }

    /// Throws: UsageError, where fewer than `bytes` are free there.
    void require_room(std::uint64_t bytes) const;

private:
    std::filesystem::path path_;
    bool is_temporary_;
};

} // namespace weir::demo
