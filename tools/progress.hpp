// The line that tells how far it is: rewritten in place on a terminal, a new one now and then elsewhere.
#pragma once

#include <weir/futex.hpp>

#include <cstdint>
#include <string>

namespace weir::tool {

class Progress {
public:
    Progress() noexcept;
    ~Progress() { clear(); }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    [[nodiscard]] bool is_on_terminal() const noexcept { return is_terminal_; }

    /// Whether it is time for the next line; asked often.
    [[nodiscard]] bool is_due() const noexcept { return monotonic_ns() >= due_ns_; }
    void show(const std::string& line);
    /// Takes the line away, before other text is printed.
    void clear() noexcept;

private:
    [[nodiscard]] std::int64_t interval_ns() const noexcept {
        return is_terminal_ ? std::int64_t{100'000'000} : std::int64_t{5'000'000'000};
    }

    bool is_terminal_;
    bool is_shown_ = false;
    std::int64_t due_ns_;
};

} // namespace weir::tool
