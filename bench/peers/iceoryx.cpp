// iceoryx, publish and subscribe: loan, write, publish; take, read, release. The publisher waits for a slow subscriber, so
// that nothing is dropped. Its daemon, iox-roudi, is started and stopped here, with a pool for messages of the size alone.
#include "message_peer.hpp"

#include <iceoryx_posh/popo/untyped_publisher.hpp>
#include <iceoryx_posh/popo/untyped_subscriber.hpp>
#include <iceoryx_posh/runtime/posh_runtime.hpp>

#include <cstdio>
#include <fstream>

#include <fcntl.h>
#include <signal.h>
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
        waitpid(process_, nullptr, 0);
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

/// Once in each process that has to do with iceoryx.
void join() {
    static pid_t joined = 0;
    if (joined != getpid()) {
        joined = getpid();
        iox::runtime::PoshRuntime::initRuntime(iox::RuntimeName_t(iox::cxx::TruncateToCapacity, bench::unique_name()));
    }
}

class Iceoryx {
public:
    static constexpr std::size_t message_bytes_max = 1 << 30;
    explicit Iceoryx(std::size_t message_bytes)
        : message_bytes_(message_bytes), depth_(bench::channel_depth(message_bytes)), chunk_count_(2 * depth_ + 16),
          roudi_(shared_roudi(message_bytes, chunk_count_)) {}

    class Sender {
    public:
        explicit Sender(Iceoryx& channel)
            : message_bytes_(static_cast<std::uint32_t>(channel.message_bytes_)),
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
        std::uint32_t message_bytes_;
        iox::popo::UntypedPublisher publisher_;
    };

    class Receiver {
    public:
        explicit Receiver(Iceoryx& channel)
            : message_bytes_(channel.message_bytes_), subscriber_(channel.service(), options(channel.depth_)) {}
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
            join();
            for (unsigned look = 0; look < 20; ++look) {
                count = chunk_count_ - loanable();
                if (count == 0) {
                    break;
                }
                usleep(250'000);
            }
            _exit(0);
        }
        waitpid(child, nullptr, 0);
        return count;
    }

    static void adjust_kills(bench::KillSetup& setup) {
        setup.kill_count = 100; // each waits for the daemon
        setup.watchdog_ms = 5'000;
    }

private:
    [[nodiscard]] iox::capro::ServiceDescription service() const {
        join();
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
