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

// All documents of these lengths, one after the other.
Shard whole(const std::vector<int32_t>& lengths);

// The documents cut for `size` ranks so that all get as many tokens (but for a few) and as many keys to look at. A
// document of 2 * size tokens or more goes in 2 * size ranges, of which one rank gets the i-th and the i-th last; which
// rank begins goes round with the documents, so that what does not divide evenly adds up nowhere. Shorter ones are
// dealt out as one row of tokens in `size` equal parts. Segments of a shard ascend by document and position.
std::vector<Shard> zigzag(const std::vector<int32_t>& lengths, int size);

// Failure INVALID_ARGUMENT unless all numbers are possible and no token of a document is held twice.
void check_shards(const std::vector<Shard>&);

// The tokens of all shards in the order of documents and positions; segments that continue each other are one.
Shard merged(const std::vector<Shard>&);

// Every pair of segments in which a query may see a key. With `every_query`, queries without any stand in a tile
// without keys, so that they are written too.
std::vector<AttentionTile> tiles_between(const Shard& queries, const Shard& keys, bool every_query);

// Pairs of a query and a key that it sees.
int64_t pairs_of(const std::vector<AttentionTile>&);

// Where the rows of a part of `merged` lie in the shards: `rows` rows from `whole` there are the rows from `row` of
// shard number `shard`.
struct Piece {
  int shard;
  int64_t row, whole, rows;
};
std::vector<Piece> pieces(const std::vector<Shard>&, const Shard& merged);

}  // namespace tokenring
