// The softmax of a block of cells, continued from the cells before, for many pairs of a head and a query.
#pragma once

#include "cpu/attention_scores.h"

#ifdef LORADROP_ATTENTION
namespace loradrop::cpu {

// Which pairs see a cell, and for which it has the highest score so far.
struct block_bits {
    bool     all;  // every pair sees every cell
    uint64_t seen[block_cells];
    uint64_t highest[block_cells];
};

// Of each pair, up to a multiple of pair_lanes::width.
struct running_softmax {
    float * highest;  // score
    float * sum;
};

// Replaces the scores [cell][pair] by what is exponentiated, and writes the exponentials: of a cell with the highest
// score so far the factor that what came before is multiplied with (the cell itself has weight 1), of another its
// weight. What a pair does not see is undefined.
void softmax_block(const running_softmax & state, int pairs, int cells, block_bits & bits, float * scores,
                   float * weights);

}  // namespace loradrop::cpu
#endif
