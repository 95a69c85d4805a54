#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>

namespace weir::tool {

namespace {

bool continues_character(char byte) {
    return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

/// How many characters a UTF-8 text has.
std::size_t width(std::string_view text) {
    return static_cast<std::size_t>(std::ranges::count_if(text, [](char byte) { return !continues_character(byte); }));
}

} // namespace

std::string grouped(std::uint64_t number) {
    std::string text = fmt::format("{}", number);
    for (std::size_t place = text.size(); place > 3;) {
        place -= 3;
        text.insert(place, 1, ',');
    }
    return text;
}

std::string sized(std::uint64_t bytes) {
    constexpr std::array units{"KiB", "MiB", "GiB", "TiB"};
    if (bytes < 1024) {
        return fmt::format("{} B", bytes);
    }
    double amount = static_cast<double>(bytes) / 1024;
    std::size_t unit = 0;
    // 1023.95 would be printed as 1024.0.
    while (amount >= 1023.95 && unit + 1 < units.size()) {
        amount /= 1024;
        ++unit;
    }
    return fmt::format("{:.1f} {}", amount, units[unit]);
}

std::string rated(std::uint64_t bytes, std::int64_t duration_ns) {
    if (duration_ns <= 0) {
        return "-";
    }
    return sized(static_cast<std::uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(duration_ns))) +
           "/s";
}

std::optional<std::uint64_t> parsed_size(std::string_view text) {
    const std::string number(text);
    if (number.empty() || number.front() < '0' || number.front() > '9') {
        return {};
    }
    char* end = nullptr;
    double amount = std::strtod(number.c_str(), &end);
    std::string unit(end);
    unit.erase(0, unit.find_first_not_of(' '));
    std::ranges::transform(unit, unit.begin(),
                           [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    constexpr std::string_view prefixes = "kmgt";
    std::size_t power = 0;
    if (!unit.empty() && unit != "b") {
        power = prefixes.find(unit.front()) + 1;
        const std::string_view rest = std::string_view(unit).substr(1);
        if (power == 0 || (rest != "" && rest != "b" && rest != "ib")) {
            return {};
        }
    }
    for (; power > 0; --power) {
        amount *= 1024;
    }
    constexpr double bytes_max = 9e18;
    return amount < bytes_max ? std::optional(static_cast<std::uint64_t>(amount)) : std::nullopt;
}

std::string counted(std::uint64_t count, std::string_view thing) {
    return fmt::format("{} {}{}", grouped(count), thing, count == 1 ? "" : "s");
}

std::string printable(std::string_view name) {
    std::string text(name);
    std::ranges::replace_if(
        text, [](char byte) { return static_cast<unsigned char>(byte) < 32 || byte == 127; }, '?');
    return text;
}

std::string shortened(const std::string& name, std::size_t width_max) {
    if (width(name) <= width_max) {
        return name;
    }
    std::size_t first = 0;
    for (std::size_t left_out = width(name) - (width_max - 2); left_out > 0; --left_out) {
        do {
            ++first;
        } while (first < name.size() && continues_character(name[first]));
    }
    return ".." + name.substr(first);
}

std::string Table::text() const {
    std::vector<std::size_t> widths(rows_.front().size());
    const auto is_right = [this](std::size_t column) { return rows_.front()[column].starts_with('>'); };
    const auto cell = [this, &is_right](const std::vector<std::string>& row, std::size_t column) {
        return &row == &rows_.front() && is_right(column) ? row[column].substr(1) : row[column];
    };
    for (const std::vector<std::string>& row : rows_) {
        for (std::size_t column = 0; column < row.size(); ++column) {
            widths[column] = std::max(widths[column], width(cell(row, column)));
        }
    }
    std::string text;
    for (const std::vector<std::string>& row : rows_) {
        std::string line;
        for (std::size_t column = 0; column < row.size(); ++column) {
            const std::string content = cell(row, column);
            const std::string padding(widths[column] - width(content), ' ');
            line += (column == 0 ? "  " : "   ") + (is_right(column) ? padding + content : content + padding);
        }
        line.erase(line.find_last_not_of(' ') + 1);
        text += line + "\n";
    }
    return text;
}

} // namespace weir::tool
