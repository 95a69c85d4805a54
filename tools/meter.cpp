#include "meter.hpp"

#include "text.hpp"

#include <fmt/format.h>

namespace weir::tool {

Meter::Meter(bool wanted, std::optional<std::uint64_t> bytes_wanted) : bytes_wanted_(bytes_wanted) {
    if (wanted) {
        progress_.emplace();
        if (!progress_->is_on_terminal()) {
            progress_.reset();
        }
    }
}

void Meter::count(std::uint64_t bytes) {
    if (bytes_ == 0) {
        start_ns_ = monotonic_ns();
    }
    bytes_ += bytes;
    if (progress_->is_due()) {
        progress_->show(line());
    }
}

void Meter::show_waiting(const char* waits_for) {
    if (progress_->is_due()) {
        progress_->show(line() + "  waits for " + waits_for);
    }
}

std::string Meter::line() const {
    const std::int64_t duration_ns = bytes_ == 0 ? 0 : monotonic_ns() - start_ns_;
    const std::string rate = rated(bytes_, duration_ns);
    if (!bytes_wanted_ || *bytes_wanted_ == 0 || bytes_ > *bytes_wanted_) {
        return fmt::format("{}  {}", sized(bytes_), rate);
    }
    std::string left;
    if (bytes_ > 0) {
        const double share_left = static_cast<double>(*bytes_wanted_ - bytes_) / static_cast<double>(bytes_);
        const auto seconds = static_cast<std::uint64_t>(static_cast<double>(duration_ns) * share_left / 1e9);
        left = fmt::format("  {}:{:02}:{:02} left", seconds / 3600, seconds / 60 % 60, seconds % 60);
    }
    return fmt::format("{:3}%  {} of {}  {}{}", 100 * bytes_ / *bytes_wanted_, sized(bytes_), sized(*bytes_wanted_),
                       rate, left);
}

} // namespace weir::tool
