// The texts of weir graph and weir metrics, made from snapshots that no domain has to be made for.
#include "../tools/graph.hpp"
#include "../tools/metrics.hpp"

#include "catch.hpp"

#include <algorithm>
#include <string>
#include <string_view>

using namespace weir;

namespace {

std::size_t count_of(std::string_view text, std::string_view part) {
    std::size_t count = 0;
    for (std::size_t place = text.find(part); place != std::string_view::npos; place = text.find(part, place + 1)) {
        ++count;
    }
    return count;
}

bool has(std::string_view text, std::string_view part) {
    return count_of(text, part) > 0;
}

ObservedMember member(std::uint8_t slot, const std::string& name, MemberLife life = MemberLife::alive) {
    ObservedMember member;
    member.slot = slot;
    member.incarnation = 7;
    member.life = life;
    member.process.pid = 1000 + slot;
    member.process.name = name;
    return member;
}

PortHandles handles(std::uint8_t slot, std::uint64_t messages, std::uint32_t handle_count = 1) {
    PortHandles handles;
    handles.slot = slot;
    handles.incarnation = 7;
    handles.is_alive = true;
    handles.handle_count = handle_count;
    handles.counters.messages = messages;
    handles.counters.bytes = messages * 1024;
    return handles;
}

void attach(ObservedEnd& end, const PortHandles& handles) {
    end.was_attached = true;
    end.handles.push_back(handles);
    end.counters.messages += handles.counters.messages;
    end.counters.bytes += handles.counters.bytes;
}

/// Slot 0 pushes into "raw", slot 1 takes out of it.
DomainSnapshot pair_of_processes(std::int64_t taken_ns, std::uint64_t pushed, std::uint64_t taken) {
    DomainSnapshot seen;
    seen.name = "camera";
    seen.user = 1000;
    seen.taken_ns = taken_ns;
    seen.members = {member(0, "filmer"), member(1, "viewer")};
    ObservedPort port;
    port.name = "raw";
    port.options.capacity = 8;
    port.depth = static_cast<std::uint32_t>(pushed - taken);
    port.producers.counters.high_water_mark = 5;
    attach(port.producers, handles(0, pushed));
    attach(port.consumers, handles(1, taken));
    seen.ports.push_back(port);
    ObservedPool pool;
    pool.name = "frames";
    pool.options.buffer_count = 16;
    pool.options.buffer_bytes = 4096;
    pool.free_count = 10;
    pool.held_count = 4;
    pool.queued_count = 2;
    pool.holders = {{0, Owner(0, 7), 3, 2}, {1, Owner(1, 7), 1, 0}};
    seen.pools.push_back(pool);
    return seen;
}

tool::GraphInput two_looks(DomainSnapshot before, DomainSnapshot now) {
    tool::GraphInput input;
    input.before = std::move(before);
    input.now = std::move(now);
    return input;
}

tool::GraphInput one_look(DomainSnapshot now) {
    tool::GraphInput input;
    input.now = std::move(now);
    return input;
}

std::string metrics_of(const DomainSnapshot& seen) {
    return tool::metrics_text({{{seen.user, seen.name, true}, seen}});
}

} // namespace

TEST_CASE("a graph's arrows tell rates between two looks, and totals after one") {
    const auto before = pair_of_processes(1'000'000'000, 100, 98);
    const auto now = pair_of_processes(3'000'000'000, 5'100, 5'098);
    const std::string rates = tool::graph_text(two_looks(before, now));
    CHECK(has(rates, "process_0 -> port_0 [label=\"2,500 msg/s\\n2.4 MiB/s\"];"));
    CHECK(has(rates, "port_0 -> process_1 [label=\"2,500 msg/s\\n2.4 MiB/s\"];"));
    CHECK(has(rates, "rates over 2.0 s"));
    CHECK(has(rates, "raw\\n2 of 8 messages, at most 5 so far\\nwhen full: producers wait"));
    CHECK(has(rates, "viewer\\nprocess 1001, slot 1\\nholds 1 buffer reference\""));
    CHECK(has(rates, "holds 3 buffer references"));
    CHECK_FALSE(has(rates, "#c62828")); // nothing is wrong
    CHECK_FALSE(has(rates, "pool_0"));
    CHECK(tool::graph_text(two_looks(before, now)) == rates);

    const std::string totals = tool::graph_text(one_look(now));
    CHECK(has(totals, "process_0 -> port_0 [label=\"5,100 messages\\n5.0 MiB\"];"));
    CHECK_FALSE(has(totals, "/s"));
}

TEST_CASE("a graph shows several handles as one arrow, pools where they are asked for, and what it lacks") {
    auto now = pair_of_processes(0, 10, 10);
    now.ports[0].producers.handles[0].handle_count = 3;
    now.notes = {"port b: no permission"};
    auto input = one_look(now);
    input.has_pools = true;
    const std::string text = tool::graph_text(input);
    CHECK(count_of(text, "process_0 -> port_0") == 1);
    CHECK(has(text, "3 handles"));
    CHECK(has(text, "pool_0 [label=\"frames\\n16 buffers of 4.0 KiB\\n10 free\\nreferences: 4 held, 2 queued\""));
    CHECK(has(text, "pool_0 -> process_0 [label=\"holds 3\""));
    CHECK(has(text, "incomplete: 1 thing could not be looked at"));
}

TEST_CASE("a graph gives no rate for handles that changed between the looks") {
    const auto before = pair_of_processes(0, 10, 10);
    auto now = pair_of_processes(1'000'000'000, 20, 20);
    SECTION("another incarnation") {
        now.members[0].incarnation = 8;
        now.ports[0].producers.handles[0].incarnation = 8;
    }
    SECTION("one handle more, which may go on from others' totals") {
        now.ports[0].producers.handles[0].handle_count = 2;
    }
    SECTION("less than before") {
        now.ports[0].producers.handles[0].counters.messages = 9;
    }
    SECTION("a new port") {
        now.ports[0].options.port_id = 1;
    }
    const std::string text = tool::graph_text(two_looks(before, now));
    CHECK(has(text, "process_0 -> port_0 [label=\"new"));
}

TEST_CASE("a graph marks who is dead, stopped or stuck, and ends that are over") {
    const auto before = pair_of_processes(0, 12, 10);
    auto now = pair_of_processes(1'000'000'000, 14, 10);
    CHECK(count_of(tool::graph_text(two_looks(before, now)), "STUCK") == 1);
    CHECK(count_of(tool::graph_text(two_looks(before, now)), "takes nothing") == 1);
    CHECK_FALSE(has(tool::graph_text(one_look(now)), "STUCK")); // one look cannot tell

    SECTION("messages that came after the first look were not refused by anyone") {
        CHECK_FALSE(has(tool::graph_text(two_looks(pair_of_processes(0, 10, 10), now)), "STUCK"));
    }
    SECTION("dead") {
        now.members[1].life = MemberLife::dead;
        const std::string text = tool::graph_text(one_look(now));
        CHECK(count_of(text, "DEAD, not reaped") == 1);
        CHECK(count_of(text, "died\", color=\"#c62828\"") == 1);
    }
    SECTION("unknown, as in copies") {
        now.members[1].life = MemberLife::unknown;
        CHECK(has(tool::graph_text(one_look(now)), "alive or dead: unknown"));
    }
    SECTION("stopped") {
        auto input = one_look(now);
        input.stopped_slots = {1};
        CHECK(count_of(tool::graph_text(input), "STOPPED by a signal") == 1);
    }
    SECTION("the consumers' end died, and its process was reaped") {
        now.members.pop_back();
        now.ports[0].consumers.state = StreamEnd::died;
        now.ports[0].consumers.handles[0].is_alive = false;
        const std::string text = tool::graph_text(two_looks(before, now));
        CHECK(has(text, "last consumer DIED"));
        CHECK(has(text, "NOBODY takes what is in it"));
        CHECK_FALSE(has(text, "STUCK"));
        CHECK_FALSE(has(text, "process_1"));
    }
    SECTION("the producers are done") {
        now.ports[0].producers.state = StreamEnd::closed;
        CHECK(has(tool::graph_text(one_look(now)), "last producer closed its end"));
    }
    SECTION("there was no consumer yet") {
        now.ports[0].consumers = {};
        const std::string text = tool::graph_text(two_looks(before, now));
        CHECK(has(text, "no consumer yet\\nNOBODY takes what is in it"));
    }
}

TEST_CASE("names are escaped in a graph, so that none is more than a name") {
    CHECK(tool::escaped_for_label("camera-1_a.b") == "camera-1_a.b");
    CHECK(tool::escaped_for_label("a\"]; evil [label=\"") == "a\\\"]; evil [label=\\\"");
    CHECK(tool::escaped_for_label("\\N \\") == "\\\\N \\\\");
    CHECK(tool::escaped_for_label("&lt;b&gt;<b>") == "&amp;lt;b&amp;gt;<b>");
    CHECK(tool::escaped_for_label("a\nb\033[31m\xff\xc3\xbc") == "a?b?[31m???");
    auto now = pair_of_processes(0, 1, 1);
    now.members[0].process.name = "\"\\";
    now.ports[0].name = "<raw>\"";
    const std::string text = tool::graph_text(one_look(now));
    CHECK(has(text, "process_0 [label=\"\\\"\\\\\\nprocess 1000"));
    CHECK(has(text, "port_0 [label=\"<raw>\\\"\\n0 of 8"));
}

TEST_CASE("metrics have each family in one place, with type, unit and help, and end as they must") {
    const std::string text = metrics_of(pair_of_processes(0, 1'000, 998));
    CHECK(has(text, "# TYPE weir_port_bytes counter\n# UNIT weir_port_bytes bytes\n# HELP weir_port_bytes "));
    CHECK(has(text, "\nweir_port_messages_total{domain=\"camera\",user=\"1000\",port=\"raw\",end=\"consumer\"} 998\n"));
    CHECK(
        has(text, "\nweir_port_bytes_total{domain=\"camera\",user=\"1000\",port=\"raw\",end=\"producer\"} 1024000\n"));
    CHECK(has(text, "\nweir_port_depth{domain=\"camera\",user=\"1000\",port=\"raw\"} 2\n"));
    CHECK(has(text, "\nweir_port_high_water_mark{domain=\"camera\",user=\"1000\",port=\"raw\"} 5\n"));
    CHECK(has(text, "\nweir_pool_buffers{domain=\"camera\",user=\"1000\",pool=\"frames\",state=\"used\"} 6\n"));
    CHECK(has(text, "\nweir_process_held_references{domain=\"camera\",user=\"1000\",slot=\"0\",pid=\"1000\","
                    "name=\"filmer\"} 3\n"));
    CHECK(text.ends_with("# EOF\n"));
    CHECK(count_of(text, "# TYPE ") == count_of(text, "# HELP "));
    CHECK(tool::metrics_text({}) == "# EOF\n");
}

TEST_CASE("metrics of a domain that could not be read say that alone") {
    const std::string text = tool::metrics_text({{{1000, "camera", true}, {}}});
    CHECK(has(text, "weir_domain_up{domain=\"camera\",user=\"1000\"} 0\n"));
    CHECK(count_of(text, "camera") == 1);
}

TEST_CASE("metrics of a member of whom nobody knows whether it is alive do not say so") {
    auto seen = pair_of_processes(0, 1, 1);
    seen.members[0].life = MemberLife::unknown;
    const std::string text = metrics_of(seen);
    CHECK(has(text, "state=\"unknown\"} 1\n"));
    CHECK(count_of(text, "\nweir_process_alive{") == 1);
}

TEST_CASE("metrics escape what comes from memory, and have no series twice") {
    CHECK(tool::escaped_for_metric("a\"\\\n\t\xff") == "a\\\"\\\\\\n??");
    auto seen = pair_of_processes(0, 1, 1);
    seen.members[0].process.name = "x\"} 1\nweir_fake 1\\";
    seen.ports.push_back(seen.ports[0]); // two ports of one name, which only broken memory has
    const std::string text = metrics_of(seen);
    CHECK(has(text, "name=\"x\\\"} 1\\nweir_fake 1\\\\\"} 1\n"));
    CHECK(count_of(text, "\nweir_port_depth{") == 1);
}
