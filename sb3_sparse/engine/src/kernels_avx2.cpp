#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#define KERNEL_NAME "avx2"
#define KERNEL_TABLE avx2_kernels
#include "kernels.inc.h"
