#include "demo_report.hpp"

#include "sha256.hpp"
#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace weir::demo {

namespace {

constexpr std::size_t file_line_max = 16;
constexpr std::size_t label_width_max = 28;

double percent(std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 100 : 100 * static_cast<double>(part) / static_cast<double>(whole);
}

double seconds(std::int64_t duration_ns) {
    return static_cast<double>(duration_ns) / 1e9;
}

} // namespace

std::string describe_plan(const Plan& plan, const Pipeline& pipeline) {
    std::string text = fmt::format("{}, {}, as {} of up to 64 KiB\n"
                                   "{} producers -> port -> {} workers -> port -> collector, {} buffers, {} programs\n"
                                   "that find each other in the domain {}\n",
                                   tool::counted(plan.files.size(), "file"), tool::sized(plan.bytes),
                                   tool::counted(plan.message_count, "message"), producer_count, worker_count,
                                   pipeline.pool().buffer_count(), role_count, pipeline.domain_name());
    if (plan.left_out_count > 0) {
        text += fmt::format("--bytes-max leaves out {}\n", tool::counted(plan.left_out_count, "file"));
    }
    return text;
}

std::string describe_progress(const Plan& plan, const Pipeline& pipeline, std::int64_t start_ns) {
    if (const std::uint64_t compared_bytes = read(pipeline.collector().report->compared_bytes); compared_bytes > 0) {
        return fmt::format("{:3.0f}%  of {} compared", percent(compared_bytes, plan.bytes), tool::sized(plan.bytes));
    }
    const std::uint64_t bytes = pipeline.arrived_bytes();
    const BufferPool& pool = pipeline.pool();
    std::string line =
        fmt::format("{:3.0f}%  {} of {}  {}  {} of {} buffers in flight", percent(bytes, plan.bytes),
                    tool::sized(bytes), tool::sized(plan.bytes), tool::rated(bytes, monotonic_ns() - start_ns),
                    pool.buffer_count() - pool.free_count(), pool.buffer_count());
    if (const auto done = std::ranges::count(pipeline.kills(), true, &Kill::is_done); done > 0) {
        line += fmt::format("  {} killed", done);
    }
    return line;
}

Report::Report(const Plan& plan, Pipeline& pipeline) : plan_(plan), pipeline_(pipeline) {
    for (std::uint64_t message = 0; message < plan.message_count; ++message) {
        const Arrival arrival = pipeline.board().arrival(message);
        if (arrival < Arrival::written) {
            missing_.push_back(message);
        } else if (arrival == Arrival::repeated) {
            repeated_.push_back(message);
        }
    }
    for (const Process& process : pipeline.processes()) {
        offsets_checked_ += process.report->offsets_checked;
        offsets_moved_ += process.report->offsets_moved;
    }
    attribute_missing();
    find_problems();
}

/// Whose each missing message was: in the hands of a process when it was killed, or pushed by it at that moment.
void Report::attribute_missing() {
    const std::span<const Kill> kills = pipeline_.kills();
    lost_.resize(kills.size());
    std::vector<std::uint64_t> unexplained;
    for (const std::uint64_t message : missing_) {
        const auto has = [message](const std::vector<std::uint64_t>& list) {
            return std::ranges::find(list, message) != list.end();
        };
        auto kill = std::ranges::find_if(kills, [&has](const Kill& each) { return has(each.claimed); });
        if (kill == kills.end()) {
            kill = std::ranges::find_if(kills, [&has](const Kill& each) { return has(each.pushed); });
        }
        if (kill == kills.end()) {
            unexplained.push_back(message);
        } else {
            lost_[static_cast<std::size_t>(kill - kills.begin())].push_back(message);
        }
    }
    for (const std::uint64_t message : unexplained) {
        problems_.push_back(
            fmt::format("{} did not arrive, and no killed process had claimed it", message_name(message)));
    }
}

void Report::find_problems() {
    std::ranges::copy(pipeline_.leftovers(), std::back_inserter(problems_));
    for (const PlannedFile& file : plan_.files) {
        const Verdict verdict = verdict_of(file);
        if (verdict == Verdict::differs || verdict == Verdict::unknown) {
            problems_.push_back(fmt::format("{} {}", tool::printable(file.path.native()),
                                            verdict == Verdict::differs ? "and its copy differ" : "was not compared"));
        }
    }
    if (offsets_moved_ > 0) {
        problems_.push_back(fmt::format("{} of {} payload offsets were not what the producer wrote into the buffer",
                                        offsets_moved_, offsets_checked_));
    }
    // Each message that arrived was looked at by a worker and by a collector.
    const std::uint64_t looks_min = 2 * (plan_.message_count - missing_.size());
    if (offsets_checked_ < looks_min) {
        problems_.push_back(fmt::format("only {} of {} payload offsets were checked", offsets_checked_, looks_min));
    }
    if (const auto left = std::ranges::count(pipeline_.kills(), false, &Kill::is_done); left > 0) {
        problems_.push_back(fmt::format("it was over before {} of the kills", left));
    }
    DomainCensus census;
    std::ranges::move(pipeline_.domain().check(&census), std::back_inserter(problems_));
    if (census.free_count != pipeline_.pool().buffer_count()) {
        problems_.push_back(fmt::format("{} of {} buffers are free, {} references are held and {} queued",
                                        census.free_count, pipeline_.pool().buffer_count(), census.held_reference_count,
                                        census.queued_reference_count));
    }
    if (const std::size_t others = pipeline_.domain().members().size() - 1; others > 0) {
        problems_.push_back(
            fmt::format("{} of ended programs are left in the domain", tool::counted(others, "member")));
    }
}

Verdict Report::verdict_of(const PlannedFile& file) const {
    const auto parts = pipeline_.board().results().subspan(file.first_part, file.part_count);
    const auto any_is = [parts](Verdict verdict) {
        return std::ranges::any_of(parts, [verdict](const PartResult& part) { return part.verdict == verdict; });
    };
    for (const Verdict verdict : {Verdict::differs, Verdict::unknown, Verdict::equal_except_missing}) {
        if (any_is(verdict)) {
            return verdict;
        }
    }
    return Verdict::equal;
}

std::uint64_t Report::missing_count(const PlannedFile& file) const {
    const std::uint64_t first = plan_.parts[file.first_part].first_message;
    const Part& last = plan_.parts[file.first_part + file.part_count - 1];
    return static_cast<std::uint64_t>(std::ranges::lower_bound(missing_, last.first_message + last.chunk_count) -
                                      std::ranges::lower_bound(missing_, first));
}

std::string Report::message_name(std::uint64_t message) const {
    const Part& part = plan_.part_of(message);
    const std::uint64_t chunk = message - part.first_message;
    const std::uint64_t first = plan_.chunk_offset(part, chunk);
    const std::uint64_t size = plan_.chunk_size(part, chunk);
    return fmt::format("message {} of producer {}: {}, {}", tool::grouped(part.first_sequence + chunk),
                       part.producer + 1, tool::printable(plan_.files[part.file].path.native()),
                       size == 0
                           ? "which is empty"
                           : fmt::format("bytes {} to {}", tool::grouped(first), tool::grouped(first + size - 1)));
}

std::string Report::file_table() const {
    tool::Table table({"file", ">bytes", ">messages", "producer", "SHA-256 of the copy", ""});
    std::size_t line_count = 0;
    std::size_t unlisted_count = 0;
    for (const PlannedFile& file : plan_.files) {
        const Verdict verdict = verdict_of(file);
        if (line_count == file_line_max && verdict == Verdict::equal) {
            ++unlisted_count;
            continue;
        }
        line_count += line_count < file_line_max ? 1 : 0;
        std::uint64_t message_count = 0;
        std::string producers;
        for (const Part& part : std::span(plan_.parts).subspan(file.first_part, file.part_count)) {
            message_count += part.chunk_count;
            producers += fmt::format("{}{}", producers.empty() ? "" : " ", part.producer + 1);
        }
        const PartResult& result = pipeline_.board().results()[file.first_part];
        table.add({tool::shortened(file.label, label_width_max), tool::sized(file.bytes), tool::grouped(message_count),
                   producers,
                   result.verdict != Verdict::equal ? "-"
                   : file.part_count > 1            ? fmt::format("{} digests", file.part_count)
                                                    : tool::hexadecimal(result.digest).substr(0, 16) + "..",
                   verdict == Verdict::equal ? (file.bytes < file.size_bytes ? "equal so far" : "equal")
                   : verdict == Verdict::equal_except_missing
                       ? fmt::format("equal but for {}", tool::counted(missing_count(file), "message"))
                       : "DIFFERS"});
    }
    return table.text() + (unlisted_count > 0
                               ? fmt::format("  and {} that {} equal\n", tool::counted(unlisted_count, "file"),
                                             unlisted_count == 1 ? "is" : "are")
                               : "");
}

std::string Report::process_table() const {
    tool::Table table({"process", ">pid", ">messages", ">bytes", ">rate", ">waits", ""});
    for (const Process& process : pipeline_.processes()) {
        const ProcessReport& report = *process.report;
        table.add({process.name(), fmt::format("{}", process.pid), tool::grouped(report.messages),
                   tool::sized(report.bytes), tool::rated(report.bytes, report.last_ns - report.first_ns),
                   tool::grouped(report.waits), process.state == Process::State::killed ? "killed" : ""});
    }
    return table.text();
}

std::string Report::port_table() const {
    tool::Table table(
        {"port", ">pushed", ">popped", ">most queued", ">found full", ">found empty", ">sleeps", ">wake-ups"});
    const char* names[] = {"producers -> workers", "workers -> collector"};
    for (std::size_t number = 0; number < pipeline_.ports().size(); ++number) {
        const Port& port = pipeline_.ports()[number];
        const PortCounters in = port.counters(PortEnd::producer);
        const PortCounters out = port.counters(PortEnd::consumer);
        table.add({names[number], tool::grouped(in.messages), tool::grouped(out.messages),
                   fmt::format("{} of {}", in.high_water_mark, port.options().capacity), tool::grouped(in.stalls),
                   tool::grouped(out.stalls), tool::grouped(in.waits + out.waits),
                   tool::grouped(in.wakes + out.wakes)});
    }
    return table.text();
}

std::string Report::kill_story() const {
    std::string text =
        fmt::format("\nkilled in turn, reaped, and started again (--seed {}):\n", *pipeline_.kill_seed());
    for (std::size_t place = 0; place < pipeline_.kills().size(); ++place) {
        text += kill_story(place);
    }
    return text;
}

std::string Report::kill_story(std::size_t place) const {
    const Kill& kill = pipeline_.kills()[place];
    if (!kill.is_done) {
        return "";
    }
    const Process& victim = pipeline_.processes()[kill.victim];
    const Process& successor = pipeline_.processes()[kill.successor];
    std::string text = fmt::format("  {} (process {}) was killed when {} of {} had arrived; process {} went on\n",
                                   victim.name(), victim.pid, tool::grouped(kill.arrived_count),
                                   tool::counted(plan_.message_count, "message"), successor.pid);
    if (victim.role == Role::producer) {
        return text + (kill.held_count == 0 ? "    it had no buffer in its hands; " : "    it was filling a buffer; ") +
               resumption(successor);
    }
    const std::vector<std::uint64_t>& lost = lost_[place];
    if (lost.empty()) {
        return text + "    it had claimed no message that it had not passed on\n";
    }
    text += fmt::format("    it had claimed {}, which went with it:\n", tool::counted(lost.size(), "message"));
    for (const std::uint64_t message : lost) {
        text += "      " + message_name(message) + "\n";
    }
    return text;
}

/// Where a producer that was started again went on, and what of that arrived twice.
std::string Report::resumption(const Process& successor) const {
    const std::uint64_t sequence = successor.report->resumed_sequence;
    for (const Part& part : plan_.parts) {
        if (part.producer == successor.number && sequence >= part.first_sequence &&
            sequence < part.first_sequence + part.chunk_count) {
            const bool is_repeated =
                std::ranges::binary_search(repeated_, part.first_message + sequence - part.first_sequence);
            return fmt::format("its messages from {} on were sent then{}\n", tool::grouped(sequence),
                               is_repeated ? "; that one it had just pushed: it came twice, and was written once" : "");
        }
    }
    return "all of its messages had been sent\n";
}

std::string Report::tables() const {
    return fmt::format("\n{}\n{}\n{}{}", file_table(), process_table(), port_table(),
                       pipeline_.kills().empty() ? "" : kill_story());
}

std::string Report::verdict() const {
    const ProcessReport& collector = *pipeline_.collector().report;
    std::int64_t first_ns = collector.last_ns;
    std::int64_t last_ns = collector.last_ns;
    for (const Process& process : pipeline_.processes()) {
        if (process.report->messages > 0) {
            first_ns = first_ns == 0 ? process.report->first_ns : std::min(first_ns, process.report->first_ns);
            last_ns = std::max(last_ns, process.report->last_ns);
        }
    }
    const std::uint64_t bytes = pipeline_.arrived_bytes();
    return fmt::format("\n{} streamed in {:.2f} s: {}; compared in {:.2f} s\n"
                       "{} of {} arrived, each once{}; {} equal by SHA-256\n"
                       "no buffer moved: its offset was the producer's in {} looks, by workers and collector\n"
                       "all {} buffers are free again\n",
                       tool::sized(bytes), seconds(last_ns - first_ns), tool::rated(bytes, last_ns - first_ns),
                       seconds(collector.compared_ns), tool::grouped(plan_.message_count - missing_.size()),
                       tool::counted(plan_.message_count, "message"),
                       repeated_.empty() ? "" : fmt::format(" but for {} sent again", repeated_.size()),
                       missing_.empty() ? "all bytes are" : "all other bytes are", tool::grouped(offsets_checked_),
                       pipeline_.pool().buffer_count());
}

} // namespace weir::demo
