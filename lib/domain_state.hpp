// What a membership consists of in its process; domain.cpp is the interface to it.
#pragma once

#include <weir/domain.hpp>
#include <weir/fork_guard.hpp>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace weir::detail {

/// A handle on a view that its owner keeps, for calls that keep none.
template <class View>
[[nodiscard]] std::shared_ptr<View> unowned(View& view) noexcept {
    return {std::shared_ptr<void>(), &view};
}

/// Whether a segment may be one of a domain's, whose registry belongs to `domain`.
/// Throws: no_permission.
void check_owner(const Segment& segment, const std::string& name, const SegmentOwner& domain);

class DomainState final : public PoolSource, public Recheck {
public:
    /// Takes a process slot; the caller holds the domain's lock.
    DomainState(DomainNames names, const JoinOptions& options, Segment registry);
    /// Takes none: for reap_from_outside() alone.
    struct Outside {};
    DomainState(DomainNames names, const JoinOptions& options, Segment registry, Outside);
    DomainState(const DomainState&) = delete;
    DomainState& operator=(const DomainState&) = delete;
    ~DomainState();

    struct MappedPool {
        MappedPool(Segment control_segment, Segment payload_segment, const Membership& membership)
            : control(std::move(control_segment)), payload(std::move(payload_segment)),
              view(control.bytes(), payload.bytes(), membership) {}

        [[nodiscard]] const std::string& name() const noexcept { return control.label(); }

        Segment control;
        Segment payload;
        BufferPoolView view;
    };

    struct MappedPort {
        MappedPort(Segment port_segment, const Membership& membership, DomainState& domain)
            : segment(std::move(port_segment)), view(segment.bytes(), membership, domain, &domain) {}

        [[nodiscard]] const std::string& name() const noexcept { return segment.label(); }

        Segment segment;
        PortView view;
    };

    MappedPool& pool(std::string_view name, const PoolOptions& options);
    MappedPort& port(std::string_view name, const PortOptions& options);
    /// All that there are now.
    std::vector<MappedPool*> pools();
    std::vector<MappedPort*> ports();

    ReapReport reap() noexcept;
    /// For who is no member; the caller holds the domain's lock.
    ReapReport reap_from_outside();

    /// Whether some other member's process seems to have ended, though its lock is held still: a hint.
    [[nodiscard]] bool has_ending_member() const noexcept;
    [[nodiscard]] bool try_claim(std::uint32_t port_id);
    void release_claim(std::uint32_t port_id) noexcept;

    [[nodiscard]] BufferPoolView* find_pool(std::uint32_t id) noexcept override;
    void recheck() noexcept override;

    [[nodiscard]] Registry& registry() noexcept { return registry_; }
    [[nodiscard]] const DomainNames& names() const noexcept { return names_; }
    [[nodiscard]] const Membership& membership() const noexcept { return *membership_; }
    [[nodiscard]] std::int64_t recheck_interval_ns() const noexcept { return options_.recheck_interval_ns; }
    [[nodiscard]] bool is_inherited() const noexcept { return stamp_.is_foreign(); }
    /// Whether the member of a slot, which is not this one, is proven dead: nobody holds its lock.
    [[nodiscard]] bool is_lock_free(std::uint8_t slot) const noexcept { return !lock_.is_locked_by_other(slot); }
    /// What an io_uring registers, so that this member counts as alive until its last request has ended.
    [[nodiscard]] int lock_number() const noexcept { return lock_.number(); }
    /// As people see this member.
    [[nodiscard]] std::string process_name() { return registry_.record(membership_->slot).name; }
    [[nodiscard]] std::string notes();

private:
    void take_slot();
    void reap_former_owner(std::uint8_t slot, std::uint64_t incarnation, ReapReport& report);
    void write_record(std::uint8_t slot, const ProcessInfo& info) noexcept;
    void leave() noexcept;
    void remove_own_names() const;
    [[nodiscard]] bool is_last_member() const noexcept;

    [[nodiscard]] Segment open_segment(const SegmentKey& key, SegmentKind kind, SegmentAccess access, bool prefault);
    [[nodiscard]] SegmentOptions options_for(SegmentKind kind, std::uint64_t parameters_hash,
                                             std::string_view label) const;
    [[nodiscard]] SegmentKey next_key();
    MappedPool& map_pool(unsigned place, std::uint64_t word, bool prefault = false);
    MappedPool& take_in(unsigned place, Segment control, Segment payload);
    MappedPort& map_port(unsigned place, std::uint64_t word);
    void take_note(const std::string& note);

    [[nodiscard]] ReapReport reap_dead() noexcept;
    void reap_one(const Membership& dead, ReapReport& report);
    void remove_private_segments(const Membership& dead, ReapReport& report);

    DomainNames names_;
    JoinOptions options_;
    Segment registry_segment_;
    Registry registry_;
    LockDescriptor lock_;
    ForkStamp stamp_;
    std::optional<Membership> membership_;

    std::mutex mutex_; ///< for what follows; not for the views that are published in pool_views_
    std::array<std::unique_ptr<MappedPool>, pool_count_max> pools_;
    std::vector<std::unique_ptr<MappedPort>> ports_;
    std::vector<bool> claims_; ///< of ports, by number
    std::uint16_t last_serial_ = 0;
    std::string notes_;
    std::array<std::atomic<BufferPoolView*>, pool_count_max> pool_views_{};
    std::mutex reap_mutex_; ///< one thread of a process reaps at a time; taken before mutex_
    std::atomic<std::int64_t> next_check_ns_{0};
};

} // namespace weir::detail
