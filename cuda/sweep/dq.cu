// Tilings of the dQ of deterministic attention for a sweep (cuda/sweep.h).
#include "attention_dq.cu"
#include "sweep/variants.cuh"

namespace tokenring::cuda {
namespace {

template <int kHeadDim, int kKeys, int kStages>
constexpr SweepVariant dq_variant(const char* tiling) {
  using T = DqTiling<kHeadDim, kKeys, kStages>;
  using Chosen = std::conditional_t<kHeadDim == 64, Dq64, Dq128>;
  SweepVariant variant{"dq", tiling, kHeadDim, std::is_same_v<T, Chosen>, T::kRows, sizeof(DqShared<T>)};
  variant.dq = [](CudaStream stream, EncodeTiled encode, const AttentionDq& work) {
    if (work.tile_count > 0) launch_dq<T>(stream, encode, work);
  };
  return variant;
}

constexpr SweepVariant kVariants[] = {
    dq_variant<128, 64, 3>("128 x 64, 3 stages"),  dq_variant<128, 64, 4>("128 x 64, 4 stages"),
    dq_variant<128, 80, 3>("128 x 80, 3 stages"),  dq_variant<128, 96, 2>("128 x 96, 2 stages"),
    dq_variant<128, 96, 3>("128 x 96, 3 stages"),  dq_variant<64, 96, 3>("128 x 96, 3 stages"),
    dq_variant<64, 128, 2>("128 x 128, 2 stages"), dq_variant<64, 128, 3>("128 x 128, 3 stages"),
};

}  // namespace

Variants dq_variants() { return {kVariants, std::size(kVariants)}; }

}  // namespace tokenring::cuda
