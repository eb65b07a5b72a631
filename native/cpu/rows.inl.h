// Row-wise parts of a layer: RMSNorm, rotary embedding, gated MLP.
#pragma once

#include "cpu/kernels.h"
#include "cpu/math.inl.h"

namespace tokenring {
namespace {

// s = x (+ r); rstd = 1 / sqrt(mean(s^2) + eps); y = (s * rstd) * w
void rmsnorm(int64_t rows, int64_t h, const float* x, const float* r, const float* w, float eps, float* s, float* y,
             float* rstd) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* xi = x + i * h;
    const float* ri = r ? r + i * h : nullptr;
    float* si = s ? s + i * h : nullptr;
    float* yi = y + i * h;
    V squares = zero();
    for_lanes(
        h, TOKENRING_LANES_BODY(j, k) {
          V a = load(xi + j, k);
          if (ri) a = add(a, load(ri + j, k));
          if (si) store(si + j, a, k);
          squares = fma(a, a, squares);
        });
    const V mean = set1(sum(squares) / static_cast<float>(h) + eps);
    // Squares that overflow would make zeros of a row that has none.
    const V scale = select(less(mean, set1(kInfinity)), div(set1(1.0f), sqrt(mean)), set1(__builtin_nanf("")));
    rstd[i] = first(scale);
    const float* from = si ? si : xi;
    for_lanes(
        h, TOKENRING_LANES_BODY(j, k) { store(yi + j, mul(mul(load(from + j, k), scale), load(w + j, k)), k); });
  }
}

// With u = dy * w: ds (+)= rstd * u - s * (rstd^3 / h) * sum(u * s)
void rmsnorm_dx(int64_t rows, int64_t h, const float* dy, const float* s, const float* w, const float* rstd, float* ds,
                bool accumulate) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* dyi = dy + i * h;
    const float* si = s + i * h;
    float* out = ds + i * h;
    V dot = zero();
    for_lanes(
        h, TOKENRING_LANES_BODY(j, k) { dot = fma(mul(load(dyi + j, k), load(w + j, k)), load(si + j, k), dot); });
    const V scale = set1(rstd[i]);
    const V pull = set1(sum(dot) / static_cast<float>(h) * rstd[i] * rstd[i] * rstd[i]);
    for_lanes(
        h, TOKENRING_LANES_BODY(j, k) {
          const V u = mul(load(dyi + j, k), load(w + j, k));
          V d = fnma(load(si + j, k), pull, mul(u, scale));
          if (accumulate) d = add(load(out + j, k), d);
          store(out + j, d, k);
        });
  }
}

// dw += sum over rows, in order, of dy * (s * rstd), for `cols` columns of rows `ld` long
void rmsnorm_dw(int64_t rows, int64_t cols, int64_t ld, const float* dy, const float* s, const float* rstd, float* dw) {
  for_lanes(
      cols, TOKENRING_LANES_BODY(j, k) {
        V sum = load(dw + j, k);
        for (int64_t i = 0; i < rows; ++i)
          sum = fma(load(dy + i * ld + j, k), mul(load(s + i * ld + j, k), set1(rstd[i])), sum);
        store(dw + j, sum, k);
      });
}

// Half-split rotation of the first `rotated_heads` heads of each row; `backward` turns the other way.
void rope(int64_t rows, int64_t ld, int rotated_heads, int head_dim, const int32_t* positions, const float* cos,
          const float* sin, bool backward, float* x) {
  const int half = head_dim / 2;
  for (int64_t i = 0; i < rows; ++i) {
    const float* c = cos + static_cast<int64_t>(positions[i]) * half;
    const float* s = sin + static_cast<int64_t>(positions[i]) * half;
    for (int head = 0; head < rotated_heads; ++head) {
      float* low = x + i * ld + static_cast<int64_t>(head) * head_dim;
      float* high = low + half;
      for_lanes(
          half, TOKENRING_LANES_BODY(j, k) {
            const V a = load(low + j, k), b = load(high + j, k), cj = load(c + j, k);
            V sj = load(s + j, k);
            if (backward) sj = sub(zero(), sj);
            store(low + j, fnma(b, sj, mul(a, cj)), k);
            store(high + j, fma(a, sj, mul(b, cj)), k);
          });
    }
  }
}

TOKENRING_INLINE V sigmoid(V x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }

// y = gate * sigmoid(gate) * up
void swiglu(int64_t rows, int64_t f, const float* gate_up, float* y) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* gate = gate_up + i * 2 * f;
    const float* up = gate + f;
    for_lanes(
        f, TOKENRING_LANES_BODY(j, k) {
          const V g = load(gate + j, k);
          store(y + i * f + j, mul(mul(g, sigmoid(g)), load(up + j, k)), k);
        });
  }
}

// dgate = dy * up * sig * (1 + gate * (1 - sig)); dup = dy * gate * sig
void swiglu_backward(int64_t rows, int64_t f, const float* dy, const float* gate_up, float* dgate_up) {
  const V one = set1(1.0f);
  for (int64_t i = 0; i < rows; ++i) {
    const float* gate = gate_up + i * 2 * f;
    float* dgate = dgate_up + i * 2 * f;
    for_lanes(
        f, TOKENRING_LANES_BODY(j, k) {
          const V g = load(gate + j, k), u = load(gate + f + j, k), d = load(dy + i * f + j, k);
          const V s = sigmoid(g);
          store(dgate + j, mul(mul(d, u), mul(s, fma(g, sub(one, s), one))), k);
          store(dgate + f + j, mul(d, mul(g, s)), k);
        });
  }
}

}  // namespace
}  // namespace tokenring
