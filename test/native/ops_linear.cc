// Linear layers against float64, with the exactness that sampler and trainer rely on.
#include "harness.h"
#include "ops_fixture.h"

using fixture::Bench;
using fixture::random_floats;
using tokenring::Tensor;

namespace {

struct Size {
  int64_t m, n, k;
};
// Multiples of the blocks, one off them, single rows and columns, depths beyond one block of 256.
const Size kSizes[] = {{1, 1, 1},   {1, 33, 5},   {2, 16, 16},  {12, 32, 64},  {13, 31, 65},
                       {25, 48, 7}, {32, 96, 300}, {97, 130, 40}, {5, 17, 600}, {200, 64, 128}};

std::vector<double> forward(const Size& s, const std::vector<float>& x, const std::vector<float>& w,
                            const std::vector<float>& bias) {
  std::vector<double> y(s.m * s.n);
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = bias.empty() ? 0.0 : bias[j];
      for (int64_t d = 0; d < s.k; ++d) sum += double{x[i * s.k + d]} * w[j * s.k + d];
      y[i * s.n + j] = sum;
    }
  return y;
}

// A chain of k multiply-adds of numbers below 1 is off by at most k * 2^-24 * k in units of 1, and typically by its root.
double tolerance(int64_t depth) { return 1e-6 * (1.0 + 0.1 * static_cast<double>(depth)); }

}  // namespace

TEST(linear_forward_matches_float64) {
  for (const Size& s : kSizes) {
    Bench b;
    const auto x = random_floats(s.m * s.k, 1), w = random_floats(s.n * s.k, 2), bias = random_floats(s.n, 3);
    const Tensor y = b.f32({s.m, s.n}), plain = b.f32({s.m, s.n});
    const auto weight = b.weight(w, s.n, s.k);
    b.ops().linear_forward(b.stream(), b.f32({s.m, s.k}, x), weight, b.f32({s.n}, bias), y);
    b.ops().linear_forward(b.stream(), b.f32({s.m, s.k}, x), weight, {}, plain);
    CHECK_NEAR(fixture::error(b.read(y), forward(s, x, w, bias)), 0.0, tolerance(s.k), "m ", s.m, " n ", s.n, " k ", s.k);
    CHECK_NEAR(fixture::error(b.read(plain), forward(s, x, w, {})), 0.0, tolerance(s.k));
  }
}
