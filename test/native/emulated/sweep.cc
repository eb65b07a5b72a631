// The list of the emulated GPU's tilings.
#include "../../../cuda/sweep/module.cu"
