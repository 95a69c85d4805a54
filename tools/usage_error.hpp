#pragma once

#include <stdexcept>

namespace weir::tool {

/// What the user asked for cannot be done as it was asked; nothing has been started.
class UsageError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

} // namespace weir::tool
