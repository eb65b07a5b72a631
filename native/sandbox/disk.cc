#include "sandbox/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/files.h"

namespace tokenring::sandbox {
namespace {

std::string sizes(uint64_t bytes, uint64_t inodes) {
  return "size=" + std::to_string(bytes) + ",nr_inodes=" + std::to_string(inodes);
}

// Values of linux/mount.h, which may not be included beside sys/mount.h.
constexpr unsigned kClone = 1, kRecursive = 0x8000, kEmptyPath = 4;

// The mounts at `path` and below it as a tree of their own, or -1 before Linux 5.2.
int clone_tree(const std::string& path) {
  return static_cast<int>(syscall(SYS_open_tree, AT_FDCWD, path.c_str(), kClone | kRecursive | O_CLOEXEC));
}

}  // namespace

void enter_mount_namespace() {
  uid_t user = geteuid();
  gid_t group = getegid();
  if (user != 0 || unshare(CLONE_NEWNS) != 0) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) fail("user namespaces are not allowed here");
    if (!write_text("/proc/self/setgroups", "deny")) fail("/proc/self/setgroups");
    if (!write_text("/proc/self/uid_map", "0 " + std::to_string(user) + " 1")) fail("/proc/self/uid_map");
    if (!write_text("/proc/self/gid_map", "0 " + std::to_string(group) + " 1")) fail("/proc/self/gid_map");
  }
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) fail("mounts are not allowed here");
}

int open_lean_namespace() {
  const int full = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), here = open(".", O_RDONLY | O_CLOEXEC);
  int lean = -1;
  if (full >= 0 && here >= 0 && unshare(CLONE_NEWNS) == 0) {
    // Control groups lie there, a mount for each; no sandbox sees it. Refused where the mounts are another's.
    umount2("/sys", MNT_DETACH);
    lean = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (setns(full, CLONE_NEWNS) != 0 || fchdir(here) != 0) fail("cannot go back to the namespace of mounts");
  }
  for (const int file : {full, here}) {
    if (file >= 0) close(file);
  }
  return lean;
}

void show_disk(const std::string& folder, const std::string& place, int lean) {
  const int tree = lean < 0 ? -1 : clone_tree(folder);
  if (tree >= 0 && setns(lean, CLONE_NEWNS) != 0) fail("lean namespace of mounts");
  if (unshare(CLONE_NEWNS) != 0) fail("namespace of mounts");
  if (tree < 0) {
    if (::mount(folder.c_str(), place.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0) fail(place);
    return;
  }
  if (syscall(SYS_move_mount, tree, "", AT_FDCWD, place.c_str(), kEmptyPath) != 0) fail(place);
  close(tree);
}

void make_disk(const std::string& folder, bool mount, uint64_t bytes, uint64_t inodes, const std::string& lower,
               int64_t owner) {
  make_folder(folder, 0755, -1);
  if (mount) {
    std::string options = "mode=755," + sizes(bytes, inodes);
    if (::mount("tmpfs", folder.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, options.c_str()) != 0) fail("mount tmpfs");
  }
  make_folder(folder + "/tmp", 0755, owner);
  make_folder(folder + "/repo", 0755, owner);
  if (lower.empty()) return;
  make_folder(folder + "/upper", 0755, owner);
  make_folder(folder + "/work", 0700, -1);
  std::string options = "lowerdir=" + lower + ",upperdir=" + folder + "/upper,workdir=" + folder + "/work,userxattr";
  if (::mount("overlay", (folder + "/repo").c_str(), "overlay", MS_NOSUID | MS_NODEV, options.c_str()) != 0) {
    int error = errno;
    drop_disk(folder);
    errno = error;
    fail("mount overlay");
  }
}

void resize_disk(const std::string& folder, uint64_t bytes, uint64_t inodes) {
  std::string options = sizes(bytes, inodes);
  if (::mount("tmpfs", folder.c_str(), "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV, options.c_str()) != 0) {
    fail("resize tmpfs");
  }
}

void drop_disk(const std::string& folder) { umount2(folder.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW); }

}  // namespace tokenring::sandbox
