// Tilings of the forward attention for a sweep (cuda/sweep.h).
#include "attention_forward.cu"
#include "sweep/variants.cuh"

namespace tokenring::cuda {
namespace {

template <class T, class Chosen>
constexpr SweepVariant forward_variant(const char* tiling) {
  SweepVariant variant{"forward", tiling, T::kHeadDim, std::is_same_v<T, Chosen>, T::kRows, sizeof(ForwardShared<T>)};
  variant.forward = [](CudaStream stream, EncodeTiled encode, const AttentionForward& work) {
    if (work.tile_count > 0) launch_forward<T>(stream, encode, work, parameters_of(work));
  };
  return variant;
}

template <int kConsumers, int kKeys, int kStages>
constexpr SweepVariant of128(const char* tiling) {
  return forward_variant<ForwardTiling<128, kConsumers, kKeys, kStages>, Causal128>(tiling);
}
template <int kConsumers, int kKeys, int kStages>
constexpr SweepVariant of64(const char* tiling) {
  return forward_variant<ForwardTiling<64, kConsumers, kKeys, kStages>, All64>(tiling);
}

constexpr SweepVariant kVariants[] = {
    of128<2, 80, 2>("128 x 80, 2 stages"),   of128<2, 80, 4>("128 x 80, 4 stages"),
    of128<2, 96, 2>("128 x 96, 2 stages"),   of128<2, 96, 3>("128 x 96, 3 stages"),
    of128<2, 112, 2>("128 x 112, 2 stages"), of128<2, 112, 3>("128 x 112, 3 stages"),
    of128<2, 128, 2>("128 x 128, 2 stages"), of128<2, 144, 2>("128 x 144, 2 stages"),
    of128<2, 160, 2>("128 x 160, 2 stages"), of128<2, 176, 2>("128 x 176, 2 stages"),
    of128<3, 64, 2>("192 x 64, 2 stages"),   of128<3, 80, 2>("192 x 80, 2 stages"),
    of64<2, 128, 2>("128 x 128, 2 stages"),  of64<2, 176, 2>("128 x 176, 2 stages"),
    of64<3, 96, 2>("192 x 96, 2 stages"),    of64<3, 128, 2>("192 x 128, 2 stages"),
    of64<3, 128, 3>("192 x 128, 3 stages"),
};

}  // namespace

Variants forward_variants() { return {kVariants, std::size(kVariants)}; }

}  // namespace tokenring::cuda
