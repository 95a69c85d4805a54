// Looks at what camera_producer.cpp films; see there.
//
//     camera_consumer [--domain NAME] [--frames N]
//
// It prints a line a second, says when the last camera closed its end or died, and then waits for a new one.
#include "camera.hpp"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>

#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

class Viewer {
public:
    /// False: the frame is not what a camera films.
    bool look_at(const weir::BufferPtr& frame) {
        const auto wanted = static_cast<std::byte>(frame.sequence());
        const auto bytes = frame.bytes();
        if (bytes.empty() || bytes.front() != wanted || bytes.back() != wanted) {
            return false;
        }
        // From the first one that it sees of a camera on, what is missing was dropped, or another viewer has it.
        std::uint64_t& next = next_sequences_.try_emplace(frame.tag(), frame.sequence()).first->second;
        missed_count_ += frame.sequence() > next ? frame.sequence() - next : 0;
        next = frame.sequence() + 1;
        ++frame_count_;
        byte_count_ += bytes.size();
        return true;
    }

    void print_line() {
        const auto now = Clock::now();
        const double seconds = std::chrono::duration<double>(now - line_time_).count();
        std::printf("%ju frames seen, %ju missed, %.0f a second, %.1f MiB/s, %zu cameras so far\n",
                    std::uintmax_t{frame_count_}, std::uintmax_t{missed_count_},
                    static_cast<double>(frame_count_ - line_frame_count_) / seconds,
                    static_cast<double>(byte_count_ - line_byte_count_) / seconds / (1 << 20), next_sequences_.size());
        std::fflush(stdout);
        line_time_ = now;
        line_frame_count_ = frame_count_;
        line_byte_count_ = byte_count_;
    }
    [[nodiscard]] bool is_line_due() const { return Clock::now() >= line_time_ + 1s; }
    [[nodiscard]] std::uint64_t frame_count() const noexcept { return frame_count_; }

private:
    std::map<std::uint32_t, std::uint64_t> next_sequences_; ///< by camera
    std::uint64_t frame_count_ = 0;
    std::uint64_t missed_count_ = 0;
    std::uint64_t byte_count_ = 0;
    Clock::time_point line_time_ = Clock::now();
    std::uint64_t line_frame_count_ = 0;
    std::uint64_t line_byte_count_ = 0;
};

void say(const char* what) {
    std::printf("%s\n", what);
    std::fflush(stdout);
}

} // namespace

int main(int argument_count, char** argument_values) try {
    const camera::Arguments arguments(argument_count, argument_values);
    camera::end_by_signals();
    weir::Domain domain = weir::Domain::join(arguments.domain);
    // Not needed to take frames out: so that the pool is there, and its buffers are, before a camera is.
    const weir::BufferPool frames = domain.pool("frames", camera::pool_options);
    weir::Consumer in = domain.consumer("raw", camera::port_options);
    say("viewer is there, and waits for frames");

    Viewer viewer;
    weir::StreamEnd last_end = weir::StreamEnd::open;
    while (camera::is_interrupted == 0 &&
           (arguments.frame_count == 0 || viewer.frame_count() < arguments.frame_count)) {
        if (const weir::BufferPtr frame = in.pop_for(100ms)) {
            last_end = weir::StreamEnd::open;
            if (!viewer.look_at(frame)) {
                std::fprintf(stderr, "frame %ju of camera %u is damaged\n", std::uintmax_t{frame.sequence()},
                             frame.tag());
                return 1;
            }
        } else if (in.last_error()) {
            std::fprintf(stderr, "cannot pop: %s\n", in.last_error().message().c_str());
            return 1;
        } else if (const weir::StreamEnd end = in.stream_end(); end != weir::StreamEnd::open) {
            if (end != last_end) {
                say(end == weir::StreamEnd::died ? "the last camera died; waiting for a new one"
                                                 : "the last camera closed its end; waiting for a new one");
            }
            last_end = end;
            static_cast<void>(in.wait_for_producer(100ms)); // an end is not sticky: a new producer reopens the port
        }
        if (viewer.is_line_due()) {
            viewer.print_line();
        }
    }
    viewer.print_line();
    say("viewer is done");
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "camera_consumer: %s\n", error.what());
    return 1;
}
