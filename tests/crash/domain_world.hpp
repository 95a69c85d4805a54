// domain_world.hpp: a named domain, the processes in it, and what must hold in it whoever was killed where.
//
// Before the operation under test there may be a keeper, which made pool and port "old" and pushed three messages, and
// one who is about to die with things in hand. The victim stands where it is brought to; a newcomer may join meanwhile.
// Who survives judges: it reaps, looks at every oracle, uses everything, and leaves; and the last one leaves nothing
// behind but the lock file.
#pragma once

#include "domain_steps.hpp"
#include "engine.hpp"

#include <weir/domain.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace crash {

inline constexpr weir::PoolOptions domain_pool{.buffer_bytes = 64, .buffer_count = 16};
inline constexpr weir::PortOptions domain_port{.capacity = 8};

/// What processes tell each other beside the domain; in shared memory, zeroed for each run.
struct Facts {
    std::uint64_t registry_id;  // of the domain that the keeper, or whoever comes first, set up; 0: none
    std::uint32_t queued_count; // messages in port "old"
    std::uint32_t queued_tags[8];
    std::uint32_t must_be_same; // the domain still has its name: who joins finds all of this
    std::uint32_t newcomer_was_busy;
    std::uint32_t newcomer_has_joined;
    std::uint32_t dead_slot;
    std::uint32_t victim_slot;
    std::uint64_t dead_incarnation;
    std::uint64_t victim_incarnation;
};

/// One process's membership and what it has of the domain; lives in that process.
class Member {
public:
    Member(std::string domain_name, Facts& shared, Mailbox& mailbox)
        : name(std::move(domain_name)), names(geteuid(), name), facts(shared), box(mailbox) {}

    [[nodiscard]] static weir::JoinOptions options();
    void join();
    void leave();

    /// Makes "old", and pushes messages 1, 2 and 3.
    void set_up();
    void push_old(std::uint32_t tag);
    /// Keeps two buffers that nobody else knows of.
    void hold_two();
    /// Leaves a segment as a creator does that is killed before it publishes.
    void leave_draft();

    /// Makes and opens pools and ports, and passes messages through them. Nothing is held afterwards, and "old" is as before.
    void use_everything();
    /// The oracles: reaps, looks at all, uses everything, and looks again.
    void judge();
    /// Reaps and uses everything, or what is mapped, while another stands still somewhere.
    void work_beside(bool is_unnamed);
    /// For who is in a domain that has lost its names: what is mapped goes on.
    void use_mapped();

    std::string name;
    weir::DomainNames names;
    Facts& facts;
    Mailbox& box;
    std::optional<weir::Domain> domain;
    std::optional<weir::BufferPool> pool;
    std::optional<weir::Port> port;
    std::optional<weir::Producer> producer;
    std::optional<weir::Consumer> consumer;
    weir::ReapReport reaped;
    bool result = false;
    std::string error;

private:
    [[nodiscard]] weir::BufferPtr make(weir::BufferPool& from, std::uint32_t tag);
    [[nodiscard]] bool is_same_domain();
    void take_and_give_back_old();
    void pass_messages(weir::BufferPool from, weir::Port through);
    void check_names();
    void check_all();
};

using MemberWork = std::function<void(Member&)>;

struct DomainCase {
    std::string name;
    std::string what;
    bool has_keeper = true;
    bool has_dead = false; // another member dies before the operation begins
    bool is_alone = false; // the victim may be the only member: the names may go while it works
    bool is_removal = false;
    MemberWork keeper_prepare;
    MemberWork dead_prepare;
    MemberWork prepare;
    MemberWork operation;
    MemberWork afterwards;
    /// How far it has come, as others see it; of `stages` - 1.
    std::function<int(const weir::DomainNames&, const Facts&)> stage;
    int stages = 0;
    /// Another acts at this change of the victim's state, so that the victim comes second.
    bool is_overtaken = false;
};

[[nodiscard]] std::vector<DomainCase> domain_cases();

/// The operations, by their cases' names, that meet each other two at a time.
inline constexpr const char* domain_pair_name = "domain_two_at_once";
[[nodiscard]] const std::vector<std::string>& domain_pair_operations();

} // namespace crash
