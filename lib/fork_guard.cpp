#include <weir/fork_guard.hpp>

#include <cerrno>
#include <system_error>

#include <sys/mman.h>

namespace weir {

namespace {

constexpr std::size_t page_bytes = 4096; // at least; the kernel maps whole pages

constinit std::atomic<std::uint64_t*> process_word{nullptr};
/// A child inherits it, and counts on from there.
constinit std::atomic<std::uint64_t> last_value{0};

/// The word of this process's page. It stays for as long as the process: handles may outlive everything else.
std::uint64_t& find_or_map_word() {
    // (1) acquire: the page is one that forks wipe before anyone writes to it; pairs with (2)
    std::uint64_t* word = process_word.load(std::memory_order_acquire);
    if (word != nullptr) {
        return *word;
    }
    void* page = mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        throw std::system_error(errno, std::system_category(), "a page for the fork guard");
    }
    if (madvise(page, page_bytes, MADV_WIPEONFORK) != 0) {
        const int error = errno;
        munmap(page, page_bytes);
        throw std::system_error(error, std::system_category(),
                                "the fork guard needs MADV_WIPEONFORK (Linux 4.14 or newer)");
    }
    // (2) acq_rel, on failure acquire: as (1); pairs with (1)
    if (!process_word.compare_exchange_strong(word, static_cast<std::uint64_t*>(page), std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
        munmap(page, page_bytes);
        return *word;
    }
    return *static_cast<std::uint64_t*>(page);
}

} // namespace

ForkStamp ForkStamp::capture() {
    std::uint64_t& word = find_or_map_word();
    // relaxed: only the number itself counts, of which each is given once
    std::uint64_t value = shared(word).load(std::memory_order_relaxed);
    if (value == no_process) {
        // The number is taken before the word gets it: a child that is forked in between takes a later one.
        // relaxed: as above
        const std::uint64_t next = last_value.fetch_add(1, std::memory_order_relaxed) + 1;
        // relaxed: as above; where another thread was faster, its number is ours too
        if (shared(word).compare_exchange_strong(value, next, std::memory_order_relaxed)) {
            value = next;
        }
    }
    return {&word, value};
}

} // namespace weir
