// Products of a block of keys with the queries that share them.
#pragma once

#include "cpu/attention_lanes.h"

#ifdef LORADROP_ATTENTION
namespace loradrop::cpu {

// Cells that are computed at once: their keys and values stay in the nearest cache.
constexpr int block_cells = 32;

// Pairs of a head and a query that are computed at once; their bits fit into one word.
constexpr int most_pairs = 64;

// The queries of some pairs of a head and a query, in the form in which they are multiplied, and room for the keys.
struct score_operands {
    int      pairs;
    int      in_vectors;      // elements that ggml multiplies in vectors: in_vectors(head size)
    int      beyond;          // the rest, of which ggml adds up the products one by one, in double
    float *  queries;         // [pair][in_vectors]
    double * queries_beyond;  // [pair][beyond]
    float *  key;             // [in_vectors]
    double * keys_beyond;     // [beyond][block_cells]
};

void set_query(const score_operands & to, int pair, const float * query);

// scores[c * pairs + p] for c < cells; writes up to 31 floats more. `keys` has block_cells rows, any beyond the cells.
void score_block(const score_operands & with, const ggml_fp16_t * const * keys, int cells, float * scores);

}  // namespace loradrop::cpu
#endif
