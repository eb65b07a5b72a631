#include "sandbox/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <exception>
#include <fstream>
#include <map>
#include <utility>

#include "sandbox/files.h"
#include "sandbox/filter.h"
#include "sandbox/landlock.h"
#include "sandbox/namespaces.h"

namespace tokenring::sandbox {
namespace {

constexpr int kExtra = 9;
constexpr long kPidfdOpen = 434;

// The process that is to end with this one's parent does not see it where it has an own namespace of processes:
// `handle` is a descriptor that tells of the parent's end, or -1.
void die_with(pid_t parent, int handle) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  pollfd ended{handle, POLLIN, 0};
  if (handle >= 0 ? poll(&ended, 1, 0) != 0 : getppid() != parent) _exit(1);
}

void become(int64_t user) {
  if (user < 0) return;
  if (setgroups(0, nullptr) != 0 || setresgid(user, user, user) != 0 || setresuid(user, user, user) != 0) {
    fail("cannot become user " + std::to_string(user));
  }
}

// Ends in exec, or in a line on the error stream.
[[noreturn]] void run(const Start& start, pid_t parent, int handle) {
  try {
    die_with(parent, handle);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    for (int number : {SIGPIPE, SIGINT, SIGTERM, SIGHUP}) signal(number, SIG_DFL);
    if (start.prepare) start.prepare();
    // Apart from where they lie, so that none is overwritten before it is copied.
    int streams[] = {start.in, start.out, start.err, start.extra};
    int targets[] = {0, 1, 2, kExtra};
    for (int& stream : streams) {
      if (stream >= 0) stream = fcntl(stream, F_DUPFD_CLOEXEC, kExtra + 1);
    }
    for (int i = 0; i < 4; ++i) {
      if (streams[i] >= 0 && dup2(streams[i], targets[i]) < 0) fail("dup2");
    }
    if ((start.supervise || start.apart) && setsid() < 0) fail("setsid");
    for (const auto& variable : start.environment) putenv(strdup(variable.c_str()));
    bool was_root = geteuid() == 0;
    if (start.filter && was_root && start.user >= 0 && !start.apart) {
      for (int capability = 0; capability <= 63; ++capability) prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    }
    become(start.user);
    if (start.apart) leave_rights();
    // A change of user forgets it.
    die_with(parent, handle);
    if (!start.folder.empty() && chdir(start.folder.c_str()) != 0) fail(start.folder);
    if (start.rules >= 0) {
      if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) fail("no_new_privs");
      if (!landlock_restrict(start.rules)) fail("Landlock");
    }
    if (start.filter && !install(*start.filter)) fail("seccomp");
    std::vector<char*> arguments;
    for (const auto& argument : start.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    fail(start.arguments[0]);
  } catch (const std::exception& error) {
    std::string line = std::string("tokenring: ") + error.what() + "\n";
    [[maybe_unused]] ssize_t said = write(start.err, line.data(), line.size());
  }
  _exit(126);
}

// All processes, by their parent.
std::multimap<pid_t, pid_t> processes_by_parent() {
  std::multimap<pid_t, pid_t> children;
  DIR* processes = opendir("/proc");
  if (!processes) return children;
  while (dirent* entry = readdir(processes)) {
    pid_t pid = atoi(entry->d_name);
    if (pid <= 0) continue;
    std::string stat = read_text(std::string("/proc/") + entry->d_name + "/stat");
    // "pid (name) state parent": a name may hold anything, but ends at the last parenthesis.
    size_t end = stat.rfind(')');
    if (end != std::string::npos && end + 4 < stat.size()) children.emplace(atoi(stat.c_str() + end + 4), pid);
  }
  closedir(processes);
  return children;
}

std::vector<pid_t> own_children() {
  std::vector<pid_t> found;
  if (std::ifstream list("/proc/thread-self/children"); list) {
    for (pid_t pid; list >> pid;) found.push_back(pid);
    return found;
  }
  // A kernel without that list.
  auto children = processes_by_parent();
  auto [begin, end] = children.equal_range(getpid());
  for (auto child = begin; child != end; ++child) found.push_back(child->second);
  return found;
}

// Everybody who comes of `ancestor`.
std::vector<pid_t> descendants(pid_t ancestor) {
  auto children = processes_by_parent();
  std::vector<pid_t> found{ancestor};
  for (size_t i = 0; i < found.size(); ++i) {
    auto [begin, end] = children.equal_range(found[i]);
    for (auto child = begin; child != end; ++child) found.push_back(child->second);
  }
  found.erase(found.begin());
  return found;
}

// As the sandbox's user: reaches every process of it at once, so that none can fork away.
void kill_user(int64_t user) {
  if (user <= 0) return;
  pid_t killer = fork();
  if (killer == 0) {
    try {
      become(user);
      kill(-1, SIGKILL);
    } catch (const std::exception&) {
    }
    _exit(0);
  }
  if (killer > 0) waitpid(killer, nullptr, 0);
}

// Orphans of ours come to us, so that nobody is left once we have no child.
void kill_all(int64_t user) {
  for (;;) {
    kill_user(user);
    // Stopped first, so that what is listed cannot fork on.
    for (pid_t pid : descendants(getpid())) kill(pid, SIGSTOP);
    for (pid_t pid : descendants(getpid())) kill(pid, SIGKILL);
    pid_t dead = waitpid(-1, nullptr, 0);
    while (dead > 0) dead = waitpid(-1, nullptr, WNOHANG);
    if (dead < 0 && errno == ECHILD) return;
  }
}

[[noreturn]] void supervise(const Start& start, pid_t parent) {
  setsid();
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  signal(SIGTERM, SIG_DFL);
  sigset_t awaited;
  sigemptyset(&awaited);
  for (int number : {SIGTERM, SIGCHLD}) sigaddset(&awaited, number);
  sigprocmask(SIG_BLOCK, &awaited, nullptr);
  if (getppid() != parent) _exit(1);
  pid_t self = getpid();
  pid_t child = fork();
  if (child == 0) run(start, self, -1);
  // The sandbox's pipes close with the sandbox's processes.
  syscall(SYS_close_range, 0, ~0u, 0);
  bool alive = child > 0;
  while (alive) {
    if (sigwaitinfo(&awaited, nullptr) == SIGTERM) break;
    for (pid_t dead; (dead = waitpid(-1, nullptr, WNOHANG)) > 0;) alive = alive && dead != child;
  }
  kill_all(start.user);
  _exit(0);
}

// Adds up the files without a name that `pid` holds open, each once; false where we may not look.
bool add_held(pid_t pid, std::map<std::pair<dev_t, ino_t>, uint64_t>& files) {
  std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  DIR* descriptors = opendir(folder.c_str());
  if (!descriptors) return false;
  while (dirent* entry = readdir(descriptors)) {
    struct stat stat;
    if (::stat((folder + "/" + entry->d_name).c_str(), &stat) != 0 || !S_ISREG(stat.st_mode)) continue;
    if (stat.st_nlink == 0) files[{stat.st_dev, stat.st_ino}] = static_cast<uint64_t>(stat.st_blocks) * 512;
  }
  closedir(descriptors);
  return true;
}

}  // namespace

bool kill_strays(const std::function<bool(pid_t)>& known) {
  bool any = false;
  for (pid_t child : own_children()) {
    if (known(child)) continue;
    any = true;
    kill(child, SIGKILL);
  }
  return any;
}

uint64_t held_bytes(pid_t supervisor, int64_t user) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) fail("pipe");
  // A process that may become the user: root in a container may look at its own processes only.
  pid_t helper = fork();
  if (helper == 0) {
    std::map<std::pair<dev_t, ino_t>, uint64_t> files;
    std::vector<pid_t> denied;
    for (pid_t pid : descendants(supervisor)) {
      if (!add_held(pid, files)) denied.push_back(pid);
    }
    try {
      become(user);
      for (pid_t pid : denied) add_held(pid, files);
    } catch (const std::exception&) {
    }
    uint64_t bytes = 0;
    for (const auto& [key, size] : files) bytes += size;
    [[maybe_unused]] ssize_t said = write(ends[1], &bytes, sizeof bytes);
    _exit(0);
  }
  close(ends[1]);
  uint64_t bytes = 0;
  if (helper < 0 || read(ends[0], &bytes, sizeof bytes) != sizeof bytes) bytes = 0;
  close(ends[0]);
  if (helper > 0) waitpid(helper, nullptr, 0);
  return bytes;
}

pid_t start_process(const Start& start) {
  pid_t self = getpid();
  int handle = -1;
  if (start.apart) {
    handle = static_cast<int>(syscall(kPidfdOpen, self, 0));
    if (handle < 0) fail("pidfd_open");
  }
  // As fork(), which has no flags.
  pid_t pid = start.apart ? static_cast<pid_t>(syscall(SYS_clone, kOwnNamespaces | SIGCHLD, 0, 0, 0, 0)) : fork();
  if (pid != 0) {
    int error = errno;
    if (handle >= 0) close(handle);
    errno = error;
    if (pid < 0) fail("fork");
    return pid;
  }
  if (start.supervise) supervise(start, self);
  run(start, self, handle);
}

}  // namespace tokenring::sandbox
