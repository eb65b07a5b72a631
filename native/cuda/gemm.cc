#include "cuda/gemm.h"

#include "core/failure.h"

namespace tokenring::cuda {
namespace {

// Batches come in ever new lengths; a plan is some hundred bytes.
constexpr size_t kMostPlans = 4096;

int64_t alignment(const void* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<int64_t>(address & -address);
}

}  // namespace

Gemm::Gemm(const lt::Library& library) : lt_(library) {
  const int status = lt_.Create(&handle_);
  if (status) fail("INTERNAL", "cuBLASLt did not start (cublasLtCreate returned ", status, "); look at nvidia-smi");
}

// The handle is left: at the end of the process the driver may be gone before it.
Gemm::~Gemm() {
  for (auto& [key, plan] : plans_) drop(plan);
}

void Gemm::check(int status, const char* call, const Product& p) const {
  if (status)
    fail("INTERNAL", "cublasLt", call, " returned ", status, " for a product of ", p.m, " x ", p.n, " x ", p.k, " in ",
         name_of(p.type));
}

void Gemm::drop(Plan& plan) {
  if (plan.operation) lt_.MatmulDescDestroy(plan.operation);
  for (lt::Layout layout : {plan.a, plan.b, plan.c})
    if (layout) lt_.MatrixLayoutDestroy(layout);
}

void Gemm::set(const Plan& plan, int attribute, const void* value, size_t bytes, const Product& p) const {
  check(lt_.MatmulDescSetAttribute(plan.operation, attribute, value, bytes), "MatmulDescSetAttribute", p);
}

// cuBLASLt's matrices are column-major, so it is given C^T = op(B)^T op(A)^T: its A is our B, as it lies in memory.
Gemm::Plan Gemm::make(const Product& p, const Key& key) {
  Plan plan;
  lt::Preference preference = nullptr;
  try {
    check(lt_.MatmulDescCreate(&plan.operation, lt::kCompute32, lt::kFloat32), "MatmulDescCreate", p);
    const auto transpose = [&](int attribute, bool yes) {
      const int32_t value = yes ? lt::kTransposed : 0;
      set(plan, attribute, &value, sizeof(value), p);
    };
    transpose(lt::kTransposeA, p.transpose_b);
    transpose(lt::kTransposeB, p.transpose_a);
    if (p.bias) {  // along the rows of C^T
      set(plan, lt::kEpilogue, &lt::kAddBias, sizeof(lt::kAddBias), p);
      set(plan, lt::kBiasPointer, &p.bias, sizeof(p.bias), p);
    }
    const auto layout = [&](lt::Layout& to, int type, int64_t rows, int64_t columns) {
      check(lt_.MatrixLayoutCreate(&to, type, static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), columns),
            "MatrixLayoutCreate", p);
    };
    layout(plan.a, lt::kBf16, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n);
    layout(plan.b, lt::kBf16, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k);
    layout(plan.c, p.type == DType::f32 ? lt::kFloat32 : lt::kBf16, p.m, p.n);

    check(lt_.MatmulPreferenceCreate(&preference), "MatmulPreferenceCreate", p);
    const auto prefer = [&](int attribute, auto value) {
      check(lt_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
            "MatmulPreferenceSetAttribute", p);
    };
    prefer(lt::kWorkspaceBytes, uint64_t{kWorkspace});
    prefer(lt::kReductions, lt::kReduceInWorkspace);
    prefer(lt::kAlignmentA, static_cast<uint32_t>(key[9]));
    prefer(lt::kAlignmentB, static_cast<uint32_t>(key[8]));
    prefer(lt::kAlignmentC, static_cast<uint32_t>(key[10]));
    prefer(lt::kAlignmentD, static_cast<uint32_t>(key[10]));
    lt::Heuristic best{};
    int found = 0;
    check(lt_.MatmulAlgoGetHeuristic(handle_, plan.operation, plan.a, plan.b, plan.c, plan.c, preference, 1, &best,
                                     &found),
          "MatmulAlgoGetHeuristic", p);
    check(found == 1 ? best.status : -1, "MatmulAlgoGetHeuristic", p);
    plan.algorithm = best.algorithm;
  } catch (...) {
    if (preference) lt_.MatmulPreferenceDestroy(preference);
    drop(plan);
    throw;
  }
  lt_.MatmulPreferenceDestroy(preference);
  return plan;
}

void Gemm::multiply(CudaStream stream, const Product& p, void* workspace) {
  if (p.m == 0 || p.n == 0 || p.k == 0) return;
  const Key key{p.m,
                p.n,
                p.k,
                p.transpose_a,
                p.transpose_b,
                p.type == DType::f32,
                p.accumulate,
                p.bias != nullptr,
                alignment(p.a),
                alignment(p.b),
                alignment(p.c)};
  std::lock_guard lock(mutex_);
  auto at = plans_.find(key);
  if (at == plans_.end()) {
    if (plans_.size() >= kMostPlans) {
      for (auto& [old, plan] : plans_) drop(plan);
      plans_.clear();
    }
    at = plans_.emplace(key, make(p, key)).first;
  }
  const Plan& plan = at->second;
  if (p.bias) set(plan, lt::kBiasPointer, &p.bias, sizeof(p.bias), p);
  const float one = 1.0f, beta = p.accumulate ? 1.0f : 0.0f;
  check(lt_.Matmul(handle_, plan.operation, &one, p.b, plan.a, p.a, plan.b, &beta, p.c, plan.c, p.c, plan.c,
                   &plan.algorithm, workspace, kWorkspace, stream),
        "Matmul", p);
}

}  // namespace tokenring::cuda
