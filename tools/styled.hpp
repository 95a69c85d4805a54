// Lines of text in styles, as a screen shows them. One byte is one column.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace weir::tool {

enum class Style : std::uint8_t {
    plain,
    dim,    ///< of no interest now
    strong, ///< what one looks for first
    head,   ///< over the columns of a table
    chosen, ///< of the heads, the one that the table is sorted by
    good,
    warning,
    bad,
};

struct Span {
    std::string text;
    Style style = Style::plain;

    friend bool operator==(const Span&, const Span&) = default;
};

using Line = std::vector<Span>;

[[nodiscard]] inline std::string text_of(const Line& line) {
    std::string text;
    for (const Span& span : line) {
        text += span.text;
    }
    return text;
}

} // namespace weir::tool
