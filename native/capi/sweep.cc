// The attention kernels in the tile shapes of tokenring_sweep.so (cuda/sweep.h), for measurements on a GPU. Tensors as
// the ops of attention take them (core/ops.h), causal.
#include <dlfcn.h>

#include <cstdio>

#include "capi/functions.h"
#include "core/check.h"
#include "cuda/module.h"
#include "cuda/stream.h"
#include "cuda/sweep.h"

namespace tokenring::capi {
namespace {

using namespace cuda;
using Table = DeviceStream::Table;

const SweepModule* sweep = nullptr;

const SweepVariant& variant_of(int32_t number) {
  require(sweep && number >= 0 && number < sweep->count, "sweep: there is no variant ", number,
          "; sweep_open first, and take one below its count");
  return sweep->variants[number];
}

// Queries, keys and values within qkv, and what their launches share.
struct Work {
  DeviceStream& on;
  int64_t rows, width, stride;
  HeadTensor q, k, v;

  Work(Engine* engine, const Tensor& qkv, int heads, int kv_heads, int head_dim)
      : on(device_stream(*engine->stream)),
        rows(qkv.rows()),
        width(int64_t{heads} * head_dim),
        stride(width + 2 * int64_t{kv_heads} * head_dim),
        q{qkv.data, rows, stride, heads, head_dim},
        k{static_cast<Bf16*>(qkv.data) + width, rows, stride, kv_heads, head_dim},
        v{static_cast<Bf16*>(qkv.data) + width + int64_t{kv_heads} * head_dim, rows, stride, kv_heads, head_dim} {
    check("sweep", "qkv", qkv, DType::bf16, {rows, stride});
  }
};

void launched() {
  const Runtime& runtime = load_module().runtime;
  check_runtime(runtime, runtime.last_error(), "a kernel of the sweep");
}

}  // namespace

// Loads the library; how many variants it has.
TOKENRING_FUNCTION(sweep_open, (const char* path, int32_t* count), {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail("INVALID_ARGUMENT", "the sweep could not be loaded: ", dlerror());
  const auto module = reinterpret_cast<const SweepModule* (*)()>(dlsym(library, "tokenring_sweep_module"));
  require(module && module()->abi == kModuleAbi, path,
          " belongs to another version of tokenring; npm run build:cuda -- --sweep makes it anew");
  sweep = module();
  *count = sweep->count;
});

// text: "KERNEL: TILING". numbers: head dimension, queries of a tile, bytes of shared memory, 1 if the module has it.
TOKENRING_FUNCTION(sweep_describe, (int32_t variant, char* text, int64_t bytes, int32_t* numbers), {
  const SweepVariant& v = variant_of(variant);
  std::snprintf(text, static_cast<size_t>(bytes), "%s: %s", v.kernel, v.tiling);
  numbers[0] = v.head_dim;
  numbers[1] = v.rows;
  numbers[2] = v.shared_bytes;
  numbers[3] = v.chosen;
});

TOKENRING_FUNCTION(sweep_forward,
                   (Engine * engine, int32_t variant, Tensor qkv, const int32_t* tiles, int32_t count, int32_t heads,
                    int32_t kv_heads, int32_t head_dim, float scale, int32_t multiprocessors, Tensor out, Tensor lse),
                   {
                     const SweepVariant& v = variant_of(variant);
                     require(v.forward && v.head_dim == head_dim, "sweep: variant ", variant, " is no such forward");
                     Work work(engine, qkv, heads, kv_heads, head_dim);
                     check("sweep", "out", out, DType::bf16, {work.rows, work.width});
                     check("sweep", "lse", lse, DType::f32, {work.rows, heads});
                     const ForwardPlan plan = plan_forward(tiles_of(tiles, count), v.rows, true, work.rows, work.rows);
                     auto* counters = work.on.room(DeviceStream::Room::counters, 2 * sizeof(int32_t));
                     v.forward(work.on.raw(), driver_encode_tiled(),
                               {work.q, work.k, work.v, work.on.table(Table::query_tiles, plan.tiles),
                                static_cast<int>(plan.tiles.size()), work.on.table(Table::keys, plan.keys), true, scale,
                                static_cast<Bf16*>(out.data), lse.f32(), nullptr, static_cast<int32_t*>(counters),
                                multiprocessors});
                     launched();
                   });

// Bytes for sweep_backward.
TOKENRING_FUNCTION(sweep_backward_workspace,
                   (const int32_t* tiles, int32_t count, int64_t rows, int32_t heads, int32_t head_dim, int64_t* bytes),
                   {
                     const Kernels& kernels = load_module().kernels;
                     const BackwardPlan plan =
                         plan_backward(tiles_of(tiles, count), kernels.attention_backward_queries(head_dim),
                                       kernels.attention_backward_keys(), true, rows, rows);
                     *bytes = static_cast<int64_t>(kernels.attention_backward_workspace(
                         static_cast<int>(plan.queries.size()), heads, head_dim, false));
                   });

// dQ in any order, bf16 [rows, heads * head_dim]; dk and dv f32 [rows, kv_heads * head_dim], to which is added.
TOKENRING_FUNCTION(sweep_backward,
                   (Engine * engine, int32_t variant, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                    const int32_t* tiles, int32_t count, int32_t heads, int32_t kv_heads, int32_t head_dim, float scale,
                    Tensor dq, Tensor dk, Tensor dv, Tensor workspace),
                   {
                     const SweepVariant& v = variant_of(variant);
                     require(v.backward && v.head_dim == head_dim, "sweep: variant ", variant, " is no such backward");
                     const Kernels& kernels = load_module().kernels;
                     Work work(engine, qkv, heads, kv_heads, head_dim);
                     for (const Tensor& t : {dout, out, dq})
                       check("sweep", "a row", t, DType::bf16, {work.rows, work.width});
                     for (const Tensor& t : {dk, dv})
                       check("sweep", "a gradient", t, DType::f32, {work.rows, int64_t{kv_heads} * head_dim});
                     const BackwardPlan plan = plan_backward(
                         tiles_of(tiles, count), v.rows, kernels.attention_backward_keys(), true, work.rows, work.rows);
                     const int queries = static_cast<int>(plan.queries.size());
                     check_bytes("sweep", "workspace", workspace,
                                 kernels.attention_backward_workspace(queries, heads, head_dim, false));
                     const AttentionBackward of{work.q,
                                                work.k,
                                                work.v,
                                                {dout.data, work.rows, work.width, heads, head_dim},
                                                static_cast<const Bf16*>(out.data),
                                                lse.f32(),
                                                work.on.table(Table::queries, plan.queries),
                                                queries,
                                                work.on.table(Table::key_tiles, plan.tiles),
                                                static_cast<int>(plan.tiles.size()),
                                                work.on.table(Table::ranges, plan.ranges),
                                                true,
                                                scale,
                                                dk.f32(),
                                                dv.f32(),
                                                workspace.data,
                                                false};
                     kernels.attention_backward_begin(work.on.raw(), of);
                     v.backward(work.on.raw(), driver_encode_tiled(), of);
                     kernels.attention_backward_end(work.on.raw(), of, static_cast<Bf16*>(dq.data), work.width);
                     launched();
                   });

// dq: bf16 [rows, heads * head_dim].
TOKENRING_FUNCTION(sweep_dq,
                   (Engine * engine, int32_t variant, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                    const int32_t* tiles, int32_t count, int32_t heads, int32_t kv_heads, int32_t head_dim, float scale,
                    Tensor dq),
                   {
                     const SweepVariant& v = variant_of(variant);
                     require(v.dq && v.head_dim == head_dim, "sweep: variant ", variant, " is no such dQ");
                     Work work(engine, qkv, heads, kv_heads, head_dim);
                     for (const Tensor& t : {dout, out, dq})
                       check("sweep", "a row", t, DType::bf16, {work.rows, work.width});
                     const ForwardPlan plan = plan_forward(tiles_of(tiles, count), v.rows, true, work.rows, work.rows);
                     v.dq(work.on.raw(), driver_encode_tiled(),
                          {work.q,
                           work.k,
                           work.v,
                           {dout.data, work.rows, work.width, heads, head_dim},
                           static_cast<const Bf16*>(out.data),
                           lse.f32(),
                           work.on.table(Table::dq_tiles, plan.tiles),
                           static_cast<int>(plan.tiles.size()),
                           work.on.table(Table::dq_keys, plan.keys),
                           true,
                           scale,
                           static_cast<Bf16*>(dq.data),
                           work.width});
                     launched();
                   });

}  // namespace tokenring::capi
