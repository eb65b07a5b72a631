// AdamW's moments in eight bits, in blocks of 256 elements (Dettmers et al. 2021, arXiv 2110.02861): a block has a
// float32 scale, its largest absolute value, and each element a code for its share of it.
//
// A code is a decade and one of its steps, fewer the smaller the decade ("dynamic tree quantisation"): from 1 down to
// 10^-6, with N = 2^d steps in decade d = 0 .. 6 at 10^(d - 6) (0.1 + 0.9 (k + 1/2) / N), the last of all at 1. The
// first moment takes 127 such magnitudes of each sign, and 0. The second is kept as its root, which has the first one's
// range and is what the update divides by: 0 and 255 magnitudes, of N = 2^(d + 1), none of which becomes 0 by rounding.
//
// The largest element of a block has a share of 1 exactly, so what was decoded is encoded to the same codes and scale.
#pragma once

#include <cstdint>

namespace tokenring {

constexpr int64_t kMomentBlock = 256;
inline int64_t moment_blocks(int64_t elements) { return (elements + kMomentBlock - 1) / kMomentBlock; }

struct MomentCodes {
  float mean[128];  // of the low seven bits; the highest is the sign
  float root[256];
};
const MomentCodes& moment_codes();

// `count` elements of one block, at most kMomentBlock.
void decode_mean(int64_t count, const uint8_t* codes, float scale, float* mean);
void decode_square(int64_t count, const uint8_t* codes, float scale, float* square);
// Return the scale.
float encode_mean(int64_t count, const float* mean, uint8_t* codes);
float encode_square(int64_t count, const float* square, uint8_t* codes);

}  // namespace tokenring
