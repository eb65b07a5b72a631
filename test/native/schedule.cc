// The arena: first fit in program order, nothing held twice, nothing lost.
#include "core/schedule.h"

#include "core/random.h"
#include "decoder_rig.h"
#include "harness.h"

namespace tokenring {

TEST(schedule_takes_the_first_hole_that_fits) {
  Schedule schedule;
  const Slot a = schedule.slot(DType::f32, {64}), b = schedule.slot(DType::f32, {2, 64});
  const Slot c = schedule.slot(DType::u8, {1});
  CHECK(a.offset == 0 && b.offset == 256 && c.offset == 768);
  schedule.release(a);
  CHECK(schedule.slot(DType::f32, {65}).offset == 1024);  // too large for the hole
  CHECK(schedule.slot(DType::u8, {200}).offset == 0);
  schedule.release(b);
  CHECK(schedule.slot(DType::bf16, {128}).offset == 256);
  CHECK(schedule.slot(DType::bf16, {128}).offset == 512);
  CHECK(schedule.arena_bytes() == 1536);
  CHECK(contains(failure_of([&] { schedule.release(b); }), "INTERNAL"));
  schedule.release(Slot{});
  schedule.release(schedule.slot(DType::f32, {0, 7}));
}

TEST(schedule_never_gives_the_same_bytes_twice) {
  Schedule schedule;
  std::vector<Slot> held;
  for (uint64_t i = 0; i < 2000; ++i) {
    if (!held.empty() && uniform01(1, 2 * i) < 0.45f) {
      const size_t which = static_cast<size_t>(uniform01(1, 2 * i + 1) * held.size());
      schedule.release(held[which]);
      held.erase(held.begin() + which);
      continue;
    }
    const Slot slot = schedule.slot(DType::u8, {1 + static_cast<int64_t>(uniform01(1, 2 * i + 1) * 3000)});
    CHECK(slot.offset % 256 == 0 && slot.offset + slot.bytes() <= schedule.arena_bytes());
    for (const Slot& other : held) {
      CHECK(slot.offset + slot.bytes() <= other.offset || other.offset + other.bytes() <= slot.offset);
    }
    held.push_back(slot);
  }
  for (const Slot& slot : held) schedule.release(slot);
  CHECK(schedule.slot(DType::u8, {static_cast<int64_t>(schedule.arena_bytes())}).offset == 0);
}

TEST(schedule_rows_are_parts_of_a_slot) {
  Schedule schedule;
  const Slot slot = schedule.slot(DType::bf16, {10, 3, 5});
  const Slot part = slot.rows(4, 2);
  CHECK(part.offset == slot.offset + 4 * 15 * 2 && part.shape[0] == 2 && part.bytes() == 60);
  CHECK(contains(failure_of([&] { slot.rows(9, 2); }), "INTERNAL"));
}

TEST(schedule_runs_its_entries_in_order_and_moves_bytes) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  CountingDevice device(*cpu);
  const std::unique_ptr<Stream> stream = device.stream();
  Executor executor(device, *stream);
  const std::vector<int32_t> in = {1, 2, 3, 4};
  std::vector<int32_t> out(4);
  const auto run = [&](int64_t padding) {
    Schedule schedule;
    schedule.slot(DType::u8, {padding});
    const Slot a = schedule.slot(DType::i32, {4}), b = schedule.slot(DType::i32, {4});
    schedule.upload(a, in.data());
    schedule.add("copy_on_device", 0, 32, 0, [=](const Frame& frame) {
      frame.stream.copy_on_device(frame[b].data, frame[a].data, frame[a].bytes());
    });
    schedule.download(out.data(), b);
    CHECK(schedule.entries().size() == 3 && schedule.bytes() == 64 && schedule.flops() == 0);
    out.assign(4, 0);
    executor.run(schedule);
    stream->synchronize();
    CHECK(out == in);
  };
  run(1000);
  run(10);
  run(1000);
  CHECK(device.allocations == 1);
  run(5000);
  CHECK(device.allocations == 2 && executor.arena_bytes() >= 5000);
}

TEST(schedule_abort_leaves_out_what_has_not_begun) {
  const std::unique_ptr<Device> cpu = make_cpu_device(1);
  const std::unique_ptr<Stream> stream = cpu->stream();
  Executor executor(*cpu, *stream);
  std::atomic<bool> aborted{false};
  int ran = 0;
  Schedule schedule;
  for (int layer = 0; layer < 3; ++layer) {
    for (int i = 0; i < 2; ++i) {
      schedule.add("count", layer, 0, 0, [&](const Frame& f) {
        f.stream.call([&] {
          if (++ran == 3) aborted = true;
        });
      });
    }
  }
  CHECK(contains(failure_of([&] { executor.run(schedule, aborted); }), "ABORTED"));
  CHECK(ran == 3);
  aborted = false;
  executor.run(schedule, aborted);
  CHECK(ran == 9);
}

}  // namespace tokenring
