// What the pipelines' programs are told on the command line: some words, and options, each with a value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

class Arguments {
public:
    /// `usage` names everything that there is: "FILE [--domain NAME]".
    Arguments(int count, char** values, const std::string& usage, std::size_t word_count) {
        const std::string wanted = "usage: " + std::string(values[0]) + " " + usage;
        for (int place = 1; place < count; ++place) {
            const std::string value = values[place];
            if (!value.starts_with("--")) {
                words_.push_back(value);
            } else if (usage.find("[" + value + " ") == std::string::npos || place + 1 == count) {
                throw std::invalid_argument(wanted);
            } else {
                options_[value] = values[++place];
            }
        }
        if (words_.size() != word_count) {
            throw std::invalid_argument(wanted);
        }
    }

    [[nodiscard]] const std::string& word(std::size_t place) const { return words_.at(place); }

    [[nodiscard]] std::string text(const std::string& option, const std::string& otherwise) const {
        const auto found = options_.find(option);
        return found == options_.end() ? otherwise : found->second;
    }

    [[nodiscard]] std::uint64_t number(const std::string& option, std::uint64_t otherwise, std::uint64_t max) const {
        const auto found = options_.find(option);
        if (found == options_.end()) {
            return otherwise;
        }
        const char* const begin = found->second.c_str();
        char* end = nullptr;
        const std::uint64_t result = std::strtoull(begin, &end, 10);
        if (*begin < '0' || *begin > '9' || *end != '\0' || result > max) {
            throw std::invalid_argument(option + " wants a number from 0 to " + std::to_string(max));
        }
        return result;
    }

private:
    std::vector<std::string> words_;
    std::map<std::string, std::string> options_;
};
