// Namespaces for a sandbox, made by this program itself: what it sees is a root that is made once for many, and what
// lies in namespaces of its own is no right of any process inside.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

namespace tokenring::sandbox {

// Something that a sandbox sees at `target`.
struct Shown {
  enum class Kind { kReadable, kWritable, kDevice, kLink };
  Kind kind;
  // A path of ours, or the text of a link.
  std::string source;
  std::string target;
};

// A namespace of mounts whose root, read-only and `owner`'s (< 0: this user's), holds `shown`. `place` is a folder to
// make it at; it does not appear there. A descriptor. Throws, also where the kernel is older than Linux 5.12.
int make_root(const std::string& place, const std::vector<Shown>& shown, int64_t owner);

// The flags to start a process with that calls the two functions below.
extern const unsigned long kOwnNamespaces;

// Moves this process, the first of new namespaces, to a copy of `root` with `shown`, what /proc says of them, a host
// name and a network that is itself alone. `cover`: /proc is not to be written to by this user either. Throws.
void enter_root(int root, const std::vector<Shown>& shown, bool cover);

// Gives up all rights for good: this process is an ordinary user of a user namespace that owns nothing. Throws.
void leave_rights();

}  // namespace tokenring::sandbox
