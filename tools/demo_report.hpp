// What the demo prints: tables, what a kill took along, and the verdict.
#pragma once

#include "demo_pipeline.hpp"
#include "demo_plan.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace weir::demo {

/// What is going to be done.
[[nodiscard]] std::string describe_plan(const Plan& plan, const Pipeline& pipeline);

/// How far it is, in one line.
[[nodiscard]] std::string describe_progress(const Plan& plan, const Pipeline& pipeline, std::int64_t start_ns);

/// The results of a pipeline that has ended well.
class Report {
public:
    Report(const Plan& plan, Pipeline& pipeline);

    /// Tables of files, processes and ports, and what a kill took along.
    [[nodiscard]] std::string tables() const;

    /// Everything that is not as it must be; empty when all is well.
    [[nodiscard]] const std::vector<std::string>& problems() const noexcept { return problems_; }

    /// What was found to hold, where there are no problems.
    [[nodiscard]] std::string verdict() const;

private:
    void find_problems();
    [[nodiscard]] std::string file_table() const;
    [[nodiscard]] std::string process_table() const;
    [[nodiscard]] std::string port_table() const;
    void attribute_missing();
    [[nodiscard]] std::string kill_story() const;
    [[nodiscard]] std::string kill_story(std::size_t place) const;
    [[nodiscard]] std::string resumption(const Process& successor) const;
    [[nodiscard]] Verdict verdict_of(const PlannedFile& file) const;
    [[nodiscard]] std::uint64_t missing_count(const PlannedFile& file) const;
    [[nodiscard]] std::string message_name(std::uint64_t message) const;

    const Plan& plan_;
    Pipeline& pipeline_;
    std::vector<std::uint64_t> missing_;           ///< the messages that did not arrive
    std::vector<std::uint64_t> repeated_;          ///< and those that arrived twice
    std::vector<std::vector<std::uint64_t>> lost_; ///< of those missing, what each killed process had claimed
    std::uint64_t offsets_checked_ = 0;
    std::uint64_t offsets_moved_ = 0;
    std::vector<std::string> problems_;
};

} // namespace weir::demo
