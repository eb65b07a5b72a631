// Kernels of the emulated GPU, in the tilings of the sweep too (module.cc).
#include "../emulator/ptx.h"
// After the emulator.
#include "../../../cuda/sweep/backward.cu"
