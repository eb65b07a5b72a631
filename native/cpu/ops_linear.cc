// Linear layers and the rows around them: embedding, gather, scatter.
#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "cpu/ops.h"
#include "cpu/stream.h"

namespace tokenring::cpu {
namespace {

int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// The two layouts inside a Weight. Columns of W^T serve the forward product, columns of W the backward one.
struct Panels {
  float* forward;   // [ceil(n / 32)][k][32], zero beyond n
  float* backward;  // [ceil(k / 32)][n][32], zero beyond k
};

Panels panels_of(const Weight& w) {
  float* data = static_cast<float*>(w.data);
  return {data, data + panels(w.n) * kPanel * w.k};
}

void check_weight(const char* op, const Weight& w) {
  require(w.data && w.n > 0 && w.k > 0, op, ": the weight [", w.n, ", ", w.k, "] has no memory or no size");
}

// The block of C that one task computes; the choice does not change a bit of the result.
struct Blocks {
  int64_t rows, cols, across, count;
};

Blocks blocks_of_size(int64_t rows, int64_t cols, int64_t r, int64_t c) {
  const int64_t across = (cols + c - 1) / c;
  return {r, c, across, (rows + r - 1) / r * across};
}

// Whether the weights come from afar, so that rows are worth copying and more columns at a time too.
bool is_large(int64_t depth) { return depth >= 2 * kPackDepth; }

// Rows of activations against a weight: small blocks, each worth some microseconds and several per thread.
Blocks row_blocks(int64_t rows, int64_t cols, int64_t depth, int threads) {
  int64_t r = std::clamp<int64_t>(rows, 1, 96), c = std::min(panels(cols), int64_t{is_large(depth) ? 16 : 4}) * kPanel;
  Blocks blocks = blocks_of_size(rows, cols, r, c);
  while (threads > 1 && blocks.count < 4 * threads && r * c * depth > 400'000) {  // multiply-adds, about 5 microseconds
    if (c > kPanel) {
      c = std::max<int64_t>(c / 2 / kPanel, 1) * kPanel;
    } else if (r > 24) {
      r = (r / 2 + 11) / 12 * 12;
    } else {
      break;
    }
    blocks = blocks_of_size(rows, cols, r, c);
  }
  return blocks;
}

// The largest weight that a block of rows reads whole, on its way from op to op: it stays in a core's second cache.
constexpr size_t kNearBytes = size_t{1} << 20;

// Gradients of a weight: large blocks, because each reads all its columns of both operands, and as even as can be.
Blocks weight_blocks(int64_t n, int64_t k, int64_t depth, int threads) {
  Blocks best = blocks_of_size(n, k, std::min(n, kPackRows), std::min(panels(k) * kPanel, kPackCols));
  const auto idle = [&](const Blocks& b) {  // share of the threads' time that is lost
    const int64_t rounds = (b.count + threads - 1) / threads;
    return 1.0 - static_cast<double>(b.count) / static_cast<double>(rounds * threads);
  };
  for (const int64_t c : {kPackCols, int64_t{128}, kPanel})
    for (int64_t parts = (n + kPackRows - 1) / kPackRows; parts <= n; ++parts) {
      const int64_t r = (n + parts - 1) / parts;
      if (idle(best) < 0.15 || r < 48 || r * c * depth < 400'000) break;
      const Blocks next = blocks_of_size(n, k, r, c);
      if (idle(next) < idle(best)) best = next;
    }
  return best;
}

}  // namespace

bool CpuOps::chains(int64_t rows, const Weight& w) const {
  const size_t bytes = static_cast<size_t>(w.n * w.k) * sizeof(float);
  return bytes <= kNearBytes && rows >= kLeastRows * pool_.free_threads();
}

size_t CpuOps::weight_bytes(int64_t n, int64_t k) const {
  require(n > 0 && k > 0, "weight_bytes: [", n, ", ", k, "] must be positive");
  return static_cast<size_t>(panels(n) * k + panels(k) * n) * kPanel * sizeof(float);
}

void CpuOps::prepare_weight(Stream& stream, Tensor master, Weight out) const {
  check_weight("prepare_weight", out);
  check("prepare_weight", "master", master, DType::f32, {out.n, out.k});
  cpu_stream(stream).enqueue([=, this] { lay_out(master.f32(), out); });
}

void CpuOps::linear_forward(Stream& stream, Tensor x, Weight w, Tensor bias, Tensor y) const {
  check_weight("linear_forward", w);
  check_matrix("linear_forward", "x", x);
  const int64_t m = x.shape[0];
  check("linear_forward", "x", x, DType::f32, {m, w.k});
  check("linear_forward", "y", y, DType::f32, {m, w.n});
  if (bias) check("linear_forward", "bias", bias, DType::f32, {w.n});
  const float* shift = bias ? bias.f32() : nullptr;
  if (!chains(m, w)) {
    cpu_stream(stream).enqueue([=, this] { multiply_forward(x.f32(), m, w, shift, y.f32()); });
    return;
  }
  rows_job(stream, m, static_cast<double>(w.n * w.k) / 80.0, {read_rows(x), write_rows(y)},
           [=, this](int64_t begin, int64_t end) {
             multiply_forward(x.f32() + begin * w.k, end - begin, w, shift, y.f32() + begin * w.n);
           });
}

void CpuOps::linear_dgrad(Stream& stream, Tensor dy, Weight w, Tensor dx, bool accumulate) const {
  check_weight("linear_dgrad", w);
  check_matrix("linear_dgrad", "dy", dy);
  const int64_t m = dy.shape[0];
  check("linear_dgrad", "dy", dy, DType::f32, {m, w.n});
  check("linear_dgrad", "dx", dx, DType::f32, {m, w.k});
  if (!chains(m, w)) {
    cpu_stream(stream).enqueue([=, this] { multiply_backward(dy.f32(), m, w, dx.f32(), accumulate); });
    return;
  }
  rows_job(stream, m, static_cast<double>(w.n * w.k) / 80.0, {read_rows(dy), write_rows(dx)},
           [=, this](int64_t begin, int64_t end) {
             multiply_backward(dy.f32() + begin * w.n, end - begin, w, dx.f32() + begin * w.k, accumulate);
           });
}

void CpuOps::linear_wgrad(Stream& stream, Tensor dy, Tensor x, Tensor dw, Tensor db) const {
  check_matrix("linear_wgrad", "dy", dy);
  check_matrix("linear_wgrad", "x", x);
  const int64_t m = dy.shape[0], n = dy.shape[1], k = x.shape[1];
  check("linear_wgrad", "x", x, DType::f32, {m, k});
  check("linear_wgrad", "dw", dw, DType::f32, {n, k});
  if (db) check("linear_wgrad", "db", db, DType::f32, {n});
  if (m == 0) return;
  cpu_stream(stream).enqueue_sum({read_all(dy), read_all(x), write_all(dw), write_all(db)}, [=, this] {
    multiply_rows(dy.f32(), x.f32(), m, n, k, dw.f32());
    if (!db) return;
    const int64_t columns = 64;
    share((n + columns - 1) / columns, static_cast<double>(m * columns) * 0.1, [&](int64_t begin, int64_t end) {
      const int64_t c = begin * columns, to = std::min(end * columns, n);
      k_.column_sum(m, to - c, dy.f32() + c, n, db.f32() + c);
    });
  });
}

void CpuOps::lay_out(const float* master, Weight out) const {
  const int64_t n = out.n, k = out.k;
  const Panels to = panels_of(out);
  share(panels(n), static_cast<double>(k * kPanel) * 0.5, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t rows = std::min(kPanel, n - p * kPanel);
      float* panel = to.forward + p * k * kPanel;
      if (rows < kPanel) std::fill_n(panel, k * kPanel, 0.0f);
      k_.transpose(rows, k, master + p * kPanel * k, k, panel, kPanel);
    }
  });
  share(panels(k), static_cast<double>(n * kPanel) * 0.1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t cols = std::min(kPanel, k - p * kPanel);
      for (int64_t i = 0; i < n; ++i) {
        float* row = to.backward + (p * n + i) * kPanel;
        std::memcpy(row, master + i * k + p * kPanel, static_cast<size_t>(cols) * sizeof(float));
        std::fill(row + cols, row + kPanel, 0.0f);
      }
    }
  });
}

void CpuOps::multiply_by_panels(const float* a, int64_t m, int64_t k, const float* panels, int64_t n, float* c,
                                bool accumulate, const float* bias) const {
  const Blocks b = row_blocks(m, n, k, pool_.free_threads());
  share(b.count, static_cast<double>(b.rows * b.cols * k) / 80.0, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / b.across * b.rows, column = i % b.across * b.cols;
      k_.gemm({.rows = std::min(b.rows, m - row),
               .cols = std::min(b.cols, n - column),
               .depth = k,
               .a = a + row * k,
               .lda = k,
               .a_transposed = false,
               .b = panels + column * k,
               .ldb = kPanel,
               .b_panel = k * kPanel,
               .c = c + row * n + column,
               .ldc = n,
               .accumulate = accumulate,
               .bias = bias ? bias + column : nullptr,
               .pack = is_large(k) ? scratch(kPackFloats) : nullptr});
    }
  });
}

void CpuOps::multiply_forward(const float* x, int64_t m, Weight w, const float* bias, float* y) const {
  multiply_by_panels(x, m, w.k, panels_of(w).forward, w.n, y, false, bias);
}

void CpuOps::multiply_backward(const float* dy, int64_t m, Weight w, float* dx, bool accumulate) const {
  multiply_by_panels(dy, m, w.n, panels_of(w).backward, w.k, dx, accumulate, nullptr);
}

void CpuOps::multiply_rows(const float* dy, const float* x, int64_t m, int64_t n, int64_t k, float* dw) const {
  const Blocks b = weight_blocks(n, k, m, pool_.free_threads());
  share(b.count, static_cast<double>(b.rows * b.cols * m) / 80.0, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / b.across * b.rows, c = i % b.across * b.cols;
      k_.gemm({.rows = std::min(b.rows, n - r),
               .cols = std::min(b.cols, k - c),
               .depth = m,
               .a = dy + r,
               .lda = n,
               .a_transposed = true,
               .b = x + c,
               .ldb = k,
               .b_panel = kPanel,
               .c = dw + r * k + c,
               .ldc = k,
               .accumulate = true,
               .bias = nullptr,
               .pack = scratch(kPackFloats)});
    }
  });
}

void CpuOps::embedding_forward(Stream& stream, Tensor tokens, Tensor table, Tensor y) const {
  check_matrix("embedding_forward", "table", table);
  check_matrix("embedding_forward", "y", y);
  const int64_t m = y.shape[0], v = table.shape[0], h = table.shape[1];
  check("embedding_forward", "tokens", tokens, DType::i32, {m});
  check("embedding_forward", "y", y, DType::f32, {m, h});
  rows_job(stream, m, static_cast<double>(h) * 0.1, {read_rows(tokens), write_rows(y)},
           [=](int64_t begin, int64_t end) {
             check_range("embedding_forward", "tokens", tokens.i32(), begin, end, v);
             for (int64_t i = begin; i < end; ++i)
               std::memcpy(y.f32() + i * h, table.f32() + tokens.i32()[i] * h, static_cast<size_t>(h) * sizeof(float));
           });
}

void CpuOps::embedding_backward(Stream& stream, Tensor tokens, Tensor dy, Tensor dtable) const {
  check_matrix("embedding_backward", "dy", dy);
  check_matrix("embedding_backward", "dtable", dtable);
  const int64_t m = dy.shape[0], v = dtable.shape[0], h = dy.shape[1];
  check("embedding_backward", "tokens", tokens, DType::i32, {m});
  check("embedding_backward", "dtable", dtable, DType::f32, {v, h});
  cpu_stream(stream).enqueue_sum({read_all(tokens), read_all(dy), write_all(dtable)}, [=, this] {
    check_range("embedding_backward", "tokens", tokens.i32(), 0, m, v);
    // Each thread has its own columns, so that every element sums its rows in order.
    const int64_t columns = 32;
    share((h + columns - 1) / columns, static_cast<double>(m) * 6.0, [&](int64_t begin, int64_t end) {
      const int64_t c = begin * columns, n = std::min(end * columns, h) - c;
      for (int64_t i = 0; i < m; ++i) k_.add(n, dy.f32() + i * h + c, dtable.f32() + tokens.i32()[i] * h + c);
    });
  });
}

void CpuOps::gather_rows(Stream& stream, Tensor x, Tensor index, Tensor y) const {
  check_matrix("gather_rows", "x", x);
  check_matrix("gather_rows", "y", y);
  const int64_t r = y.shape[0], h = x.shape[1];
  check("gather_rows", "index", index, DType::i32, {r});
  check("gather_rows", "y", y, DType::f32, {r, h});
  rows_job(stream, r, static_cast<double>(h) * 0.1, {read_all(x), read_rows(index), write_rows(y)},
           [=](int64_t begin, int64_t end) {
             check_range("gather_rows", "index", index.i32(), begin, end, x.shape[0]);
             for (int64_t i = begin; i < end; ++i)
               std::memcpy(y.f32() + i * h, x.f32() + index.i32()[i] * h, static_cast<size_t>(h) * sizeof(float));
           });
}

void CpuOps::scatter_rows_add(Stream& stream, Tensor y, Tensor index, Tensor x) const {
  check_matrix("scatter_rows_add", "x", x);
  check_matrix("scatter_rows_add", "y", y);
  const int64_t r = y.shape[0], h = x.shape[1];
  check("scatter_rows_add", "index", index, DType::i32, {r});
  check("scatter_rows_add", "y", y, DType::f32, {r, h});
  rows_job(stream, r, static_cast<double>(h) * 0.2, {read_rows(y), read_rows(index), write_all(x)},
           [=, this](int64_t begin, int64_t end) {
             check_range("scatter_rows_add", "index", index.i32(), begin, end, x.shape[0]);
             for (int64_t i = begin; i < end; ++i) k_.add(h, y.f32() + i * h, x.f32() + index.i32()[i] * h);
           });
}

}  // namespace tokenring::cpu
