// The decoder that the trainer and the sampler share, as entries of a Schedule.
//
// Pre-norm blocks of the Qwen2, Qwen3 and Llama families (biases b in Qwen2, qk_norm in Qwen3):
//   s1 = x + r;  y1 = rmsnorm(s1);  qkv = y1 Wqkv^T + b;  qk_norm; rope;  a = attend(qkv);  r = a Wo^T
//   s2 = s1 + r; y2 = rmsnorm(s2);  gu = y2 Wgu^T;  m = silu(gate) * up;           r = m Wdown^T
// and hidden = rmsnorm(s2 + r) after the last. It reaches parameters, gradients and attention only through the
// seams (core/seams.h), so one rank, shards and rings build from the same code.
#pragma once

#include <vector>

#include "core/offload.h"
#include "core/ops.h"
#include "core/schedule.h"
#include "core/seams.h"
#include "model/config.h"

namespace tokenring {

// What forward() keeps for backward(). Checkpoints are the input of each layer and what its attention gave; backward()
// computes the rest of a layer again, with the same bits, just before it is needed, and attention never.
enum class Keep { nothing, checkpoints, everything };

// What forward() leaves in the arena: `hidden`, and as much of the rest as it was told to keep.
struct DecoderPass {
  struct Layer {
    Slot s1, rstd1, y1;   // residual stream [m,h] before attention (a checkpoint), f32 [m], normed [m,h]
    Slot qk, rstd_qk;     // with qk_norm: q and k before it [m, (heads + kv) d], f32 [m, heads + kv]
    Slot qkv;             // after rope [m, (heads + 2 kv) d]
    Slot out, lse;        // of attention (checkpoints): [m, heads d]; f32 [m, heads]
    Slot s2, rstd2, y2;   // the same before the MLP
    Slot gate_up, gated;  // [m, 2f], [m, f]
  };
  Keep keep = Keep::nothing;
  Slot tokens, positions;  // i32 [m], the caller's
  Slot hidden;             // [m,h] after the final norm; whoever called forward() releases it
  std::vector<Layer> layers;
  Slot s, rstd;  // input of the final norm and its statistics
};

class Decoder {
 public:
  // `ops` and the memory of `rope` outlive the decoder and every schedule built by it. Where the MLP's inner rows are
  // not kept, it takes `mlp_rows` rows at a time (0: all), forth and back: what lies between its products is then that
  // much. In multiples of Ops::cut_rows() the bits are the same.
  Decoder(const DecoderConfig& config, const Ops& ops, RopeTable rope, int64_t mlp_rows = 0);

  const DecoderConfig& config() const { return config_; }
  const Ops& ops() const { return ops_; }

  // Forward over m packed rows. tokens and positions: i32 [m]; positions index the rope table. `offload`: where the
  // checkpoints of a pass that keeps no more are put; null: nowhere.
  DecoderPass forward(Schedule&, ParamSource&, Attend&, Slot tokens, Slot positions, Keep keep,
                      Offload* offload = nullptr) const;

  // Backward of a pass that kept something. dhidden [m,h]: gradient of pass.hidden; it is consumed (overwritten and
  // released), and so is everything that the pass kept, pass.hidden included. Gradients are added to the sink's.
  // `offload` as in forward().
  void backward(Schedule&, ParamSource&, GradSink&, Attend&, const DecoderPass&, Slot dhidden,
                Offload* offload = nullptr) const;

  // What forward() and, with a sink, backward() ask of the seams, and nothing else: for a rank without tokens among
  // ranks that gather parameters and sum gradients on the way.
  void idle(Schedule&, ParamSource&, GradSink*) const;

  // Logits f32 [r, vocab] of rows `index` (i32 [r]) of hidden [m,h]. The caller releases them. Each row's bits
  // depend on that row alone.
  Slot logits(Schedule&, ParamSource&, Slot hidden, Slot index) const;

 private:
  template <class Work>
  void in_parts(int64_t m, const Work& work) const;

  DecoderConfig config_;
  const Ops& ops_;
  RopeTable rope_;
  int64_t mlp_rows_;
};

}  // namespace tokenring
