// Counts in the chunks of text that word_count_split.cpp sends; see there.
//
//     word_count_count [--work-ms N] [--domain NAME]
//
// Start several. One may be killed (-9) and started again: the others go on, what it had taken is not counted, and
// word_count_merge.cpp says so. With --work-ms each chunk takes so much longer.
#include "word_count.hpp"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

namespace {

class Count : public weir::Block {
public:
    weir::InputPort in{*this, "in"};
    weir::OutputPort out{*this, "out"};

    explicit Count(std::chrono::milliseconds work_time) : work_time_(work_time) {}

    weir::WorkResult work() override {
        if (!out.is_ready()) {
            return weir::WorkResult::need_output;
        }
        weir::BufferPtr chunk = in.try_pop();
        if (!chunk) {
            return weir::WorkResult::need_input;
        }
        word_count::Counts counts{.bytes = chunk.size_bytes()};
        bool is_in_word = (chunk.tag() & word_count::within_word) != 0;
        for (const std::byte byte : chunk.bytes()) {
            const bool is_space = word_count::is_space(byte);
            counts.lines += byte == std::byte{'\n'} ? 1 : 0;
            counts.words += !is_space && !is_in_word ? 1 : 0;
            is_in_word = !is_space;
        }
        if (work_time_.count() > 0) {
            std::fprintf(stderr, "word_count_count: counts in chunk %u\n", chunk.tag() & ~word_count::within_word);
            std::this_thread::sleep_for(work_time_);
        }
        chunk.resize(sizeof(counts));
        std::memcpy(chunk.bytes().data(), &counts, sizeof(counts));
        out.push(std::move(chunk)); // the tag goes with it
        return weir::WorkResult::progress;
    }

private:
    std::chrono::milliseconds work_time_;
};

} // namespace

int main(int argument_count, char** argument_values) try {
    const Arguments arguments(argument_count, argument_values, "[--work-ms N] [--domain NAME]", 0);
    weir::Domain domain = weir::Domain::join(arguments.text("--domain", "word_count"));
    weir::Scheduler scheduler(domain, {.name = "count"});
    auto& count = scheduler.add<Count>(std::chrono::milliseconds(arguments.number("--work-ms", 0, 3'600'000)));
    count.in.bind("chunks", {.port = word_count::port_options}); // its end ends the block
    count.out.bind("counts", {.port = word_count::port_options});
    scheduler.start();
    std::fprintf(stderr, "word_count_count: is there\n");
    scheduler.wait();
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "word_count_count: %s\n", error.what());
    return 1;
}
