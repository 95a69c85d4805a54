#include "screen.hpp"

#include "colour.hpp"

#include <weir/futex.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

namespace weir::tool {

namespace {

constexpr char escape = '\033';
constexpr std::string_view enter_sequence = "\033[?1049h\033[?25l\033[?7l"; // second page, no cursor, no wrapping
constexpr std::string_view leave_sequence = "\033[?2026l\033[m\033[?7h\033[?25h\033[?1049l";
// Terminals that know it show a page at once; others ignore it. (Synchronized output, DEC private mode 2026.)
constexpr std::string_view page_begin_sequence = "\033[?2026h";
constexpr std::string_view page_end_sequence = "\033[?2026l";
constexpr std::array ending_signals{SIGINT, SIGTERM, SIGHUP, SIGQUIT};
/// For the rest of a key's sequence, and for a terminal that does not take what is written.
constexpr std::int64_t patience_ns = 50'000'000;

std::string_view sequence_of(Style style, bool has_colours) {
    switch (style) {
    case Style::plain: return "";
    case Style::dim: return "\033[2m";
    case Style::strong: return "\033[1m";
    case Style::head: return "\033[7m";
    case Style::chosen: return "\033[1;4;7m";
    case Style::good: return has_colours ? "\033[32m" : "";
    case Style::warning: return has_colours ? "\033[33m" : "\033[1m";
    case Style::bad: return has_colours ? "\033[1;31m" : "\033[1m";
    }
    return "";
}

/// A row from its first column on, what was there before included.
std::string rendered(const Line& line, std::size_t columns, bool has_colours) {
    std::string text;
    std::size_t room = columns;
    for (const Span& span : line) {
        const std::string_view shown = std::string_view(span.text).substr(0, room);
        const std::string_view sequence = sequence_of(span.style, has_colours);
        text += sequence;
        text += shown;
        if (!sequence.empty()) {
            text += "\033[m";
        }
        room -= shown.size();
    }
    // In a full row the cursor is still on the last column, which this would take away.
    return room > 0 ? text + "\033[K" : text;
}

struct Sequence {
    std::string_view rest; ///< behind the escape
    InputKind kind;
};
constexpr Sequence key_sequences[] = {
    {"[A", InputKind::up},       {"OA", InputKind::up},         {"[B", InputKind::down}, {"OB", InputKind::down},
    {"[C", InputKind::right},    {"OC", InputKind::right},      {"[D", InputKind::left}, {"OD", InputKind::left},
    {"[5~", InputKind::page_up}, {"[6~", InputKind::page_down}, {"[H", InputKind::home}, {"OH", InputKind::home},
    {"[1~", InputKind::home},    {"[F", InputKind::end},        {"OF", InputKind::end},  {"[4~", InputKind::end},
};

/// The length of the escape sequence that `received` begins with; 0 where it is not complete.
std::size_t sequence_length(std::string_view received) {
    if (received.size() < 2) {
        return 0;
    }
    if (received[1] == 'O') {
        return received.size() < 3 ? 0 : 3;
    }
    if (received[1] != '[') {
        return 1;
    }
    for (std::size_t place = 2; place < received.size(); ++place) {
        if (received[place] >= 0x40 && received[place] <= 0x7e) {
            return place + 1;
        }
    }
    return 0;
}

} // namespace

Input take_key(std::string& received) {
    while (!received.empty()) {
        if (received.front() != escape) {
            const Input input{InputKind::character, received.front()};
            received.erase(0, 1);
            return input;
        }
        const std::size_t length = sequence_length(received);
        if (length == 0) {
            return {};
        }
        const std::string rest = received.substr(1, length - 1);
        received.erase(0, length);
        if (rest.empty()) {
            return {InputKind::character, escape};
        }
        const auto known = std::ranges::find(key_sequences, std::string_view(rest), &Sequence::rest);
        if (known != std::end(key_sequences)) {
            return {known->kind, 0};
        }
    }
    return {};
}

bool Screen::is_possible() noexcept {
    const char* kind = std::getenv("TERM");
    return isatty(STDOUT_FILENO) != 0 && kind != nullptr && *kind != '\0' && std::strcmp(kind, "dumb") != 0;
}

Screen::Screen() : has_colours_(!tool::is_colour_refused()) {
    // Opened anew: so it does not block, which the standard output's other users would not expect of theirs; and keys come
    // from the terminal whatever the standard input is.
    char path[64];
    if (ttyname_r(STDOUT_FILENO, path, sizeof path) == 0) {
        terminal_ = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    }
    if (terminal_ < 0) {
        terminal_ = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);
    }
    if (terminal_ < 0 || tcgetattr(terminal_, &modes_before_) != 0) {
        const std::error_code error(errno, std::system_category());
        close(terminal_);
        throw std::system_error(error, "cannot use the terminal; --batch prints plain text");
    }
    sigemptyset(&set_);
    for (const int signal : ending_signals) {
        // What was ignored (nohup) stays so.
        struct sigaction action {};
        if (sigaction(signal, nullptr, &action) == 0 && action.sa_handler != SIG_IGN) {
            sigaddset(&set_, signal);
        }
    }
    for (const int signal : {SIGTSTP, SIGCONT, SIGWINCH}) {
        sigaddset(&set_, signal);
    }
    signals_ = signalfd(-1, &set_, SFD_NONBLOCK | SFD_CLOEXEC);
    if (signals_ < 0) {
        const std::error_code error(errno, std::system_category());
        close(terminal_);
        throw std::system_error(error, "signalfd");
    }
    pthread_sigmask(SIG_BLOCK, &set_, &set_before_);
    take();
}

Screen::~Screen() {
    give_back();
    close(signals_);
    pthread_sigmask(SIG_SETMASK, &set_before_, nullptr);
    close(terminal_);
}

void Screen::take() {
    termios modes = modes_before_;
    modes.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    modes.c_iflag &= ~static_cast<tcflag_t>(IXON | ICRNL); // a held output would hold us
    modes.c_cc[VMIN] = 1;
    modes.c_cc[VTIME] = 0;
    // In the background this stops us, until we are in the foreground.
    while (tcsetattr(terminal_, TCSANOW, &modes) != 0 && errno == EINTR) {
    }
    is_taken_ = true;
    is_shown_ = false;
    write(enter_sequence);
}

void Screen::give_back() noexcept {
    if (!is_taken_) {
        return;
    }
    is_taken_ = false;
    write(leave_sequence);
    tcsetattr(terminal_, TCSANOW, &modes_before_);
}

void Screen::stop() {
    give_back();
    sigset_t stopping;
    sigemptyset(&stopping);
    sigaddset(&stopping, SIGTSTP);
    raise(SIGTSTP);
    pthread_sigmask(SIG_UNBLOCK, &stopping, nullptr); // stops here, and goes on here
    pthread_sigmask(SIG_BLOCK, &stopping, nullptr);
    tcgetattr(terminal_, &modes_before_);
    take();
}

ScreenSize Screen::size() const noexcept {
    winsize size{};
    if (ioctl(terminal_, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) {
        return {};
    }
    return {size.ws_col, size.ws_row};
}

bool Screen::wait_for_terminal(short events, std::int64_t deadline_ns) noexcept {
    std::array<pollfd, 2> polled{pollfd{terminal_, events, 0}, pollfd{signals_, POLLIN, 0}};
    const std::int64_t left_ns = std::max<std::int64_t>(0, deadline_ns - monotonic_ns());
    const timespec timeout{left_ns / 1'000'000'000, left_ns % 1'000'000'000};
    return ppoll(polled.data(), polled.size(), &timeout, nullptr) > 0 && polled[0].revents != 0;
}

void Screen::write(std::string_view text) noexcept {
    while (!text.empty()) {
        const ssize_t count = ::write(terminal_, text.data(), text.size());
        if (count > 0) {
            text.remove_prefix(static_cast<std::size_t>(count));
        } else if (count < 0 && errno == EAGAIN) {
            if (!wait_for_terminal(POLLOUT, deadline_after(patience_ns))) {
                is_shown_ = false; // nobody reads it now: the whole page comes next time
                return;
            }
        } else if (count == 0 || errno != EINTR) {
            return; // reading notices that it is gone
        }
    }
}

void Screen::show(std::vector<Line> lines) {
    const ScreenSize now = size();
    const bool is_new = !is_shown_ || now != shown_size_;
    if (lines.size() > now.rows) {
        lines.resize(now.rows);
    }
    std::string text = is_new ? "\033[m\033[2J" : "";
    for (std::size_t row = 0; row < lines.size(); ++row) {
        if (is_new || row >= shown_.size() || lines[row] != shown_[row]) {
            text += fmt::format("\033[{};1H{}", row + 1, rendered(lines[row], now.columns, has_colours_));
        }
    }
    if (!is_new && lines.size() < shown_.size()) {
        text += fmt::format("\033[{};1H\033[J", lines.size() + 1);
    }
    shown_ = std::move(lines);
    shown_size_ = now;
    is_shown_ = true;
    if (!text.empty()) {
        write(fmt::format("{}{}{}", page_begin_sequence, text, page_end_sequence));
    }
}

InputKind Screen::read_signals() {
    InputKind kind = InputKind::nothing;
    signalfd_siginfo info{};
    while (read(signals_, &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
        const int signal = static_cast<int>(info.ssi_signo);
        if (signal == SIGWINCH) {
            kind = InputKind::resized;
        } else if (signal == SIGTSTP) {
            stop();
            kind = InputKind::resized;
        } else if (signal == SIGCONT) {
            // After a SIGSTOP, of which nobody told us: the shell has used the terminal meanwhile.
            take();
            kind = InputKind::resized;
        } else {
            ended_by_ = signal;
            return InputKind::ended;
        }
    }
    return kind;
}

Input Screen::wait(std::int64_t deadline_ns) {
    for (;;) {
        if (const InputKind kind = read_signals(); kind != InputKind::nothing) {
            return {kind, 0};
        }
        if (const Input input = take_key(received_); input.kind != InputKind::nothing) {
            return input;
        }
        const std::int64_t key_deadline_ns =
            received_.empty() ? deadline_ns : std::min(deadline_ns, deadline_after(patience_ns));
        if (!wait_for_terminal(POLLIN, key_deadline_ns)) {
            if (!received_.empty() && monotonic_ns() >= key_deadline_ns) {
                received_.clear();
                return {InputKind::character, escape}; // nothing followed it
            }
            if (monotonic_ns() >= deadline_ns) {
                return {};
            }
            continue;
        }
        char bytes[256];
        const ssize_t count = read(terminal_, bytes, sizeof bytes);
        if (count > 0) {
            received_.append(bytes, static_cast<std::size_t>(count));
        } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
            return {InputKind::ended, 0};
        }
    }
}

} // namespace weir::tool
