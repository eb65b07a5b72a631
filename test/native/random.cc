#include "core/random.h"

#include "harness.h"

namespace tokenring {

TEST(random_mix64_is_splitmix64) {
  // First outputs for the seeds 0 and 1 of the reference generator (Steele, Lea, Flood 2014).
  CHECK(mix64(0) == 0xE220A8397B1DCDAFull);
  CHECK(mix64(1) == 0x910A2DEC89025CC1ull);
}

// A seed's numbers are those of the reference generator started at mix64(seed), one a counter. Computed in Python from
// that generator's definition; seeds of runs that are written down mean these bits.
TEST(random_bits_are_pinned) {
  CHECK(random_bits(0, 0) == 0xA706DD2F4D197E6Full);
  CHECK(random_bits(0, 1) == 0xB382A305F4414F5Eull);
  CHECK(random_bits(1, 0) == 0x5E41AB087439611Eull);
  CHECK(random_bits(7, 3) == 0x9AAF21D8296E1E3Dull);
  CHECK(random_bits(~0ull, 1ull << 40) == 0x8B43DAEF56E676ECull);
  CHECK(uniform01(7, 3) == 10137377.0f / 16777216.0f);  // the upper 24 bits
}

// Five standard errors of the mean and of the variance of n independent draws.
TEST(random_numbers_have_their_moments) {
  constexpr int n = 20000;
  double uniform = 0, normal = 0, square = 0, neighbours = 0, lag = 0;
  for (int i = 0; i < n; ++i) {
    const float u = uniform01(7, i);
    CHECK(u >= 0.0f && u < 1.0f);
    const double z = normal01(7, i);
    uniform += u / static_cast<double>(n);
    normal += z / n;
    square += z * z / n;
    neighbours += z * normal01(8, i) / n;
    lag += z * normal01(7, i + 1) / n;
  }
  CHECK_NEAR(uniform, 0.5, 5 * std::sqrt(1.0 / 12 / n));
  CHECK_NEAR(normal, 0.0, 5 / std::sqrt(1.0 * n));
  CHECK_NEAR(square, 1.0, 5 * std::sqrt(2.0 / n));
  CHECK_NEAR(neighbours, 0.0, 5 / std::sqrt(1.0 * n));  // two seeds have nothing in common
  CHECK_NEAR(lag, 0.0, 5 / std::sqrt(1.0 * n));         // nor do the numbers of one
  CHECK(uniform01(7, 3) == uniform01(7, 3) && uniform01(7, 3) != uniform01(7, 4));
}

}  // namespace tokenring
