// tokenring_test [part of a test's name ...]: runs the tests whose names contain any of the parts, or all.
#include <cstring>
#include <exception>

#include "harness.h"

int main(int argc, char** argv) {
  int passed = 0, failed = 0;
  for (const harness::Test& test : harness::tests()) {
    bool chosen = argc == 1;
    for (int i = 1; i < argc; ++i) chosen = chosen || std::strstr(test.name, argv[i]);
    if (!chosen) continue;
    harness::failures() = 0;
    try {
      test.run();
    } catch (const std::exception& error) {
      harness::report(__FILE__, __LINE__, "threw: ", error.what());
    }
    if (harness::failures() == 0) {
      ++passed;
    } else {
      ++failed;
      std::cout << "FAILED " << test.name << " (" << harness::failures() << " checks)\n";
    }
  }
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? 0 : 1;
}
