// Which files a process may open, by the kernel's Landlock: what namespaces are not to be had for.
#pragma once

#include <string>
#include <vector>

namespace tokenring::sandbox {

// The version of Landlock's interface that this kernel has switched on; 0 where it has none.
int landlock_version();

struct Access {
  // May be read, and run; folders with all below them. What is not there is left out.
  std::vector<std::string> readable;
  // May be changed in every way.
  std::vector<std::string> writable;
  // Devices: read and written, nothing else.
  std::vector<std::string> devices;
};

// A ruleset that allows this and, as far as the kernel's version goes, no TCP, no signals and no abstract sockets
// beyond the processes that it is imposed on. A descriptor, or -1 with errno.
int landlock_rules(const Access& access);

// Imposes the ruleset on this process and its children; no_new_privs must be set. False with errno.
bool landlock_restrict(int rules);

}  // namespace tokenring::sandbox
