// A block of one's own, between a file and a file: each byte becomes black or white.
//
//     threshold IN OUT [DOMAIN]
#include <weir/weir.hpp>

#include <cstddef>
#include <cstdio>
#include <exception>
#include <utility>

class Threshold : public weir::Block {
public:
    weir::InputPort in{*this, "in"};
    weir::OutputPort out{*this, "out"};

    weir::WorkResult work() override {
        if (!out.is_ready()) {
            return weir::WorkResult::need_output;
        }
        weir::BufferPtr frame = in.try_pop();
        if (!frame) {
            return weir::WorkResult::need_input;
        }
        for (std::byte& sample : frame.bytes()) {
            sample = sample < std::byte{128} ? std::byte{0} : std::byte{255};
        }
        out.push(std::move(frame));
        return weir::WorkResult::progress;
    }
};

int main(int argument_count, char** arguments) try {
    if (argument_count < 3) {
        std::fprintf(stderr, "usage: %s IN OUT [DOMAIN]\n", arguments[0]);
        return 2;
    }
    const char* name = argument_count > 3 ? arguments[3] : "threshold";

    weir::Domain domain = weir::Domain::join(name);
    weir::BufferPool frames = domain.pool("frames", {.buffer_bytes = 65'536, .buffer_count = 16});
    weir::Scheduler scheduler(domain, {.worker_count = 2});
    auto& source = scheduler.add<weir::FileSource>(arguments[1], frames);
    auto& threshold = scheduler.add<Threshold>();
    auto& sink = scheduler.add<weir::FileSink>(arguments[2]);
    scheduler.connect(source.out, threshold.in);
    scheduler.connect(threshold.out, sink.in);
    scheduler.run(); // until the file is at its end and all of it is written
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "threshold: %s\n", error.what());
    return 1;
}
