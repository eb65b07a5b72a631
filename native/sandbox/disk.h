// Where a sandbox's files lie: a file system of its own and of limited size, where mounts are to be had.
#pragma once

#include <stdint.h>

#include <string>

namespace tokenring::sandbox {

// Moves this process to a mount namespace that nobody else sees; all mounts go when its last process does. As root
// without a user namespace, so that files keep their owners; else in one where this user is root. Throws where neither
// is allowed.
void enter_mount_namespace();

// A mount namespace without the sandboxes' disks, for show_disk(): reading the list of mounts, which bubblewrap does
// for every one that it makes, takes as long as the list is. Call it in the namespace of enter_mount_namespace() before
// there are disks. A descriptor, or -1 where it cannot be had.
int open_lean_namespace();

// Moves this process to a copy of `lean` (-1: of the namespace that it is in) where the disk at `folder` appears at
// `place`, a folder that exists. Throws.
void show_disk(const std::string& folder, const std::string& place, int lean);

// Makes `folder` with repo and tmp below it, owned by `owner` (< 0: this user). With `mount`, they lie on a tmpfs of at
// most `bytes` and `inodes` (deleted files that are still open count); with `lower` not empty, repo shows that folder,
// and changes go to the tmpfs. Throws.
void make_disk(const std::string& folder, bool mount, uint64_t bytes, uint64_t inodes, const std::string& lower,
               int64_t owner);

// Changes the size of a mounted disk. Throws.
void resize_disk(const std::string& folder, uint64_t bytes, uint64_t inodes);

// Unmounts, if anything is; what no process uses any more is freed at once.
void drop_disk(const std::string& folder);

}  // namespace tokenring::sandbox
