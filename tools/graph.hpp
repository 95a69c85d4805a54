// weir graph: a domain as a picture, in Graphviz's language.
//
// Boxes with round corners are processes, the other boxes ports; an arrow leads from who pushes into a port, and to who
// takes out of it. What is dead, ended, stopped or stuck is red.
#pragma once

#include <weir/observer.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weir::tool {

struct GraphInput {
    DomainSnapshot now;
    std::optional<DomainSnapshot> before;    ///< of the same observer; without it, arrows tell totals instead of rates
    std::vector<std::uint8_t> stopped_slots; ///< whose processes a signal has stopped
    bool has_pools = false;                  ///< whether pools are drawn too
};

/// The same text for the same input.
[[nodiscard]] std::string graph_text(const GraphInput& input);

/// What stands between quotation marks for a label to read as `text` does.
[[nodiscard]] std::string escaped_for_label(std::string_view text);

} // namespace weir::tool
