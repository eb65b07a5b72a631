// Tilings of the backward attention for a sweep (cuda/sweep.h).
#include "attention_backward.cu"
#include "sweep/variants.cuh"

namespace tokenring::cuda {
namespace {

template <int kHeadDim, int kStages>
constexpr SweepVariant backward_variant(const char* tiling) {
  using T = BackwardTiling<kHeadDim, kStages>;
  using Chosen = std::conditional_t<kHeadDim == 64, Backward64, Backward128>;
  SweepVariant variant{
      "backward", tiling, kHeadDim, std::is_same_v<T, Chosen>, T::kQueries, sizeof(BackwardShared<T, true>)};
  variant.backward = [](CudaStream stream, EncodeTiled encode, const AttentionBackward& work) {
    if (work.tile_count > 0) launch_backward<T>(stream, encode, work);
  };
  return variant;
}

constexpr SweepVariant kVariants[] = {
    backward_variant<128, 1>("64 x 128, 1 stage"),
    backward_variant<128, 2>("64 x 128, 2 stages"),
    backward_variant<64, 1>("128 x 128, 1 stage"),
    backward_variant<64, 2>("128 x 128, 2 stages"),
};

}  // namespace

Variants backward_variants() { return {kVariants, std::size(kVariants)}; }

}  // namespace tokenring::cuda
