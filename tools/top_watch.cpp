#include "top_watch.hpp"

#include "domains.hpp"
#include "process_state.hpp"

#include <weir/error.hpp>
#include <weir/futex.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <ctime>

namespace weir::top {

namespace {

/// After a look that counts buffers, the next one waits so many times as long as it took.
constexpr std::int64_t counting_pause_factor = 500;
/// From here on it is said.
constexpr std::int64_t noted_pause_ns = 3'000'000'000;

std::int64_t processor_ns() {
    timespec used{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return std::int64_t{used.tv_sec} * 1'000'000'000 + used.tv_nsec;
}

} // namespace

void DomainWatch::open() {
    DomainObserver::Options options;
    options.user = user_;
    observer_.emplace(name_, options);
}

void DomainWatch::look() {
    if (observer_ && !observer_->is_current()) {
        observer_.reset();
        missing_ = "it is gone; waiting for it to come back";
    }
    if (!observer_) {
        now_.reset();
        before_.reset();
        try {
            open();
        } catch (const std::system_error& error) {
            if (error.code() != errc::not_found) {
                missing_ = error.what();
            } else if (missing_.empty()) {
                missing_ = "it is not there; waiting for it";
            }
            return;
        }
    }
    const bool counts_buffers = !now_ || monotonic_ns() >= counting_due_ns_;
    const std::int64_t start_ns = processor_ns();
    DomainSnapshot seen = observer_->look(counts_buffers);
    if (!counts_buffers) {
        count_as_before(seen);
    } else if (now_) {
        // The first look is no measure: it opens and maps everything.
        counting_pause_ns_ = counting_pause_factor * (processor_ns() - start_ns);
        counting_due_ns_ = seen.taken_ns + counting_pause_ns_;
    }
    if (counting_pause_ns_ >= noted_pause_ns) {
        seen.notes.push_back(fmt::format("there are so many buffers that they are counted every {:.0f} s",
                                         static_cast<double>(counting_pause_ns_) / 1e9));
    }
    before_ = std::exchange(now_, std::move(seen));
}

void DomainWatch::count_as_before(DomainSnapshot& now) const {
    for (ObservedPool& pool : now.pools) {
        const auto known = std::ranges::find(now_->pools, pool.name, &ObservedPool::name);
        if (known != now_->pools.end()) {
            pool.free_count = known->free_count;
            pool.held_count = known->held_count;
            pool.queued_count = known->queued_count;
            pool.holders = known->holders;
        }
    }
}

void DomainWatch::add_to(Model& model) const {
    if (!now_) {
        add_missing_domain(model, name_, missing_);
        return;
    }
    const std::size_t first = model.processes.size();
    add_domain(model, *now_, before_ ? &*before_ : nullptr);
    for (std::size_t number = first; number < model.processes.size(); ++number) {
        ProcessRow& row = model.processes[number];
        if (row.member_life == MemberLife::alive && tool::is_stopped(row.process)) {
            row.life = {"stopped", Concern::warning};
        }
    }
}

Watch::Watch(std::string domain, uid_t user) : domain_(std::move(domain)), user_(user) {
    if (!domain_.empty()) {
        domains_.emplace_back(domain_, user_);
    }
}

void Watch::open(bool waits) {
    if (domain_.empty()) {
        find_domains();
        if (!waits && domains_.empty()) {
            throw std::runtime_error(fmt::format("there is no domain of user {}: {}", tool::user_name(user_),
                                                 tool::describe_domains(user_)));
        }
        return;
    }
    try {
        domains_.front().open();
    } catch (const std::system_error& error) {
        if (!waits || error.code() != errc::not_found) {
            throw std::runtime_error(tool::describe_trouble({user_, domain_, true}, error));
        }
    }
}

void Watch::find_domains() {
    std::vector<DomainName> found = list_domains();
    std::erase_if(found, [this](const DomainName& one) { return one.user != user_ || !one.has_registry; });
    std::erase_if(domains_, [&found](const DomainWatch& known) {
        return std::ranges::find(found, known.name(), &DomainName::name) == found.end();
    });
    for (DomainName& one : found) {
        if (std::ranges::find(domains_, one.name, &DomainWatch::name) == domains_.end()) {
            domains_.emplace_back(std::move(one.name), user_);
        }
    }
}

void Watch::look() {
    if (domain_.empty()) {
        find_domains();
    }
    for (DomainWatch& domain : domains_) {
        domain.look();
    }
}

bool Watch::is_there() const {
    return !domains_.empty() && (domain_.empty() || domains_.front().is_there());
}

Model Watch::model() const {
    Model model;
    for (const DomainWatch& domain : domains_) {
        domain.add_to(model);
    }
    if (domains_.empty()) {
        model.notes.push_back(fmt::format("there is no domain of user {}; waiting for one", tool::user_name(user_)));
    }
    return model;
}

} // namespace weir::top
