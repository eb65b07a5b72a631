// Linear layers on bf16 operands, see cpu/bf16.h. Inputs are rounded where they are used; weights once, in lay_out().
//
// Rows of forward and dgrad depend on themselves alone, in an order that is fixed. wgrad sums the rows in blocks of 32
// from the first one of each call on, so a cut of the batch at no multiple of 32 rows changes its last bits.
#include <algorithm>

#include "cpu/ops.h"

namespace tokenring::cpu {
namespace {

// The two layouts inside a Weight: W^T for the forward product, W for the backward one, both as B.
struct Tiles {
  uint16_t* forward;   // lines n, depth k
  uint16_t* backward;  // lines k, depth n
};

int64_t tiles_elements(int64_t lines, int64_t depth) { return line_tiles(lines) * depth_tiles(depth) * kTileElements; }

Tiles tiles_of(const Weight& w) {
  uint16_t* data = static_cast<uint16_t*>(w.data);
  return {data, data + tiles_elements(w.n, w.k)};
}

// Rows and depth that a task lays out at a time: half a megabyte, which stays in the second cache.
constexpr int64_t kBlockRows = 256, kBlockDepth = 1024;
// Rows of dW that are laid out at a time, for all threads.
constexpr int64_t kGradientRows = 4096;

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows and columns of one task: all columns, where there are rows enough for every thread.
struct Cut {
  int64_t rows, cols, across, count;
};
Cut cut_of(int64_t rows, int64_t cols, int threads) {
  if (rows == 0) return {1, cols, 1, 0};
  const int64_t r = std::clamp<int64_t>(rounded_up((rows + 2 * threads - 1) / (2 * threads), 32), 32, kBlockRows);
  const int64_t down = (rows + r - 1) / r;
  const int64_t parts = std::clamp<int64_t>(4 * threads / down, 1, (cols + 63) / 64);
  const int64_t c = rounded_up((cols + parts - 1) / parts, 32), across = (cols + c - 1) / c;
  return {r, c, across, down * across};
}

double nanoseconds(int64_t rows, int64_t cols, int64_t depth) {
  return static_cast<double>(std::min<int64_t>(rounded_up(rows, 16), rows + 4) * cols * depth) / 500.0;
}

}  // namespace

size_t Bf16Ops::weight_bytes(int64_t n, int64_t k) const {
  require(n > 0 && k > 0, "weight_bytes: [", n, ", ", k, "] must be positive");
  return static_cast<size_t>(tiles_elements(n, k) + tiles_elements(k, n)) * sizeof(uint16_t);
}

void Bf16Ops::lay_out(const float* master, Weight out) const {
  const int64_t n = out.n, k = out.k;
  const Tiles to = tiles_of(out);
  const int64_t forward = depth_tiles(k) * kTileElements, backward = depth_tiles(n) * kTileElements;
  share(line_tiles(n), static_cast<double>(k * kTileLines) * 0.3, [&](int64_t begin, int64_t end) {
    const int64_t at = begin * kTileLines;
    b_.pack({.from = master + at * k,
             .ld = k,
             .lines = std::min(n, end * kTileLines) - at,
             .depth = k,
             .by_line = true,
             .for_b = true,
             .to = to.forward + begin * forward,
             .tile_row = forward});
  });
  share(line_tiles(k), static_cast<double>(n * kTileLines) * 0.3, [&](int64_t begin, int64_t end) {
    const int64_t at = begin * kTileLines;
    b_.pack({.from = master + at,
             .ld = k,
             .lines = std::min(k, end * kTileLines) - at,
             .depth = n,
             .by_line = false,
             .for_b = true,
             .to = to.backward + begin * backward,
             .tile_row = backward});
  });
}

void Bf16Ops::multiply_by_tiles(const float* a, int64_t m, int64_t k, const uint16_t* tiles, int64_t n, float* c,
                                bool accumulate, const float* bias) const {
  const Cut cut = cut_of(m, n, pool_.free_threads());
  const int64_t b_row = depth_tiles(k) * kTileElements;
  share(cut.count, nanoseconds(std::min(m, cut.rows), cut.cols, k), [&](int64_t begin, int64_t end) {
    uint16_t* packed = reinterpret_cast<uint16_t*>(scratch(kBlockRows * kBlockDepth / 2));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / cut.across * cut.rows, column = i % cut.across * cut.cols;
      const int64_t rows = std::min(cut.rows, m - row);
      for (int64_t d = 0; d < k; d += kBlockDepth) {
        const int64_t depth = std::min(kBlockDepth, k - d), a_row = depth_tiles(depth) * kTileElements;
        b_.pack({.from = a + row * k + d,
                 .ld = k,
                 .lines = rows,
                 .depth = depth,
                 .by_line = true,
                 .for_b = false,
                 .to = packed,
                 .tile_row = a_row});
        b_.gemm({.rows = rows,
                 .cols = std::min(cut.cols, n - column),
                 .depth_tiles = depth_tiles(depth),
                 .a = packed,
                 .a_row = a_row,
                 .b = tiles + column / kTileLines * b_row + d / kTileDepth * kTileElements,
                 .b_row = b_row,
                 .c = c + row * n + column,
                 .ldc = n,
                 .accumulate = accumulate || d > 0,
                 .bias = bias && d + depth == k ? bias + column : nullptr});
      }
    }
  });
}

void Bf16Ops::multiply_forward(const float* x, int64_t m, Weight w, const float* bias, float* y) const {
  multiply_by_tiles(x, m, w.k, tiles_of(w).forward, w.n, y, false, bias);
}

void Bf16Ops::multiply_backward(const float* dy, int64_t m, Weight w, float* dx, bool accumulate) const {
  multiply_by_tiles(dy, m, w.n, tiles_of(w).backward, w.k, dx, accumulate, nullptr);
}

void Bf16Ops::multiply_rows(const float* dy, const float* x, int64_t m, int64_t n, int64_t k, float* dw) const {
  const int64_t rows = std::min(n, kGradientRows), most = depth_tiles(std::min(m, kBlockDepth)) * kTileElements;
  uint16_t* b = reinterpret_cast<uint16_t*>(staging((line_tiles(k) + line_tiles(rows)) * most / 2));
  uint16_t* a = b + line_tiles(k) * most;
  // The rows [from, to) of the batch as lines of `cols` columns.
  const auto pack = [&](const float* from, int64_t ld, int64_t cols, int64_t depth, bool for_b, uint16_t* to) {
    const int64_t tile_row = depth_tiles(depth) * kTileElements;
    share(line_tiles(cols), static_cast<double>(depth * kTileLines) * 0.3, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * kTileLines;
      b_.pack({.from = from + at,
               .ld = ld,
               .lines = std::min(cols, end * kTileLines) - at,
               .depth = depth,
               .by_line = false,
               .for_b = for_b,
               .to = to + begin * tile_row,
               .tile_row = tile_row});
    });
  };
  for (int64_t d = 0; d < m; d += kBlockDepth) {
    const int64_t depth = std::min(kBlockDepth, m - d), tile_row = depth_tiles(depth) * kTileElements;
    pack(x + d * k, k, k, depth, true, b);
    for (int64_t r = 0; r < n; r += rows) {
      const int64_t lines = std::min(rows, n - r);
      pack(dy + d * n + r, n, lines, depth, false, a);
      const Cut cut = cut_of(lines, k, pool_.free_threads());
      share(cut.count, nanoseconds(cut.rows, cut.cols, depth), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / cut.across * cut.rows, column = i % cut.across * cut.cols;
          b_.gemm({.rows = std::min(cut.rows, lines - row),
                   .cols = std::min(cut.cols, k - column),
                   .depth_tiles = depth_tiles(depth),
                   .a = a + row / kTileLines * tile_row,
                   .a_row = tile_row,
                   .b = b + column / kTileLines * tile_row,
                   .b_row = tile_row,
                   .c = dw + (r + row) * k + column,
                   .ldc = k,
                   .accumulate = true,
                   .bias = nullptr});
        }
      });
    }
  }
}

}  // namespace tokenring::cpu
