// The JSON that checkpoints are described with: enough to read a safetensors header and a shard index.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tokenring {

struct Json {
  enum class Kind { null, boolean, number, string, array, object };
  Kind kind = Kind::null;
  bool boolean = false;
  double number = 0;
  std::string string;
  std::vector<Json> array;
  std::vector<std::pair<std::string, Json>> object;  // in the order of the text

  const Json* find(std::string_view key) const;  // null if this is no object, or has no such key
};

// `what` names the text in messages (a file). Failure CHECKPOINT with the byte at which the text stops being JSON.
Json parse_json(std::string_view text, const std::string& what);

// With the quotes.
std::string quote_json(std::string_view text);

}  // namespace tokenring
