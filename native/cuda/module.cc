#include "cuda/module.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

namespace tokenring::cuda {
namespace {

std::string own_folder() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&find_module), &info) || !info.dli_fname) return ".";
  const std::string file = info.dli_fname;
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

const Module* load() {
  const std::string file = find_module();
  require(
      !file.empty(), "the CUDA kernels (", kModuleFile,
      ") are not built: npm run build:cuda makes them where the CUDA toolkit is, and TOKENRING_CUDA_MODULE names them "
      "elsewhere; or use device \"cpu\"");
  // The library stays loaded: the CUDA runtime in it does not survive dlclose.
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) fail("INVALID_ARGUMENT", "the CUDA kernels could not be loaded: ", dlerror());
  const auto module = reinterpret_cast<const Module* (*)()>(dlsym(library, "tokenring_cuda_module"));
  require(module && module()->abi == kModuleAbi, file,
          " belongs to another version of tokenring; npm run build:cuda makes it anew");
  return module();
}

}  // namespace

std::string find_module() {
  if (const char* named = std::getenv("TOKENRING_CUDA_MODULE")) return named;
  const std::string folder = own_folder();
  for (const char* place : {"/", "/../cuda/"}) {
    const std::string file = folder + place + kModuleFile;
    if (access(file.c_str(), R_OK) == 0) return file;
  }
  return "";
}

const Module& load_module() {
  static const Module* module = load();
  return *module;
}

}  // namespace tokenring::cuda
