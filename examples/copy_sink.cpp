// Writes the file that copy_source.cpp reads; see there.
//
//     copy_sink FILE [--from PORT] [--domain NAME]
//
// It empties FILE first; but when it is started again after it was killed, it goes on with what is there.
#include "copy.hpp"

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

namespace {

/// Writes each chunk where its tag says, several at a time, and hands it on when it is written.
class Writer : public weir::Block {
public:
    weir::InputPort in{*this, "in"};
    weir::OutputPort out{*this, "out"};

    Writer(const std::string& path, bool truncates)
        : file_(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | (truncates ? O_TRUNC : 0), 0666)) {
        if (file_ < 0) {
            throw std::system_error(errno, std::system_category(), path);
        }
    }

    weir::WorkResult work() override {
        bool has_moved = false;
        for (Write& write : writes_) {
            if (!write.chunk && (write.chunk = in.try_pop())) {
                write.request = {.kind = weir::IoRequest::Kind::write,
                                 .descriptor = file_,
                                 .offset = static_cast<std::int64_t>(write.chunk.tag() * copy::chunk_bytes),
                                 .bytes = write.chunk.bytes(),
                                 .pool = write.chunk.pool()};
                has_moved = true;
            }
            if (write.chunk && write.request.is_done && !submit_rest(write.request) && out.is_ready()) {
                out.push(std::move(write.chunk));
                has_moved = true;
            }
        }
        return has_moved ? weir::WorkResult::progress : weir::WorkResult::need_input;
    }

    /// After all was written; some file systems say only then that there is no space.
    void close() const {
        if (::close(file_) != 0) {
            throw std::system_error(errno, std::system_category(), "cannot close the file");
        }
    }

private:
    struct Write {
        weir::BufferPtr chunk; ///< empty: there is nothing to write
        weir::IoRequest request;
    };

    /// False: all is written.
    bool submit_rest(weir::IoRequest& request) {
        if (request.result < 0) {
            throw std::system_error(static_cast<int>(-request.result), std::system_category(), "cannot write");
        }
        request.bytes = request.bytes.subspan(static_cast<std::size_t>(request.result));
        request.offset += std::exchange(request.result, 0);
        if (request.bytes.empty()) {
            return false;
        }
        submit(request);
        return true;
    }

    int file_;
    std::array<Write, 8> writes_;
};

} // namespace

int main(int argument_count, char** argument_values) try {
    const Arguments arguments(argument_count, argument_values, "FILE [--from PORT] [--domain NAME]", 1);
    weir::Domain domain = weir::Domain::join(arguments.text("--domain", "copy"));
    const std::string from = arguments.text("--from", "worked");
    // The port's counters outlive who counted.
    const weir::Port port = domain.port(from, copy::port_options);
    const bool goes_on = port.counters(weir::PortEnd::consumer).messages > 0;

    weir::Scheduler scheduler(domain, {.name = "sink"});
    auto& writer = scheduler.add<Writer>(arguments.word(0), !goes_on);
    writer.in.bind(from, copy::bind_options());
    writer.out.bind("written", copy::bind_options());
    std::fprintf(stderr, "copy_sink: %s\n", goes_on ? "goes on" : "is there");
    copy::run_until_over(scheduler, domain);
    writer.close();
    std::fprintf(stderr, "copy_sink: done\n");
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "copy_sink: %s\n", error.what());
    return 1;
}
