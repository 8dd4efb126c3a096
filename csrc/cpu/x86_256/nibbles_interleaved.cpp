// Q4_0, IQ4_NL and MXFP4, eight rows interleaved; the same bits as x86_512/nibbles_interleaved.cpp.
//
// Weights are made unsigned by an offset, which the activations' sums take off again. Without VNNI, those of IQ4_NL are
// too great for that, and their signs go to the activations.
#include "cpu/x86/kernels.h"
#include "cpu/x86_256/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

struct q4_0_x8 {
    using block                   = block_q4_0x8;
    static constexpr bool is_wide = false;
    static constexpr int  offset  = 8;
    // ggml flips the top bit of each nibble when it interleaves
    static __m128i table() { return _mm_setr_epi8(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7); }
    static __m256  scales(const block & b) { return _mm256_cvtph_ps(load_128(b.d)); }
};

struct iq4_nl_x8 {
    using block                   = block_iq4_nlx8;
    static constexpr bool is_wide = !has_vnni;
    static constexpr int  offset  = is_wide ? 0 : 128;
    static __m128i        table() {
        const __m128i weights = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
        return _mm_xor_si128(weights, _mm_set1_epi8(static_cast<char>(offset)));
    }
    static __m256 scales(const block & b) { return _mm256_cvtph_ps(load_128(b.d)); }
};

struct mxfp4_x8 {
    using block                   = block_mxfp4x8;
    static constexpr bool is_wide = false;
    static constexpr int  offset  = 12;
    static __m128i        table() {
        const __m128i weights = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
        return _mm_add_epi8(weights, _mm_set1_epi8(offset));
    }
    // half of 2^(e - 127), which is no normal number for e below 2
    static __m256 scales(const block & b) {
        const __m256i e      = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(b.e)));
        const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        const __m256i small  = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
        return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
    }
};

// Four rows' 32 weights with 32 activations, in two lanes a row.
template <typename format>
__m256i product(const __m256i * x, const int8_t * y) {
    if constexpr (format::is_wide) {
        __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const __m256i signed_y = _mm256_sign_epi8(spread_8_bytes(y + 8 * i), x[i]);
            sum                    = add_products(sum, _mm256_abs_epi8(x[i]), signed_y);
        }
        return sum;
    } else if constexpr (has_vnni) {
        __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            sum = add_products(sum, x[i], spread_8_bytes(y + 8 * i));
        }
        return sum;
    } else {
        // of 16 bits: eight products of at most 24 * 128
        const auto    pairs = [&](int i) { return _mm256_maddubs_epi16(x[i], spread_8_bytes(y + 8 * i)); };
        const __m256i sum =
            _mm256_add_epi16(_mm256_add_epi16(pairs(0), pairs(1)), _mm256_add_epi16(pairs(2), pairs(3)));
        return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    }
}

template <typename format>
struct interleaved_rows {
    static constexpr int    rows_at_once = 8;
    static constexpr size_t ahead        = 4096;

    template <int columns>
    static void rows(const void * w, const panel & a, int first, float * out, size_t ld, size_t ahead) {
        const __m256i low_nibbles  = _mm256_set1_epi8(0x0f);
        const __m256i table        = _mm256_broadcastsi128_si256(format::table());
        const __m256i rows_of_sums = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);  // as _mm256_hadd_epi32 leaves them

        __m256 acc[columns];
        for (auto & sum : acc) {
            sum = _mm256_setzero_ps();
        }
        for (int b = 0; b < a.blocks; ++b) {
            const auto & block = static_cast<const typename format::block *>(w)[b];
            prefetch(&block, sizeof(block), ahead);

            __m256i x[2][4];  // of rows 0-3 and 4-7
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const __m256i q0 = load_256(block.qs + 32 * half);
                const __m256i q1 = load_256(block.qs + 64 + 32 * half);
                x[half][0]       = _mm256_shuffle_epi8(table, _mm256_and_si256(q0, low_nibbles));
                x[half][1]       = _mm256_shuffle_epi8(table, _mm256_and_si256(q1, low_nibbles));
                x[half][2]       = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(q0, 4), low_nibbles));
                x[half][3]       = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(q1, 4), low_nibbles));
            }
            const __m256 d = _mm256_permutevar8x32_ps(format::scales(block), rows_of_sums);

            const int8_t *  values = static_cast<const int8_t *>(a.values) + 32 * (size_t(b) * a.columns + first);
            const int32_t * sums   = static_cast<const int32_t *>(a.sums) + size_t(b) * max_columns + first;
            const float *   scales = a.scales + size_t(b) * max_columns + first;
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                const int8_t * y   = values + 32 * c;
                const __m256i  sum = _mm256_add_epi32(
                    _mm256_hadd_epi32(product<format>(x[0], y), product<format>(x[1], y)), _mm256_set1_epi32(sums[c]));
                acc[c] =
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(d, _mm256_broadcast_ss(scales + c)), acc[c]);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) {
            _mm256_storeu_ps(out + c * ld, _mm256_permutevar8x32_ps(acc[c], rows_of_sums));  // its own inverse
        }
    }
};

template <typename format>
constexpr kernel make_kernel() {
    return {run<interleaved_rows<format>>,
            8,
            sums::of_block,
            0,
            -format::offset,
            format::is_wide ? max_columns : all_columns};
}

}  // namespace

namespace LORADROP_KERNELS {
const kernel q4_0_interleaved   = make_kernel<q4_0_x8>();
const kernel iq4_nl_interleaved = make_kernel<iq4_nl_x8>();
const kernel mxfp4_interleaved  = make_kernel<mxfp4_x8>();
}  // namespace LORADROP_KERNELS

}  // namespace loradrop::cpu
