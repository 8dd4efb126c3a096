#include "cpu/attention_values.h"

#ifdef LORADROP_ATTENTION

#    include <algorithm>
#    include <utility>

namespace loradrop::cpu {

namespace {

struct block {
    const value_sums &          to;
    const ggml_fp16_t * const * values;
    int                         cells;
    const block_bits &          bits;
};

}  // namespace

static constexpr float one = 1.0f;

// The elements from d on, as many as so many vectors have, of the pairs from p on. Their sums stay in registers.
template <class Lanes, int Vectors, int Pairs>
static void add_part(const block & b, const float * weights, int d, int p) {
    using vector               = typename Lanes::vector;
    constexpr uint64_t present = (uint64_t{1} << Pairs) - 1;

    ggml_fp16_t * sums = b.to.sums + static_cast<int64_t>(p) * b.to.size + d;
    vector        sum[Pairs][Vectors];
    for (int i = 0; i < Pairs; ++i) {
        for (int j = 0; j < Vectors; ++j) {
            sum[i][j] = Lanes::load(sums + i * b.to.size + j * Lanes::width);
        }
    }
    for (int c = 0; c < b.cells; ++c) {
        const auto *   w    = weights + c * b.to.pairs + p;
        const uint64_t seen = b.bits.all ? present : b.bits.seen[c] >> p & present;
        const uint64_t up   = b.bits.highest[c] >> p & present;
        vector         v[Vectors];
        for (int j = 0; j < Vectors; ++j) {
            v[j] = Lanes::load(b.values[c] + d + j * Lanes::width);
        }
        if (seen == present && up == 0) {
            for (int i = 0; i < Pairs; ++i) {
                const vector weight = Lanes::broadcast(w + i);
                for (int j = 0; j < Vectors; ++j) {
                    sum[i][j] = Lanes::add_product(sum[i][j], v[j], weight);
                }
            }
            continue;
        }
        for (int i = 0; i < Pairs; ++i) {
            if (!(seen >> i & 1)) {
                continue;
            }
            vector weight = Lanes::broadcast(w + i);
            if (up >> i & 1) {
                for (int j = 0; j < Vectors; ++j) {
                    sum[i][j] = Lanes::product(sum[i][j], weight);
                }
                weight = Lanes::broadcast(&one);
            }
            for (int j = 0; j < Vectors; ++j) {
                sum[i][j] = Lanes::add_product(sum[i][j], v[j], weight);
            }
        }
    }
    for (int i = 0; i < Pairs; ++i) {
        for (int j = 0; j < Vectors; ++j) {
            Lanes::store(sums + i * b.to.size + j * Lanes::width, sum[i][j]);
        }
    }
}

// So many vectors of values as many pairs share, and so many pairs, that all fits into the registers.
#    ifdef __AVX512F__
static constexpr int vectors_at_once = 4;
static constexpr int pairs_at_once   = 6;
#    else
static constexpr int vectors_at_once = 2;
static constexpr int pairs_at_once   = 4;
#    endif

template <class Lanes, int Vectors, int... Pairs>
static void add_to_pairs(const block & b, const float * weights, int d, std::integer_sequence<int, Pairs...>) {
    using part                    = void (*)(const block &, const float *, int, int);
    static constexpr part parts[] = {add_part<Lanes, Vectors, Pairs + 1>...};

    // groups of about the same size
    const int groups = (b.to.pairs + pairs_at_once - 1) / pairs_at_once;
    for (int g = 0, p = 0; g < groups; ++g) {
        const int n = (b.to.pairs - p + groups - g - 1) / (groups - g);
        parts[n - 1](b, weights, d, p);
        p += n;
    }
}

// Elements from `d` to `end` as far as whole vectors go; gives where it has stopped.
template <class Lanes>
static int add_elements(const block & b, const float * weights, int d, int end) {
    using pairs = std::make_integer_sequence<int, pairs_at_once>;
    for (; d + vectors_at_once * Lanes::width <= end; d += vectors_at_once * Lanes::width) {
        add_to_pairs<Lanes, vectors_at_once>(b, weights, d, pairs{});
    }
    for (; d + Lanes::width <= end; d += Lanes::width) {
        add_to_pairs<Lanes, 1>(b, weights, d, pairs{});
    }
    return d;
}

void add_values(const value_sums & to, const ggml_fp16_t * const * values, int cells, const block_bits & bits,
                const float * weights) {
    const block b = {to, values, cells, bits};
    int         d = 0;
#    ifdef __AVX512F__
    d = add_elements<sixteen_lanes>(b, weights, d, to.size);
#    endif
    add_elements<eight_lanes>(b, weights, d, to.size);
}

}  // namespace loradrop::cpu
#endif
