// AdamW over flat buffers with a global gradient norm and clipping (Loshchilov & Hutter 2019; the update is
// PyTorch's torch.optim.AdamW after torch.nn.utils.clip_grad_norm_).
#pragma once

#include <cstdint>
#include <vector>

#include "core/device.h"
#include "core/ops.h"
#include "core/tensor.h"

namespace tokenring {

struct AdamW {
  float learning_rate = 1e-6f, beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, weight_decay = 0.1f;
  float clip_norm = 1.0f;  // 0 = off

  void check() const;  // Failure INVALID_ARGUMENT that names the field
  // What the gradients are multiplied by where their norm is `norm`.
  float scale(double norm) const {
    return clip_norm > 0 && norm > clip_norm ? static_cast<float>(clip_norm / norm) : 1.0f;
  }
};

// Consecutive elements of the flat buffers that share the choice of weight decay.
struct OptimiserSegment {
  int64_t offset = 0, elements = 0;
  bool decay = true;
};

// What the moments are kept as: float32, or one byte each (core/moment_codes.h).
enum class MomentForm { float32, eight_bit };

// Flat buffers of one length, float32. Moments in eight bits are u8, with the scales of their blocks, which float32
// ones do not have. The gradient ends as zeros.
struct OptimiserState {
  Tensor weight, gradient, first_moment, second_moment, first_scale = {}, second_scale = {};
};

// Some elements, from number `offset` on, of a flat buffer, as float32; of a moment in eight bits, which has scales,
// what its codes say. Waits for the stream.
void read_flat(Stream&, Tensor flat, Tensor scale, bool second, int64_t offset, int64_t count, float* to);
// Gives a moment in eight bits the values of all its elements. Waits for the stream.
void encode_flat(Stream&, const float* from, bool second, Tensor flat, Tensor scale);

class AdamWOptimiser {
 public:
  // `elements`: length of the flat buffers. What no segment covers (the zeros between tensors) stays as it is. For
  // moments in eight bits segments begin at multiples of kMomentBlock.
  AdamWOptimiser(Device&, std::vector<OptimiserSegment> segments, int64_t elements);

  // In float64, and the norm that is made of it, or of the sum of several: infinity where it leaves float32. Waits for
  // the stream.
  double sum_of_squares(Stream&, Tensor flat) const;
  // To the device's memory, of at most as many elements, without waiting.
  void queue_sum_of_squares(Stream&, Tensor flat, double* to) const;
  static double norm_of(double sum_of_squares);

  // Queues update number `step` (1-based). `norm` is the gradient's; above clip_norm the gradient counts times
  // clip_norm / norm.
  void step(Stream&, const AdamW&, int64_t step, double norm, const OptimiserState&) const;
  // The same of some elements alone, those from number `begin` on, whose state `part` is; the gradient stays.
  void update(Stream&, const AdamW&, int64_t step, double norm, const OptimiserState& part, int64_t begin) const;

 private:
  const Ops& ops_;
  std::vector<OptimiserSegment> segments_;
  Buffer workspace_, sum_;
};

}  // namespace tokenring
