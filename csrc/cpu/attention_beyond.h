// Products of the elements of keys and queries beyond those that ggml takes in vectors.
#pragma once

#include "cpu/attention_scores.h"

#ifdef LORADROP_ATTENTION
namespace loradrop::cpu {

// Adds to scores[c * pairs + p], which are undefined where no element comes before.
void score_beyond(const score_operands & with, const ggml_fp16_t * const * keys, int cells, float * scores);

}  // namespace loradrop::cpu
#endif
