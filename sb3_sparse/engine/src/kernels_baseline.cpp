// What every processor of the architecture has: SSE2 on x86-64, NEON on arm64
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#define KERNEL_NAME "baseline"
#define KERNEL_TABLE baseline_kernels
#include "kernels.inc.h"
