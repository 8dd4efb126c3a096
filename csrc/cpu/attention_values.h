// The values of a block of cells, added to the sums of the pairs that share them.
#pragma once

#include "cpu/attention_softmax.h"

#ifdef LORADROP_ATTENTION
namespace loradrop::cpu {

struct value_sums {
    int           pairs;
    int           size;  // of a value
    ggml_fp16_t * sums;  // [pair][size]
};

// `weights` as softmax_block gives them.
void add_values(const value_sums & to, const ggml_fp16_t * const * values, int cells, const block_bits & bits,
                const float * weights);

}  // namespace loradrop::cpu
#endif
