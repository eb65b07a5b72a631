// Linear layers on bf16 operands: the order of operations to the bit, on every instruction set; the error that rounding
// costs; and what sampler and trainer rely on.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/convert.h"
#include "core/failure.h"
#include "harness.h"
#include "ops_fixture.h"

using fixture::Bench;
using fixture::Precision;
using fixture::random_floats;
using tokenring::Tensor;

namespace {

struct Size {
  int64_t m, n, k;
};
// Multiples of the tiles and one off them, single rows and columns, depths beyond one block of 1024.
const Size kSizes[] = {{1, 1, 1},    {1, 33, 5},    {16, 16, 32}, {17, 31, 65},   {33, 48, 7},
                       {2, 96, 300}, {70, 130, 40}, {5, 17, 600}, {200, 64, 128}, {40, 20, 1100}};

float rounded(float x) { return tokenring::f32_of_bf16(tokenring::bf16_of_f32(x)); }

// c + sum over d of a(d) * b(d) as bf16.h has it; no operand or result here is denormal.
template <class A, class B>
float product(int64_t depth, float c, const A& a, const B& b) {
  for (int64_t d = 0; d < depth; d += 32) {
    float even = 0.0f, odd = 0.0f;
    for (int64_t i = d; i < d + 32 && i < depth; i += 2) even = std::fma(rounded(a(i)), rounded(b(i)), even);
    for (int64_t i = d + 1; i < d + 32 && i < depth; i += 2) odd = std::fma(rounded(a(i)), rounded(b(i)), odd);
    c += even + odd;
  }
  return c;
}

struct Data {
  std::vector<float> x, w, dy, bias, dx0, dw0;
  explicit Data(const Size& s)
      : x(random_floats(s.m * s.k, 1)),
        w(random_floats(s.n * s.k, 2)),
        dy(random_floats(s.m * s.n, 3)),
        bias(random_floats(s.n, 4)),
        dx0(random_floats(s.m * s.k, 5)),
        dw0(random_floats(s.n * s.k, 6)) {}
};

// Forward, both forms of dgrad, and wgrad, one after the other.
std::vector<float> all_products(Bench& b, const Size& s, const Data& d) {
  const auto weight = b.weight(d.w, s.n, s.k);
  const Tensor x = b.f32({s.m, s.k}, d.x), dy = b.f32({s.m, s.n}, d.dy), y = b.f32({s.m, s.n}), dx = b.f32({s.m, s.k}),
               added = b.f32({s.m, s.k}, d.dx0), dw = b.f32({s.n, s.k}, d.dw0);
  b.ops().linear_forward(b.stream(), x, weight, b.f32({s.n}, d.bias), y);
  b.ops().linear_dgrad(b.stream(), dy, weight, dx, false);
  b.ops().linear_dgrad(b.stream(), dy, weight, added, true);
  b.ops().linear_wgrad(b.stream(), dy, x, dw, {});
  std::vector<float> all;
  for (const Tensor& t : {y, dx, added, dw}) {
    const std::vector<float> values = b.read(t);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

double relative_l2(const std::vector<float>& a, const std::vector<double>& b) {
  double square = 0, of = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    square += (a[i] - b[i]) * (a[i] - b[i]);
    of += b[i] * b[i];
  }
  return std::sqrt(square / of);
}

}  // namespace

TEST(bf16_products_have_the_bits_of_their_definition_everywhere) {
  for (const Size& s : kSizes) {
    const Data d(s);
    std::vector<float> expected;
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j < s.n; ++j)
        expected.push_back(
            product(
                s.k, 0.0f, [&](int64_t e) { return d.x[i * s.k + e]; }, [&](int64_t e) { return d.w[j * s.k + e]; }) +
            d.bias[j]);
    for (const bool accumulate : {false, true})
      for (int64_t i = 0; i < s.m; ++i)
        for (int64_t j = 0; j < s.k; ++j)
          expected.push_back(product(
              s.n, accumulate ? d.dx0[i * s.k + j] : 0.0f, [&](int64_t e) { return d.dy[i * s.n + e]; },
              [&](int64_t e) { return d.w[e * s.k + j]; }));
    for (int64_t i = 0; i < s.n; ++i)
      for (int64_t j = 0; j < s.k; ++j)
        expected.push_back(product(
            s.m, d.dw0[i * s.k + j], [&](int64_t e) { return d.dy[e * s.n + i]; },
            [&](int64_t e) { return d.x[e * s.k + j]; }));
    for (const std::string& isa : fixture::isas(Precision::bf16))
      for (int threads : {1, 2}) {
        Bench b(isa, threads, Precision::bf16);
        const std::vector<float> got = all_products(b, s, d);
        for (size_t i = 0; i < got.size(); ++i)
          if (got[i] != expected[i])
            harness::report(__FILE__, __LINE__, isa, ", ", threads, " threads, m ", s.m, " n ", s.n, " k ", s.k,
                            ": at ", i, " ", got[i], " against ", expected[i]);
      }
  }
}

// Rounding an operand to 8 bits is off by 2^-9 at most and 2^-9 / sqrt(3) in the mean square over a binade at its low
// end, less above; two operands make sqrt(2) of that. So at most 1.6e-3 where the sum does not cancel, which that of
// products with random signs does no more than their own sizes do.
TEST(bf16_products_are_off_by_the_rounding_of_their_operands) {
  const Size s{64, 96, 512};
  const Data d(s);
  std::vector<double> y(s.m * s.n);
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = d.bias[j];
      for (int64_t e = 0; e < s.k; ++e) sum += double{d.x[i * s.k + e]} * d.w[j * s.k + e];
      y[i * s.n + j] = sum;
    }
  Bench b("", 2, Precision::bf16);
  const double off = relative_l2(all_products(b, s, d), y);
  CHECK(off < 3e-3);
  CHECK(off > 3e-4);  // else nothing was rounded
}

TEST(bf16_edges_of_the_format_are_the_same_everywhere) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  // Ties to even on both sides, what rounds to infinity, denormals of float32 and of bf16, signed zeros.
  std::vector<float> x = {1.00390625f, 1.01171875f, 3.4e38f, -3.4e38f, 1e-40f, -1e-40f, 1.2e-38f, 0.0f, -0.0f, 1.0f};
  const int64_t k = static_cast<int64_t>(x.size());
  // One row for each: the others are 0, so that each product stands alone.
  std::vector<float> rows(k * k), ones(k, 1.0f);
  for (int64_t i = 0; i < k; ++i) rows[i * k + i] = x[i];
  fixture::same_everywhere(
      "edges",
      [&](Bench& b) {
        const Tensor y = b.f32({k, 1});
        b.ops().linear_forward(b.stream(), b.f32({k, k}, rows), b.weight(ones, 1, k), {}, y);
        const std::vector<float> got = b.read(y);
        const std::vector<float> expected = {1.0f, 1.015625f,         infinity, -infinity, 0.0f,
                                             0.0f, rounded(1.2e-38f), 0.0f,     0.0f,      1.0f};
        for (int64_t i = 0; i < k; ++i) CHECK(got[i] == expected[i]);
        return got;
      },
      Precision::bf16);
  // Products and sums that end below the smallest normal number.
  const auto small = random_floats(40 * 50, 7, -1e-19f, 1e-19f), other = random_floats(30 * 50, 8, -1e-19f, 1e-19f);
  fixture::same_everywhere(
      "denormal results",
      [&](Bench& b) {
        const Tensor y = b.f32({40, 30});
        b.ops().linear_forward(b.stream(), b.f32({40, 50}, small), b.weight(other, 30, 50), {}, y);
        return b.read(y);
      },
      Precision::bf16);
  Bench b("", 2, Precision::bf16);
  const Tensor y = b.f32({1, 1});
  b.ops().linear_forward(b.stream(), b.f32({1, 1}, {nan}), b.weight({1.0f}, 1, 1), {}, y);
  CHECK(std::isnan(b.read(y)[0]));
}

TEST(bf16_rows_do_not_depend_on_the_batch) {
  const Size s{61, 70, 300};
  const Data d(s);
  Bench b("", 2, Precision::bf16);
  const auto weight = b.weight(d.w, s.n, s.k);
  const auto run = [&](int64_t from, int64_t rows) {
    const auto part = [&](const std::vector<float>& v, int64_t width) {
      return b.f32({rows, width}, {v.begin() + from * width, v.begin() + (from + rows) * width});
    };
    const Tensor y = b.f32({rows, s.n}), dx = b.f32({rows, s.k});
    b.ops().linear_forward(b.stream(), part(d.x, s.k), weight, {}, y);
    b.ops().linear_dgrad(b.stream(), part(d.dy, s.n), weight, dx, false);
    return std::pair(b.read(y), b.read(dx));
  };
  const auto [y, dx] = run(0, s.m);
  for (int64_t from = 0, rows = 1; from < s.m; from += rows, rows = std::min(rows + 1, s.m - from)) {
    const auto [part_y, part_dx] = run(from, rows);
    CHECK(fixture::same_bits(part_y, {y.begin() + from * s.n, y.begin() + (from + rows) * s.n}));
    CHECK(fixture::same_bits(part_dx, {dx.begin() + from * s.k, dx.begin() + (from + rows) * s.k}));
  }
}

// The rows are summed in blocks of 32 from the first of each call: cut there, the sum goes on with the same bits; cut
// elsewhere, it is grouped anew, which moves a float32 sum of 2100 products by some units in the last place.
TEST(bf16_wgrad_continues_over_micro_batches_cut_at_32_rows) {
  const Size s{2100, 40, 50};
  const Data d(s);
  Bench b("", 2, Precision::bf16);
  const auto run = [&](const std::vector<int64_t>& parts) {
    const Tensor dw = b.f32({s.n, s.k}, std::vector<float>(s.n * s.k));
    int64_t from = 0;
    for (int64_t rows : parts) {
      const Tensor dy = b.f32({rows, s.n}, {d.dy.begin() + from * s.n, d.dy.begin() + (from + rows) * s.n});
      const Tensor x = b.f32({rows, s.k}, {d.x.begin() + from * s.k, d.x.begin() + (from + rows) * s.k});
      b.ops().linear_wgrad(b.stream(), dy, x, dw, {});
      from += rows;
    }
    return b.read(dw);
  };
  const auto whole = run({2100});
  CHECK(fixture::same_bits(run({32, 1024, 1044}), whole));
  const auto ragged = run({1, 1000, 1099});
  CHECK(relative_l2(ragged, {whole.begin(), whole.end()}) < 1e-6);
}
