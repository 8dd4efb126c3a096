// Products of a small batch with interleaved weights that have no kernel here: ggml's code for a single column, one
// column after the other over rows that stay in the cache. Left to itself, ggml sums four columns in another order.
#pragma once

#include "ggml.h"

struct ggml_compute_params;

namespace loradrop::cpu {

// False where ggml's own code has to do it, or gives each column the same bits anyway.
bool multiply_by_columns(const ggml_compute_params & params, ggml_tensor & op);

}  // namespace loradrop::cpu
