// A POSIX message queue with what the system allows without being asked: 10 messages of up to 8 KiB.
#include "descriptor_channel.hpp"

#include <fcntl.h>
#include <mqueue.h>

namespace {

struct MessageQueue {
    static constexpr std::size_t message_bytes_max = 8192;
    static void make(bench::Descriptors& descriptors, std::size_t message_bytes) {
        const std::string name = std::string("/").append(bench::unique_name());
        mq_attr attributes{};
        attributes.mq_maxmsg = 10;
        attributes.mq_msgsize = static_cast<long>(message_bytes);
        constexpr int flags = O_CREAT | O_NONBLOCK | O_CLOEXEC;
        descriptors.out = mq_open(name.c_str(), flags | O_WRONLY | O_EXCL, 0600, &attributes);
        descriptors.in = mq_open(name.c_str(), flags | O_RDONLY, 0600, &attributes);
        mq_unlink(name.c_str());
        bench::require(descriptors.out >= 0 && descriptors.in >= 0, "cannot make a message queue");
    }
    static std::size_t write_some(int out, std::span<const std::byte> bytes) {
        const int result = mq_send(out, reinterpret_cast<const char*>(bytes.data()), bytes.size(), 0);
        return bench::moved_by_call(result == 0 ? static_cast<ssize_t>(bytes.size()) : -1, "cannot send");
    }
    static std::size_t read_some(int in, std::span<std::byte> bytes) {
        return bench::moved_by_call(mq_receive(in, reinterpret_cast<char*>(bytes.data()), bytes.size(), nullptr),
                                    "cannot receive");
    }
};

const bench::MessagePeer<bench::DescriptorChannel<MessageQueue>> message_queue("posix_mq");

} // namespace
