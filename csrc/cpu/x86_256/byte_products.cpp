#include "cpu/byte_products.h"

#include <immintrin.h>

// In assembler, for a compiler sees that nobody needs the sums. What the registers hold makes no difference.
#ifdef __AVXVNNI__
#    define PRODUCTS(sum) "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm" #sum "\n"
#else
#    define PRODUCTS(sum)                        \
        "vpmaddubsw %%ymm15, %%ymm14, %%ymm12\n" \
        "vpmaddwd %%ymm13, %%ymm12, %%ymm12\n"   \
        "vpaddd %%ymm12, %%ymm" #sum ", %%ymm" #sum "\n"
#endif

namespace loradrop::cpu {

int64_t LORADROP_KERNELS::multiply_bytes(int64_t rounds) {
    for (int64_t i = 0; i < rounds; ++i) {
        // twelve sums: enough that none waits for itself
        asm volatile(PRODUCTS(0) PRODUCTS(1) PRODUCTS(2) PRODUCTS(3) PRODUCTS(4) PRODUCTS(5) PRODUCTS(6) PRODUCTS(7)
                         PRODUCTS(8) PRODUCTS(9) PRODUCTS(10) PRODUCTS(11)::
                             : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                               "xmm11", "xmm12");
    }
    _mm256_zeroupper();
    return rounds * 12 * 32;
}

}  // namespace loradrop::cpu
