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
