// ZeroMQ, push and pull over ipc://. Its own threads carry the messages, so both ends wait in its calls.
#include "message_peer.hpp"

#include <zmq.h>

namespace {

constexpr int wait_ms = 10;

class ZeroMq {
public:
    static constexpr std::size_t message_bytes_max = 1 << 30;
    explicit ZeroMq(std::size_t message_bytes)
        : message_bytes_(message_bytes), depth_(static_cast<int>(bench::channel_depth(message_bytes))) {}
    ~ZeroMq() { unlink(path_.c_str()); }
    ZeroMq(const ZeroMq&) = delete;
    ZeroMq& operator=(const ZeroMq&) = delete;

    /// A context and a socket of it.
    class Socket {
    public:
        Socket(int type, int depth) : context_(zmq_ctx_new()), socket_(zmq_socket(context_, type)) {
            bench::require(socket_ != nullptr, "no ZeroMQ socket");
            const int linger_ms = 1'000;
            zmq_setsockopt(socket_, ZMQ_SNDHWM, &depth, sizeof(depth));
            zmq_setsockopt(socket_, ZMQ_RCVHWM, &depth, sizeof(depth));
            zmq_setsockopt(socket_, ZMQ_SNDTIMEO, &wait_ms, sizeof(wait_ms));
            zmq_setsockopt(socket_, ZMQ_RCVTIMEO, &wait_ms, sizeof(wait_ms));
            zmq_setsockopt(socket_, ZMQ_LINGER, &linger_ms, sizeof(linger_ms));
            const int reconnect_ms = 10;
            zmq_setsockopt(socket_, ZMQ_RECONNECT_IVL, &reconnect_ms, sizeof(reconnect_ms));
        }
        Socket(const Socket&) = delete;
        Socket& operator=(const Socket&) = delete;
        ~Socket() {
            zmq_close(socket_);
            zmq_ctx_term(context_);
        }
        void* get() { return socket_; }

    private:
        void* context_;
        void* socket_;
    };

    class Sender {
    public:
        explicit Sender(ZeroMq& channel) : message_bytes_(channel.message_bytes_), socket_(ZMQ_PUSH, channel.depth_) {
            bench::require(zmq_connect(socket_.get(), channel.address().c_str()) == 0, "ZeroMQ cannot connect");
        }
        ~Sender() {
            if (is_pending_) {
                zmq_msg_close(&message_);
            }
        }
        Sender(const Sender&) = delete;
        Sender& operator=(const Sender&) = delete;
        bool is_connected() { return true; }
        template <class Write>
        bool try_send(Write&& write) {
            if (!is_pending_) {
                bench::require(zmq_msg_init_size(&message_, message_bytes_) == 0, "no ZeroMQ message");
                write(std::span(static_cast<std::byte*>(zmq_msg_data(&message_)), message_bytes_));
                is_pending_ = true;
            }
            is_pending_ = zmq_msg_send(&message_, socket_.get(), 0) < 0;
            return !is_pending_;
        }

    private:
        std::size_t message_bytes_;
        Socket socket_;
        zmq_msg_t message_{};
        bool is_pending_ = false;
    };

    class Receiver {
    public:
        explicit Receiver(ZeroMq& channel) : socket_(ZMQ_PULL, channel.depth_) {
            bench::require(zmq_bind(socket_.get(), channel.address().c_str()) == 0, "ZeroMQ cannot bind");
            zmq_msg_init(&message_);
        }
        ~Receiver() { zmq_msg_close(&message_); }
        Receiver(const Receiver&) = delete;
        Receiver& operator=(const Receiver&) = delete;
        bool is_connected() { return true; }
        template <class Read>
        bool try_receive(Read&& read) {
            if (zmq_msg_recv(&message_, socket_.get(), 0) < 0) {
                return false;
            }
            read(std::span(static_cast<const std::byte*>(zmq_msg_data(&message_)), zmq_msg_size(&message_)));
            return true;
        }

    private:
        Socket socket_;
        zmq_msg_t message_{};
    };

private:
    [[nodiscard]] std::string address() const { return "ipc://" + path_; }

    std::string path_ = "/tmp/" + bench::unique_name();
    std::size_t message_bytes_;
    int depth_;
};

const bench::MessagePeer<ZeroMq> zeromq("zeromq");

} // namespace
