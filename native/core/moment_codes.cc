#include "core/moment_codes.h"

#include <algorithm>
#include <cmath>

namespace tokenring {
namespace {

// In double, so that they are the same on every machine.
MomentCodes make() {
  constexpr double kDecades[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
  MomentCodes codes{};
  int mean = 0, root = 0;
  for (int decade = 0; decade < 7; ++decade) {
    const auto step = [&](int k, int steps) {
      return static_cast<float>(kDecades[decade] * (0.1 + 0.9 * (k + 0.5) / steps));
    };
    for (int k = 0; k < 1 << decade; ++k) codes.mean[++mean] = step(k, 1 << decade);
    for (int k = 0; k < 2 << decade; ++k) codes.root[++root] = step(k, 2 << decade);
  }
  codes.mean[127] = codes.root[255] = 1;
  return codes;
}

// The nearest of the values 0 .. last, last = 2^n - 1; of two as near, the lower.
int nearest(const float* values, int last, float share) {
  int at = 0;
  for (int step = (last + 1) / 2; step > 0; step /= 2) {
    if ((values[at + step - 1] + values[at + step]) * 0.5f < share) at += step;
  }
  return at;
}

}  // namespace

const MomentCodes& moment_codes() {
  static const MomentCodes codes = make();
  return codes;
}

void decode_mean(int64_t count, const uint8_t* codes, float scale, float* mean) {
  const MomentCodes& values = moment_codes();
  for (int64_t i = 0; i < count; ++i) {
    const float size = values.mean[codes[i] & 127] * scale;
    mean[i] = codes[i] & 128 ? -size : size;
  }
}

void decode_square(int64_t count, const uint8_t* codes, float scale, float* square) {
  const MomentCodes& values = moment_codes();
  for (int64_t i = 0; i < count; ++i) {
    const float root = values.root[codes[i]] * scale;
    square[i] = root * root;
  }
}

float encode_mean(int64_t count, const float* mean, uint8_t* codes) {
  const MomentCodes& values = moment_codes();
  float scale = 0;
  for (int64_t i = 0; i < count; ++i) scale = std::max(scale, std::fabs(mean[i]));
  for (int64_t i = 0; i < count; ++i) {
    const int code = scale > 0 ? nearest(values.mean, 127, std::fabs(mean[i]) / scale) : 0;
    codes[i] = static_cast<uint8_t>(code | (code > 0 && mean[i] < 0 ? 128 : 0));
  }
  return scale;
}

float encode_square(int64_t count, const float* square, uint8_t* codes) {
  const MomentCodes& values = moment_codes();
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, square[i]);
  const float scale = std::sqrt(most);
  for (int64_t i = 0; i < count; ++i) {
    const int code = scale > 0 ? nearest(values.root, 255, std::sqrt(square[i]) / scale) : 0;
    codes[i] = static_cast<uint8_t>(std::max(code, square[i] > 0 ? 1 : 0));
  }
  return scale;
}

}  // namespace tokenring
