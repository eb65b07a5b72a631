#include "sandbox/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace tokenring::sandbox {
namespace {

// The kernel's interface (Documentation/userspace-api/landlock): headers may be older than the kernel.
struct Ruleset {
  uint64_t files;
  uint64_t network;
  uint64_t scopes;
};
struct __attribute__((packed)) PathBeneath {
  uint64_t allowed;
  int32_t parent;
};

constexpr long kCreate = 444, kAddRule = 445, kRestrict = 446;
constexpr unsigned kVersionFlag = 1;
constexpr int kPathBeneath = 1;

constexpr uint64_t kExecute = 1 << 0, kWriteFile = 1 << 1, kReadFile = 1 << 2, kReadFolder = 1 << 3;
constexpr uint64_t kFirst = (1 << 13) - 1, kRefer = 1 << 13, kTruncate = 1 << 14, kIoctlDevice = 1 << 15;
constexpr uint64_t kOfFiles = kExecute | kWriteFile | kReadFile | kTruncate | kIoctlDevice;

uint64_t handled(int version) {
  return kFirst | (version >= 2 ? kRefer : 0) | (version >= 3 ? kTruncate : 0) | (version >= 5 ? kIoctlDevice : 0);
}

bool allow(int rules, const std::string& path, uint64_t access) {
  int file = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (file < 0) return errno == ENOENT;
  struct stat stat;
  if (fstat(file, &stat) == 0 && !S_ISDIR(stat.st_mode)) access &= kOfFiles;
  PathBeneath rule{access, file};
  bool done = syscall(kAddRule, rules, kPathBeneath, &rule, 0) == 0;
  int error = errno;
  close(file);
  errno = error;
  return done;
}

}  // namespace

int landlock_version() {
  long version = syscall(kCreate, nullptr, 0, kVersionFlag);
  return version > 0 ? static_cast<int>(version) : 0;
}

int landlock_rules(const Access& access) {
  int version = landlock_version();
  uint64_t files = handled(version);
  Ruleset wanted{files, version >= 4 ? 3u : 0u, version >= 6 ? 3u : 0u};
  size_t size = version >= 6 ? 24 : version >= 4 ? 16 : 8;
  int rules = static_cast<int>(syscall(kCreate, &wanted, size, 0));
  if (rules < 0) return -1;
  bool done = true;
  for (const auto& path : access.readable) done = done && allow(rules, path, kExecute | kReadFile | kReadFolder);
  // No device can be made without rights of root; ioctl on one is not allowed all the same.
  for (const auto& path : access.writable) done = done && allow(rules, path, files & ~kIoctlDevice);
  for (const auto& path : access.devices) done = done && allow(rules, path, kReadFile | kWriteFile);
  if (done) return rules;
  int error = errno;
  close(rules);
  errno = error;
  return -1;
}

bool landlock_restrict(int rules) { return syscall(kRestrict, rules, 0) == 0; }

}  // namespace tokenring::sandbox
