// weir.hpp: all of weir.
//
// From below to above, each layer usable without those above it:
// - platform, error, file, offset_ptr, futex, fork_guard, reference: what all else is made of;
// - process, segment, ring, event_count, process_table, free_hints: shared structures, each usable alone;
// - buffer_pool: buffers with attributed references, BufferPtr, SharedBufferAllocator;
// - port: Producer and Consumer on a queue of buffer references;
// - reap: what a dead process held comes back;
// - domain: programs find each other, and each other's pools and ports, by name;
// - block, scheduler: units of work, and the threads that run them;
// - blocks: ready-made ones, for files and to put between.
//
// Each header opens with what it is for, who may call what at the same time, and what happens when a process dies inside.
// docs/design.md explains why it is built this way.
#pragma once

#include <weir/block.hpp>
#include <weir/blocks.hpp>
#include <weir/buffer_pool.hpp>
#include <weir/domain.hpp>
#include <weir/error.hpp>
#include <weir/event_count.hpp>
#include <weir/file.hpp>
#include <weir/fork_guard.hpp>
#include <weir/free_hints.hpp>
#include <weir/futex.hpp>
#include <weir/observer.hpp>
#include <weir/offset_ptr.hpp>
#include <weir/platform.hpp>
#include <weir/port.hpp>
#include <weir/process.hpp>
#include <weir/process_table.hpp>
#include <weir/reap.hpp>
#include <weir/reference.hpp>
#include <weir/registry.hpp>
#include <weir/ring.hpp>
#include <weir/scheduler.hpp>
#include <weir/segment.hpp>
