#include "sandbox/files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <stdexcept>

namespace tokenring::sandbox {

void fail(const std::string& what) { throw std::runtime_error(what + ": " + strerror(errno)); }

std::string read_text(const std::string& path) {
  std::string text;
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return text;
  char buffer[4096];
  for (ssize_t count; (count = read(file, buffer, sizeof buffer)) > 0;) text.append(buffer, count);
  close(file);
  return text;
}

bool write_text(const std::string& path, const std::string& text) {
  int file = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (file < 0) return false;
  ssize_t count = write(file, text.data(), text.size());
  int error = errno;
  close(file);
  errno = error;
  return count == static_cast<ssize_t>(text.size());
}

void make_folder(const std::string& path, mode_t mode, int64_t owner) {
  if (mkdir(path.c_str(), mode) != 0 && errno != EEXIST) fail("mkdir " + path);
  if (chmod(path.c_str(), mode) != 0) fail("chmod " + path);
  if (owner >= 0 && chown(path.c_str(), owner, owner) != 0) fail("chown " + path);
}

}  // namespace tokenring::sandbox
