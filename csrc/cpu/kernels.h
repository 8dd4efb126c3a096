// The kernel for a tensor of weights, by its type, its layout and what the processor can do.
#pragma once

#include "cpu/kernel.h"

#include "ggml.h"

namespace loradrop::cpu {

// Whether ggml has interleaved the rows of these weights, which lie in a buffer.
bool is_interleaved(const ggml_tensor & weights);

// Null where there is none, and for weights that lie where ggml's code alone can read them.
const kernel * find_kernel(const ggml_tensor & weights);

}  // namespace loradrop::cpu
