// Context parallelism as data: which tokens of which documents a rank holds.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops.h"

namespace tokenring {

// Consecutive tokens of one document.
struct Segment {
  int32_t document = 0, position = 0, length = 0;
};

// What one rank holds: its rows are the tokens of the segments, in this order.
using Shard = std::vector<Segment>;

int64_t rows_of(const Shard&);

// Failure INVALID_ARGUMENT unless all numbers are possible and no token of a document is held twice.
void check_shards(const std::vector<Shard>&);

// The tokens of all shards in the order of documents and positions; segments that continue each other are one.
Shard merged(const std::vector<Shard>&);

// Every pair of segments in which a query may see a key. With `every_query`, queries without any stand in a tile
// without keys, so that they are written too.
std::vector<AttentionTile> tiles_between(const Shard& queries, const Shard& keys, bool every_query);

// Where the rows of a part of `merged` lie in the shards: `rows` rows from `whole` there are the rows from `row` of
// shard number `shard`.
struct Piece {
  int shard;
  int64_t row, whole, rows;
};
std::vector<Piece> pieces(const std::vector<Shard>&, const Shard& merged);

}  // namespace tokenring
