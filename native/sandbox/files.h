// Small files and folders, with errors as exceptions that name the path.
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include <string>

namespace tokenring::sandbox {

// Throws std::runtime_error "what: reason of errno".
[[noreturn]] void fail(const std::string& what);

// The text of a file; "" where it cannot be read.
std::string read_text(const std::string& path);
// False with errno where not all could be written.
bool write_text(const std::string& path, const std::string& text);
// A folder that may exist already, with these rights; `owner` < 0 leaves its owner.
void make_folder(const std::string& path, mode_t mode, int64_t owner);

}  // namespace tokenring::sandbox
