// Runs a fuzz target once over each file of a corpus, with any compiler, and wants one to come to the target's end.
#include "fuzzing.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

int main(int count, char** arguments) {
    std::vector<std::filesystem::path> files;
    for (int number = 1; number < count; ++number) {
        if (std::filesystem::is_directory(arguments[number])) {
            for (const auto& entry : std::filesystem::directory_iterator(arguments[number])) {
                files.push_back(entry.path());
            }
        } else {
            files.emplace_back(arguments[number]);
        }
    }
    std::ranges::sort(files);
    for (const std::filesystem::path& file : files) {
        std::ifstream stream(file, std::ios::binary);
        const std::vector<char> bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
        if (!stream) {
            std::fprintf(stderr, "cannot read %s\n", file.c_str());
            return 1;
        }
        std::printf("%s\n", file.c_str());
        std::fflush(stdout); // where it crashes, the last line names the input
        // A copy of just this size, so that AddressSanitizer sees a read beyond it.
        const std::vector<std::uint8_t> input(bytes.begin(), bytes.end());
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("%zu inputs, %llu came to the end of the success path\n", files.size(),
                static_cast<unsigned long long>(fuzz::success_count));
    return fuzz::success_count > 0 ? 0 : 1;
}
