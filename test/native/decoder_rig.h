// A small decoder on the CPU backend with everything that the tests of model, loss and io ask of it.
#pragma once

#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/random.h"
#include "cpu/device.h"
#include "decoder_reference.h"
#include "model/parameters.h"
#include "model/trainer.h"

namespace tokenring {

inline DecoderConfig tiny_config(bool tied) {
  DecoderConfig c;
  c.vocab_size = 40;
  c.hidden_size = 32;
  c.intermediate_size = 48;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 2;
  c.num_key_value_heads = 1;
  c.head_dim = 16;
  c.max_position_embeddings = 128;
  c.tie_word_embeddings = tied;
  return c;
}

// Heads of another size than hidden / heads, normed, without biases.
inline DecoderConfig qwen3_config() {
  DecoderConfig c = tiny_config(true);
  c.head_dim = 32;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.attention_bias = false;
  c.qk_norm = true;
  return c;
}

// Counts what is asked of the device that it stands for.
class CountingDevice : public Device {
 public:
  explicit CountingDevice(Device& inner) : inner_(inner) {}
  std::string name() const override { return inner_.name(); }
  std::unique_ptr<Stream> stream() override { return inner_.stream(); }
  void* allocate_host(size_t bytes, const char* purpose) override { return inner_.allocate_host(bytes, purpose); }
  void free_host(void* data) noexcept override { inner_.free_host(data); }
  std::vector<HeldMemory> most_held() const override { return inner_.most_held(); }
  std::vector<HeldMemory> most_held_of_host() const override { return inner_.most_held_of_host(); }
  const Ops& ops() const override { return inner_.ops(); }
  void* allocate(size_t bytes, const char* purpose) override {
    void* data = inner_.allocate(bytes, purpose);
    std::lock_guard lock(mutex_);
    ++allocations;
    this->bytes += static_cast<int64_t>(bytes);
    held_[data] = {purpose, static_cast<int64_t>(bytes)};
    return data;
  }
  void free(void* data) noexcept override {
    {
      std::lock_guard lock(mutex_);
      held_.erase(data);
    }
    inner_.free(data);
  }
  // Bytes allocated for a purpose and not given back.
  int64_t held(const std::string& purpose) {
    std::lock_guard lock(mutex_);
    int64_t sum = 0;
    for (const auto& [data, block] : held_) sum += block.first == purpose ? block.second : 0;
    return sum;
  }

  int allocations = 0;
  int64_t bytes = 0;  // ever allocated

 private:
  Device& inner_;
  std::mutex mutex_;
  std::map<void*, std::pair<std::string, int64_t>> held_;
};

struct Rig {
  std::unique_ptr<Device> inner;
  CountingDevice device{*inner};
  std::unique_ptr<Stream> stream = device.stream();
  Parameters parameters;
  Trainer trainer;
  std::atomic<bool> never{false};

  explicit Rig(const DecoderConfig& config, Precision precision = Precision::float32, TrainerOptions options = {})
      : Rig(make_cpu_device(2, precision), config, options) {}
  Rig(std::unique_ptr<Device> of, const DecoderConfig& config, TrainerOptions options = {},
      MomentForm moments = MomentForm::float32, bool on_host = false)
      : inner(std::move(of)),
        parameters(device, config, nullptr, moments, on_host),
        trainer(device, parameters, options) {}

  std::vector<float> read(Tensor flat) {
    std::vector<float> values(static_cast<size_t>(flat.elements()));
    stream->copy_to_host(values.data(), flat.data, flat.bytes());
    stream->synchronize();
    return values;
  }
  void write(Tensor flat, const std::vector<float>& values) {
    stream->copy_to_device(flat.data, values.data(), flat.bytes());
    stream->synchronize();
  }
  std::vector<float> gradient() {
    parameters.complete_gradients(*stream);
    return read(parameters.gradient());
  }

  // Random weights with every bias and norm off its usual value, so that each of them matters.
  void randomise(uint64_t seed, double scale = 0.2) {
    std::vector<float> values(static_cast<size_t>(parameters.elements()), 0.0f);
    for (const NamedSlice& slice : parameters.slices()) {
      const bool matrix = slice.shape.size() == 2, norm = slice.name.find("norm") != std::string::npos;
      for (int64_t i = 0; i < slice.elements(); ++i) {
        const double noise = normal01(seed, static_cast<uint64_t>(slice.offset + i));
        values[slice.offset + i] = static_cast<float>(matrix ? scale * noise : (norm ? 1.0 : 0.0) + 0.1 * noise);
      }
    }
    write(parameters.master(), values);
    parameters.publish(*stream);
    stream->synchronize();
  }

  reference::Model reference() {
    reference::Model model{parameters.config(), {}};
    const std::vector<float> values = read(parameters.master());
    for (const NamedSlice& slice : parameters.slices()) {
      const auto begin = values.begin() + slice.offset;
      model.tensors[slice.name] = reference::Vector(begin, begin + slice.elements());
    }
    return model;
  }
};

// Random documents with random lanes; about a third of the tokens carry no loss.
inline PackedBatch random_batch(const DecoderConfig& config, const std::vector<int32_t>& lengths, uint64_t seed) {
  PackedBatch batch;
  batch.lengths = lengths;
  uint64_t counter = 0;
  for (const int32_t length : lengths) {
    for (int32_t i = 0; i < length; ++i) {
      batch.tokens.push_back(static_cast<int32_t>(uniform01(seed, counter++) * config.vocab_size));
      const float weight = uniform01(seed, counter++);
      batch.weight.push_back(i == 0 || weight < 0.33f ? 0.0f : weight);
      batch.advantage.push_back(2 * uniform01(seed, counter++) - 1);
      batch.old_logprob.push_back(0);
      batch.reference_logprob.push_back(-8 * uniform01(seed + 1, counter));
    }
  }
  return batch;
}

// A behaviour policy near the present one: some ratios are clipped, none lies within `margin` of an edge, where
// the loss has a kink.
inline void set_old_logprobs(PackedBatch& batch, const std::vector<float>& logprob, const PolicyScalars& how,
                             uint64_t seed, double margin = 0.01) {
  for (size_t i = 0; i < logprob.size(); ++i) {
    double ratio;
    uint64_t attempt = 0;
    do {
      ratio = std::exp(0.8 * (uniform01(seed + attempt, i) - 0.5));
      ++attempt;
    } while (std::abs(ratio - (1 - how.clip_low)) < margin || std::abs(ratio - (1 + how.clip_high)) < margin ||
             std::abs(ratio - how.dual_clip) < margin);
    batch.old_logprob[i] = logprob[i] - static_cast<float>(std::log(ratio));
  }
}

inline double relative_l2(const float* got, const double* expected, size_t n) {
  double error = 0, size = 0;
  for (size_t i = 0; i < n; ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(error) / (std::sqrt(size) + 1e-30);
}

inline double relative_l2(const std::vector<float>& got, const std::vector<float>& expected) {
  const reference::Vector wide(expected.begin(), expected.end());
  return got.size() == wide.size() ? relative_l2(got.data(), wide.data(), got.size()) : 1e30;
}

// Runs `work` and returns the code and message of its Failure; empty if it throws none.
template <class Work>
std::string failure_of(Work work) {
  try {
    work();
  } catch (const Failure& failure) {
    return failure.code() + ": " + failure.what();
  }
  return {};
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace tokenring
