// The kill harness's second program: operations on named domains, killed or frozen wherever others can see a difference.
#include "domain_world.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include <unistd.h>

namespace {

using crash::Child;
using crash::DomainCase;
using crash::Facts;
using crash::JobResult;
using crash::Mailbox;
using crash::Member;
using crash::Pass;
using crash::Place;
using crash::Stop;

/// What the others do about a victim that was brought to its place.
enum class Way : unsigned {
    killed,                  // who is there judges, or who joins then
    killed_before_newcomer,  // a newcomer judges first
    killed_after_newcomer,   // who joined while it stood there
    continued_with_newcomer, // the same, and the victim goes on
    killed_and_left,         // the keeper leaves while it stands there; who joins then judges
    continued_and_left,      // the same, and the victim goes on
    killed_after_reaping,    // the keeper reaps and works while it stands there
    continued_after_reaping, // the same, and the victim goes on
    count
};
constexpr std::array<const char*, static_cast<unsigned>(Way::count)> way_names{
    "killed",
    "killed, a newcomer judges first",
    "killed, after a newcomer joined beside it",
    "went on, after a newcomer joined beside it",
    "killed, after the keeper left beside it",
    "went on, after the keeper left beside it",
    "killed, after the keeper reaped beside it",
    "went on, after the keeper reaped beside it"};

bool is_killed(Way way) {
    return way != Way::continued_with_newcomer && way != Way::continued_and_left && way != Way::continued_after_reaping;
}

struct Options {
    bool full = false;
    bool every_call = false;
    bool stop_at_first = false;
    bool verbose = false;
    std::uint64_t seed = 20261123;
    std::uint32_t random_places = 6;
    std::uint32_t ways_per_class = 2;
    std::uint32_t pair_rounds = 1; // of the grid of two operations
    unsigned jobs = 0;
    std::vector<std::string> cases;
    std::string json;
    std::string at; // CLASS:WAY
};

enum Role : unsigned { keeper, victim, dying, newcomer, other, bystander, role_count };
enum class Order : std::uint32_t { judge, leave, use_mapped };

/// Memory that the processes of a run share beside the domain.
class Board {
public:
    Board() : region_(16'384) {}
    void make_own() { region_.make_own(); }
    void clear() { region_.clear(); }
    [[nodiscard]] Mailbox& box(Role role) const {
        return *reinterpret_cast<Mailbox*>(region_.data() + role * std::size_t{2048});
    }
    [[nodiscard]] Facts& facts() const { return *reinterpret_cast<Facts*>(region_.data() + role_count * 2048); }
    [[nodiscard]] Order& order() const {
        return *reinterpret_cast<Order*>(region_.data() + role_count * 2048 + sizeof(Facts));
    }

    /// Whether what stands before its second part has something to do there, beside a victim that stands still.
    [[nodiscard]] bool& works_beside() const {
        return *reinterpret_cast<bool*>(region_.data() + role_count * 2048 + sizeof(Facts) + sizeof(Order));
    }

private:
    static_assert(sizeof(Mailbox) <= 2048);
    crash::Region region_;
};

Board& board() {
    static Board the_board;
    return the_board;
}

const std::string& name_prefix() {
    static const std::string prefix = [] {
        char text[32];
        std::snprintf(text, sizeof text, "crash-%07d-", static_cast<int>(getpid()));
        return std::string(text);
    }();
    return prefix;
}

/// Of this program's own, and of one length, so that what is done with it takes the same steps.
std::string new_domain_name() {
    static unsigned serial = 0;
    char text[64];
    std::snprintf(text, sizeof text, "%s%07d-%06u", name_prefix().c_str(), static_cast<int>(getpid()),
                  ++serial % 1'000'000);
    return text;
}

void remove_all(const std::string& prefix) {
    for (const std::string& name : weir::list_segments(prefix)) {
        weir::Segment::remove(name);
    }
}

/// Of runs of this program that were ended before they could do so themselves.
void remove_leftovers() {
    const std::string all = "weir+" + std::to_string(geteuid()) + "+crash-";
    for (const std::string& name : weir::list_segments(all)) {
        const auto pid = static_cast<pid_t>(std::strtol(name.c_str() + all.size(), nullptr, 10));
        if (pid > 0 && kill(pid, 0) != 0 && errno == ESRCH) {
            weir::Segment::remove(name);
        }
    }
}

/// One run: a domain of its own, and the processes in it.
class Run {
public:
    /// With a second one, its operation is about to begin too.
    explicit Run(const DomainCase& definition, const DomainCase* second = nullptr)
        : case_(definition), name_(new_domain_name()), names_(geteuid(), name_) {
        const DomainCase& with_dead = case_.has_dead || second == nullptr ? case_ : *second;
        board().clear();
        if (case_.has_keeper) {
            children_[keeper].emplace(start(keeper, [this](Member& me) {
                me.join();
                me.set_up();
                if (case_.keeper_prepare) {
                    case_.keeper_prepare(me);
                }
            }));
        }
        if (with_dead.has_dead) {
            children_[dying].emplace(start(dying, with_dead.dead_prepare));
        }
        children_[victim].emplace(Child::start(task(victim, case_.prepare, case_.operation,
                                                    [this](Member& me) {
                                                        if (!me.error.empty()) {
                                                            me.box.fail("%s", me.error.c_str());
                                                        } else if (case_.afterwards) {
                                                            case_.afterwards(me);
                                                        }
                                                    }),
                                               board().box(victim)));
        expect_started(victim);
        if (second != nullptr) {
            children_[other].emplace(
                Child::start(task(other, second->prepare, second->operation, {}), board().box(other)));
            expect_started(other);
        }
        if (with_dead.has_dead) {
            children_[dying]->kill();
        }
    }
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() {
        for (std::optional<Child>& child : children_) {
            child.reset();
        }
        remove_all(names_.prefix());
    }

    [[nodiscard]] Pass record() {
        crash::Visible seen(names_);
        Pass pass = crash::record(*children_[victim], seen, on_call());
        if (pass.error.empty()) {
            finish(victim);
            judge_after(false);
        }
        if (case_.is_overtaken && !(pool_is_overtaken_ && port_is_overtaken_)) {
            text_ += "nobody was faster";
        }
        if (!text_.empty()) {
            pass.error += "undisturbed: " + text_;
        }
        return pass;
    }

    /// What was wrong; the stage in `stage`, or -2.
    std::string play(const Pass& pass, const Place& place, Way way, int& stage) {
        if (text_.empty()) {
            text_ = crash::reach(*children_[victim], pass, place, names_, on_call());
        }
        if (!text_.empty()) {
            stage = -2;
            return text_;
        }
        stage = case_.stage ? case_.stage(names_, board().facts()) : 0;
        const bool is_locked = crash::is_locked(weir::segment_path(names_.lock()), 0);
        if (case_.has_keeper && !case_.is_removal && !has_name()) {
            text_ += "the registry has lost its name, and has a member\n";
        }
        const bool is_joined_beside = way == Way::killed_after_newcomer || way == Way::continued_with_newcomer;
        if (is_joined_beside) {
            join_newcomer();
            if (board().facts().newcomer_was_busy != 0 && !is_locked) {
                text_ += "joining was busy, and nobody held the lock\n";
            }
        }
        const bool is_left = way == Way::killed_and_left || way == Way::continued_and_left;
        if (is_left && case_.has_keeper) {
            board().order() = Order::leave;
            finish(keeper);
        }
        if ((way == Way::killed_after_reaping || way == Way::continued_after_reaping) && case_.has_keeper) {
            prepare_order(board().facts().registry_id, true);
            board().works_beside() = true;
            children_[keeper]->run_to_return();
            board().works_beside() = false;
        }
        if (is_killed(way)) {
            children_[victim]->kill();
        } else {
            finish(victim);
        }
        judge_after(way != Way::killed);
        return text_;
    }

    /// The victim is stopped somewhere, and the other killed somewhere; others go on, then the victim does, then all judge.
    std::string play_pair(const std::array<std::uint32_t, 2>& calls, const std::array<std::uint32_t, 2>& steps) {
        const auto bring = [&](Role role, std::size_t which) {
            if (text_.empty()) {
                const std::string trouble = crash::advance(*children_[role], calls[which], steps[which]);
                text_ += trouble.empty() ? "" : std::string(role_name(role)) + ": " + trouble + "\n";
            }
        };
        bring(victim, 0);
        bring(other, 1);
        if (!text_.empty()) {
            return text_;
        }
        children_[other]->kill();
        const bool is_locked = crash::is_locked(weir::segment_path(names_.lock()), 0);
        Mailbox& box = board().box(bystander);
        crash::run_apart(box, [this, is_locked](Mailbox& inner) {
            Member passer_by(name_, board().facts(), inner);
            try {
                passer_by.join();
            } catch (const std::system_error& error) {
                inner.expect(is_locked && error.code() == weir::errc::busy, error.what());
                return;
            }
            passer_by.use_everything();
            passer_by.leave();
        });
        if (box.failed != 0) {
            text_ += std::string("who came by: ") + box.findings;
        }
        if (!has_name()) {
            text_ += "the registry has lost its name, and has a member\n";
        }
        finish(victim);
        judge_after(true);
        return text_;
    }

private:
    [[nodiscard]] std::shared_ptr<std::optional<Member>> slot_for_member() const {
        return std::make_shared<std::optional<Member>>();
    }

    [[nodiscard]] crash::Task task(Role role, crash::MemberWork prepare, crash::MemberWork operation,
                                   crash::MemberWork afterwards) const {
        const auto member = slot_for_member();
        const std::string name = name_;
        crash::Task made;
        made.prepare = [=](Mailbox& box) {
            member->emplace(name, board().facts(), box);
            if (prepare) {
                prepare(**member);
            }
        };
        made.operation = [=](Mailbox&) {
            if (operation) {
                operation(**member);
            }
        };
        made.afterwards = [=](Mailbox&) {
            if (afterwards) {
                afterwards(**member);
            }
        };
        static_cast<void>(role);
        return made;
    }

    /// A process that does its first part, and stands there until it is finished: then it does as ordered.
    [[nodiscard]] Child start(Role role, const crash::MemberWork& prepare) {
        const crash::MemberWork beside = [](Member& me) {
            if (board().works_beside() && me.domain) {
                me.work_beside(board().order() == Order::use_mapped);
            }
        };
        Child child = Child::start(task(role, prepare, beside,
                                        [](Member& me) {
                                            if (!me.domain) {
                                                me.join();
                                            }
                                            switch (board().order()) {
                                            case Order::judge: me.judge(); break;
                                            case Order::use_mapped: me.use_mapped(); break;
                                            case Order::leave: break;
                                            }
                                            me.leave();
                                        }),
                                   board().box(role));
        if (child.stop() != Stop::stepped) {
            text_ += std::string(role_name(role)) + ": " + board().box(role).findings;
        }
        return child;
    }

    void expect_started(Role role) {
        if (children_[role]->stop() != Stop::stepped) {
            text_ += std::string(role_name(role)) + ": " + board().box(role).findings;
        }
    }

    [[nodiscard]] static const char* role_name(Role role) {
        constexpr std::array<const char*, role_count> names{"the keeper",   "the victim", "who died before",
                                                            "the newcomer", "the other",  "who came by"};
        return names[role];
    }

    void join_newcomer() {
        children_[newcomer].emplace(start(newcomer, [](Member& me) {
            try {
                me.join();
            } catch (const std::system_error& error) {
                if (error.code() != weir::errc::busy) {
                    throw;
                }
                me.facts.newcomer_was_busy = 1;
                return;
            }
            me.facts.newcomer_has_joined = 1;
            me.use_everything();
        }));
        newcomer_is_member_ = board().facts().newcomer_was_busy == 0;
        newcomer_id_ = newcomer_is_member_ ? registry_id() : 0;
    }

    void finish(Role role) {
        Child& child = *children_[role];
        if (child.stop() != Stop::stepped && child.stop() != Stop::returned) {
            return; // said already
        }
        if (child.finish(false) != Stop::exited || board().box(role).failed != 0) {
            text_ += std::string(role_name(role)) + ": " + name_of(child.stop()) + ": " + board().box(role).findings;
        }
    }

    /// The id of the registry that has the domain's name, or 0.
    [[nodiscard]] std::uint64_t registry_id() const {
        weir::SegmentExpectation expected;
        expected.access = weir::SegmentAccess::read_only;
        expected.kind = weir::SegmentKind::registry;
        try {
            return weir::Registry(weir::Segment::open(names_.registry(), expected).bytes()).id();
        } catch (const std::system_error&) {
            return 0;
        }
    }
    [[nodiscard]] bool has_name() const { return registry_id() != 0; }

    void judge_after(bool wants_newcomer) {
        const bool keeper_is_there = case_.has_keeper && children_[keeper]->alive();
        if (!children_[newcomer] && (wants_newcomer || !keeper_is_there)) {
            prepare_order(0, false);
            children_[newcomer].emplace(start(newcomer, [](Member& me) { me.join(); }));
            newcomer_is_member_ = true;
            newcomer_id_ = registry_id();
        }
        // Who was a member when the names were removed leaves first: that must not harm who made a domain after that.
        for (const Role role : case_.is_removal ? std::array{keeper, newcomer} : std::array{newcomer, keeper}) {
            if (role == keeper && keeper_is_there) {
                prepare_order(board().facts().registry_id, true);
                finish(keeper);
            } else if (role == newcomer && children_[newcomer]) {
                prepare_order(newcomer_id_, newcomer_is_member_);
                finish(newcomer);
            }
        }
        for (const std::string& name : weir::list_segments(names_.prefix())) {
            if (name != names_.lock()) {
                text_ += name + " is left when all have left\n";
            }
        }
    }

    /// `id`: of the domain whose member gets the order.
    void prepare_order(std::uint64_t id, bool is_member) const {
        const std::uint64_t named = registry_id();
        Facts& facts = board().facts();
        facts.must_be_same = facts.registry_id != 0 && named == facts.registry_id ? 1 : 0;
        // The names may be taken from who was a member when they were removed, and from nobody else.
        board().order() =
            is_member && case_.is_removal && id == facts.registry_id && named != id ? Order::use_mapped : Order::judge;
    }

    /// Where the case wants it: as soon as the victim has begun a segment of its own, another makes the same.
    [[nodiscard]] crash::OnCall on_call() {
        if (!case_.is_overtaken) {
            return {};
        }
        return [this] {
            overtake(".control", pool_is_overtaken_,
                     [](weir::Domain& domain) { static_cast<void>(domain.pool("made", crash::domain_pool)); });
            overtake(".port", port_is_overtaken_,
                     [](weir::Domain& domain) { static_cast<void>(domain.port("made", crash::domain_port)); });
        };
    }
    void overtake(const std::string& suffix, bool& done, const std::function<void(weir::Domain&)>& make) {
        // the keeper's, and the victim's that is not public yet
        const auto is_one = [&suffix](const std::string& name) { return name.ends_with(suffix); };
        if (done || std::ranges::count_if(weir::list_segments(names_.prefix()), is_one) != 2) {
            return;
        }
        done = true;
        Mailbox& box = board().box(newcomer);
        crash::run_apart(box, [this, &make](Mailbox& inner) {
            Member faster(name_, board().facts(), inner);
            faster.join();
            make(*faster.domain);
            faster.leave();
        });
        if (box.failed != 0) {
            text_ += std::string("who is faster: ") + box.findings;
        }
    }

    const DomainCase& case_;
    std::string name_;
    weir::DomainNames names_;
    std::array<std::optional<Child>, role_count> children_;
    std::string text_;
    bool newcomer_is_member_ = false;
    std::uint64_t newcomer_id_ = 0;
    bool pool_is_overtaken_ = false;
    bool port_is_overtaken_ = false;
};

struct Job {
    std::size_t which;
    Place place;
    Way way;
    int number; // of the class, or -1: a random place
    // Two at once: the other's case, and where both are stopped.
    bool is_pair = false;
    std::size_t second = 0;
    std::array<std::uint32_t, 2> calls{};
    std::array<std::uint32_t, 2> steps{};
};

struct Tally {
    Pass pass;
    std::vector<std::string> findings;
    std::uint64_t kills = 0;
    std::uint64_t frozen = 0;
    std::uint64_t outcomes[3] = {};
};

JobResult run_job(const DomainCase& one, const Pass& pass, const Job& job) {
    JobResult result;
    // What differs from run to run by chance is met again seldom; what diverges always is a finding.
    for (int attempt = 0; attempt < 3; ++attempt) {
        Run run(one);
        int stage = 0;
        result.text = run.play(pass, job.place, job.way, stage);
        result.value = stage;
        if (!result.text.starts_with("diverged")) {
            break;
        }
    }
    return result;
}

std::string describe(const Pass& pass, const Job& job) {
    std::string text = std::string(way_names[static_cast<unsigned>(job.way)]) + ", ";
    if (job.number >= 0) {
        text += "in class " + std::to_string(job.number) + " of " + std::to_string(pass.classes.size()) +
                ", which begins at " + pass.causes[static_cast<std::size_t>(job.number)];
    } else {
        text += std::to_string(job.place.steps) + " steps behind system call " + std::to_string(job.place.calls);
    }
    return text;
}

void plan(const DomainCase& one, const Pass& pass, std::size_t which, const Options& options, std::vector<Job>& jobs) {
    std::uint64_t salt = options.seed;
    for (const char c : one.name) {
        salt = salt * 131 + static_cast<unsigned char>(c);
    }
    const auto way_count = static_cast<unsigned>(Way::count);
    auto way = static_cast<unsigned>(salt % way_count);
    for (std::size_t number = 0; number < pass.classes.size(); ++number) {
        const std::uint32_t ways = options.full ? way_count : options.ways_per_class;
        for (std::uint32_t i = 0; i < ways; ++i) {
            jobs.push_back(
                {which, pass.classes[number], static_cast<Way>(way++ % way_count), static_cast<int>(number)});
        }
        way += ways % 2 == 0 ? 1 : 0; // by odd numbers, so that each way comes to each class's neighbours
    }
    if (options.full || options.every_call) {
        // Behind each system call, where what it has told is about to be used: those who go on, beside others.
        for (std::uint32_t call = 0; call <= pass.calls.size(); ++call) {
            jobs.push_back({which, {call, 0, 0}, Way::continued_with_newcomer, -1});
            if (one.has_keeper) {
                const Way beside = call % 2 == 0 ? Way::continued_after_reaping : Way::continued_and_left;
                jobs.push_back({which, {call, 0, 0}, beside, -1});
            }
        }
    }
    for (const Place& place : crash::random_places(pass, options.random_places, salt)) {
        jobs.push_back({which, place, static_cast<Way>(way++ % way_count), -1});
    }
}

void check_stages(const DomainCase& one, Tally& tally, const std::vector<std::pair<int, std::int64_t>>& stages) {
    std::int64_t last = 0;
    for (const auto& [number, stage] : stages) {
        const int done = one.stages - 1;
        if (one.stages == 0) {
            continue;
        }
        if (stage < last || stage > done || (number == 0 && stage != 0)) {
            tally.findings.push_back("in class " + std::to_string(number) +
                                     " what others see of the operation is at stage " + std::to_string(stage));
        }
        last = std::max(last, stage);
    }
    if (one.stages != 0 && !stages.empty() && stages.back().second != one.stages - 1) {
        tally.findings.push_back("the operation is over, and others see it at stage " +
                                 std::to_string(stages.back().second));
    }
}

std::string json_text(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else {
            out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
        }
    }
    return out + "\"";
}

void plan_pairs(const std::vector<DomainCase>& cases, const std::vector<Tally>& tallies, const Options& options,
                std::vector<Job>& jobs) {
    crash::Random random(options.seed);
    const std::vector<std::string>& names = crash::domain_pair_operations();
    for (std::uint32_t round = 0; round < options.pair_rounds; ++round) {
        for (std::size_t cell = 0; cell < names.size() * names.size(); ++cell) {
            Job job{};
            job.is_pair = true;
            const std::array<const std::string*, 2> wanted{&names[cell / names.size()], &names[cell % names.size()]};
            for (std::size_t i = 0; i < 2; ++i) {
                const auto found = std::ranges::find(cases, *wanted[i], &DomainCase::name);
                const auto which = static_cast<std::size_t>(found - cases.begin());
                (i == 0 ? job.which : job.second) = which;
                const Pass& pass = tallies[which].pass;
                if (pass.lengths.empty()) {
                    return; // it could not be recorded, which was said
                }
                // beside another it may make a few calls more
                job.calls[i] = static_cast<std::uint32_t>(random.below(pass.calls.size() + 4));
                const std::uint32_t length = job.calls[i] < pass.lengths.size() ? pass.lengths[job.calls[i]] : 1;
                job.steps[i] = static_cast<std::uint32_t>(random.below(length + 1));
            }
            jobs.push_back(job);
        }
    }
}

int report(const std::vector<DomainCase>& cases, const std::vector<Tally>& tallies, const Options& options) {
    std::FILE* json = options.json.empty() ? nullptr : std::fopen(options.json.c_str(), "w");
    if (json != nullptr) {
        std::fprintf(json, "{\"seed\": %" PRIu64 ", \"cases\": [", options.seed);
    }
    std::printf("%-22s %7s %7s %6s  %-15s %6s %8s\n", "case", "steps", "classes", "kills", "not/part/done", "frozen",
                "findings");
    std::size_t findings = 0;
    std::uint64_t runs = 0;
    for (std::size_t i = 0; i < cases.size(); ++i) {
        const Tally& tally = tallies[i];
        char outcomes[64] = "-";
        if (cases[i].stages != 0) {
            std::snprintf(outcomes, sizeof outcomes, "%" PRIu64 "/%" PRIu64 "/%" PRIu64, tally.outcomes[0],
                          tally.outcomes[1], tally.outcomes[2]);
        }
        std::printf("%-22s %7u %7zu %6" PRIu64 "  %-15s %6" PRIu64 " %8zu\n", cases[i].name.c_str(), tally.pass.steps,
                    tally.pass.classes.size(), tally.kills, outcomes, tally.frozen, tally.findings.size());
        findings += tally.findings.size();
        runs += tally.kills + tally.frozen;
        if (json != nullptr) {
            std::fprintf(json,
                         "%s\n  {\"name\": %s, \"what\": %s, \"steps\": %u, \"classes\": %zu, \"kills\": %" PRIu64
                         ", \"not_happened\": %" PRIu64 ", \"in_part\": %" PRIu64 ", \"done\": %" PRIu64
                         ", \"frozen\": %" PRIu64 ", \"slowest_percent\": 0, \"findings\": [",
                         i == 0 ? "" : ",", json_text(cases[i].name).c_str(), json_text(cases[i].what).c_str(),
                         tally.pass.steps, tally.pass.classes.size(), tally.kills, tally.outcomes[0], tally.outcomes[1],
                         tally.outcomes[2], tally.frozen);
            for (std::size_t n = 0; n < tally.findings.size(); ++n) {
                std::fprintf(json, "%s%s", n == 0 ? "" : ", ", json_text(tally.findings[n]).c_str());
            }
            std::fprintf(json, "]}");
        }
    }
    if (json != nullptr) {
        std::fprintf(json, "\n]}\n");
        std::fclose(json);
    }
    for (std::size_t i = 0; i < cases.size(); ++i) {
        for (std::size_t n = 0; n < tallies[i].findings.size() && n < 5; ++n) {
            std::printf("\n%s: %s\n", cases[i].name.c_str(), tallies[i].findings[n].c_str());
        }
    }
    std::printf("%" PRIu64 " runs, seed %" PRIu64 ", %zu findings\n", runs, options.seed, findings);
    return findings == 0 ? 0 : 1;
}

int run(const Options& options) {
    std::string why;
    if (!crash::supported(why)) {
        std::printf("skipped: %s\n", why.c_str());
        return 77;
    }
    name_prefix();
    remove_leftovers();
    crash::bind_to_processor(0);
    std::vector<DomainCase> cases = crash::domain_cases();
    const auto is_wanted = [&](const std::string& name) {
        return options.cases.empty() || std::ranges::find(options.cases, name) != options.cases.end();
    };
    const bool wants_pairs = is_wanted(crash::domain_pair_name);
    const std::vector<std::string>& paired = crash::domain_pair_operations();
    std::erase_if(cases, [&](const DomainCase& one) {
        return !is_wanted(one.name) && !(wants_pairs && std::ranges::find(paired, one.name) != paired.end());
    });
    std::vector<Tally> tallies(cases.size() + 1); // the last one is the pairs'
    std::vector<Job> jobs;
    for (std::size_t i = 0; i < cases.size(); ++i) {
        Pass& pass = tallies[i].pass;
        pass = Run(cases[i]).record();
        if (!pass.error.empty()) {
            tallies[i].findings.push_back(pass.error);
            continue;
        }
        if (options.verbose) {
            std::printf("%s: %zu system calls; others see a change by\n", cases[i].name.c_str(), pass.calls.size());
            for (std::size_t number = 0; number < pass.causes.size(); ++number) {
                const Place& place = pass.classes[number];
                std::printf("  %3zu  call %u, change %u: %s\n", number, place.calls, place.changes,
                            pass.causes[number].c_str());
            }
        }
        if (options.at.empty()) {
            if (is_wanted(cases[i].name)) {
                plan(cases[i], pass, i, options, jobs);
            }
            continue;
        }
        unsigned number = 0;
        unsigned way = 0;
        std::sscanf(options.at.c_str(), "%u:%u", &number, &way);
        if (number < pass.classes.size()) {
            jobs.push_back({i, pass.classes[number], static_cast<Way>(way % static_cast<unsigned>(Way::count)),
                            static_cast<int>(number)});
        }
    }
    if (wants_pairs && options.at.empty()) {
        plan_pairs(cases, tallies, options, jobs);
    }
    if (options.stop_at_first) {
        crash::Random random(options.seed);
        for (std::size_t i = jobs.size(); i > 1; --i) {
            std::swap(jobs[i - 1], jobs[random.below(i)]);
        }
    }
    const std::vector<JobResult> results = crash::run_jobs(
        jobs.size(), options.jobs != 0 ? options.jobs : crash::processor_count(), [] { board().make_own(); },
        [&](std::size_t index) {
            const Job& job = jobs[index];
            return job.is_pair ? JobResult{Run(cases[job.which], &cases[job.second]).play_pair(job.calls, job.steps), 0}
                               : run_job(cases[job.which], tallies[job.which].pass, job);
        },
        options.stop_at_first);
    remove_all("weir+" + std::to_string(geteuid()) + "+" + name_prefix()); // of workers that did not get there

    std::vector<std::vector<std::pair<int, std::int64_t>>> stages(cases.size());
    for (std::size_t index = 0; index < jobs.size(); ++index) {
        const Job& job = jobs[index];
        const JobResult& result = results[index];
        if (result.value == -1 && result.text.empty() && options.stop_at_first) {
            continue; // not run
        }
        if (job.is_pair) {
            ++tallies.back().kills;
            if (!result.text.empty()) {
                tallies.back().findings.push_back(cases[job.which].name + " stopped " + std::to_string(job.steps[0]) +
                                                  " steps behind system call " + std::to_string(job.calls[0]) + ", " +
                                                  cases[job.second].name + " killed " + std::to_string(job.steps[1]) +
                                                  " steps behind system call " + std::to_string(job.calls[1]) + ": " +
                                                  result.text);
            }
            continue;
        }
        Tally& tally = tallies[job.which];
        ++(is_killed(job.way) ? tally.kills : tally.frozen);
        if (result.value != -2 && cases[job.which].stages != 0) {
            const int done = cases[job.which].stages - 1;
            ++tally.outcomes[result.value <= 0 ? 0 : result.value < done ? 1 : 2];
            if (job.number >= 0) {
                stages[job.which].emplace_back(job.number, result.value);
            }
        }
        if (!result.text.empty()) {
            tally.findings.push_back(describe(tally.pass, job) + ": " + result.text);
        }
    }
    if (options.at.empty() && !options.stop_at_first) {
        for (std::size_t i = 0; i < cases.size(); ++i) {
            check_stages(cases[i], tallies[i], stages[i]);
        }
    }
    // Only the grid's operations were recorded for it, so they are not reported where nobody asked for them.
    for (std::size_t i = cases.size(); i-- > 0;) {
        if (!is_wanted(cases[i].name) && tallies[i].findings.empty()) {
            cases.erase(cases.begin() + static_cast<std::ptrdiff_t>(i));
            tallies.erase(tallies.begin() + static_cast<std::ptrdiff_t>(i));
        }
    }
    if (wants_pairs) {
        DomainCase pairs;
        pairs.name = crash::domain_pair_name;
        pairs.what = "two processes in two of these operations: one frozen and one killed";
        cases.push_back(pairs);
    } else {
        tallies.pop_back();
    }
    return report(cases, tallies, options);
}

[[noreturn]] void usage(const char* program) {
    std::fprintf(stderr,
                 "usage: %s [--list] [--full] [--few] [--every-call] [--all-ways] [--cases A,B] [--seed N] [--jobs N] "
                 "[--random-places N]\n"
                 "       [--pair-rounds N]\n"
                 "       [--json FILE] [--stop-at-first] [--verbose] [--at CLASS:WAY]\n",
                 program);
    std::exit(2);
}

} // namespace

int main(int argument_count, char** arguments) {
    Options options;
    const std::vector<DomainCase> cases = crash::domain_cases();
    for (int i = 1; i < argument_count; ++i) {
        const std::string argument = arguments[i];
        const auto value = [&]() -> const char* {
            if (i + 1 == argument_count) {
                usage(arguments[0]);
            }
            return arguments[++i];
        };
        const auto number = [&] { return static_cast<std::uint32_t>(std::strtoul(value(), nullptr, 10)); };
        if (argument == "--list") {
            for (const DomainCase& one : cases) {
                std::printf("%s\n", one.name.c_str());
            }
            std::printf("%s\n", crash::domain_pair_name);
            return 0;
        } else if (argument == "--full") {
            options.full = true;
            options.random_places = 60;
            options.pair_rounds = 20;
        } else if (argument == "--every-call") {
            options.every_call = true;
        } else if (argument == "--all-ways") {
            options.ways_per_class = static_cast<std::uint32_t>(Way::count);
        } else if (argument == "--few") {
            options.ways_per_class = 1;
            options.random_places = 4;
        } else if (argument == "--cases") {
            const std::string names = value();
            for (std::size_t begin = 0; begin <= names.size();) {
                const std::size_t end = std::min(names.find(',', begin), names.size());
                options.cases.push_back(names.substr(begin, end - begin));
                begin = end + 1;
            }
        } else if (argument == "--seed") {
            options.seed = std::strtoull(value(), nullptr, 10);
        } else if (argument == "--jobs") {
            options.jobs = number();
        } else if (argument == "--random-places") {
            options.random_places = number();
        } else if (argument == "--pair-rounds") {
            options.pair_rounds = number();
        } else if (argument == "--json") {
            options.json = value();
        } else if (argument == "--at") {
            options.at = value();
        } else if (argument == "--stop-at-first") {
            options.stop_at_first = true;
        } else if (argument == "--verbose") {
            options.verbose = true;
        } else {
            usage(arguments[0]);
        }
    }
    for (const std::string& wanted : options.cases) {
        if (wanted != crash::domain_pair_name && std::ranges::find(cases, wanted, &DomainCase::name) == cases.end()) {
            std::fprintf(stderr, "there is no case %s; --list names them\n", wanted.c_str());
            return 2;
        }
    }
    return run(options);
}
