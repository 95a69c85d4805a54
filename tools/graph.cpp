#include "graph.hpp"

#include "snapshot.hpp"
#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace weir::tool {

namespace {

constexpr const char* bad_color = "#c62828";

/// The lines of a label, and whether one of them says that something is wrong.
class Label {
public:
    void add(std::string_view line) { text_ += (text_.empty() ? "" : "\\n") + escaped_for_label(line); }
    void add_bad(std::string_view line) {
        add(line);
        is_bad_ = true;
    }

    [[nodiscard]] bool is_bad() const noexcept { return is_bad_; }
    [[nodiscard]] std::string attribute() const { return fmt::format("label=\"{}\"", text_); }

private:
    std::string text_;
    bool is_bad_ = false;
};

std::string node(const std::string& id, const Label& label, std::string_view look) {
    return fmt::format("  {} [{}{}{}];\n", id, label.attribute(), look,
                       label.is_bad() ? fmt::format(", color=\"{0}\", fontcolor=\"{0}\", penwidth=2", bad_color) : "");
}

std::string edge(const std::string& from, const std::string& to, const Label& label) {
    return fmt::format("  {} -> {} [{}{}];\n", from, to, label.attribute(),
                       label.is_bad() ? fmt::format(", color=\"{0}\", fontcolor=\"{0}\", style=dashed", bad_color)
                                      : "");
}

std::string process_id(std::uint8_t slot) {
    return fmt::format("process_{}", slot);
}

std::string messages_rate(std::uint64_t count, std::int64_t duration_ns) {
    const double rate = static_cast<double>(count) * 1e9 / static_cast<double>(duration_ns);
    // A few in a long interval are not none.
    return rate < 9.95 ? fmt::format("{:.1f} msg/s", rate)
                       : grouped(static_cast<std::uint64_t>(std::llround(rate))) + " msg/s";
}

std::string policy(const PortOptions& options) {
    const char* when_full = options.when_full == WhenFull::wait     ? "producers wait"
                            : options.when_full == WhenFull::refuse ? "pushes are refused"
                                                                    : "the oldest is dropped";
    return std::string("when full: ") + when_full;
}

class Graph {
public:
    explicit Graph(const GraphInput& input) : input_(input), now_(input.now) {
        if (input.before) {
            duration_ns_ = now_.taken_ns - input.before->taken_ns;
        }
    }

    [[nodiscard]] std::string text() const {
        std::string text = "digraph weir {\n"
                           "  rankdir=LR;\n"
                           "  fontname=\"sans-serif\";\n"
                           "  node [fontname=\"sans-serif\", fontsize=11];\n"
                           "  edge [fontname=\"sans-serif\", fontsize=10];\n";
        text += fmt::format("  {};\n  labelloc=t;\n", title().attribute());
        for (const ObservedMember& member : now_.members) {
            text += process(member);
        }
        for (std::size_t place = 0; place < now_.ports.size(); ++place) {
            text += port(now_.ports[place], fmt::format("port_{}", place));
        }
        if (input_.has_pools) {
            for (std::size_t place = 0; place < now_.pools.size(); ++place) {
                text += pool(now_.pools[place], fmt::format("pool_{}", place));
            }
        }
        return text + "}\n";
    }

private:
    [[nodiscard]] bool has_rates() const noexcept { return duration_ns_ > 0; }

    [[nodiscard]] Label title() const {
        Label label;
        label.add(fmt::format("domain {} of user {}", now_.name, now_.user));
        label.add(has_rates() ? fmt::format("rates over {:.1f} s", static_cast<double>(duration_ns_) / 1e9)
                              : "totals since the ports were made");
        if (!now_.notes.empty()) {
            label.add("incomplete: " + counted(now_.notes.size(), "thing") + " could not be looked at");
        }
        return label;
    }

    [[nodiscard]] std::string process(const ObservedMember& member) const {
        Label label;
        label.add(member.process.name);
        label.add(fmt::format("process {}, slot {}", member.process.pid, member.slot));
        label.add("holds " + counted(references_of(now_, member).held_count, "buffer reference"));
        if (member.life == MemberLife::dead) {
            label.add_bad("DEAD, not reaped");
        } else if (member.life == MemberLife::unknown) {
            label.add("alive or dead: unknown");
        }
        if (std::ranges::find(input_.stopped_slots, member.slot) != input_.stopped_slots.end()) {
            label.add_bad("STOPPED by a signal");
        }
        return node(process_id(member.slot), label, ", shape=box, style=rounded");
    }

    [[nodiscard]] const ObservedPort* before(const ObservedPort& port) const {
        if (!has_rates()) {
            return nullptr;
        }
        const auto found = std::ranges::find_if(input_.before->ports, [&port](const ObservedPort& other) {
            return other.options.port_id == port.options.port_id && other.name == port.name;
        });
        return found != input_.before->ports.end() ? &*found : nullptr;
    }

    /// What went through these handles; "new" where they changed, because who comes goes on from others' totals.
    void add_traffic(Label& label, const PortHandles& handles, const ObservedEnd* before) const {
        const PortCounters& now = handles.counters;
        if (!has_rates()) {
            label.add(counted(now.messages, "message"));
            label.add(sized(now.bytes));
            return;
        }
        if (before != nullptr) {
            for (const PortHandles& old : before->handles) {
                if (old.slot == handles.slot && old.incarnation == handles.incarnation &&
                    old.handle_count == handles.handle_count && old.counters.messages <= now.messages &&
                    old.counters.bytes <= now.bytes) {
                    label.add(messages_rate(now.messages - old.counters.messages, duration_ns_));
                    label.add(rated(now.bytes - old.counters.bytes, duration_ns_));
                    return;
                }
            }
        }
        label.add("new");
    }

    [[nodiscard]] std::string edges(const ObservedEnd& end, const ObservedEnd* before, const std::string& port_id,
                                    bool are_producers, bool is_stuck) const {
        std::string text;
        for (const PortHandles& handles : end.handles) {
            const ObservedMember* member = find_member(now_, handles.slot, handles.incarnation);
            if (member == nullptr) {
                continue; // reaped, or came just now
            }
            Label label;
            add_traffic(label, handles, before);
            if (handles.handle_count > 1) {
                label.add(counted(handles.handle_count, "handle"));
            }
            if (member->life == MemberLife::dead) {
                label.add_bad("died");
            } else if (is_stuck) {
                label.add_bad("takes nothing");
            }
            const std::string process = process_id(handles.slot);
            text += are_producers ? edge(process, port_id, label) : edge(port_id, process, label);
        }
        return text;
    }

    static void add_end(Label& label, const ObservedEnd& end, const char* name) {
        if (end.state == StreamEnd::died) {
            label.add_bad(fmt::format("last {} DIED", name));
        } else if (end.state == StreamEnd::closed) {
            label.add(fmt::format("last {} closed its end", name));
        } else if (!end.was_attached) {
            label.add(fmt::format("no {} yet", name));
        }
    }

    /// Nobody took a message in the whole interval, though there were some, and somebody to take them.
    [[nodiscard]] bool is_stuck(const ObservedPort& port) const {
        const ObservedPort* old = before(port);
        return old != nullptr && old->depth > 0 && port.depth > 0 && !old->consumers.handles.empty() &&
               port.consumers.state == StreamEnd::open && port.consumers.was_attached &&
               old->consumers.counters.messages == port.consumers.counters.messages;
    }

    [[nodiscard]] std::string port(const ObservedPort& port, const std::string& id) const {
        const bool stuck = is_stuck(port);
        Label label;
        label.add(port.name);
        label.add(fmt::format("{} of {} messages, at most {} so far", port.depth, port.options.capacity,
                              std::max<std::uint64_t>({port.depth, port.producers.counters.high_water_mark,
                                                       port.consumers.counters.high_water_mark})));
        label.add(policy(port.options));
        if (port.producers.counters.dropped > 0) {
            label.add(grouped(port.producers.counters.dropped) + " dropped in all");
        }
        add_end(label, port.producers, "producer");
        add_end(label, port.consumers, "consumer");
        const bool is_consumed = port.consumers.was_attached && port.consumers.state == StreamEnd::open;
        if (port.depth > 0 && !is_consumed) {
            label.add_bad("NOBODY takes what is in it");
        }
        if (stuck) {
            label.add_bad("STUCK: nothing was taken");
        }
        const ObservedPort* old = before(port);
        return node(id, label, ", shape=box, style=filled, fillcolor=\"#e3f2fd\"") +
               edges(port.producers, old != nullptr ? &old->producers : nullptr, id, true, false) +
               edges(port.consumers, old != nullptr ? &old->consumers : nullptr, id, false, stuck);
    }

    [[nodiscard]] std::string pool(const ObservedPool& pool, const std::string& id) const {
        Label label;
        label.add(pool.name);
        label.add(
            fmt::format("{} of {}", counted(pool.options.buffer_count, "buffer"), sized(pool.options.buffer_bytes)));
        label.add(fmt::format("{} free", grouped(pool.free_count)));
        label.add(fmt::format("references: {} held, {} queued", grouped(pool.held_count), grouped(pool.queued_count)));
        if (pool.free_count == 0 && pool.options.buffer_count > 0) {
            label.add_bad("EMPTY: no buffer is free");
        }
        std::string text = node(id, label, ", shape=cylinder");
        for (const ObservedHolder& holder : pool.holders) {
            if (find_member(now_, holder.owner) != nullptr && holder.held_count > 0) {
                text += fmt::format("  {} -> {} [label=\"holds {}\", style=dotted, constraint=false];\n", id,
                                    process_id(holder.slot), grouped(holder.held_count));
            }
        }
        return text;
    }

    const GraphInput& input_;
    const DomainSnapshot& now_;
    std::int64_t duration_ns_ = 0;
};

} // namespace

std::string escaped_for_label(std::string_view text) {
    std::string escaped;
    for (const char letter : text) {
        switch (letter) {
        case '"': escaped += "\\\""; break;
        case '\\': escaped += "\\\\"; break; // before a letter it would stand for the node's name, say
        case '&': escaped += "&amp;"; break; // &lt; would be read as <
        default: escaped += letter < ' ' || letter > '~' ? '?' : letter;
        }
    }
    return escaped;
}

std::string graph_text(const GraphInput& input) {
    return Graph(input).text();
}

} // namespace weir::tool
