#include "metrics.hpp"

#include "snapshot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <utility>

namespace weir::tool {

namespace {

/// Label names and values; what comes from shared memory is escaped here.
class Labels {
public:
    Labels& add(std::string_view name, std::string_view value) {
        text_ += fmt::format("{}{}=\"{}\"", text_.empty() ? "" : ",", name, escaped_for_metric(value));
        return *this;
    }
    Labels& add(std::string_view name, std::uint64_t value) { return add(name, std::to_string(value)); }

    [[nodiscard]] const std::string& text() const noexcept { return text_; }

private:
    std::string text_;
};

enum class MetricType { counter, gauge };

class Family {
public:
    /// A name that ends in _bytes has that unit. `name` is without a counter's _total.
    Family(MetricType type, std::string name, std::string help)
        : type_(type), name_(std::move(name)), help_(std::move(help)) {}

    /// A series that is there already (which broken memory may name) stays as it is.
    void add(const Labels& labels, std::uint64_t value) {
        if (series_.insert(labels.text()).second) {
            samples_ += fmt::format("{}{}{{{}}} {}\n", name_, type_ == MetricType::counter ? "_total" : "",
                                    labels.text(), value);
        }
    }

    [[nodiscard]] std::string text() const {
        if (samples_.empty()) {
            return {};
        }
        std::string text = fmt::format("# TYPE {} {}\n", name_, type_ == MetricType::counter ? "counter" : "gauge");
        if (name_.ends_with("_bytes")) {
            text += fmt::format("# UNIT {} bytes\n", name_);
        }
        return text + fmt::format("# HELP {} {}\n", name_, help_) + samples_;
    }

private:
    MetricType type_;
    std::string name_;
    std::string help_;
    std::string samples_;
    std::set<std::string> series_;
};

Labels labels_of(const DomainName& domain) {
    return Labels().add("domain", domain.name).add("user", domain.user);
}

/// All families, in the order in which they are written.
class Metrics {
public:
    void add(const DomainReading& reading) {
        up_.add(labels_of(reading.domain), reading.seen ? 1 : 0);
        if (!reading.seen) {
            return;
        }
        const DomainSnapshot& seen = *reading.seen;
        const Labels domain = labels_of(reading.domain);
        unread_.add(domain, seen.notes.size());
        add_members(seen, domain);
        shared_memory_.add(Labels(domain).add("kind", "control"), seen.control_bytes);
        shared_memory_.add(Labels(domain).add("kind", "payload"), seen.payload_bytes);
        for (const ObservedPool& pool : seen.pools) {
            add_pool(pool, domain);
        }
        for (const ObservedPort& port : seen.ports) {
            add_port(port, domain);
        }
    }

    [[nodiscard]] std::string text() const {
        std::string text;
        for (const Family* family : {&up_, &unread_, &members_, &shared_memory_, &alive_, &held_references_,
                                     &pool_buffers_, &pool_buffer_size_, &pool_references_, &port_capacity_,
                                     &port_depth_, &port_high_water_mark_, &port_handles_, &port_messages_,
                                     &port_bytes_, &port_stalls_, &port_waits_, &port_wakes_, &port_dropped_}) {
            text += family->text();
        }
        return text + "# EOF\n";
    }

private:
    void add_members(const DomainSnapshot& seen, const Labels& domain) {
        for (const MemberLife life : {MemberLife::alive, MemberLife::dead, MemberLife::unknown}) {
            const auto count = std::ranges::count(seen.members, life, &ObservedMember::life);
            members_.add(Labels(domain).add("state", name_of(life)), static_cast<std::uint64_t>(count));
        }
        for (const ObservedMember& member : seen.members) {
            const Labels process = Labels(domain)
                                       .add("slot", member.slot)
                                       .add("pid", std::to_string(member.process.pid))
                                       .add("name", member.process.name);
            if (member.life != MemberLife::unknown) {
                alive_.add(process, member.life == MemberLife::alive ? 1 : 0);
            }
            held_references_.add(process, references_of(seen, member).held_count);
        }
    }

    void add_pool(const ObservedPool& pool, const Labels& domain) {
        const Labels labels = Labels(domain).add("pool", pool.name);
        pool_buffers_.add(Labels(labels).add("state", "free"), pool.free_count);
        pool_buffers_.add(Labels(labels).add("state", "used"), pool.options.buffer_count - pool.free_count);
        pool_buffer_size_.add(labels, pool.options.buffer_bytes);
        pool_references_.add(Labels(labels).add("state", "held"), pool.held_count);
        pool_references_.add(Labels(labels).add("state", "queued"), pool.queued_count);
    }

    void add_port(const ObservedPort& port, const Labels& domain) {
        const Labels labels = Labels(domain).add("port", port.name);
        port_capacity_.add(labels, port.options.capacity);
        port_depth_.add(labels, port.depth);
        port_high_water_mark_.add(
            labels, std::max(port.producers.counters.high_water_mark, port.consumers.counters.high_water_mark));
        port_dropped_.add(labels, port.producers.counters.dropped);
        for (const auto& [end, name] :
             {std::pair(&port.producers, "producer"), std::pair(&port.consumers, "consumer")}) {
            const Labels of_end = Labels(labels).add("end", name);
            std::uint64_t handle_count = 0;
            for (const PortHandles& handles : end->handles) {
                handle_count += handles.is_alive ? handles.handle_count : 0;
            }
            port_handles_.add(of_end, handle_count);
            port_messages_.add(of_end, end->counters.messages);
            port_bytes_.add(of_end, end->counters.bytes);
            port_stalls_.add(of_end, end->counters.stalls);
            port_waits_.add(of_end, end->counters.waits);
            port_wakes_.add(of_end, end->counters.wakes);
        }
    }

    Family up_{MetricType::gauge, "weir_domain_up", "1: the domain was read; 0: it is not there, or cannot be opened."};
    Family unread_{MetricType::gauge, "weir_domain_unread",
                   "Pools, ports and locks of the domain that could not be read."};
    Family members_{MetricType::gauge, "weir_domain_members",
                    "Processes in the domain: alive, dead and not reaped yet, or unknown."};
    Family shared_memory_{MetricType::gauge, "weir_domain_shared_memory_bytes",
                          "Size of the domain's files in shared memory: control (registry, ports, pools), payload."};
    Family alive_{MetricType::gauge, "weir_process_alive",
                  "1: the process is alive; 0: it died and was not reaped yet."};
    Family held_references_{MetricType::gauge, "weir_process_held_references",
                            "References to buffers in the hands of the process, without those queued in ports."};
    Family pool_buffers_{MetricType::gauge, "weir_pool_buffers", "Buffers of the pool: free, or used by anybody."};
    Family pool_buffer_size_{MetricType::gauge, "weir_pool_buffer_bytes", "What a buffer of the pool can hold."};
    Family pool_references_{MetricType::gauge, "weir_pool_references",
                            "References to buffers of the pool: held by processes, or queued in ports."};
    Family port_capacity_{MetricType::gauge, "weir_port_capacity", "Messages that the port can hold."};
    Family port_depth_{MetricType::gauge, "weir_port_depth", "Messages in the port."};
    Family port_high_water_mark_{MetricType::gauge, "weir_port_high_water_mark",
                                 "The most messages seen in the port, sampled."};
    Family port_handles_{MetricType::gauge, "weir_port_handles",
                         "Producers or consumers attached to the port; the dead count until they are reaped."};
    Family port_messages_{MetricType::counter, "weir_port_messages",
                          "Messages pushed by producers, taken by consumers."};
    Family port_bytes_{MetricType::counter, "weir_port_bytes", "Bytes of these messages."};
    Family port_stalls_{MetricType::counter, "weir_port_stalls",
                        "How often producers found the port full, consumers found it empty."};
    Family port_waits_{MetricType::counter, "weir_port_waits", "How often they went to sleep."};
    Family port_wakes_{MetricType::counter, "weir_port_wakes", "Wake-ups that they sent."};
    Family port_dropped_{MetricType::counter, "weir_port_dropped",
                         "Messages that producers took out to make room for newer ones."};
};

} // namespace

std::string escaped_for_metric(std::string_view text) {
    std::string escaped;
    for (const char letter : text) {
        switch (letter) {
        case '"': escaped += "\\\""; break;
        case '\\': escaped += "\\\\"; break;
        case '\n': escaped += "\\n"; break;
        default: escaped += letter < ' ' || letter > '~' ? '?' : letter; // it has to be UTF-8
        }
    }
    return escaped;
}

std::string metrics_text(const std::vector<DomainReading>& readings) {
    Metrics metrics;
    for (const DomainReading& reading : readings) {
        metrics.add(reading);
    }
    return metrics.text();
}

} // namespace weir::tool
