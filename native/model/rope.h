// Frequencies of the rotary embedding: plain, YaRN and Llama 3's, in float64.
#pragma once

#include <vector>

#include "model/config.h"

namespace tokenring {

struct RopeFrequencies {
  std::vector<double> radians;  // a position, for each of the head_dim / 2 planes
  double magnitude = 1;         // factor on cosine and sine (YaRN's attention factor)
};

// Plain: theta^(-2i / head_dim). YaRN: arXiv 2309.00071, with the options that transformers reads from
// rope_parameters. llama3: the scheme of Llama 3.1, which divides low frequencies by `factor`, leaves high ones and
// blends between.
RopeFrequencies rope_frequencies(const DecoderConfig&);

}  // namespace tokenring
