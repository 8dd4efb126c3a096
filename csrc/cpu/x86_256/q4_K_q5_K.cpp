// Q4_K and Q5_K, a row after the other; the same bits as x86_512/q4_K_q5_K.cpp.
#include "cpu/x86/k_scales.h"
#include "cpu/x86/kernels.h"
#include "cpu/x86_256/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

struct q4_K {
    using block                    = block_q4_K;
    static constexpr int min_lanes = 4;  // ggml sums the mins of each two neighbours for themselves
    static __m256i       high_bits(const block &, int) { return _mm256_setzero_si256(); }
};

struct q5_K {
    using block                    = block_q5_K;
    static constexpr int min_lanes = 1;
    // bit s of each byte is for sub-block s
    static __m256i high_bits(const block & b, int s) {
        const __m256i h = _mm256_srlv_epi32(load_256(b.qh), _mm256_set1_epi32(s));
        return _mm256_slli_epi16(_mm256_and_si256(h, _mm256_set1_epi8(1)), 4);
    }
};

template <typename format>
struct plain_rows {
    static constexpr int    rows_at_once = 1;
    static constexpr size_t ahead        = 2048;

    template <int columns>
    static void rows(const void * w, const panel & a, int first, float * out, size_t ld, size_t ahead) {
        const __m256i low_nibbles = _mm256_set1_epi8(0x0f);

        __m256 acc[columns];
        for (auto & sum : acc) {
            sum = _mm256_setzero_ps();
        }
        __m256 acc_min[format::min_lanes];  // a lane for each of all columns
        for (auto & sum : acc_min) {
            sum = _mm256_setzero_ps();
        }
        for (int b = 0; b < a.blocks; ++b) {
            const auto & block = static_cast<const typename format::block *>(w)[b];
            prefetch(&block, sizeof(block), ahead);

            uint64_t scale_bytes, min_bytes;
            unpack_scales(block.scales, scale_bytes, min_bytes);
            alignas(16) int16_t scales[8];
            alignas(16) int     mins[4];
            _mm_store_si128(reinterpret_cast<__m128i *>(scales),
                            _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<long long>(scale_bytes))));
            _mm_store_si128(reinterpret_cast<__m128i *>(mins),
                            _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<long long>(min_bytes))));

            const int8_t * values = static_cast<const int8_t *>(a.values) + 256 * (size_t(b) * a.columns + first);
            __m256i        sums[columns];
            for (auto & sum : sums) {
                sum = _mm256_setzero_si256();
            }
#pragma GCC unroll 8
            for (int s = 0; s < 8; ++s) {
                const __m256i q       = load_256(block.qs + 32 * (s / 2));
                const __m256i nibbles = _mm256_and_si256(s % 2 ? _mm256_srli_epi16(q, 4) : q, low_nibbles);
                const __m256i x       = _mm256_add_epi8(nibbles, format::high_bits(block, s));
                const __m256i scale   = _mm256_set1_epi16(scales[s]);
#pragma GCC unroll 4
                for (int c = 0; c < columns; ++c) {
                    const __m256i products = _mm256_maddubs_epi16(x, load_256(values + 256 * c + 32 * s));
                    sums[c]                = add_word_products(sums[c], products, scale);
                }
            }

            const __m256 column_scales = _mm256_loadu_ps(a.scales + size_t(b) * max_columns);
            const __m256 d_min         = _mm256_mul_ps(_mm256_sub_ps(_mm256_setzero_ps(), column_scales),
                                                       _mm256_set1_ps(half_to_float(block.data.data.dmin)));
            const auto * sums32        = static_cast<const int16_t *>(a.sums) + size_t(b) * 64;
            __m256i      total         = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int p = 0; p < 4; ++p) {
                const __m256i pair = _mm256_madd_epi16(_mm256_set1_epi32(mins[p]), load_256(sums32 + 16 * p));
                if constexpr (format::min_lanes == 4) {
                    acc_min[p] = _mm256_fmadd_ps(d_min, _mm256_cvtepi32_ps(pair), acc_min[p]);
                } else {
                    total = _mm256_add_epi32(total, pair);
                }
            }
            if constexpr (format::min_lanes == 1) {
                acc_min[0] = _mm256_fmadd_ps(d_min, _mm256_cvtepi32_ps(total), acc_min[0]);
            }

            alignas(32) float d[max_columns];
            _mm256_store_ps(d, _mm256_mul_ps(column_scales, _mm256_set1_ps(half_to_float(block.data.data.d))));
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                acc[c] = _mm256_fmadd_ps(_mm256_broadcast_ss(d + first + c), _mm256_cvtepi32_ps(sums[c]), acc[c]);
            }
        }

        if constexpr (format::min_lanes == 4) {
            acc_min[0] = _mm256_add_ps(_mm256_add_ps(acc_min[0], acc_min[2]), _mm256_add_ps(acc_min[1], acc_min[3]));
        }
        alignas(32) float mins[max_columns];
        _mm256_store_ps(mins, acc_min[0]);
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) {
            out[c * ld] = sum_of(acc[c]) + mins[first + c];
        }
    }
};

}  // namespace

namespace LORADROP_KERNELS {
const kernel q4_K_plain = {run<plain_rows<q4_K>>, 1, sums::of_32_pairs, 0, 0, all_columns};
const kernel q5_K_plain = {run<plain_rows<q5_K>>, 1, sums::of_32_pairs, 0, 0, all_columns};
}  // namespace LORADROP_KERNELS

}  // namespace loradrop::cpu
