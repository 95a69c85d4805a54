// Copies a file by three kinds of programs, each of which may be killed (-9) on the way and started again: this one
// reads it, any number of copy_worker.cpp work on it, copy_sink.cpp writes it. Start them in several terminals, in any
// order; copy.hpp says how they hand the file on.
//
//     copy_source FILE [--domain NAME]
//
// A domain is one copy, with one source and one sink. Who is started again is given the same file as before.
#include "copy.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

class File {
public:
    explicit File(const std::string& path) : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
        if (descriptor_ < 0 || fstat(descriptor_, &status_) != 0) {
            throw std::system_error(errno, std::system_category(), path);
        }
    }

    [[nodiscard]] int descriptor() const noexcept { return descriptor_; }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return static_cast<std::uint64_t>(status_.st_size); }
    /// One, without any bytes, also of an empty file: so that nobody is done before the sink is there.
    [[nodiscard]] std::uint64_t chunk_count() const noexcept {
        return bytes() == 0 ? 1 : (bytes() + copy::chunk_bytes - 1) / copy::chunk_bytes;
    }

    /// What tells it from other files, and from what it was before it was changed, in a name.
    [[nodiscard]] std::string identity() const {
        const auto changed_ns = std::intmax_t{status_.st_mtim.tv_sec} * 1'000'000'000 + status_.st_mtim.tv_nsec;
        char text[56];
        std::snprintf(text, sizeof(text), "%jx.%jx.%jx", std::uintmax_t{status_.st_dev}, std::uintmax_t{status_.st_ino},
                      static_cast<std::uintmax_t>(changed_ns));
        return text;
    }

    /// Reads chunk `number`.
    void read(std::uint32_t number, weir::BufferPtr& chunk) const {
        const std::uint64_t begin = number * copy::chunk_bytes;
        chunk.resize(std::min(copy::chunk_bytes, bytes() - begin));
        const std::span<std::byte> all = chunk.bytes();
        for (std::size_t filled = 0; filled < all.size();) {
            const ssize_t count =
                pread(descriptor_, &all[filled], all.size() - filled, static_cast<off_t>(begin + filled));
            if (count <= 0) {
                throw std::system_error(count < 0 ? errno : EIO, std::system_category(), "cannot read it again");
            }
            filled += static_cast<std::size_t>(count);
        }
        chunk.set_tag(number);
    }

private:
    int descriptor_;
    struct stat status_ {};
};

/// Sends the chunks that were read, notes which are written, and sends again what was lost.
class Ledger : public weir::Block {
public:
    weir::InputPort in{*this, "in"};           ///< chunks, as they are read
    weir::InputPort written{*this, "written"}; ///< the same buffers, back from the sink
    weir::OutputPort out{*this, "out"};

    Ledger(const File& file, weir::BufferPool pool)
        : file_(&file), pool_(*this, std::move(pool)), is_written_(file.chunk_count()) {}

    weir::WorkResult work() override {
        while (weir::BufferPtr chunk = written.try_pop()) {
            if (chunk.tag() < is_written_.size() && !is_written_[chunk.tag()]) {
                is_written_[chunk.tag()] = true;
                ++written_count_;
            }
            if (in.is_at_end()) {
                back_.push_back(std::move(chunk));
            } // else it is free now, for another chunk of the file
        }
        print_progress();
        if (!out.is_ready()) {
            return weir::WorkResult::need_output;
        }
        if (weir::BufferPtr chunk = in.try_pop()) {
            out.push(std::move(chunk));
            return weir::WorkResult::progress;
        }
        return in.is_at_end() ? send_lost() : weir::WorkResult::need_input;
    }

    void print_line() const {
        const weir::BufferPool& pool = pool_.pool();
        std::fprintf(stderr, "copy_source: %zu of %zu chunks are written, %zu are under way, %zu were lost\n",
                     written_count_, is_written_.size(), pool.buffer_count() - pool.free_count() - back_.size(),
                     lost_count_);
    }

private:
    /// All chunks were sent once.
    weir::WorkResult send_lost() {
        if (written_count_ == is_written_.size()) {
            return weir::WorkResult::done;
        }
        while (weir::BufferPtr buffer = pool_.try_allocate()) {
            back_.push_back(std::move(buffer));
        }
        if (back_.size() < pool_.pool().buffer_count()) {
            return weir::WorkResult::need_input; // by the one way or by the other, all buffers come back
        }
        for (std::uint32_t number = 0; number < is_written_.size() && !back_.empty(); ++number) {
            if (!is_written_[number]) {
                weir::BufferPtr chunk = std::move(back_.back());
                back_.pop_back();
                file_->read(number, chunk);
                lost_count_ += file_->bytes() == 0 ? 0U : 1U; // which has one chunk that was never read
                out.push(std::move(chunk));
            }
        }
        return weir::WorkResult::progress;
    }

    void print_progress() {
        const weir::DeadlineNs now_ns = weir::monotonic_ns();
        if (now_ns >= line_due_ns_) {
            print_line();
            line_due_ns_ = now_ns + 1'000'000'000;
        }
        wake_at(line_due_ns_);
    }

    const File* file_;
    weir::PoolPort pool_;
    std::vector<bool> is_written_; ///< by number of the chunk
    std::size_t written_count_ = 0;
    std::size_t lost_count_ = 0;
    std::vector<weir::BufferPtr> back_; ///< after all was sent once: buffers that are not under way
    weir::DeadlineNs line_due_ns_ = weir::deadline_after(1'000'000'000);
};

} // namespace

int main(int argument_count, char** argument_values) {
    std::optional<weir::Producer> end; // closed when the copy is over
    try {
        const Arguments arguments(argument_count, argument_values, "FILE [--domain NAME]", 1);
        const File file(arguments.word(0));
        weir::Domain domain = weir::Domain::join(arguments.text("--domain", "copy"));
        // The domain's first pool says which file is copied in it.
        const std::string pool_name = "chunks." + file.identity();
        weir::BufferPool chunks = domain.pool(pool_name, copy::pool_options);
        if (domain.pool_names().front() != pool_name) {
            throw std::runtime_error("in this domain another file is copied, or was not to its end");
        }
        end.emplace(domain.producer("source", copy::port_options));
        weir::Scheduler scheduler(domain, {.name = "source"});
        auto& source = scheduler.add<weir::FileSource>(file.descriptor(), chunks,
                                                       weir::FileSourceOptions{.bytes_max = file.bytes()});
        auto& ledger = scheduler.add<Ledger>(file, chunks);
        scheduler.connect(source.out, ledger.in);
        ledger.out.bind("read", copy::bind_options());
        ledger.written.bind("written", copy::bind_options());
        scheduler.run();
        ledger.print_line();
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "copy_source: %s\n", error.what());
        std::_Exit(1); // as if it was killed: nobody takes this for the end
    }
}
