// Linear layers against float64, with the exactness that sampler and trainer rely on.
#include <algorithm>

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
const Size kSizes[] = {{1, 1, 1},     {1, 33, 5},    {2, 16, 16},  {12, 32, 64},   {13, 31, 65},   {25, 48, 7},
                       {32, 96, 300}, {97, 130, 40}, {5, 17, 600}, {200, 64, 128}, {70, 300, 140}, {97, 150, 530}};

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

// A chain of k multiply-adds of numbers below 1 is off by at most k * 2^-24 * k in units of 1, and typically by its
// root.
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
    CHECK_NEAR(fixture::error(b.read(y), forward(s, x, w, bias)), 0.0, tolerance(s.k), "m ", s.m, " n ", s.n, " k ",
               s.k);
    CHECK_NEAR(fixture::error(b.read(plain), forward(s, x, w, {})), 0.0, tolerance(s.k));
  }
}

TEST(linear_gradients_match_float64) {
  for (const Size& s : kSizes) {
    Bench b;
    const auto x = random_floats(s.m * s.k, 1), w = random_floats(s.n * s.k, 2), dy = random_floats(s.m * s.n, 3);
    const auto dx0 = random_floats(s.m * s.k, 4), dw0 = random_floats(s.n * s.k, 5), db0 = random_floats(s.n, 6);
    std::vector<double> dx(s.m * s.k), dx_added(dx0.begin(), dx0.end()), dw(dw0.begin(), dw0.end()),
        db(db0.begin(), db0.end());
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j < s.n; ++j) {
        db[j] += dy[i * s.n + j];
        for (int64_t d = 0; d < s.k; ++d) {
          dx[i * s.k + d] += double{dy[i * s.n + j]} * w[j * s.k + d];
          dx_added[i * s.k + d] += double{dy[i * s.n + j]} * w[j * s.k + d];
          dw[j * s.k + d] += double{dy[i * s.n + j]} * x[i * s.k + d];
        }
      }
    const Tensor tdy = b.f32({s.m, s.n}, dy), tx = b.f32({s.m, s.k}, x), tdx = b.f32({s.m, s.k}),
                 tdx_added = b.f32({s.m, s.k}, dx0), tdw = b.f32({s.n, s.k}, dw0), tdb = b.f32({s.n}, db0);
    const auto weight = b.weight(w, s.n, s.k);
    b.ops().linear_dgrad(b.stream(), tdy, weight, tdx, false);
    b.ops().linear_dgrad(b.stream(), tdy, weight, tdx_added, true);
    b.ops().linear_wgrad(b.stream(), tdy, tx, tdw, tdb);
    CHECK_NEAR(fixture::error(b.read(tdx), dx), 0.0, tolerance(s.n), "m ", s.m, " n ", s.n, " k ", s.k);
    CHECK_NEAR(fixture::error(b.read(tdx_added), dx_added), 0.0, tolerance(s.n));
    CHECK_NEAR(fixture::error(b.read(tdw), dw), 0.0, tolerance(s.m), "m ", s.m, " n ", s.n, " k ", s.k);
    CHECK_NEAR(fixture::error(b.read(tdb), db), 0.0, tolerance(s.m));
    // Without a bias gradient dw is the same.
    const Tensor again = b.f32({s.n, s.k}, dw0);
    b.ops().linear_wgrad(b.stream(), tdy, tx, again, {});
    CHECK(fixture::same_bits(b.read(again), b.read(tdw)));
  }
}

TEST(linear_rows_do_not_depend_on_the_batch) {
  const Size s{61, 150, 600};  // together the rows are copied into groups, few of them are not
  const auto x = random_floats(s.m * s.k, 1), w = random_floats(s.n * s.k, 2), dy = random_floats(s.m * s.n, 3);
  Bench b;
  const auto weight = b.weight(w, s.n, s.k);
  const Tensor y = b.f32({s.m, s.n}), dx = b.f32({s.m, s.k});
  b.ops().linear_forward(b.stream(), b.f32({s.m, s.k}, x), weight, {}, y);
  b.ops().linear_dgrad(b.stream(), b.f32({s.m, s.n}, dy), weight, dx, false);
  const auto all_y = b.read(y), all_dx = b.read(dx);
  for (int64_t from = 0, rows = 1; from < s.m; from += rows, rows = std::min(rows + 1, s.m - from)) {
    const auto part = [&](const std::vector<float>& v, int64_t width) {
      return std::vector<float>(v.begin() + from * width, v.begin() + (from + rows) * width);
    };
    const Tensor py = b.f32({rows, s.n}), pdx = b.f32({rows, s.k});
    b.ops().linear_forward(b.stream(), b.f32({rows, s.k}, part(x, s.k)), weight, {}, py);
    b.ops().linear_dgrad(b.stream(), b.f32({rows, s.n}, part(dy, s.n)), weight, pdx, false);
    CHECK(fixture::same_bits(b.read(py), part(all_y, s.n)));
    CHECK(fixture::same_bits(b.read(pdx), part(all_dx, s.k)));
  }
}

TEST(linear_wgrad_continues_over_micro_batches) {
  const Size s{700, 40, 50};
  const auto x = random_floats(s.m * s.k, 1), dy = random_floats(s.m * s.n, 2);
  Bench b;
  const auto run = [&](const std::vector<int64_t>& parts) {
    const Tensor dw = b.f32({s.n, s.k}, std::vector<float>(s.n * s.k)), db = b.f32({s.n}, std::vector<float>(s.n));
    int64_t from = 0;
    for (int64_t rows : parts) {
      const Tensor tdy = b.f32({rows, s.n}, {dy.begin() + from * s.n, dy.begin() + (from + rows) * s.n});
      const Tensor tx = b.f32({rows, s.k}, {x.begin() + from * s.k, x.begin() + (from + rows) * s.k});
      b.ops().linear_wgrad(b.stream(), tdy, tx, dw, db);
      from += rows;
    }
    auto all = b.read(dw);
    const auto bias = b.read(db);
    all.insert(all.end(), bias.begin(), bias.end());
    return all;
  };
  const auto whole = run({700});
  CHECK(fixture::same_bits(run({1, 300, 399}), whole));
  CHECK(fixture::same_bits(run({256, 256, 188}), whole));
}

TEST(linear_has_the_same_bits_everywhere) {
  for (const Size& s : {Size{37, 75, 270}, Size{100, 64, 128}, Size{1, 40, 30}, Size{70, 140, 600}}) {
    const auto x = random_floats(s.m * s.k, 1), w = random_floats(s.n * s.k, 2), dy = random_floats(s.m * s.n, 3),
               bias = random_floats(s.n, 4);
    fixture::same_everywhere("linear", [&](Bench& b) {
      const auto weight = b.weight(w, s.n, s.k);
      const Tensor tx = b.f32({s.m, s.k}, x), tdy = b.f32({s.m, s.n}, dy), y = b.f32({s.m, s.n}),
                   dx = b.f32({s.m, s.k}, x), dw = b.f32({s.n, s.k}, w), db = b.f32({s.n}, bias);
      b.ops().linear_forward(b.stream(), tx, weight, b.f32({s.n}, bias), y);
      b.ops().linear_dgrad(b.stream(), tdy, weight, dx, true);
      b.ops().linear_wgrad(b.stream(), tdy, tx, dw, db);
      std::vector<float> all;
      for (const Tensor& t : {y, dx, dw, db}) {
        const auto v = b.read(t);
        all.insert(all.end(), v.begin(), v.end());
      }
      return all;
    });
  }
}

TEST(embedding_gathers_and_scatters_rows) {
  const int64_t m = 90, v = 13, h = 37;
  const auto table = random_floats(v * h, 1), dy = random_floats(m * h, 2), start = random_floats(v * h, 3);
  const auto tokens = fixture::random_ids(m, 4, v);
  Bench b;
  const Tensor ids = b.i32({m}, tokens), y = b.f32({m, h}), dtable = b.f32({v, h}, start);
  b.ops().embedding_forward(b.stream(), ids, b.f32({v, h}, table), y);
  b.ops().embedding_backward(b.stream(), ids, b.f32({m, h}, dy), dtable);
  const auto got = b.read(y), gradient = b.read(dtable);
  std::vector<float> expected = start;  // the same order of additions: exact
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < h; ++j) {
      CHECK(got[i * h + j] == table[tokens[i] * h + j]);
      expected[tokens[i] * h + j] += dy[i * h + j];
    }
  CHECK(fixture::same_bits(gradient, expected));

  const std::vector<int32_t> index = {7, 0, 12, 3};
  const Tensor rows = b.f32({4, h}), to = b.f32({v, h}, start);
  b.ops().gather_rows(b.stream(), b.f32({v, h}, table), b.i32({4}, index), rows);
  b.ops().scatter_rows_add(b.stream(), rows, b.i32({4}, index), to);
  expected = start;
  for (int32_t i : index)
    for (int64_t j = 0; j < h; ++j) expected[i * h + j] += table[i * h + j];
  CHECK(fixture::same_bits(b.read(to), expected));
}

TEST(linear_and_embedding_refuse_wrong_shapes) {
  Bench b;
  const auto weight = b.weight(random_floats(6 * 4, 1), 6, 4);
  const Tensor x = b.f32({3, 4}), y = b.f32({3, 6}), ids = b.i32({3}, {0, 1, 2});
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().linear_forward(b.stream(), y, weight, {}, y));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().linear_forward(b.stream(), x, weight, {}, x));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().linear_forward(b.stream(), x, weight, b.f32({4}), y));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().linear_forward(b.stream(), x, {6, 4, nullptr}, {}, y));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().linear_dgrad(b.stream(), x, weight, x, false));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().linear_wgrad(b.stream(), y, x, b.f32({4, 6}), {}));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().embedding_forward(b.stream(), b.i32({2}), b.f32({9, 4}), x));
  CHECK_FAILS("INVALID_ARGUMENT", b.ops().embedding_forward(b.stream(), b.f32({3}), b.f32({9, 4}), x));
  // What only the stream can see comes out of synchronize, once.
  b.ops().embedding_forward(b.stream(), ids, b.f32({2, 4}), x);
  CHECK_FAILS("INVALID_ARGUMENT", b.stream().synchronize());
  b.stream().synchronize();
}
