// Colours, where what is printed goes to a terminal: not in a pipe, not where NO_COLOR is set, not on a dumb terminal.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include <unistd.h>

namespace weir::tool {

/// Whether the user wants no colour anywhere.
[[nodiscard]] inline bool is_colour_refused() noexcept {
    const char* refusal = std::getenv("NO_COLOR");
    return refusal != nullptr && *refusal != '\0';
}

class Colour {
public:
    explicit Colour(std::FILE* file) : is_on_(isatty(fileno(file)) != 0 && wants_colour()) {}

    [[nodiscard]] std::string good(std::string_view text) const { return paint("32", text); }
    [[nodiscard]] std::string warn(std::string_view text) const { return paint("33", text); }
    [[nodiscard]] std::string bad(std::string_view text) const { return paint("31", text); }
    [[nodiscard]] std::string bold(std::string_view text) const { return paint("1", text); }
    [[nodiscard]] std::string dim(std::string_view text) const { return paint("2", text); }

private:
    [[nodiscard]] static bool wants_colour() {
        const char* terminal = std::getenv("TERM");
        return !is_colour_refused() && terminal != nullptr && std::string_view(terminal) != "dumb";
    }

    [[nodiscard]] std::string paint(std::string_view code, std::string_view text) const {
        std::string painted(text);
        return is_on_ ? "\033[" + std::string(code) + "m" + painted + "\033[0m" : painted;
    }

    bool is_on_;
};

} // namespace weir::tool
