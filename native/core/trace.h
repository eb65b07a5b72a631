// A Chrome trace (chrome://tracing, Perfetto) of what schedules do: one lane a rank and stream.
//
// The file is the format's array of events, which needs no end, so that all ranks of a host, threads or processes, add
// to one file: each flush is one append. Times are of the clock that all processes of a host share.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <string>

namespace tokenring {

struct Entry;

class Trace {
 public:
  // Opens the file, or makes it. Failure INVALID_ARGUMENT if neither can be.
  Trace(const std::string& path, int rank);
  ~Trace();
  Trace(const Trace&) = delete;

  struct Span {
    const char* op;
    int layer, thread;
    int64_t bytes, flops;
    std::atomic<int64_t> start{0}, end{0};  // nanoseconds
  };
  // A span of the entry, to be given its times by the stream that runs it. `lane`: of several compute streams. All on
  // the thread that queues.
  Span& add(const Entry&, int lane);
  Span& add(const char* op);
  // Writes the spans that have ended and forgets all, once the streams are synchronised.
  void flush();

  static int64_t now();

 private:
  void write(const std::string& text) const;

  std::string path_;
  int rank_, file_;
  std::deque<Span> spans_;
};

}  // namespace tokenring
