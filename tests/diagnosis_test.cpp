// What `weir doctor` makes of machines that are made up.
#include "../tools/diagnosis.hpp"
#include "../tools/lock_holders.hpp"
#include "../tools/logind.hpp"

#include "catch.hpp"

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include <unistd.h>

using namespace weir::tool;

namespace {

namespace fs = std::filesystem;

/// A root folder with the files that one puts there.
class Root {
public:
    Root() {
        std::string name = fs::temp_directory_path() / "weir-root-XXXXXX";
        REQUIRE(mkdtemp(name.data()) != nullptr);
        path_ = name;
    }
    Root(const Root&) = delete;
    Root& operator=(const Root&) = delete;
    ~Root() { fs::remove_all(path_); }

    void put(const fs::path& name, const std::string& content) const {
        fs::create_directories((path_ / name).parent_path());
        std::ofstream(path_ / name) << content;
    }
    [[nodiscard]] const fs::path& path() const { return path_; }

private:
    fs::path path_;
};

constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20;

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

void check_to_do(const Finding& finding) {
    INFO(finding.what);
    CHECK_FALSE(finding.check.empty());
    CHECK_FALSE(finding.what.empty());
    CHECK(finding.to_do.empty() == (finding.level == Level::fine));
}

} // namespace

// ---- logind ------------------------------------------------------------------------------------------------

TEST_CASE("logind removes shared memory unless its configuration says otherwise") {
    const Root root;
    CHECK(read_remove_ipc(root.path()).is_on);
    CHECK(read_remove_ipc(root.path()).source.empty());
    root.put("usr/lib/systemd/logind.conf", "[Login]\nRemoveIPC=no\n");
    CHECK_FALSE(read_remove_ipc(root.path()).is_on);
    CHECK(read_remove_ipc(root.path()).source == "/usr/lib/systemd/logind.conf");
    root.put("etc/systemd/logind.conf", "# RemoveIPC=no\n[Login]\n#RemoveIPC=no\nKillUserProcesses=no\n");
    CHECK(read_remove_ipc(root.path()).is_on); // the one in /etc hides the other
}

TEST_CASE("what is added to logind's configuration goes before it, by name and not by folder") {
    const Root root;
    root.put("etc/systemd/logind.conf", "[Login]\nRemoveIPC=yes\n");
    root.put("usr/lib/systemd/logind.conf.d/20-site.conf", "[Login]\n  RemoveIPC = off  \n");
    CHECK_FALSE(read_remove_ipc(root.path()).is_on);
    CHECK(read_remove_ipc(root.path()).source == "/usr/lib/systemd/logind.conf.d/20-site.conf");
    root.put("run/systemd/logind.conf.d/30-later.conf", "[Login]\nRemoveIPC=TRUE\n");
    CHECK(read_remove_ipc(root.path()).is_on);
    root.put("etc/systemd/logind.conf.d/30-later.conf", ""); // hides the one of this name
    CHECK_FALSE(read_remove_ipc(root.path()).is_on);
    root.put("etc/systemd/logind.conf.d/40-other", "[Login]\nRemoveIPC=1\n"); // no .conf
    CHECK_FALSE(read_remove_ipc(root.path()).is_on);
}

TEST_CASE("of logind's configuration only its own section and what it understands counts") {
    const Root root;
    root.put("etc/systemd/logind.conf", "RemoveIPC=no\n[Other]\nRemoveIPC=no\n");
    CHECK(read_remove_ipc(root.path()).is_on);
    root.put("etc/systemd/logind.conf",
             "[Login]\nRemoveIPC=no\nRemoveIPC=perhaps\nRemoveIPC=\n[Other]\nRemoveIPC=yes\n");
    CHECK_FALSE(read_remove_ipc(root.path()).is_on);
}

TEST_CASE("who is a system user, lingers, or has no logind keeps shared memory") {
    const Root root;
    CHECK(judge_remove_ipc(root.path(), 1000, "ada").level == Level::fine); // no logind
    root.put("run/systemd/seats/seat0", "");
    const Finding bad = judge_remove_ipc(root.path(), 1000, "ada");
    CHECK(bad.level == Level::warning);
    CHECK(has(bad.what, "ada"));
    CHECK(has(bad.to_do, "enable-linger ada"));
    check_to_do(bad);
    CHECK(judge_remove_ipc(root.path(), 0, "root").level == Level::fine);
    CHECK(judge_remove_ipc(root.path(), 999, "daemon").level == Level::fine);
    root.put("etc/login.defs", "UID_MIN 1000\n# SYS_UID_MAX 100\nSYS_UID_MAX\t499\n");
    CHECK(judge_remove_ipc(root.path(), 499, "daemon").level == Level::fine);
    CHECK(judge_remove_ipc(root.path(), 500, "bob").level == Level::warning);
    root.put("var/lib/systemd/linger/ada", "");
    CHECK(judge_remove_ipc(root.path(), 1000, "ada").level == Level::fine);
    root.put("etc/systemd/logind.conf.d/weir.conf", "[Login]\nRemoveIPC=no\n");
    CHECK(judge_remove_ipc(root.path(), 1001, "bob").level == Level::fine);
}

// ---- the machine -------------------------------------------------------------------------------------------

TEST_CASE("a healthy machine needs nothing done") {
    CHECK(judge(SharedMemory()).level == Level::fine);
    CHECK(judge(IoUring()).level == Level::fine);
    CHECK(judge(MemoryLock()).level == Level::fine);
    CHECK(judge(HugePages{"advise", 4 * mebibyte, 4 * mebibyte, ""}).level == Level::fine);
    CHECK(judge(HugePages{"never", 4 * mebibyte, 4 * mebibyte, ""}).level == Level::fine); // collapsed all the same
    CHECK(judge_futex_waitv(0, true).level == Level::fine);
    CHECK(judge_pidfd(0, true).level == Level::fine);
    CHECK(judge_open_files(1'024).level == Level::fine);
    CHECK(judge_file_size(unlimited).level == Level::fine);
    CHECK(judge_processors(2).level == Level::fine);
    check_to_do(judge(SharedMemory()));
}

TEST_CASE("a /dev/shm that is small, full or no tmpfs is warned of") {
    const SharedMemory docker{true, 64 * mebibyte, 64 * mebibyte, unlimited, unlimited};
    CHECK(has(judge(docker).what, "64.0 MiB"));
    CHECK(has(judge(docker).to_do, "--shm-size"));
    const SharedMemory full{true, 4'096 * mebibyte, mebibyte, unlimited, unlimited};
    CHECK(has(judge(full).what, "nearly full"));
    const SharedMemory of_few_files{true, 4'096 * mebibyte, 4'096 * mebibyte, 1'000, 10};
    CHECK(has(judge(of_few_files).to_do, "nr_inodes"));
    const SharedMemory disk{false, 4'096 * mebibyte, 4'096 * mebibyte, unlimited, unlimited};
    for (const SharedMemory& bad : {docker, full, of_few_files, disk}) {
        CHECK(judge(bad).level == Level::warning);
        check_to_do(judge(bad));
    }
}

TEST_CASE("why there is no io_uring decides what helps") {
    IoUring measured;
    measured.setup_error = EPERM;
    measured.is_filtered = true;
    CHECK(has(judge(measured).to_do, "seccomp"));
    measured.disabled = 2;
    CHECK(has(judge(measured).to_do, "sysctl kernel.io_uring_disabled=0"));
    measured = {};
    measured.setup_error = ENOSYS;
    CHECK(has(judge(measured).to_do, "Linux 6.7"));
    CHECK_FALSE(has(judge(measured).to_do, "seccomp"));
    measured.is_filtered = true;
    CHECK(has(judge(measured).to_do, "seccomp")); // which may say so too
    measured.setup_error = ENOMEM;
    CHECK(has(judge(measured).to_do, "ulimit -l"));
    measured = {};
    measured.worker_setup_error = EINVAL;
    CHECK(has(judge(measured).to_do, "Linux 6.7"));
    measured = {};
    measured.has_futex_wait = false;
    CHECK(has(judge(measured).what, "futex"));
    measured = {};
    measured.enter_error = EPERM;
    CHECK(has(judge(measured).what, "not entered"));
    measured = {};
    measured.is_built_in = false;
    CHECK(has(judge(measured).to_do, "liburing"));
    for (IoUring bad :
         {IoUring{.setup_error = EPERM}, IoUring{.worker_setup_error = ENOMEM}, IoUring{.has_futex_wait = false},
          IoUring{.enter_error = EPERM}, IoUring{.is_built_in = false}}) {
        CHECK_FALSE(bad.is_usable());
        CHECK(judge(bad).level == Level::note);
        check_to_do(judge(bad));
    }
}

TEST_CASE("limits that are in the way are named with what raises them") {
    const Finding locked = judge(MemoryLock{8 * mebibyte, false});
    CHECK(locked.level == Level::note);
    CHECK(has(locked.to_do, "LimitMEMLOCK"));
    CHECK(judge(MemoryLock{8 * mebibyte, true}).level == Level::fine);
    CHECK(judge(MemoryLock{1'024 * mebibyte, false}).level == Level::fine);
    CHECK(has(judge_open_files(64).to_do, "ulimit -n"));
    CHECK(has(judge_file_size(mebibyte).to_do, "ulimit -f"));
    CHECK(has(judge_processors(1).to_do, "spin_count"));
    for (const Finding& finding : {locked, judge_open_files(64), judge_file_size(mebibyte), judge_processors(1),
                                   judge_futex_waitv(ENOSYS, false), judge_futex_waitv(EPERM, true),
                                   judge_pidfd(ENOSYS, false), judge_pidfd(EPERM, false)}) {
        CHECK(finding.level != Level::fine);
        check_to_do(finding);
    }
}

TEST_CASE("huge pages that are not to be had are a note") {
    for (const HugePages& bad : {HugePages{}, HugePages{"never", 4 * mebibyte, 0, "none"}, HugePages{"deny", 0, 0, ""},
                                 HugePages{"advise", 4 * mebibyte, 2 * mebibyte, "half"}}) {
        CHECK(judge(bad).level == Level::note);
        check_to_do(judge(bad));
    }
    CHECK(has(judge(HugePages{"never", 4 * mebibyte, 0, "none"}).to_do, "echo advise"));
    CHECK(bracketed("always within_size advise [never] deny force") == "never");
    CHECK(bracketed("[always] never") == "always");
    CHECK(bracketed("").empty());
    CHECK(bracketed("] [").empty());
}

// ---- locks -------------------------------------------------------------------------------------------------

TEST_CASE("open-file-description locks are read from fdinfo, and no others") {
    const std::optional<ShownLock> lock = parsed_lock("lock:\t1: OFDLCK ADVISORY  WRITE -1 00:1b:2391884 5 7");
    REQUIRE(lock);
    CHECK(lock->device_major == 0);
    CHECK(lock->device_minor == 0x1b);
    CHECK(lock->inode == 2'391'884);
    CHECK(lock->first_byte == 5);
    CHECK(lock->last_byte == 7);
    const std::optional<ShownLock> open_end = parsed_lock("lock:\t12: OFDLCK ADVISORY  READ -1 fd:01:3 0 EOF");
    REQUIRE(open_end);
    CHECK(open_end->last_byte == std::numeric_limits<std::uint64_t>::max());
    for (const char* other : {"", "pos:\t0", "lock:\t1: POSIX  ADVISORY  WRITE 17 00:1b:2391884 5 5",
                              "lock:\t1: FLOCK  ADVISORY  WRITE 17 00:1b:2391884 0 EOF", "lock:\t1: OFDLCK ADVISORY"}) {
        CHECK_FALSE(parsed_lock(other));
    }
}

TEST_CASE("a process is told by its number, name and start") {
    const std::optional<ProcessState> self = state_of(getpid());
    REQUIRE(self);
    CHECK(self->pid == getpid());
    CHECK_FALSE(self->name.empty());
    CHECK(self->start_time_ticks != 0);
    CHECK(self->thread_count >= 1);
    CHECK_FALSE(self->is_stopped());
    CHECK_FALSE(self->is_zombie());
    CHECK_FALSE(state_of(0));
}
