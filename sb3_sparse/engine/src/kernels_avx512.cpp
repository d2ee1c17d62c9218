#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#define KERNEL_NAME "avx512"
#define KERNEL_TABLE avx512_kernels
#include "kernels.inc.h"
