// Which cells the pairs of a head and a query see.
#pragma once

#include "cpu/attention_scores.h"

#ifdef LORADROP_ATTENTION
namespace loradrop::cpu {

// Of 32 cells.
struct seen_cells {
    uint32_t any;     // seen by some pair
    uint32_t by_all;  // by every pair
    bool     plain;   // the mask holds nothing but 0 and minus infinity
};

class attention_mask {
  public:
    attention_mask(int n_pairs, int64_t n_cells);

    // The row of the next pair; without any, all pairs see all cells.
    void add_row(const ggml_fp16_t * row);

    // At the cells from `first` on, a multiple of 32.
    seen_cells look(int64_t first);

    // Of one of the cells last looked at.
    uint64_t pairs_seeing(int i) const;

    uint64_t all_pairs() const { return everyone; }

  private:
    // Pairs with the same row, and which of the 32 cells they see.
    struct row {
        const ggml_fp16_t * mask;
        uint64_t            pairs;
        uint32_t            seen;
    };

    uint64_t everyone;
    int64_t  cells;
    int      added  = 0;
    int      n_rows = 0;
    row      rows[most_pairs];
};

}  // namespace loradrop::cpu
#endif
