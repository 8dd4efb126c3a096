#include "cpu/expert_products.h"

namespace loradrop::cpu {

bool multiply_experts(const ggml_compute_params &, ggml_tensor &) {
    return false;
}

size_t multiply_experts_work_size(const ggml_tensor &) {
    return 0;
}

}  // namespace loradrop::cpu
