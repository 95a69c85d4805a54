// world.hpp: a small domain in shared memory, the processes in it, and the oracles over it.
//
// A table, one pool, three ports, and a ring that is used alone. Each process that a case forks has a
// role, and the role's number is its slot in the process table. What a process pushed and popped it notes in its log,
// outside of the watched memory; the judge asks whether one order of all that explains everything.
#pragma once

#include "engine.hpp"
#include "harness.hpp"
#include "history.hpp"

#include <weir/weir.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace crash {

enum Role : unsigned { keeper, victim, helper, judge, worker, extra, role_count };

// More than a process's candidates, so that a drop can return some to the shared bitmap.
inline constexpr std::uint32_t buffer_count = weir::FreeHints::lane_candidate_max + 5;
inline constexpr std::size_t message_bytes = 64;
inline constexpr std::int64_t hour_ns = 3'600'000'000'000;

// Port 0 is the one that most operations work on; nobody is attached to the last one until a case does it.
inline constexpr unsigned main_port = 0;
inline constexpr unsigned other_port = 1;
inline constexpr unsigned lone_port = 2;
inline constexpr unsigned port_count = 3;

// The ring is noted as if it were a further port.
inline constexpr unsigned ring_place = port_count;
inline constexpr std::uint32_t ring_capacity = 16;
inline constexpr std::uint32_t ring_batch = 11; // more than a line of cells

// Added to a run's variation where nobody is killed.
inline constexpr unsigned frozen_variation = 256;

// The operations of one role, in its order.
struct Log {
    struct Entry {
        std::uint32_t port;
        Event event;
    };
    static constexpr std::uint32_t entry_max = 160;

    std::uint32_t count;
    Entry entries[entry_max];
};

class World;

// One process in the world: its handles, and operations that note themselves.
class Actor {
public:
    Actor(World& world, Role role);
    Actor(const Actor&) = delete;
    Actor& operator=(const Actor&) = delete;

    void attach(const weir::WaitOptions& wait = {.spin_count = 2, .recheck_interval_ns = hour_ns});
    void detach();

    // Dies without giving anything back.
    [[noreturn]] void vanish();

    weir::BufferPtr make(std::uint32_t tag);
    bool is_only_holder(const weir::BufferPtr& message);
    void label(weir::BufferPtr& buffer, std::uint32_t tag);
    void note(unsigned port, Event event);
    bool push(unsigned port, weir::BufferPtr&& buffer);
    weir::BufferPtr pop(unsigned port);
    void note_popped(unsigned port, const weir::BufferPtr& buffer);
    bool push_value(std::uint32_t value);
    bool pop_value();
    void note_value(weir::RingStatus status, Event done);

    // A tag that no other message has.
    std::uint32_t new_tag();

    World& world;
    Role role;
    weir::Membership me;
    Mailbox& box;
    weir::BufferPool pool;
    weir::SharedBufferAllocator buffers;
    std::vector<weir::Port> ports;
    std::optional<weir::Producer> out[port_count];
    std::optional<weir::Consumer> in[port_count];
    weir::RingProducer values_out;
    weir::RingConsumer values_in;

    // What an operation works on and leaves behind.
    std::vector<weir::BufferPtr> held;
    weir::BufferPtr buffer;
    weir::BufferPtr second;
    std::vector<weir::BufferPtr> batch;
    weir::PushResult pushed = weir::PushResult::failed;
    weir::PushResult fanned[port_count] = {};
    std::size_t batch_done = 0;
    std::uint32_t values[ring_batch] = {};
    weir::RingStatus value_status = weir::RingStatus::ok;
    std::optional<weir::Membership> joined;
    weir::ReapResult reaped[2];
};

using ActorWork = std::function<void(Actor&)>;

// A process that stands, frozen or dead, in the middle of an operation before the victim begins.
struct HelperSpec {
    Role role = helper;
    ActorWork prepare;
    ActorWork operation;
    ActorWork afterwards;
    std::function<bool(World&)> there; // stops where this holds first
    bool took_effect = true;           // its operation has, where it stands; what it notes of it is known already
    enum class Fate { frozen, dead, either } fate = Fate::dead;
    bool asleep = false; // runs until it sleeps in the kernel
};

// A case, as it is written down.
struct Definition {
    std::string name;
    std::string what;
    bool hot_path = false;
    bool others_run = false; // at any time, so that no two runs see the same bytes
    std::vector<std::string> counted = {"allocate", "pop", "clone", "drop", "push"};
    unsigned references = 4; // of each buffer
    std::uint32_t capacity = 4;
    weir::WhenFull when_full = weir::WhenFull::refuse;
    unsigned turned = 3;      // so many messages went through the port before
    unsigned queued = 0;      // and so many are in it: tags 1, 2, ...
    unsigned ring_turned = 0; // the same of the ring
    unsigned ring_queued = 0;
    std::function<void(World&)> arrange;
    std::vector<HelperSpec> helpers;
    ActorWork prepare;
    ActorWork operation;
    ActorWork afterwards;              // checks and notes what the operation returned; what is held is dropped after it
    std::vector<Log::Entry> attempted; // what a killed victim may have done
    std::function<int(World&)> stage;
    int stages = 1;
    std::function<void(World&)> on_blocked;
    std::function<bool(World&)> interrupt_where; // the victim is overtaken where this holds first
    std::function<void(World&)> on_interrupt;
    std::function<void(World&, Actor&)> judge_more; // further oracles, after a death and reaping
    struct Act {
        std::string name;
        std::function<void(World&)> run;
    };
    std::vector<Act> scripts;
    struct Opponent {
        std::string name;
        std::function<void(World&, Child&)> fight;
    };
    std::vector<Opponent> opponents;
};

class World {
public:
    World();

    // ---- set-up, in the tracer
    void clear();
    void reset(const Definition& definition, unsigned variation);
    void occupy(unsigned count); // the keeper holds so many buffers
    Task task(Role role, const ActorWork& prepare, const ActorWork& operation, const ActorWork& afterwards);
    void stage_helpers(const Definition& definition, std::size_t count);
    std::string warm_up(const Definition& definition); // why that is not possible, or ""

    // ---- processes, from the tracer
    // Runs `work` at full speed in a process of that role.
    void act(Role role, const ActorWork& work);
    void finish_helper(Role role);
    void finish_helpers();

    // ---- looks at the state, from anywhere
    Mailbox& box(Role role) { return *reinterpret_cast<Mailbox*>(region.data() + role * mailbox_stride); }
    Log& log(Role role) { return *reinterpret_cast<Log*>(region.data() + logs_offset + role * log_stride); }
    std::vector<std::uint32_t> content(unsigned port);
    std::vector<std::uint32_t> ring_content();
    std::uint64_t word(std::uint32_t index, unsigned number) const;
    unsigned words_of(const weir::Membership& membership, weir::ReferenceState state);
    unsigned handles_of(Role role);       // member words with a handle in the lone port
    bool has_claimed_cell(unsigned port); // a filled cell whose message was taken
    bool has_unlisted_word(Role role);    // a QUEUED word of that role that no cell names
    std::string invariant();
    weir::ProcessTable table() { return weir::ProcessTable(table_memory()); }

    // ---- verdicts
    std::string judge_death(const Definition& definition, unsigned variation);
    std::string judge_life(const Definition& definition);
    std::string take_findings();
    void find(const std::string& text);

    std::span<std::byte> table_memory() const { return part(table_offset, weir::ProcessTable::bytes()); }
    std::span<std::byte> control_memory() const { return part(control_offset, control_bytes); }
    std::span<std::byte> payload_memory() const { return part(payload_offset, payload_bytes); }
    std::span<std::byte> port_memory(unsigned port) const {
        return part(port_offsets[port], weir::Port::bytes(port_options[port]));
    }
    weir::Ring ring() const { return {part(ring_offset, weir::Ring::bytes(ring_capacity)), ring_capacity}; }
    Watched watched() const;

    static constexpr std::size_t mailbox_stride = 2048;
    static constexpr std::size_t log_stride = 2048;
    static constexpr std::size_t logs_offset = mailbox_stride * role_count;
    static constexpr std::size_t misc_offset = logs_offset + log_stride * role_count;

    Region region;
    std::size_t table_offset = 0;
    std::size_t control_offset = 0;
    std::size_t control_bytes = 0;
    std::size_t payload_offset = 0;
    std::size_t payload_bytes = 0;
    std::size_t ring_offset = 0;
    std::size_t port_offsets[port_count] = {};
    weir::PortOptions port_options[port_count];
    weir::BufferPoolOptions pool_options;

    std::vector<weir::Membership> members;
    std::unique_ptr<Actor> keeper_actor;
    std::vector<std::uint32_t> before; // in the main port, when the victim begins
    std::uint32_t first_index = 0;     // the buffer of the first of them
    std::vector<std::uint32_t> ring_before;
    bool is_frozen_run = false;
    unsigned references() const { return pool_options.references_per_buffer; }
    unsigned kept = 0; // references that live processes are known to hold
    struct HelperState {
        const HelperSpec* spec = nullptr;
        std::optional<Child> child;
        bool dead = false;
        bool finished = false;
    };
    std::vector<HelperState> helpers;
    std::vector<weir::Membership> dead;
    std::vector<std::pair<Role, std::vector<Log::Entry>>> attempts; // of the dead
    std::optional<weir::Membership> newcomer;
    unsigned newcomer_words = 0;
    std::uint32_t& next_tag() { return *reinterpret_cast<std::uint32_t*>(region.data() + misc_offset); }

private:
    std::span<std::byte> part(std::size_t offset, std::size_t bytes) const { return {region.data() + offset, bytes}; }
    bool has_live_helper() const;
    void judge_all(const Definition& definition, unsigned variation);
    void reap_the_dead(Actor& actor, unsigned way);
    void look_around(Actor& actor);
    void drain_and_explain(Actor& actor);
    void exercise(Actor& actor);
    void exchange_with_another(Actor& actor);

    std::string findings_;
    struct StagedTrace {
        Trace trace;
        std::uint32_t step = 0;
    };
    std::map<std::string, StagedTrace> staged_;
};

} // namespace crash
