// What weir top makes of two looks at a domain, how that lies on a page of any size, and what keys are.
#include "../tools/screen.hpp"
#include "../tools/top_layout.hpp"
#include "../tools/top_model.hpp"

#include "catch.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

using namespace weir;
using namespace weir::top;

namespace {

constexpr std::int64_t second_ns = 1'000'000'000;

ObservedMember member(std::uint8_t slot, std::string name, MemberLife life = MemberLife::alive) {
    ObservedMember one;
    one.slot = slot;
    one.incarnation = 5;
    one.life = life;
    one.process.pid = 1000 + slot;
    one.process.name = std::move(name);
    return one;
}

PortHandles handles(std::uint8_t slot, std::uint64_t messages = 0) {
    PortHandles one;
    one.slot = slot;
    one.incarnation = 5;
    one.is_alive = true;
    one.handle_count = 1;
    one.counters.messages = messages;
    return one;
}

ObservedPort port(std::string name) {
    ObservedPort one;
    one.name = std::move(name);
    one.options.capacity = 8;
    one.producers.was_attached = true;
    one.producers.handles = {handles(0)};
    one.consumers.was_attached = true;
    one.consumers.handles = {handles(1)};
    return one;
}

/// Two members, of which the first pushes and the second pops.
DomainSnapshot snapshot() {
    DomainSnapshot now;
    now.name = "camera";
    now.registry_id = 77;
    now.taken_ns = 10 * second_ns;
    now.members = {member(0, "source"), member(1, "sink")};
    now.ports = {port("raw")};
    return now;
}

Model model_of(const DomainSnapshot& now, const DomainSnapshot* before = nullptr) {
    Model model;
    add_domain(model, now, before);
    return model;
}

/// The state of the only port.
std::string state_of(const DomainSnapshot& now, const DomainSnapshot* before = nullptr) {
    return model_of(now, before).ports.at(0).state.text;
}

/// Many of everything, with long names.
Model large_model() {
    DomainSnapshot now = snapshot();
    for (int number = 0; number < 40; ++number) {
        now.ports.push_back(port("a-port-with-a-rather-long-name-" + std::to_string(number)));
        now.ports.back().depth = 8;
        now.ports.back().producers.counters.messages = static_cast<std::uint64_t>(number) * 123'456;
        now.ports.back().producers.is_waited_on = true;
    }
    for (int number = 2; number < 30; ++number) {
        now.members.push_back(member(static_cast<std::uint8_t>(number), "worker", MemberLife::dead));
    }
    now.pools.resize(3);
    now.notes.assign(4, "something that could not be looked at, for a reason that takes many words to tell");
    DomainSnapshot before = snapshot();
    before.taken_ns -= second_ns;
    Model model = model_of(now, &before);
    now.name = "another-domain";
    add_domain(model, now, nullptr);
    add_missing_domain(model, "gone", "it is gone; waiting for it to come back");
    return model;
}

std::string text_of(const std::vector<tool::Line>& lines) {
    std::string text;
    for (const tool::Line& line : lines) {
        text += tool::text_of(line) + "\n";
    }
    return text;
}

std::string page(const Model& model, View view, std::size_t columns, std::size_t rows) {
    return text_of(lay_out(model, view, {columns, rows}));
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

} // namespace

TEST_CASE("rates are what counters gained, over the time between two looks", "[top]") {
    const DomainSnapshot before = snapshot();
    DomainSnapshot now = snapshot();
    now.taken_ns += second_ns / 2;
    now.ports[0].producers.counters = {10, 4096, 3, 2, 1, 6, 7};
    now.ports[0].producers.handles = {handles(0, 10)};
    now.ports[0].consumers.counters = {8, 1024, 5, 4, 1, 0, 2};
    now.ports[0].consumers.handles = {handles(1, 8)};
    const Model model = model_of(now, &before);
    const PortRow& row = model.ports.at(0);
    CHECK(row.in == 20);
    CHECK(row.out == 16);
    CHECK(row.bytes == 8192);
    CHECK(row.full == 6);
    CHECK(row.empty == 10);
    CHECK(row.producer_waits == 4);
    CHECK(row.consumer_waits == 8);
    CHECK(row.dropped == 12);
    CHECK(row.high_water_mark == 7);
    CHECK(model.processes.at(0).pushed == 20);
    CHECK(model.processes.at(0).popped == 0);
    CHECK(model.processes.at(1).popped == 16);
}

TEST_CASE("without a look before no rate is known, and another domain of the same name is none", "[top]") {
    DomainSnapshot before = snapshot();
    DomainSnapshot now = snapshot();
    now.taken_ns += second_ns;
    CHECK(model_of(now).ports.at(0).in == rate_unknown);
    CHECK(model_of(now, &before).ports.at(0).in == 0);
    before.registry_id = 78;
    CHECK(model_of(now, &before).ports.at(0).in == rate_unknown);
    CHECK(model_of(now, &before).processes.at(0).pushed == rate_unknown);
    CHECK(model_of(now, &now).ports.at(0).in == rate_unknown); // no time between them
}

TEST_CASE("a counter that went backwards counts as one that did not move", "[top]") {
    DomainSnapshot before = snapshot();
    before.ports[0].producers.counters.messages = 100;
    DomainSnapshot now = snapshot();
    now.taken_ns += second_ns;
    now.ports[0].producers.counters.messages = 40;
    CHECK(model_of(now, &before).ports.at(0).in == 0);
}

TEST_CASE("a port that is new has no rates, whatever its place", "[top]") {
    const DomainSnapshot before = snapshot();
    DomainSnapshot now = snapshot();
    now.taken_ns += second_ns;
    now.ports.insert(now.ports.begin(), port("new"));
    const Model model = model_of(now, &before);
    CHECK(model.ports.at(0).in == rate_unknown);
    CHECK(model.ports.at(1).in == 0);
}

TEST_CASE("who took a counter line over is not credited with what its last owner did", "[top]") {
    DomainSnapshot before = snapshot();
    DomainSnapshot now = snapshot();
    now.taken_ns += second_ns;
    now.ports[0].producers.counters.messages = 5;
    SECTION("it opened its handle between the looks") {
        before.ports[0].producers.handles.clear();
        now.ports[0].producers.handles = {handles(0, 1'000'000)};
        CHECK(model_of(now, &before).processes.at(0).pushed == 0);
    }
    SECTION("it opened another in the place of one") {
        now.ports[0].producers.handles = {handles(0, 1'000'000)};
        CHECK(model_of(now, &before).processes.at(0).pushed == 5);
    }
}

TEST_CASE("what a port is up to is said in a word", "[top]") {
    DomainSnapshot now = snapshot();
    ObservedPort& raw = now.ports[0];
    SECTION("unused") {
        raw.producers = raw.consumers = {};
        CHECK(state_of(now) == "unused");
    }
    SECTION("nobody consumes") {
        raw.consumers = {};
        CHECK(state_of(now) == "nobody consumes");
    }
    SECTION("its consumers left") {
        raw.consumers.handles.clear();
        raw.consumers.state = StreamEnd::closed;
        CHECK(state_of(now) == "nobody consumes");
    }
    SECTION("nobody produces yet") {
        raw.producers = {};
        CHECK(state_of(now) == "nobody produces");
    }
    SECTION("it ended") {
        raw.producers.handles.clear();
        raw.producers.state = StreamEnd::closed;
        CHECK(state_of(now) == "ended");
        raw.depth = 1;
        CHECK(state_of(now) == "ended, not empty");
    }
    SECTION("an end died and was reaped") {
        raw.producers.state = StreamEnd::died;
        CHECK(state_of(now) == "producers died");
        raw.producers.state = StreamEnd::open;
        raw.consumers.state = StreamEnd::died;
        CHECK(state_of(now) == "consumers died");
    }
    SECTION("a member died and was not reaped") {
        now.members[1].life = MemberLife::dead;
        CHECK(state_of(now) == "consumers dead");
        now.members.push_back(member(2, "other"));
        raw.consumers.handles.push_back(handles(2));
        CHECK(state_of(now) == "a consumer dead");
        now.members[1].life = MemberLife::alive;
        now.members[0].life = MemberLife::dead;
        CHECK(state_of(now) == "producers dead");
    }
    SECTION("idle, flows, full, stuck") {
        DomainSnapshot before = now;
        now.taken_ns += second_ns;
        CHECK(state_of(now, &before) == "idle");
        raw.producers.counters.messages = 9;
        raw.depth = 8;
        CHECK(state_of(now, &before) == "full");
        before.ports[0].depth = 1;
        CHECK(state_of(now, &before) == "stuck"); // none was taken, and there was something to take all the time
        raw.consumers.counters.messages = 1;
        CHECK(state_of(now, &before) == "full");
        raw.depth = 3;
        CHECK(state_of(now, &before) == "flows");
    }
}

TEST_CASE("a process holds what it has of all pools, and not what an earlier owner of its slot had", "[top]") {
    DomainSnapshot now = snapshot();
    now.pools.resize(2);
    now.pools[0].name = "frames";
    now.pools[0].options.buffer_count = 16;
    now.pools[0].free_count = 10;
    now.pools[0].held_count = 7;
    now.pools[0].queued_count = 2;
    now.pools[0].holders = {{0, Owner(0, 5), 3, 2}, {0, Owner(0, 4), 4, 0}};
    now.pools[1].holders = {{0, Owner(0, 5), 1, 0}};
    const Model model = model_of(now);
    CHECK(model.processes.at(0).held_count == 4);
    CHECK(model.processes.at(0).queued_count == 2);
    CHECK(model.processes.at(1).held_count == 0);
    CHECK(model.domains.at(0).buffer_count == 16);
    CHECK(model.domains.at(0).free_count == 10);
    CHECK(model.domains.at(0).held_count == 7);
    CHECK(model.pools.at(0).queued_count == 2);
}

TEST_CASE("who sleeps on a port is told where only one process can", "[top]") {
    DomainSnapshot now = snapshot();
    now.ports[0].consumers.is_waited_on = true;
    CHECK(model_of(now).processes.at(1).waits_for == "pop raw");
    CHECK(model_of(now).processes.at(0).waits_for.empty());
    now.members.push_back(member(2, "other"));
    now.ports[0].consumers.handles.push_back(handles(2));
    CHECK(model_of(now).processes.at(1).waits_for.empty());
}

TEST_CASE("members that died are counted, and a domain of the dead says so", "[top]") {
    DomainSnapshot now = snapshot();
    now.members[0].life = MemberLife::dead;
    CHECK(model_of(now).domains.at(0).alive_count == 1);
    CHECK(model_of(now).domains.at(0).dead_count == 1);
    CHECK(model_of(now).domains.at(0).notes.empty());
    now.members[1].life = MemberLife::dead;
    CHECK(has(page(model_of(now), {}, 80, 24), "camera: all members are dead"));
}

TEST_CASE("numbers take five characters at most", "[top]") {
    CHECK(brief(0) == "0");
    CHECK(brief(0.254) == "0.25");
    CHECK(brief(7) == "7");
    CHECK(brief(12.34) == "12.3");
    CHECK(brief(999) == "999");
    CHECK(brief(999.6) == "1.00k");
    CHECK(brief(45'230) == "45.2k");
    CHECK(brief(1'234'567) == "1.23M");
    CHECK(brief(4096, 1024) == "4k");
    CHECK(brief(1023, 1024) == "1023");
    for (double number = 1; number < 1e17; number *= 1.013) {
        CAPTURE(number);
        CHECK(brief(number).size() <= 5);
        CHECK(brief(number, 1024).size() <= 5);
    }
}

TEST_CASE("no page is larger than the screen, whatever its size", "[top]") {
    const Model model = large_model();
    const Model empty;
    std::vector<View> views(6);
    views[1].tables = TableChoice::ports;
    views[2].tables = TableChoice::processes;
    views[3].tables = TableChoice::pools;
    views[4].shows_help = true;
    views[5].scroll = 1000;
    views[5].status = "every 1 s";
    for (std::size_t columns = 1; columns < 220; columns += columns < 50 ? 1 : 7) {
        for (std::size_t rows = 1; rows < 130; rows += rows < 30 ? 1 : 9) {
            bool fits = true;
            for (View view : views) {
                for (const Model* shown : {&model, &empty}) {
                    const std::vector<tool::Line> lines = lay_out(*shown, view, {columns, rows});
                    fits &= lines.size() <= rows;
                    for (const tool::Line& line : lines) {
                        fits &= tool::text_of(line).size() <= columns;
                    }
                }
            }
            CAPTURE(columns, rows);
            REQUIRE(fits);
        }
    }
}

TEST_CASE("a narrow page leaves the least important columns out, and a short one says how much is below", "[top]") {
    const Model model = large_model();
    View view;
    view.domain = "camera";
    const std::string wide = page(model, view, 160, 100);
    for (const char* head : {"PORT", "FILL", "PEAK", "CWAIT/s", "ENDS", "STATE", "PROCESS", "WAITS FOR", "POOL"}) {
        CHECK(has(wide, head));
    }
    const std::string usual = page(model, view, 80, 24);
    for (const char* head : {"PORT", "DEPTH", "IN/s", "OUT/s", "BYTES/s", "STATE", "PROCESS", "POOL"}) {
        CHECK(has(usual, head));
    }
    CHECK_FALSE(has(usual, "ENDS"));
    CHECK(has(usual, "... "));
    const std::string small = page(model, view, 40, 8);
    CHECK(has(small, "IN/s"));
    CHECK(has(small, "STATE"));
    CHECK(has(small, "..g-name-1 ")); // a name's end tells more than its beginning
    CHECK_FALSE(has(small, "FILL"));
    CHECK_FALSE(has(small, "PROCESS"));
    CHECK(has(small, "more"));
}

TEST_CASE("names say their domain where there are several, and one can be chosen", "[top]") {
    const Model model = large_model();
    View view;
    CHECK(has(page(model, view, 160, 40), "camera/raw"));
    CHECK(has(page(model, view, 160, 40), "gone  not there"));
    CHECK(has(page(model, view, 160, 8), "3 domains"));
    view.domain = "camera";
    CHECK_FALSE(has(page(model, view, 160, 40), "camera/raw"));
    CHECK_FALSE(has(page(model, view, 160, 40), "another-domain"));
}

TEST_CASE("tables are sorted by a column: numbers from the greatest, words by the alphabet", "[top]") {
    Model model = model_of(snapshot());
    for (const auto& [name, depth] : {std::pair{"b", 1U}, std::pair{"a", 3U}, std::pair{"c", 2U}}) {
        PortRow row;
        row.domain = "camera";
        row.name = std::string("port-") + name;
        row.depth = depth;
        row.capacity = 8;
        model.ports.push_back(row);
    }
    const auto order = [&model](const std::string& column, bool is_reversed) {
        View view;
        view.sort_column = column;
        view.is_reversed = is_reversed;
        const std::string text = page(model, view, 100, 40);
        std::vector<std::pair<std::size_t, std::string>> places;
        for (const char* name : {"a", "b", "c"}) {
            places.emplace_back(text.find(std::string("port-") + name), name);
        }
        std::ranges::sort(places);
        return places[0].second + places[1].second + places[2].second;
    };
    CHECK(order("", false) == "bac");
    CHECK(order("depth", false) == "acb");
    CHECK(order("depth", true) == "bca");
    CHECK(order("name", false) == "abc");
    CHECK(order("name", true) == "cba");
    CHECK(order("pid", false) == "bac"); // of another table
}

TEST_CASE("each column can be stepped to, in both directions, and none", "[top]") {
    View view;
    std::vector<std::string> seen;
    do {
        view.sort_column = next_sort_column(view, 1);
        seen.push_back(view.sort_column);
    } while (!view.sort_column.empty());
    CHECK(seen.size() == 15);
    CHECK(next_sort_column(view, -1) == "state");
    view.tables = TableChoice::processes;
    CHECK(next_sort_column(view, -1) == "waits");
    const std::vector<std::string_view> all = sort_columns();
    for (const char* name : {"in", "pid", "size"}) {
        CHECK(std::ranges::count(all, std::string_view(name)) == 1);
    }
}

TEST_CASE("scrolling goes to the end and not further", "[top]") {
    const Model model = large_model();
    View view;
    view.tables = TableChoice::ports;
    view.domain = "camera";
    view.scroll = 1000;
    const std::string text = text_of(lay_out(model, view, {100, 20}));
    CHECK(has(text, "name-39"));
    CHECK_FALSE(has(text, "... "));
    CHECK(view.scroll < 41);
    view.scroll -= 1;
    CHECK(has(text_of(lay_out(model, view, {100, 20})), "... 2 more"));
}

TEST_CASE("everything is there where the page has no size, and nothing that a terminal would obey", "[top]") {
    Model model = large_model();
    model.processes[0].process.name = "na\033[31mme\n\xc3\xa9";
    model.notes.emplace_back("a note\r");
    const std::string text = text_of(lay_out_in_full(model, {}));
    CHECK(has(text, "camera/a-port-with-a-rather-long-name-39"));
    CHECK(has(text, "another-domain/worker"));
    CHECK(has(text, "camera/na?[31mme???"));
    CHECK(has(text, "a note?"));
    CHECK(std::ranges::none_of(text, [](char byte) { return byte != '\n' && (byte < 32 || byte > 126); }));
}

TEST_CASE("keys are taken out of what a terminal sends", "[top]") {
    using tool::InputKind;
    using tool::take_key;
    std::string received = "q\033[A\033OB\033[5~\033[6~\033[1;5Zs";
    CHECK(take_key(received).character == 'q');
    CHECK(take_key(received).kind == InputKind::up);
    CHECK(take_key(received).kind == InputKind::down);
    CHECK(take_key(received).kind == InputKind::page_up);
    CHECK(take_key(received).kind == InputKind::page_down);
    CHECK(take_key(received).character == 's'); // what nobody knows is left out
    CHECK(take_key(received).kind == InputKind::nothing);
    for (const char* part : {"\033", "\033[", "\033[5", "\033O"}) {
        received = part;
        CHECK(take_key(received).kind == InputKind::nothing);
        CHECK(received == part); // the rest may come
    }
    received = "\033x";
    CHECK(take_key(received).character == '\033');
    CHECK(take_key(received).character == 'x');
}
