#include "comm/host.h"

#include <sys/stat.h>

#include <cstdio>
#include <string>

namespace tokenring::comm {

uint64_t host_key(const char* name_space) {
  // FNV-1a of the boot id, and the namespace's number.
  char text[64] = {};
  if (std::FILE* file = std::fopen("/proc/sys/kernel/random/boot_id", "re")) {
    if (!std::fgets(text, sizeof(text), file)) text[0] = 0;
    std::fclose(file);
  }
  uint64_t hash = 0xcbf29ce484222325;
  for (const char* c = text; *c; ++c) hash = (hash ^ static_cast<uint8_t>(*c)) * 0x100000001b3;
  struct stat info {};
  if (stat((std::string("/proc/self/ns/") + name_space).c_str(), &info) == 0)
    hash = (hash ^ info.st_ino) * 0x100000001b3;
  return hash;
}

}  // namespace tokenring::comm
