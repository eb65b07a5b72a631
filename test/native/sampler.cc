// The sampler against the trainer: the same bits, however a stream was cut into chunks, turns, forks and batches.
#include "model/sampler.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>

#include "decoder_rig.h"
#include "harness.h"

namespace tokenring {
namespace {

DecoderConfig config() {
  DecoderConfig c = tiny_config(true);
  c.max_position_embeddings = 600;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  return c;
}

std::vector<int32_t> ids(uint64_t seed, int n) {
  std::vector<int32_t> tokens(n);
  for (int i = 0; i < n; ++i) tokens[i] = static_cast<int32_t>(random_bits(seed, i) % config().vocab_size);
  return tokens;
}

struct Outcome {
  bool ended = false;
  SampleResult result;
  std::string error;  // code of its Failure
};

// A sampler on a rig of its own whose weights are far from zero, so that logprobs differ visibly.
struct Bench {
  explicit Bench(SamplerOptions options = {}) : Bench(options, nullptr) {}
  Bench(SamplerOptions options, Device* device)
      : rig(config()), sampler(device ? *device : rig.device, rig.parameters, options) {
    initialise(rig.parameters, *rig.stream, {0.3f, 5, 0});
  }

  int64_t open(const std::vector<int32_t>& tokens) {
    const int64_t session = sampler.open();
    sampler.extend(session, tokens.data(), tokens.size());
    return session;
  }

  // The outcome appears during later ticks.
  Outcome& start(int64_t session, uint64_t seed, int max_tokens, float temperature = 1.0f) {
    Outcome& outcome = outcomes[next++];
    sampler.sample(session, {max_tokens, {}, temperature, seed}, [&](SampleResult result, std::exception_ptr error) {
      CHECK(!outcome.ended);
      outcome.ended = true;
      outcome.result = std::move(result);
      if (!error) return;
      try {
        std::rethrow_exception(error);
      } catch (const Failure& failure) {
        outcome.error = failure.code();
      }
    });
    return outcome;
  }

  void finish() {
    for (int ticks = 0; sampler.busy(); ++ticks) {
      if (ticks > 20000) throw std::runtime_error("the sampler does not come to an end");
      sampler.tick();
    }
  }

  std::vector<float> scored(const std::vector<int32_t>& tokens, float temperature = 1.0f) {
    PackedBatch batch;
    batch.tokens = tokens;
    batch.lengths = {static_cast<int32_t>(tokens.size())};
    return rig.trainer.score(batch, temperature, rig.never).logprob;
  }

  // Appends the turn to `stream` and compares its logprobs with the trainer's, bit for bit.
  void check(std::vector<int32_t>& stream, const SampleResult& turn, float temperature = 1.0f) {
    stream.insert(stream.end(), turn.tokens.begin(), turn.tokens.end());
    const std::vector<float> expected = scored(stream, temperature);
    CHECK(std::equal(turn.logprobs.begin(), turn.logprobs.end(), expected.end() - turn.logprobs.size()));
    CHECK(turn.logprobs.size() == turn.tokens.size());
  }

  Rig rig;
  Sampler sampler;
  std::map<int, Outcome> outcomes;
  int next = 0;
};

TEST(sampler_logprobs_are_the_trainers_in_any_chunking) {
  for (const int chunk : {1, 7, 64, 65, 512}) {
    for (const float temperature : {1.0f, 0.6f}) {
      SamplerOptions options;
      options.max_batch_tokens = chunk;
      Bench bench(options);
      std::vector<int32_t> stream = ids(1, 150);
      const int64_t session = bench.open(stream);
      for (uint64_t turn = 0; turn < 3; ++turn) {
        Outcome& outcome = bench.start(session, turn, 30, temperature);
        bench.finish();
        CHECK(outcome.ended && outcome.error.empty() && outcome.result.tokens.size() == 30);
        bench.check(stream, outcome.result, temperature);
        const std::vector<int32_t> observation = ids(100 + turn, 20 * static_cast<int>(turn) + 1);
        bench.sampler.extend(session, observation.data(), observation.size());
        stream.insert(stream.end(), observation.begin(), observation.end());
      }
    }
  }
}

// Every token against the inverse of the cumulative distribution that the trainer's own scores make, at the uniform
// of (seed, position): each place of a stream draws anew.
TEST(sampler_draws_with_the_uniform_of_seed_and_position) {
  const int32_t vocabulary = config().vocab_size;
  for (const float temperature : {1.0f, 0.6f, 3.0f}) {
    Bench bench;
    std::vector<int32_t> stream = ids(1, 3);
    const int64_t session = bench.open(stream);
    for (const uint64_t seed : {5ull, 6ull, 0x9000000000000005ull}) {
      Outcome& outcome = bench.start(session, seed, 20, temperature);
      bench.finish();
      CHECK(outcome.result.tokens.size() == 20);
      for (const int32_t token : outcome.result.tokens) {
        PackedBatch next;  // the stream so far, ended by each token in turn
        for (int32_t last = 0; last < vocabulary; ++last) {
          next.tokens.insert(next.tokens.end(), stream.begin(), stream.end());
          next.tokens.push_back(last);
          next.lengths.push_back(static_cast<int32_t>(stream.size()) + 1);
        }
        const std::vector<float> logprob = bench.rig.trainer.score(next, temperature, bench.rig.never).logprob;
        double below = 0, upto = 0;
        for (int32_t last = 0; last <= token; ++last) {
          below = upto;
          upto += std::exp(static_cast<double>(logprob[(last + 1) * (stream.size() + 1) - 1]));
        }
        // Probabilities that sum to 1, each good to a few 1e-6 of itself by its float32 logprob.
        const double uniform = uniform01(seed, stream.size());
        CHECK_NEAR(uniform, (below + upto) / 2, (upto - below) / 2 + 1e-5, "at position ", stream.size());
        stream.push_back(token);
      }
    }
  }
}

TEST(sampler_results_do_not_depend_on_the_company) {
  const auto length = [](int i) { return 3 + 29 * i; };
  std::vector<SampleResult> alone;
  for (int i = 0; i < 10; ++i) {
    Bench bench;
    Outcome& outcome = bench.start(bench.open(ids(i, length(i))), i, 25);
    bench.finish();
    alone.push_back(outcome.result);
  }
  // 20 tokens a tick: decodes and prefills of many sessions share ticks, and not all fit.
  SamplerOptions options;
  options.max_batch_tokens = 20;
  Bench bench(options);
  std::vector<Outcome*> together;
  for (int i = 0; i < 10; ++i) {
    together.push_back(&bench.start(bench.open(ids(i, length(i))), i, 25));
    for (int ticks = 0; ticks < i; ++ticks) bench.sampler.tick();  // they come one after the other
  }
  bench.finish();
  for (int i = 0; i < 10; ++i) {
    CHECK(together[i]->result.tokens == alone[i].tokens);
    CHECK(together[i]->result.logprobs == alone[i].logprobs);
  }
}

TEST(sampler_forks_go_their_own_ways) {
  for (const int length : {1, 63, 64, 65, 130}) {
    Bench bench;
    const std::vector<int32_t> prompt = ids(3, length);
    const int64_t parent = bench.open(prompt);
    Outcome& first = bench.start(parent, 0, 5);
    bench.finish();
    std::vector<int32_t> stream = prompt;
    bench.check(stream, first.result);

    std::vector<std::pair<int64_t, Outcome*>> children;
    for (int i = 0; i < 4; ++i) {
      const int64_t child = bench.sampler.fork(parent);
      const std::vector<int32_t> tail = ids(50 + i, 3 * i);
      bench.sampler.extend(child, tail.data(), tail.size());
      children.push_back({child, &bench.start(child, i, 70)});
    }
    Outcome& own = bench.start(parent, 9, 70);
    bench.finish();
    std::vector<int32_t> parents = stream;
    bench.check(parents, own.result);
    for (int i = 0; i < 4; ++i) {
      std::vector<int32_t> childs = stream;
      const std::vector<int32_t> tail = ids(50 + i, 3 * i);
      childs.insert(childs.end(), tail.begin(), tail.end());
      bench.check(childs, children[i].second->result);
      bench.sampler.close(children[i].first);
    }
    bench.sampler.close(parent);
    CHECK(bench.sampler.usage().pages == 0);
    CHECK(bench.sampler.usage().sessions == 0);
  }
}

TEST(sampler_reads_a_shared_prompt_once) {
  // Whole pages are read once and shared, but never the last token: each session needs its logits.
  for (const auto& [length, shared] : {std::pair(200, 192), std::pair(192, 128), std::pair(193, 192)}) {
    Bench bench;
    const std::vector<int32_t> prompt = ids(4, length);
    std::vector<Outcome*> outcomes;
    for (int i = 0; i < 6; ++i) outcomes.push_back(&bench.start(bench.open(prompt), i, 4));
    bench.finish();
    CHECK(bench.sampler.usage().prefilled == shared + 6 * (length - shared));
    CHECK(bench.sampler.usage().pages == shared / 64 + 6 * ((length + 3 - shared + 63) / 64));
    for (Outcome* outcome : outcomes) {
      CHECK(outcome->error.empty());
      std::vector<int32_t> stream = prompt;
      bench.check(stream, outcome->result);
    }
  }
}

TEST(sampler_reads_again_under_new_weights) {
  Bench bench;
  std::vector<int32_t> stream = ids(5, 90);
  const int64_t session = bench.open(stream);
  Outcome& first = bench.start(session, 0, 10);
  bench.finish();
  bench.check(stream, first.result);

  // In the middle of a turn: each token keeps the logprob of the weights that sampled it.
  Outcome& second = bench.start(session, 1, 10);
  for (int i = 0; i < 4; ++i) bench.sampler.tick();
  std::vector<int32_t> old_stream = stream;
  const std::vector<float> old_weights = bench.rig.read(bench.rig.parameters.master());
  initialise(bench.rig.parameters, *bench.rig.stream, {0.25f, 6, 0});
  bench.finish();
  CHECK(second.result.version == first.result.version);
  stream.insert(stream.end(), second.result.tokens.begin(), second.result.tokens.end());
  const std::vector<float> now = bench.scored(stream);
  const size_t start = old_stream.size();
  CHECK(std::equal(now.begin() + start + 4, now.end(), second.result.logprobs.begin() + 4));
  CHECK(!std::equal(now.begin() + start, now.begin() + start + 4, second.result.logprobs.begin()));
  bench.rig.write(bench.rig.parameters.master(), old_weights);
  bench.rig.parameters.publish(*bench.rig.stream);
  bench.rig.stream->synchronize();
  const std::vector<float> then = bench.scored(stream);
  CHECK(std::equal(then.begin() + start, then.begin() + start + 4, second.result.logprobs.begin()));
}

TEST(sampler_gives_way_when_pages_are_few) {
  // Seven sessions that end with 4 pages each, on 9 pages; with 2 tokens a tick they also take turns.
  std::vector<std::vector<SampleResult>> results;
  for (const auto& [pages, batch] : {std::pair(0, 40), std::pair(9, 40), std::pair(9, 2), std::pair(5, 3)}) {
    SamplerOptions options;
    options.max_pages = pages;
    options.max_batch_tokens = batch;
    results.emplace_back();
    Bench bench(options);
    std::vector<Outcome*> outcomes;
    const int64_t idle = bench.open(ids(70, 100));
    Outcome& before = bench.start(idle, 7, 3);
    bench.finish();
    for (int i = 0; i < 7; ++i) outcomes.push_back(&bench.start(bench.open(ids(i, 150)), i, 80));
    bench.finish();
    for (Outcome* outcome : outcomes) {
      CHECK(outcome->error.empty());
      results.back().push_back(outcome->result);
    }
    CHECK(pages == 0 || bench.sampler.usage().pages <= pages);
    std::vector<int32_t> stream = ids(70, 100);
    bench.check(stream, before.result);
    Outcome& after = bench.start(idle, 8, 3);  // its pages went to the others; its tokens did not
    bench.finish();
    bench.check(stream, after.result);
  }
  for (const std::vector<SampleResult>& tight : results) {
    for (int i = 0; i < 7; ++i) CHECK(tight[i].logprobs == results[0][i].logprobs);
  }
}

TEST(sampler_takes_no_pages_from_who_came_before) {
  // Two that decode in turns and both want a third page, of which there is one.
  SamplerOptions options;
  options.max_pages = 5;
  options.max_batch_tokens = 1;
  Bench bench(options);
  std::vector<Outcome*> outcomes;
  for (int i = 0; i < 2; ++i) outcomes.push_back(&bench.start(bench.open(ids(i, 100)), i, 60));
  bench.finish();
  // The first read its prompt once; the second gave its pages up and read all again.
  CHECK(bench.sampler.usage().prefilled < 100 + 2 * 160);
  for (int i = 0; i < 2; ++i) {
    std::vector<int32_t> stream = ids(i, 100);
    bench.check(stream, outcomes[i]->result);
  }
}

TEST(sampler_samples_more_sessions_at_once_than_have_logits_at_once) {
  const auto start = [](Bench& bench, int i) -> Outcome& {
    return bench.start(bench.open(ids(i, 1 + i % 3)), i, 1, 0.5f + 0.01f * static_cast<float>(i));
  };
  SamplerOptions options;
  options.max_batch_tokens = 4096;
  Bench bench(options);
  std::vector<Outcome*> together;
  for (int i = 0; i < 600; ++i) together.push_back(&start(bench, i));
  bench.sampler.tick();
  for (const int i : {0, 100, 255, 256, 257, 356, 511, 512, 599}) {
    Bench own;
    Outcome& alone = start(own, i);
    own.finish();
    CHECK(together[i]->ended && together[i]->result.tokens == alone.result.tokens);
    CHECK(together[i]->result.logprobs == alone.result.logprobs);
  }
}

TEST(sampler_takes_no_pages_from_who_is_in_the_same_tick) {
  // Sessions of 3 full pages each fill the pool; they go on together, fewer a tick than there are, and all need a
  // fourth page at about the same time, so an older one asks when a younger one already has its place in the tick.
  for (const int batch : {2, 3, 4}) {
    SamplerOptions options;
    options.max_pages = 15;
    options.max_batch_tokens = batch;
    Bench bench(options);
    std::vector<int64_t> sessions;
    std::vector<std::vector<int32_t>> streams;
    for (int i = 0; i < 5; ++i) {
      streams.push_back(ids(i, 180 + i % 3));
      sessions.push_back(bench.open(streams.back()));
      Outcome& first = bench.start(sessions.back(), i, 1);
      bench.finish();
      bench.check(streams[i], first.result);
    }
    std::vector<Outcome*> outcomes;
    for (int i = 0; i < 5; ++i) outcomes.push_back(&bench.start(sessions[i], i, 40));
    bench.finish();
    for (int i = 0; i < 5; ++i) {
      CHECK(outcomes[i]->error.empty());
      bench.check(streams[i], outcomes[i]->result);
    }
  }
}

TEST(sampler_forks_go_on_where_no_page_is_left_for_a_copy) {
  SamplerOptions options;
  options.max_pages = 2;
  Bench bench(options);
  std::vector<int32_t> stream = ids(1, 90);
  const int64_t parent = bench.open(stream);
  Outcome& first = bench.start(parent, 0, 3);
  bench.finish();
  bench.check(stream, first.result);
  const int64_t child = bench.sampler.fork(parent);
  for (const int64_t session : {child, parent}) {
    Outcome& turn = bench.start(session, 1, 5);
    bench.finish();
    CHECK(turn.error.empty());
    std::vector<int32_t> longer = stream;
    bench.check(longer, turn.result);
  }
}

TEST(sampler_ends_a_request_that_no_pages_can_hold) {
  SamplerOptions options;
  options.max_pages = 2;
  Bench bench(options);
  const int64_t session = bench.open(ids(1, 120));
  Outcome& small = bench.start(bench.open(ids(2, 20)), 1, 40);
  Outcome& large = bench.start(session, 1, 40);
  bench.finish();
  CHECK(large.error == "OUT_OF_MEMORY");
  CHECK(small.error.empty());
  Outcome& short_enough = bench.start(session, 1, 8);
  bench.finish();
  std::vector<int32_t> stream = ids(1, 120);
  bench.check(stream, short_enough.result);
}

TEST(sampler_cancels_and_goes_back) {
  Bench bench;
  const std::vector<int32_t> prompt = ids(8, 70);
  const int64_t session = bench.open(prompt);
  Outcome& outcome = bench.start(session, 1, 50);
  for (int i = 0; i < 20; ++i) bench.sampler.tick();
  bench.sampler.cancel(session);
  CHECK(outcome.error == "ABORTED");
  CHECK(!bench.sampler.busy());
  bench.sampler.cancel(session);  // nothing left to cancel
  Outcome& again = bench.start(session, 2, 50);
  bench.finish();
  std::vector<int32_t> stream = prompt;
  bench.check(stream, again.result);
  Outcome& closed = bench.start(session, 3, 50);
  bench.sampler.close(session);
  CHECK(closed.error == "ABORTED");
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.close(session));
}

TEST(sampler_refuses_misuse) {
  Bench bench;
  const int64_t session = bench.sampler.open();
  const auto done = [](SampleResult, std::exception_ptr) {};
  const int32_t out_of_vocabulary = config().vocab_size, good = 1;
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.sample(session, {}, done));
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.extend(session, &out_of_vocabulary, 1));
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.extend(session, ids(1, 601).data(), 601));
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.fork(99));
  bench.sampler.extend(session, &good, 1);
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.sample(session, {0, {}, 1.0f, 0}, done));
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.sample(session, {1, {}, -1.0f, 0}, done));
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.sample(session, {1, {}, 1e-9f, 0}, done));
  bench.sampler.sample(session, {5, {}, 1.0f, 0}, done);
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.sample(session, {}, done));
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.extend(session, &good, 1));
  CHECK_FAILS("INVALID_ARGUMENT", bench.sampler.fork(session));
}

// Has no memory for pieces above `largest` bytes.
class FullDevice : public CountingDevice {
 public:
  using CountingDevice::CountingDevice;
  void* allocate(size_t bytes, const char* purpose) override {
    if (bytes > largest) fail("OUT_OF_MEMORY", "no memory for ", bytes, " bytes");
    return CountingDevice::allocate(bytes, purpose);
  }
  size_t largest = SIZE_MAX;
};

TEST(sampler_survives_a_failed_tick) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  FullDevice device(*cpu);
  Bench bench({}, &device);
  Outcome& early = bench.start(bench.open(ids(1, 30)), 1, 5);
  bench.finish();
  CHECK(early.error.empty());
  const std::vector<int32_t> prompt = ids(2, 300);
  const int64_t session = bench.open(prompt);
  Outcome& failed = bench.start(session, 1, 5);
  device.largest = 0;  // the arena must grow for so many rows
  bench.finish();
  CHECK(failed.error == "OUT_OF_MEMORY");
  device.largest = SIZE_MAX;
  Outcome& retried = bench.start(session, 1, 5);
  bench.finish();
  std::vector<int32_t> stream = prompt;
  bench.check(stream, retried.result);
}

TEST(sampler_makes_do_with_the_pages_that_memory_holds) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  FullDevice device(*cpu);
  Bench bench({}, &device);
  // Room for the first 64 pages of a layer but not for twice as many; these sessions want 12 times 8.
  device.largest = 100 * cpu->ops().page_bytes(config().num_key_value_heads, config().head_dim);
  std::vector<Outcome*> outcomes;
  for (int i = 0; i < 12; ++i) outcomes.push_back(&bench.start(bench.open(ids(20 + i, 500)), i, 3));
  bench.finish();
  for (int i = 0; i < 12; ++i) {
    CHECK(outcomes[i]->error.empty());
    std::vector<int32_t> stream = ids(20 + i, 500);
    bench.check(stream, outcomes[i]->result);
  }
  CHECK(bench.sampler.usage().pages <= 64);
}

TEST(sampler_allocates_nothing_in_the_steady_state) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  FullDevice device(*cpu);
  Bench bench({}, &device);
  const auto round = [&](int seed) {
    std::vector<int64_t> sessions;
    for (int i = 0; i < 8; ++i) {
      sessions.push_back(bench.open(ids(seed + i, 100)));
      bench.start(sessions.back(), i, 40);
    }
    bench.finish();
    for (const int64_t session : sessions) bench.sampler.close(session);
  };
  round(0);
  const int before = device.allocations;
  CHECK(before > 0);
  round(100);
  CHECK(device.allocations == before);
}

}  // namespace
}  // namespace tokenring
