#include "domain_state.hpp"
#include "files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include <poll.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir {

namespace {

std::uint64_t random_id() {
    std::uint64_t id = 0;
    while (id == 0) {
        if (getrandom(&id, sizeof(id), 0) != sizeof(id) && errno != EINTR) {
            throw std::system_error(errno, std::system_category(), "getrandom");
        }
    }
    return id;
}

uid_t user_of(const JoinOptions& options) {
    return options.user.value_or(geteuid());
}

FileOwner wanted_owner(const JoinOptions& options) {
    return {user_of(options), options.group.value_or(getegid()),
            options.mode.value_or(options.group ? mode_t{0660} : mode_t{0600})};
}

/// Removes a segment that no registry lists any more. Where it is another user's it stays: it takes up room, but is in
/// nobody's way, since the next registry has another id.
bool remove_unlisted(const std::string& name) {
    try {
        return Segment::remove(name);
    } catch (const std::system_error& error) {
        if (error.code() == errc::no_permission) {
            return false;
        }
        throw;
    }
}

/// Takes all names of a domain away but for the lock file, whose lock the caller holds: the registry first, so that nobody
/// finds one that lists what is gone. Returns how many.
std::size_t remove_names(const DomainNames& names) {
    std::size_t count = Segment::remove(names.registry()) ? 1 : 0;
    count += Segment::remove(names.registry_draft()) ? 1U : 0U;
    for (const std::string& name : list_segments(names.prefix())) {
        if (name != names.lock() && remove_unlisted(name)) {
            ++count;
        }
    }
    return count;
}

Segment make_registry(const DomainNames& names, const JoinOptions& options) {
    remove_names(names); // of an earlier domain of this name, or of who was killed here
    SegmentOptions segment_options;
    segment_options.kind = SegmentKind::registry;
    segment_options.parameters_hash = Registry::parameters_hash();
    segment_options.label = names.domain();
    segment_options.owner = wanted_owner(options);
    Segment segment = Segment::create(names.registry_draft(), Registry::bytes(), segment_options);
    Registry::format(segment.bytes(), random_id());
    if (!Segment::rename_noreplace(names.registry_draft(), names.registry())) {
        Segment::remove(names.registry_draft());
        throw_error(errc::busy,
                    "domain " + names.domain() + ": somebody made its registry without holding its lock; join again");
    }
    return segment;
}

std::string describe(const PortOptions& options) {
    return "capacity " + std::to_string(options.capacity) + ", when_full " + name_of(options.when_full) +
           ", when_unconsumed " + name_of(options.when_unconsumed) + ", time_stamps " +
           (options.time_stamps ? "true" : "false");
}

std::optional<Segment> open_registry(const DomainNames& names) {
    SegmentExpectation expected;
    expected.kind = SegmentKind::registry;
    expected.parameters_hash = Registry::parameters_hash();
    expected.owner_user = names.user();
    try {
        return Segment::open(names.registry(), expected);
    } catch (const std::system_error& error) {
        if (error.code() == errc::not_found) {
            return std::nullopt;
        }
        throw;
    }
}

[[noreturn]] void throw_no_domain(const DomainNames& names) {
    throw_error(errc::not_found, "domain " + names.domain() + " of user " + std::to_string(names.user()) +
                                     ": nobody has made it; start the program that does, or join with create");
}

std::uint64_t parameters_hash(const BufferPoolOptions& options, SegmentKind kind) {
    return hash_parameters({static_cast<std::uint64_t>(kind), sizeof(BufferPoolState), sizeof(BufferHeader),
                            options.buffer_bytes, options.buffer_count, options.references_per_buffer});
}

std::uint64_t parameters_hash(const PortOptions& options) {
    return hash_parameters({sizeof(PortState), options.capacity, static_cast<std::uint64_t>(options.when_full),
                            static_cast<std::uint64_t>(options.when_unconsumed), options.time_stamps ? 1U : 0U});
}

/// A segment of ours that nobody can find until its directory entry is there; without one, its name goes again.
class PrivateSegment {
public:
    PrivateSegment(std::string name, std::size_t bytes, const SegmentOptions& options)
        : name_(std::move(name)), segment_(Segment::create(name_, bytes, options)) {}
    PrivateSegment(const PrivateSegment&) = delete;
    PrivateSegment& operator=(const PrivateSegment&) = delete;
    ~PrivateSegment() {
        if (!is_published_) {
            try {
                Segment::remove(name_);
            } catch (...) {
                // It is removed when this membership has ended.
            }
        }
    }

    [[nodiscard]] const Segment& segment() const noexcept { return segment_; }
    [[nodiscard]] Segment publish() noexcept {
        is_published_ = true;
        return std::move(segment_);
    }

private:
    std::string name_;
    Segment segment_;
    bool is_published_ = false;
};

void add_to(std::string& text, const std::string& line) {
    text += text.empty() ? line : "; " + line;
}

} // namespace

namespace detail {

void check_owner(const Segment& segment, const std::string& name, const SegmentOwner& domain) {
    const bool is_shared = (domain.mode & 0060) == 0060 && segment.owner().group == domain.group;
    if (segment.owner().user != domain.user && !is_shared) {
        throw_error(errc::no_permission, "segment " + name + " belongs to user " +
                                             std::to_string(segment.owner().user) + ", who is not in this domain");
    }
}

DomainState::DomainState(DomainNames names, const JoinOptions& options, Segment registry)
    : DomainState(std::move(names), options, std::move(registry), Outside()) {
    take_slot();
    if (options.keep) {
        registry_.keep();
    }
}

DomainState::DomainState(DomainNames names, const JoinOptions& options, Segment registry, Outside)
    : names_(std::move(names)), options_(options), registry_segment_(std::move(registry)),
      registry_(registry_segment_.bytes()), lock_(LockDescriptor::open(segment_path(names_.registry()))),
      stamp_(ForkStamp::capture()), ports_(port_count_max), claims_(port_count_max) {
    if (lock_.file() != registry_segment_.file()) {
        throw_error(errc::busy, "domain " + names_.domain() + ": its registry was just replaced; join again");
    }
}

DomainState::~DomainState() {
    if (membership_ && !is_inherited()) {
        leave();
    }
}

// --- Joining and leaving ---------------------------------------------------------------------------------------------

void DomainState::take_slot() {
    const ProcessInfo info = self_info(options_.process_name);
    std::string note;
    // First the slots that are free; if there is none, those of the dead, who are reaped first. Their lock is only looked at
    // before that: who is stopped while it holds a dead one's lock would keep all others from seeing the death.
    for (const bool wants_dead : {false, true}) {
        for (unsigned number = 0; number < process_slot_count; ++number) {
            const auto slot = static_cast<std::uint8_t>(number);
            const ProcessTable::Entry entry = registry_.processes().entry(slot);
            if (entry.alive) {
                if (!wants_dead || !is_lock_free(slot)) {
                    continue;
                }
                ReapReport report;
                reap_former_owner(slot, entry.incarnation, report);
                if (report.error) {
                    add_to(note, report.note);
                    continue;
                }
            }
            if (!lock_.try_lock(slot)) {
                continue;
            }
            write_record(slot, info);
            membership_ = registry_.processes().try_join(slot);
            if (membership_) {
                return;
            }
            lock_.unlock(slot);
        }
    }
    if (!note.empty()) {
        throw_error(errc::reap_incomplete,
                    "domain " + names_.domain() + " has 256 members, some of them dead, who cannot be reaped: " + note);
    }
    throw_error(errc::table_full, "domain " + names_.domain() + " has 256 members; end some, or use a second domain");
}

/// For who is no member yet. Views of pools and ports want a membership; the dead one's does for reaping it, and they go
/// with it.
void DomainState::reap_former_owner(std::uint8_t slot, std::uint64_t incarnation, ReapReport& report) {
    membership_ = Membership{registry_.processes(), slot, incarnation};
    reap_one(*membership_, report);
    membership_.reset();
    for (unsigned place = 0; place < pool_count_max; ++place) {
        // relaxed: no other thread knows of this membership yet
        pool_views_[place].store(nullptr, std::memory_order_relaxed);
        pools_[place].reset();
    }
    for (std::unique_ptr<MappedPort>& port : ports_) {
        port.reset();
    }
}

void DomainState::write_record(std::uint8_t slot, const ProcessInfo& info) noexcept {
    MemberRecord& record = registry_.record(slot);
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    record.incarnation = registry_.processes().entry(slot).incarnation;
    record.start_time_ticks = info.start_time_ticks;
    record.pid_namespace = info.pid_namespace;
    record.joined_ns = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
    record.pid = info.pid;
    std::memset(record.name, 0, sizeof(record.name));
    std::memcpy(record.name, info.name.data(), std::min(info.name.size(), sizeof(record.name) - 1));
}

void DomainState::leave() noexcept {
    for (const std::unique_ptr<MappedPool>& pool : pools_) {
        if (pool != nullptr) {
            free_held(pool->view, *membership_);
        }
    }
    const auto end = [this]() noexcept { registry_.processes().end(membership_->slot, membership_->incarnation); };
    try {
        const LockFile lock = LockFile::take(segment_path(names_.lock()), registry_segment_.owner(),
                                             deadline_after(options_.timeout.count()));
        if (last_serial_ != 0) {
            // Those whose removal failed when they lost against another's of the same name.
            ReapReport report;
            remove_private_segments(*membership_, report);
        }
        end();
        if (!registry_.is_kept() && is_last_member()) {
            remove_own_names();
        }
        lock_.unlock(membership_->slot);
    } catch (...) {
        // Somebody is stopped while he joins or leaves, or may not be interfered with: the names stay, as if all had died.
        end();
        lock_.unlock(membership_->slot);
    }
}

/// What has this domain's names may be another one by now, made after ours were removed by force: it is left alone.
void DomainState::remove_own_names() const {
    struct stat status {};
    const bool has_name = stat(segment_path(names_.registry()).c_str(), &status) == 0 || errno != ENOENT;
    if (!has_name || id_of(status) == registry_segment_.file()) {
        remove_names(names_);
        return;
    }
    for (const std::string& name : list_segments(names_.prefix())) {
        const std::optional<DomainNames::Parsed> parsed = names_.parse(name);
        if (parsed && parsed->registry_id == registry_.id()) {
            remove_unlisted(name);
        }
    }
}

bool DomainState::is_last_member() const noexcept {
    for (unsigned number = 0; number < process_slot_count; ++number) {
        const auto slot = static_cast<std::uint8_t>(number);
        if (slot != membership_->slot && registry_.processes().entry(slot).alive && !is_lock_free(slot)) {
            return false;
        }
    }
    return true;
}

// --- Segments --------------------------------------------------------------------------------------------------------

Segment DomainState::open_segment(const SegmentKey& key, SegmentKind kind, SegmentAccess access, bool prefault) {
    SegmentExpectation expected;
    expected.access = access;
    expected.kind = kind;
    expected.prefault = prefault;
    const std::string name = names_.segment(registry_.id(), key, kind);
    Segment segment = Segment::open(name, expected);
    check_owner(segment, name, registry_segment_.owner());
    take_note(segment.note());
    return segment;
}

SegmentOptions DomainState::options_for(SegmentKind kind, std::uint64_t parameters, std::string_view label) const {
    SegmentOptions options;
    options.kind = kind;
    options.parameters_hash = parameters;
    options.label = label;
    options.owner = registry_segment_.owner();
    if (geteuid() != 0) {
        options.owner->user = geteuid(); // who is not root cannot give a file away; the group is what is shared
    }
    const bool is_payload = kind == SegmentKind::pool_payload;
    options.huge_pages = is_payload && options_.huge_pages;
    options.prefault = is_payload && options_.prefault;
    return options;
}

SegmentKey DomainState::next_key() {
    if (last_serial_ == std::numeric_limits<std::uint16_t>::max()) {
        throw_error(errc::table_full, "this membership has made 65,535 segments; join again");
    }
    ++last_serial_;
    return {membership_->slot, static_cast<std::uint32_t>(membership_->incarnation) & SegmentKey::incarnation_mask,
            last_serial_};
}

void DomainState::take_note(const std::string& note) {
    if (!note.empty() && notes_.find(note) == std::string::npos) {
        add_to(notes_, note);
    }
}

std::string DomainState::notes() {
    const std::lock_guard guard(mutex_);
    return notes_;
}

DomainState::MappedPool& DomainState::map_pool(unsigned place, std::uint64_t word, bool prefault) {
    if (pools_[place] == nullptr) {
        const SegmentKey key = SegmentKey::of(word);
        Segment control = open_segment(key, SegmentKind::pool_control, SegmentAccess::read_write, false);
        Segment payload =
            open_segment(key, SegmentKind::pool_payload,
                         options_.read_only_payload ? SegmentAccess::read_only : SegmentAccess::read_write, prefault);
        return take_in(place, std::move(control), std::move(payload));
    }
    return *pools_[place];
}

DomainState::MappedPool& DomainState::take_in(unsigned place, Segment control, Segment payload) {
    auto pool = std::make_unique<MappedPool>(std::move(control), std::move(payload), *membership_);
    pool->view.set_recheck(*this);
    pools_[place] = std::move(pool);
    // (1) release: hands the view over to other threads; pairs with (2)
    pool_views_[place].store(&pools_[place]->view, std::memory_order_release);
    return *pools_[place];
}

DomainState::MappedPort& DomainState::map_port(unsigned place, std::uint64_t word) {
    if (ports_[place] == nullptr) {
        auto port = std::make_unique<MappedPort>(
            open_segment(SegmentKey::of(word), SegmentKind::port, SegmentAccess::read_write, false), *membership_,
            *this);
        if (port->view.options().port_id != place) {
            throw_error(errc::corrupt, "port " + port->name() + " says that it is number " +
                                           std::to_string(port->view.options().port_id) + ", the registry says " +
                                           std::to_string(place));
        }
        ports_[place] = std::move(port);
    }
    return *ports_[place];
}

DomainState::MappedPool& DomainState::pool(std::string_view name, const PoolOptions& options) {
    check_name("pool", name);
    const bool may_make = options.buffer_bytes != 0 || options.buffer_count != 0;
    BufferPoolOptions made_options{options.buffer_bytes, options.buffer_count, options.references_per_buffer, 0};
    const std::uint32_t hash = name_hash(name);
    Directory directory = registry_.pools();
    SegmentKey key;
    std::optional<PrivateSegment> control;
    std::optional<PrivateSegment> payload;

    std::unique_lock guard(mutex_);
    std::uint32_t first_buffer = 0;
    for (unsigned place = 0; place < directory.size();) {
        const std::uint64_t word = directory.entry(place);
        if (word != 0) {
            const bool may_be_it = SegmentKey::hash_of(word) == hash;
            // The numbers of a new pool's buffers follow those of all pools before.
            if (may_be_it || may_make) {
                MappedPool& pool = map_pool(place, word, may_be_it && options_.prefault);
                if (may_be_it && pool.name() == name) {
                    if (may_make && (pool.view.buffer_bytes() != options.buffer_bytes ||
                                     pool.view.buffer_count() != options.buffer_count ||
                                     pool.view.references_per_buffer() != options.references_per_buffer)) {
                        throw_error(errc::other_parameters,
                                    "pool " + std::string(name) + " is there with " +
                                        std::to_string(pool.view.buffer_count()) + " buffers of " +
                                        std::to_string(pool.view.buffer_bytes()) + " bytes and " +
                                        std::to_string(pool.view.references_per_buffer()) +
                                        " references; ask for the same, or open it without options");
                    }
                    return pool;
                }
                first_buffer = pool.view.first_buffer() + pool.view.buffer_count();
            }
            ++place;
            continue;
        }
        if (!may_make) {
            break;
        }
        const std::size_t control_bytes = BufferPool::control_bytes(made_options); // throws where they are wrong
        if (options.buffer_count > domain_buffer_count_max - first_buffer) {
            throw_error(errc::table_full, "a domain has 1,048,576 buffers; its pools have " +
                                              std::to_string(first_buffer) + " of them, pool " + std::string(name) +
                                              " asks for " + std::to_string(options.buffer_count));
        }
        if (!control) {
            key = next_key();
            // Without the lock: reserving memory takes a while, and other threads go on meanwhile.
            guard.unlock();
            payload.emplace(
                names_.segment(registry_.id(), key, SegmentKind::pool_payload), BufferPool::payload_bytes(made_options),
                options_for(SegmentKind::pool_payload, parameters_hash(made_options, SegmentKind::pool_payload), name));
            control.emplace(
                names_.segment(registry_.id(), key, SegmentKind::pool_control), control_bytes,
                options_for(SegmentKind::pool_control, parameters_hash(made_options, SegmentKind::pool_control), name));
            BufferPool::format(control->segment().bytes(), made_options);
            guard.lock();
            take_note(payload->segment().note());
            continue; // the place is looked at again
        }
        BufferPool::renumber(control->segment().bytes(), first_buffer);
        if (directory.publish(place, key.word(hash))) {
            return take_in(place, control->publish(), payload->publish());
        }
        // Another was faster at this place, perhaps with this very name: it is looked at like all before.
    }
    if (may_make) {
        throw_error(errc::table_full, "a domain has 64 pools; there is no room for pool " + std::string(name));
    }
    throw_error(errc::not_found, "pool " + std::string(name) + " is not there; give its options to make it");
}

DomainState::MappedPort& DomainState::port(std::string_view name, const PortOptions& options) {
    check_name("port", name);
    const bool may_make = options.capacity != 0;
    PortOptions made_options = options;
    made_options.port_id = 0;
    const std::uint32_t hash = name_hash(name);
    Directory directory = registry_.ports();
    SegmentKey key;
    std::optional<PrivateSegment> made;

    std::unique_lock guard(mutex_);
    for (unsigned place = 0; place < directory.size();) {
        const std::uint64_t word = directory.entry(place);
        if (word != 0) {
            if (SegmentKey::hash_of(word) == hash) {
                MappedPort& port = map_port(place, word);
                if (port.name() == name) {
                    const PortOptions& there = port.view.options();
                    if (may_make && parameters_hash(there) != parameters_hash(options)) {
                        throw_error(errc::other_parameters, "port " + std::string(name) + " is there with " +
                                                                describe(there) + ", and not with " +
                                                                describe(options) +
                                                                "; ask for the same, or open it without options");
                    }
                    return port;
                }
            }
            ++place;
            continue;
        }
        if (!may_make) {
            break;
        }
        if (!made) {
            const std::size_t bytes = Port::bytes(made_options); // throws where they are wrong
            key = next_key();
            guard.unlock(); // as for a pool
            made.emplace(names_.segment(registry_.id(), key, SegmentKind::port), bytes,
                         options_for(SegmentKind::port, parameters_hash(made_options), name));
            guard.lock();
            continue;
        }
        made_options.port_id = place;
        Port::format(made->segment().bytes(), made_options);
        if (directory.publish(place, key.word(hash))) {
            ports_[place] = std::make_unique<MappedPort>(made->publish(), *membership_, *this);
            return *ports_[place];
        }
        // Another was faster at this place, perhaps with this very name: it is looked at like all before.
    }
    if (may_make) {
        throw_error(errc::table_full, "a domain has 1,024 ports; there is no room for port " + std::string(name));
    }
    throw_error(errc::not_found, "port " + std::string(name) + " is not there; give its capacity to make it");
}

std::vector<DomainState::MappedPool*> DomainState::pools() {
    const std::lock_guard guard(mutex_);
    std::vector<MappedPool*> all;
    const Directory directory = registry_.pools();
    for (unsigned place = 0; place < directory.size(); ++place) {
        const std::uint64_t word = directory.entry(place);
        if (word == 0) {
            break;
        }
        all.push_back(&map_pool(place, word));
    }
    return all;
}

std::vector<DomainState::MappedPort*> DomainState::ports() {
    const std::lock_guard guard(mutex_);
    std::vector<MappedPort*> all;
    const Directory directory = registry_.ports();
    for (unsigned place = 0; place < directory.size(); ++place) {
        const std::uint64_t word = directory.entry(place);
        if (word == 0) {
            break;
        }
        all.push_back(&map_port(place, word));
    }
    return all;
}

bool DomainState::has_ending_member() const noexcept {
    const std::uint64_t here = registry_.record(membership_->slot).pid_namespace;
    for (unsigned number = 0; number < process_slot_count; ++number) {
        const auto slot = static_cast<std::uint8_t>(number);
        const MemberRecord& record = registry_.record(slot);
        if (slot == membership_->slot || !registry_.processes().entry(slot).alive || here == 0 ||
            record.pid_namespace != here || is_lock_free(slot)) {
            continue;
        }
        const Descriptor process(open_pidfd(record.pid, record.start_time_ticks, record.pid_namespace));
        pollfd ended{process.number(), POLLIN, 0};
        if (process.number() < 0 || poll(&ended, 1, 0) > 0) {
            return true;
        }
    }
    return false;
}

/// The bytes behind those of the members' lives.
bool DomainState::try_claim(std::uint32_t port_id) {
    const std::lock_guard guard(mutex_);
    if (claims_[port_id] || !lock_.try_lock(process_slot_count + port_id)) {
        return false;
    }
    claims_[port_id] = true;
    return true;
}

void DomainState::release_claim(std::uint32_t port_id) noexcept {
    const std::lock_guard guard(mutex_);
    if (claims_[port_id]) {
        claims_[port_id] = false;
        lock_.unlock(process_slot_count + port_id);
    }
}

BufferPoolView* DomainState::find_pool(std::uint32_t id) noexcept {
    const auto lies_in = [id](const BufferPoolView& view) noexcept {
        return id - view.first_buffer() < view.buffer_count();
    };
    for (const std::atomic<BufferPoolView*>& published : pool_views_) {
        // (2) acquire: the view is complete; pairs with (1)
        BufferPoolView* view = published.load(std::memory_order_acquire);
        if (view != nullptr && lies_in(*view)) {
            return view;
        }
    }
    if (id >= domain_buffer_count_max) {
        return nullptr;
    }
    try {
        const std::lock_guard guard(mutex_);
        const Directory directory = registry_.pools();
        for (unsigned place = 0; place < directory.size() && directory.entry(place) != 0; ++place) {
            try {
                MappedPool& pool = map_pool(place, directory.entry(place));
                if (lies_in(pool.view)) {
                    return &pool.view;
                }
            } catch (const std::system_error& error) {
                // It may be another pool's buffer, so the others are looked at.
                take_note(std::string("a pool could not be mapped for a message: ") + error.what());
            }
        }
    } catch (...) {
        return nullptr; // no memory; the handle reports unknown_buffer
    }
    return nullptr;
}

// --- The dead --------------------------------------------------------------------------------------------------------

void DomainState::recheck() noexcept {
    constexpr std::int64_t pause_intervals = 8;
    const std::int64_t now_ns = monotonic_ns();
    // relaxed: a time before which this member need not try again
    if (now_ns < next_check_ns_.load(std::memory_order_relaxed)) {
        return;
    }
    std::unique_lock only_one(reap_mutex_, std::try_to_lock);
    if (!only_one) {
        return; // another thread of this process is at it
    }
    if (registry_.take_check(now_ns, options_.recheck_interval_ns) && reap_dead().error) {
        // Others may be able to do what this member cannot (open a pool, say). Without a pause it would be elected again and
        // again, since its sleeps end when the next look is due.
        registry_.give_back_check(now_ns, options_.recheck_interval_ns);
        // relaxed: as above
        next_check_ns_.store(now_ns + pause_intervals * options_.recheck_interval_ns, std::memory_order_relaxed);
    }
}

ReapReport DomainState::reap() noexcept {
    // Where another thread of this process is at it, it may be past who has died meanwhile.
    const std::lock_guard only_one(reap_mutex_);
    return reap_dead();
}

ReapReport DomainState::reap_from_outside() {
    ReapReport report;
    for (unsigned number = 0; number < process_slot_count; ++number) {
        const auto slot = static_cast<std::uint8_t>(number);
        const ProcessTable::Entry entry = registry_.processes().entry(slot); // first, as in reap_dead()
        if (entry.alive && is_lock_free(slot)) {
            ++report.dead_count;
            reap_former_owner(slot, entry.incarnation, report);
        }
    }
    return report;
}

ReapReport DomainState::reap_dead() noexcept {
    ReapReport report;
    for (unsigned number = 0; number < process_slot_count; ++number) {
        const auto slot = static_cast<std::uint8_t>(number);
        // (0) First the entry is read, then its owner's death is proven: the other way round, a newcomer would be reaped.
        const ProcessTable::Entry entry = registry_.processes().entry(slot);
        if (!entry.alive || slot == membership_->slot || !is_lock_free(slot)) {
            continue;
        }
        ++report.dead_count;
        try {
            reap_one(Membership{registry_.processes(), slot, entry.incarnation}, report);
        } catch (...) {
            report.error = errc::reap_incomplete; // no memory
        }
    }
    return report;
}

void DomainState::reap_one(const Membership& dead, ReapReport& report) {
    remove_private_segments(dead, report);
    SharedBufferAllocator buffers;
    std::vector<Port> all_ports;
    try {
        // The dead makes no more pools and ports, so all that it can have used are listed by now.
        for (MappedPool* pool : pools()) {
            buffers.add(BufferPool(detail::unowned(pool->view)));
        }
        for (MappedPort* port : ports()) {
            all_ports.emplace_back(detail::unowned(port->view));
        }
    } catch (const std::system_error& error) {
        report.error = errc::reap_incomplete;
        add_to(report.note, error.what());
        return;
    }
    const ReapResult result = weir::reap(dead, buffers, all_ports);
    if (result.error) {
        report.error = result.error;
        add_to(report.note, "slot " + std::to_string(dead.slot) + ": " + result.error.message());
    }
    report.freed_reference_count += result.freed_reference_count;
    report.kept_message_count += result.kept_message_count;
    report.ended_count += result.ended_entry ? 1 : 0;
}

/// Before its entry is ended: afterwards nobody would look for them.
void DomainState::remove_private_segments(const Membership& dead, ReapReport& report) {
    for (const std::string& name : list_segments(names_.prefix())) {
        const std::optional<DomainNames::Parsed> parsed = names_.parse(name);
        if (!parsed || parsed->registry_id != registry_.id() || parsed->key.slot != dead.slot ||
            parsed->key.incarnation != (static_cast<std::uint32_t>(dead.incarnation) & SegmentKey::incarnation_mask) ||
            registry_.pools().lists(parsed->key) || registry_.ports().lists(parsed->key)) {
            continue;
        }
        try {
            report.removed_segment_count += Segment::remove(name) ? 1U : 0U;
        } catch (const std::system_error& error) {
            add_to(report.note, error.what()); // another user's: it takes up room, but harms nobody
        }
    }
}

} // namespace detail

// --- Domain ----------------------------------------------------------------------------------------------------------

Domain Domain::join(std::string_view name, const JoinOptions& options) {
    const DomainNames names(user_of(options), name);
    if (options.recheck_interval_ns <= 0) {
        throw_error(errc::invalid_size,
                    "recheck_interval_ns is above 0; asked for " + std::to_string(options.recheck_interval_ns));
    }
    if (!options.process_name.empty()) {
        check_name("process", options.process_name);
    }
    const bool may_make = options.create && (names.user() == geteuid() || geteuid() == 0);
    if (!may_make && !open_registry(names)) {
        throw_no_domain(names); // and no lock file is made either
    }
    const LockFile lock =
        LockFile::take(segment_path(names.lock()), wanted_owner(options), deadline_after(options.timeout.count()));
    std::optional<Segment> registry = open_registry(names);
    if (!registry) {
        if (!may_make) {
            throw_no_domain(names);
        }
        registry = make_registry(names, options);
    }
    const SegmentOwner& owner = registry->owner();
    if ((options.group && owner.group != *options.group) || (options.mode && owner.mode != *options.mode)) {
        throw_error(errc::other_parameters, "domain " + names.domain() +
                                                " is there with another group or mode; ask "
                                                "for the same, or for none");
    }
    auto state = std::make_shared<detail::DomainState>(names, options, std::move(*registry));
    static_cast<void>(state->reap());
    return Domain(std::move(state));
}

detail::DomainState& Domain::state() const {
    if (state_ == nullptr) {
        throw_error(errc::not_a_member, "this handle has left its domain; join again");
    }
    if (state_->is_inherited()) {
        throw_error(errc::used_after_fork, "a membership is not inherited by fork(); join in the child");
    }
    return *state_;
}

void Domain::leave() {
    if (state_ == nullptr) {
        return;
    }
    static_cast<void>(state());
    if (const auto count = state_.use_count() - 1; count != 0) {
        throw_error(errc::busy, "domain " + name() + ": handles of this membership that still exist: " +
                                    std::to_string(count) + "; end them first");
    }
    state_.reset();
}

BufferPool Domain::pool(std::string_view name, const PoolOptions& options) {
    return BufferPool(std::shared_ptr<BufferPoolView>(state_, &state().pool(name, options).view));
}

Port Domain::port(std::string_view name, const PortOptions& options) {
    return Port(std::shared_ptr<PortView>(state_, &state().port(name, options).view));
}

Producer Domain::producer(std::string_view name, const PortOptions& options) {
    WaitOptions wait;
    wait.recheck_interval_ns = state().recheck_interval_ns();
    return producer(name, options, wait);
}

Producer Domain::producer(std::string_view name, const PortOptions& options, const WaitOptions& wait) {
    return Producer(port(name, options), wait);
}

Consumer Domain::consumer(std::string_view name, const PortOptions& options) {
    WaitOptions wait;
    wait.recheck_interval_ns = state().recheck_interval_ns();
    return consumer(name, options, wait);
}

Consumer Domain::consumer(std::string_view name, const PortOptions& options, const WaitOptions& wait) {
    return Consumer(port(name, options), wait);
}

SharedBufferAllocator Domain::pools() {
    SharedBufferAllocator buffers;
    for (detail::DomainState::MappedPool* pool : state().pools()) {
        buffers.add(BufferPool(std::shared_ptr<BufferPoolView>(state_, &pool->view)));
    }
    return buffers;
}

std::vector<std::string> Domain::pool_names() {
    std::vector<std::string> names;
    for (const detail::DomainState::MappedPool* pool : state().pools()) {
        names.push_back(pool->name());
    }
    return names;
}

std::vector<std::string> Domain::port_names() {
    std::vector<std::string> names;
    for (const detail::DomainState::MappedPort* port : state().ports()) {
        names.push_back(port->name());
    }
    return names;
}

ReapReport Domain::reap() noexcept {
    if (state_ == nullptr || state_->is_inherited()) {
        ReapReport report;
        report.error = state_ == nullptr ? errc::not_a_member : errc::used_after_fork;
        return report;
    }
    return state_->reap();
}

bool Domain::try_claim(const Port& port) {
    return state().try_claim(port.options().port_id);
}

void Domain::release_claim(const Port& port) noexcept {
    if (state_ != nullptr && !state_->is_inherited()) {
        state_->release_claim(port.options().port_id);
    }
}

void Domain::keep() noexcept {
    if (state_ != nullptr && !state_->is_inherited()) {
        state_->registry().keep();
    }
}

std::vector<MemberInfo> Domain::members() const {
    detail::DomainState& domain = state();
    std::vector<MemberInfo> members;
    for (unsigned number = 0; number < process_slot_count; ++number) {
        const auto slot = static_cast<std::uint8_t>(number);
        const ProcessTable::Entry entry = domain.registry().processes().entry(slot);
        if (!entry.alive) {
            continue;
        }
        MemberInfo member;
        member.slot = slot;
        member.incarnation = entry.incarnation;
        member.is_self = slot == domain.membership().slot;
        member.is_alive = member.is_self || !domain.is_lock_free(slot);
        member.process = domain.registry().process(slot);
        member.joined_ns = domain.registry().record(slot).joined_ns;
        members.push_back(std::move(member));
    }
    return members;
}

const Membership& Domain::membership() const noexcept {
    WEIR_ASSERT(state_ != nullptr, "a Domain that was left has no membership");
    return state_->membership();
}

const std::string& Domain::name() const noexcept {
    WEIR_ASSERT(state_ != nullptr, "a Domain that was left has no name");
    return state_->names().domain();
}

std::string Domain::notes() const {
    return state().notes();
}

std::vector<std::string> Domain::check(DomainCensus* census, CheckMode mode) {
    detail::DomainState& domain = state();
    SharedBufferAllocator buffers;
    for (detail::DomainState::MappedPool* pool : domain.pools()) {
        buffers.add(BufferPool(detail::unowned(pool->view)));
    }
    std::vector<Port> ports;
    for (detail::DomainState::MappedPort* port : domain.ports()) {
        ports.emplace_back(detail::unowned(port->view));
    }
    std::vector<std::string> broken = domain.registry().check();
    std::ranges::move(check_domain(domain.registry().processes(), buffers, ports, census, mode),
                      std::back_inserter(broken));
    return broken;
}

ReapReport Domain::reap(std::string_view name, const ReapOptions& options) {
    JoinOptions join;
    join.user = options.user;
    const DomainNames names(user_of(join), name);
    if (!open_registry(names)) {
        throw_no_domain(names); // and no lock file is made either
    }
    const LockFile lock =
        LockFile::take(segment_path(names.lock()), wanted_owner(join), deadline_after(options.timeout.count()));
    std::optional<Segment> registry = open_registry(names);
    if (!registry) {
        throw_no_domain(names);
    }
    return detail::DomainState(names, join, std::move(*registry), detail::DomainState::Outside()).reap_from_outside();
}

bool Domain::remove(std::string_view name, const RemoveOptions& options) {
    const DomainNames names(options.user.value_or(geteuid()), name);
    if (list_segments(names.prefix()).empty()) {
        return false;
    }
    FileOwner owner = own_files_only();
    owner.user = names.user();
    const LockFile lock = LockFile::take(segment_path(names.lock()), owner, deadline_after(options.timeout.count()));
    if (!options.force) {
        if (const std::optional<Segment> registry = open_registry(names)) {
            const LockDescriptor probe = LockDescriptor::open(segment_path(names.registry()));
            for (unsigned slot = 0; slot < process_slot_count; ++slot) {
                if (probe.is_locked_by_other(slot)) {
                    throw_error(errc::busy, "domain " + names.domain() +
                                                " has live members; end them first, or force it: they keep what they "
                                                "have mapped");
                }
            }
        }
    }
    const bool was_there = remove_names(names) > 0;
    if (options.lock_file) {
        Segment::remove(names.lock()); // who waits for it sees that it is gone, and makes another
    }
    return was_there;
}

// --- PeerWatch -------------------------------------------------------------------------------------------------------

PeerWatch::PeerWatch(const Domain& domain) : domain_(domain) {
    static_cast<void>(domain_.state()); // throws where it has none
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ < 0) {
        throw std::system_error(errno, std::system_category(), "epoll_create1");
    }
    try {
        handle();
    } catch (...) {
        close_all();
        throw;
    }
}

PeerWatch::~PeerWatch() {
    close_all();
}

void PeerWatch::close_all() noexcept {
    for (Watched& peer : watched_) {
        stop_watching(peer);
    }
    close(epoll_);
}

/// The entry goes first: a forked child may have the descriptor too, and then closing it here takes nothing out of epoll.
void PeerWatch::stop_watching(Watched& peer) noexcept {
    if (peer.descriptor >= 0) {
        epoll_ctl(epoll_, EPOLL_CTL_DEL, peer.descriptor, nullptr);
        close(peer.descriptor);
        peer.descriptor = -1;
    }
}

std::size_t PeerWatch::watched_count() const noexcept {
    return static_cast<std::size_t>(
        std::ranges::count_if(watched_, [](const Watched& peer) { return peer.descriptor >= 0; }));
}

ReapReport PeerWatch::handle() {
    static_cast<void>(domain_.state()); // a forked child shares the epoll instance, and must not change it
    std::array<epoll_event, 64> events{};
    const int fired = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), 0);
    ReapReport report;
    if (fired > 0) {
        report = domain_.reap();
    }
    for (int number = 0; number < fired; ++number) {
        const std::uint64_t slot = events[static_cast<std::size_t>(number)].data.u64;
        // Its process is gone, so there is nothing more to watch; it stays listed until it was reaped.
        for (Watched& peer : watched_) {
            if (peer.slot == slot) {
                stop_watching(peer);
            }
        }
    }
    detail::DomainState& state = domain_.state();
    const ProcessTable& table = state.registry().processes();
    std::erase_if(watched_, [this, &table](Watched& peer) {
        const bool is_gone = !table.is_alive(peer.slot, peer.incarnation);
        if (is_gone) {
            stop_watching(peer);
        }
        return is_gone;
    });
    for (unsigned number = 0; number < process_slot_count; ++number) {
        const auto slot = static_cast<std::uint8_t>(number);
        const ProcessTable::Entry entry = table.entry(slot);
        const bool is_listed = std::ranges::any_of(watched_, [slot, &entry](const Watched& peer) {
            return peer.slot == slot && peer.incarnation == entry.incarnation;
        });
        if (!entry.alive || slot == state.membership().slot || is_listed) {
            continue;
        }
        watched_.reserve(watched_.size() + 1); // before the descriptor is there that would be lost
        const MemberRecord& record = state.registry().record(slot);
        const int descriptor = open_pidfd(record.pid, record.start_time_ticks, record.pid_namespace);
        if (descriptor < 0) {
            continue;
        }
        epoll_event wanted{};
        wanted.events = EPOLLIN;
        wanted.data.u64 = slot;
        if (epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &wanted) == 0) {
            watched_.push_back({slot, entry.incarnation, descriptor});
        } else {
            close(descriptor);
        }
    }
    return report;
}

} // namespace weir
