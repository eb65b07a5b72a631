#include "core/trace.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "core/failure.h"
#include "core/schedule.h"

namespace tokenring {

namespace {

constexpr int kWires = 100;  // threads of the trace from here on are the tracks besides compute
// A span's thread holds, above this, a bit for each track that it comes after.
constexpr int kAfter = 1000;

// What a replay needs beside times (lib/plan/trace.ts).
std::string after_of(int thread) {
  std::string names;
  for (size_t track = 0; track < kTracks; ++track) {
    if ((thread / kAfter >> track & 1) == 0) continue;
    names += std::string(names.empty() ? ",\"after\":[\"" : ",\"") + name_of(static_cast<Track>(track)) + '"';
  }
  return names.empty() ? names : names + "]";
}

}  // namespace

Trace::Trace(const std::string& path, int rank) : path_(path), rank_(rank) {
  file_ = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  const bool made = file_ >= 0;
  if (!made) file_ = open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  require(file_ >= 0, "trace: ", path, " cannot be written: ", std::strerror(errno));
  std::ostringstream text;
  if (made) text << "[\n";
  const auto name = [&](const char* what, int thread, const std::string& value) {
    text << "{\"ph\":\"M\",\"name\":\"" << what << "\",\"pid\":" << rank_ << ",\"tid\":" << thread
         << ",\"args\":{\"name\":\"" << value << "\"}},\n";
  };
  name("process_name", 0, "rank " + std::to_string(rank_));
  name("thread_name", 0, "compute");
  for (const Track track : {Track::context, Track::gradients, Track::host})
    name("thread_name", kWires + static_cast<int>(track), name_of(track));
  write(text.str());
}

Trace::~Trace() { close(file_); }

int64_t Trace::now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Trace::Span& Trace::add(const Entry& entry, int lane) {
  Span& span = add(entry.op);
  span.layer = entry.layer;
  span.thread = entry.track == Track::compute ? lane : kWires + static_cast<int>(entry.track);
  for (size_t track = 0; track < kTracks; ++track)
    if (entry.after[track]) span.thread += kAfter << track;
  span.bytes = entry.bytes;
  span.flops = entry.flops;
  return span;
}

Trace::Span& Trace::add(const char* op) {
  Span& span = spans_.emplace_back();
  span.op = op;
  span.layer = -1;
  span.thread = 0;
  span.bytes = span.flops = 0;
  return span;
}

void Trace::flush() {
  std::ostringstream text;
  for (const Span& span : spans_) {
    if (span.end == 0) continue;  // left out after a failure
    char times[64];
    std::snprintf(times, sizeof(times), "\"ts\":%.3f,\"dur\":%.3f", 1e-3 * static_cast<double>(span.start),
                  1e-3 * static_cast<double>(span.end - span.start));
    text << "{\"ph\":\"X\",\"name\":\"" << span.op << "\",\"pid\":" << rank_ << ",\"tid\":" << span.thread % kAfter
         << "," << times << ",\"args\":{\"layer\":" << span.layer << ",\"bytes\":" << span.bytes
         << ",\"flops\":" << span.flops << after_of(span.thread) << "}},\n";
  }
  spans_.clear();
  if (text.tellp() > 0) write(text.str());
}

void Trace::write(const std::string& text) const {
  const ssize_t written = ::write(file_, text.data(), text.size());
  require(written == static_cast<ssize_t>(text.size()), "trace: ", path_,
          " cannot be written: ", written < 0 ? std::strerror(errno) : "the disk is full");
}

}  // namespace tokenring
