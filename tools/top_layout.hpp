// How weir top's rows lie on a page of a given size, and how they are sorted.
#pragma once

#include "styled.hpp"
#include "top_model.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weir::top {

enum class TableChoice : std::uint8_t { all, ports, processes, pools };

/// What the user has chosen to see.
struct View {
    TableChoice tables = TableChoice::all;
    std::string sort_column; ///< its name; each table that has one so called is sorted by it
    bool is_reversed = false;
    std::size_t scroll = 0; ///< rows of the first table that are above the page
    bool shows_help = false;
    std::string domain; ///< only this one; empty: all
    std::string clock;
    std::string status; ///< at the end of the last line
};

struct PageSize {
    std::size_t columns = 80;
    std::size_t rows = 24;
};

/// The whole page: `size.rows` lines at most, of `size.columns` characters at most. A scroll that goes too far is cut.
[[nodiscard]] std::vector<tool::Line> lay_out(const Model& model, View& view, const PageSize& size);

/// Everything, as wide and as long as it is.
[[nodiscard]] std::vector<tool::Line> lay_out_in_full(const Model& model, const View& view);

/// The names of all columns to sort by.
[[nodiscard]] std::vector<std::string_view> sort_columns();

/// The column before (`step` -1) or after (1) the one sorted by, in the view's first table; none comes between the last and
/// the first.
[[nodiscard]] std::string next_sort_column(const View& view, int step);

/// A number in at most five characters, with a unit's letter in steps of `step`: 0, 0.25, 812, 45.2k, 1.23M.
[[nodiscard]] std::string brief(double number, double step = 1000);

} // namespace weir::top
