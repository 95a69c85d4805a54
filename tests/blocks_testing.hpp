// What the tests of ready-made blocks share: a domain of their own, blocks that make and collect messages, and the wait
// path that WEIR_WAIT_PATH demands.
#pragma once

#include "domain_testing.hpp"

#include <weir/blocks.hpp>
#include <weir/scheduler.hpp>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

namespace test {

/// Ends the program as skipped where the demanded wait path is not to be had. Called before main().
inline bool require_wait_path() {
    const Name name;
    weir::Domain domain = weir::Domain::join(name);
    try {
        weir::Scheduler scheduler(domain);
        scheduler.start();
    } catch (const std::system_error& error) {
        std::cerr << "skipped: " << error.what() << '\n';
        domain.leave();
        weir::Domain::remove(name.text(), {.force = true, .lock_file = true});
        std::exit(77);
    }
    return true;
}

/// A domain with one pool, of which all buffers are free again at the end.
struct Place {
    explicit Place(std::uint64_t buffer_bytes = 4096, std::uint32_t buffer_count = 32,
                   std::uint32_t references_per_buffer = 4)
        : domain(weir::Domain::join(name, quick())),
          pool(domain.pool("pool", {.buffer_bytes = buffer_bytes,
                                    .buffer_count = buffer_count,
                                    .references_per_buffer = references_per_buffer})) {}

    /// What is wrong after the scheduler is gone.
    [[nodiscard]] std::string leftover() {
        std::string text = check(domain);
        if (pool.free_count() != pool.buffer_count()) {
            text += std::to_string(pool.buffer_count() - pool.free_count()) + " buffers are not free\n";
        }
        return text;
    }

    Name name;
    weir::Domain domain;
    weir::BufferPool pool;
};

/// Sends messages that a function fills, one after the other, while it returns true.
class Maker final : public weir::Block {
public:
    Maker(weir::BufferPool pool, std::function<bool(weir::BufferPtr&, std::uint32_t number)> fill)
        : Block("maker"), pool_(*this, std::move(pool)), fill_(std::move(fill)) {}

    weir::OutputPort out{*this, "out"};

    weir::WorkResult work() override {
        if (!out.is_ready()) {
            return weir::WorkResult::need_output;
        }
        weir::BufferPtr buffer = pool_.try_allocate();
        if (!buffer) {
            return weir::WorkResult::need_output;
        }
        if (!fill_(buffer, number_)) {
            return weir::WorkResult::done;
        }
        ++number_;
        out.push(std::move(buffer));
        return weir::WorkResult::progress;
    }

private:
    weir::PoolPort pool_;
    std::function<bool(weir::BufferPtr&, std::uint32_t)> fill_;
    std::uint32_t number_ = 0;
};

/// Sends `count` messages that hold their numbers.
inline auto numbers(std::uint32_t count) {
    return [count](weir::BufferPtr& buffer, std::uint32_t number) {
        if (number == count) {
            return false;
        }
        buffer.resize(sizeof number);
        write_number(buffer, number);
        buffer.set_tag(number);
        return true;
    };
}

/// Keeps what comes, up to so many messages.
class Collector final : public weir::Block {
public:
    explicit Collector(std::size_t count_max = SIZE_MAX) : Block("collector"), count_max_(count_max) {}

    weir::InputPort in{*this, "in"};

    std::vector<std::uint32_t> tags;
    std::vector<std::uint32_t> ids; ///< of the buffers
    std::vector<std::size_t> sizes;
    std::string bytes; ///< of all messages

    [[nodiscard]] std::vector<std::uint32_t> collected_numbers() const {
        std::vector<std::uint32_t> found(bytes.size() / sizeof(std::uint32_t));
        std::memcpy(found.data(), bytes.data(), found.size() * sizeof(std::uint32_t));
        return found;
    }

    weir::WorkResult work() override {
        if (tags.size() == count_max_) {
            return weir::WorkResult::done;
        }
        const weir::BufferPtr message = in.try_pop();
        if (!message) {
            return weir::WorkResult::need_input;
        }
        tags.push_back(message.tag());
        ids.push_back(message.id());
        sizes.push_back(message.size_bytes());
        bytes.append(reinterpret_cast<const char*>(message.bytes().data()), message.size_bytes());
        return weir::WorkResult::progress;
    }

private:
    std::size_t count_max_;
};

/// The error that a scheduler's run ends with.
struct RunError {
    std::string block;
    std::string what;
    std::error_code code;
    bool is_thrown = false;
};

inline RunError error_of_run(weir::Scheduler& scheduler) {
    RunError found;
    try {
        scheduler.run();
    } catch (const weir::BlockError& error) {
        found.is_thrown = true;
        found.block = error.block_name();
        found.what = error.what();
        try {
            std::rethrow_if_nested(error);
        } catch (const std::system_error& nested) {
            found.code = nested.code();
        } catch (...) {
        }
    }
    return found;
}

inline std::vector<std::uint32_t> first_numbers(std::uint32_t count) {
    std::vector<std::uint32_t> all(count);
    for (std::uint32_t number = 0; number < count; ++number) {
        all[number] = number;
    }
    return all;
}

} // namespace test
