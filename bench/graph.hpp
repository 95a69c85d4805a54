// graph.hpp: what the benchmarks of the scheduler are made of: a named domain, and blocks that verify what they carry.
#pragma once

#include "harness.hpp"

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace bench {

/// How many messages a block moves in a call that does not stop at the first.
inline constexpr unsigned burst_usual = 16;

/// A named domain with a pool, which this process keeps up while the processes of a trial are members of it.
class Home {
public:
    explicit Home(const weir::PoolOptions& pool)
        : domain_(weir::Domain::join(name_.text())), pool_(domain_.pool("pool", pool)) {}

    /// In a process of a trial, all of whose memory is mapped in then.
    [[nodiscard]] weir::Domain join() const {
        weir::JoinOptions options;
        options.prefault = true;
        return weir::Domain::join(name_.text(), options);
    }

    void require_idle() {
        require(pool_.free_count() == pool_.buffer_count(), "not all buffers are free in the end");
        const std::vector<std::string> broken = domain_.check();
        require(broken.empty(), broken.empty() ? "" : broken.front().c_str());
    }

private:
    DomainName name_;
    weir::Domain domain_;
    weir::BufferPool pool_;
};

/// The clock at a first and at a last item: what lies between them is measured, with everything at work.
class Span {
public:
    Span(std::uint64_t first_count, std::uint64_t last_count) : next_(first_count), last_(last_count) {}

    /// Notes that there were `count` items; returns whether these are all.
    [[nodiscard]] bool note(std::uint64_t count) noexcept {
        if (count < next_) [[likely]] {
            return false;
        }
        if (next_ != last_) {
            start_ns_ = weir::monotonic_ns();
            start_count_ = count;
            next_ = last_;
            return false;
        }
        if (end_ns_ == 0) {
            end_ns_ = weir::monotonic_ns();
            end_count_ = count;
        }
        return true;
    }

    [[nodiscard]] double item_ns() const {
        require(end_count_ == last_ && start_count_ < end_count_, "not as many items came as were sent");
        return static_cast<double>(end_ns_ - start_ns_) / static_cast<double>(end_count_ - start_count_);
    }

private:
    std::uint64_t next_;
    std::uint64_t last_;
    std::int64_t start_ns_ = 0, end_ns_ = 0;
    std::uint64_t start_count_ = 0, end_count_ = 0;
};

/// Makes progress a number of times.
class Ticker final : public weir::Block {
public:
    explicit Ticker(std::uint64_t count) : span_(count / 16, count) {}

    [[nodiscard]] weir::WorkResult tick() noexcept {
        ++count_;
        benchmark::DoNotOptimize(count_);
        return span_.note(count_) ? weir::WorkResult::done : weir::WorkResult::progress;
    }
    weir::WorkResult work() override { return tick(); }

    [[nodiscard]] double call_ns() const { return span_.item_ns(); }

private:
    std::uint64_t count_ = 0;
    Span span_;
};

/// Sends messages that are numbered in their first eight bytes, or in all of them, up to `burst` in a call.
class NumberSource final : public weir::Block {
public:
    NumberSource(const weir::BufferPool& pool, std::uint64_t count, unsigned burst, std::size_t words_per_message = 1)
        : pool_(*this, pool), count_(count), burst_(burst), words_(words_per_message) {}

    weir::OutputPort out{*this};

    weir::WorkResult work() override {
        for (unsigned number = 0; number < burst_; ++number) {
            if (next_ == count_) {
                return weir::WorkResult::done;
            }
            weir::BufferPtr buffer;
            if (!out.is_ready() || !(buffer = pool_.try_allocate())) {
                return number > 0 ? weir::WorkResult::progress : weir::WorkResult::need_output;
            }
            buffer.resize(words_ * sizeof(std::uint64_t));
            if (words_ == 1) {
                write_word(buffer, next_);
            } else {
                for (std::uint64_t& word : words_of(buffer)) {
                    word = next_;
                }
            }
            out.push(std::move(buffer));
            ++next_;
        }
        return weir::WorkResult::progress;
    }

    [[nodiscard]] static std::span<std::uint64_t> words_of(const weir::BufferPtr& buffer) noexcept {
        const std::span<std::byte> bytes = buffer.bytes();
        return {reinterpret_cast<std::uint64_t*>(bytes.data()), bytes.size() / sizeof(std::uint64_t)};
    }

private:
    weir::PoolPort pool_;
    std::uint64_t next_ = 0;
    std::uint64_t count_;
    unsigned burst_;
    std::size_t words_;
};

/// Adds one to each word of a message, and sends it on.
class AddOne final : public weir::Block {
public:
    explicit AddOne(unsigned burst) : burst_(burst) {}

    weir::InputPort in{*this};
    weir::OutputPort out{*this};

    weir::WorkResult work() override {
        for (unsigned number = 0; number < burst_; ++number) {
            if (!out.is_ready()) {
                return number > 0 ? weir::WorkResult::progress : weir::WorkResult::need_output;
            }
            weir::BufferPtr buffer = in.try_pop();
            if (!buffer) {
                return number > 0 ? weir::WorkResult::progress : weir::WorkResult::need_input;
            }
            for (std::uint64_t& word : NumberSource::words_of(buffer)) {
                ++word;
            }
            out.push(std::move(buffer));
        }
        return weir::WorkResult::progress;
    }

private:
    unsigned burst_;
};

/// Verifies what a NumberSource sent and a number of AddOne passed on.
class NumberSink final : public weir::Block {
public:
    NumberSink(std::uint64_t count, unsigned burst, std::uint64_t added = 0, std::size_t words_per_message = 1)
        : span_(count / 16, count), added_(added), burst_(burst), words_(words_per_message) {}

    weir::InputPort in{*this};

    weir::WorkResult work() override {
        for (unsigned number = 0; number < burst_; ++number) {
            const weir::BufferPtr buffer = in.try_pop();
            if (!buffer) {
                return number > 0 ? weir::WorkResult::progress : weir::WorkResult::need_input;
            }
            const std::span<const std::uint64_t> words = NumberSource::words_of(buffer);
            bool is_right = words.size() == words_;
            for (const std::uint64_t word : words) {
                is_right &= word == next_ + added_;
            }
            require(is_right, "a message was lost, came twice or out of order");
            static_cast<void>(span_.note(++next_));
        }
        return weir::WorkResult::progress;
    }

    [[nodiscard]] double message_ns() const { return span_.item_ns(); }

private:
    Span span_;
    std::uint64_t next_ = 0;
    std::uint64_t added_;
    unsigned burst_;
    std::size_t words_;
};

[[nodiscard]] inline weir::SchedulerOptions one_worker() {
    return {.name = "bench"};
}

[[nodiscard]] inline weir::SchedulerOptions two_workers() {
    return {.name = "bench", .worker_count = 2, .cpus = {processor(0), processor(1)}};
}

/// Messages that go from a source through `map_count` blocks to a sink, each block one message a call or a burst.
/// Returns the time per message in ns.
[[nodiscard]] inline double graph_ns(const weir::Domain& domain, const weir::SchedulerOptions& options,
                                     std::uint64_t count, unsigned map_count, unsigned burst) {
    weir::Domain member = domain;
    const weir::BufferPool pool = member.pool("pool");
    weir::Scheduler scheduler(domain, options);
    auto& source = scheduler.add<NumberSource>(pool, count, burst);
    weir::OutputPort* from = &source.out;
    for (unsigned number = 0; number < map_count; ++number) {
        auto& map = scheduler.add<AddOne>(burst);
        scheduler.connect(*from, map.in);
        from = &map.out;
    }
    auto& sink = scheduler.add<NumberSink>(count, burst, map_count);
    scheduler.connect(*from, sink.in);
    scheduler.run();
    return sink.message_ns();
}

} // namespace bench
