// Safetensors files: a u64 length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes.
// https://github.com/huggingface/safetensors describes the format. All failures have code CHECKPOINT.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace tokenring {

struct SafetensorsEntry {
  std::string dtype;  // as in the file: "F32", "BF16", "F16", ...
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes in the file, checked to lie within it

  int64_t elements() const;
};

class SafetensorsReader {
 public:
  // Reads and checks the header; the tensors stay on disk.
  explicit SafetensorsReader(std::string path);
  ~SafetensorsReader();
  SafetensorsReader(const SafetensorsReader&) = delete;
  SafetensorsReader& operator=(const SafetensorsReader&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // The tensor must be F32, BF16 or F16 and of this shape; else a Failure that names it.
  void check(const std::string& name, const std::vector<int64_t>& shape) const;
  // All elements of a checked tensor as float32, or `count` of them from `begin` on; nothing else is read.
  void read(const std::string& name, float* out) const;
  void read(const std::string& name, int64_t begin, int64_t count, float* out) const;

 private:
  const SafetensorsEntry& entry(const std::string& name) const;
  void read_header();
  void read_bytes(uint64_t offset, void* out, size_t bytes, const std::string& what) const;

  std::string path_;
  int file_ = -1;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::f32;  // f32 or bf16
  std::vector<int64_t> shape;
};

// The name of a file until it is whole.
std::string unfinished(const std::string& path, const std::string& suffix);
// Gives a file that is whole, and on the disk, its name.
void finish_file(const std::string& path, const std::string& suffix);

// Writes beside the target and renames at the end, so that the file is there whole or not at all. Several writers, of
// several processes too, write into one file if they have path, suffix, tensors and metadata in common.
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::string path, std::string suffix, std::vector<SafetensorsTensor> tensors,
                    const std::map<std::string, std::string>& metadata);
  // A suffix of this process.
  SafetensorsWriter(std::string path, std::vector<SafetensorsTensor> tensors,
                    const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();  // without sync() or commit(): removes what was written
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  const std::string& path() const { return path_; }

  // `count` elements of a tensor, from `begin` on.
  void write(size_t tensor, int64_t begin, int64_t count, const float* values);
  // All elements of the next tensor.
  void append(const float* values);
  // This writer's part is done, and on the disk; finish_file() is for when all are.
  void sync();
  // Where there is no other writer: the same, if all was written, and finish_file().
  void commit();

 private:
  void write_bytes(const void* data, size_t bytes, uint64_t at);

  std::string path_, suffix_, temporary_;
  std::vector<SafetensorsTensor> tensors_;
  std::vector<uint64_t> begin_;   // of each tensor, in the file
  std::vector<int64_t> written_;  // elements
  size_t next_ = 0;
  int file_ = -1;
};

}  // namespace tokenring
