#include "chunk_reader.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <span>
#include <system_error>
#include <utility>

#include <unistd.h>

namespace weir::tool {

ChunkReader::ChunkReader(int descriptor, std::uint64_t offset) : descriptor_(descriptor), offset_(offset) {
    // Signals are for the first thread, which they shall interrupt.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        second_ = std::thread(&ChunkReader::run_second, this);
    } catch (const std::system_error&) {
        // No thread to be had: the first one reads all.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ChunkReader::~ChunkReader() {
    {
        const std::lock_guard lock(mutex_);
        is_over_ = true;
    }
    changed_.notify_one();
    if (second_.joinable()) {
        second_.join();
    }
}

void ChunkReader::add(BufferPtr buffer) {
    const std::uint64_t offset = offset_;
    offset_ += buffer.size_bytes();
    {
        const std::lock_guard lock(mutex_);
        chunks_.push_back({.buffer = std::move(buffer), .offset = offset});
    }
    changed_.notify_one();
}

BufferPtr ChunkReader::next() {
    std::unique_lock lock(mutex_);
    while (!chunks_.front().is_read) {
        if (!try_read_one(lock)) {
            changed_.wait(lock);
        }
    }
    Chunk chunk = std::move(chunks_.front());
    chunks_.pop_front();
    if (chunk.error != 0) {
        throw std::system_error(chunk.error, std::system_category());
    }
    chunk.buffer.resize(chunk.bytes);
    return std::move(chunk.buffer);
}

/// False: there is none that nobody reads yet.
bool ChunkReader::try_read_one(std::unique_lock<std::mutex>& lock) {
    const auto chunk = std::ranges::find(chunks_, false, &Chunk::is_taken);
    if (chunk == chunks_.end()) {
        return false;
    }
    Chunk& taken = *chunk; // stays where it is, whatever is added or taken out
    taken.is_taken = true;
    lock.unlock();
    read(taken);
    lock.lock();
    taken.is_read = true;
    return true;
}

void ChunkReader::read(Chunk& chunk) const noexcept {
    const std::span<std::byte> all = chunk.buffer.bytes();
    while (chunk.bytes < all.size()) {
        const ssize_t count = pread(descriptor_, &all[chunk.bytes], all.size() - chunk.bytes,
                                    static_cast<off_t>(chunk.offset + chunk.bytes));
        if (count == 0) {
            return;
        }
        if (count > 0) {
            chunk.bytes += static_cast<std::size_t>(count);
        } else if (errno != EINTR) {
            chunk.error = errno;
            return;
        }
    }
}

void ChunkReader::run_second() {
    std::unique_lock lock(mutex_);
    while (!is_over_) {
        if (try_read_one(lock)) {
            changed_.notify_one();
        } else {
            changed_.wait(lock);
        }
    }
}

} // namespace weir::tool
