#include "parallel/shard.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

namespace tokenring {

int64_t rows_of(const Shard& shard) {
  int64_t rows = 0;
  for (const Segment& segment : shard) rows += segment.length;
  return rows;
}

Shard whole(const std::vector<int32_t>& lengths) {
  Shard shard;
  for (size_t d = 0; d < lengths.size(); ++d) shard.push_back({static_cast<int32_t>(d), 0, lengths[d]});
  return shard;
}

std::vector<Shard> zigzag(const std::vector<int32_t>& lengths, int size) {
  std::vector<Shard> shards(size);
  const auto give = [&](int rank, int32_t document, int64_t begin, int64_t end) {
    if (end <= begin) return;
    Shard& shard = shards[rank];
    // Ranges that meet are one segment.
    if (!shard.empty() && shard.back().document == document && shard.back().position + shard.back().length == begin)
      shard.back().length += static_cast<int32_t>(end - begin);
    else
      shard.push_back({document, static_cast<int32_t>(begin), static_cast<int32_t>(end - begin)});
  };
  const int64_t ranges = 2 * int64_t{size};
  int64_t few = 0;  // tokens of all short documents
  for (const int32_t length : lengths)
    if (length < ranges) few += length;
  int64_t seen = 0, long_ones = 0;
  for (size_t d = 0; d < lengths.size(); ++d) {
    const int64_t length = lengths[d];
    const auto document = static_cast<int32_t>(d);
    if (length < ranges) {
      for (int rank = 0; rank < size; ++rank) {
        const int64_t from = few * rank / size, to = few * (rank + 1) / size;
        give(rank, document, std::max<int64_t>(from - seen, 0), std::min(to - seen, length));
      }
      seen += length;
      continue;
    }
    for (int64_t range = 0; range < ranges; ++range) {
      const int64_t at = range < size ? range : ranges - 1 - range;
      give(static_cast<int>((at + long_ones) % size), document, length * range / ranges, length * (range + 1) / ranges);
    }
    ++long_ones;
  }
  return shards;
}

void check_shards(const std::vector<Shard>& shards) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  Shard all;
  for (size_t r = 0; r < shards.size(); ++r) {
    for (size_t i = 0; i < shards[r].size(); ++i) {
      const Segment& s = shards[r][i];
      require(s.position >= 0 && s.length >= 0 && int64_t{s.position} + s.length <= kMost, "shards[", r, "][", i,
              "]: position is ", s.position, " and length ", s.length,
              "; neither may be negative, nor their sum above ", kMost);
      if (s.length > 0) all.push_back(s);
    }
    require(rows_of(shards[r]) <= kMost, "shards[", r, "] has ", rows_of(shards[r]), " tokens; at most ", kMost,
            " are possible");
  }
  std::sort(all.begin(), all.end(), [](const Segment& a, const Segment& b) {
    return a.document != b.document ? a.document < b.document : a.position < b.position;
  });
  for (size_t i = 1; i < all.size(); ++i) {
    const Segment &before = all[i - 1], &after = all[i];
    require(before.document != after.document || before.position + before.length <= after.position, "shards: position ",
            after.position, " of document ", after.document, " is held twice");
  }
}

Shard merged(const std::vector<Shard>& shards) {
  Shard all, out;
  for (const Shard& shard : shards)
    for (const Segment& segment : shard)
      if (segment.length > 0) all.push_back(segment);
  std::sort(all.begin(), all.end(), [](const Segment& a, const Segment& b) {
    return a.document != b.document ? a.document < b.document : a.position < b.position;
  });
  for (const Segment& s : all) {
    if (!out.empty() && out.back().document == s.document && out.back().position + out.back().length == s.position)
      out.back().length += s.length;
    else
      out.push_back(s);
  }
  return out;
}

std::vector<AttentionTile> tiles_between(const Shard& queries, const Shard& keys, bool every_query) {
  std::unordered_map<int32_t, std::vector<Span>> by_document;
  int32_t row = 0;
  for (const Segment& s : keys) {
    if (s.length > 0) by_document[s.document].push_back({row, s.length, s.position});
    row += s.length;
  }
  std::vector<AttentionTile> tiles;
  row = 0;
  for (const Segment& s : queries) {
    const Span query{row, s.length, s.position};
    row += s.length;
    if (s.length == 0) continue;
    bool sees = false;
    if (const auto found = by_document.find(s.document); found != by_document.end()) {
      for (const Span& key : found->second) {
        if (key.position >= s.position + s.length) continue;
        tiles.push_back({query, key});
        sees = true;
      }
    }
    if (!sees && every_query) tiles.push_back({query, Span{}});
  }
  return tiles;
}

int64_t pairs_of(const std::vector<AttentionTile>& tiles) {
  int64_t pairs = 0;
  for (const AttentionTile& tile : tiles) {
    // Query i sees first + i keys, none below 0 and no more than there are.
    const int64_t first = int64_t{tile.q.position} - tile.k.position + 1, queries = tile.q.rows, keys = tile.k.rows;
    const int64_t none = std::clamp<int64_t>(1 - first, 0, queries),
                  all = std::clamp<int64_t>(keys - first, none, queries);
    pairs += (all - none) * first + (all * (all - 1) - none * (none - 1)) / 2 + (queries - all) * keys;
  }
  return pairs;
}

std::vector<Piece> pieces(const std::vector<Shard>& shards, const Shard& merged) {
  std::unordered_map<int32_t, std::vector<std::pair<Segment, int64_t>>> by_document;
  int64_t whole = 0;
  for (const Segment& s : merged) {
    by_document[s.document].push_back({s, whole});
    whole += s.length;
  }
  std::vector<Piece> list;
  for (size_t r = 0; r < shards.size(); ++r) {
    int64_t row = 0;
    for (const Segment& s : shards[r]) {
      // The last part that starts at or before this segment holds it.
      if (s.length > 0) {
        const auto& parts = by_document.at(s.document);
        const auto after = std::upper_bound(parts.begin(), parts.end(), s.position,
                                            [](int32_t p, const auto& part) { return p < part.first.position; });
        const auto& [part, start] = *(after - 1);
        list.push_back({static_cast<int>(r), row, start + s.position - part.position, s.length});
      }
      row += s.length;
    }
  }
  return list;
}

}  // namespace tokenring
