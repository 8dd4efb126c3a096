// Products of a mixture's experts, each with the few tokens that chose it.
#pragma once

#include "ggml.h"

struct ggml_compute_params;

namespace loradrop::cpu {

// False where ggml's own code has to do it.
bool multiply_experts(const ggml_compute_params & params, ggml_tensor & op);

size_t multiply_experts_work_size(const ggml_tensor & op);

}  // namespace loradrop::cpu
