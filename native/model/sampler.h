// Sessions: token streams whose keys and values stay on the device between turns. Engine thread only.
//
// A session is a list of tokens of which the first `cached` have their keys in pages. Extending appends
// tokens; sampling appends sampled ones. Every tick packs what all sessions have pending (observations being
// prefilled beside tokens being decoded) into one forward pass: continuous batching. The token that ends a turn
// is pending until the next turn reads it, so its keys are always written. Forks share full pages.
// New weights drop every session's cache; the tokens stay and are read again when next needed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/device.h"
#include "model/config.h"

namespace tokenring {

class Parameters;

struct SampleRequest {
  int32_t max_tokens = 1;
  std::vector<int32_t> stop;  // ends after any of these, which is kept as the last token
  float temperature = 1.0f;   // 0 = greedy
  uint64_t seed = 0;          // the uniform of a token is a function of (seed, its position) only
};

struct SampleResult {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // at the request's temperature, over the whole vocabulary
  bool stopped = false;         // false: max_tokens reached
  int64_t version = 0;          // of the weights that sampled the first token
};

// error is null on success
using SampleDone = std::function<void(SampleResult, std::exception_ptr error)>;

struct SamplerOptions {
  int32_t max_batch_tokens = 512;  // of one tick
  int64_t max_pages = 0;           // of kPageTokens tokens; 0 = grow as needed
};

class Sampler {
 public:
  Sampler(Device&, Parameters&, SamplerOptions);
  ~Sampler();
  int64_t open();
  int64_t fork(int64_t session);                                  // not while it samples
  void extend(int64_t session, const int32_t* tokens, size_t n);  // not while it samples
  // A logprob that is not finite ends the request with NON_FINITE, which names the weights at fault.
  void sample(int64_t session, SampleRequest, SampleDone);
  void cancel(int64_t session);  // its request ends with Failure ABORTED
  void close(int64_t session);
  bool busy() const;  // any request under way
  void tick();        // one packed forward pass; may finish requests
  struct Usage {
    int64_t sessions = 0, pages = 0, prefilled = 0, decoded = 0;  // counts since the start; pages now
  };
  Usage usage() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokenring
