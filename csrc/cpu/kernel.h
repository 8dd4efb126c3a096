// A kernel: some rows of quantised weights times up to eight columns of quantised activations. Every column gets the
// bits that ggml's code for a single column gives it: sums of integers are exact in any order, and the floats are
// multiplied and added in ggml's order.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace loradrop::cpu {

constexpr int max_columns = 8;
constexpr int all_columns = 0;

// What a kernel takes besides the activations and their scales.
enum class sums {
    none,
    of_16,        // int16 [block][column][16]: q8_K's sums of 16 activations
    of_32,        // int16 [block][column][8]
    of_32_pairs,  // int16 [block][4][max_columns][2]: two neighbours of of_32 of all columns
    of_block,     // int32 [block][max_columns], times kernel::factor
    scaled,       // float [block][max_columns]: q8_1's s; 0 beyond the columns, for numbers below the normal are slow
};

// The quantised activations of a group of columns, in the order in which kernels read them.
struct panel {
    int           columns;
    int           blocks;
    const void *  values;  // one byte each: [block][column][of the block]; a block begins at a multiple of 32 bytes
    const float * scales;  // [block][max_columns], 0 beyond the columns
    const void *  sums;    // by kernel::extra; what lies beyond the columns is never used
};

struct kernel {
    // out[c * ld + r] for r < rows, rows a multiple of `interleaved`. `row_bytes` from one row of w to the next.
    void (*run)(const void * w, size_t row_bytes, int rows, const panel & a, float * out, size_t ld);

    int  interleaved;   // rows of weights that lie interleaved, as ggml's CPU_REPACK buffers have them; 1: plain
    sums extra;         // what the panel's sums are
    int  offset;        // added to each activation: 0, or 128, by which the bytes are unsigned
    int  factor;        // of sums::of_block
    int  most_columns;  // ggml's own code is quicker for more; all_columns: it never is
};

// Null where a set of instructions has no kernel for this type (of ggml_type) and layout. Never built into code that
// runs before the processor was asked what it can do.
namespace avx2 {
const kernel * find_kernel(int type, bool interleaved);
}
namespace avx_vnni {
const kernel * find_kernel(int type, bool interleaved);
}
namespace avx512 {
const kernel * find_kernel(int type, bool interleaved);
}

}  // namespace loradrop::cpu
