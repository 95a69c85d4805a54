// weir.hpp: all of weir.
#pragma once

#include <weir/buffer_pool.hpp>
#include <weir/error.hpp>
#include <weir/event_count.hpp>
#include <weir/free_hints.hpp>
#include <weir/futex.hpp>
#include <weir/offset_ptr.hpp>
#include <weir/platform.hpp>
#include <weir/port.hpp>
#include <weir/process_table.hpp>
#include <weir/reap.hpp>
#include <weir/reference.hpp>
#include <weir/ring.hpp>
#include <weir/segment.hpp>
