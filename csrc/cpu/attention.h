// Flash attention of a few queries that share K and V, in one pass over the cells.
#pragma once

#include "ggml.h"

struct ggml_compute_params;

namespace loradrop::cpu {

// False where ggml's own code has to do it.
bool attend(const ggml_compute_params & params, ggml_tensor & op);

size_t attend_work_size(const ggml_tensor & op, int n_threads);

}  // namespace loradrop::cpu
