#include "catch.hpp"

#include <weir/error.hpp>

#include <set>
#include <string>

namespace {

constexpr int first_value = static_cast<int>(weir::errc::invalid_capacity);
constexpr int last_value = static_cast<int>(weir::errc::used_after_fork);

} // namespace

TEST_CASE("each cause of failure says something else") {
    std::set<std::string> messages;
    for (int value = first_value; value <= last_value; ++value) {
        const std::error_code code = static_cast<weir::errc>(value);
        CAPTURE(value, code.message());
        CHECK(code.value() == value);
        CHECK(code.message().find("unknown") == std::string::npos);
        CHECK(messages.insert(code.message()).second);
    }
    CHECK(messages.size() == static_cast<std::size_t>(last_value));
}

TEST_CASE("a value that no cause has is named as unknown") {
    CHECK(weir::error_category().message(0) == "no error");
    const std::string beyond = "unknown weir error " + std::to_string(last_value + 1);
    CHECK(weir::error_category().message(last_value + 1).find(beyond) != std::string::npos);
}

TEST_CASE("all errors are of one category called weir") {
    CHECK(std::string(weir::error_category().name()) == "weir");
    CHECK(weir::make_error_code(weir::errc::closed).category() == weir::error_category());
    CHECK(&weir::error_category() == &weir::error_category());
}

TEST_CASE("no error is false, and every cause is true") {
    CHECK_FALSE(weir::make_error_code(weir::errc{}));
    CHECK(weir::make_error_code(weir::errc::invalid_capacity));
}

TEST_CASE("an error code compares with the cause, and with no other category's") {
    const std::error_code code = weir::errc::not_found;
    CHECK(code == weir::errc::not_found);
    CHECK(code != weir::errc::exists);
    CHECK(code != std::error_code(static_cast<int>(weir::errc::not_found), std::system_category()));
}

TEST_CASE("a thrown error carries its cause and what to do") {
    try {
        weir::throw_error(weir::errc::no_space, "the well is full: dig another");
    } catch (const std::system_error& error) {
        CHECK(error.code() == weir::errc::no_space);
        CHECK(std::string(error.what()).find("the well is full: dig another") != std::string::npos);
        return;
    }
    FAIL("it did not throw");
}
