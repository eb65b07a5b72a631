// Kernels of the emulated GPU (module.cc).
#include "../emulator/cuda.h"
// After the emulator.
#include "../../../cuda/adamw.cu"
#include "../../../cuda/loss.cu"
