// One pass over the cells of a K/V head, for some of the pairs of a head and a query that share it.
#pragma once

#include "cpu/attention_values.h"

#ifdef LORADROP_ATTENTION

#    include "ggml.h"

namespace loradrop::cpu {

struct attention_part {
    int64_t stream;
    int64_t kv_head;
    int     first_pair;  // pair p is query p / (heads of the K/V head), head p % of those
    int     pairs;       // at most most_pairs
};

size_t attention_pass_bytes(const ggml_tensor & op, int pairs);

// `work` is aligned to 64 bytes.
void attention_pass(const ggml_tensor & op, const attention_part & part, void * work);

}  // namespace loradrop::cpu
#endif
