// A small test harness: TEST(name) { CHECK(...); CHECK_NEAR(a, b, tolerance); CHECK_FAILS(code, statement); }
// A failed check is printed with its place and the test goes on; an exception ends the test as failed.
#pragma once

#include <cmath>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "core/failure.h"

namespace harness {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// Failed checks of the running test. Only the first ten are printed: one wrong kernel fails thousands.
inline int& failures() {
  static int count = 0;
  return count;
}

template <class... Parts>
void report(const char* file, int line, const Parts&... parts) {
  if (++failures() > 10) return;
  std::ostringstream text;
  (text << ... << parts);
  std::cout << "  " << file << ":" << line << ": " << text.str() << "\n";
}

// A NaN is near nothing.
inline bool near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

}  // namespace harness

#define TEST(name)                                                            \
  static void test_##name();                                                  \
  static const harness::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) harness::report(__FILE__, __LINE__, "not so: " #condition); \
  } while (0)

// Further arguments say which case it was.
#define CHECK_NEAR(a, b, tolerance, ...)                                               \
  do {                                                                                 \
    const double near_a = (a), near_b = (b), near_t = (tolerance);                     \
    if (!harness::near(near_a, near_b, near_t))                                        \
      harness::report(__FILE__, __LINE__, #a " is ", near_a, ", not ", near_b, " +- ", \
                      near_t __VA_OPT__(, " ", ) __VA_ARGS__);                         \
  } while (0)

// The statement throws a Failure of this code.
#define CHECK_FAILS(expected, statement)                                                                         \
  do {                                                                                                           \
    std::string got = "nothing";                                                                                 \
    try {                                                                                                        \
      statement;                                                                                                 \
    } catch (const tokenring::Failure& failure) {                                                                \
      got = failure.code();                                                                                      \
    }                                                                                                            \
    if (got != (expected)) harness::report(__FILE__, __LINE__, #statement " threw ", got, ", not ", (expected)); \
  } while (0)
