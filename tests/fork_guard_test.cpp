// What a forked child may do with what it inherited: nothing; and with what it makes itself: everything.
#include "catch.hpp"
#include "testing.hpp"

#include <weir/weir.hpp>

#include <array>
#include <functional>
#include <thread>

#include <sys/mman.h>
#include <sys/syscall.h>

namespace {

using test::Child;
using test::error_of;
using weir::errc;
using weir::ForkStamp;

/// In a child: ends it with what was wrong.
void require(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "%s\n", what);
        _exit(1);
    }
}

/// What a child of this process, that runs `body`, says is wrong.
std::string wrong_in_child(const std::function<void()>& body) {
    const test::ChildEnd end = Child(body).wait();
    return end.succeeded() ? "" : "status " + std::to_string(end.status) + ": " + end.said;
}

constexpr std::uint64_t buffer_bytes = 64;

/// A domain in which the parent has each kind of handle, a message in a port, and a full port.
struct Parent {
    Parent() {
        held = member->pools[0].try_allocate();
        test::write_number(held, 4711);
        held.set_tag(7);
        copied = member->pools[0].try_allocate();
        copy = copied;
        REQUIRE(out->try_push(member->pools[0].try_allocate()) == weir::PushResult::ok);
        for (int number = 0; number < 2; ++number) {
            REQUIRE(full_out->try_push(member->pools[0].try_allocate()) == weir::PushResult::ok);
        }
    }

    [[nodiscard]] std::vector<std::byte> snapshot() const { return {memory.bytes().begin(), memory.bytes().end()}; }

    void destroy_handles() {
        held.reset();
        copied.reset();
        copy.reset();
        out.reset();
        in.reset();
        full_out.reset();
        member.reset();
    }

    test::DomainMemory memory{{{.buffer_bytes = buffer_bytes, .buffer_count = 8}},
                              {{.capacity = 4, .port_id = 0}, {.capacity = 2, .port_id = 1}}};
    std::optional<test::Member> member{memory};
    std::optional<weir::Producer> out{member->ports[0]};
    std::optional<weir::Consumer> in{member->ports[0]};
    std::optional<weir::Producer> full_out{member->ports[1]};
    weir::BufferPtr held, copied, copy;
};

/// In a child: each call of what it inherited.
void call_inherited_handles(Parent& parent) {
    weir::BufferPool& pool = parent.member->pools[0];
    require(pool.last_error() == errc::used_after_fork, "the pool does not say that it is inherited");
    require(!pool.try_allocate(), "an inherited pool gave a buffer");
    require(!pool.allocate(), "an inherited pool gave a buffer after a wait");
    require(!pool.allocate_for(std::chrono::hours(1)), "an inherited pool gave a buffer in time");
    require(pool.free_count() == 0 && pool.check().size() == 1, "an inherited pool is looked at");

    weir::SharedBufferAllocator& buffers = parent.member->buffers;
    require(!buffers.try_allocate(8) && !buffers.allocate(8) && !buffers.allocate_for(8, std::chrono::hours(1)),
            "an inherited allocator gave a buffer");

    weir::BufferPtr& held = parent.held;
    require(held.bytes().empty() && held.size_bytes() == 0, "an inherited buffer can be written");
    held.resize(8);
    held.set_tag(9);
    require(held.tag() == 0 && held.sequence() == 0 && held.time_ns() == 0, "an inherited buffer is read");
    require(held.use_count() == 0 && !held.clone(), "an inherited buffer is cloned");
    const weir::BufferPtr copy = held;
    require(!copy, "an inherited buffer is copied");

    for (weir::Producer* out : {&*parent.out, &*parent.full_out}) {
        require(out->try_push(std::move(held)) == weir::PushResult::failed &&
                    out->last_result() == weir::PushResult::failed && out->last_error() == errc::used_after_fork,
                "an inherited producer pushes");
        require(out->push(std::move(held)) == weir::PushResult::failed, "an inherited producer waits");
        require(out->push_for(std::move(held), std::chrono::hours(1)) == weir::PushResult::failed,
                "an inherited producer waits for a while");
        std::array<weir::BufferPtr, 2> batch{std::move(held), {}};
        require(out->try_push(batch) == 0 && out->push(batch) == 0 && out->last_error() == errc::used_after_fork,
                "an inherited producer pushes batches");
        held = std::move(batch[0]);
        require(static_cast<bool>(held), "a buffer that could not be pushed is gone");
    }

    weir::Consumer& in = *parent.in;
    const auto says_why = [&in] { return in.last_error() == errc::used_after_fork; };
    require(!in.try_pop() && says_why(), "an inherited consumer pops");
    require(!in.pop() && says_why(), "an inherited consumer waits");
    require(!in.pop_for(std::chrono::hours(1)) && says_why(), "an inherited consumer waits for a while");
    std::array<weir::BufferPtr, 2> batch;
    require(in.try_pop(batch) == 0 && in.pop(batch) == 0 && says_why(), "an inherited consumer pops batches");
    require(in.stream_end() == weir::StreamEnd::closed && says_why(), "an inherited consumer's stream goes on");

    const weir::Port& port = parent.member->ports[0];
    require(error_of([&] { return weir::Producer(port); }) == errc::used_after_fork, "a producer of an inherited port");
    require(error_of([&] { return weir::Consumer(port); }) == errc::used_after_fork, "a consumer of an inherited port");
    require(port.counters(weir::PortEnd::producer).messages == 0 && port.check().size() == 1,
            "an inherited port is looked at");
    require(parent.member->leave().error == errc::used_after_fork, "a child leaves for its parent");
    require(parent.member->reap(parent.member->me).error == errc::used_after_fork,
            "a child reaps with its parent's ports");
}

/// In a child: joins, takes the parent's first message, and sends one.
void work_as_a_member(Parent& parent, int number) {
    test::Member member(parent.memory);
    {
        weir::Producer out(member.ports[0]);
        weir::Consumer in(member.ports[0]);
        weir::BufferPtr taken = in.try_pop();
        require(static_cast<bool>(taken), "a member finds no message");
        test::write_number(taken, number);
        const weir::BufferPtr clone = taken.clone();
        require(clone && out.try_push(std::move(taken)) == weir::PushResult::ok, "a member cannot push");
        weir::BufferPtr other = member.pools[0].try_allocate();
        require(static_cast<bool>(other) && !member.pools[0].last_error(), "a member finds no buffer");
    }
    require(!member.leave().error, "a member cannot leave");
}

} // namespace

TEST_CASE("a stamp is not foreign in the process that captured it") {
    const ForkStamp first = ForkStamp::capture();
    const ForkStamp second = ForkStamp::capture();
    CHECK_FALSE(first.is_foreign());
    CHECK_FALSE(second.is_foreign());
    CHECK_FALSE(ForkStamp().is_foreign());
}

TEST_CASE("a stamp is foreign in a forked child, also after the child captured its own") {
    const ForkStamp stamp = ForkStamp::capture();
    CHECK(wrong_in_child([&] {
              require(stamp.is_foreign(), "not foreign");
              require(!ForkStamp().is_foreign(), "the stamp of no process is foreign");
              const ForkStamp own = ForkStamp::capture();
              require(!own.is_foreign(), "its own is foreign");
              require(stamp.is_foreign(), "not foreign any more");
              require(wrong_in_child([&] {
                          require(stamp.is_foreign() && own.is_foreign(), "not foreign in the grandchild");
                          const ForkStamp third = ForkStamp::capture();
                          require(!third.is_foreign() && stamp.is_foreign() && own.is_foreign(),
                                  "not foreign any more in the grandchild");
                      }).empty(),
                      "the grandchild");
              require(!own.is_foreign(), "its own is foreign after a fork");
          }) == "");
    CHECK_FALSE(stamp.is_foreign());
}

TEST_CASE("a grandchild does not take the stamp of a parent that captured none for its own") {
    const ForkStamp stamp = ForkStamp::capture();
    CHECK(wrong_in_child([&] {
              require(wrong_in_child([&] {
                          require(!ForkStamp::capture().is_foreign(), "its own is foreign");
                          require(stamp.is_foreign(), "its grandparent's is not foreign");
                      }).empty(),
                      "the grandchild");
              require(stamp.is_foreign() && !ForkStamp::capture().is_foreign(), "the child");
          }) == "");
}

TEST_CASE("a stamp is foreign in a child that the C library knows nothing of") {
    const ForkStamp stamp = ForkStamp::capture();
    const long pid = syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr);
    REQUIRE(pid >= 0);
    if (pid == 0) {
        _exit(stamp.is_foreign() ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(static_cast<pid_t>(pid), &status, 0) == pid);
    CHECK(status == 0);
}

TEST_CASE("threads that capture the first stamp of a process at the same time get the same one") {
    for (int round = 0; round < 20; ++round) {
        CHECK(wrong_in_child([&] {
                  std::array<ForkStamp, 4> stamps;
                  std::vector<std::thread> threads;
                  std::atomic<unsigned> ready_count = 0;
                  for (ForkStamp& stamp : stamps) {
                      threads.emplace_back([&] {
                          ready_count.fetch_add(1);
                          while (ready_count.load() < stamps.size()) {
                              std::this_thread::yield();
                          }
                          stamp = ForkStamp::capture();
                      });
                  }
                  for (std::thread& thread : threads) {
                      thread.join();
                  }
                  for (const ForkStamp& stamp : stamps) {
                      require(!stamp.is_foreign(), "a thread's stamp is foreign to its own process");
                  }
              }) == "");
    }
}

TEST_CASE("a child's calls of inherited handles report used_after_fork and change nothing") {
    Parent parent;
    const std::vector<std::byte> before = parent.snapshot();
    CHECK(wrong_in_child([&] {
              call_inherited_handles(parent);
              require(error_of([&] {
                          return weir::Port(parent.memory.port(), parent.member->me, parent.member->buffers);
                      }) == errc::used_after_fork,
                      "a port with an inherited pool");
          }) == "");
    CHECK(parent.snapshot() == before);
    CHECK(parent.member->check() == "");

    // And the parent works on.
    CHECK(test::read_number(parent.held) == 4711);
    CHECK(parent.held.tag() == 7);
    CHECK(parent.out->try_push(std::move(parent.held)) == weir::PushResult::ok);
    CHECK(parent.in->try_pop());
    CHECK(parent.in->try_pop());
    CHECK_FALSE(parent.in->last_error());
}

TEST_CASE("a child that destroys inherited handles changes nothing") {
    Parent parent;
    const std::vector<std::byte> before = parent.snapshot();
    CHECK(wrong_in_child([&] { parent.destroy_handles(); }) == "");
    CHECK(parent.snapshot() == before);
    CHECK(parent.copied.use_count() == 2);
    parent.copy.reset();
    parent.copied.reset();
    CHECK(parent.member->check() == "");
}

TEST_CASE("a child may destroy and call inherited handles where it has not even the mapping") {
    Parent parent;
    const std::vector<std::byte> before = parent.snapshot();
    CHECK(wrong_in_child([&] {
              require(munmap(parent.memory.bytes().data(), parent.memory.bytes().size()) == 0, "munmap");
              call_inherited_handles(parent);
              parent.destroy_handles();
          }) == "");
    CHECK(parent.snapshot() == before);
}

TEST_CASE("a child that exits through destructors leaves its parent's handles alone") {
    Parent parent;
    const std::vector<std::byte> before = parent.snapshot();
    // The handles are destroyed by exit(), as those of a program's global objects are.
    static Parent* exiting = nullptr;
    exiting = &parent;
    std::fflush(nullptr);
    const pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        static const int registered = std::atexit([] {
            exiting->destroy_handles();
            _exit(registered == 0 ? 0 : 1); // not the test framework's own
        });
        std::exit(1);
    }
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(status == 0);
    CHECK(parent.snapshot() == before);
}

TEST_CASE("a child that joins for itself works, and its inherited handles stay dead") {
    Parent parent;
    CHECK(wrong_in_child([&] {
              work_as_a_member(parent, 42);
              test::Member member(parent.memory);
              weir::Producer out(member.ports[0]);
              require(out.try_push(std::move(parent.held)) == weir::PushResult::failed &&
                          out.last_error() == errc::used_after_fork && parent.held,
                      "a child pushes its parent's buffer through a port of its own");
              weir::BufferPtr own = member.pools[0].try_allocate();
              require(parent.out->try_push(std::move(own)) == weir::PushResult::failed &&
                          parent.out->last_error() == errc::used_after_fork && own,
                      "a child pushes a buffer of its own through its parent's producer");
              call_inherited_handles(parent);
              parent.destroy_handles();
          }) == "");
    const weir::BufferPtr answer = parent.in->try_pop();
    REQUIRE(answer);
    CHECK(test::read_number(answer) == 42);
    CHECK(test::read_number(parent.held) == 4711);
}

TEST_CASE("a grandchild is no member by what its parent or grandparent made, and works as its own") {
    Parent parent;
    CHECK(wrong_in_child([&] {
              test::Member member(parent.memory);
              weir::Producer out(member.ports[0]);
              weir::BufferPtr held = member.pools[0].try_allocate();
              require(wrong_in_child([&] {
                          call_inherited_handles(parent);
                          require(held.bytes().empty() && !held.clone(), "the child's buffer");
                          require(out.try_push(std::move(held)) == weir::PushResult::failed &&
                                      out.last_error() == errc::used_after_fork,
                                  "the child's producer");
                          work_as_a_member(parent, 43);
                          held.reset();
                          call_inherited_handles(parent);
                      }).empty(),
                      "the grandchild");
              require(!held.bytes().empty() && out.try_push(std::move(held)) == weir::PushResult::ok,
                      "the child itself");
          }) == "");
    const weir::BufferPtr answer = parent.in->try_pop();
    REQUIRE(answer);
    CHECK(test::read_number(answer) == 43);
    CHECK(parent.in->try_pop()); // the child's
}
