// Adds up what producer.cpp sends, in a block of its own, up to the end of the stream.
//
//     consumer DOMAIN
#include <weir/weir.hpp>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>

namespace {

class Sum : public weir::Block {
public:
    weir::InputPort in{*this, "in"};
    std::uint64_t sum = 0;

    weir::WorkResult work() override {
        weir::BufferPtr buffer = in.try_pop();
        if (!buffer) {
            return weir::WorkResult::need_input;
        }
        std::uint32_t number = 0;
        std::memcpy(&number, buffer.bytes().data(), sizeof(number));
        sum += number;
        return weir::WorkResult::progress;
    }
};

class Failing : public weir::Block {
public:
    weir::WorkResult work() override { throw std::runtime_error("on purpose"); }
};

/// Whether what a block throws comes through the library, as an exception of the library's own type.
bool is_error_told_apart(const weir::Domain& domain) {
    weir::Scheduler scheduler(domain, {.name = "failing"});
    scheduler.add<Failing>();
    try {
        scheduler.run();
    } catch (const weir::BlockError& error) {
        return std::strstr(error.what(), "on purpose") != nullptr;
    }
    return false;
}

} // namespace

int main(int argument_count, char** arguments) try {
    if (argument_count != 2) {
        return 2;
    }
    weir::Domain domain = weir::Domain::join(arguments[1]);
    weir::Scheduler scheduler(domain);
    Sum& sum = scheduler.add<Sum>();
    sum.in.bind("numbers", {.port = {.capacity = 8}});
    scheduler.run();
    std::printf("the sum is %llu\n", static_cast<unsigned long long>(sum.sum));
    return is_error_told_apart(domain) ? 0 : 3;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
