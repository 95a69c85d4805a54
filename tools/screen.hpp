// Screen: the terminal as a page of lines, with its keys, its size and the signals that concern it.
//
// The page is the terminal's second one: what was on the terminal before is there again afterwards. Lines are cut at the
// width, only those that have changed are written, and nothing ever wraps or scrolls.
//
//     Screen screen;
//     screen.show(lines);
//     const Input input = screen.wait(deadline_ns);      // a key, a new size, a signal to end by, or the deadline
//
// However it ends (destructor, exception, signal), the terminal is as it was: signals are not handled but read, by wait().
// When the program is stopped, the terminal is given back before, and taken again when it goes on.
//
// There is no ncurses behind this: what is needed is a handful of sequences that every terminal of the last decades
// knows, and a library with a terminal database is more to build, to wrap and to carry than that.
#pragma once

#include "styled.hpp"

#include <csignal>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <termios.h>

namespace weir::tool {

enum class InputKind : std::uint8_t {
    nothing, ///< the deadline
    character,
    up,
    down,
    left,
    right,
    page_up,
    page_down,
    home,
    end,
    resized, ///< or the page has to be shown anew
    ended,   ///< by Screen::ended_by(), or the terminal is gone
};

struct Input {
    InputKind kind = InputKind::nothing;
    char character = 0;
};

struct ScreenSize {
    std::size_t columns = 80;
    std::size_t rows = 24;

    friend bool operator==(const ScreenSize&, const ScreenSize&) = default;
};

/// Takes the first key out of what a terminal has sent; nothing where it is not complete yet.
[[nodiscard]] Input take_key(std::string& received);

class Screen {
public:
    /// Whether the standard output is a terminal that can do it.
    [[nodiscard]] static bool is_possible() noexcept;

    /// Throws: std::system_error.
    Screen();
    Screen(const Screen&) = delete;
    Screen& operator=(const Screen&) = delete;
    ~Screen();

    [[nodiscard]] ScreenSize size() const noexcept;

    /// Shows these lines from the top, and nothing below them.
    void show(std::vector<Line> lines);

    /// Waits for an input, until `deadline_ns` (CLOCK_MONOTONIC).
    [[nodiscard]] Input wait(std::int64_t deadline_ns);

    /// The signal that it ended by, or 0. It is blocked while the screen exists: who wants to end by it raises it then.
    [[nodiscard]] int ended_by() const noexcept { return ended_by_; }

private:
    void take();
    void give_back() noexcept;
    void stop();
    void write(std::string_view text) noexcept;
    [[nodiscard]] bool wait_for_terminal(short events, std::int64_t deadline_ns) noexcept;
    [[nodiscard]] InputKind read_signals();

    int terminal_ = -1;
    int signals_ = -1;
    bool has_colours_;
    bool is_taken_ = false;
    int ended_by_ = 0;
    sigset_t set_{};
    sigset_t set_before_{};
    termios modes_before_{};
    std::vector<Line> shown_;
    bool is_shown_ = false; ///< the terminal shows `shown_`
    ScreenSize shown_size_;
    std::string received_;
};

} // namespace weir::tool
