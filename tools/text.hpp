// Numbers, names and tables as people read them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weir::tool {

/// 1234567 as 1,234,567.
[[nodiscard]] std::string grouped(std::uint64_t number);

/// Bytes in the unit that suits them: 812 B, 31.5 MiB.
[[nodiscard]] std::string sized(std::uint64_t bytes);

/// Bytes within a time, as 250.3 MiB/s; "-" where there was no time.
[[nodiscard]] std::string rated(std::uint64_t bytes, std::int64_t duration_ns);

/// 512, 64k, 64KB, 1.5 GiB and so on as bytes, in steps of 1024; nothing, where `text` is no size.
[[nodiscard]] std::optional<std::uint64_t> parsed_size(std::string_view text);

/// 1 file, 2 files.
[[nodiscard]] std::string counted(std::uint64_t count, std::string_view thing);

/// A file's name without what would confuse a terminal.
[[nodiscard]] std::string printable(std::string_view name);

/// The end of `name`, at most `width_max` characters, with dots where something was left out.
[[nodiscard]] std::string shortened(const std::string& name, std::size_t width_max);

/// Rows of columns; those whose head starts with '>' are aligned to the right.
class Table {
public:
    explicit Table(std::vector<std::string> heads) : rows_{std::move(heads)} {}

    void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

    [[nodiscard]] std::string text() const;

private:
    std::vector<std::vector<std::string>> rows_;
};

} // namespace weir::tool
