// What the files of a checkpoint are called, and what may not be in them.
#pragma once

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "core/failure.h"

namespace tokenring::checkpoint {

constexpr const char* kModel = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kOptimiser = "optimizer.safetensors";
constexpr const char* kFirst = "exp_avg.";
constexpr const char* kSecond = "exp_avg_sq.";
constexpr const char* kStep = "step";
constexpr const char* kVersion = "version";

inline std::string in_directory(const std::string& directory, const std::string& file) {
  return (std::filesystem::path(directory) / file).string();
}

// `values` are the elements of tensor `name`, from number `first` on, of the file at `path`. code: CHECKPOINT where
// they were read, NON_FINITE where they would be written.
inline void check_finite(const char* code, const std::string& path, const std::string& name, const float* values,
                         int64_t count, int64_t first) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(values[i])) continue;
    fail(code, path, ": element ", first + i, " of tensor ", name, " is ", values[i], "; use an earlier checkpoint");
  }
}

}  // namespace tokenring::checkpoint
