// Kernels of the emulated GPU (module.cc).
#include "../emulator/cuda.h"
// After the emulator.
#include "../../../cuda/attention_plain.cu"
#include "../../../cuda/linear.cu"
#include "../../../cuda/sample.cu"
