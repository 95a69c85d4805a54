// weir metrics: domains as OpenMetrics text (version 1.0), which a Prometheus textfile collector reads too.
//
// That collector reads Prometheus's older text: `# UNIT` and `# EOF` are comments to it, time stamps are forbidden, and one
// series in two of its files is an error, so each series names its domain and user. It takes counters as untyped, because
// OpenMetrics has their TYPE without the ending _total; queries like rate() do not mind.
#pragma once

#include <weir/observer.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weir::tool {

/// A domain that was asked for.
struct DomainReading {
    DomainName domain;
    std::optional<DomainSnapshot> seen; ///< nothing: it is not there, or could not be opened
};

/// Families in a fixed order, each with all of its samples; those without any are left out.
[[nodiscard]] std::string metrics_text(const std::vector<DomainReading>& readings);

/// What stands between quotation marks for a label's value to be `text`.
[[nodiscard]] std::string escaped_for_metric(std::string_view text);

} // namespace weir::tool
