// cuda/attention_backward.cu and cuda/attention_dq.cu, emulated, against float64.
#include <tuple>

#include "emulator/attention_rig.h"
#include "emulator/plants.h"
// The emulator comes before the kernels.
#include "../../cuda/attention_backward.cu"
#include "../../cuda/attention_dq.cu"

using rig::AttentionCase;
using rig::Buffer;
using rig::Span;
using namespace tokenring::cuda;

namespace {

// P and dS are rounded to bf16 before they meet dO, Q and K: 1.7e-3 on such inputs.
constexpr double kError = 3e-3;

struct Inputs {
  std::vector<Bf16> qkv, dout, out;
  std::vector<float> lse;
};

struct Gradients {
  std::vector<Bf16> dq;
  std::vector<float> dk, dv;
};

struct Reference {
  std::vector<double> dq, dk, dv;
};

// Inputs with the output that belongs to them.
Inputs inputs(const AttentionCase& c) {
  Inputs in{rig::normal_bf16(static_cast<size_t>(c.rows * c.width()), 7), rig::normal_bf16(c.outputs(), 9), {}, {}};
  const auto result = rig::attend(c, in.qkv);
  for (double x : result.out) in.out.push_back(to_bf16(static_cast<float>(x)));
  for (double x : result.lse) in.lse.push_back(static_cast<float>(x));
  return in;
}

// dk and dv start from 1.
constexpr float kBefore = 1.0f;

Reference reference(const AttentionCase& c, const Inputs& in) {
  const auto forward = rig::attend(c, in.qkv);
  const size_t keys = static_cast<size_t>(c.rows * c.kv_heads * c.head_dim);
  Reference g{std::vector<double>(c.outputs(), NAN), std::vector<double>(keys, kBefore),
              std::vector<double>(keys, kBefore)};
  std::vector<double> x, y;
  for (const Bf16& e : in.qkv) x.push_back(rig::value(e));
  for (const Bf16& e : in.dout) y.push_back(rig::value(e));
  for (const auto& tile : c.tiles)
    for (int64_t i = 0; i < tile.q.rows; ++i)
      for (int h = 0; h < c.heads; ++h) {
        const int64_t row = tile.q.row + i;
        const int kv = h / c.group();
        double delta = 0;
        for (int d = 0; d < c.head_dim; ++d) {
          delta += y[c.out_at(row, h, d)] * forward.out[c.out_at(row, h, d)];
          double& dq = g.dq[c.out_at(row, h, d)];
          if (std::isnan(dq)) dq = 0;
        }
        for (int64_t j = 0; j < tile.k.rows; ++j) {
          if (c.causal && tile.k.position + j > tile.q.position + i) break;
          const int64_t key = tile.k.row + j;
          double score = 0, dp = 0;
          for (int d = 0; d < c.head_dim; ++d) {
            score += x[c.q_at(row, h, d)] * x[c.k_at(key, kv, d)];
            dp += y[c.out_at(row, h, d)] * x[c.v_at(key, kv, d)];
          }
          const double p = std::exp(score * c.scale() - forward.lse[static_cast<size_t>(row * c.heads + h)]);
          const double ds = p * (dp - delta) * c.scale();
          for (int d = 0; d < c.head_dim; ++d) {
            const size_t at = static_cast<size_t>((key * c.kv_heads + kv) * c.head_dim + d);
            g.dq[c.out_at(row, h, d)] += ds * x[c.k_at(key, kv, d)];
            g.dk[at] += ds * x[c.q_at(row, h, d)];
            g.dv[at] += p * y[c.out_at(row, h, d)];
          }
        }
      }
  return g;
}

// What the kernels read of a case, on the device.
struct OnDevice {
  Buffer<Bf16> qkv, dout, out, dq;
  Buffer<float> lse, dk, dv;

  OnDevice(const AttentionCase& c, const Inputs& in)
      : qkv(in.qkv),
        dout(in.dout),
        out(in.out),
        dq(c.outputs()),
        lse(in.lse),
        dk(std::vector<float>(static_cast<size_t>(c.rows * c.kv_heads * c.head_dim), kBefore)),
        dv(std::vector<float>(static_cast<size_t>(c.rows * c.kv_heads * c.head_dim), kBefore)) {}
  HeadTensor q(const AttentionCase& c) const { return c.view(qkv.data(), 0, c.heads); }
  HeadTensor k(const AttentionCase& c) const { return c.view(qkv.data(), c.heads, c.kv_heads); }
  HeadTensor v(const AttentionCase& c) const { return c.view(qkv.data(), c.heads + c.kv_heads, c.kv_heads); }
  HeadTensor gradients(const AttentionCase& c) const {
    const int64_t columns = int64_t{c.heads} * c.head_dim;
    return {c.row_zero(dout.data(), columns), c.far + c.rows, columns, c.heads, c.head_dim};
  }
  Gradients read() const { return {dq.read(), dk.read(), dv.read()}; }
};

// `parts`: tiles of the case, launch by launch, of the same spans of queries.
Gradients backward(const AttentionCase& c, const Inputs& in, const std::vector<std::vector<rig::AttentionTile>>& parts,
                   bool deterministic = false) {
  const OnDevice device(c, in);
  const int64_t columns = int64_t{c.heads} * c.head_dim, key_columns = int64_t{c.kv_heads} * c.head_dim;
  const size_t queries_of_all =
      plan_backward(c.tiles, attention_backward_queries(c.head_dim), 128, c.causal, c.rows, c.rows).queries.size();
  const Buffer<char> workspace(
      attention_backward_workspace(static_cast<int>(queries_of_all), c.heads, c.head_dim, deterministic));
  for (size_t part = 0; part < parts.size(); ++part) {
    const auto plan = plan_backward(c.placed(parts[part]), attention_backward_queries(c.head_dim),
                                    attention_backward_keys(), c.causal, c.far + c.rows, c.far + c.rows);
    const Buffer<Span> queries(plan.queries);
    const Buffer<KeyTile> tiles(plan.tiles);
    const Buffer<QueryRange> ranges(plan.ranges);
    const AttentionBackward work{.q = device.q(c),
                                 .k = device.k(c),
                                 .v = device.v(c),
                                 .dout = device.gradients(c),
                                 .out = c.row_zero(device.out.data(), columns),
                                 .lse = c.row_zero(device.lse.data(), c.heads),
                                 .queries = queries.data(),
                                 .query_count = static_cast<int>(plan.queries.size()),
                                 .tiles = tiles.data(),
                                 .tile_count = static_cast<int>(plan.tiles.size()),
                                 .ranges = ranges.data(),
                                 .causal = c.causal,
                                 .scale = c.scale(),
                                 .dk = c.row_zero(device.dk.data(), key_columns),
                                 .dv = c.row_zero(device.dv.data(), key_columns),
                                 .workspace = workspace.data(),
                                 .deterministic = deterministic};
    if (part == 0) attention_backward_begin(nullptr, work);
    attention_backward(nullptr, emulator::encode_tiled, work);
    if (part + 1 == parts.size() && !deterministic)
      attention_backward_end(nullptr, work, c.row_zero(device.dq.data(), columns), columns);
  }
  if (deterministic) {
    const auto plan = plan_forward(c.placed(c.tiles), attention_dq_rows(), c.causal, c.far + c.rows, c.far + c.rows);
    const Buffer<QueryTile> tiles(plan.tiles);
    const Buffer<Span> keys(plan.keys);
    attention_dq(nullptr, emulator::encode_tiled,
                 {.q = device.q(c),
                  .k = device.k(c),
                  .v = device.v(c),
                  .dout = device.gradients(c),
                  .out = c.row_zero(device.out.data(), columns),
                  .lse = c.row_zero(device.lse.data(), c.heads),
                  .tiles = tiles.data(),
                  .tile_count = static_cast<int>(plan.tiles.size()),
                  .keys = keys.data(),
                  .causal = c.causal,
                  .scale = c.scale(),
                  .dq = c.row_zero(device.dq.data(), columns),
                  .row_stride = columns});
  }
  return device.read();
}

Gradients backward(const AttentionCase& c, const Inputs& in, bool deterministic) {
  return backward(c, in, {c.tiles}, deterministic);
}

double worst_error(const Gradients& got, const Reference& expected) {
  // Without the 1 that was there before.
  const auto less = [](auto values) {
    for (auto& x : values) x -= kBefore;
    return values;
  };
  return std::max({rig::relative_error(got.dq, expected.dq), rig::relative_error(less(got.dk), less(expected.dk)),
                   rig::relative_error(less(got.dv), less(expected.dv))});
}

void check(const AttentionCase& c) {
  const Inputs in = inputs(c);
  const Reference expected = reference(c, in);
  for (bool deterministic : {false, true}) {
    emulator::seed(1);
    const Gradients first = backward(c, in, deterministic);
    CHECK_NEAR(worst_error(first, expected), 0, kError, "head_dim ", c.head_dim, " heads ", c.heads, "/", c.kv_heads,
               " causal ", c.causal, " rows ", c.rows, " deterministic ", deterministic);
    emulator::seed(2);
    const Gradients second = backward(c, in, deterministic);
    CHECK(rig::same_bits(first.dk, second.dk) && rig::same_bits(first.dv, second.dv));
    if (deterministic) CHECK(rig::same_bits(first.dq, second.dq));
  }
}

}  // namespace

TEST(cuda_attention_backward_matches_float64) {
  for (int head_dim : {64, 128})
    for (bool causal : {false, true}) {
      check({head_dim, 2, 1, causal, 300, rig::packed({300})});
      check({head_dim, 1, 1, causal, 1, rig::packed({1})});
    }
}

TEST(cuda_attention_backward_groups_query_heads) {
  for (int group : {1, 2, 4, 5, 6, 7, 8}) check({64, 2 * group, 2, true, 70, rig::packed({70})});
  check({128, 7, 1, true, 70, rig::packed({70})});
}

TEST(cuda_attention_backward_keeps_packed_documents_apart) {
  // Documents that end within a tile, at its end, of one token and of none; rows that no tile names.
  const std::vector<int32_t> lengths{130, 1, 64, 0, 61, 128};
  for (int head_dim : {64, 128})
    for (bool causal : {false, true}) {
      const AttentionCase c{head_dim, 2, 1, causal, 400, rig::packed(lengths, 5)};
      check(c);
      // Alone, a document has the bits that it has in company.
      const Inputs in = inputs(c);
      AttentionCase alone = c;
      alone.tiles = {c.tiles[0]};
      const Gradients one = backward(alone, in, true), all = backward(c, in, true);
      for (int64_t row = 5; row < 5 + lengths[0]; ++row)
        for (int d = 0; d < head_dim; ++d) {
          CHECK(one.dq[c.out_at(row, 1, d)].bits == all.dq[c.out_at(row, 1, d)].bits);
          const size_t key = static_cast<size_t>(row * head_dim + d);
          CHECK(one.dk[key] == all.dk[key] && one.dv[key] == all.dv[key]);
        }
    }
}

// As under context parallelism, whole and in the steps of a ring: each launch has some of the keys.
TEST(cuda_attention_backward_goes_by_absolute_position) {
  const Span q1{0, 100, 200}, q2{100, 70, 500}, k1{170, 150, 450}, k2{320, 100, 0}, k3{420, 200, 150};
  for (int head_dim : {64, 128})
    for (bool causal : {false, true}) {
      const AttentionCase c{head_dim, 2, 1, causal, 620, {{q1, k1}, {q1, k2}, {q1, k3}, {q2, k1}, {q2, k2}, {q2, k3}}};
      check(c);
      const Inputs in = inputs(c);
      const Gradients steps = backward(c, in, {{{q1, k1}, {q2, k1}}, {{q1, k2}, {q2, k2}}, {{q1, k3}, {q2, k3}}});
      CHECK_NEAR(worst_error(steps, reference(c, in)), 0, kError);
    }
  // Queries before all keys have no gradient.
  const AttentionCase blind{64, 2, 2, true, 80, {{{0, 40, 0}, {40, 40, 20}}}};
  check(blind);
  for (bool deterministic : {false, true}) CHECK(backward(blind, inputs(blind), deterministic).dq[0].bits == 0);
}

TEST(cuda_attention_backward_needs_each_wait_and_fence) {
  for (int head_dim : {64, 128})
    for (bool deterministic : {false, true}) {
      // So many that each ring of buffers goes round.
      const AttentionCase c{head_dim, 1, 1, true, 400, rig::packed({400})};
      const Inputs in = inputs(c);
      const Reference expected = reference(c, in);
      const size_t calls = plants::check_that_each_is_needed(
          4, [&] { return worst_error(backward(c, in, deterministic), expected) < kError; });
      CHECK(calls > 20);
    }
}

// Rows so far into the tensors that an offset in elements does not fit 32 bits.
TEST(cuda_attention_backward_counts_in_64_bits) {
  for (int head_dim : {64, 128})
    for (bool deterministic : {false, true}) {
      AttentionCase c{head_dim, 2, 1, true, 40, rig::packed({40})};
      const Inputs in = inputs(c);
      const Gradients near = backward(c, in, deterministic);
      c.far = (1 << 26) + 11;
      const Gradients far = backward(c, in, deterministic);
      // One block of keys: even dQ is the same.
      CHECK(rig::same_bits(near.dq, far.dq) && rig::same_bits(near.dk, far.dk) && rig::same_bits(near.dv, far.dv));
    }
}

// A mask that is off by one is far from right.
TEST(cuda_attention_backward_needs_its_mask) {
  const AttentionCase c{128, 1, 1, true, 300, rig::packed({300})};
  AttentionCase off = c;
  off.tiles[0].q.position = 1;
  const Inputs in = inputs(c);
  const Reference expected = reference(c, in);
  for (bool deterministic : {false, true}) CHECK(worst_error(backward(off, in, deterministic), expected) > 10 * kError);
}

TEST(cuda_attention_backward_plans_the_heaviest_tiles_first) {
  const auto plan = plan_backward(rig::packed({300, 10, 0, 200}), 64, 128, true, 510, 510);
  int64_t before = INT64_MAX, keys = 0;
  for (const KeyTile& tile : plan.tiles) {
    int64_t queries = 0;
    for (int i = 0; i < tile.count; ++i) queries += plan.ranges[static_cast<size_t>(tile.first + i)].q.rows;
    CHECK(queries <= before);
    before = queries;
    keys += tile.k.rows;
  }
  CHECK(keys == 510 && plan.queries.size() == 5 + 1 + 4);
  CHECK_FAILS("INVALID_ARGUMENT",
              plan_backward({{{0, 5, 0}, {0, 5, 0}}, {{5, 5, 0}, {3, 5, 0}}}, 64, 128, true, 20, 20));
  const AttentionCase odd{96, 2, 1, true, 16, rig::packed({16})};
  for (bool deterministic : {false, true}) CHECK_FAILS("INVALID_ARGUMENT", backward(odd, inputs(odd), deterministic));
}
