// Limits on memory and processes of a sandbox as a whole, where the control groups of this machine let us set them.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

namespace tokenring::sandbox {

class ControlGroups {
 public:
  // Looks for the hierarchies (version 1 or 2) in which this process may make groups, and makes one for itself in each;
  // what dead processes left there is removed.
  ControlGroups();
  ~ControlGroups();
  ControlGroups(const ControlGroups&) = delete;
  ControlGroups& operator=(const ControlGroups&) = delete;

  bool memory() const { return !memory_.folder.empty(); }
  bool processes() const { return !processes_.folder.empty(); }

  // A slot's group with these limits; made where it is not there yet. Throws.
  void limit(const std::string& slot, uint64_t memory_bytes, uint64_t processes);
  // Puts the calling process into it. Throws.
  void enter(const std::string& slot) const;

 private:
  struct Hierarchy {
    std::string folder;
    bool second = false;
  };

  static Hierarchy find(const std::string& controller);
  std::vector<std::string> folders() const;

  Hierarchy memory_;
  Hierarchy processes_;
};

}  // namespace tokenring::sandbox
