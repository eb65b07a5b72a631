// What the two halves of the emulator share: cuda_emulator.cc (fibers, their schedule, memory) and
// cuda_emulator_async.cc (copy engine, tensor cores, barriers in memory).
#pragma once

#include <functional>
#include <string>

#include "core/failure.h"
#include "cuda.h"

namespace emulator {

// A number below n, from the launch's seed.
unsigned draw(size_t n);

unsigned this_thread();

// Puts the running fiber to sleep until wake(). `what` it waits for goes into the message of a deadlock.
void sleep(const char* what, std::source_location where);
void wake(unsigned thread);

// Work that happens by itself after a time drawn from the seed: at once, soon, or when no thread can go on. A Failure
// that it throws is the launch's. `thread` is the one that began it.
void later(std::function<void()> work);

std::string place();  // kernel, block, thread

template <class... Parts>
[[noreturn]] void fault(const char* code, const Parts&... parts) {
  tokenring::fail(code, place(), ": ", parts...);
}

// --- the asynchronous half -----------------------------------------------------------------------------------------

void begin_block_async(unsigned threads, size_t shared_bytes);
// Checks that nothing is in flight.
void end_block_async();
// A load or store by a thread; false if the address is not in dynamic shared memory.
bool access_dynamic(const void* address, size_t bytes, bool is_store);

}  // namespace emulator
