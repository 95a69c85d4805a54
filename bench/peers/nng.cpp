// nng, push and pull over ipc://. Its own threads carry the messages, so both ends wait in its calls.
#include "message_peer.hpp"

#include <nng/nng.h>
#include <nng/protocol/pipeline0/pull.h>
#include <nng/protocol/pipeline0/push.h>

namespace {

constexpr nng_duration wait_ms = 10;

class Nng {
public:
    static constexpr std::size_t message_bytes_max = 1 << 30;
    explicit Nng(std::size_t message_bytes) : message_bytes_(message_bytes) {}
    ~Nng() { unlink(path_.c_str()); }
    Nng(const Nng&) = delete;
    Nng& operator=(const Nng&) = delete;

    class Sender {
    public:
        explicit Sender(Nng& channel) : message_bytes_(channel.message_bytes_) {
            bench::require(nng_push0_open(&socket_) == 0, "no nng socket");
            nng_socket_set_ms(socket_, NNG_OPT_SENDTIMEO, wait_ms);
            nng_socket_set_ms(socket_, NNG_OPT_RECONNMINT, 10);
            nng_socket_set_ms(socket_, NNG_OPT_RECONNMAXT, 10);
            nng_socket_set_int(socket_, NNG_OPT_SENDBUF, static_cast<int>(bench::channel_depth(message_bytes_)));
            bench::require(nng_dial(socket_, channel.address().c_str(), nullptr, NNG_FLAG_NONBLOCK) == 0,
                           "nng cannot dial");
        }
        ~Sender() {
            nng_msg_free(message_);
            nng_close(socket_);
        }
        Sender(const Sender&) = delete;
        Sender& operator=(const Sender&) = delete;
        bool is_connected() { return true; }
        template <class Write>
        bool try_send(Write&& write) {
            if (message_ == nullptr) {
                bench::require(nng_msg_alloc(&message_, message_bytes_) == 0, "no nng message");
                write(std::span(static_cast<std::byte*>(nng_msg_body(message_)), message_bytes_));
            }
            if (nng_sendmsg(socket_, message_, 0) != 0) {
                return false;
            }
            message_ = nullptr;
            return true;
        }

    private:
        std::size_t message_bytes_;
        nng_socket socket_{};
        nng_msg* message_ = nullptr;
    };

    class Receiver {
    public:
        explicit Receiver(Nng& channel) {
            bench::require(nng_pull0_open(&socket_) == 0, "no nng socket");
            nng_socket_set_ms(socket_, NNG_OPT_RECVTIMEO, wait_ms);
            nng_socket_set_size(socket_, NNG_OPT_RECVMAXSZ, 0);
            bench::require(nng_listen(socket_, channel.address().c_str(), nullptr, 0) == 0, "nng cannot listen");
        }
        ~Receiver() { nng_close(socket_); }
        Receiver(const Receiver&) = delete;
        Receiver& operator=(const Receiver&) = delete;
        bool is_connected() { return true; }
        template <class Read>
        bool try_receive(Read&& read) {
            nng_msg* message = nullptr;
            if (nng_recvmsg(socket_, &message, 0) != 0) {
                return false;
            }
            read(std::span(static_cast<const std::byte*>(nng_msg_body(message)), nng_msg_len(message)));
            nng_msg_free(message);
            return true;
        }

    private:
        nng_socket socket_{};
    };

private:
    [[nodiscard]] std::string address() const { return "ipc://" + path_; }

    std::string path_ = "/tmp/" + bench::unique_name();
    std::size_t message_bytes_;
};

const bench::MessagePeer<Nng> nng_peer("nng");

} // namespace
