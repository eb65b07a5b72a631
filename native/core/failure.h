// The one error type of the native code. The addon turns it into a JavaScript TokenringError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tokenring {

// `code` is the part after ERR_TOKENRING_ ("INVALID_ARGUMENT", "CHECKPOINT", "OUT_OF_MEMORY", "COMMUNICATOR",
// "TIMEOUT", "DISPOSED", "ABORTED", "NON_FINITE", "INTERNAL"); the message says what was wrong, where, and what to do.
class Failure : public std::runtime_error {
 public:
  Failure(std::string code, const std::string& message) : std::runtime_error(message), code_(std::move(code)) {}
  const std::string& code() const noexcept { return code_; }

 private:
  std::string code_;
};

template <class... Parts>
[[noreturn]] void fail(const char* code, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Failure(code, text.str());
}

// Guards at the top of a function: require(n > 0, "tokens must not be empty").
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) fail("INVALID_ARGUMENT", parts...);
}

}  // namespace tokenring
