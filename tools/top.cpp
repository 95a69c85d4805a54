// weir top: its arguments, its keys, and the loop between looking and showing.

#include "domains.hpp"
#include "screen.hpp"
#include "text.hpp"
#include "top_layout.hpp"
#include "top_watch.hpp"
#include "verb.hpp"

#include <weir/futex.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace weir::tool {

namespace {

using top::TableChoice;
using top::View;
using top::Watch;

constexpr const char* top_notes = "On a terminal, h tells the keys. Elsewhere it prints everything as plain text,\n"
                                  "once an interval. There is colour unless NO_COLOR is set.\n"
                                  "Exit status: 0, 1 there is nothing to look at, 2 wrong usage\n\n"
                                  "Examples:\n"
                                  "  weir top camera --sort in    one domain, the busiest ports first\n"
                                  "  weir top --once | grep dead  one interval of all of your domains";

struct Arguments {
    std::string domain;
    std::string user;
    double interval_s = 1;
    std::optional<std::uint64_t> count;
    bool once = false;
    bool batch = false;
    bool reverse = false;
    std::string sort;
};

constexpr double interval_min_s = 0.1;
constexpr double interval_max_s = 3600;

std::string clock_text() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    localtime_r(&now, &parts);
    return fmt::format("{:02}:{:02}:{:02}", parts.tm_hour, parts.tm_min, parts.tm_sec);
}

std::int64_t nanoseconds(double seconds) {
    return static_cast<std::int64_t>(seconds * 1e9);
}

void sleep_until(std::int64_t deadline_ns) {
    const timespec deadline{deadline_ns / 1'000'000'000, deadline_ns % 1'000'000'000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, nullptr) == EINTR) {
    }
}

/// Plain text, a block an interval.
class Batch {
public:
    Batch(Watch& watch, const View& view, double interval_s) : watch_(watch), view_(view), interval_s_(interval_s) {}

    /// Without a count, until nobody reads it any more.
    void run(std::optional<std::uint64_t> count) {
        std::int64_t due_ns = monotonic_ns();
        watch_.look();
        for (std::uint64_t number = 0; !count || number < *count; ++number) {
            due_ns = std::max(due_ns + nanoseconds(interval_s_), monotonic_ns());
            sleep_until(due_ns);
            watch_.look();
            if (count && !watch_.is_there()) {
                throw std::runtime_error("the domain has gone while it was looked at");
            }
            if (!print(number == 0)) {
                return;
            }
        }
    }

private:
    [[nodiscard]] bool print(bool is_first) {
        view_.clock = clock_text();
        std::string text = is_first ? "" : "\n";
        for (const Line& line : top::lay_out_in_full(watch_.model(), view_)) {
            std::string row = text_of(line);
            row.erase(row.find_last_not_of(' ') + 1);
            text += row + "\n";
        }
        std::fputs(text.c_str(), stdout);
        return std::fflush(stdout) == 0;
    }

    Watch& watch_;
    View view_;
    double interval_s_;
};

/// A screen that is kept up to date, and what keys do to it.
class Live {
public:
    Live(Watch& watch, View view, double interval_s) : watch_(watch), view_(std::move(view)), interval_s_(interval_s) {}

    /// Returns the signal that ended it, or 0.
    int run(std::optional<std::uint64_t> count) {
        look();
        for (std::uint64_t refreshes = 0;;) {
            show();
            const Input input = screen_.wait(is_paused_ ? deadline_never : due_ns_);
            if (input.kind == InputKind::ended) {
                return screen_.ended_by();
            }
            if (input.kind == InputKind::nothing) {
                look();
                if (count && ++refreshes >= *count) {
                    show();
                    return 0;
                }
            } else if (!obey(input)) {
                return 0;
            }
        }
    }

private:
    void look() {
        watch_.look();
        model_ = watch_.model();
        view_.clock = clock_text();
        due_ns_ = monotonic_ns() + nanoseconds(interval_s_);
    }

    void show() {
        const auto is_shown = [this](const top::DomainRow& domain) { return domain.name == view_.domain; };
        if (std::ranges::none_of(model_.domains, is_shown)) {
            view_.domain.clear();
        }
        view_.status = fmt::format("every {:g} s{}{}", interval_s_, is_paused_ ? ", PAUSED" : "",
                                   view_.sort_column.empty() ? "" : ", by " + view_.sort_column);
        const ScreenSize size = screen_.size();
        screen_.show(top::lay_out(model_, view_, {size.columns, size.rows}));
    }

    /// False: it is to end.
    [[nodiscard]] bool obey(const Input& input) {
        if (view_.shows_help && input.kind != InputKind::resized) {
            view_.shows_help = false;
            return input.character != 'q';
        }
        const std::size_t page = std::max<std::size_t>(4, screen_.size().rows) / 2;
        switch (input.kind) {
        case InputKind::up: view_.scroll -= std::min<std::size_t>(view_.scroll, 1); break;
        case InputKind::down: ++view_.scroll; break;
        case InputKind::page_up: view_.scroll -= std::min(view_.scroll, page); break;
        case InputKind::page_down: view_.scroll += page; break;
        case InputKind::home: view_.scroll = 0; break;
        case InputKind::end: view_.scroll = SIZE_MAX; break;
        case InputKind::left: view_.sort_column = next_sort_column(view_, -1); break;
        case InputKind::right: view_.sort_column = next_sort_column(view_, 1); break;
        case InputKind::character: return obey(input.character);
        default: break;
        }
        return true;
    }

    [[nodiscard]] bool obey(char key) {
        switch (key) {
        case 'q': return false;
        case 'h':
        case '?': view_.shows_help = true; break;
        case 's':
        case '>': view_.sort_column = next_sort_column(view_, 1); break;
        case '<': view_.sort_column = next_sort_column(view_, -1); break;
        case 'r': view_.is_reversed = !view_.is_reversed; break;
        case 'a': choose(TableChoice::all); break;
        case 'p': choose(TableChoice::ports); break;
        case 'm': choose(TableChoice::processes); break;
        case 'b': choose(TableChoice::pools); break;
        case 'd': choose_next_domain(); break;
        case 'j': ++view_.scroll; break;
        case 'k': view_.scroll -= std::min<std::size_t>(view_.scroll, 1); break;
        case ' ': is_paused_ = !is_paused_; break;
        case '+': change_interval(1); break;
        case '-': change_interval(-1); break;
        default: break;
        }
        return true;
    }

    void choose(TableChoice tables) {
        view_.tables = tables;
        view_.scroll = 0;
    }

    /// All, then each alone.
    void choose_next_domain() {
        auto next = model_.domains.begin();
        if (!view_.domain.empty()) {
            next = std::next(std::ranges::find(model_.domains, view_.domain, &top::DomainRow::name));
        }
        view_.domain = next == model_.domains.end() ? "" : next->name;
        view_.scroll = 0;
    }

    void change_interval(int step) {
        constexpr std::array<double, 10> steps{0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300};
        const double before_s = interval_s_;
        if (step > 0) {
            const auto greater = std::ranges::upper_bound(steps, interval_s_);
            interval_s_ = greater == steps.end() ? interval_s_ : *greater;
        } else {
            const auto same = std::ranges::lower_bound(steps, interval_s_);
            interval_s_ = same == steps.begin() ? interval_s_ : *std::prev(same);
        }
        due_ns_ += nanoseconds(interval_s_ - before_s);
    }

    Watch& watch_;
    View view_;
    double interval_s_;
    bool is_paused_ = false;
    std::int64_t due_ns_ = 0;
    top::Model model_;
    Screen screen_;
};

int run_top(const Arguments& given) {
    if (!(given.interval_s >= interval_min_s && given.interval_s <= interval_max_s)) {
        throw UsageError(fmt::format("--interval {:g}: give {:g} to {:g} seconds", given.interval_s, interval_min_s,
                                     interval_max_s));
    }
    if (given.count && *given.count == 0) {
        throw UsageError("--count 0: give 1 or more");
    }
    if (given.count && given.once) {
        throw UsageError("--once is --count 1 already; give one of them");
    }
    const std::vector<std::string_view> columns = top::sort_columns();
    if (!given.sort.empty() && std::ranges::find(columns, std::string_view(given.sort)) == columns.end()) {
        throw UsageError(fmt::format("--sort {}: there is no such column; there are {}", printable(given.sort),
                                     fmt::join(columns, ", ")));
    }
    try {
        if (!given.domain.empty()) {
            check_name("domain", given.domain);
        }
    } catch (const std::system_error& error) {
        throw UsageError(error.what());
    }
    View view;
    view.sort_column = given.sort;
    view.is_reversed = given.reverse;
    const std::optional<std::uint64_t> count = given.once ? std::optional<std::uint64_t>(1) : given.count;
    const bool is_live = !given.once && !given.batch && Screen::is_possible();
    Watch watch(given.domain, user_of(given.user));
    watch.open(!count);
    if (!is_live) {
        std::signal(SIGPIPE, SIG_DFL); // who has read enough ends us, without words
        Batch(watch, view, given.interval_s).run(count);
        return exit_fine;
    }
    if (const int signal = Live(watch, view, given.interval_s).run(count); signal != 0) {
        // The terminal is as it was; who started us sees that the signal ended us.
        std::signal(signal, SIG_DFL);
        std::raise(signal);
    }
    return exit_fine;
}

} // namespace

Verb add_top(CLI::App& weir) {
    const auto given = std::make_shared<Arguments>();
    CLI::App* app = weir.add_subcommand("top", "Watch ports, processes and buffers live");
    app->add_option("DOMAIN", given->domain, "Which domain; all of the user's by default")->type_name("");
    add_user_option(*app, given->user);
    app->add_option("-i,--interval", given->interval_s, "Seconds between looks: 0.1 or more; default 1")
        ->type_name("SECONDS");
    app->add_flag("--once", given->once, "The same as --batch --count 1");
    app->add_option("-n,--count", given->count, "End after so many intervals")->type_name("COUNT");
    app->add_option("--sort", given->sort, "Sort by a column: in, depth, held, name ...")->type_name("COLUMN");
    app->add_flag("--reverse", given->reverse, "The other way round");
    app->add_flag("--batch", given->batch, "Plain text on a terminal too");
    app->footer(top_notes);
    return {app, [given] { return run_top(*given); }};
}

} // namespace weir::tool
