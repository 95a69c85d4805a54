// Uses of weir what an embedder gets: the headers, and the library behind them.
#include <weir/error.hpp>

#include <cstring>
#include <system_error>

int main() {
    try {
        weir::throw_error(weir::errc::invalid_capacity, "thrown by the library, caught by its user");
    } catch (const std::system_error& error) {
        if (error.code() == weir::errc::invalid_capacity && std::strcmp(error.code().category().name(), "weir") == 0)
            return 0;
    }
    return 1;
}
