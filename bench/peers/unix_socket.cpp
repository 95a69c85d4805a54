// A pair of Unix sockets, as a stream and with the bounds of messages kept (SOCK_SEQPACKET).
#include "descriptor_channel.hpp"

#include <sys/socket.h>

namespace {

template <int type>
struct UnixSocket {
    static constexpr std::size_t message_bytes_max = 1 << 20;
    static void make(bench::Descriptors& descriptors, std::size_t) {
        int ends[2];
        bench::require(socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0, "cannot make sockets");
        descriptors.in = ends[0];
        descriptors.out = ends[1];
        const int bytes = 4 << 20;
        setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    }
    static std::size_t write_some(int out, std::span<const std::byte> bytes) {
        return bench::moved_by_call(send(out, bytes.data(), bytes.size(), MSG_NOSIGNAL), "cannot send");
    }
    static std::size_t read_some(int in, std::span<std::byte> bytes) {
        return bench::moved_by_call(recv(in, bytes.data(), bytes.size(), 0), "cannot receive");
    }
};

const bench::MessagePeer<bench::DescriptorChannel<UnixSocket<SOCK_STREAM>>> stream("unix_stream");
const bench::MessagePeer<bench::DescriptorChannel<UnixSocket<SOCK_SEQPACKET>>> packets("unix_seqpacket");

} // namespace
