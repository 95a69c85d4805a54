// What the stress tests share: payloads that tell whether they are whole, and how a test fails.
#pragma once

#include "../testing.hpp"

namespace stress {

[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "FAILED (WEIR_TEST_SEED=%llu): ", static_cast<unsigned long long>(test::seed()));
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
    std::fflush(stderr);
    _exit(1);
}

/// What a payload holds, all of it: who wrote it and the how manieth, and words that follow from these.
struct Payload {
    std::uint32_t writer;
    std::uint32_t number;
    std::uint32_t words[14];

    void write(std::uint32_t by, std::uint32_t its_number) {
        writer = by;
        number = its_number;
        for (std::uint32_t place = 0; place < std::size(words); ++place) {
            words[place] = by * 7919 + its_number * 31 + place;
        }
    }
    [[nodiscard]] bool is_whole() const {
        for (std::uint32_t place = 0; place < std::size(words); ++place) {
            if (words[place] != writer * 7919 + number * 31 + place) {
                return false;
            }
        }
        return true;
    }
};
static_assert(sizeof(Payload) == 64);

inline Payload& payload_of(const weir::BufferPtr& buffer) {
    return *reinterpret_cast<Payload*>(buffer.bytes().data());
}

/// The number behind `name`.
inline unsigned option(int argument_count, char** arguments, const char* name, unsigned otherwise) {
    for (int place = 1; place + 1 < argument_count; place += 2) {
        if (std::strcmp(arguments[place], name) == 0) {
            return static_cast<unsigned>(std::strtoul(arguments[place + 1], nullptr, 0));
        }
    }
    return otherwise;
}

/// The watchdog of a program that takes that many steps: sanitized, on a busy core.
inline void set_watchdog(unsigned round_count) {
    alarm(300 + round_count / 100);
    std::printf("seed: WEIR_TEST_SEED=%llu, %u rounds\n", static_cast<unsigned long long>(test::seed()), round_count);
    std::fflush(stdout);
}

} // namespace stress
