// A test double of NCCL: a library with its functions, for ranks that are threads or processes of one host, over shared
// memory, whose operations run on the streams of an emulated GPU. What it takes of a real one:
//  - operations begin when their stream comes to them and take as long as they like; nothing is buffered;
//  - nothing is compared: ranks that disagree, and ranks whose peers are gone, wait for ever, until ncclCommAbort;
//  - communicators do not block: a call may still be in progress, and then its work is on no stream yet;
//  - sums go in an order of its own, in bf16 with a rounding for each rank.
// What it watches, beyond a real one, and reports as a fault: kind, count, type, reduction and root between the ranks;
// buffers outside the memory of the GPU; inputs that are written to, and outputs that are touched, before the operation
// is through; calls while another is in progress, from two threads at once or after the end; messages without their
// counterpart, and work under way, where a communicator is destroyed.
#pragma once

#include <cstddef>

struct NcclDoubleHooks {
  // Puts begin(op) on the stream and behind it, once done(op), end(op).
  int (*enqueue)(void* stream, void (*begin)(void*), int (*done)(void*), void (*end)(void*), void* op);
  // Whether all of it is the GPU's.
  int (*on_device)(const void* address, size_t bytes);
};

// What happens to the operation of a rank whose number, from 1, is `operation`; 0 is joining.
struct NcclDoublePlan {
  enum class What { nothing, refuse, error, stall, late } what = What::nothing;
  // refuse: the call fails. error: it never ends, and ncclCommGetAsyncError says so. stall: it never ends. late: it
  // takes `milliseconds` more.
  int rank = 0, operation = 1, milliseconds = 0;
};

struct NcclDouble {
  void (*connect)(const NcclDoubleHooks* hooks);
  void (*plan)(const NcclDoublePlan* plan);  // of this process, one at a time; null: none
  // The faults of this process, one a line; and forgets them.
  const char* (*faults)();
};

// The library's own function, extern "C": tokenring_nccl_double().
using NcclDoubleEntry = const NcclDouble* (*)();
