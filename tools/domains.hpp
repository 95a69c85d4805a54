// Which domains a verb is about: the one that is named, or the only one that there is; or any number of them.
#pragma once

#include <weir/observer.hpp>

#include <CLI/CLI.hpp>

#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include <sys/types.h>

namespace weir::tool {

struct DomainArguments {
    std::string name; ///< empty: the user's only domain
    std::string user; ///< a name or a number; empty: this process's user
};

/// DOMAIN and --user.
void add_domain_arguments(CLI::App& app, DomainArguments& given);
void add_user_option(CLI::App& app, std::string& user);

/// The user of that name or number, where there is one.
[[nodiscard]] std::optional<uid_t> find_user(const std::string& given);

/// The user of that name or number; this process's where it is empty.
/// Throws: UsageError.
[[nodiscard]] uid_t user_of(const std::string& given);

/// The user's name, or the number where it has none.
[[nodiscard]] std::string user_name(uid_t user);

/// The domain that is meant; it was there just now.
/// Throws: UsageError (several, and none was named), std::runtime_error (no such domain); they say what there is.
[[nodiscard]] DomainName find_domain(const DomainArguments& given);

/// What is said of a domain that cannot be opened.
[[nodiscard]] std::string describe_trouble(const DomainName& domain, const std::system_error& error);

/// The same, opened.
/// Throws: as find_domain() and DomainObserver.
[[nodiscard]] DomainObserver open_domain(const DomainArguments& given);

/// For who misses a domain of `user`: which domains there are, or what to do where there is none.
[[nodiscard]] std::string describe_domains(uid_t user);

/// For verbs that are about any number of domains: those that were named, or all of the user's.
struct DomainListArguments {
    std::vector<std::string> names;
    std::string user;
    bool all_users = false;
    std::string folder = std::string(shared_memory_folder); ///< or one with copies

    [[nodiscard]] DomainObserver::Options observer_options(uid_t of_user) const { return {of_user, folder}; }
};

/// --from: copies instead of what lies in shared memory.
void add_from_option(CLI::App& app, std::string& folder);

/// The domains that were named, there or not, or all that there are. Where there is none, it says so on stderr.
/// Throws: UsageError (a name that none can have, no such user).
[[nodiscard]] std::vector<DomainName> find_domains(const DomainListArguments& given);

} // namespace weir::tool
