#include "logind.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string_view>
#include <system_error>

namespace weir::tool {

namespace {

namespace fs = std::filesystem;

// The first that has a file of some name hides the others' of that name.
constexpr std::array folders{"etc", "run", "usr/local/lib", "usr/lib", "lib"};

std::string trimmed(std::string_view text) {
    constexpr std::string_view blanks = " \t\r";
    const std::size_t first = text.find_first_not_of(blanks);
    return first == std::string_view::npos ? std::string()
                                           : std::string(text.substr(first, text.find_last_not_of(blanks) - first + 1));
}

std::optional<bool> parsed_boolean(std::string text) {
    std::ranges::transform(text, text.begin(),
                           [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    for (const char* yes : {"1", "yes", "y", "true", "t", "on"}) {
        if (text == yes) {
            return true;
        }
    }
    for (const char* no : {"0", "no", "n", "false", "f", "off"}) {
        if (text == no) {
            return false;
        }
    }
    return {};
}

/// The last that one file says; nothing, where it says nothing that counts.
std::optional<bool> remove_ipc_of(const fs::path& path) {
    std::ifstream file(path);
    std::optional<bool> found;
    bool is_login = false;
    for (std::string line; std::getline(file, line);) {
        line = trimmed(line);
        if (line.starts_with('[')) {
            is_login = line == "[Login]";
        }
        const std::size_t equals = line.find('=');
        if (is_login && equals != std::string::npos &&
            trimmed(std::string_view(line).substr(0, equals)) == "RemoveIPC") {
            const std::optional<bool> value = parsed_boolean(trimmed(std::string_view(line).substr(equals + 1)));
            found = value ? value : found;
        }
    }
    return found;
}

/// The largest id of a system user, whom logind spares.
uid_t system_user_max(const fs::path& root) {
    uid_t largest = 999;
    std::ifstream file(root / "etc/login.defs");
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string name;
        uid_t number = 0;
        if (words >> name >> number && name == "SYS_UID_MAX") {
            largest = number;
        }
    }
    return largest;
}

bool is_there(const fs::path& path) {
    std::error_code error;
    return fs::exists(path, error);
}

} // namespace

RemoveIpc read_remove_ipc(const fs::path& root) {
    RemoveIpc result;
    const auto take = [&](const fs::path& path) {
        if (const std::optional<bool> said = remove_ipc_of(path)) {
            result = {*said, fmt::format("/{}", path.lexically_relative(root).string())};
        }
    };
    for (const char* folder : folders) {
        const fs::path path = root / folder / "systemd/logind.conf";
        if (is_there(path)) {
            take(path);
            break;
        }
    }
    std::map<std::string, fs::path> additions; // by name, whichever folder they lie in; each goes before the last
    for (const char* folder : folders) {
        std::error_code error;
        for (const fs::directory_entry& entry :
             fs::directory_iterator(root / folder / "systemd/logind.conf.d", error)) {
            if (entry.path().extension() == ".conf") {
                additions.emplace(entry.path().filename().string(), entry.path());
            }
        }
    }
    for (const auto& [name, path] : additions) {
        take(path);
    }
    return result;
}

Finding judge_remove_ipc(const fs::path& root, uid_t user, const std::string& user_name) {
    const auto fine = [](std::string what) { return Finding{Level::fine, "remove_ipc", std::move(what)}; };
    if (!is_there(root / "run/systemd/seats")) {
        return fine("no systemd-logind runs here, which could remove shared memory at a logout");
    }
    const RemoveIpc setting = read_remove_ipc(root);
    if (!setting.is_on) {
        return fine("systemd-logind keeps shared memory at a logout (RemoveIPC=no in " + setting.source + ")");
    }
    if (user <= system_user_max(root)) {
        return fine(
            fmt::format("systemd-logind keeps the shared memory of {} at a logout: it is a system user", user_name));
    }
    if (is_there(root / "var/lib/systemd/linger" / user_name)) {
        return fine(
            fmt::format("systemd-logind keeps the shared memory of {} at a logout: that user lingers", user_name));
    }
    return {Level::warning, "remove_ipc",
            fmt::format("systemd-logind removes all shared memory of {} at the user's last logout (RemoveIPC=yes{})",
                        user_name, setting.source.empty() ? ", its default" : " in " + setting.source),
            fmt::format("as root: loginctl enable-linger {}; or put [Login] RemoveIPC=no into "
                        "/etc/systemd/logind.conf.d/weir.conf and restart systemd-logind",
                        user_name)};
}

} // namespace weir::tool
