// Which columns each expert of a mixture multiplies.
#pragma once

#include "ggml.h"

namespace loradrop::cpu {

// A column of an expert's product: the token, and which of the experts that it chose this is.
struct expert_column {
    int32_t slot;
    int32_t token;
};

// An expert that some token chose.
struct chosen_expert {
    int32_t expert;
    int32_t first_column;
    int32_t n_columns;
};

// Lies in memory that the threads share; one of them writes it.
class expert_plan {
  public:
    // Of an operation of kind GGML_OP_MUL_MAT_ID. `memory` is aligned to 8 bytes.
    expert_plan(const ggml_tensor & op, void * memory);

    static size_t bytes(const ggml_tensor & op);

    // Sorts the columns by their experts.
    void write(const ggml_tensor & op);

    int64_t               size() const { return *n_chosen; }
    const chosen_expert & operator[](int64_t i) const { return chosen[i]; }
    const expert_column & column(const chosen_expert & e, int64_t i) const { return columns[e.first_column + i]; }

  private:
    int64_t *       n_chosen;
    chosen_expert * chosen;  // [experts]
    expert_column * columns;
};

}  // namespace loradrop::cpu
