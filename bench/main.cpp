#include "harness.hpp"

#include <cstring>

/// Takes --tiny and --histograms out of the arguments and leaves the others to Google Benchmark.
int main(int argc, char** argv) {
    int kept_count = 1;
    for (int number = 1; number < argc; ++number) {
        if (std::strcmp(argv[number], "--tiny") == 0) {
            bench::set_tiny();
        } else if (std::strcmp(argv[number], "--histograms") == 0) {
            bench::set_writes_histograms();
        } else {
            argv[kept_count++] = argv[number];
        }
    }
    argv[kept_count] = nullptr;
    benchmark::Initialize(&kept_count, argv);
    if (benchmark::ReportUnrecognizedArguments(kept_count, argv)) {
        return 2;
    }
    const std::size_t count = benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return count == 0 || bench::has_failed() ? 1 : 0;
}
