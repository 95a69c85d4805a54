// weir graph: its arguments, what it looks at, and dot.

#include "domains.hpp"
#include "graph.hpp"
#include "output_file.hpp"
#include "process_state.hpp"
#include "verb.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

namespace weir::tool {

namespace {

constexpr const char* graph_notes = "Red is what died, what a signal has stopped, and a port that is stuck: messages\n"
                                    "in it, somebody to take them, and nothing taken between the two looks.\n\n"
                                    "Exit status: 0 all is well, 1 it could not be done, 2 wrong usage\n\n"
                                    "Examples:\n"
                                    "  weir graph camera -o camera.svg           a picture, drawn by dot (Graphviz)\n"
                                    "  weir graph camera | dot -Tpng -o cam.png  another kind of picture";

constexpr double interval_seconds_max = 86400;

struct GraphArguments {
    DomainArguments domain;
    double interval_seconds = 1;
    bool has_pools = false;
    bool is_svg = false;
    std::string output;
};

/// Whether the ending of the output's name asks for a picture.
bool asks_for_svg(const std::string& output) {
    const std::string ending = std::filesystem::path(output).extension();
    if (ending != "" && ending != ".svg" && ending != ".dot" && ending != ".gv") {
        throw UsageError(fmt::format("-o {}: only .svg and .dot are written; for others: weir graph | dot -T{} -o {}",
                                     output, ending.substr(1), output));
    }
    return ending == ".svg";
}

void sleep_for(double seconds) {
    timespec rest{};
    rest.tv_sec = static_cast<time_t>(seconds);
    rest.tv_nsec = static_cast<long>((seconds - static_cast<double>(rest.tv_sec)) * 1e9);
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {
    }
}

GraphInput look_at(const GraphArguments& given) {
    DomainObserver observer = open_domain(given.domain);
    GraphInput input;
    if (given.interval_seconds > 0) {
        input.before = observer.look(false);
        sleep_for(given.interval_seconds);
    }
    input.now = observer.look();
    if (!observer.is_current()) {
        throw std::runtime_error(
            fmt::format("domain {} ended while it was looked at: its last member left", input.now.name));
    }
    input.has_pools = given.has_pools;
    for (const ObservedMember& member : input.now.members) {
        if (is_stopped(member.process)) {
            input.stopped_slots.push_back(member.slot);
        }
    }
    return input;
}

/// A file without a name.
class MemoryFile {
public:
    MemoryFile() : number_(memfd_create("weir graph", MFD_CLOEXEC)) {
        if (number_ < 0) {
            throw std::system_error(errno, std::system_category(), "memfd_create");
        }
    }
    explicit MemoryFile(std::string_view text) : MemoryFile() {
        while (!text.empty()) {
            const ssize_t count = write(number_, text.data(), text.size());
            if (count < 0) {
                throw std::system_error(errno, std::system_category(), "write");
            }
            text.remove_prefix(static_cast<std::size_t>(count));
        }
        lseek(number_, 0, SEEK_SET);
    }
    MemoryFile(const MemoryFile&) = delete;
    MemoryFile& operator=(const MemoryFile&) = delete;
    ~MemoryFile() { close(number_); }

    [[nodiscard]] int number() const noexcept { return number_; }

    [[nodiscard]] std::string text() const {
        std::string text;
        char part[65536];
        for (off_t place = 0;;) {
            const ssize_t count = pread(number_, part, sizeof part, place);
            if (count <= 0) {
                return text;
            }
            text.append(part, static_cast<std::size_t>(count));
            place += count;
        }
    }

private:
    int number_;
};

std::string drawn_by_dot(const std::string& graph) {
    const MemoryFile input(graph);
    const MemoryFile output;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input.number(), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output.number(), STDOUT_FILENO);
    std::string program = "dot";
    std::string format = "-Tsvg";
    char* const arguments[] = {program.data(), format.data(), nullptr};
    pid_t dot = 0;
    const int error = posix_spawnp(&dot, "dot", &actions, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error == ENOENT) {
        throw std::runtime_error("there is no dot, which draws the picture; install the package graphviz, or take the "
                                 "text elsewhere: weir graph -o weir.dot");
    }
    if (error != 0) {
        throw std::runtime_error(fmt::format("dot, which draws the picture, cannot be started: {}; the text can be had "
                                             "without it: weir graph -o weir.dot",
                                             std::strerror(error)));
    }
    int status = 0;
    while (waitpid(dot, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        throw std::runtime_error("dot, which draws the picture, failed; the text can be had without it: "
                                 "weir graph -o weir.dot");
    }
    return output.text();
}

int run_graph(const GraphArguments& given) {
    if (!(given.interval_seconds >= 0 && given.interval_seconds <= interval_seconds_max)) {
        throw UsageError(fmt::format("--interval wants 0 to {} seconds", interval_seconds_max));
    }
    const bool is_svg = given.is_svg || asks_for_svg(given.output);
    const GraphInput input = look_at(given);
    for (const std::string& note : input.now.notes) {
        fmt::print(stderr, "weir: not in the picture: {}\n", note);
    }
    const std::string text = graph_text(input);
    write_output(given.output, is_svg ? drawn_by_dot(text) : text);
    return input.now.notes.empty() ? exit_fine : exit_failed;
}

} // namespace

Verb add_graph(CLI::App& weir) {
    const auto given = std::make_shared<GraphArguments>();
    CLI::App* app = weir.add_subcommand("graph", "Draw a domain's processes and ports");
    add_domain_arguments(*app, given->domain);
    app->add_option("--interval", given->interval_seconds,
                    "Between the two looks that rates are made of,\n"
                    "1 unless given; 0: one look, and totals")
        ->type_name("SECONDS");
    app->add_flag("--pools", given->has_pools, "Draw the buffer pools too");
    app->add_flag("--svg", given->is_svg, "A picture (SVG) instead of Graphviz's text");
    app->add_option("-o", given->output, "Write to this file; FILE.svg is a picture")->type_name("FILE");
    app->footer(graph_notes);
    return {app, [given] { return run_graph(*given); }};
}

} // namespace weir::tool
