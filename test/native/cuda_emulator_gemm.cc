// The emulator's cuBLASLt: see emulator/runtime.h.
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "core/convert.h"
#include "core/failure.h"
#include "emulator/engine.h"
#include "emulator/ptx.h"
#include "emulator/streams.h"

namespace emulator {
namespace {

using namespace tokenring::cuda;

struct MatrixOf {
  int type;
  int64_t rows, columns, leading;
};
struct OperationOf {
  int compute, scale;
  int32_t transpose[2] = {0, 0};
  uint32_t epilogue = 1;  // none
  const void* bias = nullptr;
};
struct PreferenceOf {
  std::map<int, uint64_t> values;
};

template <class T>
T* cast(lt::Opaque* p) {
  return reinterpret_cast<T*>(p);
}
template <class T>
int give(lt::Opaque** to, T* made) {
  *to = reinterpret_cast<lt::Opaque*>(made);
  return 0;
}
template <class T>
int destroy(lt::Opaque* p) {
  delete cast<T>(p);
  return 0;
}

// Rows and columns of an operand after its transposition.
std::pair<int64_t, int64_t> shape(const MatrixOf& m, bool transposed) {
  return transposed ? std::pair{m.columns, m.rows} : std::pair{m.rows, m.columns};
}

bool goes_together(const OperationOf& op, const MatrixOf& a, const MatrixOf& b, const MatrixOf& c) {
  const auto [m, k] = shape(a, op.transpose[0]);
  const auto [k2, n] = shape(b, op.transpose[1]);
  const auto right = [](const MatrixOf& x) { return x.leading >= x.rows && x.rows > 0 && x.columns > 0; };
  return (op.epilogue == 1 || op.epilogue == lt::kAddBias) && op.compute == lt::kCompute32 &&
         op.scale == lt::kFloat32 && a.type == lt::kBf16 && b.type == lt::kBf16 &&
         (c.type == lt::kBf16 || c.type == lt::kFloat32) && k == k2 && c.rows == m && c.columns == n && right(a) &&
         right(b) && right(c);
}

size_t bytes_of(const MatrixOf& x) {
  const int64_t elements = (x.columns - 1) * x.leading + x.rows;
  return static_cast<size_t>(elements) * (x.type == lt::kBf16 ? 2 : 4);
}

double element(const MatrixOf& x, const void* data, int64_t row, int64_t column) {
  const int64_t at = column * x.leading + row;
  if (x.type == lt::kFloat32) return static_cast<const float*>(data)[at];
  return tokenring::f32_of_bf16(static_cast<const uint16_t*>(data)[at]);
}

void multiply(const OperationOf& op, const MatrixOf& a, const void* a_data, const MatrixOf& b, const void* b_data,
              const MatrixOf& c, void* c_data, float beta) {
  const auto [m, k] = shape(a, op.transpose[0]);
  const int64_t n = c.columns;
  // Both with the sum's index running fastest.
  std::vector<double> left(static_cast<size_t>(m * k)), right(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t p = 0; p < k; ++p)
      left[i * k + p] = op.transpose[0] ? element(a, a_data, p, i) : element(a, a_data, i, p);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t p = 0; p < k; ++p)
      right[j * k + p] = op.transpose[1] ? element(b, b_data, j, p) : element(b, b_data, p, j);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += left[i * k + p] * right[j * k + p];
      if (op.epilogue == lt::kAddBias) sum += element({c.type, m, 1, m}, op.bias, i, 0);
      if (beta != 0) sum += static_cast<double>(beta) * element(c, c_data, i, j);
      const int64_t at = j * c.leading + i;
      if (c.type == lt::kFloat32)
        static_cast<float*>(c_data)[at] = static_cast<float>(sum);
      else
        static_cast<uint16_t*>(c_data)[at] = tokenring::bf16_of_f32(static_cast<float>(sum));
    }
}

}  // namespace

lt::Library make_library() {
  return {
      .GetVersion = []() -> size_t { return 130000; },
      .Create = [](lt::Handle* handle) { return give(handle, new int(0)); },
      .MatmulDescCreate =
          [](lt::Operation* op, int compute, int scale) {
            return give(op, new OperationOf{compute, scale});
          },
      .MatmulDescDestroy = [](lt::Operation op) { return destroy<OperationOf>(op); },
      .MatmulDescSetAttribute = [](lt::Operation op, int attribute, const void* value, size_t bytes) -> int {
        OperationOf& of = *cast<OperationOf>(op);
        const auto take = [&](auto& to) {
          if (bytes != sizeof(to)) return 7;
          std::memcpy(&to, value, bytes);
          return 0;
        };
        switch (attribute) {
          case lt::kTransposeA:
          case lt::kTransposeB:
            return take(of.transpose[attribute - lt::kTransposeA]);
          case lt::kEpilogue:
            return take(of.epilogue);
          case lt::kBiasPointer:
            return take(of.bias);
          default:
            return 7;
        }
      },
      .MatrixLayoutCreate =
          [](lt::Layout* layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
            return give(layout, new MatrixOf{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), leading});
          },
      .MatrixLayoutDestroy = [](lt::Layout layout) { return destroy<MatrixOf>(layout); },
      .MatmulPreferenceCreate = [](lt::Preference* preference) { return give(preference, new PreferenceOf); },
      .MatmulPreferenceDestroy = [](lt::Preference preference) { return destroy<PreferenceOf>(preference); },
      .MatmulPreferenceSetAttribute = [](lt::Preference preference, int attribute, const void* value,
                                         size_t bytes) -> int {
        if (bytes != (attribute == lt::kWorkspaceBytes ? 8u : 4u)) return 7;
        std::memcpy(&cast<PreferenceOf>(preference)->values[attribute], value, bytes);
        return 0;
      },
      // The algorithm holds what was promised of the operands: their alignment and the workspace.
      .MatmulAlgoGetHeuristic = [](lt::Handle, lt::Operation op, lt::Layout a, lt::Layout b, lt::Layout c, lt::Layout d,
                                   lt::Preference preference, int, lt::Heuristic* results, int* found) -> int {
        if (c != d ||
            !goes_together(*cast<OperationOf>(op), *cast<MatrixOf>(a), *cast<MatrixOf>(b), *cast<MatrixOf>(c)))
          return 15;
        std::map<int, uint64_t>& wishes = cast<PreferenceOf>(preference)->values;
        *results = {};
        for (int i = 0; i < 3; ++i) results->algorithm.data[i] = wishes[lt::kAlignmentA + i];
        results->workspace = results->algorithm.data[3] = wishes[lt::kWorkspaceBytes];
        *found = 1;
        return 0;
      },
      .Matmul = [](lt::Handle, lt::Operation op, const void* alpha, const void* a, lt::Layout of_a, const void* b,
                   lt::Layout of_b, const void* beta, const void* c, lt::Layout of_c, void* d, lt::Layout of_d,
                   const lt::Algorithm* algorithm, void* workspace, size_t bytes, CudaStream stream) -> int {
        const OperationOf operation = *cast<OperationOf>(op);
        const MatrixOf ma = *cast<MatrixOf>(of_a), mb = *cast<MatrixOf>(of_b), mc = *cast<MatrixOf>(of_c);
        const auto aligned = [&](const void* p, int i) {
          return algorithm->data[i] > 0 && reinterpret_cast<uintptr_t>(p) % algorithm->data[i] == 0;
        };
        if (*static_cast<const float*>(alpha) != 1.0f || c != d || of_c != of_d || !aligned(a, 0) || !aligned(b, 1) ||
            !aligned(d, 2) || bytes < algorithm->data[3] || !goes_together(operation, ma, mb, mc))
          return 7;
        const Turn turn(world_of(stream));
        ++world->counts.products;
        try {
          if (!in_device_memory(a, bytes_of(ma)) || !in_device_memory(b, bytes_of(mb)) ||
              !in_device_memory(d, bytes_of(mc)) ||
              (operation.epilogue == lt::kAddBias &&
               !in_device_memory(operation.bias, bytes_of({mc.type, mc.rows, 1, mc.rows}))) ||
              !in_device_memory(workspace, bytes))
            return 7;
        } catch (const tokenring::Failure& failure) {
          world->fault = failure.code() + ": a product of " + failure.what();
          return 7;
        }
        const float scale = *static_cast<const float*>(beta);
        push(stream_of(stream), {nullptr, [=] { multiply(operation, ma, a, mb, b, mc, d, scale); }});
        return 0;
      },
  };
}

}  // namespace emulator
