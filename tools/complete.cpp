#include "complete.hpp"

#include "domains.hpp"
#include "pipe.hpp"

#include <weir/observer.hpp>

#include <algorithm>
#include <system_error>

#include <unistd.h>

namespace weir::tool {

namespace {

std::vector<const CLI::App*> verbs_of(const CLI::App& weir) {
    return weir.get_subcommands([](const CLI::App* verb) { return !verb->get_group().empty(); });
}

std::vector<std::string> options_of(const CLI::App& app) {
    std::vector<std::string> names;
    for (const CLI::Option* option : app.get_options()) {
        for (const std::string& name : option->get_lnames()) {
            names.push_back("--" + name);
        }
        for (const std::string& name : option->get_snames()) {
            names.push_back("-" + name);
        }
    }
    return names;
}

bool takes_value(const CLI::App& verb, const std::string& word) {
    const CLI::Option* option = word.starts_with('-') ? verb.get_option_no_throw(word) : nullptr;
    return option != nullptr && option->get_items_expected_max() > 0;
}

/// What a verb's argument number `place`, from 0 on, can be.
std::vector<std::string> arguments_of(const CLI::App& verb, std::size_t place) {
    std::vector<const CLI::Option*> positionals =
        verb.get_options([](const CLI::Option* option) { return option->get_positional(); });
    if (positionals.empty()) {
        return {};
    }
    const CLI::Option& option = *positionals[std::min(place, positionals.size() - 1)];
    const bool is_repeated = place >= positionals.size() && option.get_items_expected_max() == 1;
    const std::string kind = option.get_name(true);
    std::vector<std::string> names;
    if (is_repeated || (kind != "DOMAIN" && kind != "PORT")) {
        return names;
    }
    for (const DomainName& domain : list_domains()) {
        if (domain.user != geteuid() || !domain.has_registry) {
            continue;
        }
        if (kind == "DOMAIN") {
            names.push_back(domain.name);
            continue;
        }
        try {
            for (const ObservedPort& port : DomainObserver(domain.name).look(false).ports) {
                names.push_back(domain.name == pipe_domain(port.name) ? port.name : domain.name + "/" + port.name);
            }
        } catch (const std::system_error&) {
            // It went away, or cannot be read: it is not offered.
        }
    }
    return names;
}

std::vector<std::string> all_candidates(const CLI::App& weir, const std::vector<std::string>& words) {
    const std::string& last = words.back();
    if (words.size() == 1) {
        std::vector<std::string> names = last.starts_with('-') ? options_of(weir) : std::vector<std::string>();
        for (const CLI::App* verb : verbs_of(weir)) {
            names.push_back(verb->get_name());
        }
        return names;
    }
    for (const CLI::App* verb : verbs_of(weir)) {
        if (verb->get_name() != words.front()) {
            continue;
        }
        if (last.starts_with('-')) {
            return options_of(*verb);
        }
        if (takes_value(*verb, words[words.size() - 2])) {
            return {};
        }
        std::size_t place = 0;
        for (std::size_t number = 1; number + 1 < words.size(); ++number) {
            if (takes_value(*verb, words[number])) {
                ++number;
            } else if (!words[number].starts_with('-')) {
                ++place;
            }
        }
        return arguments_of(*verb, place);
    }
    return {};
}

} // namespace

std::vector<std::string> candidates(const CLI::App& weir, const std::vector<std::string>& words) {
    if (words.empty()) {
        return {};
    }
    std::vector<std::string> names = all_candidates(weir, words);
    std::erase_if(names, [&words](const std::string& name) { return !name.starts_with(words.back()); });
    std::ranges::sort(names);
    return names;
}

} // namespace weir::tool
