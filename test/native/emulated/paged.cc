// Kernels of the emulated GPU (module.cc).
#include "../emulator/cuda.h"
// After the emulator.
#include "../../../cuda/attention_paged.cu"
