#include "cpu/expert_products.h"

#include "cpu/expert_plan.h"
#include "cpu/kernels.h"
#include "cpu/panel.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cstring>

namespace loradrop::cpu {

static constexpr int64_t rows_at_once = 128;

static ggml_type activation_type(const ggml_tensor & op) {
    return ggml_get_type_traits_cpu(op.src[0]->type)->vec_dot_type;
}

static int64_t blocks_of(const ggml_tensor & op) {
    return op.src[1]->ne[0] / ggml_blck_size(activation_type(op));
}

// The columns that each expert has are known when the operation runs; at most, each has panels of its own.
static size_t column_bytes(const ggml_tensor & op) {
    return (panels::bytes(activation_type(op), 1, blocks_of(op)) + 63) / 64 * 64;
}

static const kernel * kernel_for(const ggml_tensor & op) {
    const ggml_tensor & w = *op.src[0];
    const ggml_tensor & x = *op.src[1];
    if (x.type != GGML_TYPE_F32 || op.type != GGML_TYPE_F32 || w.ne[3] != 1 || x.ne[3] != 1 ||
        w.nb[0] != ggml_type_size(w.type) || x.nb[0] != sizeof(float) || op.nb[0] != sizeof(float)) {
        return nullptr;
    }
    return find_kernel(w);
}

// Some rows of an expert, for all of its columns.
static void multiply_rows(const kernel & k, const ggml_tensor & op, const expert_plan & plan, const chosen_expert & e,
                          const panels & activations, int64_t first) {
    const ggml_tensor & w    = *op.src[0];
    const int64_t       rows = std::min(rows_at_once, w.ne[1] - first);
    const char *        from = static_cast<const char *>(w.data) + e.expert * w.nb[2] + first * w.nb[1];

    float products[max_columns * rows_at_once];
    for (int64_t g = 0; g < activations.groups(); ++g) {
        const panel a = activations.group(g);
        k.run(from, w.nb[1], static_cast<int>(rows), a, products, rows_at_once);
        for (int64_t c = 0; c < a.columns; ++c) {
            const expert_column & to  = plan.column(e, g * max_columns + c);
            char *                out = static_cast<char *>(op.data) + to.slot * op.nb[1] + to.token * op.nb[2];
            memcpy(out + first * sizeof(float), products + c * rows_at_once, rows * sizeof(float));
        }
    }
}

bool multiply_experts(const ggml_compute_params & params, ggml_tensor & op) {
    const kernel * k = kernel_for(op);
    if (!k) {
        return false;
    }
    expert_plan plan(op, params.wdata);
    if (params.ith == 0) {
        plan.write(op);
        ggml_threadpool_chunk_set(params.threadpool, params.nth);
    }
    ggml_barrier(params.threadpool);

    const ggml_tensor & x           = *op.src[1];
    const ggml_type     type        = activation_type(op);
    char *              panels_at   = static_cast<char *>(params.wdata) + expert_plan::bytes(op);
    const auto          activations = [&](const chosen_expert & e) {
        return panels(*k, type, e.n_columns, blocks_of(op), panels_at + e.first_column * column_bytes(op));
    };
    for (int64_t i = 0; i < plan.size(); ++i) {
        activations(plan[i]).fill(params.ith, params.nth, [&](int64_t c) {
            const expert_column & from = plan.column(plan[i], c);
            const size_t          at   = from.slot % x.ne[1] * x.nb[1] + from.token * x.nb[2];
            return reinterpret_cast<const float *>(static_cast<const char *>(x.data) + at);
        });
    }
    ggml_barrier(params.threadpool);

    const int64_t parts = (op.src[0]->ne[1] + rows_at_once - 1) / rows_at_once;
    for (int64_t i = params.ith; i < parts * plan.size(); i = ggml_threadpool_chunk_add(params.threadpool, 1)) {
        const chosen_expert & e = plan[i / parts];
        multiply_rows(*k, op, plan, e, activations(e), i % parts * rows_at_once);
    }
    return true;
}

size_t multiply_experts_work_size(const ggml_tensor & op) {
    const ggml_type type = activation_type(op);
    if (!panels::can_hold(type)) {
        return 0;
    }
    return expert_plan::bytes(op) + ggml_nelements(op.src[2]) * column_bytes(op);
}

}  // namespace loradrop::cpu
