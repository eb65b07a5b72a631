#include "comm/reduce.h"

#include <algorithm>

#include "core/convert.h"

namespace tokenring::comm {
namespace {

constexpr int64_t kBlock = 2048;  // elements that stay in the cache while the ranks pass

struct F32 {
  using Stored = float;
  using Sum = float;
  static float load(float x) { return x; }
  static float store(float x) { return x; }
};
struct Bf16 {
  using Stored = uint16_t;
  using Sum = float;
  static float load(uint16_t x) { return f32_of_bf16(x); }
  static uint16_t store(float x) { return bf16_of_f32(x); }
};
struct I32 {
  using Stored = int32_t;
  using Sum = int32_t;
  static int32_t load(int32_t x) { return x; }
  static int32_t store(int32_t x) { return x; }
};

float plus(float a, float b) { return a + b; }
int32_t plus(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }

template <class Type, class Fold>
void fold(int parts, const std::function<const void*(int)>& part, int64_t count, void* out, Fold with) {
  using Stored = typename Type::Stored;
  typename Type::Sum sum[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    for (int p = 0; p < parts; ++p) {
      const Stored* from = static_cast<const Stored*>(part(p)) + begin;
      if (p == 0) {
        for (int64_t i = 0; i < n; ++i) sum[i] = Type::load(from[i]);
      } else {
        for (int64_t i = 0; i < n; ++i) sum[i] = with(sum[i], Type::load(from[i]));
      }
    }
    Stored* to = static_cast<Stored*>(out) + begin;
    for (int64_t i = 0; i < n; ++i) to[i] = Type::store(sum[i]);
  }
}

template <class Type>
void reduce_as(Reduction how, int parts, const std::function<const void*(int)>& part, int64_t count, void* out) {
  using Sum = typename Type::Sum;
  switch (how) {
    case Reduction::sum:
      return fold<Type>(parts, part, count, out, [](Sum a, Sum b) { return plus(a, b); });
    case Reduction::max:
      return fold<Type>(parts, part, count, out, [](Sum a, Sum b) { return b > a || b != b ? b : a; });
    case Reduction::min:
      return fold<Type>(parts, part, count, out, [](Sum a, Sum b) { return b < a || b != b ? b : a; });
  }
}

}  // namespace

bool reducible(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::i32; }

const char* name_of(Reduction how) { return how == Reduction::sum ? "sum" : how == Reduction::max ? "max" : "min"; }

void reduce(Reduction how, DType dtype, int parts, const std::function<const void*(int)>& part, int64_t count,
            void* out) {
  switch (dtype) {
    case DType::f32:
      return reduce_as<F32>(how, parts, part, count, out);
    case DType::bf16:
      return reduce_as<Bf16>(how, parts, part, count, out);
    case DType::i32:
      return reduce_as<I32>(how, parts, part, count, out);
    default:
      fail("INVALID_ARGUMENT", "reduce: ", tokenring::name_of(dtype), " has no arithmetic here; use f32, bf16 or i32");
  }
}

}  // namespace tokenring::comm
