// The table of this instruction set's kernels.
#pragma once

#include "cpu/attention.inl.h"
#include "cpu/bf16_gemm.inl.h"
#include "cpu/gemm.inl.h"
#include "cpu/head.inl.h"
#include "cpu/kernels.h"
#include "cpu/rows.inl.h"

namespace tokenring {
namespace {

constexpr cpu::Kernels table_of(const char* isa) {
  return {.isa = isa,
          .gemm = gemm,
          .transpose = transpose,
          .column_sum = column_sum,
          .add = add_to,
          .attend_start = attend_start,
          .attend_resume = attend_resume,
          .attend = attend,
          .attend_finish = attend_finish,
          .attend_delta = attend_delta,
          .attend_backward = attend_backward,
          .rmsnorm = rmsnorm,
          .rmsnorm_dx = rmsnorm_dx,
          .rmsnorm_dw = rmsnorm_dw,
          .rope = rope,
          .swiglu = swiglu,
          .swiglu_backward = swiglu_backward,
          .statistics = statistics,
          .policy = policy,
          .logits_gradient = logits_gradient,
          .sample = sample,
          .sum_of_squares = sum_of_squares,
          .adamw = adamw,
          .bf16 = {.isa = isa, .pack = bf16_pack, .gemm = bf16_gemm}};
}

}  // namespace
}  // namespace tokenring
