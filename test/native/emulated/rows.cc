// Kernels of the emulated GPU (module.cc).
#include "../emulator/cuda.h"
// After the emulator.
#include "../../../cuda/norm.cu"
#include "../../../cuda/rope.cu"
#include "../../../cuda/rows.cu"
#include "../../../cuda/swiglu.cu"
