#include "cuda/cublaslt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/failure.h"

namespace tokenring::cuda::lt {
namespace {

// 12.0: the first version for Hopper.
constexpr size_t kOldest = 120000, kNewest = 139999;

std::vector<std::string> places() {
  if (const char* named = std::getenv("TOKENRING_CUBLASLT")) return {named};
  std::vector<std::string> found;
  const char* home = std::getenv("CUDA_HOME");
  for (const std::string& folder : {std::string(), (home ? std::string(home) : "/usr/local/cuda") + "/lib64/"})
    for (const char* file : {"libcublasLt.so.13", "libcublasLt.so.12"}) found.push_back(folder + file);
  return found;
}

Library open() {
  void* handle = nullptr;
  std::string place;
  for (const std::string& file : places()) {
    place = file;
    // It stays loaded: CUDA's libraries do not survive dlclose.
    if ((handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL))) break;
  }
  require(handle,
          "device \"cuda\" needs cuBLASLt 12 or 13, which was not found: install CUDA's libraries, or name the file in "
          "TOKENRING_CUBLASLT (of the Python package nvidia-cublas: nvidia/cu13/lib/libcublasLt.so.13)");
  Library library{};
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    require(function, place, " has no ", name, "; install cuBLASLt 12 or 13");
  };
#define TOKENRING_FIND(name) find(library.name, "cublasLt" #name)
  TOKENRING_FIND(GetVersion);
  TOKENRING_FIND(Create);
  TOKENRING_FIND(MatmulDescCreate);
  TOKENRING_FIND(MatmulDescDestroy);
  TOKENRING_FIND(MatmulDescSetAttribute);
  TOKENRING_FIND(MatrixLayoutCreate);
  TOKENRING_FIND(MatrixLayoutDestroy);
  TOKENRING_FIND(MatmulPreferenceCreate);
  TOKENRING_FIND(MatmulPreferenceDestroy);
  TOKENRING_FIND(MatmulPreferenceSetAttribute);
  TOKENRING_FIND(MatmulAlgoGetHeuristic);
  TOKENRING_FIND(Matmul);
#undef TOKENRING_FIND
  const size_t version = library.GetVersion();
  require(version >= kOldest && version <= kNewest, place, " is version ", version,
          ", which tokenring was not written for; install cuBLASLt 12 or 13");
  return library;
}

}  // namespace

const Library& load() {
  static const Library library = open();
  return library;
}

}  // namespace tokenring::cuda::lt
