// Streams and devices: order within a stream, events between streams, failures, threads.
#include <atomic>
#include <cstdlib>
#include <future>
#include <numeric>
#include <thread>

#include "core/random.h"
#include "cpu/pool.h"
#include "cpu/stream.h"
#include "harness.h"
#include "ops_fixture.h"

using fixture::Bench;
using tokenring::Tensor;
using tokenring::cpu::cpu_stream;
using tokenring::cpu::ThreadPool;

TEST(stream_runs_its_work_in_order_and_apart_from_the_caller) {
  Bench b;
  const Tensor t = b.f32({4}, {1, 2, 3, 4});
  std::promise<void> gate;
  std::shared_future<void> opened = gate.get_future().share();
  std::thread::id ran_on;
  cpu_stream(b.stream()).enqueue([&, opened] {
    opened.wait();
    ran_on = std::this_thread::get_id();
  });
  const std::vector<float> more = {5, 6, 7, 8};
  std::vector<float> before(4), after(4);
  b.stream().copy_to_host(before.data(), t.data, 16);
  b.stream().copy_to_device(t.data, more.data(), 16);
  b.stream().copy_to_host(after.data(), t.data, 16);
  // Nothing of this has run yet: the calls returned while the stream stands at the gate.
  CHECK(before == std::vector<float>(4) && t.f32()[0] == 1);
  gate.set_value();
  b.stream().synchronize();
  CHECK((before == std::vector<float>{1, 2, 3, 4}) && after == more && ran_on != std::this_thread::get_id());
}

TEST(stream_waits_for_another) {
  Bench b;
  const auto other = b.dev().stream();
  for (int round = 0; round < 50; ++round) {
    std::promise<void> gate;
    std::shared_future<void> opened = gate.get_future().share();
    int value = 0, seen = -1;
    cpu_stream(*other).enqueue([&value, opened] {
      opened.wait();
      value = 7;
    });
    b.stream().wait(*other);
    cpu_stream(b.stream()).enqueue([&] { seen = value; });
    // What the other stream queues later is not waited for: it may itself wait for this stream.
    other->wait(b.stream());
    cpu_stream(*other).enqueue([&] { value = 8; });
    gate.set_value();
    b.stream().synchronize();
    CHECK(seen == 7);
    other->synchronize();
    CHECK(value == 8);
  }
}

// Random programs of jobs over rows in overlapping memory give what they give one after the other.
TEST(stream_chains_of_rows_keep_the_order) {
  using namespace tokenring;
  using namespace tokenring::cpu;
  constexpr int64_t kRows = 200, kFloats = 4096;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    ThreadPool pool(3);
    CpuStream stream;
    std::vector<float> chained(kFloats), plain;
    std::iota(chained.begin(), chained.end(), 0.0f);
    plain = chained;
    uint64_t draws = 0;
    const auto below = [&](uint64_t n) { return static_cast<int64_t>(random_bits(seed, draws++) % n); };
    struct Step {
      int64_t from, from_width, to, to_width;
      bool sum;
      void rows(float* x, int64_t begin, int64_t end) const {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < to_width; ++j)
            x[to + i * to_width + j] += 0.5f * x[from + i * from_width + j % from_width];
      }
      void all(float* x) const {
        for (int64_t i = 0; i < kRows; ++i) x[to] += x[from + i * from_width];
      }
    };
    std::vector<Step> steps;
    for (int i = 0; i < 12; ++i) {
      // Few places and widths, so that some agree, some overlap and some lie apart.
      Step step{800 * below(3), 1 + below(3), 800 * below(3), 1 + below(3), below(4) == 0};
      const bool apart = step.from + kRows * step.from_width <= step.to || step.to + kRows * step.to_width <= step.from;
      if (!apart && (step.from != step.to || step.from_width != step.to_width)) continue;  // no op does that
      if (step.sum) step.to = 3000;
      steps.push_back(step);
    }
    stream.enqueue([] { std::this_thread::yield(); });
    for (const Step& step : steps) {
      float* x = chained.data();
      const auto at = [&](int64_t offset, int64_t width) { return tensor(x + offset, DType::f32, {kRows, width}); };
      const Tensor from = at(step.from, step.from_width), to = at(step.to, step.to_width);
      if (step.sum) {
        stream.enqueue_sum({read_all(from), write_all(tensor(x + step.to, DType::f32, {1}))}, [=] { step.all(x); });
      } else {
        stream.enqueue_rows(pool, {.rows = kRows,
                                   .nanoseconds = 1000,
                                   .regions = {read_rows(from), write_rows(to)},
                                   .body = [=](int64_t begin, int64_t end) { step.rows(x, begin, end); }});
      }
      step.sum ? step.all(plain.data()) : step.rows(plain.data(), 0, kRows);
    }
    stream.synchronize();
    CHECK(chained == plain);
  }
}

TEST(stream_reports_the_first_failure_and_skips_what_follows) {
  Bench b;
  const auto other = b.dev().stream();
  bool ran = false, other_ran = false;
  cpu_stream(*other).enqueue([] { tokenring::fail("NON_FINITE", "first"); });
  cpu_stream(*other).enqueue([&] { ran = true; });
  cpu_stream(*other).enqueue([] { tokenring::fail("INTERNAL", "second"); });
  b.stream().wait(*other);
  cpu_stream(b.stream()).enqueue([&] { other_ran = true; });
  CHECK_FAILS("NON_FINITE", b.stream().synchronize());
  CHECK_FAILS("NON_FINITE", other->synchronize());
  CHECK(!ran && !other_ran);
  // Both go on afterwards.
  cpu_stream(*other).enqueue([&] { ran = true; });
  other->synchronize();
  b.stream().synchronize();
  CHECK(ran);
}

TEST(stream_refuses_null_copies) {
  Bench b;
  CHECK_FAILS("INVALID_ARGUMENT", b.stream().copy_on_device(nullptr, nullptr, 4));
  b.stream().copy_on_device(nullptr, nullptr, 0);
}

TEST(pool_covers_every_item_once_from_several_streams) {
  ThreadPool pool(4);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int c = 0; c < 3; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 300; ++round) {
        const int n = 1 + round % 97;
        std::vector<std::atomic<int>> hits(n);
        pool.run(n, 1 + round % 5, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        for (const auto& h : hits) wrong += h != 1;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(pool_rethrows_after_all_chunks_have_ended) {
  ThreadPool pool(3);
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> ran{0};
    CHECK_FAILS("INTERNAL", pool.run(30, 1, [&](int64_t begin, int64_t) {
      ++ran;
      if (begin == 3) tokenring::fail("INTERNAL", "chunk 3");
    }));
    CHECK(ran == 30);
  }
}

TEST(device_says_what_it_is_and_refuses_what_it_cannot) {
  for (const std::string& isa : fixture::isas())
    CHECK(fixture::device(isa, 2).name() == "cpu (" + isa + ", 2 threads)");
  for (const std::string& isa : fixture::isas(fixture::Precision::bf16))
    CHECK(fixture::device(isa, 2, fixture::Precision::bf16).name() == "cpu (bf16, " + isa + ", 2 threads)");
  CHECK_FAILS("INVALID_ARGUMENT", tokenring::make_cpu_device(-1));
  CHECK_FAILS("INVALID_ARGUMENT", fixture::device("sse9", 1));
  Bench b;
  CHECK_FAILS("OUT_OF_MEMORY", b.dev().allocate(size_t{1} << 60, "a test"));
  void* data = b.dev().allocate(1, "a test");
  CHECK(reinterpret_cast<uintptr_t>(data) % 256 == 0);
  b.dev().free(data);
}
