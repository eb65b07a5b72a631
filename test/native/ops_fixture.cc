#include "ops_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>

#include "harness.h"

namespace fixture {

namespace {

// Sets TOKENRING_ISA while it lives.
class ForcedIsa {
 public:
  explicit ForcedIsa(const std::string& isa) {
    const char* before = std::getenv("TOKENRING_ISA");
    was_set_ = before != nullptr;
    if (before) before_ = before;
    setenv("TOKENRING_ISA", isa.c_str(), 1);
  }
  ~ForcedIsa() {
    if (was_set_)
      setenv("TOKENRING_ISA", before_.c_str(), 1);
    else
      unsetenv("TOKENRING_ISA");
  }

 private:
  bool was_set_ = false;
  std::string before_;
};

std::unique_ptr<Device> make(const std::string& isa, int threads, Precision precision) {
  if (isa.empty()) return tokenring::make_cpu_device(threads, precision);
  const ForcedIsa forced(isa);
  return tokenring::make_cpu_device(threads, precision);
}

std::vector<std::string> find_isas(Precision precision) {
  std::vector<std::string> list;
  for (const char* isa : {"amx", "avx512", "avx2", "scalar"}) {
    if (isa == std::string("amx") && precision != Precision::bf16) continue;
    try {
      device(isa, 1, precision);
      list.push_back(isa);
    } catch (const tokenring::Failure&) {
      std::cout << "  (this CPU has no " << isa << ")\n";
    }
  }
  return list;
}

}  // namespace

Device& device(const std::string& isa, int threads, Precision precision) {
  static std::map<std::tuple<std::string, int, Precision>, std::unique_ptr<Device>> devices;
  static std::mutex mutex;  // ranks that are threads ask at once
  const std::lock_guard lock(mutex);
  std::unique_ptr<Device>& d = devices[{isa, threads, precision}];
  if (!d) d = make(isa, threads, precision);
  return *d;
}

const std::vector<std::string>& isas(Precision precision) {
  static const std::vector<std::string> plain = find_isas(Precision::float32), bf16 = find_isas(Precision::bf16);
  return precision == Precision::bf16 ? bf16 : plain;
}

std::vector<float> random_floats(size_t n, uint64_t seed, float low, float high) {
  Random random(seed);
  std::vector<float> values(n);
  for (float& v : values) v = random.uniform(low, high);
  return values;
}

std::vector<int32_t> random_ids(size_t n, uint64_t seed, int bound) {
  Random random(seed);
  std::vector<int32_t> values(n);
  for (int32_t& v : values) v = random.below(bound);
  return values;
}

Bench::~Bench() {
  try {
    stream_->synchronize();
  } catch (const tokenring::Failure&) {
    // The test that caused it has seen it or failed; here only the queue must be empty before memory goes.
  }
}

Tensor Bench::f32(std::initializer_list<int64_t> shape, const std::vector<float>& values) {
  Tensor t = f32(shape);
  if (static_cast<int64_t>(values.size()) != t.elements())
    tokenring::fail("INVALID_ARGUMENT", values.size(), " values for ", t.elements(), " elements");
  std::copy(values.begin(), values.end(), t.f32());
  return t;
}

Tensor Bench::f32(std::initializer_list<int64_t> shape) {
  Tensor t = tokenring::tensor(nullptr, DType::f32, shape);
  buffers_.emplace_back(device_, t.bytes());
  t.data = buffers_.back().data();
  std::fill_n(t.f32(), t.elements(), std::numeric_limits<float>::quiet_NaN());
  return t;
}

Tensor Bench::i32(std::initializer_list<int64_t> shape, const std::vector<int32_t>& values) {
  Tensor t = i32(shape);
  std::copy(values.begin(), values.end(), t.i32());
  return t;
}

Tensor Bench::i32(std::initializer_list<int64_t> shape) {
  Tensor t = tokenring::tensor(nullptr, DType::i32, shape);
  buffers_.emplace_back(device_, t.bytes());
  t.data = buffers_.back().data();
  std::fill_n(t.i32(), t.elements(), -1);
  return t;
}

Tensor Bench::bytes(size_t n) {
  Tensor t = tokenring::tensor(nullptr, DType::u8, {static_cast<int64_t>(n)});
  buffers_.emplace_back(device_, n);
  t.data = buffers_.back().data();
  if (n > 0) std::memset(t.data, 0xff, n);  // as float32: NaN
  return t;
}

tokenring::Weight Bench::weight(const std::vector<float>& master, int64_t n, int64_t k) {
  const Tensor rows = f32({n, k}, master);
  const tokenring::Weight w{n, k, bytes(ops().weight_bytes(n, k)).data};
  ops().prepare_weight(stream(), rows, w);
  return w;
}

std::vector<float> Bench::read(const Tensor& t) {
  std::vector<float> values(static_cast<size_t>(t.elements()));
  if (!values.empty()) stream().copy_to_host(values.data(), t.data, t.bytes());
  stream().synchronize();
  return values;
}

std::vector<int32_t> Bench::read_ids(const Tensor& t) {
  std::vector<int32_t> values(static_cast<size_t>(t.elements()));
  if (!values.empty()) stream().copy_to_host(values.data(), t.data, t.bytes());
  stream().synchronize();
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

double error(const std::vector<float>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double scale = 1.0, worst = 0.0;
  for (double x : b) scale = std::max(scale, std::abs(x));
  for (size_t i = 0; i < a.size(); ++i) {
    const double e = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(e <= worst)) worst = e;  // NaN stays
    if (std::isnan(worst)) return std::numeric_limits<double>::infinity();
  }
  return worst / scale;
}

void same_everywhere(const char* what, const std::function<std::vector<float>(Bench&)>& work, Precision precision) {
  std::vector<float> expected;
  for (const std::string& isa : isas(precision))
    for (int threads : {1, 2}) {
      Bench bench(isa, threads, precision);
      const std::vector<float> got = work(bench);
      if (expected.empty()) {
        expected = got;
      } else if (!same_bits(expected, got)) {
        size_t at = 0;
        while (at < got.size() && std::memcmp(&got[at], &expected[at], sizeof(float)) == 0) ++at;
        harness::report(__FILE__, __LINE__, what, " differs with ", isa, " and ", threads, " threads at ", at, ": ",
                        got[at], " against ", expected[at]);
      }
    }
}

}  // namespace fixture
