// Adds up what word_count_count.cpp counted, and prints lines, words and bytes; see word_count_split.cpp.
//
//     word_count_merge [--domain NAME]
//
// Exits with 1 where chunks are missing, which it names: a counter was killed that had taken them.
#include "word_count.hpp"

#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

namespace {

class Merge : public weir::Block {
public:
    weir::InputPort in{*this, "in"};

    weir::WorkResult work() override {
        const weir::BufferPtr message = in.try_pop();
        if (!message) {
            return weir::WorkResult::need_input;
        }
        const std::uint32_t number = message.tag() & ~word_count::within_word;
        word_count::Counts counts;
        if (message.size_bytes() != sizeof(counts)) {
            is_added_.resize(number); // by the splitter: so many there are
            return weir::WorkResult::done;
        }
        if (number >= is_added_.size()) {
            is_added_.resize(number + 1);
        }
        if (!is_added_[number]) { // a splitter that was started again begins at the beginning
            is_added_[number] = true;
            std::memcpy(&counts, message.bytes().data(), sizeof(counts));
            sum_.lines += counts.lines;
            sum_.words += counts.words;
            sum_.bytes += counts.bytes;
        }
        return weir::WorkResult::progress;
    }

    /// False: something is missing.
    [[nodiscard]] bool print() const {
        std::printf("%ju %ju %ju\n", std::uintmax_t{sum_.lines}, std::uintmax_t{sum_.words},
                    std::uintmax_t{sum_.bytes});
        bool is_whole = true;
        for (std::size_t number = 0; number < is_added_.size(); ++number) {
            if (!is_added_[number]) {
                std::fprintf(stderr, "word_count_merge: chunk %zu is missing: who had it was killed\n", number);
                is_whole = false;
            }
        }
        return is_whole;
    }

private:
    std::vector<bool> is_added_; ///< by number of the chunk
    word_count::Counts sum_;
};

} // namespace

int main(int argument_count, char** argument_values) try {
    const Arguments arguments(argument_count, argument_values, "[--domain NAME]", 0);
    weir::Domain domain = weir::Domain::join(arguments.text("--domain", "word_count"));
    weir::Scheduler scheduler(domain, {.name = "merge"});
    auto& merge = scheduler.add<Merge>();
    // While counters come and go it waits on.
    merge.in.bind("counts", {.port = word_count::port_options, .waits_for_producers = true});
    scheduler.run();
    return merge.print() ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "word_count_merge: %s\n", error.what());
    return 1;
}
