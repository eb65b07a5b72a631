// The engine thread: jobs in order beside sampling, and an end that leaves nobody waiting.
#include "model/rank.h"

#include <future>
#include <memory>
#include <vector>

#include "decoder_rig.h"
#include "harness.h"

namespace tokenring {
namespace {

RankOptions options() {
  RankOptions options;
  options.config = tiny_config(true);
  options.threads = 1;
  return options;
}

// Runs `work` as a job and waits for it; a Failure of the job is rethrown here.
template <class Work>
auto ask(Rank& rank, Work work) {
  auto task = std::make_shared<std::packaged_task<decltype(work())()>>(work);
  auto future = task->get_future();
  rank.post([task] { (*task)(); });
  return future.get();
}

TEST(rank_runs_jobs_in_order_on_one_thread) {
  Rank rank(options());
  std::vector<int> order;
  std::vector<std::thread::id> threads;
  for (int i = 0; i < 100; ++i) {
    rank.post([&, i] {
      order.push_back(i);
      threads.push_back(std::this_thread::get_id());
    });
  }
  ask(rank, [] { return 0; });
  CHECK(order.size() == 100);
  for (size_t i = 0; i < order.size(); ++i) CHECK(order[i] == static_cast<int>(i) && threads[i] == threads[0]);
  CHECK(threads[0] != std::this_thread::get_id());
}

TEST(rank_samples_between_jobs) {
  Rank rank(options());
  std::promise<SampleResult> turn;
  ask(rank, [&] {
    const auto stream = rank.device().stream();
    initialise(rank.parameters(), *stream, {});
    const int64_t session = rank.sampler().open();
    const int32_t token = 1;
    rank.sampler().extend(session, &token, 1);
    rank.sampler().sample(session, {100, {}, 1.0f, 3}, [&](SampleResult result, std::exception_ptr error) {
      if (error) return turn.set_exception(error);
      turn.set_value(std::move(result));
    });
    return 0;
  });
  // Each round trip lets at least the ticks of its rounds run, so the turn ends while jobs keep coming.
  auto ended = turn.get_future();
  int jobs = 0;
  while (ended.wait_for(std::chrono::seconds(0)) != std::future_status::ready && jobs < 10000) {
    jobs = ask(rank, [&] { return jobs + 1; });
  }
  CHECK(jobs > 10 && jobs < 10000);
  CHECK(ended.get().tokens.size() == 100);
}

TEST(rank_ends_what_waits) {
  std::promise<void> entered, leave;
  std::string sampling = "nothing";
  auto dropped = std::make_shared<int>(0);
  bool ran = false;
  auto rank = std::make_unique<Rank>(options());
  ask(*rank, [&] {
    const auto stream = rank->device().stream();
    initialise(rank->parameters(), *stream, {});
    const int64_t session = rank->sampler().open();
    const int32_t token = 1;
    rank->sampler().extend(session, &token, 1);
    rank->sampler().sample(session, {120, {}, 1.0f, 3}, [&](SampleResult, std::exception_ptr error) {
      try {
        if (error) std::rethrow_exception(error);
        sampling = "done";
      } catch (const Failure& failure) {
        sampling = failure.code();
      }
    });
    return 0;
  });
  rank->post([&] {
    entered.set_value();
    leave.get_future().wait();
  });
  rank->post([dropped, &ran] { ran = true; });
  entered.get_future().wait();
  std::thread ending([&] { rank.reset(); });
  // The destructor now waits for the running job; only then may that end.
  leave.set_value();
  ending.join();
  CHECK(dropped.use_count() == 1);  // the job is gone, whether it came to run or not
  CHECK(sampling == "DISPOSED" || sampling == "done");
}

TEST(rank_refuses_what_it_cannot_build) {
  RankOptions bad = options();
  bad.config.vocab_size = 0;
  CHECK_FAILS("INVALID_ARGUMENT", Rank rank(bad));
  bad = options();
  bad.device = "tpu";
  CHECK_FAILS("INVALID_ARGUMENT", Rank rank(bad));
  bad.device = "cuda";
  CHECK_FAILS("INVALID_ARGUMENT", Rank rank(bad));
  bad = options();
  bad.sampler.max_batch_tokens = 0;
  CHECK_FAILS("INVALID_ARGUMENT", Rank rank(bad));
}

}  // namespace
}  // namespace tokenring
