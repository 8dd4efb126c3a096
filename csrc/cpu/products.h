// Products of quantised weights with a batch of tokens, each weight unpacked once for up to eight of them.
#pragma once

#include "ggml.h"

struct ggml_compute_params;

namespace loradrop::cpu {

// False where ggml's own code has to do it.
bool multiply(const ggml_compute_params & params, ggml_tensor & op);

size_t multiply_work_size(const ggml_tensor & op);

}  // namespace loradrop::cpu
