#include "demo_plan.hpp"

#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <numeric>
#include <set>
#include <stdexcept>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <fcntl.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir::demo {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t library_bytes_max = std::uint64_t{300} << 20;
constexpr std::size_t library_file_count_max = 12;

/// Without opening it: only producers open the files.
bool is_readable(const fs::path& path) {
    return faccessat(AT_FDCWD, path.c_str(), R_OK, AT_EACCESS) == 0;
}

PlannedFile named_file(const std::string& name) {
    struct stat status {};
    if (stat(name.c_str(), &status) != 0) {
        throw UsageError(fmt::format("{}: {}", tool::printable(name), std::strerror(errno)));
    }
    if (S_ISDIR(status.st_mode)) {
        throw UsageError(fmt::format("{} is a directory; name files, for example {}/*", tool::printable(name),
                                     tool::printable(name.substr(0, name.find_last_not_of('/') + 1))));
    }
    if (!S_ISREG(status.st_mode)) {
        throw UsageError(
            fmt::format("{} is not a regular file; the demo reads files from disk", tool::printable(name)));
    }
    if (!is_readable(name)) {
        throw UsageError(fmt::format("{} cannot be read: {}", tool::printable(name), std::strerror(errno)));
    }
    const auto size_bytes = static_cast<std::uint64_t>(status.st_size);
    return {.path = name,
            .label = tool::printable(name),
            .copy_name = fs::path(name).filename().string(),
            .bytes = size_bytes,
            .size_bytes = size_bytes};
}

/// The folder that the C library was loaded from.
fs::path library_folder() {
    std::string library = "/usr/lib/libc.so";
    dl_iterate_phdr(
        [](dl_phdr_info* loaded, std::size_t, void* found) {
            const std::string name = fs::path(loaded->dlpi_name).filename();
            const bool is_it = name.starts_with("libc.") || name.starts_with("ld-musl");
            if (is_it) {
                *static_cast<std::string*>(found) = loaded->dlpi_name;
            }
            return is_it ? 1 : 0;
        },
        &library);
    std::error_code error;
    const fs::path folder = fs::canonical(fs::path(library).parent_path(), error);
    return error ? "/usr/lib" : folder;
}

/// Adds the files of a folder, not through symbolic links, and each file once.
template <class Iterator>
void find_files(const fs::path& folder, std::vector<PlannedFile>& found) {
    std::set<std::pair<dev_t, ino_t>> seen;
    std::error_code error;
    Iterator entries(folder, fs::directory_options::skip_permission_denied, error);
    for (; !error && entries != Iterator(); entries.increment(error)) {
        struct stat status {};
        if (lstat(entries->path().c_str(), &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0 &&
            seen.emplace(status.st_dev, status.st_ino).second) {
            const auto size_bytes = static_cast<std::uint64_t>(status.st_size);
            found.push_back({.path = entries->path(),
                             .label = tool::printable(entries->path().filename().native()),
                             .copy_name = entries->path().filename().string(),
                             .bytes = size_bytes,
                             .size_bytes = size_bytes});
        }
    }
}

/// The largest of the files that fit into `bytes_max` together; no small ones to fill it up.
std::vector<PlannedFile> choose(std::vector<PlannedFile> found, std::uint64_t bytes_max) {
    std::ranges::sort(found, [](const PlannedFile& left, const PlannedFile& right) {
        return left.bytes != right.bytes ? left.bytes > right.bytes : left.path < right.path;
    });
    std::vector<PlannedFile> files;
    std::uint64_t rest_bytes = bytes_max;
    for (PlannedFile& file : found) {
        if (files.size() == library_file_count_max || (!files.empty() && file.bytes < bytes_max / 64)) {
            break;
        }
        if (file.bytes <= rest_bytes && is_readable(file.path)) {
            rest_bytes -= file.bytes;
            files.push_back(std::move(file));
        }
    }
    return files;
}

std::uint64_t total_bytes(const std::vector<PlannedFile>& files) {
    return std::accumulate(files.begin(), files.end(), std::uint64_t{0},
                           [](std::uint64_t sum, const PlannedFile& file) { return sum + file.bytes; });
}

std::vector<PlannedFile> library_files(std::uint64_t bytes_max) {
    std::vector<PlannedFile> found;
    find_files<fs::directory_iterator>(library_folder(), found);
    std::vector<PlannedFile> files = choose(found, bytes_max);
    // A small system has little in that folder itself. Elsewhere, looking through all of it would take its time.
    if (total_bytes(files) < bytes_max / 2) {
        found.clear();
        find_files<fs::recursive_directory_iterator>("/usr/lib", found);
        std::vector<PlannedFile> more = choose(std::move(found), bytes_max);
        if (total_bytes(more) > total_bytes(files)) {
            files = std::move(more);
        }
    }
    return files;
}

/// Takes files beyond the limit away, and cuts the last one where the limit lies in it.
void limit(Plan& plan, std::uint64_t bytes_max) {
    std::vector<PlannedFile> kept;
    for (PlannedFile& file : plan.files) {
        if (bytes_max == 0 && file.bytes > 0) {
            ++plan.left_out_count;
            continue;
        }
        file.bytes = std::min(file.bytes, bytes_max);
        bytes_max -= file.bytes;
        kept.push_back(std::move(file));
    }
    plan.files = std::move(kept);
}

void name_copies(std::vector<PlannedFile>& files) {
    std::unordered_set<std::string> taken;
    for (const PlannedFile& file : files) {
        taken.insert(file.copy_name);
    }
    std::unordered_map<std::string, unsigned> copy_counts;
    for (PlannedFile& file : files) {
        const std::string base = file.copy_name;
        unsigned& count = copy_counts[base];
        if (++count > 1) {
            do {
                file.copy_name = fmt::format("{}.{}", base, count);
            } while (!taken.insert(file.copy_name).second && ++count > 0);
        }
    }
}

std::uint64_t chunk_count(std::uint64_t bytes, std::uint64_t chunk_bytes) {
    return bytes == 0 ? 1 : (bytes + chunk_bytes - 1) / chunk_bytes;
}

/// Cuts files into parts, where there are fewer files than producers.
void cut(Plan& plan) {
    std::uint64_t part_count = plan.files.size();
    /// How many chunks the largest part of a file has.
    const auto part_chunks = [&plan](const PlannedFile& file) {
        return (chunk_count(file.bytes, plan.chunk_bytes) + file.part_count - 1) / file.part_count;
    };
    while (part_count < producer_count) {
        const auto largest = std::ranges::max_element(plan.files, {}, part_chunks);
        if (part_chunks(*largest) < 2) {
            break;
        }
        ++largest->part_count;
        ++part_count;
    }
    for (std::uint32_t number = 0; number < plan.files.size(); ++number) {
        PlannedFile& file = plan.files[number];
        file.first_part = static_cast<std::uint32_t>(plan.parts.size());
        const std::uint64_t chunks = chunk_count(file.bytes, plan.chunk_bytes);
        for (std::uint64_t place = 0; place < file.part_count; ++place) {
            const std::uint64_t first_chunk = chunks * place / file.part_count;
            const std::uint64_t end_chunk = chunks * (place + 1) / file.part_count;
            const std::uint64_t first_byte = first_chunk * plan.chunk_bytes;
            plan.parts.push_back({.file = number,
                                  .first_byte = first_byte,
                                  .bytes = std::min(file.bytes, end_chunk * plan.chunk_bytes) - first_byte,
                                  .chunk_count = end_chunk - first_chunk});
        }
    }
}

/// Gives each part, the largest first, to the producer that has least to do.
void distribute(Plan& plan) {
    std::vector<Part*> largest_first;
    std::ranges::transform(plan.parts, std::back_inserter(largest_first), [](Part& part) { return &part; });
    std::ranges::stable_sort(largest_first, std::ranges::greater(), &Part::chunk_count);
    std::array<std::uint64_t, producer_count> loads{};
    for (Part* part : largest_first) {
        const auto least = std::ranges::min_element(loads);
        part->producer = static_cast<std::uint32_t>(least - loads.begin());
        *least += part->chunk_count;
    }
    std::array<std::uint64_t, producer_count> sequences{};
    for (Part& part : plan.parts) {
        part.first_message = plan.message_count;
        part.first_sequence = sequences[part.producer];
        plan.message_count += part.chunk_count;
        sequences[part.producer] += part.chunk_count;
        plan.bytes += part.bytes;
    }
}

class Packer {
public:
    void number(const std::uint64_t& value) { text_.append(reinterpret_cast<const char*>(&value), sizeof(value)); }
    void number(const std::uint32_t& value) { number(std::uint64_t{value}); }
    void text(const std::string& value) {
        number(std::uint64_t{value.size()});
        text_ += value;
    }
    template <class Item>
    std::size_t count(const std::vector<Item>& items) {
        number(std::uint64_t{items.size()});
        return items.size();
    }
    [[nodiscard]] std::string take() { return std::move(text_); }

private:
    std::string text_;
};

class Unpacker {
public:
    explicit Unpacker(std::string_view text) : rest_(text) {}
    void number(std::uint64_t& value) { std::memcpy(&value, bytes(sizeof(value)).data(), sizeof(value)); }
    void number(std::uint32_t& value) {
        std::uint64_t wide = 0;
        number(wide);
        value = static_cast<std::uint32_t>(wide);
    }
    void text(std::string& value) {
        std::uint64_t size = 0;
        number(size);
        value = bytes(size);
    }
    template <class Item>
    std::size_t count(std::vector<Item>& items) {
        std::uint64_t size = 0;
        number(size);
        if (size > rest_.size()) {
            throw std::runtime_error("the plan is damaged");
        }
        items.resize(size);
        return size;
    }

private:
    std::string_view bytes(std::uint64_t count) {
        if (count > rest_.size()) {
            throw std::runtime_error("the plan is damaged");
        }
        const std::string_view taken = rest_.substr(0, count);
        rest_.remove_prefix(count);
        return taken;
    }

    std::string_view rest_;
};

/// All of a plan, in one order for both ways.
template <class Carrier, class AnyPlan>
void carry(Carrier& carrier, AnyPlan& plan) {
    for (std::size_t place = 0, end = carrier.count(plan.files); place < end; ++place) {
        auto& file = plan.files[place];
        std::string path = file.path.native();
        carrier.text(path);
        if constexpr (!std::is_const_v<AnyPlan>) {
            file.path = path;
        }
        carrier.text(file.label);
        carrier.text(file.copy_name);
        carrier.number(file.bytes);
        carrier.number(file.size_bytes);
        carrier.number(file.first_part);
        carrier.number(file.part_count);
    }
    for (std::size_t place = 0, end = carrier.count(plan.parts); place < end; ++place) {
        auto& part = plan.parts[place];
        carrier.number(part.file);
        carrier.number(part.producer);
        carrier.number(part.first_byte);
        carrier.number(part.bytes);
        carrier.number(part.chunk_count);
        carrier.number(part.first_message);
        carrier.number(part.first_sequence);
    }
    carrier.number(plan.chunk_bytes);
    carrier.number(plan.bytes);
    carrier.number(plan.message_count);
    carrier.number(plan.left_out_count);
}

} // namespace

std::string pack(const Plan& plan) {
    Packer packer;
    carry(packer, plan);
    return packer.take();
}

Plan unpack(std::string_view text) {
    Unpacker unpacker(text);
    Plan plan;
    carry(unpacker, plan);
    return plan;
}

const Part& Plan::part_of(std::uint64_t message) const noexcept {
    return *std::prev(std::ranges::upper_bound(parts, message, {}, &Part::first_message));
}

std::uint64_t Plan::message_count_of(std::uint32_t producer) const noexcept {
    std::uint64_t count = 0;
    for (const Part& part : parts) {
        count += part.producer == producer ? part.chunk_count : 0;
    }
    return count;
}

Plan make_plan(const std::vector<std::string>& named, std::optional<std::uint64_t> bytes_max,
               std::uint64_t chunk_bytes) {
    Plan plan;
    plan.chunk_bytes = chunk_bytes;
    if (named.empty()) {
        plan.files = library_files(bytes_max.value_or(library_bytes_max));
        if (plan.files.empty()) {
            throw UsageError("found no files to stream in the system's library folder; name some: weir demo FILE...");
        }
    } else {
        std::ranges::transform(named, std::back_inserter(plan.files), named_file);
        if (bytes_max) {
            limit(plan, *bytes_max);
        }
    }
    name_copies(plan.files);
    cut(plan);
    distribute(plan);
    return plan;
}

} // namespace weir::demo
