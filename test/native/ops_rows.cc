// RMSNorm, rotary embedding, gated MLP, AdamW, sums: against float64, and equal bits however rows are split.
#include <algorithm>
#include <cmath>
#include <limits>

// The scalar version; the tests of equal bits cover the others.
#define TOKENRING_ISA_SCALAR
#include "cpu/math.inl.h"
#include "harness.h"
#include "ops_fixture.h"

using fixture::Bench;
using fixture::random_floats;
using tokenring::RopeTable;
using tokenring::Tensor;

namespace {

constexpr int64_t kRows = 21;
const int64_t kWidths[] = {1, 16, 37, 128};

// d f / d x_i by central differences of a float64 function.
template <class Function>
std::vector<double> differences(std::vector<double> x, const Function& f) {
  std::vector<double> slope(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double at = x[i], step = 1e-5;
    x[i] = at + step;
    const double up = f(x);
    x[i] = at - step;
    slope[i] = (up - f(x)) / (2 * step);
    x[i] = at;
  }
  return slope;
}

std::vector<double> rmsnorm(const std::vector<double>& s, const std::vector<double>& w, double eps) {
  const size_t h = w.size();
  std::vector<double> y(s.size());
  for (size_t i = 0; i < s.size() / h; ++i) {
    double squares = 0;
    for (size_t j = 0; j < h; ++j) squares += s[i * h + j] * s[i * h + j];
    for (size_t j = 0; j < h; ++j) y[i * h + j] = s[i * h + j] / std::sqrt(squares / h + eps) * w[j];
  }
  return y;
}

std::vector<double> swiglu(const std::vector<double>& x, size_t f) {
  std::vector<double> y(x.size() / 2);
  for (size_t i = 0; i < y.size(); ++i) {
    const double g = x[i / f * 2 * f + i % f], u = x[i / f * 2 * f + f + i % f];
    y[i] = g / (1 + std::exp(-g)) * u;
  }
  return y;
}

double dot(const std::vector<double>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

std::vector<double> wide(const std::vector<float>& x) { return {x.begin(), x.end()}; }

RopeTable rope_table(Bench& b, int64_t positions, int head_dim) {
  std::vector<float> cos, sin;
  for (int64_t p = 0; p < positions; ++p)
    for (int i = 0; i < head_dim / 2; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / head_dim);
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
  return {b.f32({positions, head_dim / 2}, cos), b.f32({positions, head_dim / 2}, sin)};
}

}  // namespace

TEST(exp_and_log_are_within_two_ulp) {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto ulps = [](float got, double exact) {
    const float nearest = static_cast<float>(exact);
    return std::abs(got - exact) /
           (std::nextafter(std::abs(nearest), std::numeric_limits<float>::infinity()) - std::abs(nearest));
  };
  double worst_exp = 0, worst_log = 0;
  fixture::Random random(1);
  for (int i = 0; i < 200000; ++i) {
    const float x = random.uniform(-87.3f, 88.7f), y = random.uniform(-1, 1);
    worst_exp = std::max(
        {worst_exp, ulps(tokenring::exp(x), std::exp(double{x})), ulps(tokenring::exp(y), std::exp(double{y}))});
    const float a = std::exp2(random.uniform(-126, 127)), c = random.uniform(0.5f, 2.0f);
    worst_log = std::max(
        {worst_log, ulps(tokenring::log(a), std::log(double{a})), ulps(tokenring::log(c), std::log(double{c}))});
  }
  CHECK_NEAR(worst_exp, 0, 2.0);
  CHECK_NEAR(worst_log, 0, 2.0);
  CHECK(tokenring::exp(0.0f) == 1.0f && tokenring::exp(-infinity) == 0.0f && tokenring::exp(-100.0f) == 0.0f &&
        tokenring::exp(infinity) == infinity);
  CHECK(tokenring::exp(88.73f) == infinity && std::isnan(tokenring::exp(NAN)) && tokenring::exp(88.7228f) < infinity &&
        tokenring::exp(-87.336f) > 0.0f);
  CHECK(tokenring::log(1.0f) == 0.0f && tokenring::log(0.0f) == -infinity && tokenring::log(infinity) == infinity &&
        std::isnan(tokenring::log(-1.0f)));
  CHECK(std::isnan(tokenring::log(NAN)));
}

TEST(rmsnorm_matches_float64) {
  for (int64_t h : kWidths) {
    const auto x = random_floats(kRows * h, 1, -3, 3), r = random_floats(kRows * h, 2), w = random_floats(h, 3, 0.5, 2),
               dy = random_floats(kRows * h, 4), ds0 = random_floats(kRows * h, 5), dw0 = random_floats(h, 6);
    Bench b;
    const Tensor s = b.f32({kRows, h}), y = b.f32({kRows, h}), rstd = b.f32({kRows}), tw = b.f32({h}, w);
    b.ops().rmsnorm_forward(b.stream(), b.f32({kRows, h}, x), b.f32({kRows, h}, r), tw, 1e-6f, s, y, rstd);
    const auto sum = b.read(s);
    for (size_t i = 0; i < sum.size(); ++i) CHECK(sum[i] == x[i] + r[i]);
    CHECK_NEAR(fixture::error(b.read(y), rmsnorm(wide(sum), wide(w), 1e-6)), 0, 1e-6);

    const Tensor ds = b.f32({kRows, h}), added = b.f32({kRows, h}, ds0), dw = b.f32({h}, dw0),
                 tdy = b.f32({kRows, h}, dy);
    b.ops().rmsnorm_backward(b.stream(), tdy, s, tw, rstd, ds, false, dw);
    b.ops().rmsnorm_backward(b.stream(), tdy, s, tw, rstd, added, true, b.f32({h}, dw0));
    const auto expected = differences(wide(sum), [&](const auto& v) { return dot(rmsnorm(v, wide(w), 1e-6), dy); });
    auto expected_w = differences(wide(w), [&](const auto& v) { return dot(rmsnorm(wide(sum), v, 1e-6), dy); });
    for (int64_t j = 0; j < h; ++j) expected_w[j] += dw0[j];
    // Central differences in float64 are good to about 1e-9 here (h = 1 has rstd up to 1e3 near 0, hence no tighter).
    CHECK_NEAR(fixture::error(b.read(ds), expected), 0, 2e-6, "width ", h);
    CHECK_NEAR(fixture::error(b.read(dw), expected_w), 0, 2e-6, "width ", h);
    const auto plain = b.read(ds), more = b.read(added);
    for (size_t i = 0; i < plain.size(); ++i) CHECK(more[i] == ds0[i] + plain[i]);

    // Without a residual: the sum is x itself, in place or copied.
    const Tensor in = b.f32({kRows, h}, x), y2 = b.f32({kRows, h}), y3 = b.f32({kRows, h}), copy = b.f32({kRows, h});
    b.ops().rmsnorm_forward(b.stream(), in, {}, tw, 1e-6f, in, y2, rstd);
    b.ops().rmsnorm_forward(b.stream(), in, {}, tw, 1e-6f, copy, y3, rstd);
    CHECK(fixture::same_bits(b.read(in), x) && fixture::same_bits(b.read(copy), x));
    CHECK(fixture::same_bits(b.read(y2), b.read(y3)));
    CHECK_NEAR(fixture::error(b.read(y2), rmsnorm(wide(x), wide(w), 1e-6)), 0, 1e-6);
  }
}

TEST(rmsnorm_that_overflows_is_not_a_number) {
  for (const std::string& isa : fixture::isas()) {
    Bench b(isa);
    auto x = random_floats(2 * 20, 1);
    x[27] = -1e20f;  // finite, its square is not
    const Tensor y = b.f32({2, 20}), rstd = b.f32({2});
    b.ops().rmsnorm_forward(b.stream(), b.f32({2, 20}, x), {}, b.f32({20}, random_floats(20, 2)), 1e-6f, {}, y, rstd);
    const auto values = b.read(y);
    for (int j = 0; j < 20; ++j) CHECK(std::isfinite(values[j]) && std::isnan(values[20 + j]));
    CHECK(std::isnan(b.read(rstd)[1]));
  }
}

TEST(qk_norm_matches_float64) {
  const int heads = 3, kv_heads = 2;
  for (const int64_t d : {2, 16, 37, 64}) {
    const int64_t normed = heads + kv_heads, width = (normed + kv_heads) * d;
    const auto x = random_floats(kRows * width, 1, -3, 3), wq = random_floats(d, 2, 0.5, 2),
               wk = random_floats(d, 3, 0.5, 2), dy = random_floats(kRows * width, 4), dwq0 = random_floats(d, 5),
               dwk0 = random_floats(d, 6);
    Bench b;
    const Tensor qkv = b.f32({kRows, width}, x), raw = b.f32({kRows, normed * d}), rstd = b.f32({kRows, normed}),
                 tq = b.f32({d}, wq), tk = b.f32({d}, wk);
    b.ops().qk_norm_forward(b.stream(), qkv, tq, tk, 1e-6f, heads, kv_heads, raw, rstd);
    const Tensor unkept = b.f32({kRows, width}, x);
    b.ops().qk_norm_forward(b.stream(), unkept, tq, tk, 1e-6f, heads, kv_heads, Tensor{}, b.f32({kRows, normed}));
    CHECK(fixture::same_bits(b.read(qkv), b.read(unkept)));

    // All of a head's float64 function: what is normed, and v as it was.
    const auto expected = [&](const std::vector<double>& in, const std::vector<double>& q,
                              const std::vector<double>& k) {
      std::vector<double> out = in;
      for (int64_t i = 0; i < kRows; ++i)
        for (int64_t head = 0; head < normed; ++head) {
          const auto at = in.begin() + i * width + head * d;
          const auto y = rmsnorm({at, at + d}, head < heads ? q : k, 1e-6);
          std::copy(y.begin(), y.end(), out.begin() + i * width + head * d);
        }
      return out;
    };
    CHECK_NEAR(fixture::error(b.read(qkv), expected(wide(x), wide(wq), wide(wk))), 0, 1e-6);

    const Tensor dqkv = b.f32({kRows, width}, dy), dq = b.f32({d}, dwq0), dk = b.f32({d}, dwk0);
    b.ops().qk_norm_backward(b.stream(), dqkv, raw, tq, tk, rstd, heads, kv_heads, dq, dk);
    const auto f = [&](const std::vector<double>& in, const std::vector<double>& q, const std::vector<double>& k) {
      return dot(expected(in, q, k), dy);
    };
    // Central differences of three rows are enough: rows do not touch each other.
    const std::vector<float> got = b.read(dqkv);
    std::vector<double> slope(got.begin(), got.end());
    for (const int64_t row : {0, 7, 20})
      for (int64_t j = 0; j < width; ++j) {
        std::vector<double> up = wide(x), down = up;
        up[row * width + j] += 1e-5;
        down[row * width + j] -= 1e-5;
        slope[row * width + j] = (f(up, wide(wq), wide(wk)) - f(down, wide(wq), wide(wk))) / 2e-5;
      }
    CHECK_NEAR(fixture::error(got, slope), 0, 2e-6);
    auto dwq = differences(wide(wq), [&](const auto& w) { return f(wide(x), w, wide(wk)); });
    auto dwk = differences(wide(wk), [&](const auto& w) { return f(wide(x), wide(wq), w); });
    for (int64_t j = 0; j < d; ++j) {
      dwq[j] += dwq0[j];
      dwk[j] += dwk0[j];
    }
    CHECK_NEAR(fixture::error(b.read(dq), dwq), 0, 2e-6);
    CHECK_NEAR(fixture::error(b.read(dk), dwk), 0, 2e-6);
  }
}

TEST(qk_norm_has_the_same_bits_everywhere_and_in_parts) {
  const int heads = 3, kv_heads = 2;
  const int64_t rows = 300, d = 40, normed = heads + kv_heads, width = (normed + kv_heads) * d;
  const auto x = random_floats(rows * width, 1), wq = random_floats(d, 2), wk = random_floats(d, 3),
             dy = random_floats(rows * width, 4);
  const auto run = [&](Bench& b, const std::vector<int64_t>& cuts) {
    std::vector<float> all;
    const Tensor tq = b.f32({d}, wq), tk = b.f32({d}, wk), dq = b.f32({d}, std::vector<float>(d)),
                 dk = b.f32({d}, std::vector<float>(d));
    int64_t begin = 0;
    for (const int64_t end : cuts) {
      const int64_t m = end - begin;
      const auto slice = [&](const std::vector<float>& from) {
        return b.f32({m, width}, {from.begin() + begin * width, from.begin() + end * width});
      };
      const Tensor qkv = slice(x), raw = b.f32({m, normed * d}), rstd = b.f32({m, normed}), dqkv = slice(dy);
      b.ops().qk_norm_forward(b.stream(), qkv, tq, tk, 1e-6f, heads, kv_heads, raw, rstd);
      b.ops().qk_norm_backward(b.stream(), dqkv, raw, tq, tk, rstd, heads, kv_heads, dq, dk);
      for (const Tensor& t : {qkv, dqkv}) {
        const auto values = b.read(t);
        all.insert(all.end(), values.begin(), values.end());
      }
      begin = end;
    }
    std::vector<float> sums = b.read(dq);
    const auto keys = b.read(dk);
    sums.insert(sums.end(), keys.begin(), keys.end());
    return std::pair{all, sums};
  };
  fixture::same_everywhere("qk_norm", [&](Bench& b) {
    auto [all, sums] = run(b, {rows});
    all.insert(all.end(), sums.begin(), sums.end());
    return all;
  });
  Bench b;
  CHECK(fixture::same_bits(run(b, {rows}).second, run(b, {1, 130, rows}).second));
}

TEST(rope_rotates_and_turns_back) {
  for (int head_dim : {16, 48, 64}) {
    const int heads = 3, kv_heads = 2, half = head_dim / 2;
    const int64_t ld = (heads + 2 * kv_heads) * head_dim;
    const auto x = random_floats(kRows * ld, 1);
    const auto positions = fixture::random_ids(kRows, 2, 500);
    Bench b;
    const RopeTable table = rope_table(b, 500, head_dim);
    const Tensor qkv = b.f32({kRows, ld}, x), ids = b.i32({kRows}, positions);
    b.ops().rope(b.stream(), qkv, ids, table, heads, kv_heads, head_dim, false);
    std::vector<double> expected = wide(x);
    for (int64_t i = 0; i < kRows; ++i)
      for (int head = 0; head < heads + kv_heads; ++head)
        for (int j = 0; j < half; ++j) {
          const double c = table.cos.f32()[positions[i] * half + j], s = table.sin.f32()[positions[i] * half + j];
          const int64_t low = i * ld + head * head_dim + j, high = low + half;
          expected[low] = x[low] * c - x[high] * s;
          expected[high] = x[high] * c + x[low] * s;
        }
    CHECK_NEAR(fixture::error(b.read(qkv), expected), 0, 2e-7);  // two roundings
    b.ops().rope(b.stream(), qkv, ids, table, heads, kv_heads, head_dim, true);
    CHECK_NEAR(fixture::error(b.read(qkv), wide(x)), 0, 5e-7);  // cos and sin are rounded: c^2 + s^2 is not quite 1
    CHECK_FAILS("INVALID_ARGUMENT", b.ops().rope(b.stream(), qkv, ids, table, heads, kv_heads + 1, head_dim, false));
    b.ops().rope(b.stream(), qkv, b.i32({kRows}, std::vector<int32_t>(kRows, 500)), table, heads, kv_heads, head_dim,
                 false);
    CHECK_FAILS("INVALID_ARGUMENT", b.stream().synchronize());
  }
}

TEST(swiglu_matches_float64) {
  for (int64_t f : kWidths) {
    const auto x = random_floats(kRows * 2 * f, 1, -6, 6), dy = random_floats(kRows * f, 2);
    Bench b;
    const Tensor in = b.f32({kRows, 2 * f}, x), y = b.f32({kRows, f}), dx = b.f32({kRows, 2 * f});
    b.ops().swiglu_forward(b.stream(), in, y);
    b.ops().swiglu_backward(b.stream(), b.f32({kRows, f}, dy), in, dx);
    CHECK_NEAR(fixture::error(b.read(y), swiglu(wide(x), f)), 0, 3e-7);
    const auto expected = differences(wide(x), [&](const auto& v) { return dot(swiglu(v, f), dy); });
    CHECK_NEAR(fixture::error(b.read(dx), expected), 0, 5e-7);
    CHECK_FAILS("INVALID_ARGUMENT", b.ops().swiglu_forward(b.stream(), y, in));
  }
  // Far out the gate is 0 or itself, never NaN.
  Bench b;
  const Tensor y = b.f32({3, 1});
  b.ops().swiglu_forward(b.stream(), b.f32({3, 2}, {-200, 1, 200, 1, -87, 2}), y);
  const auto got = b.read(y);
  CHECK(got[0] == 0.0f && got[1] == 200.0f && std::abs(got[2]) < 1e-30f);
}

TEST(zero_clears_its_tensor_and_nothing_beside_it) {
  for (int64_t n : {0, 1, 4096, 4097, 200'001}) {
    Bench b;
    const Tensor all = b.f32({n + 2}, std::vector<float>(static_cast<size_t>(n + 2), 1.0f));
    b.ops().zero(b.stream(), tokenring::tensor(all.f32() + 1, tokenring::DType::f32, {n}));
    const std::vector<float> got = b.read(all);
    CHECK(got.front() == 1.0f && got.back() == 1.0f);
    CHECK(std::count(got.begin() + 1, got.end() - 1, 0.0f) == n);
  }
}

TEST(sum_of_squares_matches_float64) {
  for (int64_t n : {1, 15, 4096, 4097, 50000}) {
    const auto x = random_floats(n, 1);
    double expected = 0;
    for (float v : x) expected += double{v} * v;
    Bench b;
    const Tensor work = b.bytes(b.ops().sum_of_squares_workspace(n));
    double sum = 0;
    b.ops().sum_of_squares(b.stream(), b.f32({n}, x), &sum, work);
    b.stream().synchronize();
    CHECK_NEAR(sum, expected, 1e-13 * expected);  // float64 in another order
    CHECK_FAILS("INVALID_ARGUMENT", b.ops().sum_of_squares(b.stream(), b.f32({n}, x), &sum, {}));
    CHECK_FAILS("INVALID_ARGUMENT", b.ops().sum_of_squares(b.stream(), b.f32({n}, x), nullptr, work));
  }
}

TEST(adamw_matches_float64_over_steps) {
  const int64_t n = 5000;
  const auto w0 = random_floats(n, 1);
  std::vector<double> w = wide(w0), m(n), v(n);
  Bench b;
  const Tensor tw = b.f32({n}, w0), tm = b.f32({n}), tv = b.f32({n});
  b.ops().zero(b.stream(), tm);
  b.ops().zero(b.stream(), tv);
  for (int step = 1; step <= 5; ++step) {
    const auto g = random_floats(n, 10 + step);
    const double lr = 0.01, b1 = 0.9f, b2 = 0.99f, eps = 1e-8f, decay = 0.1f, scale = 0.5;
    b.ops().adamw(b.stream(), {0.01f, 0.9f, 0.99f, 1e-8f, 0.1f, 0.5f, step}, tw, b.f32({n}, g), tm, tv);
    for (int64_t i = 0; i < n; ++i) {
      const double gi = g[i] * scale;
      w[i] *= 1 - lr * decay;
      m[i] = b1 * m[i] + (1 - b1) * gi;
      v[i] = b2 * v[i] + (1 - b2) * gi * gi;
      w[i] -= lr / (1 - std::pow(b1, step)) * m[i] / (std::sqrt(v[i] / (1 - std::pow(b2, step))) + eps);
    }
  }
  CHECK_NEAR(fixture::error(b.read(tw), w), 0, 5e-7);
  CHECK_NEAR(fixture::error(b.read(tm), m), 0, 5e-7);
  CHECK_NEAR(fixture::error(b.read(tv), v), 0, 5e-7);
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().adamw(b.stream(), {1, 0.9f, 0.9f, 0, 0, 1, 0}, tw, tw, tm, tv));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().adamw(b.stream(), {1, 0.9f, 0.9f, 0, 0, 1, 1}, tw, b.f32({3}), tm, tv));
}

TEST(rows_do_not_depend_on_the_batch) {
  const int64_t h = 70, m = 300;
  const auto x = random_floats(m * 2 * h, 1, -3, 3), w = random_floats(h, 2), dy = random_floats(m * h, 3);
  Bench b;
  const Tensor tw = b.f32({h}, w);
  // y, ds, swiglu and its gradient of rows [from, from + rows)
  const auto run = [&](int64_t from, int64_t rows) {
    const auto part = [&](const std::vector<float>& v, int64_t width) {
      return std::vector<float>(v.begin() + from * width, v.begin() + (from + rows) * width);
    };
    const Tensor in = b.f32({rows, 2 * h}, part(x, 2 * h)), tdy = b.f32({rows, h}, part(dy, h)), y = b.f32({rows, h}),
                 norm = b.f32({rows, h}), rstd = b.f32({rows}), ds = b.f32({rows, h}), dx = b.f32({rows, 2 * h});
    b.ops().swiglu_forward(b.stream(), in, y);
    b.ops().swiglu_backward(b.stream(), tdy, in, dx);
    b.ops().rmsnorm_forward(b.stream(), y, {}, tw, 1e-6f, y, norm, rstd);
    b.ops().rmsnorm_backward(b.stream(), tdy, y, tw, rstd, ds, false, b.f32({h}, w));
    return std::vector<std::vector<float>>{b.read(y), b.read(dx), b.read(norm), b.read(ds)};
  };
  const auto all = run(0, m);
  for (int64_t i : {0, 1, 150, 299}) {
    const auto one = run(i, 1);
    for (size_t t = 0; t < all.size(); ++t) {
      const int64_t width = static_cast<int64_t>(one[t].size());
      CHECK(fixture::same_bits(one[t], {all[t].begin() + i * width, all[t].begin() + (i + 1) * width}));
    }
  }
}

TEST(rows_have_the_same_bits_everywhere) {
  const int64_t m = 65, h = 150;
  const auto x = random_floats(m * 2 * h, 1, -8, 8), w = random_floats(h, 2), dy = random_floats(m * h, 3);
  const auto positions = fixture::random_ids(m, 4, 99);
  fixture::same_everywhere("rows", [&](Bench& b) {
    const Tensor in = b.f32({m, 2 * h}, x), tdy = b.f32({m, h}, dy), tw = b.f32({h}, w), y = b.f32({m, h}),
                 dx = b.f32({m, 2 * h}), s = b.f32({m, h}), norm = b.f32({m, h}), rstd = b.f32({m}), ds = b.f32({m, h}),
                 dw = b.f32({h}, w), qkv = b.f32({m, 2 * h}, x), sum = b.f32({2});
    b.ops().swiglu_forward(b.stream(), in, y);
    b.ops().swiglu_backward(b.stream(), tdy, in, dx);
    b.ops().rmsnorm_forward(b.stream(), y, tdy, tw, 1e-6f, s, norm, rstd);
    b.ops().rmsnorm_backward(b.stream(), tdy, s, tw, rstd, ds, false, dw);
    b.ops().rope(b.stream(), qkv, b.i32({m}, positions), rope_table(b, 99, 50), 2, 2, 50, false);
    b.ops().sum_of_squares(b.stream(), in, static_cast<double*>(sum.data),
                           b.bytes(b.ops().sum_of_squares_workspace(m * 2 * h)));
    const Tensor m1 = b.f32({m, h}, dy), m2 = b.f32({m, h}, std::vector<float>(m * h, 0.5f)),
                 params = b.f32({m, h}, dy);
    b.ops().adamw(b.stream(), {0.01f, 0.9f, 0.99f, 1e-8f, 0.1f, 0.5f, 3}, params, y, m1, m2);
    std::vector<float> all;
    for (const Tensor& t : {y, dx, s, norm, rstd, ds, dw, qkv, sum, m1, m2, params}) {
      const auto v = b.read(t);
      all.insert(all.end(), v.begin(), v.end());
    }
    return all;
  });
}

TEST(rows_refuse_wrong_shapes) {
  Bench b;
  const Tensor x = b.f32({3, 4}), w = b.f32({4}), rstd = b.f32({3}), wrong = b.f32({3, 5});
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().rmsnorm_forward(b.stream(), x, wrong, w, 0, x, x, rstd));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().rmsnorm_forward(b.stream(), x, {}, rstd, 0, x, x, rstd));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().rmsnorm_forward(b.stream(), x, x, w, 0, {}, x, rstd));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().rmsnorm_backward(b.stream(), x, x, w, rstd, wrong, false, w));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().rmsnorm_backward(b.stream(), x, x, w, rstd, x, false, w));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().zero(b.stream(), tokenring::tensor(nullptr, tokenring::DType::f32, {2})));
}
