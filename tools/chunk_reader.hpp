// Reads a file into one buffer after the other, with a second thread.
//
// Copying out of the page cache is all that sending a file costs, and one core copies less than the memory gives. Both
// threads take what is to be read next, and the caller gets the chunks in the file's order. Nobody waits for the other one
// as long as there are further buffers: where the second thread gets no core, the first does most of the work.
//
//     ChunkReader reader(descriptor, 0);
//     while (reader.wants_buffer())
//         reader.add(pool.allocate());
//     weir::BufferPtr chunk = reader.next();             // shorter than its buffer: the file ends there
//
// One thread calls it; it makes the second one.
#pragma once

#include <weir/buffer_pool.hpp>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>

namespace weir::tool {

class ChunkReader {
public:
    /// Reads the regular file `descriptor` from `offset` on; it does not move the descriptor's own offset.
    ChunkReader(int descriptor, std::uint64_t offset);
    ChunkReader(const ChunkReader&) = delete;
    ChunkReader& operator=(const ChunkReader&) = delete;
    ~ChunkReader();

    [[nodiscard]] bool wants_buffer() const noexcept { return chunks_.size() < chunk_count_max; }
    [[nodiscard]] bool has_buffer() const noexcept { return !chunks_.empty(); }
    /// Reads what comes next into all of the buffer.
    void add(BufferPtr buffer);

    /// The chunk of the buffer that was added first, when it is read.
    /// Throws: std::system_error, of read().
    [[nodiscard]] BufferPtr next();

private:
    static constexpr std::size_t chunk_count_max = 4;

    struct Chunk {
        BufferPtr buffer;
        std::uint64_t offset;
        std::size_t bytes = 0; ///< that were read
        int error = 0;
        bool is_taken = false; ///< by a thread that reads it
        bool is_read = false;
    };

    [[nodiscard]] bool try_read_one(std::unique_lock<std::mutex>& lock);
    void read(Chunk& chunk) const noexcept;
    void run_second();

    int descriptor_;
    std::uint64_t offset_;
    std::deque<Chunk> chunks_; ///< changed by the caller's thread alone, and then with the lock
    std::mutex mutex_;         ///< of what follows, and of the chunks' flags
    std::condition_variable changed_;
    bool is_over_ = false;
    std::thread second_;
};

} // namespace weir::tool
