// Q6_K, a row after the other; the same bits as x86_512/q6_K.cpp.
#include "cpu/x86/kernels.h"
#include "cpu/x86_256/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

struct plain_rows {
    static constexpr int    rows_at_once = 1;
    static constexpr size_t ahead        = 2048;

    template <int columns>
    static void rows(const void * w, const panel & a, int first, float * out, size_t ld, size_t ahead) {
        const __m256i low_nibbles = _mm256_set1_epi8(0x0f);
        const __m256i bits_4_5    = _mm256_set1_epi8(0x30);
        // of a pair of scales, the first to the low half and the second to the high one
        const __m256i first_second = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3,
                                                      2, 3, 2, 3, 2, 3, 2, 3, 2, 3);

        __m256 acc[columns];
        for (auto & sum : acc) {
            sum = _mm256_setzero_ps();
        }
        for (int b = 0; b < a.blocks; ++b) {
            const block_q6_K & block = static_cast<const block_q6_K *>(w)[b];
            prefetch(&block, sizeof(block), ahead);

            const __m256i   scales = _mm256_cvtepi8_epi16(load_128(block.scales));
            const __m256i   offset = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(scales, 5));
            alignas(32) int pairs[8];
            _mm256_store_si256(reinterpret_cast<__m256i *>(pairs), scales);

            const size_t    at     = size_t(b) * a.columns + first;
            const int8_t *  values = static_cast<const int8_t *>(a.values) + 256 * at;
            const int16_t * sums16 = static_cast<const int16_t *>(a.sums) + 16 * at;

            __m256i sums[columns];
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                sums[c] = _mm256_madd_epi16(offset, load_256(sums16 + 16 * c));
            }
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                const __m256i l0 = load_256(block.ql + 64 * j);
                const __m256i l1 = load_256(block.ql + 64 * j + 32);
                const __m256i h  = load_256(block.qh + 32 * j);

                const auto weights = [&](__m256i low, __m256i high) {
                    return _mm256_or_si256(_mm256_and_si256(low, low_nibbles), _mm256_and_si256(high, bits_4_5));
                };
                const __m256i x[4] = {
                    weights(l0, _mm256_slli_epi16(h, 4)),
                    weights(l1, _mm256_slli_epi16(h, 2)),
                    weights(_mm256_srli_epi16(l0, 4), h),
                    weights(_mm256_srli_epi16(l1, 4), _mm256_srli_epi16(h, 2)),
                };
                __m256i scale[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    scale[k] = _mm256_shuffle_epi8(_mm256_set1_epi32(pairs[4 * j + k]), first_second);
                }
#pragma GCC unroll 4
                for (int c = 0; c < columns; ++c) {
                    const int8_t * y = values + 256 * c + 128 * j;
#pragma GCC unroll 4
                    for (int k = 0; k < 4; ++k) {
                        const __m256i products = _mm256_maddubs_epi16(x[k], load_256(y + 32 * k));
                        sums[c]                = add_word_products(sums[c], products, scale[k]);
                    }
                }
            }
            const __m256  d        = _mm256_set1_ps(half_to_float(block.d));
            const float * scales_c = a.scales + size_t(b) * max_columns + first;
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                acc[c] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_broadcast_ss(scales_c + c), d),
                                         _mm256_cvtepi32_ps(sums[c]), acc[c]);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) {
            out[c * ld] = sum_of(acc[c]);
        }
    }
};

}  // namespace

namespace LORADROP_KERNELS {
const kernel q6_K_plain = {run<plain_rows>, 1, sums::of_16, 0, 0, all_columns};
}

}  // namespace loradrop::cpu
