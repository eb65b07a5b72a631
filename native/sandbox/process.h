// A sandbox's first process: how it is started, watched over and ended.
#pragma once

#include <linux/filter.h>
#include <stdint.h>
#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

namespace tokenring::sandbox {

struct Start {
  // Its standard streams.
  int in = -1, out = -1, err = -1;
  // Opened as descriptor 9, where not -1.
  int extra = -1;
  // Whose rights it has; < 0 is this user's.
  int64_t user = -1;
  // Where it starts; "" is here.
  std::string folder;
  // KEY=value, added to this process's environment.
  std::vector<std::string> environment;
  std::vector<std::string> arguments;
  // Run in the new process before it gives up its rights. May throw.
  std::function<void()> prepare;
  // A Landlock ruleset and a filter of system calls, where it is to be confined; else -1 and null.
  int rules = -1;
  const std::vector<sock_filter>* filter = nullptr;
  // Whether a process of ours watches over it, to end all that it began, since no namespace does.
  bool supervise = false;
  // Whether it is the first of namespaces of its own and has no rights at all; `prepare` then calls enter_root().
  bool apart = false;
};

// The process to wait for. Supervised, SIGTERM ends it with all that came of it; else SIGKILL does. Throws.
pid_t start_process(const Start& start);

// Children of this process that are not `known` are orphans of sandboxes: ends them. Whether there were any; the dead
// count until they are waited for.
bool kill_strays(const std::function<bool(pid_t)>& known);

// Bytes in files without a name that `supervisor`'s descendants, who are `user`, hold open; only what this process, or
// that user, may look at.
uint64_t held_bytes(pid_t supervisor, int64_t user);

}  // namespace tokenring::sandbox
