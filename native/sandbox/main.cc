// Starts the sandboxes of one backend, for lib/sandbox/launcher.ts: a small process of its own, since forking a trainer
// that holds gigabytes costs milliseconds, and since its mounts and groups must go whatever becomes of the trainer.
//
// A request on stdin: the number of fields, then the fields (id, verb, arguments), each ended by NUL. A reply on
// stdout: "id value" or "id !what went wrong", a line. The end of stdin ends all sandboxes.
//   disk SLOT BYTES INODES USER LOWER   USER and LOWER may be "-"; makes the slot where it is new
//   drop SLOT                           its files, where they are mounted; else the next `disk` finds them as they are
//   resize SLOT BYTES INODES            where it is mounted
//   held SLOT                           bytes of files that its processes hold open and that have no name any more
//   root NAME USER [KIND SOURCE TARGET]...   what sandboxes that name it see beside their own (see namespaces.h)
//   start SLOT [KEY=VALUE...] -- ARGV   sees=KIND:SOURCE:TARGET adds to a root; replies when both pipes are open
//   kill SLOT                           replies when nothing is left
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "sandbox/cgroup.h"
#include "sandbox/disk.h"
#include "sandbox/files.h"
#include "sandbox/filter.h"
#include "sandbox/landlock.h"
#include "sandbox/namespaces.h"
#include "sandbox/process.h"

namespace tokenring::sandbox {
namespace {

using Fields = std::vector<std::string>;

// Owns a descriptor.
class File {
 public:
  explicit File(int file = -1) : file_(file) {}
  File(File&& other) noexcept : file_(std::exchange(other.file_, -1)) {}
  File& operator=(File&& other) noexcept {
    std::swap(file_, other.file_);
    return *this;
  }
  ~File() {
    if (file_ >= 0) close(file_);
  }
  int get() const { return file_; }

 private:
  int file_;
};

File open_file(const std::string& path, int flags) {
  int file = open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (file < 0) fail(path);
  return File(file);
}

class Launcher {
 public:
  // `scratch` holds slots/; `mounts` says whether each sandbox gets a file system of its own, which it sees at disk/.
  Launcher(std::string scratch, bool mounts)
      : scratch_(std::move(scratch)), mounts_(mounts), lean_(mounts ? open_lean_namespace() : -1) {}

  int serve();

 private:
  struct Child {
    std::string slot;
    bool supervised;
    // Whether it is the first of its namespaces itself, so that all others have ended before it has.
    bool first;
    int64_t user;
    // Ids of `kill` requests that wait for its end.
    Fields waiting;
  };

  std::string slot_folder(const std::string& slot) const { return scratch_ + "/slots/" + slot; }
  void handle(const Fields& fields);
  void disk(const Fields& fields);
  void root(const Fields& fields);
  void start(const Fields& fields);
  void end(pid_t pid, const Child& child) { kill(pid, child.supervised ? SIGTERM : SIGKILL); }
  void reap();
  void reply(const std::string& id, const std::string& text);

  std::string scratch_;
  bool mounts_;
  File lean_;
  ControlGroups groups_;
  std::map<pid_t, Child> children_;
  // Whether orphans are left, and ids of `kill` requests that wait until none is.
  bool strays_ = false;
  Fields orphaned_;
  std::vector<sock_filter> filter_;
  std::set<std::string> mounted_;
  std::map<std::string, File> roots_;
};

uint64_t number(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  uint64_t value = strtoull(text.c_str(), &end, 10);
  if (errno != 0 || text.empty() || *end != 0) throw std::runtime_error("not a number: " + text);
  return value;
}

int64_t user_of(const std::string& text) { return text == "-" ? -1 : static_cast<int64_t>(number(text)); }

void Launcher::reply(const std::string& id, const std::string& text) {
  std::string line = id + " " + text + "\n";
  for (size_t at = 0; at < line.size();) {
    ssize_t count = write(STDOUT_FILENO, line.data() + at, line.size() - at);
    if (count <= 0) return;  // The host has gone; the end of stdin says so as well.
    at += count;
  }
}

void Launcher::disk(const Fields& fields) {
  if (fields.size() != 7) throw std::runtime_error("disk takes 5 arguments");
  std::string folder = slot_folder(fields[2]);
  if (mkdir(folder.c_str(), 0711) == 0) {
    if (chmod(folder.c_str(), 0711) != 0) fail(folder);
    for (const char* name : {"/in", "/out"}) {
      if (mkfifo((folder + name).c_str(), 0600) != 0) fail(folder + name);
    }
  } else if (errno != EEXIST) {
    fail(folder);
  }
  std::string lower = fields[6] == "-" ? "" : fields[6];
  uint64_t bytes = number(fields[3]), inodes = number(fields[4]);
  // Unmounting waits for the whole machine, so what can be used again is kept.
  bool kept = mounted_.count(fields[2]) > 0;
  if (kept) resize_disk(folder + "/fs", bytes, inodes);
  make_disk(folder + "/fs", mounts_ && !kept, bytes, inodes, lower, user_of(fields[5]));
  if (mounts_) mounted_.insert(fields[2]);
}

Shown::Kind kind_of(const std::string& text) {
  if (text == "read") return Shown::Kind::kReadable;
  if (text == "write") return Shown::Kind::kWritable;
  if (text == "device") return Shown::Kind::kDevice;
  if (text == "link") return Shown::Kind::kLink;
  throw std::runtime_error("unknown kind " + text);
}

void split(const std::string& text, Fields& parts) {
  size_t begin = 0;
  for (size_t colon; (colon = text.find(':', begin)) != std::string::npos; begin = colon + 1) {
    parts.push_back(text.substr(begin, colon - begin));
  }
  parts.push_back(text.substr(begin));
}

// As triples of kind, source and target.
std::vector<Shown> shown_in(const Fields& fields, size_t at, size_t end) {
  std::vector<Shown> shown;
  for (; at + 3 <= end; at += 3) shown.push_back({kind_of(fields[at]), fields[at + 1], fields[at + 2]});
  if (at != end) throw std::runtime_error("what is shown takes three fields each");
  return shown;
}

void Launcher::root(const Fields& fields) {
  if (!mounts_) throw std::runtime_error("there are no mounts here");
  auto shown = shown_in(fields, 4, fields.size());
  roots_[fields[2]] = File(make_root(scratch_ + "/disk", shown, user_of(fields.at(3))));
}

void Launcher::start(const Fields& fields) {
  std::string slot = fields.at(2), folder = slot_folder(slot);
  Start start;
  Access access;
  std::string root;
  Fields own;
  uint64_t bytes = 0, inodes = 0, memory = 0, processes = 0;
  bool confine = false, shared_user = false;
  size_t at = 3;
  for (; at < fields.size() && fields[at] != "--"; ++at) {
    size_t equals = fields[at].find('=');
    std::string key = fields[at].substr(0, equals);
    std::string value = equals == std::string::npos ? "" : fields[at].substr(equals + 1);
    if (key == "user")
      start.user = static_cast<int64_t>(number(value));
    else if (key == "folder")
      start.folder = value;
    else if (key == "environment")
      start.environment.push_back(value);
    else if (key == "bytes")
      bytes = number(value);
    else if (key == "inodes")
      inodes = number(value);
    else if (key == "memory")
      memory = number(value);
    else if (key == "processes")
      processes = number(value);
    else if (key == "supervise")
      start.supervise = true;
    else if (key == "confine")
      confine = true;
    else if (key == "shared-user")
      shared_user = true;
    else if (key == "read")
      access.readable.push_back(value);
    else if (key == "write")
      access.writable.push_back(value);
    else if (key == "device")
      access.devices.push_back(value);
    else if (key == "root")
      root = value;
    else if (key == "sees")
      split(value, own);
    else
      throw std::runtime_error("unknown key " + key);
  }
  start.arguments.assign(fields.begin() + std::min(at + 1, fields.size()), fields.end());
  if (start.arguments.empty()) throw std::runtime_error("nothing to start");
  if (mounts_) resize_disk(folder + "/fs", bytes, inodes);
  bool grouped = groups_.memory() || groups_.processes();
  if (grouped) groups_.limit(slot, memory, processes);
  std::vector<Shown> shown = shown_in(own, 0, own.size());
  start.apart = !root.empty();
  const int root_file = start.apart ? roots_.at(root).get() : -1;
  start.prepare = [this, &slot, &folder, &start, &shown, grouped, root_file] {
    if (grouped) groups_.enter(slot);
    if (start.apart)
      enter_root(root_file, shown, start.user < 0);
    else if (mounts_)
      show_disk(folder + "/fs", scratch_ + "/disk", lean_.get());
  };
  // Opened here, not in the child, so that both are open once the reply is out.
  File in = open_file(folder + "/in", O_RDONLY | O_NONBLOCK), out = open_file(folder + "/out", O_WRONLY);
  File err = open_file(folder + "/err", O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
  fcntl(in.get(), F_SETFL, 0);
  start.in = in.get(), start.out = out.get(), start.err = err.get();
  File rules, extra;
  if (confine) {
    rules = File(landlock_rules(access));
    if (rules.get() < 0) fail("Landlock");
    start.rules = rules.get();
    filter_ = seccomp_program(shared_user ? Filter::kSharedUser : Filter::kSharedNetwork);
    start.filter = &filter_;
  } else if (start.apart) {
    if (filter_.empty()) filter_ = seccomp_program(Filter::kNamespaces);
    start.filter = &filter_;
  } else if (mounts_) {
    // For bubblewrap, which imposes it last.
    extra = open_file(scratch_ + "/filter", O_RDONLY);
    start.extra = extra.get();
  }
  pid_t pid = start_process(start);
  children_[pid] = {slot, start.supervise, start.apart, start.user, {}};
}

void Launcher::handle(const Fields& fields) {
  if (fields.size() < 3) return;
  const std::string &id = fields[0], &verb = fields[1], &slot = fields[2];
  try {
    if (verb == "disk") {
      disk(fields);
    } else if (verb == "drop") {
      if (mounted_.erase(slot) > 0) drop_disk(slot_folder(slot) + "/fs");
    } else if (verb == "resize") {
      if (mounts_) resize_disk(slot_folder(slot) + "/fs", number(fields.at(3)), number(fields.at(4)));
    } else if (verb == "held") {
      for (auto& [pid, child] : children_) {
        if (child.slot != slot) continue;
        reply(id, std::to_string(held_bytes(pid, child.user)));
        return;
      }
    } else if (verb == "root") {
      root(fields);
    } else if (verb == "start") {
      start(fields);
    } else if (verb == "kill") {
      bool found = false;
      for (auto& [pid, child] : children_) {
        if (child.slot != slot) continue;
        child.waiting.push_back(id);
        end(pid, child);
        found = true;
      }
      if (found) return;
      // It may be one of theirs.
      if (strays_) {
        orphaned_.push_back(id);
        return;
      }
    } else {
      throw std::runtime_error("unknown request " + verb);
    }
    reply(id, "0");
  } catch (const std::exception& error) {
    reply(id, std::string("!") + error.what());
  }
}

void Launcher::reap() {
  bool orphans = false;
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    auto child = children_.find(pid);
    if (child == children_.end()) {
      orphans = true;
      continue;
    }
    const Child& ended = child->second;
    // Others leave orphans, which come to us in the moment that they die: a supervisor that was killed, and bubblewrap,
    // whose child is the last of its sandbox to go.
    const bool last = ended.first || (ended.supervised && !WIFSIGNALED(status));
    orphans = orphans || !last;
    if (last) {
      for (const auto& id : ended.waiting) reply(id, "0");
    } else {
      orphaned_.insert(orphaned_.end(), ended.waiting.begin(), ended.waiting.end());
    }
    children_.erase(child);
  }
  if (!orphans) return;
  strays_ = kill_strays([this](pid_t pid) { return children_.count(pid) > 0; });
  if (strays_) return;
  for (const auto& id : std::exchange(orphaned_, {})) reply(id, "0");
}

int Launcher::serve() {
  if (mounts_) {
    auto program = seccomp_program(Filter::kNamespaces);
    File file = open_file(scratch_ + "/filter", O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW);
    ssize_t size = static_cast<ssize_t>(program.size() * sizeof program[0]);
    if (write(file.get(), program.data(), size) != size) fail(scratch_ + "/filter");
  }
  // What is left of a sandbox comes to us, not to a host's init that may be in no hurry: the dead count as processes
  // too.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, nullptr);
  File signals(signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
  reply("0", std::string(groups_.memory() ? "memory " : "") + (groups_.processes() ? "processes" : ""));
  std::string input;
  for (bool open = true; open;) {
    pollfd wait[] = {{STDIN_FILENO, POLLIN, 0}, {signals.get(), POLLIN, 0}};
    if (poll(wait, 2, -1) < 0 && errno != EINTR) break;
    if (wait[1].revents) {
      signalfd_siginfo told;
      while (read(signals.get(), &told, sizeof told) > 0) {
      }
      reap();
    }
    if (!wait[0].revents) continue;
    char buffer[65536];
    ssize_t count = read(STDIN_FILENO, buffer, sizeof buffer);
    open = count > 0;
    if (open) input.append(buffer, count);
    // Whole requests only: as many fields as the first says.
    for (size_t begin = 0;;) {
      Fields fields;
      size_t at = begin;
      uint64_t wanted = 0;
      for (size_t end; fields.size() <= wanted && (end = input.find('\0', at)) != std::string::npos; at = end + 1) {
        fields.push_back(input.substr(at, end - at));
        if (fields.size() == 1) wanted = number(fields[0]);
      }
      if (fields.size() <= wanted || fields.empty()) {
        input.erase(0, begin);
        break;
      }
      fields.erase(fields.begin());
      handle(fields);
      begin = at;
    }
  }
  for (auto& [pid, one] : children_) end(pid, one);
  for (auto& [pid, one] : children_) waitpid(pid, nullptr, 0);
  if (mounts_) {
    while (waitpid(-1, nullptr, 0) > 0) {
    }
  } else {
    kill_strays([](pid_t) { return false; });
  }
  return 0;
}

int main(int argc, char** argv) {
  std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "landlock") {
    printf("%d\n", landlock_version());
    return 0;
  }
  if (argc != 3 || (mode != "mounts" && mode != "plain")) {
    fprintf(stderr, "usage: tokenring_sandbox landlock | mounts SCRATCH | plain SCRATCH\n");
    return 2;
  }
  // What the host itself was started with must not reach a sandbox.
  syscall(SYS_close_range, 3, ~0u, 0);
  // The host's interrupt is not for us: it says what to do.
  for (int signal : {SIGPIPE, SIGINT, SIGTERM, SIGHUP}) ::signal(signal, SIG_IGN);
  try {
    if (mode == "mounts") enter_mount_namespace();
    return Launcher(argv[2], mode == "mounts").serve();
  } catch (const std::exception& error) {
    printf("0 !%s\n", error.what());
    return 1;
  }
}

}  // namespace
}  // namespace tokenring::sandbox

int main(int argc, char** argv) { return tokenring::sandbox::main(argc, argv); }
