#include "io/json.h"

#include <charconv>
#include <cstdint>

#include "core/failure.h"

namespace tokenring {

namespace {

constexpr int kMaxDepth = 32;

class Parser {
 public:
  Parser(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  Json whole() {
    Json json = value(0);
    space();
    if (at_ != text_.size()) wrong("the end");
    return json;
  }

 private:
  [[noreturn]] void wrong(const char* expected) const {
    fail("CHECKPOINT", what_, ": not valid JSON: expected ", expected, " at byte ", at_);
  }
  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
      ++at_;
  }
  bool take(std::string_view token) {
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kMaxDepth) wrong("less nesting");
    space();
    Json json;
    if (take("{")) {
      json.kind = Json::Kind::object;
      for (space(); !take("}"); space()) {
        if (!json.object.empty() && !take(",")) wrong("',' or '}'");
        space();
        std::string key = string();
        space();
        if (!take(":")) wrong("':'");
        json.object.emplace_back(std::move(key), value(depth + 1));
      }
    } else if (take("[")) {
      json.kind = Json::Kind::array;
      for (space(); !take("]"); space()) {
        if (!json.array.empty() && !take(",")) wrong("',' or ']'");
        json.array.push_back(value(depth + 1));
      }
    } else if (at_ < text_.size() && text_[at_] == '"') {
      json.kind = Json::Kind::string;
      json.string = string();
    } else if (take("true")) {
      json.kind = Json::Kind::boolean;
      json.boolean = true;
    } else if (take("false")) {
      json.kind = Json::Kind::boolean;
    } else if (!take("null")) {
      json.kind = Json::Kind::number;
      const size_t digit = at_ + (text_.substr(at_, 1) == "-");  // from_chars would take "nan" and "inf"
      if (digit >= text_.size() || text_[digit] < '0' || text_[digit] > '9') wrong("a value");
      const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), json.number);
      if (error != std::errc{}) wrong("a value");
      at_ = static_cast<size_t>(end - text_.data());
    }
    return json;
  }

  uint32_t hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ < text_.size() ? text_[at_] : '\0';
      if (c >= '0' && c <= '9')
        code = code * 16 + (c - '0');
      else if (c >= 'a' && c <= 'f')
        code = code * 16 + (c - 'a' + 10);
      else if (c >= 'A' && c <= 'F')
        code = code * 16 + (c - 'A' + 10);
      else
        wrong("four hexadecimal digits");
    }
    return code;
  }

  static void append_utf8(std::string& out, uint32_t code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // bytes after the first
    out += static_cast<char>((more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0) | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
  }

  std::string string() {
    if (!take("\"")) wrong("a string");
    std::string out;
    while (!take("\"")) {
      if (at_ >= text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20) wrong("the end of the string");
      const char c = text_[at_++];
      if (c != '\\') {
        out += c;
        continue;
      }
      const char escape = at_ < text_.size() ? text_[at_++] : '\0';
      switch (escape) {
        case '"':
        case '\\':
        case '/':
          out += escape;
          break;
        case 'b':
          out += '\b';
          break;
        case 'f':
          out += '\f';
          break;
        case 'n':
          out += '\n';
          break;
        case 'r':
          out += '\r';
          break;
        case 't':
          out += '\t';
          break;
        case 'u': {
          uint32_t code = hex4();
          if (code >= 0xD800 && code < 0xDC00) {
            if (!take("\\u")) wrong("the second half of a surrogate pair");
            const uint32_t low = hex4();
            if (low < 0xDC00 || low >= 0xE000) wrong("the second half of a surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
          }
          append_utf8(out, code);
          break;
        }
        default:
          wrong("an escape");
      }
    }
    return out;
  }

  std::string_view text_;
  const std::string& what_;
  size_t at_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : object) {
    if (name == key) return &value;
  }
  return nullptr;
}

Json parse_json(std::string_view text, const std::string& what) { return Parser(text, what).whole(); }

std::string quote_json(std::string_view text) {
  static const char* digits = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += "\\u00";
      out += digits[c >> 4];
      out += digits[c & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace tokenring
