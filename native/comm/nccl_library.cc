#include "comm/nccl_library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <type_traits>
#include <vector>

#include "core/failure.h"

namespace tokenring::nccl {
namespace {

constexpr const char* kFile = "libnccl.so.2";
constexpr const char* kAdvice =
    "install NCCL 2.18.1 or newer (the package libnccl2 or, of Python, nvidia-nccl-cu12 or nvidia-nccl-cu13), or name "
    "the file in TOKENRING_NCCL";

// Of Python packages, the newest Python's first.
void add_matches(const std::string& pattern, std::vector<std::string>* files) {
  glob_t found{};
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    for (size_t i = found.gl_pathc; i-- > 0;) files->push_back(found.gl_pathv[i]);
  globfree(&found);
}

std::vector<std::string> places() {
  std::vector<std::string> files = {kFile};
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value ? value : "";
  };
  const std::string home = variable("CUDA_HOME");
  files.push_back((home.empty() ? "/usr/local/cuda" : home) + "/lib64/" + kFile);
  std::vector<std::string> roots;
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (!variable(name).empty()) roots.push_back(variable(name));
  if (!variable("HOME").empty()) roots.push_back(variable("HOME") + "/.local");
  roots.insert(roots.end(), {"/usr/local", "/usr"});
  for (const std::string& root : roots)
    for (const char* packages : {"site-packages", "dist-packages"})
      add_matches(root + "/lib/python3*/" + packages + "/nvidia/nccl/lib/" + kFile, &files);
  return files;
}

}  // namespace

std::string version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Library open(const std::string& file) {
  // It stays loaded: CUDA's libraries do not survive dlclose.
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) fail("INVALID_ARGUMENT", "NCCL could not be loaded: ", dlerror(), "; ", kAdvice);
  Library library{};
  library.file = file;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    require(function, file, " has no ", name, "; ", kAdvice);
  };
#define TOKENRING_FIND(name) find(library.name, "nccl" #name);
  // The version first: an old library is better named than one of its gaps.
  TOKENRING_FIND(GetVersion)
  const int error = library.GetVersion(&library.version);
  require(error == kSuccess, file, " does not tell its version (ncclGetVersion returned ", error, "); ", kAdvice);
  require(library.version >= kOldest, file, " is NCCL ", version_text(library.version), "; ", kAdvice);
  TOKENRING_NCCL_CALLS(TOKENRING_FIND)
#undef TOKENRING_FIND
  // Where the loader found it.
  if (Dl_info info{}; dladdr(reinterpret_cast<const void*>(library.GetVersion), &info) && info.dli_fname)
    library.file = info.dli_fname;
  return library;
}

namespace {

Library find() {
  if (const char* named = std::getenv("TOKENRING_NCCL")) return open(named);
  for (const std::string& file : places())
    if (dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return open(file);
  fail("INVALID_ARGUMENT", "ranks on GPUs need NCCL, and ", kFile, " was not found: ", kAdvice);
}

}  // namespace

const Library& load() {
  static const Library library = find();
  return library;
}

}  // namespace tokenring::nccl
