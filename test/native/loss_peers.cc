// The policy loss against others: the numbers of their tests, and what TRL's and verl's own code says of one batch
// (scripts/fixtures/losses.py made the file).
#include <fstream>
#include <iterator>

#include "harness.h"
#include "io/json.h"
#include "loss/policy_loss.h"
#include "ops_fixture.h"

namespace tokenring {

namespace {

template <class T>
std::vector<T> numbers(const Json& from, const char* key) {
  const Json* found = from.find(key);
  require(found, "losses.json has no ", key);
  std::vector<T> values;
  for (const Json& value : found->array) values.push_back(static_cast<T>(value.number));
  return values;
}

double number(const Json& from, const char* key, double otherwise = 0) {
  const Json* found = from.find(key);
  return found ? found->number : otherwise;
}

PolicyScalars scalars_of(const Json& loss) {
  const std::string name = loss.find("objective")->string;
  PolicyScalars p;
  p.objective = name == "gspo"    ? PolicyObjective::gspo
                : name == "cispo" ? PolicyObjective::cispo
                                  : PolicyObjective::ppo_clip;
  p.clip_low = static_cast<float>(number(loss, "clipLow"));
  p.clip_high = static_cast<float>(number(loss, "clipHigh"));
  p.dual_clip = static_cast<float>(number(loss, "dualClip"));
  p.kl_coef = static_cast<float>(number(loss, "klCoef"));
  p.entropy_coef = static_cast<float>(number(loss, "entropyCoef"));
  return p;
}

// Per-token losses of three tokens of weight 1.
std::vector<float> losses(const PolicyScalars& p, const std::vector<float>& logprob, const std::vector<float>& old,
                          const std::vector<float>& advantage) {
  fixture::Bench b;
  const Tensor now = b.f32({3}, logprob), before = b.f32({3}, old), sequence = b.f32({3}), loss = b.f32({3});
  b.ops().sequence_log_ratio(b.stream(), now, before, b.i32({2}, {0, 3}), sequence);
  b.ops().policy_scalars(b.stream(), p,
                         {.logprob = now,
                          .weight = b.f32({3}, {1, 1, 1}),
                          .old = before,
                          .advantage = b.f32({3}, advantage),
                          .sequence = sequence,
                          .g = b.f32({3}),
                          .loss = loss,
                          .flags = b.i32({3})});
  return b.read(loss);
}

PolicyScalars clip(PolicyObjective objective, float low, float high, float dual = 0) {
  return {.objective = objective, .clip_low = low, .clip_high = high, .dual_clip = dual};
}

void check_losses(const std::vector<float>& got, const std::vector<double>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) CHECK_NEAR(got[i], expected[i], 2e-5, "token ", i);  // their digits
}

}  // namespace

// NeMo-RL's test_clipped_pg_loss_*, SkyRL's test_losses, slime's test_policy_loss, and one of our own for the
// asymmetric clip.
TEST(loss_gives_the_numbers_that_others_publish) {
  const std::vector<float> old = {-1, -1, -1}, now = {-1.69315f, -1, -0.59453f};  // ratios 0.5, 1, 1.5
  const PolicyScalars plain = clip(PolicyObjective::ppo_clip, 0.2f, 0.2f);
  check_losses(losses(plain, now, old, {1, -1, 2}), {-0.5, 1.0, -2.4});
  // Importance weights trainer / engine of 0.6065, 1.6487 and 0.8187, then truncated at 0.8: means -0.2065, -0.4744.
  check_losses(losses(plain, now, old, {0.6065f, -1.6487f, 2 * 0.8187f}), {-0.30325, 1.6487, -1.96488});
  check_losses(losses(plain, now, old, {0.6065f, -0.8f, 2 * 0.8f}), {-0.30325, 0.8, -1.92});
  // gspo: one ratio, (0.5 * 1 * 1.5)^(1/3). Published is -0.4846, times a sequence's weight of 0.8 that is not offered.
  const std::vector<float> sequence = losses(clip(PolicyObjective::gspo, 0.2f, 0.2f), now, old, {1, -1, 2});
  CHECK_NEAR(0.8 * (sequence[0] + sequence[1] + sequence[2]) / 3, -0.4846, 5e-5);

  const std::vector<float> far = {-1.69315f, -1, -0.69741f}, before = {-1, -1, -3};  // ratios 0.5, 1, 10
  check_losses(losses(clip(PolicyObjective::ppo_clip, 0.2f, 0.2f, 3), far, before, {1, -1, -4}), {-0.5, 1.0, 12.0});
  const std::vector<float> cispo = losses(clip(PolicyObjective::cispo, 0.2f, 0.2f), far, before, {1, -1, -4});
  CHECK_NEAR(cispo[0] + cispo[1] + cispo[2], -2.9930, 1e-4);
  const float ln2 = 0.693147f;
  check_losses(losses(clip(PolicyObjective::ppo_clip, 0.2f, 0.2f, 1.5f), {ln2, ln2, -ln2}, {0, 0, 0}, {2, -2, 2}),
               {-2.4, 3.0, -1.0});

  const PolicyScalars asymmetric = clip(PolicyObjective::ppo_clip, 0.2f, 0.28f);
  check_losses(losses(asymmetric, now, old, {1, -1, 2}), {-0.5, 1.0, -2.56});
  check_losses(losses(asymmetric, {-1.69315f, -0.59453f, -1}, old, {-1, -1, 0}), {0.8, 1.5, 0});
}

// The fused head as it trains, with the identity for a weight: hidden rows are logits, and their gradients come back.
TEST(loss_is_that_of_trl_and_verl) {
  std::ifstream file("test/fixtures/losses.json");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const Json all = parse_json(text, "losses.json");
  const int64_t sequences = static_cast<int64_t>(number(all, "sequences")),
                v = static_cast<int64_t>(number(all, "vocabulary"));
  const int64_t tokens = static_cast<int64_t>(number(all, "tokens")), m = sequences * tokens;
  const auto logits = numbers<float>(all, "logits"), old = numbers<float>(all, "old"), tis = numbers<float>(all, "tis"),
             reference = numbers<float>(all, "reference"), advantage = numbers<float>(all, "advantage");
  const auto mask = numbers<int32_t>(all, "mask"), targets = numbers<int32_t>(all, "targets");

  for (const Json& one : all.find("cases")->array) {
    const std::string name = one.find("peer")->string + " " + one.find("name")->string;
    const auto weight = numbers<float>(*all.find("weights"), one.find("aggregation")->string.c_str());
    LossRows rows;
    for (int64_t i = 0; i < m; ++i) {
      if (i % tokens == 0) rows.begin.push_back(static_cast<int32_t>(rows.size()));
      if (mask[i] == 0) continue;
      rows.row.push_back(static_cast<int32_t>(i));
      rows.target.push_back(targets[i]);
      rows.weight.push_back(weight[i]);
      // Truncated weights scale the objective alone: they go with the advantage.
      rows.advantage.push_back(advantage[i / tokens] * (one.find("tis")->boolean ? tis[i] : 1.0f));
      rows.old_logprob.push_back(old[i]);
      rows.reference_logprob.push_back(reference[i]);
    }
    rows.begin.push_back(static_cast<int32_t>(rows.size()));

    std::vector<float> identity(v * v);
    for (int64_t j = 0; j < v; ++j) identity[j * v + j] = 1.0f;
    fixture::Bench b;
    const PolicyHead head{b.ops(), b.weight(identity, v, v), b.f32({v, v}, std::vector<float>(v * v))};
    PolicyLoss loss;
    loss.scalars = scalars_of(*one.find("loss"));
    loss.chunk_rows = 7;
    LossLanes lanes;
    std::vector<float> gradient(m * v);
    Schedule schedule;
    const Slot hidden = schedule.slot(DType::f32, {m, v});
    schedule.upload(hidden, logits.data());
    schedule.download(gradient.data(), policy_loss(schedule, head, loss, hidden, rows, lanes));
    Executor executor(b.dev(), b.stream());
    executor.run(schedule);
    b.stream().synchronize();

    double value = 0, low = 0, high = 0, dual = 0;
    for (const float part : lanes.loss) value += part;
    for (const int32_t flag : lanes.flags) {
      low += flag == 1;
      high += flag == 2;
      dual += flag == 3;
    }
    // Thirty float32 terms of up to 5, weighted to sum to 1; their slopes are of the same size.
    CHECK_NEAR(value, number(one, "value"), 2e-6, name);
    const std::vector<double> expected = numbers<double>(one, "gradient");
    CHECK_NEAR(fixture::error(gradient, expected), 0, 2e-6, name);
    const Json& shares = *one.find("shares");
    const double count = static_cast<double>(rows.size());
    CHECK_NEAR(low / count, number(shares, "low", low / count), 1e-6, name);
    // TRL counts what dual clip takes over as clipped high only where A > 0; verl counts it there too.
    CHECK_NEAR(high / count, number(shares, "high", high / count), 1e-6, name);
    CHECK_NEAR((low + high) / count, number(shares, "clipped", (low + high) / count), 1e-6, name);
    CHECK_NEAR(dual / count, number(shares, "dual", dual / count), 1e-6, name);
  }
}

}  // namespace tokenring
