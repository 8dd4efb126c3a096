#include "cpu/products.h"

#include "cpu/column_products.h"
#include "cpu/kernels.h"
#include "cpu/panel.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"

#include <algorithm>

namespace loradrop::cpu {

// x and the result may have more than two dimensions, as long as their columns lie one after the other.
static bool has_plain_columns(const ggml_tensor & t) {
    return t.nb[0] == sizeof(float) && (t.ne[2] * t.ne[3] == 1 || ggml_is_contiguous(&t));
}

// Bytes from one column to the next: the stride of a dimension of one says nothing.
static size_t column_stride(const ggml_tensor & t) {
    return t.ne[2] * t.ne[3] == 1 ? t.nb[1] : t.ne[0] * sizeof(float);
}

// The kernel that multiplies these weights; null where ggml's code has to.
static const kernel * kernel_for(const ggml_tensor & op) {
    const ggml_tensor & w = *op.src[0];
    const ggml_tensor & x = *op.src[1];
    if (x.type != GGML_TYPE_F32 || op.type != GGML_TYPE_F32 || w.ne[2] * w.ne[3] != 1 ||
        w.nb[0] != ggml_type_size(w.type) || !has_plain_columns(x) || !has_plain_columns(op)) {
        return nullptr;
    }
    const kernel * k = find_kernel(w);
    return k && (k->most_columns == all_columns || ggml_nrows(&x) <= k->most_columns) ? k : nullptr;
}

// Rows that a thread takes at once: few enough that threads end together and, where several groups of columns read
// them, that they stay in a core's cache.
static int64_t rows_at_once(const ggml_tensor & w, int64_t groups, int n_threads) {
    constexpr int64_t cached_bytes = 128 << 10;
    constexpr int64_t step         = 8;

    int64_t rows = n_threads == 1 ? w.ne[1] : (w.ne[1] + 4 * n_threads - 1) / (4 * n_threads);
    if (groups > 1) {
        rows = std::min<int64_t>(rows, cached_bytes / w.nb[1]);
    }
    return std::max<int64_t>((rows + step - 1) / step * step, step);
}

bool multiply(const ggml_compute_params & params, ggml_tensor & op) {
    const kernel * k = kernel_for(op);
    if (!k) {
        return multiply_by_columns(params, op);
    }
    const ggml_tensor & w       = *op.src[0];
    const ggml_tensor & x       = *op.src[1];
    const ggml_type     type    = ggml_get_type_traits_cpu(w.type)->vec_dot_type;
    const int64_t       columns = ggml_nrows(&x);

    panels activations(*k, type, columns, x.ne[0] / ggml_blck_size(type), params.wdata);
    activations.fill(params.ith, params.nth, [&](int64_t c) {
        return reinterpret_cast<const float *>(static_cast<const char *>(x.data) + c * column_stride(x));
    });
    if (params.ith == 0) {
        ggml_threadpool_chunk_set(params.threadpool, params.nth);
    }
    ggml_barrier(params.threadpool);

    auto *        out    = static_cast<float *>(op.data);
    const size_t  ld     = column_stride(op) / sizeof(float);
    const int64_t groups = activations.groups();
    const int64_t step   = rows_at_once(w, groups, params.nth);
    for (int64_t first = params.ith * step; first < w.ne[1];
         first         = ggml_threadpool_chunk_add(params.threadpool, 1) * step) {
        const int    rows = static_cast<int>(std::min(step, w.ne[1] - first));
        const void * from = static_cast<const char *>(w.data) + first * w.nb[1];
        for (int64_t g = 0; g < groups; ++g) {
            k->run(from, w.nb[1], rows, activations.group(g), out + g * max_columns * ld + first, ld);
        }
    }
    return true;
}

size_t multiply_work_size(const ggml_tensor & op) {
    const ggml_tensor & w    = *op.src[0];
    const ggml_type     type = ggml_get_type_traits_cpu(w.type)->vec_dot_type;
    if (!panels::can_hold(type)) {
        return 0;
    }
    return panels::bytes(type, ggml_nrows(op.src[1]), op.src[1]->ne[0] / ggml_blck_size(type));
}

}  // namespace loradrop::cpu
