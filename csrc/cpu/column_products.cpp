#include "cpu/column_products.h"

#include "cpu/hooks.h"
#include "cpu/kernels.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "repack.h"

#include <algorithm>

namespace loradrop::cpu {

// On x86 ggml interleaves one type more than there are kernels for.
static bool is_taken(const ggml_tensor & op) {
#if defined(GGML_USE_CPU_REPACK) && defined(LORADROP_X86_KERNELS)
    const ggml_tensor & w = *op.src[0];
    const ggml_tensor & x = *op.src[1];
    return w.type == GGML_TYPE_Q2_K && w.buffer && is_interleaved(w) && x.type == GGML_TYPE_F32 && x.ne[1] > 1 &&
           x.ne[1] <= loradrop_cpu_small_batch() && x.ne[2] * x.ne[3] == 1 && x.nb[0] == sizeof(float);
#else
    (void)op;
    return false;
#endif
}

bool multiply_by_columns(const ggml_compute_params & params, ggml_tensor & op) {
    if (!is_taken(op)) {
        return false;
    }
    const ggml_tensor & w            = *op.src[0];
    const ggml_tensor & x            = *op.src[1];
    const size_t        column_bytes = ggml_row_size(GGML_TYPE_Q8_K, x.ne[0]);
    char *              columns      = static_cast<char *>(params.wdata);
    for (int64_t c = params.ith; c < x.ne[1]; c += params.nth) {
        const char * from = static_cast<const char *>(x.data) + c * x.nb[1];
        ggml_get_type_traits_cpu(GGML_TYPE_Q8_K)
            ->from_float(reinterpret_cast<const float *>(from), columns + c * column_bytes, x.ne[0]);
    }
    if (params.ith == 0) {
        ggml_threadpool_chunk_set(params.threadpool, params.nth);
    }
    ggml_barrier(params.threadpool);

    constexpr int64_t rows_at_once = 16;
    for (int64_t first = params.ith * rows_at_once; first < w.ne[1];
         first         = ggml_threadpool_chunk_add(params.threadpool, 1) * rows_at_once) {
        const auto rows = static_cast<int>(std::min(rows_at_once, w.ne[1] - first));
        for (int64_t c = 0; c < x.ne[1]; ++c) {
            auto * out = reinterpret_cast<float *>(static_cast<char *>(op.data) + c * op.nb[1]) + first;
            ggml_gemv_q2_K_8x8_q8_K(static_cast<int>(x.ne[0]), out, rows,
                                    static_cast<const char *>(w.data) + first * w.nb[1], columns + c * column_bytes, 1,
                                    rows);
        }
    }
    return true;
}

}  // namespace loradrop::cpu
