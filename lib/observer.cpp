#include "domain_state.hpp"

#include <weir/observer.hpp>

#include <algorithm>

#include <sys/stat.h>
#include <unistd.h>

namespace weir {

namespace {

/// A view wants a membership; an observer's is nobody's: no word names the last slot under incarnation 0 as an owner's,
/// and nothing is written by it.
Membership nobody(const ProcessTable& table) noexcept {
    return {table, process_slot_count - 1, 0};
}

} // namespace

std::vector<DomainName> list_domains(const std::string& folder) {
    std::vector<DomainName> domains;
    for (const std::string& file : list_segments(DomainNames::common_prefix, folder)) {
        const std::optional<DomainNames> names = DomainNames::of(file);
        if (!names) {
            continue;
        }
        auto domain = std::ranges::find_if(domains, [&names](const DomainName& other) {
            return other.user == names->user() && other.name == names->domain();
        });
        if (domain == domains.end()) {
            domain = domains.insert(domain, {names->user(), names->domain(), false});
        }
        domain->has_registry = domain->has_registry || file == names->registry();
    }
    std::ranges::sort(domains, [](const DomainName& first, const DomainName& second) {
        return std::tie(first.user, first.name) < std::tie(second.user, second.name);
    });
    return domains;
}

class DomainObserver::State final : public PoolSource {
public:
    State(std::string_view name, const Options& options)
        : names_(options.user.value_or(geteuid()), name), folder_(options.folder),
          is_live_(folder_ == shared_memory_folder),
          registry_segment_(open_segment(names_.registry(), SegmentKind::registry, Registry::parameters_hash())),
          registry_(registry_segment_.bytes()) {}
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State() = default;

    [[nodiscard]] DomainSnapshot look(bool counts_buffers);
    [[nodiscard]] std::vector<std::string> check(DomainCensus* census, CheckMode mode);
    [[nodiscard]] bool is_current() const noexcept;

    [[nodiscard]] BufferPoolView* find_pool(std::uint32_t id) noexcept override {
        for (const std::unique_ptr<MappedPool>& pool : pools_) {
            if (pool != nullptr && id - pool->view.first_buffer() < pool->view.buffer_count()) {
                return &pool->view;
            }
        }
        return nullptr;
    }

private:
    struct MappedPool {
        MappedPool(Segment control, const Membership& observer)
            : segment(std::move(control)), view(segment.bytes(), observer) {}
        Segment segment;
        BufferPoolView view;
    };
    struct MappedPort {
        MappedPort(Segment port, const Membership& observer, PoolSource& pools)
            : segment(std::move(port)), view(segment.bytes(), observer, pools) {}
        Segment segment;
        PortView view;
    };

    [[nodiscard]] Segment open_segment(const std::string& name, SegmentKind kind,
                                       std::optional<std::uint64_t> parameters_hash) const;
    /// Opens what the directories list by now. Returns what could not be, and why.
    [[nodiscard]] std::vector<std::string> open_new();
    template <class Mapped, class... More>
    void open_new(Directory directory, SegmentKind kind, std::vector<std::unique_ptr<Mapped>>& all,
                  std::vector<std::string>& trouble, More&... more);

    [[nodiscard]] std::vector<ObservedMember> look_at_members(std::vector<std::string>& notes) const;
    [[nodiscard]] static ObservedPool look_at(const MappedPool& pool, bool counts_buffers);
    [[nodiscard]] ObservedPort look_at(const MappedPort& port) const;
    [[nodiscard]] ObservedEnd look_at(const PortView& port, PortEnd end) const;

    DomainNames names_;
    std::string folder_;
    bool is_live_;
    Segment registry_segment_;
    Registry registry_;
    std::vector<std::unique_ptr<MappedPool>> pools_; ///< by number; null where it could not be opened
    std::vector<std::unique_ptr<MappedPort>> ports_;
};

Segment DomainObserver::State::open_segment(const std::string& name, SegmentKind kind,
                                            std::optional<std::uint64_t> parameters_hash) const {
    SegmentExpectation expected;
    expected.access = SegmentAccess::read_only;
    expected.kind = kind;
    expected.parameters_hash = parameters_hash;
    if (!is_live_) {
        expected.copies_folder = folder_;
    } else if (kind == SegmentKind::registry) {
        expected.owner_user = names_.user();
    }
    Segment segment = Segment::open(name, expected);
    if (is_live_ && kind != SegmentKind::registry) {
        detail::check_owner(segment, name, registry_segment_.owner());
    }
    return segment;
}

template <class Mapped, class... More>
void DomainObserver::State::open_new(Directory directory, SegmentKind kind, std::vector<std::unique_ptr<Mapped>>& all,
                                     std::vector<std::string>& trouble, More&... more) {
    for (unsigned place = 0; place < directory.size(); ++place) {
        const std::uint64_t word = directory.entry(place);
        if (word == 0) {
            return;
        }
        if (all.size() <= place) {
            all.resize(place + 1);
        }
        if (all[place] != nullptr) {
            continue;
        }
        try {
            all[place] = std::make_unique<Mapped>(
                open_segment(names_.segment(registry_.id(), SegmentKey::of(word), kind), kind, std::nullopt),
                nobody(registry_.processes()), more...);
        } catch (const std::system_error& error) {
            trouble.emplace_back(error.what());
        }
    }
}

std::vector<std::string> DomainObserver::State::open_new() {
    std::vector<std::string> trouble;
    open_new(registry_.pools(), SegmentKind::pool_control, pools_, trouble);
    PoolSource& source = *this;
    open_new(registry_.ports(), SegmentKind::port, ports_, trouble, source);
    return trouble;
}

bool DomainObserver::State::is_current() const noexcept {
    struct stat status {};
    if (stat((folder_ + "/" + names_.registry()).c_str(), &status) != 0) {
        return false;
    }
    return FileId{static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino)} ==
           registry_segment_.file();
}

std::vector<ObservedMember> DomainObserver::State::look_at_members(std::vector<std::string>& notes) const {
    // Opened each time: a forked child of ours that outlives us keeps no descriptor of the domain for longer than a look.
    std::optional<LockDescriptor> locks;
    if (is_live_) {
        try {
            LockDescriptor opened = LockDescriptor::open_to_look(segment_path(names_.registry()));
            if (opened.file() == registry_segment_.file()) {
                locks.emplace(std::move(opened));
            } else {
                notes.emplace_back("who is alive cannot be told: the domain was replaced by another of its name");
            }
        } catch (const std::system_error& error) {
            notes.push_back(std::string("who is alive cannot be told: ") + error.what());
        }
    }
    std::vector<ObservedMember> members;
    for (unsigned number = 0; number < process_slot_count; ++number) {
        const auto slot = static_cast<std::uint8_t>(number);
        const ProcessTable::Entry entry = registry_.processes().entry(slot);
        if (!entry.alive) {
            continue;
        }
        ObservedMember member;
        member.slot = slot;
        member.incarnation = entry.incarnation;
        if (locks) {
            member.life = locks->is_locked_by_other(slot) ? MemberLife::alive : MemberLife::dead;
        }
        member.process = registry_.process(slot);
        member.joined_ns = registry_.record(slot).joined_ns;
        // Read again: who left in between had no lock any more, and was not dead.
        if (registry_.processes().is_alive(slot, entry.incarnation)) {
            members.push_back(std::move(member));
        }
    }
    return members;
}

ObservedPool DomainObserver::State::look_at(const MappedPool& pool, bool counts_buffers) {
    const BufferPoolView& view = pool.view;
    ObservedPool seen;
    seen.name = pool.segment.label();
    seen.options = {view.buffer_bytes(), view.buffer_count(), view.references_per_buffer(), view.first_buffer()};
    seen.creator_pid = pool.segment.creator_pid();
    if (!counts_buffers) {
        return seen;
    }
    for (std::uint32_t index = 0; index < view.buffer_count(); ++index) {
        bool is_unused = true;
        for (unsigned number = 0; number < view.references_per_buffer(); ++number) {
            const std::uint64_t word = load_reference(view.reference(index, number));
            if (is_free(word)) {
                continue;
            }
            is_unused = false;
            const Owner owner = Owner::of(word);
            auto holder = std::ranges::find(seen.holders, owner, &ObservedHolder::owner);
            if (holder == seen.holders.end()) {
                seen.holders.push_back({owner.slot(), owner, 0, 0});
                holder = std::prev(seen.holders.end());
            }
            const bool is_queued = reference_state(word) == ReferenceState::queued;
            ++(is_queued ? holder->queued_count : holder->held_count);
            ++(is_queued ? seen.queued_count : seen.held_count);
        }
        seen.free_count += is_unused ? 1U : 0U;
    }
    std::ranges::sort(seen.holders, {}, &ObservedHolder::slot);
    return seen;
}

ObservedEnd DomainObserver::State::look_at(const PortView& port, PortEnd end) const {
    ObservedEnd seen;
    seen.was_attached = port.changes(end) != 0;
    seen.state = port.stream_end(end, [] { return true; });
    seen.is_waited_on = port.waiting_event(end).has_waiters();
    seen.counters = port.counters(end);
    seen.handles = port.handles(end);
    return seen;
}

ObservedPort DomainObserver::State::look_at(const MappedPort& port) const {
    ObservedPort seen;
    seen.name = port.segment.label();
    seen.options = port.view.options();
    seen.creator_pid = port.segment.creator_pid();
    seen.depth = static_cast<std::uint32_t>(port.view.ring().depth());
    seen.producers = look_at(port.view, PortEnd::producer);
    seen.consumers = look_at(port.view, PortEnd::consumer);
    return seen;
}

DomainSnapshot DomainObserver::State::look(bool counts_buffers) {
    DomainSnapshot seen;
    seen.notes = open_new();
    seen.name = names_.domain();
    seen.user = names_.user();
    seen.registry_id = registry_.id();
    seen.is_kept = registry_.is_kept();
    seen.owner = registry_segment_.owner();
    seen.members = look_at_members(seen.notes);
    seen.taken_ns = monotonic_ns();
    const auto file_bytes = [](std::uint64_t data_bytes) { return data_bytes + segment_header_bytes; };
    seen.control_bytes = file_bytes(registry_segment_.bytes().size());
    for (const std::unique_ptr<MappedPort>& port : ports_) {
        if (port != nullptr) {
            seen.ports.push_back(look_at(*port));
            seen.control_bytes += file_bytes(port->segment.bytes().size());
        }
    }
    for (const std::unique_ptr<MappedPool>& pool : pools_) {
        if (pool != nullptr) {
            seen.pools.push_back(look_at(*pool, counts_buffers));
            seen.control_bytes += file_bytes(pool->segment.bytes().size());
            seen.payload_bytes += file_bytes(BufferPool::payload_bytes(seen.pools.back().options));
        }
    }
    return seen;
}

std::vector<std::string> DomainObserver::State::check(DomainCensus* census, CheckMode mode) {
    std::vector<std::string> broken = open_new();
    std::ranges::move(registry_.check(), std::back_inserter(broken));
    SharedBufferAllocator buffers;
    for (const std::unique_ptr<MappedPool>& pool : pools_) {
        try {
            if (pool != nullptr) {
                buffers.add(BufferPool(detail::unowned(pool->view)));
            }
        } catch (const std::system_error& error) {
            broken.push_back("pool " + pool->segment.label() + ": " + error.what());
        }
    }
    std::vector<Port> ports;
    for (unsigned place = 0; place < ports_.size(); ++place) {
        if (ports_[place] == nullptr) {
            continue;
        }
        ports.emplace_back(detail::unowned(ports_[place]->view));
        if (ports_[place]->view.options().port_id != place) {
            broken.push_back("port " + ports_[place]->segment.label() + " says that it is number " +
                             std::to_string(ports_[place]->view.options().port_id) + ", the registry says " +
                             std::to_string(place));
        }
    }
    std::ranges::move(check_domain(registry_.processes(), buffers, ports, census, mode), std::back_inserter(broken));
    return broken;
}

DomainObserver::DomainObserver(std::string_view name, const Options& options)
    : state_(std::make_unique<State>(name, options)) {}
DomainObserver::DomainObserver(DomainObserver&&) noexcept = default;
DomainObserver& DomainObserver::operator=(DomainObserver&&) noexcept = default;
DomainObserver::~DomainObserver() = default;

DomainSnapshot DomainObserver::look(bool counts_buffers) {
    return state_->look(counts_buffers);
}

std::vector<std::string> DomainObserver::check(DomainCensus* census, CheckMode mode) {
    return state_->check(census, mode);
}

bool DomainObserver::is_current() const noexcept {
    return state_->is_current();
}

} // namespace weir
