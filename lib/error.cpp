#include <weir/error.hpp>

namespace weir {

namespace {

class Category final : public std::error_category {
public:
    [[nodiscard]] const char* name() const noexcept override { return "weir"; }

    [[nodiscard]] std::string message(int value) const override {
        switch (static_cast<errc>(value)) {
        case errc::invalid_capacity: return "capacity is not a power of two within bounds";
        case errc::invalid_size: return "size out of bounds";
        case errc::invalid_name: return "name not allowed";
        case errc::misaligned: return "shared memory does not start on a cache line";
        case errc::exists: return "name exists already";
        case errc::not_found: return "nothing has this name";
        case errc::no_space: return "no space left for shared memory";
        case errc::no_permission: return "no permission";
        case errc::wrong_kind: return "shared memory of another kind";
        case errc::wrong_layout: return "shared memory of another layout version";
        case errc::other_parameters: return "exists with other parameters";
        case errc::truncated: return "shared memory is truncated";
        case errc::corrupt: return "shared memory is corrupt";
        case errc::table_full: return "table is full";
        case errc::too_many_references: return "every reference word of the buffer is in use";
        case errc::unknown_buffer: return "the message's buffer is in no pool of this handle";
        case errc::not_a_member: return "not a member (any more)";
        case errc::closed: return "the last consumer is gone";
        case errc::timed_out: return "timed out";
        case errc::no_buffer: return "an empty BufferPtr cannot be pushed";
        case errc::reap_incomplete: return "not everything was given to the reaper";
        case errc::busy: return "in use just now";
        case errc::used_after_fork: return "used in a forked child; join anew there";
        }
        return value == 0 ? "no error" : "unknown weir error " + std::to_string(value);
    }
};

} // namespace

const std::error_category& error_category() noexcept {
    static const Category category;
    return category;
}

std::error_code make_error_code(errc value) noexcept {
    return {static_cast<int>(value), error_category()};
}

void throw_error(errc value, const std::string& what) {
    throw std::system_error(make_error_code(value), what);
}

} // namespace weir
