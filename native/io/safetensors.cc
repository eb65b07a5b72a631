#include "io/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <sstream>

#include "core/convert.h"
#include "io/json.h"

namespace tokenring {

namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr int64_t kChunk = 1 << 16;           // elements converted at a time

int64_t element_bytes(const std::string& dtype) {
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "BF16" || dtype == "F16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "U8" || dtype == "I8" || dtype == "BOOL" || dtype == "F8_E4M3" || dtype == "F8_E5M2") return 1;
  return 0;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// A whole number from 0 that a double holds exactly.
bool whole(const Json& json) {
  return json.kind == Json::Kind::number && json.number >= 0 && json.number <= 0x1.0p53 &&
         json.number == std::floor(json.number);
}

}  // namespace

int64_t SafetensorsEntry::elements() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

SafetensorsReader::SafetensorsReader(std::string path) : path_(std::move(path)) {
  file_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0) fail("CHECKPOINT", path_, ": cannot be opened: ", std::strerror(errno));
  try {
    read_header();
  } catch (...) {
    close(file_);
    throw;
  }
}

SafetensorsReader::~SafetensorsReader() { close(file_); }

void SafetensorsReader::read_header() {
  struct stat status {};
  if (fstat(file_, &status) != 0) fail("CHECKPOINT", path_, ": cannot be read: ", std::strerror(errno));
  const uint64_t size = static_cast<uint64_t>(status.st_size);
  if (size < 8) fail("CHECKPOINT", path_, ": truncated: ", size, " bytes cannot hold the length of a header");
  unsigned char head[8];
  read_bytes(0, head, sizeof(head), "the length of the header");
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | head[i];
  if (length > kMaxHeader) {
    fail("CHECKPOINT", path_, ": the header claims ", length, " bytes, more than ", kMaxHeader,
         "; this is no safetensors file");
  }
  if (length > size - 8) {
    fail("CHECKPOINT", path_, ": truncated: the header claims ", length, " bytes but the file has ", size);
  }
  std::string text(length, '\0');
  read_bytes(8, text.data(), length, "the header");
  const Json header = parse_json(text, path_ + " (header)");
  if (header.kind != Json::Kind::object) fail("CHECKPOINT", path_, ": the header is no JSON object");

  const uint64_t data = 8 + length, available = size - data;
  for (const auto& [name, value] : header.object) {
    if (name == "__metadata__") {
      for (const auto& [key, text] : value.object) metadata_[key] = text.string;
      continue;
    }
    const Json* dtype = value.find("dtype");
    const Json* shape = value.find("shape");
    const Json* offsets = value.find("data_offsets");
    if (!dtype || dtype->kind != Json::Kind::string || !shape || shape->kind != Json::Kind::array || !offsets ||
        offsets->array.size() != 2 || !whole(offsets->array[0]) || !whole(offsets->array[1])) {
      fail("CHECKPOINT", path_, ": tensor ", name, ": the header lacks its dtype, shape or two data_offsets");
    }
    SafetensorsEntry entry;
    entry.dtype = dtype->string;
    const int64_t item = element_bytes(entry.dtype);
    if (item == 0) fail("CHECKPOINT", path_, ": tensor ", name, " has the unknown dtype ", entry.dtype);
    double bytes = static_cast<double>(item);  // in double, so that no product of sizes can wrap
    for (const Json& n : shape->array) {
      if (!whole(n)) fail("CHECKPOINT", path_, ": tensor ", name, ": its shape is not a list of whole numbers");
      entry.shape.push_back(static_cast<int64_t>(n.number));
      bytes *= n.number;
    }
    entry.begin = static_cast<uint64_t>(offsets->array[0].number);
    entry.end = static_cast<uint64_t>(offsets->array[1].number);
    if (entry.begin > entry.end || static_cast<double>(entry.end - entry.begin) != bytes) {
      fail("CHECKPOINT", path_, ": tensor ", name, ": offsets ", entry.begin, "..", entry.end, " do not hold ",
           entry.dtype, " ", shape_text(entry.shape));
    }
    if (entry.end > available) {
      fail("CHECKPOINT", path_, ": truncated: tensor ", name, " ends at byte ", entry.end,
           " of the data, but there are ", available);
    }
    entry.begin += data;
    entry.end += data;
    if (!entries_.emplace(name, std::move(entry)).second) {
      fail("CHECKPOINT", path_, ": tensor ", name, " is there twice");
    }
  }
}

void SafetensorsReader::read_bytes(uint64_t offset, void* out, size_t bytes, const std::string& what) const {
  char* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t n = pread(file_, to, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("CHECKPOINT", path_, ": cannot read ", what, ": ", std::strerror(errno));
    if (n == 0) fail("CHECKPOINT", path_, ": truncated while reading ", what);
    to += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
}

const SafetensorsEntry& SafetensorsReader::entry(const std::string& name) const {
  const auto at = entries_.find(name);
  if (at == entries_.end()) fail("CHECKPOINT", path_, ": there is no tensor ", name);
  return at->second;
}

void SafetensorsReader::check(const std::string& name, const std::vector<int64_t>& shape) const {
  const SafetensorsEntry& tensor = entry(name);
  if (tensor.dtype != "F32" && tensor.dtype != "BF16" && tensor.dtype != "F16") {
    fail("CHECKPOINT", path_, ": tensor ", name, " is ", tensor.dtype, "; only F32, BF16 and F16 can be read");
  }
  if (tensor.shape != shape) {
    fail("CHECKPOINT", path_, ": tensor ", name, " has shape ", shape_text(tensor.shape), " but the model needs ",
         shape_text(shape), "; does config.json belong to this checkpoint?");
  }
}

void SafetensorsReader::read(const std::string& name, float* out) const { read(name, 0, entry(name).elements(), out); }

void SafetensorsReader::read(const std::string& name, int64_t begin, int64_t count, float* out) const {
  const SafetensorsEntry& tensor = entry(name);
  if (begin < 0 || count < 0 || begin + count > tensor.elements())
    fail("INTERNAL", path_, ": elements ", begin, "..", begin + count, " of tensor ", name);
  const bool wide = tensor.dtype == "F32", brain = tensor.dtype == "BF16";
  const uint64_t at = tensor.begin + static_cast<uint64_t>(begin) * (wide ? 4 : 2);
  if (wide) return read_bytes(at, out, static_cast<size_t>(count) * 4, name);
  std::vector<uint16_t> chunk(static_cast<size_t>(std::min(kChunk, count)));
  for (int64_t done = 0; done < count; done += kChunk) {
    const int64_t n = std::min(kChunk, count - done);
    read_bytes(at + 2 * static_cast<uint64_t>(done), chunk.data(), 2 * static_cast<size_t>(n), name);
    for (int64_t i = 0; i < n; ++i) out[done + i] = brain ? f32_of_bf16(chunk[i]) : f32_of_f16(chunk[i]);
  }
}

// --- writing -------------------------------------------------------------------------------------------

std::string unfinished(const std::string& path, const std::string& suffix) { return path + ".tmp-" + suffix; }

void finish_file(const std::string& path, const std::string& suffix) {
  if (rename(unfinished(path, suffix).c_str(), path.c_str()) != 0)
    fail("CHECKPOINT", path, ": cannot take its name: ", std::strerror(errno));
  // The name is only as safe as the directory that holds it.
  const size_t slash = path.find_last_of('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int folder = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    fsync(folder);
    close(folder);
  }
}

namespace {

const char* cure_of(int cause) { return cause == ENOSPC || cause == EDQUOT ? "; free some space" : ""; }

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<SafetensorsTensor> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : SafetensorsWriter(std::move(path), std::to_string(getpid()), std::move(tensors), metadata) {}

SafetensorsWriter::SafetensorsWriter(std::string path, std::string suffix, std::vector<SafetensorsTensor> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(std::move(path)),
      suffix_(std::move(suffix)),
      temporary_(unfinished(path_, suffix_)),
      tensors_(std::move(tensors)),
      written_(tensors_.size()) {
  std::ostringstream json;
  json << "{\"__metadata__\":{";
  const char* separator = "";
  for (const auto& [key, value] : metadata) {
    json << separator << quote_json(key) << ':' << quote_json(value);
    separator = ",";
  }
  json << '}';
  uint64_t offset = 0;
  for (const SafetensorsTensor& tensor : tensors_) {
    require(tensor.dtype == DType::f32 || tensor.dtype == DType::bf16, "checkpoints are written in f32 or bf16");
    uint64_t bytes = size_of(tensor.dtype);
    for (const int64_t n : tensor.shape) bytes *= static_cast<uint64_t>(n);
    json << ',' << quote_json(tensor.name) << ":{\"dtype\":\"" << (tensor.dtype == DType::f32 ? "F32" : "BF16")
         << "\",\"shape\":" << shape_text(tensor.shape) << ",\"data_offsets\":[" << offset << ',' << offset + bytes
         << "]}";
    begin_.push_back(offset);
    offset += bytes;
  }
  json << '}';
  std::string header = json.str();
  header.append((8 - header.size() % 8) % 8, ' ');  // so that the data is aligned
  unsigned char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(header.size() >> (8 * i));
  for (uint64_t& begin : begin_) begin += sizeof(length) + header.size();

  file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) fail("CHECKPOINT", temporary_, ": cannot be created: ", std::strerror(errno));
  try {
    // To the same size for every writer.
    if (ftruncate(file_, static_cast<off_t>(sizeof(length) + header.size() + offset)) != 0)
      fail("CHECKPOINT", temporary_, ": cannot be written: ", std::strerror(errno), cure_of(errno));
    write_bytes(length, sizeof(length), 0);
    write_bytes(header.data(), header.size(), sizeof(length));
  } catch (...) {
    close(file_);
    unlink(temporary_.c_str());
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (file_ < 0) return;
  close(file_);
  unlink(temporary_.c_str());
}

void SafetensorsWriter::write_bytes(const void* data, size_t bytes, uint64_t at) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = pwrite(file_, from, bytes, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("CHECKPOINT", temporary_, ": cannot be written: ", std::strerror(errno), cure_of(errno));
    from += n;
    at += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
}

void SafetensorsWriter::write(size_t index, int64_t begin, int64_t count, const float* values) {
  const DType dtype = tensors_.at(index).dtype;
  const uint64_t at = begin_[index] + static_cast<uint64_t>(begin) * size_of(dtype);
  written_[index] += count;
  if (dtype == DType::f32) return write_bytes(values, static_cast<size_t>(count) * sizeof(float), at);
  std::vector<uint16_t> chunk(static_cast<size_t>(std::min(kChunk, count)));
  for (int64_t done = 0; done < count; done += kChunk) {
    const int64_t n = std::min(kChunk, count - done);
    for (int64_t i = 0; i < n; ++i) chunk[i] = bf16_of_f32(values[done + i]);
    write_bytes(chunk.data(), static_cast<size_t>(n) * 2, at + static_cast<uint64_t>(done) * 2);
  }
}

void SafetensorsWriter::append(const float* values) {
  if (next_ == tensors_.size()) fail("INTERNAL", path_, ": more tensors than its header names");
  int64_t n = 1;
  for (const int64_t size : tensors_[next_].shape) n *= size;
  write(next_++, 0, n, values);
}

void SafetensorsWriter::sync() {
  if (fsync(file_) != 0) fail("CHECKPOINT", temporary_, ": cannot be flushed: ", std::strerror(errno), cure_of(errno));
  close(file_);
  file_ = -1;
}

void SafetensorsWriter::commit() {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    int64_t n = 1;
    for (const int64_t size : tensors_[i].shape) n *= size;
    if (written_[i] != n) fail("INTERNAL", path_, ": tensor ", tensors_[i].name, " was not written");
  }
  sync();
  try {
    finish_file(path_, suffix_);
  } catch (...) {
    unlink(temporary_.c_str());
    throw;
  }
}

}  // namespace tokenring
