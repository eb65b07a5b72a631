// The work of an attention op, made from its tile list on the host.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops.h"

namespace tokenring::cpu {

// Part of one tile of kTile positions (counted from the document's start) that a span of keys covers.
struct KeyTile {
  int64_t row;       // of the key in lane `lo`
  int64_t position;  // of lane 0
  int lo, hi;
};

struct KeySpan {
  Span span;
  std::vector<int> queries;  // indices of the query spans that attend to it, in ascending position
  int tiles() const;
  KeyTile tile(int index) const;
};

struct QuerySpan {
  Span span;
  std::vector<int> keys;  // indices of the key spans, in ascending position
};

// A block of at most kQueryBlock queries of one query span.
struct QueryBlock {
  int query;
  int64_t row, position;
  int tokens;
  int64_t cost;  // tiles that it sees
};

struct AttentionPlan {
  std::vector<QuerySpan> queries;
  std::vector<KeySpan> keys;
  bool paired;                             // every query span has one key span and the other way round
  int64_t total_cost;                      // tiles seen by all blocks
  std::vector<QueryBlock> blocks() const;  // the costliest first
};

// Failure INVALID_ARGUMENT for a span outside of the rows of queries or keys, or key spans of one query span that
// overlap.
AttentionPlan plan_attention(const char* op, const std::vector<AttentionTile>& tiles, int64_t query_rows,
                             int64_t key_rows);

}  // namespace tokenring::cpu
