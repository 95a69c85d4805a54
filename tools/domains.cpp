#include "domains.hpp"

#include "usage_error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <vector>

#include <pwd.h>
#include <unistd.h>

namespace weir::tool {

namespace {

/// Those that can be opened: a lock file alone is no domain.
std::vector<DomainName> all_domains(const std::string& folder = std::string(shared_memory_folder)) {
    std::vector<DomainName> domains = list_domains(folder);
    std::erase_if(domains, [](const DomainName& domain) { return !domain.has_registry; });
    return domains;
}

std::vector<std::string> names_of(const std::vector<DomainName>& domains, uid_t user) {
    std::vector<std::string> names;
    for (const DomainName& domain : domains) {
        if (domain.user == user) {
            names.push_back(domain.name);
        }
    }
    return names;
}

void check_domain_name(const std::string& name) {
    try {
        check_name("domain", name);
    } catch (const std::system_error& error) {
        throw UsageError(error.what());
    }
}

/// The first of them, and how many more there are.
std::string joined(const std::vector<std::string>& names) {
    constexpr std::size_t shown_max = 10;
    std::string text;
    for (std::size_t place = 0; place < std::min(names.size(), shown_max); ++place) {
        text += (place == 0 ? "" : ", ") + names[place];
    }
    return names.size() > shown_max ? fmt::format("{} and {} more", text, names.size() - shown_max) : text;
}

} // namespace

void add_user_option(CLI::App& app, std::string& user) {
    app.add_option("--user", user, "Whose, by name or number; yours unless given")->type_name("USER");
}

void add_domain_arguments(CLI::App& app, DomainArguments& given) {
    app.add_option("DOMAIN", given.name, "Which one; not needed where there is only one")->type_name("");
    add_user_option(app, given.user);
}

std::optional<uid_t> find_user(const std::string& given) {
    if (const passwd* entry = getpwnam(given.c_str())) {
        return entry->pw_uid;
    }
    uid_t number = 0;
    const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), number);
    return error == std::errc() && end == given.data() + given.size() ? std::optional(number) : std::nullopt;
}

uid_t user_of(const std::string& given) {
    if (given.empty()) {
        return geteuid();
    }
    const std::optional<uid_t> user = find_user(given);
    if (!user) {
        throw UsageError(fmt::format("--user {}: there is no such user; give a name or a number", given));
    }
    return *user;
}

std::string user_name(uid_t user) {
    const passwd* entry = getpwuid(user);
    return entry != nullptr ? entry->pw_name : std::to_string(user);
}

std::string describe_domains(uid_t user) {
    const std::vector<DomainName> domains = all_domains();
    const std::vector<std::string> names = names_of(domains, user);
    if (!names.empty()) {
        return fmt::format("there {} {}", names.size() == 1 ? "is" : "are", joined(names));
    }
    if (domains.empty()) {
        return "there is none at all; a program makes one when it joins it";
    }
    std::vector<std::string> others;
    others.reserve(domains.size());
    for (const DomainName& domain : domains) {
        others.push_back(fmt::format("{} (--user {})", domain.name, user_name(domain.user)));
    }
    return fmt::format("others have {}", joined(others));
}

DomainName find_domain(const DomainArguments& given) {
    const uid_t user = user_of(given.user);
    const std::vector<std::string> names = names_of(all_domains(), user);
    if (given.name.empty()) {
        if (names.size() > 1) {
            throw UsageError(fmt::format("which domain? Name one: {}", describe_domains(user)));
        }
        if (names.empty()) {
            throw std::runtime_error(
                fmt::format("there is no domain of user {}: {}", user_name(user), describe_domains(user)));
        }
        return {user, names.front(), true};
    }
    check_domain_name(given.name);
    if (std::ranges::find(names, given.name) == names.end()) {
        throw std::runtime_error(
            fmt::format("there is no domain {} of user {}: {}", given.name, user_name(user), describe_domains(user)));
    }
    return {user, given.name, true};
}

std::string describe_trouble(const DomainName& domain, const std::system_error& error) {
    if (error.code() == errc::not_found) {
        return fmt::format("there is no domain {} of user {}: {}", domain.name, user_name(domain.user),
                           describe_domains(domain.user));
    }
    // what() ends in what the code means, which the text before it says better.
    std::string text = error.what();
    const std::string meaning = ": " + error.code().message();
    if (text.ends_with(meaning) && text.size() > meaning.size()) {
        text.resize(text.size() - meaning.size());
    }
    return fmt::format("{}: {}", domain.name, text);
}

void add_from_option(CLI::App& app, std::string& folder) {
    app.add_option("--from", folder, "Copies of their files, in this folder")
        ->type_name("DIR")
        ->check(CLI::ExistingDirectory.description(""));
}

std::vector<DomainName> find_domains(const DomainListArguments& given) {
    const uid_t user = user_of(given.user);
    std::vector<DomainName> found;
    for (const std::string& name : given.names) {
        check_domain_name(name);
        found.push_back({user, name, true});
    }
    if (!found.empty()) {
        return found;
    }
    found = all_domains(given.folder);
    if (!given.all_users) {
        std::erase_if(found, [user](const DomainName& domain) { return domain.user != user; });
    }
    if (found.empty()) {
        const bool is_copy = given.folder != shared_memory_folder;
        fmt::print(stderr, "weir: there is no domain of user {}: {}\n", user_name(user),
                   is_copy ? given.folder + " has copies of none" : describe_domains(user));
    }
    return found;
}

DomainObserver open_domain(const DomainArguments& given) {
    const DomainName domain = find_domain(given);
    DomainObserver::Options options;
    options.user = domain.user;
    return DomainObserver(domain.name, options);
}

} // namespace weir::tool
