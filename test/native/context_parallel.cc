// Context parallelism: a decoder whose documents lie on several ranks against one rank that holds everything. The
// failures that other trainers have had are named where they would show.
#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>
#include <set>

#include "core/random.h"
#include "harness.h"
#include "mesh_rig.h"
#include "ops_fixture.h"
#include "parallel/shard.h"

using namespace tokenring;

namespace {

struct Way {
  ContextSchedule schedule;
  int ranks_per_node = 0;
};

// How so many context ranks may exchange: with nodes of one rank and with one node two levels are the other two.
std::vector<Way> ways(int context) {
  std::vector<Way> all{{ContextSchedule::ring}, {ContextSchedule::all_gather}};
  for (int local = 2; local < context; ++local)
    if (context % local == 0) all.push_back({ContextSchedule::two_level, local});
  return all;
}

PolicyLoss loss_of(PolicyObjective objective) {
  PolicyLoss loss;
  loss.scalars.objective = objective;
  loss.scalars.kl_coef = 0.05f;
  loss.scalars.entropy_coef = 0.01f;
  loss.chunk_rows = 17;
  return loss;
}

struct Outcome {
  std::vector<float> gradient, weights, logprob, entropy, scored;
  std::vector<int32_t> flags;
  double loss = 0, norm = 0;
};

std::vector<float> weights_of(const DecoderConfig& config, uint64_t seed) {
  Rig rig(config);
  rig.randomise(seed);
  return rig.read(rig.parameters.master());
}

void add(std::vector<float>& to, const std::vector<float>& x) {
  to.resize(x.size());
  for (size_t i = 0; i < x.size(); ++i) to[i] += x[i];
}

// One step on a mesh of C context ranks and `batches.size()` data groups, each with micro-batches of its own; lanes are
// those of data group 0's first micro-batch.
Outcome step(const DecoderConfig& config, const std::vector<std::vector<PackedBatch>>& batches, const PolicyLoss& loss,
             int context, Way way, TrainerOptions options = {}) {
  const std::vector<float> weights = weights_of(config, 5);
  const int size = context * static_cast<int>(batches.size());
  Outcome outcome;
  std::mutex mutex;
  AdamW how;
  how.learning_rate = 1e-3f;
  CHECK(
      none_failed(on_mesh(config, mesh_of(size, context, way.schedule, way.ranks_per_node), options, [&](MeshRank& k) {
        k.write(weights);
        const auto& own = batches[k.mesh.data_index()];
        const LossResult scored = k.trainer.score(own[0], 0.7f, k.never);
        for (size_t i = 0; i < own.size(); ++i) {
          const LossResult result = k.trainer.accumulate(own[i], loss, k.never, i + 1 == own.size());
          std::lock_guard lock(mutex);
          outcome.loss += result.loss;
          if (i > 0 || k.mesh.data_index() > 0) continue;
          // Every token is one rank's: the sums over the ranks are that rank's numbers.
          add(outcome.logprob, result.logprob);
          add(outcome.entropy, result.entropy);
          add(outcome.scored, scored.logprob);
          outcome.flags.resize(result.flags.size());
          for (size_t t = 0; t < result.flags.size(); ++t) outcome.flags[t] += result.flags[t];
        }
        if (size == 1) k.parameters.complete_gradients(*k.stream);
        if (k.mesh.rank() == 0) outcome.gradient = k.read(k.parameters.gradient());
        const double norm = k.trainer.optimise(how).gradient_norm;
        std::lock_guard lock(mutex);
        if (k.mesh.rank() == size - 1) outcome.norm = norm;
        if (k.mesh.rank() == size - 1) outcome.weights = k.read(k.parameters.master());
      })));
  return outcome;
}

void compare(const DecoderConfig& config, const Outcome& got, const Outcome& expected, Way way,
             const std::string& what) {
  Rig rig(config);
  CHECK_NEAR(got.loss, expected.loss, 1e-5 * std::abs(expected.loss) + 1e-7, what);
  CHECK_NEAR(got.norm, expected.norm, 1e-5 * expected.norm, what);
  CHECK_NEAR(worst_tensor(rig.parameters, got.gradient, expected.gradient), 0.0, 1e-5, what);
  CHECK(got.flags == expected.flags);
  if (way.schedule == ContextSchedule::all_gather) {
    CHECK(fixture::same_bits(got.logprob, expected.logprob));
    CHECK(fixture::same_bits(got.entropy, expected.entropy));
    CHECK(fixture::same_bits(got.scored, expected.scored));
  } else {
    CHECK_NEAR(relative_l2(got.logprob, expected.logprob), 0.0, 1e-5, what);
    CHECK_NEAR(relative_l2(got.scored, expected.scored), 0.0, 1e-5, what);
  }
}

PackedBatch batch_for(const DecoderConfig& config, const std::vector<int32_t>& lengths, uint64_t seed) {
  PackedBatch batch = random_batch(config, lengths, seed);
  for (size_t i = 0; i < batch.tokens.size(); ++i) batch.old_logprob[i] = -3.7f + 0.4f * uniform01(seed + 9, i);
  return batch;
}

}  // namespace

TEST(context_ranks_learn_what_one_rank_does) {
  // Documents shorter than the ranks are many, of one token, one giant beside many tiny ones, lengths that nothing
  // divides.
  const std::vector<std::vector<int32_t>> packings = {
      {100}, {3, 1, 33, 64, 2, 17, 1}, {120, 2, 1, 3, 2, 2, 1, 5, 4, 2, 1, 1, 3}, {2}, {5, 2}};
  const DecoderConfig configs[] = {tiny_config(true), qwen3_config(), tiny_config(false)};
  const PolicyObjective objectives[] = {PolicyObjective::ppo_clip, PolicyObjective::gspo, PolicyObjective::nll,
                                        PolicyObjective::cispo, PolicyObjective::gspo};
  for (size_t p = 0; p < packings.size(); ++p) {
    const DecoderConfig& config = configs[p % 3];
    const PolicyLoss loss = loss_of(objectives[p]);
    const PackedBatch batch = batch_for(config, packings[p], 20 + p);
    const Outcome expected = step(config, {{batch}}, loss, 1, {});
    for (const int context : {2, 4, 8})
      for (const Way way : ways(context)) {
        const std::string what = "packing " + std::to_string(p) + ", " + std::to_string(context) + " ranks, nodes of " +
                                 std::to_string(way.ranks_per_node);
        TrainerOptions options;
        options.activation_checkpointing = context == 4;
        compare(config, step(config, {{batch}}, loss, context, way, options), expected, way, what);
      }
  }
}

TEST(context_and_data_ranks_learn_what_one_rank_does) {
  const DecoderConfig config = tiny_config(true);
  const PolicyLoss loss = loss_of(PolicyObjective::gspo);
  const PackedBatch a = batch_for(config, {40, 1, 7}, 1), b = batch_for(config, {3, 90}, 2),
                    c = batch_for(config, {12, 12, 12, 12}, 3);
  const Outcome expected = step(config, {{a, b, c}}, loss, 1, {});
  for (const Way way : ways(2)) {
    compare(config, step(config, {{a, c}, {b}}, loss, 2, way), expected, way, "2 x 2");
    compare(config, step(config, {{a}, {b, PackedBatch{}}, {c}, {PackedBatch{}}}, loss, 2, way), expected, way,
            "4 x 2");
    compare(config, step(config, {{a, b, c}}, loss, 3, way), expected, way, "1 x 3");
  }
  const Way two_level{ContextSchedule::two_level, 2};
  compare(config, step(config, {{a, c}, {b}}, loss, 4, two_level), expected, two_level, "2 x 4 in nodes of 2");
}

TEST(context_in_two_levels_is_a_ring_of_nodes_of_one_rank_and_a_gather_in_one_node) {
  const DecoderConfig config = tiny_config(true);
  const PolicyLoss loss = loss_of(PolicyObjective::ppo_clip);
  const PackedBatch batch = batch_for(config, {70, 3, 1, 19}, 6);
  const auto same = [&](int context, int ranks_per_node, ContextSchedule other) {
    const Outcome a = step(config, {{batch}}, loss, context, {ContextSchedule::two_level, ranks_per_node});
    const Outcome b = step(config, {{batch}}, loss, context, {other});
    CHECK(fixture::same_bits(a.logprob, b.logprob) && fixture::same_bits(a.gradient, b.gradient));
    CHECK(fixture::same_bits(a.weights, b.weights) && a.norm == b.norm);
  };
  for (const int context : {2, 4}) {
    same(context, 1, ContextSchedule::ring);
    same(context, context, ContextSchedule::all_gather);
  }
  same(2, 4, ContextSchedule::all_gather);  // the group is within a larger node
}

// verl #4250, SkyRL #1420 and #1751, Megatron-LM #673: a label lost or doubled at the edge of a shard, a loss scaled by
// the ranks, means of means. Weights of one token alone find each: its loss is that token's, wherever it lies.
TEST(context_labels_at_the_edges_of_shards_count_once) {
  const DecoderConfig config = tiny_config(true);
  const int context = 4;
  const std::vector<int32_t> lengths = {32, 3, 19};
  PackedBatch batch = batch_for(config, lengths, 8);
  Rig rig(config);
  rig.write(rig.parameters.master(), weights_of(config, 5));
  rig.parameters.publish(*rig.stream);
  const LossResult alone = rig.trainer.score(batch, 1.0f, rig.never);
  std::set<size_t> edges;  // tokens whose row, or the row that predicts them, ends or begins a segment
  std::vector<int32_t> begin{0, 32, 35};
  for (const Shard& shard : zigzag(lengths, context))
    for (const Segment& s : shard)
      for (const int32_t position : {s.position, s.position + 1, s.position + s.length - 1, s.position + s.length})
        if (position > 0 && position < lengths[s.document]) edges.insert(begin[s.document] + position);
  CHECK(edges.size() > 20);
  for (const Way way : ways(context)) {
    std::vector<double> losses(edges.size());
    std::mutex mutex;
    CHECK(
        none_failed(on_mesh(config, mesh_of(context, context, way.schedule, way.ranks_per_node), {}, [&](MeshRank& k) {
          k.write(weights_of(config, 5));
          size_t at = 0;
          for (const size_t token : edges) {
            PackedBatch one = batch;
            std::fill(one.weight.begin(), one.weight.end(), 0.0f);
            one.weight[token] = 0.5f;
            const LossResult result = k.trainer.accumulate(one, PolicyLoss{}, k.never);
            std::lock_guard lock(mutex);
            losses[at++] += result.loss;
            for (size_t t = 0; t < result.logprob.size(); ++t) CHECK(t == token || result.logprob[t] == 0);
          }
        })));
    size_t at = 0;
    for (const size_t token : edges) {
      const double expected = -0.5 * alone.logprob[token];
      CHECK_NEAR(losses[at++], expected, 1e-6 * std::abs(expected), "token ", token);
    }
  }
}

// axolotl #3608: a ring that forgets where documents end had 1.84 times the loss. A document's logprobs are its own.
TEST(context_documents_do_not_see_each_other) {
  const DecoderConfig config = tiny_config(true);
  const std::vector<int32_t> lengths = {20, 31, 9, 27, 14};
  PackedBatch batch = batch_for(config, lengths, 4), other = batch;
  for (int i = 20; i < 51; ++i) other.tokens[i] = (other.tokens[i] + 7) % config.vocab_size;
  for (const Way way : ways(4)) {
    std::vector<float> first, second;
    std::mutex mutex;
    CHECK(none_failed(on_mesh(config, mesh_of(4, 4, way.schedule, way.ranks_per_node), {}, [&](MeshRank& k) {
      k.write(weights_of(config, 5));
      const LossResult a = k.trainer.score(batch, 1, k.never), b = k.trainer.score(other, 1, k.never);
      std::lock_guard lock(mutex);
      add(first, a.logprob);
      add(second, b.logprob);
    })));
    for (size_t i = 0; i < first.size(); ++i)
      if (i < 20 || i >= 51) CHECK(first[i] == second[i]);
    CHECK(first != second);
  }
}

TEST(context_failure_of_one_rank_is_one_of_all) {
  const DecoderConfig config = tiny_config(true);
  for (const auto& [context, way] : {std::pair{2, ways(2)[0]}, {2, ways(2)[1]}, {4, ways(4)[2]}})
    for (const bool scored : {true, false}) {
      const MeshOptions mesh = mesh_of(4, context, way.schedule, way.ranks_per_node);
      const auto failures = on_mesh(config, mesh, {}, [&](MeshRank& k) {
        k.write(weights_of(config, 5));
        const PackedBatch batch = batch_for(config, {60, 13}, 10 + k.mesh.data_index());
        if (k.mesh.rank() == 3) k.never = true;
        for (int i = 0; i < 3; ++i) {
          if (scored) k.trainer.score(batch, 1, k.never);
          k.trainer.accumulate(batch, PolicyLoss{}, k.never);
          k.trainer.optimise({});
        }
      });
      for (int r = 0; r < 4; ++r) CHECK(contains(failures[r], r == 3 ? "ABORTED" : "COMMUNICATOR"));
    }
}

TEST(context_zigzag_covers_every_token_once_and_balances) {
  uint64_t counter = 0;
  for (int trial = 0; trial < 200; ++trial) {
    const int size = 1 + static_cast<int>(uniform01(1, counter++) * 9);
    std::vector<int32_t> lengths;
    const int documents = 1 + static_cast<int>(uniform01(1, counter++) * 12);
    for (int d = 0; d < documents; ++d)
      lengths.push_back(1 + static_cast<int32_t>(uniform01(1, counter++) * (d % 3 ? 20 : 400)));
    const std::vector<Shard> shards = zigzag(lengths, size);
    check_shards(shards);
    const Shard all = merged(shards), expected = whole(lengths);
    CHECK(all.size() == expected.size());
    for (size_t i = 0; i < all.size(); ++i) CHECK(all[i].length == expected[i].length);
    const int64_t total = rows_of(expected);
    for (const Shard& shard : shards) {
      // Two more or less for a long document, whose remainders go round; one for the short ones.
      CHECK(std::abs(rows_of(shard) - total / size) <= 2 + 2 * ((documents + size - 1) / size));
      for (size_t i = 1; i < shard.size(); ++i)
        CHECK(shard[i - 1].document < shard[i].document || shard[i - 1].position < shard[i].position);
    }
  }
  // The layout of Transformer Engine's test_cp_utils.py: two documents of eight tokens on two ranks.
  const std::vector<Shard> two = zigzag({8}, 2);
  CHECK(two[0].size() == 2 && two[0][0].position == 0 && two[0][1].position == 6 && two[0][1].length == 2);
  CHECK(two[1].size() == 1 && two[1][0].position == 2 && two[1][0].length == 4);
  // One giant document: every rank has as many keys to look at.
  const std::vector<Shard> giant = zigzag({8192}, 8);
  const int64_t pairs = pairs_of(tiles_between(giant[0], whole({8192}), true));
  for (const Shard& shard : giant) CHECK(pairs_of(tiles_between(shard, whole({8192}), true)) == pairs);
  CHECK(8 * pairs == int64_t{8192} * 8193 / 2);
}
