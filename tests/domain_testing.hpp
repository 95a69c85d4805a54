// What the tests of domains share: names that are gone afterwards, and processes that get ready and are killed.
#pragma once

#include "testing.hpp"

#include <weir/domain.hpp>

namespace test {

/// A domain name of this test process's own, whose files are gone at the end.
class Name {
public:
    Name() : name_("test." + std::to_string(getpid()) + "." + std::to_string(++count_)) {}
    Name(const Name&) = delete;
    Name& operator=(const Name&) = delete;
    ~Name() {
        weir::Domain::RemoveOptions options;
        options.force = true;
        options.lock_file = true;
        weir::Domain::remove(name_, options);
    }
    operator std::string_view() const noexcept { return name_; } // NOLINT: it is the name
    [[nodiscard]] const std::string& text() const noexcept { return name_; }
    /// What is in /dev/shm of this domain, but for the lock file.
    [[nodiscard]] std::vector<std::string> files() const {
        const weir::DomainNames names(geteuid(), name_);
        std::vector<std::string> files = weir::list_segments(names.prefix());
        std::erase(files, names.lock());
        return files;
    }

private:
    static inline int count_ = 0;
    std::string name_;
};

inline constexpr weir::PoolOptions small_pool{.buffer_bytes = 64, .buffer_count = 16};
inline constexpr weir::PortOptions small_port{.capacity = 8};

inline weir::JoinOptions quick() {
    weir::JoinOptions options;
    options.recheck_interval_ns = 1'000'000;
    return options;
}

inline std::string text_of(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) {
        text += line + "\n";
    }
    return text;
}

inline std::string check(weir::Domain& domain, weir::DomainCensus* census = nullptr) {
    return text_of(domain.check(census));
}

/// A process that says when it is ready, and then waits to be killed.
class Victim {
public:
    template <class Body>
    explicit Victim(Body&& body) {
        int ends[2];
        if (pipe(ends) != 0) {
            throw std::system_error(errno, std::system_category(), "pipe");
        }
        child_.emplace([&] {
            close(ends[0]);
            body([&] {
                if (write(ends[1], "r", 1) != 1) {
                    _exit(3);
                }
                for (;;) {
                    pause();
                }
            });
        });
        close(ends[1]);
        char ready = 0;
        const bool is_ready = read(ends[0], &ready, 1) == 1;
        close(ends[0]);
        if (!is_ready) {
            throw std::runtime_error("the child did not get ready: " + child_->wait().said);
        }
    }

    [[nodiscard]] pid_t pid() const { return child_->pid(); }
    void kill() {
        ::kill(child_->pid(), SIGKILL);
        static_cast<void>(child_->wait());
    }

private:
    std::optional<Child> child_;
};

} // namespace test
