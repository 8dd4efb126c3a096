// Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, a row after the other; the same bits as x86_512/blocks_of_32.cpp.
//
// Where weights are signed, the activations are made unsigned by adding 128, and 128 times the weights is taken off
// again. Without VNNI products of such activations would not fit 16 bits: the weights' signs go to the activations.
#include "cpu/x86/kernels.h"
#include "cpu/x86_256/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

// Low nibbles, then high ones.
__m256i nibbles(const uint8_t * p) {
    const __m256i up_to_shift = _mm256_setr_epi64x(0, 0, 4, 4);
    return _mm256_and_si256(_mm256_srlv_epi64(_mm256_broadcastsi128_si256(load_128(p)), up_to_shift),
                            _mm256_set1_epi8(0x0f));
}

// -1 where a bit is set.
__m256i bits(const uint8_t * p) {
    const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit_of  = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    const __m256i spread  = _mm256_set1_epi32(static_cast<int>(*reinterpret_cast<const four_bytes *>(p)));
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(spread, byte_of), bit_of), bit_of);
}

struct q4_0 {
    using block                     = block_q4_0;
    static constexpr bool is_signed = true;
    static __m256i        weights(const block & b) { return _mm256_sub_epi8(nibbles(b.qs), _mm256_set1_epi8(8)); }
};

struct q4_1 {
    using block                     = block_q4_1;
    static constexpr bool is_signed = false;
    static __m256i        weights(const block & b) { return nibbles(b.qs); }
};

struct q5_0 {
    using block                     = block_q5_0;
    static constexpr bool is_signed = true;
    static __m256i        weights(const block & b) {
        return _mm256_or_si256(nibbles(b.qs),
                                      _mm256_andnot_si256(bits(b.qh), _mm256_set1_epi8(static_cast<char>(0xf0))));
    }
};

struct q5_1 {
    using block                     = block_q5_1;
    static constexpr bool is_signed = false;
    static __m256i        weights(const block & b) {
        return _mm256_or_si256(nibbles(b.qs), _mm256_and_si256(bits(b.qh), _mm256_set1_epi8(0x10)));
    }
};

struct q8_0 {
    using block                     = block_q8_0;
    static constexpr bool is_signed = true;
    static __m256i        weights(const block & b) { return load_256(b.qs); }
};

// 32 weights with the activations of a column.
template <typename format>
struct multiplier {
    explicit multiplier(__m256i weights) : x(weights) {
        if constexpr (format::is_signed && has_vnni) {
            const __m256i all_128 = _mm256_set1_epi8(static_cast<char>(0x80));
            begin                 = _mm256_sub_epi32(begin, add_products(begin, all_128, x));
        }
        if constexpr (format::is_signed && !has_vnni) {
            size = _mm256_abs_epi8(x);
        }
    }

    __m256i product(__m256i y) const {
        if constexpr (!format::is_signed) {
            return add_products(begin, x, y);
        } else if constexpr (has_vnni) {
            return add_products(begin, y, x);
        } else {
            return _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(y, x)), _mm256_set1_epi16(1));
        }
    }

    __m256i x;
    __m256i size  = _mm256_setzero_si256();
    __m256i begin = _mm256_setzero_si256();
};

template <typename format>
struct plain_rows {
    static constexpr int    rows_at_once = 1;
    static constexpr size_t ahead        = 1024;

    template <int columns>
    static void rows(const void * w, const panel & a, int first, float * out, size_t ld, size_t ahead) {
        __m256 acc[columns];
        for (auto & sum : acc) {
            sum = _mm256_setzero_ps();
        }
        [[maybe_unused]] __m256 acc_min = _mm256_setzero_ps();  // a lane for each of all columns

        for (int b = 0; b < a.blocks; ++b) {
            const auto & block = static_cast<const typename format::block *>(w)[b];
            prefetch(&block, 1, ahead);

            const multiplier<format> weights(format::weights(block));
            float                    scale;
            if constexpr (format::is_signed) {
                scale = half_to_float(block.d);
            } else {
                scale             = half_to_float(block.data.data.d);
                const __m256 sums = _mm256_loadu_ps(static_cast<const float *>(a.sums) + size_t(b) * max_columns);
                acc_min           = _mm256_fmadd_ps(_mm256_set1_ps(half_to_float(block.data.data.m)), sums, acc_min);
            }
            // to spread one from memory takes none of the shuffles' port
            alignas(32) float d[max_columns];
            _mm256_store_ps(d,
                            _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_loadu_ps(a.scales + size_t(b) * max_columns)));

            const int8_t * values = static_cast<const int8_t *>(a.values) + 32 * (size_t(b) * a.columns + first);
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                const __m256i sum = weights.product(load_256(values + 32 * c));
                acc[c] = _mm256_fmadd_ps(_mm256_broadcast_ss(d + first + c), _mm256_cvtepi32_ps(sum), acc[c]);
            }
        }

        alignas(32) float mins[max_columns];
        _mm256_store_ps(mins, acc_min);
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) {
            const float sum = sum_of(acc[c]);
            out[c * ld]     = format::is_signed ? sum : sum + mins[first + c];
        }
    }
};

constexpr int offset_of_signed = has_vnni ? 128 : 0;

}  // namespace

namespace LORADROP_KERNELS {
const kernel q4_0_plain = {run<plain_rows<q4_0>>, 1, sums::none, offset_of_signed, 0, max_columns};
const kernel q4_1_plain = {run<plain_rows<q4_1>>, 1, sums::scaled, 0, 0, all_columns};
const kernel q5_0_plain = {run<plain_rows<q5_0>>, 1, sums::none, offset_of_signed, 0, max_columns};
const kernel q5_1_plain = {run<plain_rows<q5_1>>, 1, sums::scaled, 0, 0, all_columns};
const kernel q8_0_plain = {run<plain_rows<q8_0>>, 1, sums::none, offset_of_signed, 0, max_columns};
}  // namespace LORADROP_KERNELS

}  // namespace loradrop::cpu
