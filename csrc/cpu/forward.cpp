// Which operations of ggml's CPU back end are computed here.
#include "cpu/attention.h"
#include "cpu/expert_products.h"
#include "cpu/hooks.h"
#include "cpu/instruction_set.h"
#include "cpu/products.h"

#include "ggml-cpu-impl.h"

using namespace loradrop::cpu;

static constexpr int small_batch = 8;

int loradrop_cpu_small_batch(void) {
    return current_instruction_set() == instruction_set::none ? 1 : small_batch;
}

bool loradrop_cpu_forward(const ggml_compute_params * params, ggml_tensor * op) {
    if (params->use_ref || current_instruction_set() == instruction_set::none) {
        return false;
    }
    switch (op->op) {
        case GGML_OP_MUL_MAT:
            return multiply(*params, *op);
        case GGML_OP_MUL_MAT_ID:
            return multiply_experts(*params, *op);
        case GGML_OP_FLASH_ATTN_EXT:
            return attend(*params, *op);
        default:
            return false;
    }
}

size_t loradrop_cpu_work_size(const ggml_tensor * op, int n_threads) {
    switch (op->op) {
        case GGML_OP_MUL_MAT:
            return multiply_work_size(*op);
        case GGML_OP_MUL_MAT_ID:
            return multiply_experts_work_size(*op);
        case GGML_OP_FLASH_ATTN_EXT:
            return attend_work_size(*op, n_threads);
        default:
            return 0;
    }
}
