// cuda/attention_forward.cu, emulated, against float64.
#include <tuple>

#include "emulator/attention_rig.h"
#include "emulator/plants.h"
// The emulator comes before the kernels.
#include "../../cuda/attention_forward.cu"

using rig::AttentionCase;
using rig::Buffer;
using rig::Span;
using namespace tokenring::cuda;

namespace {

// Probabilities are rounded to bf16 before they meet the values, and the result once more: 2e-3 on such inputs. A fault
// of synchronisation or of a mask gives a hundred times that.
constexpr double kError = 3e-3;
// float32 through exp2 and log2.
constexpr double kLseError = 1e-5;

struct Output {
  std::vector<Bf16> out;
  std::vector<float> lse, running;
};

// `before`: what `running` and lse hold, if the result is to be merged into it, or to take its place.
Output forward(const AttentionCase& c, const std::vector<Bf16>& qkv, const Output* before = nullptr,
               int multiprocessors = 2, bool fresh = false) {
  const auto plan =
      plan_forward(c.placed(c.tiles), attention_forward_rows(c.head_dim), c.causal, c.far + c.rows, c.far + c.rows);
  const Buffer<Bf16> x(qkv), out(c.outputs());
  const Buffer<QueryTile> tiles(plan.tiles);
  const Buffer<Span> keys(plan.keys);
  const Buffer<float> lse = before ? Buffer<float>(before->lse) : Buffer<float>(c.statistics());
  const Buffer<float> running = before ? Buffer<float>(before->running) : Buffer<float>(c.outputs());
  const Buffer<int32_t> counters(std::vector<int32_t>(2, 0));
  attention_forward(nullptr, emulator::encode_tiled,
                    {.q = c.view(x.data(), 0, c.heads),
                     .k = c.view(x.data(), c.heads, c.kv_heads),
                     .v = c.view(x.data(), c.heads + c.kv_heads, c.kv_heads),
                     .tiles = tiles.data(),
                     .tile_count = static_cast<int>(plan.tiles.size()),
                     .keys = keys.data(),
                     .causal = c.causal,
                     .scale = c.scale(),
                     .out = c.row_zero(out.data(), c.heads * c.head_dim),
                     .lse = c.row_zero(lse.data(), c.heads),
                     .running = before ? c.row_zero(running.data(), c.heads * c.head_dim) : nullptr,
                     .counters = counters.data(),
                     .multiprocessors = multiprocessors,
                     .fresh = fresh});
  CHECK(counters.read() == std::vector<int32_t>(2, 0));
  return {out.read(), lse.read(), running.read()};
}

std::vector<Bf16> inputs(const AttentionCase& c) {
  return rig::normal_bf16(static_cast<size_t>(c.rows * c.width()), 7);
}

void check(const AttentionCase& c, uint64_t seeds = 1) {
  const auto qkv = inputs(c);
  const auto expected = rig::attend(c, qkv);
  std::vector<Bf16> first;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    emulator::seed(seed);
    const Output got = forward(c, qkv);
    CHECK_NEAR(rig::relative_error(got.out, expected.out), 0, kError, "head_dim ", c.head_dim, " heads ", c.heads, "/",
               c.kv_heads, " causal ", c.causal, " rows ", c.rows, " seed ", seed);
    for (size_t i = 0; i < expected.lse.size(); ++i)
      if (!std::isnan(expected.lse[i]) && !(got.lse[i] == expected.lse[i]))
        CHECK_NEAR(got.lse[i], expected.lse[i], kLseError, "lse ", i);
    // The same bits under every schedule.
    if (seed == 1) first = got.out;
    CHECK(rig::same_bits(first, got.out));
  }
}

}  // namespace

TEST(cuda_attention_forward_matches_float64) {
  for (int head_dim : {64, 128})
    for (bool causal : {false, true}) {
      check({head_dim, 2, 1, causal, 300, rig::packed({300})}, 3);
      check({head_dim, 1, 1, causal, 1, rig::packed({1})});
    }
}

TEST(cuda_attention_forward_groups_query_heads) {
  for (int group : {1, 2, 4, 5, 6, 7, 8}) check({64, 2 * group, 2, true, 70, rig::packed({70})});
  check({128, 7, 1, true, 130, rig::packed({130})});
}

TEST(cuda_attention_forward_keeps_packed_documents_apart) {
  // Documents that end within a tile, at its end, of one token and of none; rows that no tile names.
  const std::vector<int32_t> lengths{130, 1, 192, 0, 61, 128};
  for (int head_dim : {64, 128})
    for (bool causal : {false, true}) {
      const AttentionCase c{head_dim, 2, 1, causal, 530, rig::packed(lengths, 5)};
      check(c);
      // Each alone has the bits that it has in company.
      emulator::seed(5);
      const auto qkv = inputs(c);
      const Output together = forward(c, qkv);
      for (size_t i : {size_t{0}, size_t{2}}) {
        AttentionCase alone = c;
        alone.tiles = {c.tiles[i]};
        const Output one = forward(alone, qkv);
        const size_t first = c.out_at(c.tiles[i].q.row, 0, 0), end = c.out_at(c.tiles[i].q.row + lengths[i], 0, 0);
        CHECK(std::equal(one.out.begin() + first, one.out.begin() + end, together.out.begin() + first,
                         [](Bf16 a, Bf16 b) { return a.bits == b.bits; }));
      }
    }
}

// As under context parallelism: two pieces of a document, far apart, and the keys in pieces too, out of order.
TEST(cuda_attention_forward_goes_by_absolute_position) {
  const Span q1{0, 100, 200}, q2{100, 70, 500}, k1{170, 150, 450}, k2{320, 200, 0}, k3{520, 250, 200};
  for (bool causal : {false, true}) {
    AttentionCase c{128, 2, 1, causal, 770, {{q1, k1}, {q1, k2}, {q1, k3}, {q2, k1}, {q2, k2}, {q2, k3}}};
    check(c);
    c.head_dim = 64;
    check(c);
  }
  // Queries before all keys see nothing.
  const AttentionCase blind{64, 2, 2, true, 80, {{{0, 40, 0}, {40, 40, 20}}}};
  const auto qkv = inputs(blind);
  check(blind);
  const Output got = forward(blind, qkv);
  CHECK(got.out[0].bits == 0 && got.lse[0] == -INFINITY);
}

// A ring: each step sees some keys and merges into what the others gave.
TEST(cuda_attention_forward_merges_running_results) {
  const Span q{0, 150, 300}, keys[] = {{150, 100, 350}, {250, 200, 150}, {450, 150, 0}, {600, 40, 460}};
  for (int head_dim : {64, 128}) {
    AttentionCase c{head_dim, 2, 1, true, 640, {}};
    const auto qkv = inputs(c);
    // The first overwrites: the same bits as of rows that are known to be empty.
    const Output empty{{}, std::vector<float>(c.statistics(), -INFINITY), std::vector<float>(c.outputs(), NAN)};
    const Output junk{{}, std::vector<float>(c.statistics(), 3.0f), std::vector<float>(c.outputs(), 5.0f)};
    Output running = empty;
    for (const Span& k : keys) {
      c.tiles = {{q, k}};
      const Output before = running;
      running = forward(c, qkv, &before);
      if (&k == keys) {
        const Output first = forward(c, qkv, &junk, 2, true);
        for (size_t at = 0; at < c.out_at(q.rows, 0, 0); ++at) CHECK(first.running[at] == running.running[at]);
        for (size_t at = 0; at < static_cast<size_t>(q.rows * c.heads); ++at) CHECK(first.lse[at] == running.lse[at]);
      }
      // Queries that saw something before and see nothing of these keys keep every bit.
      for (int64_t i = 0; k.position > q.position && i < k.position - q.position; ++i)
        if (before.lse[static_cast<size_t>(i * c.heads)] != -INFINITY)
          for (size_t at = c.out_at(i, 0, 0); at < c.out_at(i + 1, 0, 0); ++at)
            CHECK(before.running[at] == running.running[at]);
    }
    c.tiles.clear();
    for (const Span& k : keys) c.tiles.push_back({q, k});
    const auto expected = rig::attend(c, qkv);
    CHECK_NEAR(rig::relative_error(running.running, expected.out), 0, kError);
    for (size_t i = 0; i < c.statistics(); ++i)
      if (!std::isnan(expected.lse[i])) CHECK_NEAR(running.lse[i], expected.lse[i], kLseError);
  }
}

TEST(cuda_attention_forward_leaks_nothing_from_the_future) {
  const AttentionCase c{128, 1, 1, true, 300, rig::packed({300})};
  auto qkv = inputs(c);
  const auto before = forward(c, qkv).out;
  for (int64_t j : {1, 63, 128, 200}) {
    auto changed = qkv;
    for (int d = 0; d < c.head_dim; ++d) changed[c.k_at(j, 0, d)].bits = changed[c.v_at(j, 0, d)].bits = 0x4080;
    const auto after = forward(c, changed).out;
    const auto first =
        std::mismatch(before.begin(), before.end(), after.begin(), [](Bf16 a, Bf16 b) { return a.bits == b.bits; });
    CHECK((first.first - before.begin()) / c.head_dim == j);
  }
  // What a mask that is off by one would give is far from right.
  AttentionCase off = c;
  off.tiles[0].q.position = 1;
  CHECK(rig::relative_error(forward(off, qkv).out, rig::attend(c, qkv).out) > 10 * kError);
}

// Uneven scores: the maximum moves with each tile, up and down by a hundred.
TEST(cuda_attention_forward_follows_large_scores) {
  const AttentionCase c{128, 1, 1, true, 400, rig::packed({400})};
  auto qkv = inputs(c);
  for (int64_t j = 0; j < c.rows; ++j)
    for (int d = 0; d < c.head_dim; ++d) {
      Bf16& x = qkv[c.k_at(j, 0, d)];
      x = to_bf16(static_cast<float>(rig::value(x)) * (j % 130 == 7 ? 12.0f : 1.0f));
    }
  const auto expected = rig::attend(c, qkv);
  const Output got = forward(c, qkv);
  CHECK_NEAR(rig::relative_error(got.out, expected.out), 0, kError);
  for (size_t i = 0; i < expected.lse.size(); ++i)
    CHECK_NEAR(got.lse[i], expected.lse[i], kLseError * std::max(1.0, std::abs(expected.lse[i])));
}

// Rows so far into the tensors that an offset in elements does not fit 32 bits.
TEST(cuda_attention_forward_counts_in_64_bits) {
  for (int head_dim : {64, 128}) {
    AttentionCase c{head_dim, 2, 1, true, 40, rig::packed({40})};
    const auto qkv = inputs(c);
    const Output near = forward(c, qkv);
    c.far = (1 << 25) + 11;
    const Output far = forward(c, qkv);
    CHECK(rig::same_bits(near.out, far.out) && rig::same_bits(near.lse, far.lse));
    const Output empty{{}, std::vector<float>(c.statistics(), -INFINITY), std::vector<float>(c.outputs(), NAN)};
    CHECK(rig::same_bits(forward(c, qkv, &empty).lse, near.lse));
  }
}

TEST(cuda_attention_forward_needs_each_wait_and_fence) {
  for (int head_dim : {64, 128}) {
    // Items in a row for a block, of several tiles of keys.
    const AttentionCase c{head_dim, 2, 1, true, 400, rig::packed({400})};
    const auto qkv = inputs(c);
    const auto expected = rig::attend(c, qkv);
    const size_t calls = plants::check_that_each_is_needed(
        4, [&] { return rig::relative_error(forward(c, qkv, nullptr, 1).out, expected.out) < kError; });
    CHECK(calls > 20);
  }
}

TEST(cuda_attention_plans_the_heaviest_tiles_first) {
  const auto plan = plan_forward(rig::packed({300, 10, 0, 200}), 128, true, 510, 510);
  int64_t before = INT64_MAX, rows = 0;
  for (const QueryTile& tile : plan.tiles) {
    const int64_t cost = tile.q.position + tile.q.rows;
    CHECK(cost <= before && tile.count == 1);
    before = cost;
    rows += tile.q.rows;
  }
  CHECK(rows == 510);
  CHECK_FAILS("INVALID_ARGUMENT", plan_forward(rig::packed({300}), 128, true, 299, 300));
  CHECK_FAILS("INVALID_ARGUMENT", plan_forward(rig::packed({300}), 128, true, 300, 299));
  CHECK_FAILS("INVALID_ARGUMENT", plan_forward({{{0, 5, 0}, {0, 5, 0}}, {{0, 5, 0}, {9, 5, 4}}}, 128, true, 20, 20));
  CHECK_FAILS("INVALID_ARGUMENT", plan_forward({{{0, 5, 0}, {0, 5, 0}}, {{4, 5, 4}, {9, 5, 4}}}, 128, true, 20, 20));
  const AttentionCase odd{96, 2, 1, true, 16, rig::packed({16})};
  CHECK_FAILS("INVALID_ARGUMENT", forward(odd, inputs(odd)));
  const AttentionCase uneven{64, 3, 2, true, 16, rig::packed({16})};
  CHECK_FAILS("INVALID_ARGUMENT", forward(uneven, inputs(uneven)));
}
