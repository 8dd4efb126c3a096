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

// The elements from d on, as many as so many vectors have, of the pairs from p on. Their sums stay in registers.
template <class Lanes, int Vectors, int Pairs>
static void add_part(const block & b, const typename Lanes::weight * weights, typename Lanes::weight one, int d,
                     int p) {
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
static void add_to_pairs(const block & b, const typename Lanes::weight * weights, typename Lanes::weight one, int d,
                         std::integer_sequence<int, Pairs...>) {
    using part = void (*)(const block &, const typename Lanes::weight *, typename Lanes::weight, int, int);
    static constexpr part parts[] = {add_part<Lanes, Vectors, Pairs + 1>...};

    // groups of about the same size
    const int groups = (b.to.pairs + pairs_at_once - 1) / pairs_at_once;
    for (int g = 0, p = 0; g < groups; ++g) {
        const int n = (b.to.pairs - p + groups - g - 1) / (groups - g);
        parts[n - 1](b, weights, one, d, p);
        p += n;
    }
}

// Elements from `d` to `end` as far as whole vectors go; gives where it has stopped.
template <class Lanes>
static int add_elements(const block & b, const typename Lanes::weight * weights, typename Lanes::weight one, int d,
                        int end) {
    using pairs = std::make_integer_sequence<int, pairs_at_once>;
    for (; d + vectors_at_once * Lanes::width <= end; d += vectors_at_once * Lanes::width) {
        add_to_pairs<Lanes, vectors_at_once>(b, weights, one, d, pairs{});
    }
    for (; d + Lanes::width <= end; d += Lanes::width) {
        add_to_pairs<Lanes, 1>(b, weights, one, d, pairs{});
    }
    return d;
}

#    ifdef __AVX512FP16__
static int add_in_16_bits(const block & b, const float * weights) {
    const int end = in_vectors(b.to.size);
    if (end == 0) {
        return 0;
    }
    const int n = b.cells * b.to.pairs;
    for (int i = 0; i < n; i += 16) {
        const __m512i half =
            _mm512_cvtepu16_epi32(_mm512_cvtps_ph(_mm512_loadu_ps(weights + i), _MM_FROUND_TO_NEAREST_INT));
        _mm512_storeu_si512(b.to.weights + i, _mm512_or_si512(half, _mm512_slli_epi32(half, 16)));
    }
    constexpr uint32_t one = 0x3c003c00;
    return add_elements<thirty_two_lanes>(b, b.to.weights, one, 0, end);
}
#    endif

void add_values(const value_sums & to, const ggml_fp16_t * const * values, int cells, const block_bits & bits,
                const float * weights) {
    const block b = {to, values, cells, bits};
    int         d = 0;
#    ifdef __AVX512FP16__
    d = add_in_16_bits(b, weights);
#    endif
    // What ggml does element by element, it counts in 32 bits, as it does here.
#    ifdef __AVX512F__
    d = add_elements<sixteen_lanes>(b, weights, 1.0f, d, to.size);
#    endif
    add_elements<eight_lanes>(b, weights, 1.0f, d, to.size);
}

}  // namespace loradrop::cpu
#endif
