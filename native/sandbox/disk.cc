#include "sandbox/disk.h"

#include <errno.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include "sandbox/files.h"

namespace tokenring::sandbox {
namespace {

std::string sizes(uint64_t bytes, uint64_t inodes) {
  return "size=" + std::to_string(bytes) + ",nr_inodes=" + std::to_string(inodes);
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
