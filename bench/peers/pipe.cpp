// A pipe of 1 MiB. Up to 4 KiB (PIPE_BUF) are written as one; of a longer message a killed process leaves a part.
#include "descriptor_channel.hpp"

#include <fcntl.h>

namespace {

struct Pipe {
    static constexpr std::size_t message_bytes_max = 1 << 20;
    static void make(bench::Descriptors& descriptors, std::size_t) {
        int ends[2];
        bench::require(pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0, "cannot make a pipe");
        descriptors.in = ends[0];
        descriptors.out = ends[1];
        static_cast<void>(fcntl(ends[1], F_SETPIPE_SZ, 1 << 20)); // as large as it may be
    }
    static std::size_t write_some(int out, std::span<const std::byte> bytes) {
        return bench::moved_by_call(write(out, bytes.data(), bytes.size()), "cannot write into the pipe");
    }
    static std::size_t read_some(int in, std::span<std::byte> bytes) {
        return bench::moved_by_call(read(in, bytes.data(), bytes.size()), "cannot read from the pipe");
    }
};

const bench::MessagePeer<bench::DescriptorChannel<Pipe>> pipe_peer("pipe");

} // namespace
