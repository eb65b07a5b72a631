#include "addon/attention.h"

#include <string>

#include "addon/engine.h"
#include "addon/state.h"

namespace tokenring::addon {
namespace {

Shard shard_of(const std::vector<int32_t>& triples, const std::string& name) {
  require(triples.size() % 3 == 0, name, " must hold (document, position, length) triples, got ", triples.size(),
          " numbers");
  Shard shard;
  for (size_t i = 0; i < triples.size(); i += 3) shard.push_back({triples[i], triples[i + 1], triples[i + 2]});
  return shard;
}

Tensor flat(const Tensor& t) { return tensor(t.data, t.dtype, {t.shape[0], t.shape[1] * t.shape[2]}); }

void check_rows(const char* what, const Shard& shard, int64_t rows, const char* of) {
  require(rows_of(shard) == rows, what, " cover ", rows_of(shard), " tokens, ", of, " has ", rows, " rows");
}

}  // namespace

AttentionOperands::AttentionOperands(Operands& from, bool backward, bool keys_like_queries) {
  const DType f32 = DType::f32;
  q = from.tensor("q", f32, {kAny, kAny, kAny});
  const int64_t tokens = q.shape[0], head_dim = q.shape[2];
  k = from.tensor("k", f32, {keys_like_queries ? tokens : kAny, kAny, head_dim});
  v = from.tensor("v", f32, {k.shape[0], k.shape[1], head_dim});
  out = from.tensor("out", f32, {tokens, q.shape[1], head_dim});
  lse = from.tensor("lse", f32, {tokens, q.shape[1]});
  heads = {static_cast<int>(q.shape[1]), static_cast<int>(k.shape[1]), static_cast<int>(head_dim),
           from.arguments().real("scale", -1e30, 1e30)};
  if (backward) {
    dout = flat(from.tensor("dout", f32, {tokens, q.shape[1], head_dim}));
    dq = flat(from.tensor("dq", f32, {tokens, q.shape[1], head_dim}));
    dk = flat(from.tensor("dk", f32, {k.shape[0], k.shape[1], head_dim}));
    dv = flat(from.tensor("dv", f32, {k.shape[0], k.shape[1], head_dim}));
  }
  q = flat(q), k = flat(k), v = flat(v), out = flat(out);
}

Shard shard_argument(const Arguments& from, const char* field) {
  return shard_of(from.integers(field), from.name(field));
}

std::vector<Shard> shards_argument(const Arguments& from, const char* field) {
  const Napi::Value value = from.get(field);
  require(value.IsArray(), from.name(field), " must be an array of Int32Arrays, one a rank");
  const Napi::Array list = value.As<Napi::Array>();
  std::vector<Shard> shards;
  for (uint32_t r = 0; r < list.Length(); ++r) {
    const std::string name = from.name(field) + "[" + std::to_string(r) + "]";
    shards.push_back(shard_of(integers_argument(list.Get(r), name), name));
  }
  return shards;
}

HeadRows head_rows(const Tensor& t) { return {t.data, t.dtype, t.shape[0], t.shape[1]}; }

Napi::Value attention(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Operands from(Arguments(info[0], "options"));
    const AttentionOperands x(from, false, false);
    const bool merge = from.arguments().boolean("merge");
    const Shard queries = shard_argument(from.arguments(), "queries"), keys = shard_argument(from.arguments(), "keys");
    check_shards({queries});
    check_shards({keys});
    check_rows("queries", queries, x.q.shape[0], "q");
    check_rows("keys", keys, x.k.shape[0], "k");
    return Engine::of(info.Env()).submit<Nothing>(info.Env(), from.held(), [=](Compute& on) {
      on.device->ops().attention_block_forward(*on.stream, x.heads, head_rows(x.q), head_rows(x.k), head_rows(x.v),
                                               tiles_between(queries, keys, !merge), merge, x.out, x.lse);
      return Nothing{};
    });
  });
}

Napi::Value attention_backward(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Operands from(Arguments(info[0], "options"));
    const AttentionOperands x(from, true, false);
    const Shard queries = shard_argument(from.arguments(), "queries"), keys = shard_argument(from.arguments(), "keys");
    check_shards({queries});
    check_shards({keys});
    check_rows("queries", queries, x.q.shape[0], "q");
    check_rows("keys", keys, x.k.shape[0], "k");
    return Engine::of(info.Env()).submit<Nothing>(info.Env(), from.held(), [=](Compute& on) {
      const Buffer memory(*on.device, x.lse.bytes());
      const Drain drain{*on.stream};  // before the memory goes
      Tensor delta = x.lse;
      delta.data = memory.data();
      const Ops& ops = on.device->ops();
      ops.attention_delta(*on.stream, x.dout, x.out, x.heads.heads, delta);
      ops.attention_block_backward(*on.stream, x.heads, x.dout, head_rows(x.q), head_rows(x.k), head_rows(x.v), x.lse,
                                   delta, tiles_between(queries, keys, false), head_rows(x.dq), head_rows(x.dk),
                                   head_rows(x.dv));
      on.stream->synchronize();
      return Nothing{};
    });
  });
}

}  // namespace tokenring::addon
