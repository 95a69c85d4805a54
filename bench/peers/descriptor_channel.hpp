// descriptor_channel.hpp: channels of the kernel, which the processes inherit as file descriptors and poll. The process
// that made them keeps both ends open, so that a successor goes on with what a killed one left.
#pragma once

#include "message_peer.hpp"

#include <cerrno>
#include <vector>

namespace bench {

/// Two ends of something in the kernel.
class Descriptors {
public:
    Descriptors() = default;
    Descriptors(const Descriptors&) = delete;
    Descriptors& operator=(const Descriptors&) = delete;
    ~Descriptors() {
        close(in);
        close(out);
    }
    int in = -1, out = -1;
};

/// `Kernel` brings make(Descriptors&, message_bytes), write_some(out, bytes) and read_some(in, bytes), which return how many
/// bytes they moved, 0: not now.
template <class Kernel>
class DescriptorChannel {
public:
    static constexpr std::size_t message_bytes_max = Kernel::message_bytes_max;
    explicit DescriptorChannel(std::size_t message_bytes) : message_bytes_(message_bytes) {
        Kernel::make(descriptors_, message_bytes);
    }

    class Sender {
    public:
        explicit Sender(DescriptorChannel& channel)
            : out_(channel.descriptors_.out), message_(channel.message_bytes_) {}
        bool is_connected() { return true; }
        template <class Write>
        bool try_send(Write&& write) {
            if (left_.empty()) {
                write(std::span(message_));
                left_ = message_;
            }
            while (!left_.empty()) {
                const std::size_t moved = Kernel::write_some(out_, left_);
                if (moved == 0) {
                    return false;
                }
                left_ = left_.subspan(moved);
            }
            return true;
        }

    private:
        int out_;
        std::vector<std::byte> message_;
        std::span<const std::byte> left_;
    };

    class Receiver {
    public:
        explicit Receiver(DescriptorChannel& channel)
            : in_(channel.descriptors_.in), message_(channel.message_bytes_), left_(message_) {}
        bool is_connected() { return true; }
        template <class Read>
        bool try_receive(Read&& read) {
            while (!left_.empty()) {
                const std::size_t moved = Kernel::read_some(in_, left_);
                if (moved == 0) {
                    return false;
                }
                left_ = left_.subspan(moved);
            }
            left_ = message_;
            read(std::span<const std::byte>(message_));
            return true;
        }

    private:
        int in_;
        std::vector<std::byte> message_;
        std::span<std::byte> left_;
    };

private:
    Descriptors descriptors_;
    std::size_t message_bytes_;
};

/// What a system call moved, or 0 where it would have had to wait.
[[nodiscard]] inline std::size_t moved_by_call(ssize_t moved, const char* what) {
    require(moved > 0 || (moved < 0 && (errno == EAGAIN || errno == EINTR)), what);
    return moved > 0 ? static_cast<std::size_t>(moved) : 0;
}

} // namespace bench
