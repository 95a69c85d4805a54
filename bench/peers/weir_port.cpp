// weir's own port, killed as its peers are.
#include "message_peer.hpp"

namespace {
const bench::Registration kills("peers/kill/weir_port", "experiment_ns",
                                bench::measure_message_kills<bench::WeirChannel>);
} // namespace
