#include "progress.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/ioctl.h>
#include <unistd.h>

namespace weir::tool {

namespace {

bool can_rewrite_lines() {
    const char* kind = std::getenv("TERM");
    return isatty(STDERR_FILENO) != 0 && kind != nullptr && std::strcmp(kind, "dumb") != 0;
}

std::size_t terminal_width() {
    winsize size{};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

} // namespace

Progress::Progress() noexcept : is_terminal_(can_rewrite_lines()), due_ns_(deadline_after(interval_ns())) {}

void Progress::show(const std::string& line) {
    due_ns_ = deadline_after(interval_ns());
    if (is_terminal_) {
        // One column less than there are: a full line would scroll.
        std::fprintf(stderr, "\r%s\033[K", line.substr(0, terminal_width() - 1).c_str());
        is_shown_ = true;
    } else {
        std::fprintf(stderr, "%s\n", line.c_str());
    }
}

void Progress::clear() noexcept {
    if (is_shown_) {
        std::fputs("\r\033[K", stderr);
        is_shown_ = false;
    }
}

} // namespace weir::tool
