#include "files.hpp"

#include <weir/registry.hpp>

#include <charconv>

namespace weir {

namespace {

RegistryState* view(std::span<std::byte> memory, errc too_short) {
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % cache_line_bytes != 0) {
        throw_error(errc::misaligned, "a registry's memory starts on a cache line of 64 bytes");
    }
    if (memory.size() < Registry::bytes()) {
        throw_error(too_short, "a registry needs " + std::to_string(Registry::bytes()) + " bytes, was given " +
                                   std::to_string(memory.size()));
    }
    return reinterpret_cast<RegistryState*>(memory.data());
}

/// Reads a number up to `end_mark`, or to the end, off the front of `text`.
template <class Number>
bool read_number(std::string_view& text, char end_mark, int base, Number& number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
    const auto length = static_cast<std::size_t>(end - text.data());
    if (error != std::errc() || length == text.size() || text[length] != end_mark) {
        return false;
    }
    text.remove_prefix(length + 1);
    return true;
}

std::string_view suffix_of(SegmentKind kind) {
    switch (kind) {
    case SegmentKind::pool_control: return "control";
    case SegmentKind::pool_payload: return "payload";
    case SegmentKind::port: return "port";
    case SegmentKind::untyped:
    case SegmentKind::registry: break;
    }
    return "other";
}

} // namespace

std::uint32_t name_hash(std::string_view name) noexcept {
    std::uint64_t hash = 0xcbf2'9ce4'8422'2325; // FNV-1a
    for (const char letter : name) {
        hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100'0000'01b3;
    }
    return static_cast<std::uint32_t>(hash ^ hash >> 32) & SegmentKey::hash_mask;
}

DomainNames::DomainNames(uid_t user, std::string_view domain)
    : user_(user), domain_((check_name("domain", domain), domain)),
      prefix_(std::string(common_prefix) + std::to_string(user) + "+" + domain_ + "+") {}

std::optional<DomainNames> DomainNames::of(std::string_view file) {
    if (!file.starts_with(common_prefix)) {
        return std::nullopt;
    }
    std::string_view rest = file.substr(common_prefix.size());
    uid_t user = 0;
    if (!read_number(rest, '+', 10, user) || rest.find('+') == std::string_view::npos) {
        return std::nullopt;
    }
    try {
        DomainNames names(user, rest.substr(0, rest.find('+')));
        // A number can be written in other ways than ours, with zeroes in front say.
        return file.starts_with(names.prefix()) ? std::optional(std::move(names)) : std::nullopt;
    } catch (const std::system_error&) {
        return std::nullopt; // no domain is called so
    }
}

std::string DomainNames::segment(std::uint64_t registry_id, const SegmentKey& key, SegmentKind kind) const {
    char id[17] = {};
    std::to_chars(id, id + 16, registry_id, 16);
    return prefix_ + id + "." + std::to_string(key.slot) + "." + std::to_string(key.incarnation) + "." +
           std::to_string(key.serial) + "." + std::string(suffix_of(kind));
}

std::optional<DomainNames::Parsed> DomainNames::parse(std::string_view name) const {
    if (!name.starts_with(prefix_)) {
        return std::nullopt;
    }
    name.remove_prefix(prefix_.size());
    Parsed parsed{};
    if (!read_number(name, '.', 16, parsed.registry_id) || !read_number(name, '.', 10, parsed.key.slot) ||
        !read_number(name, '.', 10, parsed.key.incarnation) || !read_number(name, '.', 10, parsed.key.serial)) {
        return std::nullopt;
    }
    return parsed;
}

bool Directory::lists(const SegmentKey& key) const noexcept {
    for (unsigned place = 0; place < size(); ++place) {
        const std::uint64_t word = entry(place);
        if (word == 0) {
            return false;
        }
        if (SegmentKey::of(word) == key) {
            return true;
        }
    }
    return false;
}

void Registry::format(std::span<std::byte> memory, std::uint64_t id) {
    WEIR_ASSERT(id != 0, "a registry's id is not 0");
    view(memory, errc::invalid_size)->id = id;
}

Registry::Registry(std::span<std::byte> memory)
    : state_(view(memory, errc::truncated)), id_(state_->id),
      processes_(std::as_writable_bytes(std::span(&state_->processes, 1))) {
    if (id_ == 0) {
        throw_error(errc::corrupt, "registry: id is 0");
    }
}

ProcessInfo Registry::process(std::uint8_t slot) const {
    const MemberRecord& record = state_->records[slot];
    return {record.pid, record.pid_namespace, record.start_time_ticks,
            detail::printable(record.name, sizeof(record.name))};
}

std::vector<std::string> Registry::check() const {
    std::vector<std::string> broken;
    if (state_->id != id_) {
        broken.emplace_back("registry: id has changed since it was opened");
    }
    const auto check_directory = [&broken](const char* name, Directory directory) {
        // From the back: it is filled from the front, so what lies before an entry was there before it.
        bool has_later = false;
        for (unsigned place = directory.size(); place-- > 0;) {
            const std::uint64_t word = directory.entry(place);
            if (word == 0 && has_later) {
                broken.push_back(std::string("registry: ") + name + " entry " + std::to_string(place + 1) +
                                 " lies behind an empty one");
            }
            if (word != 0 && ((word & 1) == 0 || SegmentKey::of(word).serial == 0)) {
                broken.push_back(std::string("registry: ") + name + " entry " + std::to_string(place) +
                                 " is none that is written");
            }
            has_later = word != 0;
        }
    };
    check_directory("pool", pools());
    check_directory("port", ports());
    return broken;
}

} // namespace weir
