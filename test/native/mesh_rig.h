// Ranks of a mesh, each a thread with a device, parameters and a trainer of its own.
#pragma once

#include <functional>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "decoder_rig.h"
#include "parallel/mesh.h"

namespace tokenring {

struct MeshRank {
  std::unique_ptr<Device> inner = make_cpu_device(1);
  CountingDevice device{*inner};
  Mesh mesh;
  Parameters parameters;
  Trainer trainer;
  std::unique_ptr<Stream> stream = device.stream();
  std::atomic<bool> never{false};

  MeshRank(const DecoderConfig& config, const MeshOptions& options, TrainerOptions of_trainer, MomentForm moments)
      : mesh(device, shared_memory(), options),
        parameters(device, config, &mesh, moments),
        trainer(device, parameters, of_trainer, &mesh) {
    mesh.join();
  }

  std::vector<float> read(Tensor flat) {
    std::vector<float> values(static_cast<size_t>(flat.elements()));
    stream->copy_to_host(values.data(), flat.data, flat.bytes());
    stream->synchronize();
    return values;
  }
  void write(const std::vector<float>& weights) {
    stream->copy_to_device(parameters.master().data, weights.data(), weights.size() * sizeof(float));
    parameters.publish(*stream);
    stream->synchronize();
  }
};

// Runs `body` on every rank; what each failed with ("CODE: message"), "" for those that did not.
inline std::vector<std::string> on_mesh(const DecoderConfig& config, MeshOptions options, TrainerOptions of_trainer,
                                        const std::function<void(MeshRank&)>& body,
                                        MomentForm moments = MomentForm::float32) {
  options.id = shared_memory().make_id();
  std::vector<std::string> failures(options.size);
  std::vector<std::thread> threads;
  for (int r = 0; r < options.size; ++r)
    threads.emplace_back([&, r] {
      MeshOptions own = options;
      own.rank = r;
      failures[r] = failure_of([&] {
        MeshRank rank(config, own, of_trainer, moments);
        body(rank);
      });
    });
  for (std::thread& thread : threads) thread.join();
  return failures;
}

inline bool none_failed(const std::vector<std::string>& failures) {
  bool none = true;
  for (const std::string& text : failures) {
    if (!text.empty()) std::cout << "  " << text << "\n";
    none = none && text.empty();
  }
  return none;
}

inline MeshOptions mesh_of(int size, int context_parallel = 1, ContextSchedule schedule = ContextSchedule::ring,
                           int ranks_per_node = 0) {
  MeshOptions options;
  options.size = size;
  options.context_parallel = context_parallel;
  options.context_schedule = schedule;
  options.ranks_per_node = ranks_per_node;
  options.timeout = std::chrono::milliseconds(60'000);
  return options;
}

// Largest relative L2 over the tensors of the model.
inline double worst_tensor(const Parameters& parameters, const std::vector<float>& got,
                           const std::vector<float>& expected) {
  if (got.size() != expected.size()) return INFINITY;
  double worst = 0;
  for (const NamedSlice& slice : parameters.slices()) {
    const auto part = [&](const std::vector<float>& flat) {
      return std::vector<float>(flat.begin() + slice.offset, flat.begin() + slice.offset + slice.elements());
    };
    worst = std::max(worst, relative_l2(part(got), part(expected)));
  }
  return worst;
}

}  // namespace tokenring
