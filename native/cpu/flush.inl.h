// Denormals as AMX treats them.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace tokenring {
namespace {

// While it lives, denormals count as 0, given and made.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

}  // namespace
}  // namespace tokenring
