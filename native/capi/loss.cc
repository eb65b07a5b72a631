// The loss head as the trainer runs it: policy_loss (loss/policy_loss.h) on hidden states and a head of the caller's.
#include <utility>

#include "capi/functions.h"
#include "core/schedule.h"
#include "loss/policy_loss.h"

namespace tokenring::capi {
namespace {

struct LossHead {
  LossHead(Engine& engine) : executor(*engine.device, *engine.stream) {}
  Executor executor;
  Schedule schedule;
  LossRows rows;
  LossLanes lanes;
};

}  // namespace

// SFT's loss (nll) of `count` rows of hidden, act [m, h], against a prepared weight [v, h]: dhidden, act [m, h], is
// overwritten, dhead, f32 [v, h], added to. rows, targets, weights: `count` numbers each. chunk_rows 0 = the default.
// The tensors are used by each loss_head_run until loss_head_close. arena: bytes that it holds beside them.
TOKENRING_FUNCTION(
    loss_head_open,
    (Engine * engine, Tensor hidden, void* weight, int64_t v, const int32_t* rows, const int32_t* targets,
     const float* weights, int32_t count, int32_t chunk_rows, Tensor dhidden, Tensor dhead, LossHead** made,
     int64_t* arena),
    {
      auto head = std::make_unique<LossHead>(*engine);
      const Ops& ops = engine->ops();
      head->rows.row.assign(rows, rows + count);
      head->rows.target.assign(targets, targets + count);
      head->rows.weight.assign(weights, weights + count);
      head->rows.advantage.assign(static_cast<size_t>(count), 0.0f);
      head->rows.old_logprob = head->rows.reference_logprob = head->rows.advantage;
      head->rows.begin = {0, count};
      PolicyLoss how;
      how.chunk_rows = chunk_rows;
      how.check();
      Schedule& schedule = head->schedule;
      const int64_t h = hidden.cols(), bytes = static_cast<int64_t>(hidden.bytes());
      const Slot x = schedule.slot(ops.activation(), {hidden.rows(), h});
      schedule.add("copy_on_device", -1, 2 * bytes, 0,
                   [=](const Frame& f) { f.stream.copy_on_device(f[x].data, hidden.data, hidden.bytes()); });
      const Slot dx = policy_loss(schedule, {ops, {v, h, weight}, dhead}, how, x, head->rows, head->lanes);
      schedule.add("copy_on_device", -1, 2 * bytes, 0,
                   [=](const Frame& f) { f.stream.copy_on_device(dhidden.data, f[dx].data, dhidden.bytes()); });
      *arena = static_cast<int64_t>(schedule.arena_bytes());
      *made = head.release();
    });
// Queues one forward and backward.
TOKENRING_FUNCTION(loss_head_run, (LossHead * head), { head->executor.run(head->schedule); });
// The sum of the losses and the logprob of each row, of the last run. Waits for it.
TOKENRING_FUNCTION(loss_head_read, (LossHead * head, float* loss, float* logprobs), {
  head->executor.stream().synchronize();
  double sum = 0;
  for (const float each : head->lanes.loss) sum += each;
  *loss = static_cast<float>(sum);
  std::copy(head->lanes.logprob.begin(), head->lanes.logprob.end(), logprobs);
});
TOKENRING_FUNCTION(loss_head_close, (LossHead * head), {
  head->executor.stream().synchronize();
  delete head;
});

}  // namespace tokenring::capi
