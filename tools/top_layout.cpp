#include "top_layout.hpp"

#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace weir::top {

namespace {

using tool::Line;
using tool::Style;

constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();
constexpr std::size_t name_width_min = 10; ///< a longer name is shortened to this before a column is left out
constexpr std::size_t tail_width_min = 10; ///< the last column is cut to this
constexpr std::size_t gap = 2;             ///< between columns, and between the parts of a line

struct Column {
    std::string_view name; ///< to sort by
    std::string_view head;
    unsigned rank; ///< the greater it is, the sooner it is left out
    bool is_number;
    std::size_t width_min; ///< so that the table does not jump about
};

constexpr Column port_columns[] = {
    {"name", "PORT", 0, false, 4},      {"fill", "FILL", 6, true, 10},      {"depth", "DEPTH", 4, true, 7},
    {"peak", "PEAK", 7, true, 5},       {"in", "IN/s", 1, true, 5},         {"out", "OUT/s", 2, true, 5},
    {"bytes", "BYTES/s", 5, true, 7},   {"full", "FULL/s", 8, true, 6},     {"empty", "EMPTY/s", 9, true, 7},
    {"pwaits", "PWAIT/s", 11, true, 7}, {"cwaits", "CWAIT/s", 12, true, 7}, {"dropped", "DROP/s", 10, true, 6},
    {"ends", "ENDS", 13, true, 4},      {"state", "STATE", 3, false, 5},
};
constexpr Column process_columns[] = {
    {"name", "PROCESS", 0, false, 4}, {"pid", "PID", 2, true, 7},      {"slot", "SLOT", 8, true, 4},
    {"life", "LIFE", 1, false, 7},    {"held", "HELD", 3, true, 5},    {"queued", "QUEUED", 4, true, 6},
    {"pushed", "PUSH/s", 5, true, 6}, {"popped", "POP/s", 6, true, 5}, {"waits", "WAITS FOR", 7, false, 9},
};
constexpr Column pool_columns[] = {
    {"name", "POOL", 0, false, 4},    {"used", "USED", 4, true, 10}, {"size", "SIZE", 5, true, 5},
    {"count", "COUNT", 2, true, 5},   {"free", "FREE", 1, true, 5},  {"held", "HELD", 3, true, 5},
    {"queued", "QUEUED", 6, true, 6},
};

struct Cell {
    std::string text;
    Style style = Style::plain;
    double key = 0; ///< of a number, to sort by
};

struct Table {
    std::span<const Column> columns;
    std::vector<std::vector<Cell>> rows;
};

/// One byte a column, and nothing that a terminal would obey.
std::string plain_text(std::string_view text) {
    std::string plain(text);
    std::ranges::replace_if(
        plain, [](char byte) { return byte < 32 || byte > 126; }, '?');
    return plain;
}

Style style_of(Concern concern) {
    switch (concern) {
    case Concern::none: return Style::plain;
    case Concern::idle: return Style::dim;
    case Concern::good: return Style::good;
    case Concern::warning: return Style::warning;
    case Concern::bad: return Style::bad;
    }
    return Style::plain;
}

Cell words(std::string_view text, Style style = Style::plain) {
    return {plain_text(text), style, 0};
}

Cell words(const State& state) {
    return words(state.text, style_of(state.concern));
}

Cell number(std::uint64_t value, Style style = Style::plain) {
    return {fmt::format("{}", value), value == 0 ? Style::dim : style, static_cast<double>(value)};
}

Cell rate(Rate value, double step = 1000, Style style = Style::plain) {
    if (value < 0) {
        return {"-", Style::dim, value};
    }
    return {brief(value, step), value > 0 ? style : Style::dim, value};
}

/// [||||    ]
Cell bar(std::uint64_t part, std::uint64_t whole) {
    constexpr std::size_t width = 8;
    const double share = whole == 0 ? 0 : static_cast<double>(std::min(part, whole)) / static_cast<double>(whole);
    auto filled = static_cast<std::size_t>(std::lround(share * width));
    // Little is not nothing, and almost all is not all.
    if (part > 0 && filled == 0) {
        filled = 1;
    } else if (part < whole && filled == width) {
        filled = width - 1;
    }
    return {fmt::format("[{}{}]", std::string(filled, '|'), std::string(width - filled, ' ')),
            part == 0       ? Style::dim
            : part >= whole ? Style::warning
                            : Style::plain,
            share};
}

/// Names say their domain where there are several.
class Names {
public:
    Names(const Model& model, const View& view) : has_prefix_(view.domain.empty() && model.domains.size() > 1) {}

    [[nodiscard]] Cell operator()(const std::string& domain, const std::string& name) const {
        return words(has_prefix_ ? domain + "/" + name : name, Style::strong);
    }

private:
    bool has_prefix_;
};

bool is_shown(const std::string& domain, const View& view) {
    return view.domain.empty() || domain == view.domain;
}

Table port_table(const Model& model, const View& view) {
    Table table{port_columns, {}};
    const Names name(model, view);
    for (const PortRow& port : model.ports) {
        if (!is_shown(port.domain, view)) {
            continue;
        }
        table.rows.push_back({
            name(port.domain, port.name),
            bar(port.depth, port.capacity),
            {fmt::format("{}/{}", port.depth, port.capacity), Style::plain, static_cast<double>(port.depth)},
            number(port.high_water_mark),
            rate(port.in),
            rate(port.out),
            rate(port.bytes, 1024),
            rate(port.full),
            rate(port.empty),
            rate(port.producer_waits),
            rate(port.consumer_waits),
            rate(port.dropped, 1000, Style::warning),
            {fmt::format("{}x{}", port.producer_count, port.consumer_count), Style::plain,
             static_cast<double>(port.producer_count + port.consumer_count)},
            words(port.state),
        });
    }
    return table;
}

Table process_table(const Model& model, const View& view) {
    Table table{process_columns, {}};
    const Names name(model, view);
    for (const ProcessRow& process : model.processes) {
        if (is_shown(process.domain, view)) {
            const auto pid = static_cast<std::uint64_t>(process.process.pid);
            table.rows.push_back({
                name(process.domain, process.process.name),
                number(pid),
                {fmt::format("{}", process.slot), Style::plain, static_cast<double>(process.slot)},
                words(process.life),
                number(process.held_count),
                number(process.queued_count),
                rate(process.pushed),
                rate(process.popped),
                words(process.waits_for),
            });
        }
    }
    return table;
}

Table pool_table(const Model& model, const View& view) {
    Table table{pool_columns, {}};
    const Names name(model, view);
    for (const PoolRow& pool : model.pools) {
        if (is_shown(pool.domain, view)) {
            const Style free_style = pool.free_count == 0 ? Style::warning : Style::plain;
            table.rows.push_back({
                name(pool.domain, pool.name),
                bar(pool.buffer_count - std::min(pool.free_count, pool.buffer_count), pool.buffer_count),
                {brief(static_cast<double>(pool.buffer_bytes), 1024), Style::plain,
                 static_cast<double>(pool.buffer_bytes)},
                number(pool.buffer_count),
                {fmt::format("{}", pool.free_count), free_style, static_cast<double>(pool.free_count)},
                number(pool.held_count),
                number(pool.queued_count),
            });
        }
    }
    return table;
}

void sort(Table& table, const View& view) {
    const auto column = std::ranges::find(table.columns, std::string_view(view.sort_column), &Column::name);
    if (column == table.columns.end()) {
        return;
    }
    const auto place = static_cast<std::size_t>(column - table.columns.begin());
    // Numbers: the greatest first. Words: by the alphabet.
    std::ranges::stable_sort(table.rows, [&](const std::vector<Cell>& first, const std::vector<Cell>& second) {
        const Cell& one = view.is_reversed ? second[place] : first[place];
        const Cell& other = view.is_reversed ? first[place] : second[place];
        return column->is_number ? one.key > other.key : one.text < other.text;
    });
}

/// The line, and no more of it than `columns` characters.
Line cut(Line line, std::size_t columns) {
    std::size_t room = columns;
    for (auto span = line.begin(); span != line.end(); ++span) {
        if (span->text.size() > room) {
            span->text.resize(room);
            line.erase(std::next(span), line.end());
            break;
        }
        room -= span->text.size();
    }
    return line;
}

/// As wide as the page, for lines on a ground of their own.
Line padded(Line line, std::size_t columns, Style style) {
    const std::size_t width = text_of(line).size();
    if (columns != unlimited && width < columns) {
        line.push_back({std::string(columns - width, ' '), style});
    }
    return line;
}

std::string aligned(const std::string& text, std::size_t width, bool is_right) {
    const std::string padding(width - std::min(width, text.size()), ' ');
    return is_right ? padding + text : text + padding;
}

/// Which columns fit, and how wide each is; 0: left out.
std::vector<std::size_t> widths_of(const Table& table, std::size_t columns) {
    std::vector<std::size_t> natural;
    std::vector<std::size_t> needed;
    for (std::size_t place = 0; place < table.columns.size(); ++place) {
        const Column& column = table.columns[place];
        std::size_t width = std::max(column.head.size(), column.width_min);
        for (const std::vector<Cell>& row : table.rows) {
            width = std::max(width, row[place].text.size());
        }
        natural.push_back(width);
        const bool is_tail = place + 1 == table.columns.size() && !column.is_number;
        needed.push_back(place == 0 ? std::min(width, name_width_min)
                         : is_tail  ? std::min(width, tail_width_min)
                                    : width);
    }
    std::vector<std::size_t> by_rank(table.columns.size());
    for (std::size_t place = 0; place < by_rank.size(); ++place) {
        by_rank[table.columns[place].rank] = place;
    }
    std::vector<std::size_t> widths(table.columns.size());
    std::size_t used = 0;
    for (const std::size_t place : by_rank) {
        const std::size_t more = needed[place] + (place == 0 ? 0 : gap);
        if (place != 0 && used + more > columns) {
            break;
        }
        widths[place] = std::min(needed[place], columns);
        used += more;
    }
    if (columns == unlimited) {
        return natural;
    }
    // What is left goes to the names, then to the last column.
    for (const std::size_t place : {std::size_t{0}, widths.size() - 1}) {
        if (widths[place] != 0 && used < columns) {
            const std::size_t more = std::min(columns - used, natural[place] - widths[place]);
            widths[place] += more;
            used += more;
        }
    }
    return widths;
}

/// A head and rows, `row_max` lines in all. Where rows are left out below, the last line says how many.
std::vector<Line> lines_of(const Table& table, const View& view, std::size_t columns, std::size_t row_max,
                           std::size_t scroll) {
    std::vector<Line> lines;
    const std::vector<std::size_t> widths = widths_of(table, columns);
    const auto add = [&](auto&& cell_of, Style gap_style) {
        Line line;
        for (std::size_t place = 0; place < widths.size(); ++place) {
            if (widths[place] != 0) {
                if (!line.empty()) {
                    line.push_back({std::string(gap, ' '), gap_style});
                }
                Cell cell = cell_of(place);
                const Column& column = table.columns[place];
                if (cell.text.size() > widths[place]) {
                    cell.text = place == 0 && widths[place] > 2 ? tool::shortened(cell.text, widths[place])
                                                                : cell.text.substr(0, widths[place]);
                }
                line.push_back({aligned(cell.text, widths[place], column.is_number), cell.style});
            }
        }
        lines.push_back(std::move(line));
    };
    add(
        [&](std::size_t place) {
            const Column& column = table.columns[place];
            return Cell{std::string(column.head), column.name == view.sort_column ? Style::chosen : Style::head, 0};
        },
        Style::head);
    lines.back() = padded(std::move(lines.back()), columns, Style::head);
    const std::size_t left = table.rows.size() - scroll;
    const std::size_t room = row_max - 1;
    const std::size_t shown = left <= room ? left : room - std::min<std::size_t>(room, 1);
    for (std::size_t number = scroll; number < scroll + shown; ++number) {
        add([&](std::size_t place) { return table.rows[number][place]; }, Style::plain);
    }
    if (shown < left && room > 0) {
        lines.push_back({{fmt::format("... {} more", left - shown), Style::dim}});
    }
    return lines;
}

/// As many of the parts as fit, with gaps between.
Line joined(const std::vector<tool::Span>& parts, std::size_t columns) {
    Line line;
    std::size_t used = 0;
    for (const tool::Span& part : parts) {
        const std::size_t more = part.text.size() + (line.empty() ? 0 : gap);
        if (!line.empty() && columns - used < more) {
            break;
        }
        if (!line.empty()) {
            line.push_back({std::string(gap, ' '), Style::plain});
        }
        line.push_back(part);
        used += std::min(more, columns - used);
    }
    return cut(std::move(line), columns);
}

Line domain_line(const DomainRow& domain, const std::string& clock, std::size_t columns) {
    std::vector<tool::Span> parts{{domain.name, Style::strong}};
    const auto add = [&parts](std::string text, Style style = Style::plain) {
        if (!text.empty()) {
            parts.push_back({std::move(text), style});
        }
    };
    if (domain.is_there) {
        add(fmt::format("{} alive", domain.alive_count), domain.alive_count > 0 ? Style::plain : Style::warning);
        if (domain.dead_count > 0) {
            add(fmt::format("{} dead", domain.dead_count), Style::bad);
        }
        if (domain.unknown_count > 0) {
            add(fmt::format("{} unknown", domain.unknown_count), Style::warning);
        }
        add(fmt::format("buffers: {} of {} free", domain.free_count, domain.buffer_count),
            domain.free_count > 0 || domain.buffer_count == 0 ? Style::plain : Style::warning);
        add(fmt::format("{} held", domain.held_count));
        add(fmt::format("{} queued", domain.queued_count));
        add(fmt::format("/dev/shm: {}", tool::sized(domain.shared_bytes)));
    } else {
        add("not there", Style::warning);
    }
    add(clock);
    return joined(parts, columns);
}

DomainRow total(const std::vector<const DomainRow*>& domains) {
    DomainRow sum;
    sum.name = tool::counted(domains.size(), "domain");
    for (const DomainRow* domain : domains) {
        sum.is_there |= domain->is_there;
        sum.alive_count += domain->alive_count;
        sum.dead_count += domain->dead_count;
        sum.unknown_count += domain->unknown_count;
        sum.buffer_count += domain->buffer_count;
        sum.free_count += domain->free_count;
        sum.held_count += domain->held_count;
        sum.queued_count += domain->queued_count;
        sum.shared_bytes += domain->shared_bytes;
    }
    return sum;
}

std::vector<Line> summary(const Model& model, const View& view, std::size_t columns, std::size_t row_max) {
    std::vector<const DomainRow*> domains;
    for (const DomainRow& domain : model.domains) {
        if (is_shown(domain.name, view)) {
            domains.push_back(&domain);
        }
    }
    std::vector<Line> lines;
    if (domains.empty()) {
        lines.push_back(joined({{"weir top", Style::strong}, {view.clock, Style::plain}}, columns));
    } else if (domains.size() > row_max) {
        lines.push_back(domain_line(total(domains), view.clock, columns));
    } else {
        for (const DomainRow* domain : domains) {
            lines.push_back(domain_line(*domain, lines.empty() ? view.clock : "", columns));
        }
    }
    return lines;
}

std::vector<Line> notes(const Model& model, const View& view, std::size_t columns, std::size_t row_max) {
    std::vector<std::string> texts = model.notes;
    for (const DomainRow& domain : model.domains) {
        if (is_shown(domain.name, view)) {
            for (const std::string& note : domain.notes) {
                texts.push_back(domain.name + ": " + note);
            }
        }
    }
    std::vector<Line> lines;
    for (const std::string& text : texts) {
        if (lines.size() + 1 == row_max && texts.size() > row_max) {
            const std::size_t more = texts.size() - lines.size();
            lines.push_back(
                cut({{fmt::format("{} (and {} more)", plain_text(text), more - 1), Style::warning}}, columns));
            break;
        }
        lines.push_back(cut({{plain_text(text), Style::warning}}, columns));
    }
    return lines;
}

std::vector<Table> tables_of(const Model& model, const View& view) {
    std::vector<Table> tables;
    const bool wants_all = view.tables == TableChoice::all;
    if (wants_all || view.tables == TableChoice::ports) {
        tables.push_back(port_table(model, view));
    }
    if (wants_all || view.tables == TableChoice::processes) {
        tables.push_back(process_table(model, view));
    }
    if (wants_all || view.tables == TableChoice::pools) {
        tables.push_back(pool_table(model, view));
    }
    for (Table& table : tables) {
        sort(table, view);
    }
    return tables;
}

/// How many lines each table gets, the gaps between not counted; 0: it is left out.
std::vector<std::size_t> shares_of(const std::vector<Table>& tables, std::size_t row_count) {
    constexpr std::size_t row_min = 3; // a table's head and a bit of it
    std::vector<std::size_t> shares(tables.size());
    // The first one is what one wants to see most; the later ones may have a third of what is left, each.
    std::size_t left = row_count;
    for (std::size_t place = tables.size(); place-- > 1;) {
        const std::size_t wanted = tables[place].rows.size() + 1;
        const std::size_t share = std::min(wanted, std::max(row_min, left / 3));
        if (left >= share + 1 + row_min + 1) {
            shares[place] = share;
            left -= share + 1;
        }
    }
    for (std::size_t place = 0; place < tables.size(); ++place) {
        const std::size_t wanted = tables[place].rows.size() + 1;
        if (place == 0 || shares[place] != 0) {
            const std::size_t more = std::min(left, wanted - shares[place]);
            shares[place] += more;
            left -= more;
        }
    }
    return shares;
}

std::vector<Line> help() {
    constexpr std::pair<const char*, const char*> explained[] = {
        {"q", "quit"},
        {"p m b a", "ports, processes (members), buffer pools, all"},
        {"s < >", "sort by the next column, by the one before"},
        {"r", "the other way round"},
        {"d", "the next domain alone, where there are several"},
        {"up down PgUp PgDn", "scroll; Home, End"},
        {"space", "pause and go on"},
        {"+ -", "look less often, more often"},
        {"h ?", "this page; any key leaves it"},
        {"", ""},
        {"PEAK", "the most messages seen in the port"},
        {"FULL EMPTY", "a producer found it full, a consumer found it empty"},
        {"PWAIT CWAIT", "a producer, a consumer went to sleep"},
        {"DROP", "messages that made room for newer ones"},
        {"ENDS", "handles that push x handles that pop"},
        {"HELD QUEUED", "references to buffers: in hands, and in ports"},
    };
    std::vector<Line> lines{{{"weir top", Style::strong}}};
    for (const auto& [word, meaning] : explained) {
        lines.push_back({{fmt::format("  {:<18}", word), Style::strong}, {meaning, Style::plain}});
    }
    return lines;
}

void append(std::vector<Line>& lines, std::vector<Line> more) {
    std::ranges::move(more, std::back_inserter(lines));
}

} // namespace

std::string brief(double number, double step) {
    constexpr std::string_view units = "kMGTPE";
    std::size_t unit = 0;
    for (; number >= (step > 1000 ? 1023.5 : 999.5) && unit < units.size(); ++unit) {
        number /= step;
    }
    const bool is_whole = std::abs(number - std::round(number)) < (unit == 0 ? 0.005 : 1e-9);
    const int digits = is_whole || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
    return fmt::format("{:.{}f}", number, digits) + (unit == 0 ? "" : std::string(1, units[unit - 1]));
}

std::vector<Line> lay_out(const Model& model, View& view, const PageSize& size) {
    std::vector<Line> lines;
    const bool has_footer = size.rows >= 6;
    const std::size_t page_rows = size.rows - (has_footer ? 1 : 0);
    if (view.shows_help) {
        lines = help();
    } else {
        const std::size_t quarter = std::max<std::size_t>(1, size.rows / 4);
        lines = summary(model, view, size.columns, quarter);
        append(lines, notes(model, view, size.columns, std::max<std::size_t>(1, size.rows / 8)));
        std::vector<Table> tables = tables_of(model, view);
        if (view.tables == TableChoice::all) {
            std::erase_if(tables, [](const Table& table) { return table.rows.empty(); });
        }
        const std::size_t room = page_rows - std::min(page_rows, lines.size());
        const std::vector<std::size_t> shares = tables.empty() ? std::vector<std::size_t>{} : shares_of(tables, room);
        for (std::size_t place = 0; place < tables.size(); ++place) {
            if (shares[place] == 0) {
                continue;
            }
            std::size_t scroll = 0;
            if (place == 0) {
                const std::size_t fitting = shares[place] - 1;
                const std::size_t row_count = tables[place].rows.size();
                view.scroll = std::min(view.scroll, row_count - std::min(row_count, fitting));
                scroll = view.scroll;
            } else {
                lines.emplace_back();
            }
            append(lines, lines_of(tables[place], view, size.columns, shares[place], scroll));
        }
    }
    lines.resize(std::min(lines.size(), page_rows));
    for (Line& line : lines) {
        line = cut(std::move(line), size.columns);
    }
    if (has_footer) {
        lines.resize(page_rows);
        const std::string text =
            fmt::format(" {}   q quit  h help  p m b a tables  s sort  space pause", plain_text(view.status));
        lines.push_back(padded(cut({{text, Style::head}}, size.columns), size.columns, Style::head));
    }
    return lines;
}

std::vector<Line> lay_out_in_full(const Model& model, const View& view) {
    std::vector<Line> lines = summary(model, view, unlimited, unlimited);
    append(lines, notes(model, view, unlimited, unlimited));
    for (const Table& table : tables_of(model, view)) {
        if (!table.rows.empty()) {
            lines.emplace_back();
            append(lines, lines_of(table, view, unlimited, unlimited, 0));
        }
    }
    return lines;
}

std::vector<std::string_view> sort_columns() {
    std::vector<std::string_view> names;
    for (const std::span<const Column> columns :
         {std::span<const Column>(port_columns), std::span<const Column>(process_columns),
          std::span<const Column>(pool_columns)}) {
        for (const Column& column : columns) {
            if (std::ranges::find(names, column.name) == names.end()) {
                names.push_back(column.name);
            }
        }
    }
    return names;
}

std::string next_sort_column(const View& view, int step) {
    const std::span<const Column> columns = view.tables == TableChoice::processes
                                                ? std::span<const Column>(process_columns)
                                            : view.tables == TableChoice::pools ? std::span<const Column>(pool_columns)
                                                                                : std::span<const Column>(port_columns);
    // Place 0 stands for none.
    const auto count = static_cast<int>(columns.size()) + 1;
    const auto found = std::ranges::find(columns, std::string_view(view.sort_column), &Column::name);
    const int now = found == columns.end() ? 0 : static_cast<int>(found - columns.begin()) + 1;
    const int next = (now + step + count) % count;
    return next == 0 ? "" : std::string(columns[static_cast<std::size_t>(next - 1)].name);
}

} // namespace weir::top
