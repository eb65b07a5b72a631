// The work of the attention kernels, made from a list of tiles on the host and read by the kernels on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "core/failure.h"
#include "core/ops.h"

namespace tokenring::cuda {

// At most as many queries as a block of the forward kernel takes, with the spans of keys that they see.
struct QueryTile {
  Span q;
  int32_t first, count;  // of ForwardPlan::keys
};

struct ForwardPlan {
  std::vector<QueryTile> tiles;  // the heaviest first
  std::vector<Span> keys;        // of one tile, those of the highest positions first
};

namespace detail {

// A span, in the order of rows.
using Key = std::tuple<int32_t, int32_t, int32_t>;

inline Key key_of(const Span& s) { return {s.row, s.rows, s.position}; }

inline void check_span(const char* what, const Span& s, int64_t rows) {
  require(s.row >= 0 && s.rows >= 0 && s.position >= 0 && int64_t{s.row} + s.rows <= rows &&
              int64_t{s.position} + s.rows <= INT32_MAX,
          "attention: the span of ", what, " {row ", s.row, ", rows ", s.rows, ", position ", s.position,
          "} does not lie in ", rows, " rows");
}

// Keys of `k` that the last query of `q` sees.
inline int64_t seen(const Span& q, const Span& k, bool causal) {
  if (!causal || q.rows == 0) return q.rows == 0 ? 0 : k.rows;
  return std::clamp<int64_t>(int64_t{q.position} + q.rows - k.position, 0, k.rows);
}

// Spans of queries, each with its keys from the highest positions to the lowest.
inline std::map<Key, std::vector<Span>> group_by_queries(const std::vector<AttentionTile>& tiles, int64_t query_rows,
                                                         int64_t key_rows) {
  std::map<Key, std::vector<Span>> keys;
  for (const AttentionTile& tile : tiles) {
    check_span("queries", tile.q, query_rows);
    check_span("keys", tile.k, key_rows);
    if (tile.q.rows == 0) continue;
    std::vector<Span>& of_query = keys[key_of(tile.q)];
    if (tile.k.rows) of_query.push_back(tile.k);
  }
  int64_t end = 0;
  for (auto& [q, spans] : keys) {
    require(std::get<0>(q) >= end, "attention: spans of queries overlap at row ", std::get<0>(q),
            "; give each row once, with all of its keys");
    end = int64_t{std::get<0>(q)} + std::get<1>(q);
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.position > b.position; });
    for (size_t i = 1; i < spans.size(); ++i)
      require(spans[i].position + spans[i].rows <= spans[i - 1].position, "attention: queries at row ", std::get<0>(q),
              " see keys that overlap: positions ", spans[i].position, " + ", spans[i].rows, " and ",
              spans[i - 1].position);
  }
  return keys;
}

template <class Tile>
std::vector<Tile> heaviest_first(const std::vector<Tile>& tiles, const std::vector<int64_t>& costs) {
  std::vector<size_t> order(tiles.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return costs[a] > costs[b]; });
  std::vector<Tile> sorted;
  for (size_t i : order) sorted.push_back(tiles[i]);
  return sorted;
}

}  // namespace detail

// Queries of a BackwardPlan from number `number` on, that follow each other.
struct QueryRange {
  Span q;
  int32_t number;
};

// At most as many keys as a block of the backward kernel takes, with the queries that see them.
struct KeyTile {
  Span k;
  int32_t first, count;  // of BackwardPlan::ranges
};

struct BackwardPlan {
  std::vector<Span> queries;   // at most as many as a pass takes, each, by number
  std::vector<KeyTile> tiles;  // the heaviest first
  std::vector<QueryRange> ranges;
};

// Queries that several tiles of the list name see the keys of all of them; tiles of queries cover each row at most
// once. Queries that see nothing are in the plan, without keys. `causal`: a query sees keys up to its own position;
// otherwise all. Failure INVALID_ARGUMENT for a span outside of its tensor, and for spans of one query that overlap.
inline ForwardPlan plan_forward(const std::vector<AttentionTile>& tiles, int tile_rows, bool causal, int64_t query_rows,
                                int64_t key_rows) {
  ForwardPlan plan;
  std::vector<int64_t> costs;
  for (const auto& [key, spans] : detail::group_by_queries(tiles, query_rows, key_rows)) {
    const auto [row, rows, position] = key;
    for (int32_t at = 0; at < rows; at += tile_rows) {
      QueryTile tile{{row + at, std::min(rows - at, tile_rows), position + at}, 0, 0};
      tile.first = static_cast<int32_t>(plan.keys.size());
      int64_t cost = 0;
      for (const Span& k : spans) {
        const int64_t visible = detail::seen(tile.q, k, causal);
        if (visible == 0) continue;
        plan.keys.push_back(k);
        ++tile.count;
        cost += visible;
      }
      plan.tiles.push_back(tile);
      costs.push_back(cost);
    }
  }
  plan.tiles = detail::heaviest_first(plan.tiles, costs);
  return plan;
}

// The same work from the side of the keys. Of spans of keys too, tiles cover each row at most once, so that one block
// alone adds to its gradients.
inline BackwardPlan plan_backward(const std::vector<AttentionTile>& tiles, int tile_queries, int tile_keys, bool causal,
                                  int64_t query_rows, int64_t key_rows) {
  BackwardPlan plan;
  std::map<detail::Key, std::vector<QueryRange>> keys;
  for (const auto& [key, spans] : detail::group_by_queries(tiles, query_rows, key_rows)) {
    const auto [row, rows, position] = key;
    for (const Span& k : spans)
      keys[detail::key_of(k)].push_back({{row, rows, position}, static_cast<int32_t>(plan.queries.size())});
    for (int32_t at = 0; at < rows; at += tile_queries)
      plan.queries.push_back({row + at, std::min(rows - at, tile_queries), position + at});
  }
  std::vector<int64_t> costs;
  int64_t end = 0;
  for (const auto& [key, ranges] : keys) {
    const auto [row, rows, position] = key;
    require(row >= end, "attention: spans of keys overlap at row ", row, "; give each row in one span");
    end = int64_t{row} + rows;
    for (int32_t at = 0; at < rows; at += tile_keys) {
      KeyTile tile{{row + at, std::min(rows - at, tile_keys), position + at}, 0, 0};
      tile.first = static_cast<int32_t>(plan.ranges.size());
      int64_t cost = 0;
      for (const QueryRange& range : ranges) {
        // Whole passes of queries that see no key of the tile are left out.
        const int64_t blind = causal ? int64_t{tile.k.position} - range.q.position : 0;
        const int64_t skip = std::clamp<int64_t>(blind, 0, range.q.rows) / tile_queries;
        const int32_t from = static_cast<int32_t>(skip) * tile_queries;
        if (blind >= range.q.rows) continue;
        plan.ranges.push_back({{range.q.row + from, range.q.rows - from, range.q.position + from},
                               range.number + static_cast<int32_t>(skip)});
        ++tile.count;
        cost += range.q.rows - from;
      }
      // Keys that nobody sees get no gradient.
      if (tile.count == 0) continue;
      plan.tiles.push_back(tile);
      costs.push_back(cost);
    }
  }
  plan.tiles = detail::heaviest_first(plan.tiles, costs);
  return plan;
}

}  // namespace tokenring::cuda
