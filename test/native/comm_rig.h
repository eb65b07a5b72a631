// Ranks of a communicator, each a thread with a device of its own, for the tests that hold over whatever it goes over:
// shared memory between CPU streams, or NCCL, of which a double stands in, between emulated GPUs.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "comm/nccl_library.h"
#include "emulator/runtime.h"
#include "harness.h"
#include "nccl_double/nccl_double.h"
#include "ops_fixture.h"

namespace comm_rig {

using namespace tokenring;
using std::chrono::milliseconds;

struct Way {
  const char* name;
  bool gpu;
  const Transport& transport;
};
const std::vector<Way>& ways();

// The file of the double, the library as the communicator has it, and what only the double has.
std::string double_file();
const nccl::Library& double_library();
const NcclDouble& nccl_double();

// A device for this thread.
class Place {
 public:
  explicit Place(bool gpu, uint64_t seed = 1);
  ~Place();
  Device& device() { return own_ ? *own_ : fixture::device(); }

 private:
  std::unique_ptr<emulator::Emulation> gpu_;
  std::unique_ptr<Device> own_;
};

// A rank, and tensors that live as long as it does.
class Rank {
 public:
  Rank(Device& device, Stream& stream, int rank, int size) : device(device), stream(stream), r(rank), n(size) {}
  Rank(const Rank&) = delete;

  Tensor f32(const std::vector<float>& values) { return make(DType::f32, values.data(), values.size()); }
  Tensor i32(const std::vector<int32_t>& values) { return make(DType::i32, values.data(), values.size()); }
  Tensor bf16(const std::vector<uint16_t>& values) { return make(DType::bf16, values.data(), values.size()); }
  Tensor zeros(int64_t count) { return f32(std::vector<float>(static_cast<size_t>(count))); }
  // What is there once the stream has come so far.
  template <class T = float>
  std::vector<T> read(const Tensor& t) {
    std::vector<T> values(static_cast<size_t>(t.elements()));
    stream.copy_to_host(values.data(), t.data, t.bytes());
    stream.synchronize();
    return values;
  }

  Device& device;
  Stream& stream;
  const int r, n;
  Communicator& comm() { return *communicator; }
  std::unique_ptr<Communicator> communicator;

 private:
  Tensor make(DType dtype, const void* values, size_t count);
  std::vector<Buffer> buffers_;
};

// Runs `body` on every rank of a new communicator; what each of them failed with, "" for those that did not.
std::vector<std::string> run(const Way& way, int size, const std::function<void(Rank&)>& body,
                             milliseconds timeout = milliseconds(60'000), const RankNames& names = {});

bool none(const std::vector<std::string>& failures);
// Every rank failed, with this code and these words.
bool all(const std::vector<std::string>& failures, const std::string& code, const std::vector<std::string>& words);

// CHECKs that the double has seen nothing wrong.
void check_faults();

}  // namespace comm_rig
