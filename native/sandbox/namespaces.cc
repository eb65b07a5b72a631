#include "sandbox/namespaces.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <stdexcept>

#include "sandbox/files.h"

namespace tokenring::sandbox {

const unsigned long kOwnNamespaces = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET;

namespace {

// Values of linux/mount.h, which may not be included beside sys/mount.h.
constexpr unsigned kClone = 1, kRecursive = 0x8000, kEmptyPath = 4, kAtEmptyPath = 0x1000;
constexpr unsigned kReadOnly = 1, kNoSetuid = 2, kNoDevices = 4, kNoPrograms = 8;
constexpr unsigned kSetString = 1, kCreate = 6;
constexpr long kMountSetattr = 442;

struct Attributes {
  uint64_t set, clear, propagation, user;
};

// As whom a sandbox's processes see themselves.
constexpr unsigned kUserInside = 1000;

int checked(long result, const std::string& what) {
  if (result < 0) fail(what);
  return static_cast<int>(result);
}

// The mounts at `source` and below it as a tree of their own, with these attributes.
int tree_of(const std::string& source, uint64_t attributes) {
  int tree = checked(syscall(SYS_open_tree, AT_FDCWD, source.c_str(), kClone | kRecursive | O_CLOEXEC), source);
  Attributes wanted{attributes, 0, 0, 0};
  checked(syscall(kMountSetattr, tree, "", kAtEmptyPath | kRecursive, &wanted, sizeof wanted),
          "attributes of " + source);
  return tree;
}

void attach(int tree, const std::string& target) {
  checked(syscall(SYS_move_mount, tree, "", AT_FDCWD, target.c_str(), kEmptyPath), "mount at " + target);
  close(tree);
}

int tree_of(const Shown& one) {
  uint64_t attributes = kNoSetuid;
  if (one.kind != Shown::Kind::kDevice) attributes |= kNoDevices;
  if (one.kind == Shown::Kind::kReadable) attributes |= kReadOnly;
  return tree_of(one.source, attributes);
}

// In the initial user namespace a new /proc can be had; in others only where one is in sight.
bool in_initial_user_namespace() {
  constexpr ino_t kInitial = 0xEFFFFFFD;
  struct stat stat;
  return ::stat("/proc/self/ns/user", &stat) == 0 && stat.st_ino == kInitial;
}

// Folders on the way to `target` that are not there yet.
void make_parents(const std::string& place, const std::string& target, int64_t owner) {
  for (size_t slash = target.find('/', 1); slash != std::string::npos; slash = target.find('/', slash + 1)) {
    std::string folder = place + target.substr(0, slash);
    if (access(folder.c_str(), F_OK) != 0) make_folder(folder, 0700, owner);
  }
}

void put(const std::string& place, const Shown& one, int64_t owner) {
  std::string path = place + one.target;
  make_parents(place, one.target, owner);
  if (one.kind == Shown::Kind::kLink) {
    checked(symlink(one.source.c_str(), path.c_str()), path);
    if (owner >= 0) checked(lchown(path.c_str(), owner, owner), path);
    return;
  }
  // What is only a place for what each sandbox has of its own.
  bool own = one.source.empty();
  struct stat stat;
  if (!own) checked(::stat(one.source.c_str(), &stat), one.source);
  if (own || S_ISDIR(stat.st_mode)) {
    make_folder(path, 0755, owner);
  } else {
    close(checked(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666), path));
  }
  if (!own) attach(tree_of(one), path);
}

// Leaves nothing in this namespace but what lies at `place`.
void make_root_here(const std::string& place, const std::vector<Shown>& shown, int64_t owner) {
  std::string user = std::to_string(owner < 0 ? static_cast<int64_t>(geteuid()) : owner);
  std::string options = "mode=755,uid=" + user + ",gid=" + user;
  checked(::mount("tmpfs", place.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, options.c_str()), "mount tmpfs");
  for (const auto& one : shown) put(place, one, owner);
  std::string proc = place + "/proc";
  make_folder(proc, 0755, owner);
  if (!in_initial_user_namespace()) attach(tree_of("/proc", 0), proc);
  Attributes wanted{kReadOnly, 0, 0, 0};
  checked(syscall(kMountSetattr, AT_FDCWD, place.c_str(), 0, &wanted, sizeof wanted), "attributes of the root");
  checked(chdir(place.c_str()), place);
  // The old root comes to lie upon the new one, and goes.
  checked(syscall(SYS_pivot_root, ".", "."), "pivot_root");
  checked(umount2(".", MNT_DETACH), "umount of the old root");
}

void mount_proc(bool cover) {
  int made = checked(syscall(SYS_fsopen, "proc", 1), "fsopen");
  checked(syscall(SYS_fsconfig, made, kSetString, "source", "proc", 0), "source of /proc");
  checked(syscall(SYS_fsconfig, made, kCreate, nullptr, nullptr, 0), "new /proc");
  int proc = checked(syscall(SYS_fsmount, made, 1, kNoSetuid | kNoDevices | kNoPrograms), "mount of /proc");
  close(made);
  // Where another was needed to get this one, that goes.
  umount2("/proc", MNT_DETACH);
  attach(proc, "/proc");
  if (!cover) return;
  for (const char* path : {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"}) {
    if (access(path, F_OK) == 0) attach(tree_of(path, kReadOnly | kNoSetuid | kNoDevices | kNoPrograms), path);
  }
}

void bring_up_loopback() {
  int any = checked(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
  ifreq wanted{};
  strcpy(wanted.ifr_name, "lo");
  checked(ioctl(any, SIOCGIFFLAGS, &wanted), "flags of lo");
  wanted.ifr_flags |= IFF_UP;
  checked(ioctl(any, SIOCSIFFLAGS, &wanted), "flags of lo");
  close(any);
}

}  // namespace

int make_root(const std::string& place, const std::vector<Shown>& shown, int64_t owner) {
  const int full = checked(open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), "/proc/self/ns/mnt");
  const int here = checked(open(".", O_RDONLY | O_CLOEXEC), ".");
  checked(unshare(CLONE_NEWNS), "namespace of mounts");
  const int root = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
  const mode_t mask = umask(0);
  std::string failure;
  try {
    make_root_here(place, shown, owner);
  } catch (const std::exception& error) {
    failure = error.what();
  }
  umask(mask);
  // Not to go on in a namespace where nothing is.
  if (setns(full, CLONE_NEWNS) != 0 || fchdir(here) != 0) _exit(1);
  close(full);
  close(here);
  if (failure.empty() && root >= 0) return root;
  if (root >= 0) close(root);
  throw std::runtime_error("a root for sandboxes: " + (failure.empty() ? "no descriptor" : failure));
}

void enter_root(int root, const std::vector<Shown>& shown, bool cover) {
  // Taken here, where they are, and put there.
  std::vector<int> trees;
  for (const auto& one : shown) trees.push_back(tree_of(one));
  checked(setns(root, CLONE_NEWNS), "namespace of the root");
  checked(unshare(CLONE_NEWNS), "namespace of mounts");
  for (size_t i = 0; i < shown.size(); ++i) attach(trees[i], shown[i].target);
  mount_proc(cover);
  checked(sethostname("sandbox", 7), "host name");
  bring_up_loopback();
}

void leave_rights() {
  uid_t user = geteuid();
  gid_t group = getegid();
  checked(unshare(CLONE_NEWUSER), "user namespace");
  // Or its files in /proc would be root's.
  prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
  auto map = [](const char* path, unsigned outside) {
    if (!write_text(path, std::to_string(kUserInside) + " " + std::to_string(outside) + " 1")) fail(path);
  };
  if (!write_text("/proc/self/setgroups", "deny")) fail("/proc/self/setgroups");
  map("/proc/self/uid_map", user);
  map("/proc/self/gid_map", group);
  for (int capability = 0; capability <= 63; ++capability) prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2]{};
  checked(syscall(SYS_capset, &header, none), "capset");
}

}  // namespace tokenring::sandbox
