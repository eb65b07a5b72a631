// AdamW, clipping and the optimiser step of the trainer.
#include "optim/adamw.h"

#include <limits>

#include "decoder_rig.h"
#include "harness.h"

namespace tokenring {

namespace {

PolicyLoss nll() { return PolicyLoss{}; }

AdamW options() { return AdamW{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 1.0f}; }

}  // namespace

// Against the update written out in double (Loshchilov & Hutter 2019, algorithm 2, decay by the learning rate).
// One float32 update of numbers near 1 rounds at 6e-8; a few of them stay within 1e-6.
TEST(adamw_three_steps_are_the_formulas) {
  Rig rig(tiny_config(false));
  rig.randomise(2);
  const AdamW how = options();
  const std::vector<float> start = rig.read(rig.parameters.master());
  reference::Vector w(start.begin(), start.end());
  reference::Vector m(start.size()), v(start.size());
  for (int step = 1; step <= 3; ++step) {
    const PackedBatch batch = random_batch(rig.parameters.config(), {30, 12}, 40 + step);
    rig.trainer.accumulate(batch, nll(), rig.never);
    const std::vector<float> g = rig.gradient();
    double norm = 0;
    for (const float value : g) norm += static_cast<double>(value) * value;
    norm = std::sqrt(norm);
    CHECK(norm > how.clip_norm);
    const OptimiserResult result = rig.trainer.optimise(how);
    CHECK_NEAR(result.gradient_norm, norm, 1e-6 * norm);
    CHECK(result.step == step);
    CHECK(result.version == step + 1 && rig.parameters.version() == step + 1);

    const std::vector<float> got = rig.read(rig.parameters.master());
    for (const NamedSlice& slice : rig.parameters.slices()) {
      CHECK(slice.decay == (slice.shape.size() == 2));
      for (int64_t i = slice.offset; i < slice.offset + slice.elements(); ++i) {
        const double clipped = g[i] * how.clip_norm / norm;
        m[i] = how.beta1 * m[i] + (1 - how.beta1) * clipped;
        v[i] = how.beta2 * v[i] + (1 - how.beta2) * clipped * clipped;
        const double mean = m[i] / (1 - std::pow(how.beta1, step)), square = v[i] / (1 - std::pow(how.beta2, step));
        if (slice.decay) w[i] -= how.learning_rate * how.weight_decay * w[i];
        w[i] -= how.learning_rate * mean / (std::sqrt(square) + how.epsilon);
        CHECK_NEAR(got[i], w[i], 1e-6);
      }
    }
    for (const float value : rig.gradient()) CHECK(value == 0);
  }
}

TEST(adamw_without_clipping_takes_the_gradient_as_it_is) {
  Rig one(tiny_config(true)), two(tiny_config(true));
  AdamW how = options();
  for (Rig* rig : {&one, &two}) {
    rig->randomise(2);
    rig->trainer.accumulate(random_batch(rig->parameters.config(), {30}, 1), nll(), rig->never);
    rig->trainer.optimise(how);
    how.clip_norm = 0;
  }
  // The first moment of the first step is (1 - beta1) g: unclipped it is larger by norm / clip_norm.
  const std::vector<float> clipped = one.read(one.parameters.first_moment());
  const std::vector<float> plain = two.read(two.parameters.first_moment());
  double a = 0, b = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    a += static_cast<double>(clipped[i]) * clipped[i];
    b += static_cast<double>(plain[i]) * plain[i];
  }
  CHECK_NEAR(std::sqrt(a), 0.1 * 1.0, 1e-5);
  CHECK(std::sqrt(b) > 0.11);
}

TEST(adamw_training_lowers_the_loss) {
  Rig rig(tiny_config(true));
  initialise(rig.parameters, *rig.stream, {0.05f, 3, 0.0f});
  PackedBatch batch = random_batch(rig.parameters.config(), {40, 20}, 6);
  AdamW how = options();
  how.weight_decay = 0;
  double first = 0, last = 0;
  for (int step = 0; step < 40; ++step) {
    last = rig.trainer.accumulate(batch, nll(), rig.never).loss;
    if (step == 0) first = last;
    rig.trainer.optimise(how);
  }
  CHECK(last < 0.2 * first);  // 60 random tokens are learnt by heart
}

TEST(adamw_gradient_not_finite_leaves_the_weights) {
  Rig rig(tiny_config(true));
  rig.randomise(2);
  rig.trainer.accumulate(random_batch(rig.parameters.config(), {30}, 1), nll(), rig.never);
  std::vector<float> gradient = rig.gradient();
  for (const NamedSlice& slice : rig.parameters.slices()) {
    if (slice.name == "model.layers.0.self_attn.k_proj.weight") {
      gradient[slice.offset + 7] = std::numeric_limits<float>::infinity();
    }
  }
  rig.write(rig.parameters.gradient(), gradient);
  const std::vector<float> before = rig.read(rig.parameters.master());
  const std::string message = failure_of([&] { rig.trainer.optimise(options()); });
  CHECK(contains(message, "NON_FINITE") && contains(message, "model.layers.0.self_attn.k_proj.weight"));
  CHECK(rig.read(rig.parameters.master()) == before);
  CHECK(rig.parameters.version() == 1 && rig.parameters.optimiser_step() == 0);
  for (const float value : rig.gradient()) CHECK(value == 0);
  CHECK(rig.trainer.optimise(options()).step == 1);  // and it goes on
}

TEST(adamw_options_are_checked) {
  Rig rig(tiny_config(true));
  const auto message = [&](auto change) {
    AdamW how = options();
    change(how);
    return failure_of([&] { rig.trainer.optimise(how); });
  };
  CHECK(contains(message([](AdamW& a) { a.beta1 = 1; }), "beta1 is 1"));
  CHECK(contains(message([](AdamW& a) { a.learning_rate = -1; }), "learning_rate is -1"));
  CHECK(contains(message([](AdamW& a) { a.clip_norm = std::numeric_limits<float>::quiet_NaN(); }), "clip_norm"));
}

TEST(adamw_steady_state_allocates_nothing) {
  Rig rig(tiny_config(true));
  rig.randomise(2);
  const auto step = [&](const std::vector<int32_t>& lengths) {
    const PackedBatch batch = random_batch(rig.parameters.config(), lengths, 1);
    rig.trainer.score(batch, 1.0f, rig.never);
    rig.trainer.accumulate(batch, nll(), rig.never);
    rig.trainer.optimise(options());
  };
  step({64, 33, 7});
  const int allocations = rig.device.allocations;
  step({64, 33, 7});
  step({20, 50, 30});
  step({3});
  CHECK(rig.device.allocations == allocations);
  step({100, 100});
  CHECK(rig.device.allocations > allocations);  // the counter counts
}

}  // namespace tokenring
