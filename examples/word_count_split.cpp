// Counts the lines, words and bytes of a text, as `LC_ALL=C wc` does, in several processes. This one reads the text and
// cuts it into chunks at white space; any number of word_count_count.cpp count; word_count_merge.cpp adds up. Start them
// in any order.
//
//     word_count_split TEXT [--domain NAME]
#include "word_count.hpp"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <span>
#include <utility>
#include <vector>

namespace {

/// Cuts what was read behind its last white space. The rest goes with what is read next.
class Split : public weir::Block {
public:
    weir::InputPort in{*this, "in"};
    weir::OutputPort out{*this, "out"};
    weir::OutputPort total{*this, "total"};

    explicit Split(weir::BufferPool pool) : chunks_(*this, std::move(pool)) {}

    weir::WorkResult work() override {
        if (!out.is_ready() || (!chunk_ && !(chunk_ = chunks_.try_allocate()))) {
            return weir::WorkResult::need_output;
        }
        const weir::BufferPtr read = in.try_pop();
        if (!read && !in.is_at_end()) {
            return weir::WorkResult::need_input;
        }
        if (!read && rest_.empty()) {
            return send_total();
        }
        const auto fresh = read ? read.bytes() : std::span<std::byte>();
        const auto text = chunk_.bytes().first(rest_.size() + fresh.size());
        std::ranges::copy(rest_, text.begin());
        std::ranges::copy(fresh, text.last(fresh.size()).begin());

        const auto last_word = std::find_if(fresh.rbegin(), fresh.rend(), word_count::is_space).base();
        const bool is_cut = last_word != fresh.begin();
        rest_.assign(is_cut ? last_word : fresh.end(), fresh.end());
        chunk_.resize(text.size() - rest_.size());
        chunk_.set_tag(number_++ | (is_within_word_ ? word_count::within_word : 0));
        is_within_word_ = !is_cut;
        out.push(std::move(chunk_));
        return weir::WorkResult::progress;
    }

private:
    /// When all chunks are back, they were added up, or lost with a counter that was killed. Then a message without any
    /// counts says how many there were.
    weir::WorkResult send_total() {
        while (weir::BufferPtr chunk = chunks_.try_allocate()) {
            back_.push_back(std::move(chunk));
        }
        if (1 + back_.size() < chunks_.pool().buffer_count()) {
            return weir::WorkResult::need_output;
        }
        chunk_.resize(0);
        chunk_.set_tag(number_);
        total.push(std::move(chunk_));
        return weir::WorkResult::done;
    }

    weir::PoolPort chunks_;
    weir::BufferPtr chunk_;
    std::vector<std::byte> rest_; ///< the beginning of a word
    std::uint32_t number_ = 0;
    bool is_within_word_ = false;
    std::vector<weir::BufferPtr> back_;
};

} // namespace

int main(int argument_count, char** argument_values) try {
    const Arguments arguments(argument_count, argument_values, "TEXT [--domain NAME]", 1);
    weir::Domain domain = weir::Domain::join(arguments.text("--domain", "word_count"));
    weir::Scheduler scheduler(domain, {.name = "split"});
    auto& text = scheduler.add<weir::FileSource>(arguments.word(0), domain.pool("read", word_count::read_options));
    auto& split = scheduler.add<Split>(domain.pool("chunks", word_count::chunk_options));
    scheduler.connect(text.out, split.in);
    split.out.bind("chunks", {.port = word_count::port_options});
    split.total.bind("counts", {.port = word_count::port_options});
    scheduler.run();
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "word_count_split: %s\n", error.what());
    return 1;
}
