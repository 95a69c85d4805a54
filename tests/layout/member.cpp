// A member of a domain, built once for each of three layout versions: what members of different ones say to each other.
//
//     member make DOMAIN       makes a domain with a pool and a port, says "ready", and stays until its input ends
//     member VERB DOMAIN       join, look, reap, remove or force: does that, says what came of it, and ends
#include <weir/weir.hpp>

#include <cstdio>
#include <string>
#include <string_view>

#include <unistd.h>

namespace {

constexpr weir::PoolOptions pool_options{.buffer_bytes = 64, .buffer_count = 4};
constexpr weir::PortOptions port_options{.capacity = 4};

std::string run(std::string_view verb, std::string_view domain_name) {
    if (verb == "make" || verb == "join") {
        weir::Domain domain = weir::Domain::join(domain_name);
        weir::BufferPool pool = domain.pool("frames", pool_options);
        weir::Producer producer = domain.producer("raw", port_options);
        static_cast<void>(producer.try_push(pool.try_allocate()));
        if (verb == "make") {
            std::puts("ready");
            std::fflush(stdout);
            char input = 0;
            while (read(STDIN_FILENO, &input, 1) > 0) {
            }
        }
        return domain.check().empty() ? "sound" : "broken";
    }
    if (verb == "look") {
        weir::DomainObserver observer(domain_name);
        return observer.look().notes.empty() && observer.check().empty() ? "sound" : "broken";
    }
    if (verb == "reap") {
        return weir::Domain::reap(domain_name, {}).dead_count == 0 ? "nobody is dead" : "reaped";
    }
    weir::Domain::RemoveOptions options;
    options.force = verb == "force";
    return weir::Domain::remove(domain_name, options) ? "removed" : "not there";
}

} // namespace

int main(int count, char** arguments) {
    if (count != 3) {
        return 2;
    }
    try {
        std::puts(run(arguments[1], arguments[2]).c_str());
        return 0;
    } catch (const std::system_error& error) {
        std::printf("%s\n", error.what());
        return error.code() == weir::errc::wrong_layout ? 3 : 4;
    }
}
