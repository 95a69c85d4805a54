// The looks that weir top takes at a user's domains, or at one of them: those that come are found, those that go are
// waited for.
//
// A look costs the watched nothing but the cache lines that are read; and those that read much, which is the words of
// pools with very many buffers, happen as rarely as it takes to stay below a five-hundredth of a processor.
#pragma once

#include "top_model.hpp"

#include <weir/observer.hpp>

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <string_view>

#include <sys/types.h>

namespace weir::top {

/// The last two looks at a domain.
class DomainWatch {
public:
    DomainWatch(std::string name, uid_t user) : name_(std::move(name)), user_(user) {}

    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    [[nodiscard]] bool is_there() const noexcept { return observer_.has_value(); }

    /// Throws: as DomainObserver's constructor.
    void open();
    void look();
    void add_to(Model& model) const;

private:
    void count_as_before(DomainSnapshot& now) const;

    std::string name_;
    uid_t user_;
    std::optional<DomainObserver> observer_;
    std::optional<DomainSnapshot> now_;
    std::optional<DomainSnapshot> before_;
    std::string missing_; ///< why it is not there
    std::int64_t counting_due_ns_ = 0;
    std::int64_t counting_pause_ns_ = 0;
};

class Watch {
public:
    /// Of one domain, or with an empty name of all that the user has.
    Watch(std::string domain, uid_t user);

    /// Throws: std::runtime_error, which says what there is. Where `waits`, there need not be anything to look at yet.
    void open(bool waits);
    void look();
    /// Whether what was asked for is there.
    [[nodiscard]] bool is_there() const;
    [[nodiscard]] Model model() const;

private:
    void find_domains();

    std::string domain_;
    uid_t user_;
    std::list<DomainWatch> domains_;
};

} // namespace weir::top
