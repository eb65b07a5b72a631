#include "comm_rig.h"

#include <dlfcn.h>

#include <filesystem>
#include <utility>

#include "comm/nccl.h"

namespace comm_rig {

std::string double_file() {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "tokenring_nccl_double.node").string();
}

const nccl::Library& double_library() {
  static const nccl::Library library = [] {
    nccl::Library opened = nccl::open(double_file());
    nccl_double();
    return opened;
  }();
  return library;
}

const NcclDouble& nccl_double() {
  static const NcclDouble& own = []() -> const NcclDouble& {
    void* handle = dlopen(double_file().c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto entry = handle ? reinterpret_cast<NcclDoubleEntry>(dlsym(handle, "tokenring_nccl_double")) : nullptr;
    if (!entry) fail("INTERNAL", double_file(), " is not the double");
    const NcclDoubleHooks hooks = emulator::nccl_hooks();
    entry()->connect(&hooks);
    return *entry();
  }();
  return own;
}

const std::vector<Way>& ways() {
  static const std::unique_ptr<Transport> over_nccl = make_nccl_transport(double_library());
  static const std::vector<Way> all = {{"shared memory", false, shared_memory()}, {"NCCL", true, *over_nccl}};
  return all;
}

Place::Place(bool gpu, uint64_t seed) {
  if (!gpu) return;
  gpu_ = std::make_unique<emulator::Emulation>(seed);
  own_ = gpu_->device();
}

Place::~Place() = default;

Tensor Rank::make(DType dtype, const void* values, size_t count) {
  buffers_.emplace_back(device, std::max<size_t>(1, count) * size_of(dtype));
  stream.copy_to_device(buffers_.back().data(), values, count * size_of(dtype));
  stream.synchronize();
  return tensor(buffers_.back().data(), dtype, {static_cast<int64_t>(count)});
}

std::vector<std::string> run(const Way& way, int size, const std::function<void(Rank&)>& body, milliseconds timeout,
                             const RankNames& names) {
  const UniqueId id = way.transport.make_id();
  std::vector<std::string> failures(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] {
      try {
        Place place(way.gpu, static_cast<uint64_t>(r) + 1);
        const auto stream = place.device().stream();
        Rank rank(place.device(), *stream, r, size);
        const Drain drain{*stream};
        rank.communicator = way.transport.make({id, r, size, timeout, names});
        rank.communicator->join();
        body(rank);
        stream->synchronize();
        rank.communicator.reset();
      } catch (const Failure& failure) {
        failures[static_cast<size_t>(r)] = failure.code() + " " + failure.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return failures;
}

bool none(const std::vector<std::string>& failures) {
  for (const std::string& text : failures) {
    if (text.empty()) continue;
    std::cout << "  " << text << "\n";
    return false;
  }
  return true;
}

bool all(const std::vector<std::string>& failures, const std::string& code, const std::vector<std::string>& words) {
  bool good = true;
  for (const std::string& text : failures) {
    bool here = text.rfind(code, 0) == 0;
    for (const std::string& word : words) here = here && text.find(word) != std::string::npos;
    if (!here) std::cout << "  \"" << text << "\"\n";
    good = good && here;
  }
  return good;
}

void check_faults() {
  const std::string faults = nccl_double().faults();
  if (!faults.empty()) harness::report(__FILE__, __LINE__, "the double saw: ", faults);
}

}  // namespace comm_rig
