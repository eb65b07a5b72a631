// The system calls that no sandbox needs and that would lead out of one.
#pragma once

#include <linux/filter.h>

#include <vector>

namespace tokenring::sandbox {

enum class Filter {
  // In namespaces of its own: sockets of the usual families are harmless there.
  kNamespaces,
  // On the host's network: no socket but pairs of streams.
  kSharedNetwork,
  // The same, as the user who trains: nor changes to files by path that Landlock does not see (mode, owner, times).
  kSharedUser,
};

// A seccomp program for this machine's architecture; refused calls fail with EPERM, those unknown to it with ENOSYS.
std::vector<sock_filter> seccomp_program(Filter kind);

// Imposes it on this process and its children. False with errno where the kernel refuses.
bool install(const std::vector<sock_filter>& program);

}  // namespace tokenring::sandbox
