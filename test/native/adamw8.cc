// AdamW with moments in eight bits: the op, training, checkpoints, shares.
#include <cstring>

#include "core/moment_codes.h"
#include "folder.h"
#include "harness.h"
#include "model/checkpoint.h"
#include "moments_reference.h"
#include "sharding_rig.h"

namespace tokenring {
namespace {

std::vector<float> gradients_of(int64_t n, uint64_t seed) {
  std::vector<float> g(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    g[i] = i % 7 == 3 ? 0.0f : static_cast<float>(normal01(seed, i) * std::pow(10.0, -(i % 5)));
  return g;
}

void step_on(Device& device, const AdamWStep& how, std::vector<float>& w, std::vector<float> g,
             reference::Moments8& state) {
  const auto stream = device.stream();
  const int64_t n = static_cast<int64_t>(w.size()), blocks = moment_blocks(n);
  const auto flat = [](auto& values, DType dtype, int64_t count) { return tensor(values.data(), dtype, {count}); };
  device.ops().adamw8(*stream, how, flat(w, DType::f32, n), flat(g, DType::f32, n), flat(state.m, DType::u8, n),
                      flat(state.v, DType::u8, n), flat(state.m_scale, DType::f32, blocks),
                      flat(state.v_scale, DType::f32, blocks));
  stream->synchronize();
}

bool same(const reference::Moments8& a, const reference::Moments8& b) {
  return a.m == b.m && a.v == b.v && a.m_scale == b.m_scale && a.v_scale == b.v_scale;
}

AdamW unclipped() {
  AdamW how;
  how.learning_rate = 1e-2f;
  how.beta2 = 0.95f;
  how.clip_norm = 0;
  return how;
}

reference::Moments8 state_of(Rig& rig) {
  const OptimiserState state = rig.parameters.optimiser_state();
  reference::Moments8 moments(rig.parameters.elements());
  const auto read = [&](auto& to, Tensor from) {
    rig.stream->copy_to_host(to.data(), from.data, from.bytes());
    rig.stream->synchronize();
  };
  read(moments.m, state.first_moment);
  read(moments.v, state.second_moment);
  read(moments.m_scale, state.first_scale);
  read(moments.v_scale, state.second_scale);
  return moments;
}

Rig coded_rig(const DecoderConfig& config) { return {make_cpu_device(2), config, {}, MomentForm::eight_bit}; }

void learn(Rig& rig, int steps) {
  for (int step = 0; step < steps; ++step) {
    rig.trainer.accumulate(random_batch(rig.parameters.config(), {30, 12}, 40 + step), PolicyLoss{}, rig.never);
    rig.trainer.optimise(unclipped());
  }
}

}  // namespace

TEST(adamw8_is_adamw_on_coded_moments) {
  for (const int64_t n : {1, 256, 700, 9000}) {
    std::vector<float> w(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) w[i] = static_cast<float>(normal01(1, i));
    reference::Moments8 state(n);
    for (int64_t t = 1; t <= 4; ++t) {
      const std::vector<float> g = gradients_of(n, 10 + t);
      const AdamWStep how{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, t};
      std::vector<float> w1 = w, again = w;
      reference::Moments8 after = state, repeated = state;
      step_on(*make_cpu_device(3), how, w1, g, after);
      const reference::Wrong wrong = reference::compare(state, after, w, g, w1, how);
      // Float32's rounding, of weights of a few ones.
      CHECK(wrong.weight < 1e-6 && wrong.scale < 1e-6 && wrong.share < 1e-6);
      step_on(*make_cpu_device(1), how, again, g, repeated);
      CHECK(again == w1 && same(repeated, after));
      state = after;
      w = w1;
    }
  }
}

TEST(adamw8_codes_survive_decoding_and_coding) {
  uint8_t codes[kMomentBlock], again[kMomentBlock];
  float values[kMomentBlock];
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i == 128 ? 0 : i);  // -0 is no code
  for (const float scale : {1.0f, 3.7e-9f, 0.1234567f, 5e11f}) {
    decode_mean(256, codes, scale, values);
    CHECK(encode_mean(256, values, again) == scale && std::memcmp(codes, again, 256) == 0);
  }
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  for (const float scale : {1.0f, 3.7e-9f, 0.1234567f, 5e11f}) {
    decode_square(256, codes, scale, values);
    CHECK(encode_square(256, values, again) == scale && std::memcmp(codes, again, 256) == 0);
  }
}

// 60 random tokens learnt by heart: the loss falls as with float32, to within a twentieth of where it began.
TEST(adamw8_training_reaches_the_loss_of_float32) {
  const auto curve = [](MomentForm form) {
    Rig rig(make_cpu_device(2), tiny_config(true), {}, form);
    initialise(rig.parameters, *rig.stream, {0.05f, 3, 0.0f});
    const PackedBatch batch = random_batch(rig.parameters.config(), {40, 20}, 6);
    AdamW how = unclipped();
    how.weight_decay = 0;
    std::vector<double> losses;
    for (int step = 0; step < 40; ++step) {
      losses.push_back(rig.trainer.accumulate(batch, PolicyLoss{}, rig.never).loss);
      rig.trainer.optimise(how);
    }
    return losses;
  };
  const std::vector<double> plain = curve(MomentForm::float32), coded = curve(MomentForm::eight_bit);
  CHECK(plain.back() < 0.2 * plain.front() && coded.back() < 0.2 * coded.front());
  CHECK(plain != coded);
  for (size_t i = 0; i < plain.size(); ++i) CHECK_NEAR(coded[i], plain[i], 0.05 * plain.front());
}

TEST(adamw8_moments_take_two_bytes_an_element) {
  Rig plain(make_cpu_device(1), tiny_config(true)), coded = coded_rig(tiny_config(true));
  for (Rig* rig : {&plain, &coded}) rig->parameters.optimiser_state();
  CHECK(plain.device.held("moments") == 8 * plain.parameters.elements());
  CHECK(coded.device.held("moments") == 2 * coded.parameters.elements() + 8 * coded.parameters.elements() / 256);
}

// float32 in the file: eight bits come back as they were, and go to float32 and back.
TEST(adamw8_checkpoints_hold_float32_and_load_as_either) {
  const DecoderConfig config = odd_config(false);
  Rig coded = coded_rig(config);
  coded.randomise(2);
  learn(coded, 3);
  const reference::Moments8 before = state_of(coded);
  Folder folder, other;
  save_optimiser(coded.parameters, *coded.stream, folder.path);
  Rig back = coded_rig(config);
  load_optimiser(back.parameters, *back.stream, folder.path);
  CHECK(same(state_of(back), before) && back.parameters.optimiser_step() == 3);

  Rig plain(make_cpu_device(2), config);
  load_optimiser(plain.parameters, *plain.stream, folder.path);
  const std::vector<float> first = plain.read(plain.parameters.first_moment());
  double most = 0;
  for (const Fragment& f : plain.parameters.fragments())
    for (const Fragment& c : coded.parameters.fragments()) {
      if (c.slice != f.slice) continue;
      for (int64_t i = 0; i < f.elements; ++i) {
        CHECK_NEAR(first[f.offset + i], before.mean(c.offset + i), 1e-6 * before.m_scale[(c.offset + i) / 256]);
        most = std::max<double>(most, std::abs(first[f.offset + i]));
      }
    }
  CHECK(most > 0);
  save_optimiser(plain.parameters, *plain.stream, other.path);
  load_optimiser(back.parameters, *back.stream, other.path);
  CHECK(same(state_of(back), before));
}

// More than is read at once.
TEST(adamw8_checkpoints_load_moments_in_pieces) {
  DecoderConfig config = odd_config(true);
  config.vocab_size = 190'000;  // 4.4 million elements
  Rig coded = coded_rig(config);
  coded.randomise(2);
  const Tensor flat = coded.parameters.gradient();
  std::vector<float> gradient(static_cast<size_t>(flat.elements()));
  for (const Fragment& f : coded.parameters.fragments())
    for (int64_t i = 0; i < f.elements; ++i)
      gradient[f.offset + i] = uniform01(9, static_cast<uint64_t>(f.offset + i)) - 0.5f;
  coded.write(flat, gradient);
  coded.trainer.optimise(unclipped());
  const reference::Moments8 before = state_of(coded);
  const Folder folder;
  save_optimiser(coded.parameters, *coded.stream, folder.path);
  Rig back = coded_rig(config);
  load_optimiser(back.parameters, *back.stream, folder.path);
  CHECK(same(state_of(back), before));
}

// No share cuts a block, so codes, scales and weights do not know of the ranks.
TEST(adamw8_is_the_same_on_any_number_of_ranks) {
  const DecoderConfig config = odd_config(true);
  const Tensors weights = random_weights(config);
  Tensors gradient = like(weights);
  for (size_t s = 0; s < gradient.size(); ++s) gradient[s] = gradients_of(std::ssize(gradient[s]), 100 + s);
  struct Outcome {
    Tensors weights, first, second;
  };
  const auto run = [&](int size, int stage, int shard_size) {
    Outcome got{like(weights), like(weights), like(weights)};
    CHECK(none_failed(on_mesh(
        config, sharded_mesh(size, stage, shard_size), {},
        [&](MeshRank& k) {
          write_share(k, weights);
          for (int step = 0; step < 3; ++step) {
            const Tensor flat = k.parameters.gradient();
            for (const Fragment& f : k.parameters.fragments())
              std::copy_n(gradient[f.slice].begin() + f.begin, f.elements, flat.f32() + f.offset);
            k.parameters.set_gradients_summed(true);
            k.trainer.optimise(unclipped());
          }
          put_share(k, k.parameters.master(), got.weights);
          const OptimiserState state = k.parameters.optimiser_state();
          const int64_t n = k.parameters.elements();
          std::vector<float> first(n), second(n);
          read_flat(*k.stream, state.first_moment, state.first_scale, false, 0, n, first.data());
          read_flat(*k.stream, state.second_moment, state.second_scale, true, 0, n, second.data());
          for (const Fragment& f : k.parameters.fragments()) {
            std::copy_n(first.begin() + f.offset, f.elements, got.first[f.slice].begin() + f.begin);
            std::copy_n(second.begin() + f.offset, f.elements, got.second[f.slice].begin() + f.begin);
          }
        },
        MomentForm::eight_bit)));
    return got;
  };
  const Outcome alone = run(1, 0, 1);
  for (const auto& [size, stage, shard_size] : {std::array{2, 1, 2}, {4, 1, 2}, {2, 3, 2}, {4, 3, 4}, {3, 3, 3}}) {
    const Outcome cut = run(size, stage, shard_size);
    CHECK(same(cut.weights, alone.weights) && same(cut.first, alone.first) && same(cut.second, alone.second));
  }
}

}  // namespace tokenring
