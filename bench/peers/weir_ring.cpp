// weir's own ring, killed as its peers are.
#include "queue_peer.hpp"

namespace {
const bench::Registration kills("peers/kill/weir_ring", "experiment_ns", bench::measure_queue_kills<bench::RingQueue>);
} // namespace
