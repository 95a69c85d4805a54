// How much has gone through, in a line on the terminal.
#pragma once

#include "progress.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace weir::tool {

class Meter {
public:
    /// Shows nothing where it is not `wanted`, or there is no terminal. With `bytes_wanted`, how much there will be, it
    /// tells how long it will take too.
    explicit Meter(bool wanted, std::optional<std::uint64_t> bytes_wanted = {});

    /// Looks at the clock once, where it shows anything; so add not less than a chunk.
    void add(std::uint64_t bytes) {
        if (progress_) {
            count(bytes);
        }
    }
    /// For who waits: shows what it waits for.
    void wait(const char* waits_for) {
        if (progress_) {
            show_waiting(waits_for);
        }
    }

    /// Takes the line away for good.
    void clear() noexcept { progress_.reset(); }

private:
    void count(std::uint64_t bytes);
    void show_waiting(const char* waits_for);
    [[nodiscard]] std::string line() const;

    std::optional<Progress> progress_;
    std::optional<std::uint64_t> bytes_wanted_;
    std::uint64_t bytes_ = 0;
    std::int64_t start_ns_ = 0; ///< when the first bytes came
};

} // namespace weir::tool
