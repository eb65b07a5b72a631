// The kernels of loss.cu and adamw.cu, emulated, against float64.
#include <algorithm>
#include <limits>
#include <tuple>

#include "core/ops.h"
#include "emulator/rig.h"
#include "moments_reference.h"
#include "policy_reference.h"
// The emulator comes before the kernels.
#include "../../cuda/adamw.cu"
#include "../../cuda/loss.cu"

using rig::Buffer;
using rig::kBf16;
using rig::kFloat32;
using rig::Values;
using tokenring::AdamWStep;
using tokenring::PolicyScalars;
using namespace tokenring::cuda;
using Ids = std::vector<int32_t>;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// [rows, vocabulary]: one row, tails, rows that start unaligned, more rows than blocks (3), more than one chunk of
// 4096 logits a row.
struct Shape {
  int64_t r, v;
};
const Shape kShapes[] = {{1, 2}, {1, 15}, {1, 64}, {3, 33}, {11, 431}, {2, 9003}};

struct Reference {
  double lse, logprob, entropy;
  std::vector<double> p;
};

Reference reference(const float* logits, int64_t v, int32_t target, double inv_temperature) {
  Reference row{0, 0, 0, std::vector<double>(v)};
  double high = -kInfinity, sum = 0;
  for (int64_t j = 0; j < v; ++j) high = std::max(high, logits[j] * inv_temperature);
  for (int64_t j = 0; j < v; ++j) sum += row.p[j] = std::exp(logits[j] * inv_temperature - high);
  row.lse = high + std::log(sum);
  row.logprob = logits[target] * inv_temperature - row.lse;
  for (double& p : row.p)
    if ((p /= sum) > 0) row.entropy -= p * std::log(p);
  return row;
}

auto statistics(const Values& logits, const Ids& targets, float inv_temperature) {
  const int64_t r = static_cast<int64_t>(targets.size()), v = static_cast<int64_t>(logits.size()) / r;
  const Buffer<float> z(logits), lse(r), logprob(r), entropy(r);
  const Buffer<int32_t> t(targets);
  logits_statistics(nullptr, r, v, z.data(), t.data(), inv_temperature, lse.data(), logprob.data(), entropy.data());
  CHECK(rig::same_bits(z.read(), logits));
  return std::tuple{lse.read(), logprob.read(), entropy.read()};
}

}  // namespace

TEST(cuda_logits_statistics_match_float64) {
  for (const auto [r, v] : kShapes)
    for (float inv : {1.0f, 0.7f}) {
      const Values logits = rig::random_floats(r * v, v, -10, 10);
      const Ids targets = rig::random_ids(r, 2, static_cast<int>(v));
      const auto got = rig::on_two_schedules([&] { return statistics(logits, targets, inv); });
      std::vector<double> lse, logprob, entropy;
      for (int64_t i = 0; i < r; ++i) {
        const Reference row = reference(&logits[i * v], v, targets[i], inv);
        lse.push_back(row.lse);
        logprob.push_back(row.logprob);
        entropy.push_back(row.entropy);
      }
      // logprob and entropy are differences of numbers of up to 20.
      rig::check_close("lse", std::get<0>(got), lse, kFloat32, 1);
      rig::check_close("logprob", std::get<1>(got), logprob, kFloat32, 1);
      rig::check_close("entropy", std::get<2>(got), entropy, kFloat32, 1);
      // A row does not depend on the others.
      const auto last = statistics(Values(logits.end() - v, logits.end()), {targets.back()}, inv);
      CHECK(std::get<0>(last)[0] == std::get<0>(got).back() && std::get<1>(last)[0] == std::get<1>(got).back() &&
            std::get<2>(last)[0] == std::get<2>(got).back());
    }
}

TEST(cuda_logits_statistics_survive_extremes) {
  const auto [lse, logprob, entropy] = statistics({1e4f, -1e4f, 0, -kInfinity, 3, 3, -kInfinity, -5}, {0, 0, 1, 1}, 1);
  for (int i : {0, 1, 3}) CHECK(logprob[i] == 0.0f && entropy[i] == 0.0f);
  CHECK(lse[0] == 1e4f && lse[1] == 0.0f && lse[3] == -5.0f);
  CHECK_NEAR(logprob[2], -std::log(2.0), 1e-6);
  CHECK_NEAR(entropy[2], std::log(2.0), 1e-6);
  // Wherever a NaN stands and whatever other threads see, the row is NaN.
  for (int64_t at : {0, 300, 599}) {
    Values row = rig::random_floats(600, 1, -5, 5);
    row[at] = NAN;
    const auto nan = statistics(row, {7}, 1);
    CHECK(std::isnan(std::get<0>(nan)[0]) && std::isnan(std::get<1>(nan)[0]) && std::isnan(std::get<2>(nan)[0]));
  }
}

TEST(cuda_logits_gradient_matches_float64_in_both_types) {
  for (const auto [r, v] : kShapes)
    for (const bool bonus : {false, true}) {
      const float inv = 0.8f;
      Values logits = rig::random_floats(r * v, 1, -5, 5), g = rig::random_floats(r, 2);
      Values of_entropy = rig::random_floats(r, 4);
      const Ids targets = rig::random_ids(r, 3, static_cast<int>(v));
      auto [lse, logprob, entropy] = statistics(logits, targets, inv);
      if (r == 3) {
        g[1] = of_entropy[1] = 0.0f;  // a row of no weight is 0 even where it is no number
        logits[v] = lse[1] = NAN;
      }
      const auto [full, half] = rig::on_two_schedules([&, &lse = lse, &entropy = entropy] {
        const Buffer<float> z(logits), l(lse), dg(g), h(entropy), dh(of_entropy);
        const Buffer<Bf16> narrow(r * v);
        const Buffer<int32_t> t(targets);
        const float *level = bonus ? h.data() : nullptr, *slope = bonus ? dh.data() : nullptr;
        for (Bf16* out : {narrow.data(), static_cast<Bf16*>(nullptr)})
          logits_gradient(nullptr, r, v, z.data(), t.data(), l.data(), dg.data(), level, slope, inv, out);
        return std::tuple{z.read(), narrow.read()};
      });
      std::vector<double> expected(r * v);
      for (int64_t i = 0; i < r; ++i) {
        if (g[i] == 0.0f) continue;
        const Reference row = reference(&logits[i * v], v, targets[i], inv);
        for (int64_t j = 0; j < v; ++j) {
          expected[i * v + j] = double{g[i]} * inv * ((j == targets[i]) - row.p[j]);
          if (bonus) expected[i * v + j] -= double{of_entropy[i]} * inv * row.p[j] * (std::log(row.p[j]) + row.entropy);
        }
      }
      // p = exp(z - lse), where z and lse are of size 10: float32 rounds the exponent by 1e-6.
      rig::check_close("gradient", full, expected, kFloat32, 1e-3);
      rig::check_close("gradient in bf16", half, expected, kBf16, 1e-6);
    }
}

// Loss, slope and flag of every objective at points on all sides of the clips; slopes by differences.
TEST(cuda_policy_scalars_match_the_formulas) {
  const policy_reference::Tokens tokens(20);  // more than one block's
  const int64_t n = tokens.count();
  const Buffer<float> lp(tokens.logprob), w(tokens.weight), o(tokens.old), a(tokens.advantage), s(tokens.sequence),
      ref(tokens.reference), h(tokens.entropy), dg(n), dh(n), dl(n);
  const Buffer<int32_t> df(n);
  const PolicyPointers all{lp.data(), w.data(),  o.data(),  a.data(),  s.data(), ref.data(),
                           h.data(),  dg.data(), dh.data(), dl.data(), df.data()};
  for (const PolicyScalars& p : policy_reference::variants()) {
    policy_scalars(nullptr, n, p, all);
    std::vector<double> loss, slope;
    for (int64_t i = 0; i < n; ++i) {
      const policy_reference::Token t = tokens.at(i);
      loss.push_back(policy_reference::loss(p, t));
      slope.push_back(policy_reference::slope(p, t));
      CHECK(df.read()[i] == policy_reference::flag(p, t));
      if (p.entropy_coef != 0) CHECK(dh.read()[i] == -0.25f * p.entropy_coef);
    }
    rig::check_close("loss", dl.read(), loss, kFloat32, 1);
    rig::check_close("g", dg.read(), slope, kFloat32, 1);
  }
  const PolicyPointers bare{lp.data(), w.data(),  nullptr, nullptr,   nullptr,  nullptr,
                            nullptr,   dg.data(), nullptr, dl.data(), df.data()};
  policy_scalars(nullptr, n, {}, bare);
  for (int64_t i = 0; i < n; ++i)
    CHECK(dg.read()[i] == -0.25f && dl.read()[i] == -0.25f * tokens.logprob[i] && df.read()[i] == 0);
  const Buffer<float> nan(Values(1, NAN));
  PolicyPointers broken = all;
  broken.logprob = broken.sequence = nan.data();
  for (const PolicyScalars& p : policy_reference::variants()) {
    policy_scalars(nullptr, 1, p, broken);
    CHECK(std::isnan(dl.read()[0]));
  }
}

TEST(cuda_sequence_log_ratio_is_the_mean_of_each_document) {
  const int32_t r = 150;
  const Ids begin = {0, 1, 4, 4 + 32, 4 + 32 + 70, r};  // one row, less than a warp, a warp, more
  const Values logprob = rig::random_floats(r, 1, -9, 0), old = rig::random_floats(r, 2, -9, 0);
  const auto [got] = rig::on_two_schedules([&] {
    const Buffer<float> lp(logprob), o(old), out(r);
    const Buffer<int32_t> b(begin);
    sequence_log_ratio(nullptr, static_cast<int64_t>(begin.size()) - 1, lp.data(), o.data(), b.data(), out.data());
    return std::tuple{out.read()};
  });
  std::vector<double> expected(r);
  for (size_t d = 0; d + 1 < begin.size(); ++d) {
    double mean = 0;
    for (int32_t i = begin[d]; i < begin[d + 1]; ++i) mean += (double{logprob[i]} - old[i]) / (begin[d + 1] - begin[d]);
    for (int32_t i = begin[d]; i < begin[d + 1]; ++i) expected[i] = mean;
  }
  rig::check_close("sequence", got, expected, kFloat32, 1);
}

// The formula of torch.optim.AdamW, three steps from zero moments. `offset` makes the pointers unaligned.
TEST(cuda_adamw_matches_float64) {
  for (const auto& [n, offset] : {std::pair<int64_t, int64_t>{1, 0}, {64, 0}, {2051, 0}, {75, 1}}) {
    const int64_t total = n + offset;
    const Values w0 = rig::random_floats(total, 1);
    const auto [w, m, v] = rig::on_two_schedules([&] {
      const Buffer<float> dw(w0), dm(Values(total, 0.0f)), dv(Values(total, 0.0f));
      for (int64_t t = 1; t <= 3; ++t) {
        const Buffer<float> g(rig::random_floats(total, 10 + t));
        adamw(nullptr, n, AdamWStep{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, t}, dw.data() + offset, g.data() + offset,
              dm.data() + offset, dv.data() + offset);
      }
      return std::tuple{dw.read(), dm.read(), dv.read()};
    });
    std::vector<double> ew(w0.begin(), w0.end()), em(total), ev(total);
    for (int64_t t = 1; t <= 3; ++t) {
      const Values g = rig::random_floats(total, 10 + t);
      for (int64_t i = offset; i < total; ++i) {
        const double gi = 0.5 * g[i], rate = 1e-2f, b1 = 0.9f, b2 = 0.95f;
        ew[i] *= 1 - rate * 0.1f;
        em[i] = b1 * em[i] + (1 - b1) * gi;
        ev[i] = b2 * ev[i] + (1 - b2) * gi * gi;
        const double hat_m = em[i] / (1 - std::pow(b1, t)), hat_v = ev[i] / (1 - std::pow(b2, t));
        ew[i] -= rate * hat_m / (std::sqrt(hat_v) + 1e-8f);
      }
    }
    rig::check_close("w", w, ew, kFloat32, 0.1);
    rig::check_close("m", m, em, kFloat32, 0.1);
    rig::check_close("v", v, ev, kFloat32, 0.01);
  }
}

// Whole blocks and a part of one, more blocks than warps; gradients of many sizes, zeros and an offset among them.
TEST(cuda_adamw8_matches_float64) {
  for (const int64_t n : {1, 256, 700, 9000}) {
    Values w = rig::random_floats(n, 1);
    tokenring::reference::Moments8 state(n);
    for (int64_t t = 1; t <= 3; ++t) {
      Values g = rig::random_floats(n, 10 + t);
      for (int64_t i = 0; i < n; ++i) g[i] *= i % 7 == 3 ? 0.0f : std::pow(10.0f, static_cast<float>(-(i % 5)));
      const AdamWStep how{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, t};
      const auto [w1, m, v, m_scale, v_scale] = rig::on_two_schedules([&] {
        const Buffer<float> dw(w), dg(g), dm_scale(state.m_scale), dv_scale(state.v_scale);
        const Buffer<uint8_t> dm(state.m), dv(state.v);
        const Buffer<tokenring::MomentCodes> codes(std::vector{tokenring::moment_codes()});
        adamw8(nullptr, n, how, codes.data(), dw.data(), dg.data(), dm.data(), dv.data(), dm_scale.data(),
               dv_scale.data());
        return std::tuple{dw.read(), dm.read(), dv.read(), dm_scale.read(), dv_scale.read()};
      });
      tokenring::reference::Moments8 after(n);
      after.m = m;
      after.v = v;
      after.m_scale = m_scale;
      after.v_scale = v_scale;
      const tokenring::reference::Wrong wrong = tokenring::reference::compare(state, after, w, g, w1, how);
      // Float32's rounding, of numbers below 1.
      CHECK(wrong.weight < 1e-6 && wrong.scale < 1e-6 && wrong.share < 1e-6);
      state = after;
      w = w1;
    }
  }
}

TEST(cuda_sum_of_squares_matches_float64) {
  for (int64_t n : {0, 1, 63, 4096, 4097, 20001}) {
    const Values x = rig::random_floats(n + 1, 1, -3, 3);
    for (int64_t offset : {0, 1}) {
      const auto [sum] = rig::on_two_schedules([&] {
        const Buffer<float> dx(x);
        const Buffer<double> out(1);
        const Buffer<char> workspace(sum_of_squares_workspace(n));
        sum_of_squares(nullptr, n, dx.data() + offset, out.data(), workspace.data());
        return std::tuple{out.read()};
      });
      double expected = 0;
      for (int64_t i = 0; i < n; ++i) expected += double{x[i + offset]} * x[i + offset];
      // Float64 in another order.
      rig::check_close("sum", sum, {expected}, 1e-13, 0);
    }
  }
}

TEST(cuda_launches_nothing_for_no_tokens) {
  logits_statistics(nullptr, 0, 8, nullptr, nullptr, 1, nullptr, nullptr, nullptr);
  sequence_log_ratio(nullptr, 0, nullptr, nullptr, nullptr, nullptr);
  policy_scalars(nullptr, 0, {}, {});
  logits_gradient(nullptr, 0, 8, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 1, nullptr);
  adamw(nullptr, 0, AdamWStep{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 1}, nullptr, nullptr, nullptr, nullptr);
  CHECK(sum_of_squares_workspace(0) == 0);
}
