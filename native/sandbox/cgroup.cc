#include "sandbox/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sstream>

#include "sandbox/files.h"

namespace tokenring::sandbox {
namespace {

constexpr char kPrefix[] = "tokenring-";

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

bool contains(const std::string& list, const std::string& word, char separator) {
  for (const auto& part : split(list, separator)) {
    if (part == word) return true;
  }
  return false;
}

// This process's folder in the hierarchy of `controller` ("" is version 2's), or "".
std::string own_folder(const std::string& controller) {
  std::string path;
  for (const auto& line : split(read_text("/proc/self/cgroup"), '\n')) {
    size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string names = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? names.empty() : contains(names, controller, ',')) path = line.substr(second + 1);
  }
  if (path.empty()) return "";
  for (const auto& line : split(read_text("/proc/self/mountinfo"), '\n')) {
    size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    auto left = split(line.substr(0, dash), ' '), right = split(line.substr(dash + 3), ' ');
    if (left.size() < 5 || right.size() < 3) continue;
    bool fits =
        controller.empty() ? right[0] == "cgroup2" : right[0] == "cgroup" && contains(right[2], controller, ',');
    const std::string &root = left[3], &point = left[4];
    if (!fits || path.compare(0, root.size(), root) != 0) continue;
    std::string folder = point + "/" + path.substr(root.size());
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    return folder;
  }
  return "";
}

std::vector<std::string> entries(const std::string& folder) {
  std::vector<std::string> names;
  DIR* directory = opendir(folder.c_str());
  if (!directory) return names;
  while (dirent* entry = readdir(directory)) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') names.push_back(entry->d_name);
  }
  closedir(directory);
  return names;
}

void remove_group(const std::string& folder) {
  for (const auto& name : entries(folder)) rmdir((folder + "/" + name).c_str());
  rmdir(folder.c_str());
}

std::string make_group(const std::string& parent) {
  for (const auto& name : entries(parent)) {
    if (name.rfind(kPrefix, 0) != 0) continue;
    int pid = atoi(name.c_str() + sizeof kPrefix - 1);
    if (pid > 0 && kill(pid, 0) != 0 && errno == ESRCH) remove_group(parent + "/" + name);
  }
  std::string own = parent + "/" + kPrefix + std::to_string(getpid());
  return mkdir(own.c_str(), 0755) == 0 || errno == EEXIST ? own : "";
}

}  // namespace

ControlGroups::ControlGroups() : memory_(find("memory")), processes_(find("pids")) {}

ControlGroups::~ControlGroups() {
  for (const auto& folder : folders()) remove_group(folder);
}

ControlGroups::Hierarchy ControlGroups::find(const std::string& controller) {
  std::string first = own_folder(controller);
  if (!first.empty()) return {make_group(first), false};
  std::string second = own_folder("");
  if (second.empty() || !contains(split(read_text(second + "/cgroup.controllers"), '\n').empty()
                                      ? ""
                                      : split(read_text(second + "/cgroup.controllers"), '\n')[0],
                                  controller, ' ')) {
    return {};
  }
  // Version 2 lets a group that holds processes hand no controllers on; then one beside it has to do.
  for (const std::string& parent : {second, second.substr(0, second.rfind('/'))}) {
    write_text(parent + "/cgroup.subtree_control", "+" + controller);
    std::string own = make_group(parent);
    if (own.empty()) continue;
    write_text(own + "/cgroup.subtree_control", "+" + controller);
    std::string enabled = read_text(own + "/cgroup.subtree_control");
    while (!enabled.empty() && enabled.back() == '\n') enabled.pop_back();
    if (contains(enabled, controller, ' ')) return {own, true};
    rmdir(own.c_str());
  }
  return {};
}

std::vector<std::string> ControlGroups::folders() const {
  std::vector<std::string> folders;
  for (const auto* hierarchy : {&memory_, &processes_}) {
    if (hierarchy->folder.empty() || (!folders.empty() && folders[0] == hierarchy->folder)) continue;
    folders.push_back(hierarchy->folder);
  }
  return folders;
}

void ControlGroups::limit(const std::string& slot, uint64_t memory_bytes, uint64_t processes) {
  for (const auto& folder : folders()) {
    std::string own = folder + "/" + slot;
    if (mkdir(own.c_str(), 0755) != 0 && errno != EEXIST) fail("mkdir " + own);
  }
  auto set = [&](const std::string& folder, const char* file, const std::string& value, bool needed) {
    std::string path = folder + "/" + slot + "/" + file;
    if (!write_text(path, value) && needed) fail(path);
  };
  if (memory()) {
    set(memory_.folder, memory_.second ? "memory.max" : "memory.limit_in_bytes", std::to_string(memory_bytes), true);
    // Where there is no swap, or version 1 does not count it, there is no such file.
    if (memory_.second) set(memory_.folder, "memory.swap.max", "0", false);
  }
  if (this->processes()) set(processes_.folder, "pids.max", std::to_string(processes), true);
}

void ControlGroups::enter(const std::string& slot) const {
  for (const auto& folder : folders()) {
    std::string path = folder + "/" + slot + "/cgroup.procs";
    if (!write_text(path, "0")) fail(path);
  }
}

}  // namespace tokenring::sandbox
