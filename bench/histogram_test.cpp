// The histogram of latencies: no dependency but itself, so it stands with the benchmarks. Exit status 0: all holds.
#include "histogram.hpp"

#include <cstdio>
#include <random>
#include <vector>

namespace {

int failure_count = 0;

void check(bool condition, const char* what) {
    if (!condition) {
        std::fprintf(stderr, "histogram: does not hold: %s\n", what);
        ++failure_count;
    }
}

void buckets_follow_each_other_and_are_narrow() {
    using bench::Histogram;
    const unsigned last = Histogram::bucket_of(Histogram::value_max);
    std::uint64_t lower_end = 0;
    for (unsigned bucket = 0; bucket <= last; ++bucket) {
        const std::uint64_t upper_end = Histogram::upper_end(bucket);
        check(Histogram::bucket_of(lower_end) == bucket && Histogram::bucket_of(upper_end) == bucket,
              "a bucket's ends are in it");
        check((upper_end - lower_end) * (1U << Histogram::sub_bucket_bits) <= lower_end,
              "a bucket's ends are less than 1/64 apart");
        lower_end = upper_end + 1;
    }
    check(lower_end == Histogram::value_max + 1, "the last bucket ends with the largest value");
}

void quantiles_are_at_most_a_64th_too_large() {
    std::mt19937_64 random(7);
    std::lognormal_distribution<double> times(8, 2);
    bench::Histogram histogram{};
    std::vector<std::int64_t> values;
    for (int number = 0; number < 100'000; ++number) {
        values.push_back(static_cast<std::int64_t>(times(random)));
        histogram.record(values.back());
    }
    std::sort(values.begin(), values.end());
    for (const double quantile : {0.0, 0.1, 0.5, 0.99, 0.999, 0.9999, 1.0}) {
        const double wanted = std::ceil(quantile * static_cast<double>(values.size()));
        const auto exact = static_cast<double>(values[wanted < 1 ? 0 : static_cast<std::size_t>(wanted) - 1]);
        const auto found = static_cast<double>(histogram.quantile(quantile));
        check(found >= exact && found <= exact * (1 + 1.0 / 64), "a quantile is never too small, nor 1/64 too large");
    }
    check(histogram.count() == values.size(), "all times are counted");
    check(histogram.max() == static_cast<std::uint64_t>(values.back()), "the maximum is exact");
}

void odd_times_count_too() {
    bench::Histogram histogram{};
    check(histogram.quantile(0.5) == 0 && histogram.text().empty(), "an empty histogram has no times");
    histogram.record(-5);
    histogram.record(std::int64_t{1} << 60);
    check(histogram.quantile(0.5) == 0, "a negative time counts as 0");
    check(histogram.max() == bench::Histogram::value_max, "a time that is too long counts as the longest");
    histogram.record(1'000);
    check(histogram.text() == "0:1,1007:1,1099511627775:1", "the text has each bucket's upper end and count");
}

} // namespace

int main() {
    buckets_follow_each_other_and_are_narrow();
    quantiles_are_at_most_a_64th_too_large();
    odd_times_count_too();
    return failure_count == 0 ? 0 : 1;
}
