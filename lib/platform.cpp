#include <weir/platform.hpp>

#include <cstdio>
#include <cstdlib>

namespace weir::detail {

void assertion_failed(const char* rule, const char* file, int line) noexcept {
    std::fprintf(stderr, "weir: this program broke a rule: %s (%s:%d)\n", rule, file, line);
    std::abort();
}

} // namespace weir::detail
