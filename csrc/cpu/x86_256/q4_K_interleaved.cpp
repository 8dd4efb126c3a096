// Q4_K, eight rows interleaved; the same bits as x86_512/q4_K_interleaved.cpp.
#include "cpu/x86/k_scales.h"
#include "cpu/x86/kernels.h"
#include "cpu/x86_256/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

struct interleaved_rows {
    static constexpr int    rows_at_once = 8;
    static constexpr size_t ahead        = 4096;

    template <int columns>
    static void rows(const void * w, const panel & a, int first, float * out, size_t ld, size_t ahead) {
        const __m256i low_nibbles = _mm256_set1_epi8(0x0f);
        // scales of rows 0-3 and of rows 4-7 as 16 bits, four times each
        const __m256i spread[2] = {
            _mm256_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1, 2, -1, 2, -1, 2, -1, 2, -1, 3, -1,
                             3, -1, 3, -1, 3, -1),
            _mm256_setr_epi8(4, -1, 4, -1, 4, -1, 4, -1, 5, -1, 5, -1, 5, -1, 5, -1, 6, -1, 6, -1, 6, -1, 6, -1, 7, -1,
                             7, -1, 7, -1, 7, -1),
        };
        const __m256i rows_of_sums = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);  // as _mm256_hadd_epi32 leaves them

        __m256 acc[columns], acc_min[columns];
        for (int c = 0; c < columns; ++c) {
            acc[c] = acc_min[c] = _mm256_setzero_ps();
        }
        for (int b = 0; b < a.blocks; ++b) {
            const block_q4_Kx8 & block = static_cast<const block_q4_Kx8 *>(w)[b];
            prefetch(&block, sizeof(block), ahead);

            uint64_t scales[8], mins[8];
            for (int s = 0; s < 8; ++s) {
                unpack_scales(block.scales + 12 * s, scales[s], mins[s]);
            }

            const size_t   at     = size_t(b) * a.columns + first;
            const int8_t * values = static_cast<const int8_t *>(a.values) + 256 * at;

            __m256i sums[2][columns];
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                for (int c = 0; c < columns; ++c) {
                    sums[half][c] = _mm256_setzero_si256();
                }
                for (int s = 0; s < 8; ++s) {
                    const auto nibbles = [&](int k) {
                        const __m256i x = load_256(block.qs + 256 * (s / 2) + 64 * k + 32 * half);
                        return _mm256_and_si256(s % 2 ? _mm256_srli_epi16(x, 4) : x, low_nibbles);
                    };
                    const __m256i x0 = nibbles(0);
                    const __m256i x1 = nibbles(1);
                    const __m256i x2 = nibbles(2);
                    const __m256i x3 = nibbles(3);
                    const __m256i scale =
                        _mm256_shuffle_epi8(_mm256_set1_epi64x(static_cast<long long>(scales[s])), spread[half]);
#pragma GCC unroll 4
                    for (int c = 0; c < columns; ++c) {
                        const int8_t * y       = values + 256 * c + 32 * s;
                        const auto     product = [&](__m256i x, int i) {
                            return _mm256_maddubs_epi16(x, spread_8_bytes(y + 8 * i));
                        };
                        // of 16 bits: eight products of at most 15 * 128
                        const __m256i sum = _mm256_add_epi16(_mm256_add_epi16(product(x0, 0), product(x1, 1)),
                                                             _mm256_add_epi16(product(x2, 2), product(x3, 3)));
                        sums[half][c]     = add_word_products(sums[half][c], sum, scale);
                    }
                }
            }

            const __m256 d    = _mm256_permutevar8x32_ps(_mm256_cvtph_ps(load_128(block.d)), rows_of_sums);
            const __m256 dmin = _mm256_cvtph_ps(load_128(block.dmin));

            __m256i min_pairs[4];
#pragma GCC unroll 4
            for (int p = 0; p < 4; ++p) {
                min_pairs[p] =
                    _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(_mm_cvtsi64_si128(static_cast<long long>(mins[2 * p])),
                                                           _mm_cvtsi64_si128(static_cast<long long>(mins[2 * p + 1]))));
            }
            const float * column_scales = a.scales + size_t(b) * max_columns + first;
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                const int16_t * q   = static_cast<const int16_t *>(a.sums) + 8 * (at + c);
                __m256i         min = _mm256_setzero_si256();
#pragma GCC unroll 4
                for (int p = 0; p < 4; ++p) {
                    const int pair = static_cast<int>(*reinterpret_cast<const four_bytes *>(q + 2 * p));
                    min            = add_word_products(min, min_pairs[p], _mm256_set1_epi32(pair));
                }
                const __m256i sum = _mm256_hadd_epi32(sums[0][c], sums[1][c]);

                const __m256 d_column = _mm256_broadcast_ss(column_scales + c);
                acc[c]                = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(d, d_column), acc[c]);
                acc_min[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(min), _mm256_mul_ps(dmin, d_column), acc_min[c]);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) {
            const __m256 sum = _mm256_permutevar8x32_ps(acc[c], rows_of_sums);  // its own inverse
            _mm256_storeu_ps(out + c * ld, _mm256_sub_ps(sum, acc_min[c]));
        }
    }
};

}  // namespace

namespace LORADROP_KERNELS {
const kernel q4_K_interleaved = {run<interleaved_rows>, 8, sums::of_32, 0, 0, all_columns};
}

}  // namespace loradrop::cpu
