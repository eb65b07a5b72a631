// The policy loss for programs that hold hidden states or logits, the head and the gradients themselves.
#pragma once

#include <atomic>

#include "core/device.h"
#include "loss/policy_loss.h"

namespace tokenring {

// Rows and lanes as in policy_loss.h; rows.row are rows of `hidden` or `logits`. All tensors f32. Both wait for the
// stream. Failure INVALID_ARGUMENT for lanes that the objective needs and rows has not, NON_FINITE naming the row whose
// loss is not finite; what was written or added by then is of no use.

// hidden [m,h] predicts through head [v,h]. dhidden is overwritten, dhead added to; both null: no gradients.
LossLanes loss_of_hidden(Device&, Stream&, const PolicyLoss&, const LossRows&, Tensor hidden, Tensor head,
                         Tensor dhidden, Tensor dhead, const std::atomic<bool>& aborted);

// logits [m,v]. dlogits is overwritten, with zeros in rows that carry no loss; it may be `logits` itself, or null.
LossLanes loss_of_logits(Device&, Stream&, const PolicyLoss&, const LossRows&, Tensor logits, Tensor dlogits);

}  // namespace tokenring
