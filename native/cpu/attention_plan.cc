#include "cpu/attention_plan.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "core/failure.h"
#include "cpu/kernels.h"

namespace tokenring::cpu {
namespace {

using Key = std::tuple<int32_t, int32_t, int32_t>;

Key key_of(const Span& s) { return {s.row, s.rows, s.position}; }

void check_span(const char* op, const char* what, const Span& s, int64_t rows) {
  require(s.row >= 0 && s.rows >= 0 && s.position >= 0 && int64_t{s.row} + s.rows <= rows, op, ": the span of ", what,
          " {row ", s.row, ", rows ", s.rows, ", position ", s.position, "} does not lie in ", rows, " rows");
}

}  // namespace

int KeySpan::tiles() const {
  return span.rows == 0 ? 0 : (span.position + span.rows - 1) / kTile - span.position / kTile + 1;
}

KeyTile KeySpan::tile(int index) const {
  const int64_t start = (int64_t{span.position} / kTile + index) * kTile;
  const int64_t lo = std::max<int64_t>(span.position - start, 0);
  const int64_t hi = std::min<int64_t>(int64_t{span.position} + span.rows - start, kTile);
  return {span.row + start + lo - span.position, start, static_cast<int>(lo), static_cast<int>(hi)};
}

AttentionPlan plan_attention(const char* op, const std::vector<AttentionTile>& tiles, int64_t query_rows,
                             int64_t key_rows) {
  AttentionPlan plan;
  std::map<Key, int> queries, keys;
  for (const AttentionTile& tile : tiles) {
    check_span(op, "queries", tile.q, query_rows);
    check_span(op, "keys", tile.k, key_rows);
    if (tile.q.rows == 0) continue;
    const auto [q, new_query] = queries.try_emplace(key_of(tile.q), static_cast<int>(plan.queries.size()));
    if (new_query) plan.queries.push_back({tile.q, {}});
    if (tile.k.rows == 0) continue;
    const auto [k, new_key] = keys.try_emplace(key_of(tile.k), static_cast<int>(plan.keys.size()));
    if (new_key) plan.keys.push_back({tile.k, {}});
    plan.queries[q->second].keys.push_back(k->second);
    plan.keys[k->second].queries.push_back(q->second);
  }
  plan.paired = true;
  for (QuerySpan& q : plan.queries) {
    std::sort(q.keys.begin(), q.keys.end(),
              [&](int a, int b) { return plan.keys[a].span.position < plan.keys[b].span.position; });
    for (size_t i = 1; i < q.keys.size(); ++i) {
      const Span &before = plan.keys[q.keys[i - 1]].span, &after = plan.keys[q.keys[i]].span;
      require(before.position + before.rows <= after.position, op, ": queries at row ", q.span.row,
              " attend to keys that overlap: positions ", before.position, " + ", before.rows, " and ", after.position);
    }
    plan.paired = plan.paired && q.keys.size() <= 1;
  }
  for (KeySpan& k : plan.keys) {
    std::sort(k.queries.begin(), k.queries.end(),
              [&](int a, int b) { return plan.queries[a].span.position < plan.queries[b].span.position; });
    plan.paired = plan.paired && k.queries.size() <= 1;
  }
  plan.total_cost = 0;
  for (const QueryBlock& block : plan.blocks()) plan.total_cost += block.cost;
  return plan;
}

std::vector<QueryBlock> AttentionPlan::blocks() const {
  std::vector<QueryBlock> blocks;
  for (size_t q = 0; q < queries.size(); ++q) {
    const Span& s = queries[q].span;
    for (int at = 0; at < s.rows; at += kQueryBlock) {
      const int tokens = std::min(kQueryBlock, s.rows - at);
      const int64_t last = int64_t{s.position} + at + tokens - 1;
      int64_t cost = 0;
      for (int k : queries[q].keys) {
        const Span& span = keys[k].span;
        if (span.position <= last)
          cost += std::min<int64_t>(last, span.position + span.rows - 1) / kTile - span.position / kTile + 1;
      }
      blocks.push_back({static_cast<int>(q), s.row + at, int64_t{s.position} + at, tokens, cost});
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const QueryBlock& a, const QueryBlock& b) { return a.cost > b.cost; });
  return blocks;
}

}  // namespace tokenring::cpu
