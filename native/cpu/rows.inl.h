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
    TOKENRING_FOR_LANES(j, h, n) {
      const int k = static_cast<int>(n);
      V a = load_n(xi + j, k);
      if (ri) a = add(a, load_n(ri + j, k));
      if (si) store_n(si + j, a, k);
      squares = fma(a, a, squares);
    }
    const V mean = set1(sum(squares) / static_cast<float>(h) + eps);
    const V scale = div(set1(1.0f), sqrt(mean));
    rstd[i] = first(scale);
    const float* from = si ? si : xi;
    TOKENRING_FOR_LANES(j, h, n) {
      const int k = static_cast<int>(n);
      store_n(yi + j, mul(mul(load_n(from + j, k), scale), load_n(w + j, k)), k);
    }
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
    TOKENRING_FOR_LANES(j, h, n) {
      const int k = static_cast<int>(n);
      dot = fma(mul(load_n(dyi + j, k), load_n(w + j, k)), load_n(si + j, k), dot);
    }
    const V scale = set1(rstd[i]);
    const V pull = set1(sum(dot) / static_cast<float>(h) * rstd[i] * rstd[i] * rstd[i]);
    TOKENRING_FOR_LANES(j, h, n) {
      const int k = static_cast<int>(n);
      const V u = mul(load_n(dyi + j, k), load_n(w + j, k));
      V d = fnma(load_n(si + j, k), pull, mul(u, scale));
      if (accumulate) d = add(load_n(out + j, k), d);
      store_n(out + j, d, k);
    }
  }
}

// dw += sum over rows, in order, of dy * (s * rstd), for `cols` columns of rows `ld` long
void rmsnorm_dw(int64_t rows, int64_t cols, int64_t ld, const float* dy, const float* s, const float* rstd, float* dw) {
  TOKENRING_FOR_LANES(j, cols, n) {
    const int k = static_cast<int>(n);
    V sum = load_n(dw + j, k);
    for (int64_t i = 0; i < rows; ++i)
      sum = fma(load_n(dy + i * ld + j, k), mul(load_n(s + i * ld + j, k), set1(rstd[i])), sum);
    store_n(dw + j, sum, k);
  }
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
      TOKENRING_FOR_LANES(j, half, n) {
        const int k = static_cast<int>(n);
        const V a = load_n(low + j, k), b = load_n(high + j, k), cj = load_n(c + j, k);
        V sj = load_n(s + j, k);
        if (backward) sj = sub(zero(), sj);
        store_n(low + j, fnma(b, sj, mul(a, cj)), k);
        store_n(high + j, fma(a, sj, mul(b, cj)), k);
      }
    }
  }
}

TOKENRING_INLINE V sigmoid(V x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }

// y = gate * sigmoid(gate) * up
void swiglu(int64_t rows, int64_t f, const float* gate_up, float* y) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* gate = gate_up + i * 2 * f;
    const float* up = gate + f;
    TOKENRING_FOR_LANES(j, f, n) {
      const int k = static_cast<int>(n);
      const V g = load_n(gate + j, k);
      store_n(y + i * f + j, mul(mul(g, sigmoid(g)), load_n(up + j, k)), k);
    }
  }
}

// dgate = dy * up * sig * (1 + gate * (1 - sig)); dup = dy * gate * sig
void swiglu_backward(int64_t rows, int64_t f, const float* dy, const float* gate_up, float* dgate_up) {
  const V one = set1(1.0f);
  for (int64_t i = 0; i < rows; ++i) {
    const float* gate = gate_up + i * 2 * f;
    float* dgate = dgate_up + i * 2 * f;
    TOKENRING_FOR_LANES(j, f, n) {
      const int k = static_cast<int>(n);
      const V g = load_n(gate + j, k), u = load_n(gate + f + j, k), d = load_n(dy + i * f + j, k);
      const V s = sigmoid(g);
      store_n(dgate + j, mul(mul(d, u), mul(s, fma(g, sub(one, s), one))), k);
      store_n(dgate + f + j, mul(d, mul(g, s)), k);
    }
  }
}

}  // namespace
}  // namespace tokenring
