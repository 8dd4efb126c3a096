// Activations as the kernels read them: quantised by ggml, laid out in groups of up to eight columns.
#pragma once

#include "cpu/kernel.h"

#include "ggml.h"

namespace loradrop::cpu {

// All columns of a product; lies in memory that the threads share, and each fills a part of it.
class panels {
  public:
    // `type` is what ggml quantises activations to for the weights at hand.
    panels(const kernel & k, ggml_type type, int64_t columns, int64_t blocks, void * memory);

    // Whether ggml quantises activations to this type for weights that a kernel may multiply.
    static bool can_hold(ggml_type type) {
        return type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q8_1 || type == GGML_TYPE_Q8_K;
    }

    // Bytes of memory, whatever the kernel.
    static size_t bytes(ggml_type type, int64_t columns, int64_t blocks);

    // Quantises the part of thread `ith` of `nth`; `column(i)` gives the activations of column i.
    template <typename Column>
    void fill(int ith, int nth, const Column & column) {
        const int64_t all = n_columns * n_blocks;
        for (int64_t i = all * ith / nth, end = all * (ith + 1) / nth; i < end;) {
            const int64_t c     = i / n_blocks;
            const int64_t first = i % n_blocks;
            const int64_t last  = first + (end - i) < n_blocks ? first + (end - i) : n_blocks;
            fill_blocks(column(c), c, first, last);
            i += last - first;
        }
    }

    int64_t groups() const { return (n_columns + max_columns - 1) / max_columns; }

    // The columns from `group * max_columns` on.
    panel group(int64_t group) const;

  private:
    void fill_blocks(const float * x, int64_t column, int64_t first, int64_t end);

    const kernel & k;
    ggml_type      type;
    int64_t        n_columns;
    int64_t        n_blocks;
    char *         memory;
};

}  // namespace loradrop::cpu
