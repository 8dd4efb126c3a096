// Where a pass over the cells keeps its numbers.
#pragma once

#include "cpu/attention_values.h"

#ifdef LORADROP_ATTENTION

#    include "ggml.h"

namespace loradrop::cpu {

struct attention_memory {
    score_operands  operands;
    value_sums      values;
    running_softmax softmax;
    float *         scores;
    float *         weights;
    float *         result;
    size_t          bytes;
};

// For so many pairs, from `start` on, which is aligned to 64 bytes; null to learn the bytes.
attention_memory lay_out(const ggml_tensor & op, int pairs, void * start);

}  // namespace loradrop::cpu
#endif
