// Cyclone DDS on the local machine, reliable, with all messages kept until they are taken. It goes through the loopback
// device; its own threads carry the messages, so the reader waits in a wait set.
#include "message_peer.hpp"

#include <dds/dds.h>

#include "cyclonedds.h"

#include <cstdlib>
#include <vector>

namespace {

constexpr dds_duration_t wait_ns = DDS_MSECS(10);

class CycloneDds {
public:
    static constexpr std::size_t message_bytes_max = 1 << 30;
    explicit CycloneDds(std::size_t message_bytes) : message_bytes_(message_bytes) {
        std::replace(name_.begin(), name_.end(), '-', '_'); // as names of topics must be
        setenv("CYCLONEDDS_URI",
               "<General><Interfaces><NetworkInterface address=\"127.0.0.1\"/></Interfaces>"
               "<AllowMulticast>false</AllowMulticast></General>"
               "<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>120"
               "</MaxAutoParticipantIndex><Peers><Peer address=\"127.0.0.1\"/></Peers></Discovery>",
               0);
    }

    /// A participant and the topic of a channel.
    class Participant {
    public:
        explicit Participant(const CycloneDds& channel)
            : entity_(dds_create_participant(DDS_DOMAIN_DEFAULT, nullptr, nullptr)) {
            bench::require(entity_ > 0, "no DDS participant");
            qos_ = dds_create_qos();
            dds_qset_reliability(qos_, DDS_RELIABILITY_RELIABLE, wait_ns);
            dds_qset_history(qos_, DDS_HISTORY_KEEP_ALL, 0);
            const auto depth = static_cast<std::int32_t>(bench::channel_depth(channel.message_bytes_));
            dds_qset_resource_limits(qos_, depth, DDS_LENGTH_UNLIMITED, depth);
            topic_ = dds_create_topic(entity_, &WeirBenchMessage_desc, channel.name_.c_str(), nullptr, nullptr);
            bench::require(topic_ > 0, "no DDS topic");
        }
        Participant(const Participant&) = delete;
        Participant& operator=(const Participant&) = delete;
        ~Participant() {
            dds_delete_qos(qos_);
            dds_delete(entity_);
        }
        dds_entity_t entity_, topic_ = 0;
        dds_qos_t* qos_ = nullptr;
    };

    class Sender {
    public:
        explicit Sender(CycloneDds& channel)
            : participant_(channel), bytes_(channel.message_bytes_),
              writer_(dds_create_writer(participant_.entity_, participant_.topic_, participant_.qos_, nullptr)) {
            bench::require(writer_ > 0, "no DDS writer");
            message_.payload._buffer = reinterpret_cast<std::uint8_t*>(bytes_.data());
            message_.payload._length = message_.payload._maximum = static_cast<std::uint32_t>(bytes_.size());
        }
        bool is_connected() {
            dds_publication_matched_status_t status{};
            return dds_get_publication_matched_status(writer_, &status) == 0 && status.current_count > 0;
        }
        template <class Write>
        bool try_send(Write&& write) {
            if (!is_pending_) {
                write(std::span(bytes_));
            }
            const dds_return_t result = dds_write(writer_, &message_);
            bench::require(result == 0 || result == DDS_RETCODE_TIMEOUT, "DDS cannot write");
            is_pending_ = result != 0;
            return !is_pending_;
        }

    private:
        Participant participant_;
        std::vector<std::byte> bytes_;
        dds_entity_t writer_;
        WeirBenchMessage message_{};
        bool is_pending_ = false;
    };

    class Receiver {
    public:
        explicit Receiver(CycloneDds& channel)
            : participant_(channel),
              reader_(dds_create_reader(participant_.entity_, participant_.topic_, participant_.qos_, nullptr)),
              wait_set_(dds_create_waitset(participant_.entity_)) {
            bench::require(reader_ > 0, "no DDS reader");
            dds_set_status_mask(reader_, DDS_DATA_AVAILABLE_STATUS);
            bench::require(dds_waitset_attach(wait_set_, reader_, 0) == 0, "no DDS wait set");
        }
        bool is_connected() {
            dds_subscription_matched_status_t status{};
            return dds_get_subscription_matched_status(reader_, &status) == 0 && status.current_count > 0;
        }
        template <class Read>
        bool try_receive(Read&& read) {
            void* sample = nullptr;
            dds_sample_info_t info{};
            int count = dds_take(reader_, &sample, &info, 1, 1);
            if (count == 0) {
                dds_waitset_wait(wait_set_, nullptr, 0, wait_ns);
                count = dds_take(reader_, &sample, &info, 1, 1);
            }
            bench::require(count >= 0, "DDS cannot take");
            if (count == 0) {
                return false;
            }
            if (info.valid_data) {
                const auto* message = static_cast<const WeirBenchMessage*>(sample);
                read(std::span(reinterpret_cast<const std::byte*>(message->payload._buffer), message->payload._length));
            }
            dds_return_loan(reader_, &sample, count);
            return info.valid_data;
        }

    private:
        Participant participant_;
        dds_entity_t reader_, wait_set_;
    };

    static void adjust_kills(bench::KillSetup& setup) {
        setup.watchdog_ms = 20'000;
        setup.drain_ms = 500;
    }

private:
    std::string name_ = bench::unique_name();
    std::size_t message_bytes_;
};

const bench::MessagePeer<CycloneDds> cyclone("cyclonedds");

} // namespace
