// iceoryx, publish and subscribe: loan, write, publish; take, read, release. The publisher waits for a slow subscriber, so
// that nothing is dropped. Its daemon, iox-roudi, is started and stopped here, with a pool for messages of the size alone.
#include "message_peer.hpp"

#include <iceoryx_hoofs/log/logmanager.hpp>
#include <iceoryx_posh/popo/untyped_publisher.hpp>
#include <iceoryx_posh/popo/untyped_subscriber.hpp>
#include <iceoryx_posh/runtime/posh_runtime.hpp>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

namespace {

/// The daemon, as long as a channel needs it.
class RouDi {
public:
    explicit RouDi(std::size_t message_bytes, std::uint32_t chunk_count) {
        const std::string config = "/tmp/" + bench::unique_name() + ".toml";
        std::ofstream(config) << "[general]\nversion = 1\n[[segment]]\n[[segment.mempool]]\nsize = "
                              << std::max<std::size_t>(message_bytes, 128) << "\ncount = " << chunk_count << "\n";
        int ready[2];
        bench::require(pipe2(ready, O_CLOEXEC) == 0, "cannot make a pipe");
        process_ = fork();
        bench::require(process_ >= 0, "cannot fork");
        if (process_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            dup2(ready[1], STDOUT_FILENO);
            dup2(ready[1], STDERR_FILENO);
            execlp("iox-roudi", "iox-roudi", "-c", config.c_str(), "-k", "1", static_cast<char*>(nullptr));
            _exit(127);
        }
        close(ready[1]);
        out_ = ready[0];
        // It says so when it is ready; what else it says fits into the pipe.
        std::string said;
        for (char text[256]; said.find("ready for clients") == std::string::npos;) {
            const ssize_t count = read(out_, text, sizeof(text));
            if (count <= 0) {
                unlink(config.c_str());
                throw std::runtime_error("iox-roudi has ended: " + said);
            }
            said.append(text, static_cast<std::size_t>(count));
        }
        unlink(config.c_str());
        fcntl(out_, F_SETPIPE_SZ, 1 << 20);
    }
    RouDi(const RouDi&) = delete;
    RouDi& operator=(const RouDi&) = delete;
    ~RouDi() {
        kill(process_, SIGTERM);
        int status = 0;
        // Seen once in some hundred kills: asleep in a futex, for ever.
        for (int turn = 0; waitpid(process_, &status, WNOHANG) == 0; ++turn) {
            usleep(10'000);
            if (turn == 1'000) {
                kill(process_, SIGKILL);
            }
        }
        if (status != 0) {
            // It also fails where a process has died of which it does not know yet, and leaves its names.
            for (const char* name : {"/dev/shm/iceoryx_mgmt", "/tmp/roudi", "/tmp/roudi.lock"}) {
                unlink(name);
            }
            if (const group* own = getgrgid(getegid())) {
                shm_unlink(own->gr_name); // the segment that it made for this group
            }
        }
        close(out_);
    }

private:
    pid_t process_ = -1;
    int out_ = -1;
};

/// One daemon for all channels that there are at a time: they have messages of one size.
std::shared_ptr<RouDi> shared_roudi(std::size_t message_bytes, std::uint32_t chunk_count) {
    static std::weak_ptr<RouDi> running;
    std::shared_ptr<RouDi> roudi = running.lock();
    if (!roudi) {
        roudi = std::make_shared<RouDi>(message_bytes, chunk_count);
        running = roudi;
    }
    return roudi;
}

/// This process's membership, as long as it has an end of a channel; it can be had once.
class Application {
public:
    explicit Application(const std::string& name) {
        if (end_count_++ == 0) {
            iox::log::LogManager::GetLogManager().SetDefaultLogLevel(iox::log::LogLevel::kOff,
                                                                     iox::log::LogLevelOutput::kHideLogLevel);
            iox::runtime::PoshRuntime::initRuntime(
                iox::RuntimeName_t(iox::cxx::TruncateToCapacity, name + "-" + std::to_string(getpid())));
        }
    }
    Application(const Application&) = delete;
    Application& operator=(const Application&) = delete;
    ~Application() {
        if (--end_count_ == 0) {
            // The processes end without the destructors of static objects, this one among them.
            iox::runtime::PoshRuntime::getInstance().~PoshRuntime();
        }
    }

private:
    static inline unsigned end_count_ = 0;
};

class Iceoryx {
public:
    static constexpr std::size_t message_bytes_max = 1 << 30;
    explicit Iceoryx(std::size_t message_bytes)
        : message_bytes_(message_bytes), depth_(bench::channel_depth(message_bytes)), chunk_count_(2 * depth_ + 16),
          roudi_(shared_roudi(message_bytes, chunk_count_)) {}

    Iceoryx(const Iceoryx&) = delete;
    Iceoryx& operator=(const Iceoryx&) = delete;
    ~Iceoryx() {
        // What killed processes leave.
        for (const std::filesystem::directory_entry& entry : std::filesystem::directory_iterator("/tmp")) {
            if (entry.path().filename().string().starts_with(name_ + "-")) {
                unlink(entry.path().c_str());
            }
        }
    }

    class Sender {
    public:
        explicit Sender(Iceoryx& channel)
            : application_(channel.name_), message_bytes_(static_cast<std::uint32_t>(channel.message_bytes_)),
              publisher_(channel.service(), options()) {}
        bool is_connected() { return publisher_.hasSubscribers(); }
        template <class Write>
        bool try_send(Write&& write) {
            auto loaned = publisher_.loan(message_bytes_);
            if (loaned.has_error()) {
                return false;
            }
            void* const payload = loaned.value();
            write(std::span(static_cast<std::byte*>(payload), message_bytes_));
            publisher_.publish(payload);
            return true;
        }

    private:
        static iox::popo::PublisherOptions options() {
            iox::popo::PublisherOptions options;
            options.subscriberTooSlowPolicy = iox::popo::ConsumerTooSlowPolicy::WAIT_FOR_CONSUMER;
            return options;
        }
        Application application_;
        std::uint32_t message_bytes_;
        iox::popo::UntypedPublisher publisher_;
    };

    class Receiver {
    public:
        explicit Receiver(Iceoryx& channel)
            : application_(channel.name_), message_bytes_(channel.message_bytes_),
              subscriber_(channel.service(), options(channel.depth_)) {}
        bool is_connected() { return subscriber_.getSubscriptionState() == iox::SubscribeState::SUBSCRIBED; }
        template <class Read>
        bool try_receive(Read&& read) {
            auto taken = subscriber_.take();
            if (taken.has_error()) {
                return false;
            }
            const void* const payload = taken.value();
            read(std::span(static_cast<const std::byte*>(payload), message_bytes_));
            subscriber_.release(payload);
            return true;
        }

    private:
        static iox::popo::SubscriberOptions options(std::uint32_t depth) {
            iox::popo::SubscriberOptions options;
            options.queueCapacity = depth;
            options.queueFullPolicy = iox::popo::QueueFullPolicy::BLOCK_PRODUCER;
            return options;
        }
        Application application_;
        std::size_t message_bytes_;
        iox::popo::UntypedSubscriber subscriber_;
    };

    /// Chunks that cannot be had though nobody holds any; the daemon is given a few seconds to find who died.
    [[nodiscard]] std::uint64_t leaked() {
        const bench::SharedBytes answer(sizeof(std::uint64_t));
        auto& count = *reinterpret_cast<std::uint64_t*>(answer.bytes().data());
        const pid_t child = fork();
        bench::require(child >= 0, "cannot fork");
        if (child == 0) {
            const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
            dup2(nowhere, STDERR_FILENO); // it says at length that a pool is exhausted
            {
                const Application application(name_);
                sleep(2); // by then the daemon has missed the dead
                for (unsigned look = 0; look < 12; ++look) {
                    count = chunk_count_ - loanable();
                    if (count == 0) {
                        break;
                    }
                    usleep(250'000);
                }
            }
            _exit(0);
        }
        waitpid(child, nullptr, 0);
        return count;
    }

    static void adjust_kills(bench::KillSetup& setup) { setup.watchdog_ms = 5'000; }

private:
    [[nodiscard]] iox::capro::ServiceDescription service() const {
        return {"weir", "bench", iox::capro::IdString_t(iox::cxx::TruncateToCapacity, name_)};
    }

    /// How many chunks publishers can have at the same time: each only a few.
    [[nodiscard]] std::uint64_t loanable() const {
        std::vector<std::unique_ptr<iox::popo::UntypedPublisher>> publishers;
        std::vector<std::pair<iox::popo::UntypedPublisher*, void*>> chunks;
        while (publishers.size() * iox::MAX_CHUNKS_ALLOCATED_PER_PUBLISHER_SIMULTANEOUSLY < chunk_count_) {
            publishers.push_back(std::make_unique<iox::popo::UntypedPublisher>(service()));
            for (unsigned place = 0; place < iox::MAX_CHUNKS_ALLOCATED_PER_PUBLISHER_SIMULTANEOUSLY; ++place) {
                if (chunks.size() < chunk_count_) {
                    auto loaned = publishers.back()->loan(static_cast<std::uint32_t>(message_bytes_));
                    if (!loaned.has_error()) {
                        chunks.emplace_back(publishers.back().get(), loaned.value());
                    }
                }
            }
        }
        for (const auto& [publisher, chunk] : chunks) {
            publisher->release(chunk);
        }
        return chunks.size();
    }

    std::string name_ = bench::unique_name();
    std::size_t message_bytes_;
    std::uint32_t depth_, chunk_count_;
    std::shared_ptr<RouDi> roudi_;
};

const bench::MessagePeer<Iceoryx> iceoryx("iceoryx");

} // namespace
