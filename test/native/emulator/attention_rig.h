// What the tests of the attention kernels share: packed documents, random inputs, the results in float64.
#pragma once

#include "cuda/attention.h"
#include "ptx.h"
#include "rig.h"

namespace rig {

using tokenring::AttentionTile;
using tokenring::Span;
using tokenring::cuda::HeadTensor;

// N(0, 1), rounded to bf16.
inline std::vector<Bf16> normal_bf16(size_t n, uint64_t seed) {
  const Values u = random_floats(n, seed, 0x1p-24f, 1.0f), v = random_floats(n, seed + 1, 0.0f, 6.2831853f);
  std::vector<Bf16> values;
  for (size_t i = 0; i < n; ++i)
    values.push_back({__float2bfloat16_rn(std::sqrt(-2.0f * std::log(u[i])) * std::cos(v[i])).bits});
  return values;
}

// Documents one after another, each attending to itself.
inline std::vector<AttentionTile> packed(const std::vector<int32_t>& lengths, int32_t row = 0) {
  std::vector<AttentionTile> tiles;
  for (int32_t n : lengths) {
    tiles.push_back({{row, n, 0}, {row, n, 0}});
    row += n;
  }
  return tiles;
}

// The address so many elements before p, which need not be there.
template <class T>
T* before(T* p, int64_t elements) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) - static_cast<uintptr_t>(elements) * sizeof(T));
}

struct AttentionCase {
  int head_dim, heads, kv_heads;
  bool causal;
  int64_t rows;  // of queries and of keys: rows of [q | k | v]
  std::vector<AttentionTile> tiles;
  // Rows that the kernels' tensors have before those of the case, without memory behind them.
  int32_t far = 0;

  int group() const { return heads / kv_heads; }
  int64_t width() const { return int64_t{heads + 2 * kv_heads} * head_dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
  size_t outputs() const { return static_cast<size_t>(rows * heads * head_dim); }
  size_t statistics() const { return static_cast<size_t>(rows * heads); }
  // Element d of a head of a row in [q | k | v].
  size_t q_at(int64_t row, int head, int d) const { return static_cast<size_t>(row * width() + head * head_dim + d); }
  size_t k_at(int64_t row, int head, int d) const { return q_at(row, heads + head, d); }
  size_t v_at(int64_t row, int head, int d) const { return q_at(row, heads + kv_heads + head, d); }
  size_t out_at(int64_t row, int head, int d) const { return static_cast<size_t>((row * heads + head) * head_dim + d); }
  // What the kernels are given.
  HeadTensor view(const Bf16* qkv, int first_head, int count) const {
    return {row_zero(qkv, width()) + first_head * head_dim, far + rows, width(), count, head_dim};
  }
  template <class T>
  T* row_zero(T* p, int64_t columns) const {
    return before(p, far * columns);
  }
  std::vector<AttentionTile> placed(std::vector<AttentionTile> list) const {
    for (AttentionTile& tile : list) {
      tile.q.row += far;
      tile.k.row += far;
    }
    return list;
  }
};

// In float64. Rows that no tile names keep NaN.
struct AttentionResult {
  std::vector<double> out, lse;
};

inline AttentionResult attend(const AttentionCase& c, const std::vector<Bf16>& qkv) {
  AttentionResult result{std::vector<double>(c.outputs(), NAN), std::vector<double>(c.statistics(), NAN)};
  std::vector<double> x;
  for (const Bf16& e : qkv) x.push_back(value(e));
  for (const AttentionTile& tile : c.tiles)
    for (int64_t i = 0; i < tile.q.rows; ++i)
      for (int h = 0; h < c.heads; ++h) {
        const int64_t row = tile.q.row + i;
        const size_t at = static_cast<size_t>(row * c.heads + h);
        // Its keys in all tiles; the first of its tiles does the work.
        if (!std::isnan(result.lse[at])) continue;
        std::vector<int64_t> keys;
        for (const AttentionTile& other : c.tiles)
          if (other.q.row <= row && row < other.q.row + other.q.rows)
            for (int64_t j = 0; j < other.k.rows; ++j)
              if (!c.causal || other.k.position + j <= tile.q.position + i) keys.push_back(other.k.row + j);
        std::vector<double> scores;
        double high = -INFINITY, sum = 0;
        for (int64_t j : keys) {
          double dot = 0;
          for (int d = 0; d < c.head_dim; ++d) dot += x[c.q_at(row, h, d)] * x[c.k_at(j, h / c.group(), d)];
          scores.push_back(dot * c.scale());
          high = std::max(high, scores.back());
        }
        for (double s : scores) sum += std::exp(s - high);
        result.lse[at] = keys.empty() ? -INFINITY : high + std::log(sum);
        for (int d = 0; d < c.head_dim; ++d) {
          double o = 0;
          for (size_t j = 0; j < keys.size(); ++j)
            o += std::exp(scores[j] - result.lse[at]) * x[c.v_at(keys[j], h / c.group(), d)];
          result.out[c.out_at(row, h, d)] = o;
        }
      }
  return result;
}

// ||got - expected|| / ||expected|| over the numbers that are expected; those that are not must be NaN.
template <class T>
double relative_error(const std::vector<T>& got, const std::vector<double>& expected) {
  double error = 0, size = 0;
  CHECK(got.size() == expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i])) {
      CHECK(std::isnan(value(got[i])));
      continue;
    }
    error += (value(got[i]) - expected[i]) * (value(got[i]) - expected[i]);
    size += expected[i] * expected[i];
  }
  return size == 0 ? error : std::sqrt(error / size);
}

}  // namespace rig
