// histogram.hpp: how often a time was measured, for tails: a log-linear histogram.
//
// Times below 128 ns have a bucket each; above, each doubling is divided into 64 buckets of one width, so that a bucket's
// ends are less than 1/64 (1.6%) apart. What is reported of a time is its bucket's upper end, at most the maximum, which
// is kept as it is: a quantile is never flattered, and is at most 1/64 too large.
//
// It is made of plain counters without a pointer: zeroed bytes are an empty one, so it may lie in shared memory, where
// one process records and another reads later. HdrHistogram works the same way; its C library is in no distribution that
// the benchmarks build on, and this page is what is needed of it.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

namespace bench {

class Histogram {
public:
    static constexpr unsigned sub_bucket_bits = 6;
    static constexpr std::uint64_t value_max =
        (std::uint64_t{1} << 40) - 1; ///< 18 minutes; what is longer counts as that

    /// Negative times, of clocks that disagree, count as 0.
    void record(std::int64_t value_ns) noexcept {
        const std::uint64_t value =
            std::min(static_cast<std::uint64_t>(std::max<std::int64_t>(value_ns, 0)), value_max);
        ++counts_[bucket_of(value)];
        ++count_;
        max_ = std::max(max_, value);
    }

    [[nodiscard]] std::uint64_t count() const noexcept { return count_; }
    [[nodiscard]] std::uint64_t max() const noexcept { return max_; }

    /// The least time, in steps of buckets, that the share `quantile` of all times does not exceed; 0 where there are none.
    [[nodiscard]] std::uint64_t quantile(double quantile) const noexcept {
        const auto wanted = static_cast<std::uint64_t>(std::ceil(quantile * static_cast<double>(count_)));
        std::uint64_t seen = 0;
        for (unsigned bucket = 0; bucket < bucket_count; ++bucket) {
            seen += counts_[bucket];
            if (seen > 0 && seen >= wanted) {
                return std::min(upper_end(bucket), max_);
            }
        }
        return max_;
    }

    /// All buckets that are not empty, as "UPPER_END:COUNT,...".
    [[nodiscard]] std::string text() const {
        std::string text;
        for (unsigned bucket = 0; bucket < bucket_count; ++bucket) {
            if (counts_[bucket] != 0) {
                text += text.empty() ? "" : ",";
                text += std::to_string(std::min(upper_end(bucket), max_)) + ":" + std::to_string(counts_[bucket]);
            }
        }
        return text;
    }

    [[nodiscard]] static constexpr unsigned bucket_of(std::uint64_t value) noexcept {
        const unsigned shift =
            value < 2 * sub_bucket_count ? 0 : static_cast<unsigned>(std::bit_width(value)) - (sub_bucket_bits + 1);
        return shift * sub_bucket_count + static_cast<unsigned>(value >> shift);
    }
    /// The largest value of a bucket.
    [[nodiscard]] static constexpr std::uint64_t upper_end(unsigned bucket) noexcept {
        if (bucket < 2 * sub_bucket_count) {
            return bucket;
        }
        const unsigned shift = bucket / sub_bucket_count - 1;
        return (std::uint64_t{bucket - shift * sub_bucket_count + 1} << shift) - 1;
    }

private:
    static constexpr unsigned sub_bucket_count = 1U << sub_bucket_bits;
    static constexpr unsigned bucket_count = (40 - sub_bucket_bits + 1) * sub_bucket_count;

    std::uint64_t count_;
    std::uint64_t max_;
    std::array<std::uint64_t, bucket_count> counts_;

    static_assert(sub_bucket_bits + 1 < 40);
};

static_assert(Histogram::bucket_of(0) == 0 && Histogram::bucket_of(127) == 127 && Histogram::bucket_of(128) == 128);
static_assert(Histogram::bucket_of(129) == 128 && Histogram::upper_end(128) == 129 && Histogram::upper_end(127) == 127);

} // namespace bench
