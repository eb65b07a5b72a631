// The kernels of norm.cu, rope.cu, swiglu.cu and rows.cu, emulated, against float64.
#include <algorithm>
#include <tuple>

#include "emulator/rig.h"
// The emulator comes before the kernels.
#include "../../cuda/norm.cu"
#include "../../cuda/rope.cu"
#include "../../cuda/rows.cu"
#include "../../cuda/swiglu.cu"

using rig::Buffer;
using rig::kBf16;
using rig::kFloat32;
using rig::Values;
using namespace tokenring::cuda;
using Row = std::vector<Bf16>;

namespace {

// [rows, columns]: one row; rows shorter than a pack, a tail one short of a pack, rows that start unaligned; more rows
// than blocks (3); several packs a thread (4096 elements are one pack of each of 512 threads).
struct Shape {
  int64_t m, h;
};
const Shape kShapes[] = {{1, 1}, {1, 15}, {1, 64}, {3, 5}, {7, 77}, {5, 264}, {2, 4100}};

std::vector<double> plus(const Row& a, const Row& b) {
  std::vector<double> sum;
  for (size_t i = 0; i < a.size(); ++i) sum.push_back(rig::value(a[i]) + rig::value(b[i]));
  return sum;
}

}  // namespace

TEST(cuda_rmsnorm_forward_matches_float64) {
  const float eps = 1e-6f;
  for (const auto [m, h] : kShapes)
    for (bool residual : {false, true}) {
      const Row x = rig::random_bf16(m * h, 1, -2, 2), r = rig::random_bf16(m * h, 2);
      const Values w = rig::random_floats(h, 3, 0.5f, 1.5f);
      const auto [sum, y, rstd] = rig::on_two_schedules([&] {
        const Buffer<Bf16> dx(x), dr(r), ds(m * h), dy(m * h);
        const Buffer<float> dw(w), drstd(m);
        rmsnorm_forward(nullptr, m, h, dx.data(), residual ? dr.data() : nullptr, dw.data(), eps,
                        residual ? ds.data() : nullptr, dy.data(), drstd.data());
        return std::tuple{residual ? ds.read() : dx.read(), dy.read(), drstd.read()};
      });
      if (residual) rig::check_close("sum", sum, plus(x, r), kBf16, 0);
      std::vector<double> expected_y, expected_rstd;
      for (int64_t i = 0; i < m; ++i) {
        double squares = 0;
        for (int64_t j = 0; j < h; ++j) squares += rig::value(sum[i * h + j]) * rig::value(sum[i * h + j]);
        expected_rstd.push_back(1 / std::sqrt(squares / h + eps));
        for (int64_t j = 0; j < h; ++j) expected_y.push_back(rig::value(sum[i * h + j]) * expected_rstd[i] * w[j]);
      }
      rig::check_close("rstd", rstd, expected_rstd, kFloat32, 0);
      rig::check_close("y", y, expected_y, kBf16, 0);
      // Without a residual the sum may be x itself or a copy of it, and the results stay the same.
      const Buffer<Bf16> alias(sum), copy(m * h), y2(m * h);
      const Buffer<float> dw(w), rstd2(m);
      for (const Buffer<Bf16>* to : {&alias, &copy}) {
        rmsnorm_forward(nullptr, m, h, alias.data(), nullptr, dw.data(), eps, to->data(), y2.data(), rstd2.data());
        CHECK(rig::same_bits(to->read(), sum) && rig::same_bits(y2.read(), y) && rig::same_bits(rstd2.read(), rstd));
      }
    }
}

// Shapes of the backward, besides: more rows than one part of dw has (64), more than one block of columns (256).
TEST(cuda_rmsnorm_that_overflows_is_not_a_number) {
  const Buffer<Bf16> x(Row(64, to_bf16(1e20f))), y(64);
  const Buffer<float> w(Values(64, 1.0f)), rstd(1);
  rmsnorm_forward(nullptr, 1, 64, x.data(), nullptr, w.data(), 1e-6f, nullptr, y.data(), rstd.data());
  CHECK(std::isnan(rstd.read()[0]));
  for (const Bf16 value : y.read()) CHECK(std::isnan(rig::value(value)));
}

TEST(cuda_rmsnorm_backward_matches_float64) {
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  shapes.insert(shapes.end(), {{65, 40}, {130, 3}});
  for (const auto [m, h] : shapes)
    for (bool accumulate : {false, true}) {
      const Row dy = rig::random_bf16(m * h, 1), s = rig::random_bf16(m * h, 2, -2, 2), ds = rig::random_bf16(m * h, 3);
      const Values w = rig::random_floats(h, 4, 0.5f, 1.5f), dw = rig::random_floats(h, 5);
      const Values rstd = rig::random_floats(m, 6, 0.5f, 1.0f);
      const auto [got_ds, got_dw] = rig::on_two_schedules([&] {
        const Buffer<Bf16> d_dy(dy), d_s(s), d_ds(ds);
        const Buffer<float> d_w(w), d_rstd(rstd), d_dw(dw);
        const Buffer<char> workspace(rmsnorm_backward_workspace(m, h));
        rmsnorm_backward(nullptr, m, h, d_dy.data(), d_s.data(), d_w.data(), d_rstd.data(), d_ds.data(), accumulate,
                         d_dw.data(), workspace.data());
        return std::tuple{d_ds.read(), d_dw.read()};
      });
      std::vector<double> expected_ds, expected_dw(dw.begin(), dw.end());
      for (int64_t i = 0; i < m; ++i) {
        double dot = 0;
        for (int64_t j = 0; j < h; ++j) dot += rig::value(dy[i * h + j]) * w[j] * rig::value(s[i * h + j]);
        for (int64_t j = 0; j < h; ++j) {
          const double d = rig::value(dy[i * h + j]), a = rig::value(s[i * h + j]), t = rstd[i];
          expected_ds.push_back((accumulate ? rig::value(ds[i * h + j]) : 0) + t * d * w[j] - a * t * t * t / h * dot);
          expected_dw[j] += d * a * t;
        }
      }
      // Terms are of size 1 and may cancel: bf16 rounds the result only, so the error before is float32's.
      rig::check_close("ds", got_ds, expected_ds, kBf16, 1e-3);
      rig::check_close("dw", got_dw, expected_dw, kFloat32, 1);
    }
}

// A head shorter than a pack, unaligned, of one and of more than one pack a lane; more tokens than one part of dw has.
TEST(cuda_qk_norm_matches_float64) {
  struct Case {
    int64_t m;
    int heads, kv_heads;
    int64_t d;
  };
  const float eps = 1e-6f;
  for (const auto [m, heads, kv_heads, d] : {Case{1, 1, 1, 5}, {3, 4, 2, 64}, {2, 3, 1, 20}, {66, 2, 1, 264}}) {
    const int64_t normed = heads + kv_heads, width = (normed + kv_heads) * d, q = heads;
    const Row qkv = rig::random_bf16(m * width, 1, -2, 2), dqkv = rig::random_bf16(m * width, 2);
    const Values wq = rig::random_floats(d, 3, 0.5f, 1.5f), wk = rig::random_floats(d, 4, 0.5f, 1.5f);
    const Values dwq = rig::random_floats(d, 5), dwk = rig::random_floats(d, 6);
    const auto [got, raw, rstd, got_dqkv, got_dwq, got_dwk] = rig::on_two_schedules([&] {
      const Buffer<Bf16> x(qkv), kept(m * normed * d), dx(dqkv);
      const Buffer<float> w1(wq), w2(wk), scale(m * normed), d1(dwq), d2(dwk);
      const Buffer<char> workspace(qk_norm_backward_workspace(m, d));
      qk_norm_forward(nullptr, m, heads, kv_heads, d, x.data(), w1.data(), w2.data(), eps, kept.data(), scale.data());
      qk_norm_backward(nullptr, m, heads, kv_heads, d, dx.data(), kept.data(), w1.data(), w2.data(), scale.data(),
                       d1.data(), d2.data(), workspace.data());
      return std::tuple{x.read(), kept.read(), scale.read(), dx.read(), d1.read(), d2.read()};
    });
    std::vector<double> y, dy, expected_rstd, sums_q(dwq.begin(), dwq.end()), sums_k(dwk.begin(), dwk.end());
    for (int64_t i = 0; i < m; ++i)
      for (int64_t head = 0; head < normed + kv_heads; ++head) {
        const int64_t at = i * width + head * d;
        if (head >= normed) {  // v stays
          for (int64_t j = at; j < at + d; ++j) {
            y.push_back(rig::value(qkv[j]));
            dy.push_back(rig::value(dqkv[j]));
          }
          continue;
        }
        const Values& w = head < q ? wq : wk;
        std::vector<double>& dw = head < q ? sums_q : sums_k;
        double squares = 0, dot = 0;
        for (int64_t j = 0; j < d; ++j) {
          const double x = rig::value(qkv[at + j]);
          CHECK(rig::value(raw[(i * normed + head) * d + j]) == x);
          squares += x * x;
          dot += rig::value(dqkv[at + j]) * w[j] * x;
        }
        const double t = 1 / std::sqrt(squares / d + eps);
        expected_rstd.push_back(t);
        for (int64_t j = 0; j < d; ++j) {
          const double x = rig::value(qkv[at + j]), g = rig::value(dqkv[at + j]);
          y.push_back(x * t * w[j]);
          dy.push_back(t * g * w[j] - x * t * t * t / d * dot);
          dw[j] += g * x * t;
        }
      }
    rig::check_close("q, k, v", got, y, kBf16, 0);
    rig::check_close("rstd", rstd, expected_rstd, kFloat32, 0);
    rig::check_close("their gradient", got_dqkv, dy, kBf16, 1e-3);
    rig::check_close("dwq", got_dwq, sums_q, kFloat32, 1);
    rig::check_close("dwk", got_dwk, sums_k, kFloat32, 1);
    const Buffer<Bf16> unkept(qkv);
    const Buffer<float> w1(wq), w2(wk), scale(m * normed);
    qk_norm_forward(nullptr, m, heads, kv_heads, d, unkept.data(), w1.data(), w2.data(), eps, nullptr, scale.data());
    CHECK(rig::same_bits(unkept.read(), got));
  }
}

TEST(cuda_rope_matches_float64) {
  struct Case {
    int64_t m;
    int heads, kv_heads, head_dim;
  };
  for (const auto [m, heads, kv_heads, head_dim] : {Case{1, 1, 1, 2}, {3, 4, 2, 64}, {2, 3, 1, 20}, {5, 28, 4, 128}}) {
    const int64_t width = (heads + 2 * kv_heads) * head_dim, half = head_dim / 2, length = 9;
    const Row qkv = rig::random_bf16(m * width, 1);
    const auto positions = rig::random_ids(m, 2, length);
    const Values cos = rig::random_floats(length * half, 3), sin = rig::random_floats(length * half, 4);
    for (bool backward : {false, true}) {
      const auto [got] = rig::on_two_schedules([&] {
        const Buffer<Bf16> x(qkv);
        const Buffer<int32_t> p(positions);
        const Buffer<float> c(cos), s(sin);
        rope(nullptr, m, heads, kv_heads, head_dim, x.data(), p.data(), c.data(), s.data(), backward);
        return std::tuple{x.read()};
      });
      std::vector<double> expected;
      for (const Bf16 x : qkv) expected.push_back(rig::value(x));
      for (int64_t i = 0; i < m; ++i)
        for (int head = 0; head < heads + kv_heads; ++head)
          for (int64_t j = 0; j < half; ++j) {
            const int64_t low = i * width + head * head_dim + j, high = low + half;
            const double a = expected[low], b = expected[high], c = cos[positions[i] * half + j];
            const double s = sin[positions[i] * half + j] * (backward ? -1.0 : 1.0);
            expected[low] = a * c - b * s;
            expected[high] = b * c + a * s;
          }
      rig::check_close("qkv", got, expected, kBf16, 1e-3);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = (heads + kv_heads) * head_dim; j < width; ++j)
          CHECK(got[i * width + j].bits == qkv[i * width + j].bits);
    }
  }
}

TEST(cuda_swiglu_matches_float64) {
  for (const auto [m, f] : kShapes) {
    Row gate_up = rig::random_bf16(2 * m * f, 1, -6, 6);
    const Row dy = rig::random_bf16(m * f, 2);
    gate_up[0] = {0xc2c8};  // -100: its sigmoid is 0 in float32, and nothing may become NaN
    const auto [y, d] = rig::on_two_schedules([&] {
      const Buffer<Bf16> x(gate_up), ddy(dy), dx(2 * m * f), out(m * f);
      swiglu_forward(nullptr, m, f, x.data(), out.data());
      swiglu_backward(nullptr, m, f, ddy.data(), x.data(), dx.data());
      return std::tuple{out.read(), dx.read()};
    });
    std::vector<double> expected_y(m * f), expected_d(2 * m * f);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < f; ++j) {
        const int64_t at = i * 2 * f + j;
        const double g = rig::value(gate_up[at]), u = rig::value(gate_up[at + f]), t = rig::value(dy[i * f + j]);
        const double s = 1 / (1 + std::exp(-g));
        expected_y[i * f + j] = g * s * u;
        expected_d[at] = t * u * s * (1 + g * (1 - s));
        expected_d[at + f] = t * g * s;
      }
    rig::check_close("y", y, expected_y, kBf16, 1e-6);
    // 1 + gate (1 - sigmoid) crosses 0 near gate = -1.28; its terms are of size 1.
    rig::check_close("dgate_up", d, expected_d, kBf16, 1e-3);
    const Buffer<Bf16> in_place(gate_up), ddy(dy);
    swiglu_backward(nullptr, m, f, ddy.data(), in_place.data(), in_place.data());
    CHECK(rig::same_bits(in_place.read(), d));
  }
}

TEST(cuda_rows_by_index_match) {
  const int64_t n = 11;
  for (const auto [r, h] : kShapes) {
    const Values table = rig::random_floats(n * h, 1);
    const Row x = rig::random_bf16(n * h, 2), add = rig::random_bf16(r * h, 3);
    const auto tokens = rig::random_ids(r, 4, n);
    std::vector<int32_t> distinct;
    for (int64_t i = 0; i < r; ++i) distinct.push_back(static_cast<int32_t>((5 * i + 3) % n));
    const auto [embedded, gathered, scattered] = rig::on_two_schedules([&] {
      const Buffer<float> t(table);
      const Buffer<Bf16> dx(x), dadd(add), e(r * h), g(r * h);
      const Buffer<int32_t> ids(tokens), rows(distinct);
      embedding_forward(nullptr, r, h, ids.data(), t.data(), e.data());
      gather_rows(nullptr, r, h, dx.data(), ids.data(), g.data());
      scatter_rows_add(nullptr, r, h, dadd.data(), rows.data(), dx.data());
      return std::tuple{e.read(), g.read(), dx.read()};
    });
    std::vector<double> expected_e, expected_s;
    for (const Bf16 one : x) expected_s.push_back(rig::value(one));
    for (int64_t i = 0; i < r; ++i)
      for (int64_t j = 0; j < h; ++j) {
        expected_e.push_back(table[tokens[i] * h + j]);
        CHECK(gathered[i * h + j].bits == x[tokens[i] * h + j].bits);
        expected_s[distinct[i] * h + j] += rig::value(add[i * h + j]);
      }
    rig::check_close("embedding", embedded, expected_e, kBf16, 0);
    rig::check_close("scatter", scattered, expected_s, kBf16, 0);
  }
}

// Rows of a batch, more than blocks, are the same as of a batch of their own.
TEST(cuda_rows_do_not_depend_on_the_batch) {
  const int64_t m = 71, h = 300;
  const Row x = rig::random_bf16(m * h, 1), r = rig::random_bf16(m * h, 2), gate_up = rig::random_bf16(2 * m * h, 3);
  const Values w = rig::random_floats(h, 4);
  const auto run = [&](int64_t from, int64_t rows) {
    const auto part = [&](const Row& all, int64_t width) {
      return Row(all.begin() + from * width, all.begin() + (from + rows) * width);
    };
    const Buffer<Bf16> dx(part(x, h)), dr(part(r, h)), dg(part(gate_up, 2 * h)), s(rows * h), y(rows * h), z(rows * h),
        ds(rows * h);
    const Buffer<float> dw(w), rstd(rows), sum(Values(h, 0.0f));
    const Buffer<char> workspace(rmsnorm_backward_workspace(rows, h));
    rmsnorm_forward(nullptr, rows, h, dx.data(), dr.data(), dw.data(), 1e-6f, s.data(), y.data(), rstd.data());
    rmsnorm_backward(nullptr, rows, h, dx.data(), s.data(), dw.data(), rstd.data(), ds.data(), false, sum.data(),
                     workspace.data());
    swiglu_forward(nullptr, rows, h, dg.data(), z.data());
    return std::tuple{y.read(), ds.read(), z.read()};
  };
  const auto all = run(0, m);
  for (int64_t row : {int64_t{0}, int64_t{35}, m - 1}) {
    const auto one = run(row, 1);
    const auto same = [&](const Row& a, const Row& b) {
      return std::memcmp(a.data(), &b[row * h], h * sizeof(Bf16)) == 0;
    };
    CHECK(same(std::get<0>(one), std::get<0>(all)) && same(std::get<1>(one), std::get<1>(all)));
    CHECK(same(std::get<2>(one), std::get<2>(all)));
  }
}

TEST(cuda_launches_nothing_for_no_rows) {
  rmsnorm_forward(nullptr, 0, 8, nullptr, nullptr, nullptr, 1e-6f, nullptr, nullptr, nullptr);
  rmsnorm_backward(nullptr, 0, 8, nullptr, nullptr, nullptr, nullptr, nullptr, true, nullptr, nullptr);
  rope(nullptr, 0, 1, 1, 8, nullptr, nullptr, nullptr, nullptr, false);
  swiglu_forward(nullptr, 0, 8, nullptr, nullptr);
  swiglu_backward(nullptr, 0, 8, nullptr, nullptr, nullptr);
  embedding_forward(nullptr, 0, 8, nullptr, nullptr, nullptr);
  gather_rows(nullptr, 0, 8, nullptr, nullptr, nullptr);
  scatter_rows_add(nullptr, 0, 8, nullptr, nullptr, nullptr);
  CHECK(rmsnorm_backward_workspace(0, 8) == 0);
}

TEST(cuda_copy_rows_copies_adds_and_rounds) {
  const int64_t m = 5, width = 21, from_stride = 33, to_stride = 40;
  const Values wide = rig::random_floats(m * from_stride, 7), before = rig::random_floats(m * to_stride, 8);
  const Row narrow = rig::random_bf16(m * from_stride, 9);
  Row narrow_before;
  for (const float x : before) narrow_before.push_back(to_bf16(x));
  for (const bool from_float : {true, false})
    for (const bool to_float : {true, false})
      for (const bool add : {true, false}) {
        if (add && !to_float) continue;
        const auto [f, b] = rig::on_two_schedules([&] {
          const Buffer<float> from(wide), to(before);
          const Buffer<Bf16> from_b(narrow), to_b(narrow_before);
          copy_rows(nullptr, m, width, from_float ? static_cast<const void*>(from.data()) : from_b.data(), from_float,
                    from_stride, to_float ? static_cast<void*>(to.data()) : to_b.data(), to_float, to_stride, add);
          return std::tuple{to.read(), to_b.read()};
        });
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < to_stride; ++j) {
            const int64_t at = i * to_stride + j, source = i * from_stride + j;
            const float x = j >= width ? 0 : from_float ? wide[source] : static_cast<float>(rig::value(narrow[source]));
            const float expected = j >= width ? before[at] : add ? before[at] + x : x;
            if (to_float)
              CHECK(f[at] == expected);
            else
              CHECK(b[at].bits == to_bf16(expected).bits);
          }
      }
}
