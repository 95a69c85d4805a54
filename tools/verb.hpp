// The verbs of the weir command: each registers what it is called with, and says how it is run.
#pragma once

#include "usage_error.hpp"

#include <CLI/CLI.hpp>

#include <functional>

namespace weir::tool {

inline constexpr int exit_fine = 0;
inline constexpr int exit_failed = 1; ///< it could not be done, or what was checked is not so
inline constexpr int exit_usage = 2;

struct Verb {
    CLI::App* app;
    /// Does it, after the arguments were parsed. Returns the exit status.
    /// Throws: UsageError, std::exception; main() says what, on stderr.
    std::function<int()> run;
};

[[nodiscard]] Verb add_ls(CLI::App& weir);
[[nodiscard]] Verb add_stat(CLI::App& weir);
[[nodiscard]] Verb add_top(CLI::App& weir);
[[nodiscard]] Verb add_graph(CLI::App& weir);
[[nodiscard]] Verb add_metrics(CLI::App& weir);
[[nodiscard]] Verb add_check(CLI::App& weir);
[[nodiscard]] Verb add_reap(CLI::App& weir);
[[nodiscard]] Verb add_rm(CLI::App& weir);
[[nodiscard]] Verb add_demo(CLI::App& weir);
/// Hidden: the demo starts its stages by it.
[[nodiscard]] Verb add_demo_stage(CLI::App& weir);
[[nodiscard]] Verb add_doctor(CLI::App& weir);
[[nodiscard]] Verb add_send(CLI::App& weir);
[[nodiscard]] Verb add_recv(CLI::App& weir);

} // namespace weir::tool
