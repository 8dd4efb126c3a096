// Q4_0, IQ4_NL and MXFP4, eight rows interleaved.
//
// A vector holds eight weights of each of eight rows: two int32 lanes a row. Four vectors are a block of 32, whose sum
// becomes a float, as in ggml:
//     acc = fma(float(sum of products), d_row * d_column, acc)
// Two columns share a vector of floats, one in the even lanes and one in the odd ones. The weights of a nibble come out
// of a table, made unsigned by an offset, which the activations' sums take off again.
#include "cpu/x86/kernels.h"
#include "cpu/x86_512/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

// Scales of the eight rows, each in two neighbouring lanes.
__m512 twice_each(__m256 x) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                                 _mm512_castps256_ps512(x));
}

struct q4_0_x8 {
    using block                 = block_q4_0x8;
    static constexpr int offset = 8;
    // ggml flips the top bit of each nibble when it interleaves
    static __m128i table() { return _mm_setr_epi8(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7); }
    static __m256  scales(const block & b) { return _mm256_cvtph_ps(load_128(b.d)); }
};

struct iq4_nl_x8 {
    using block                 = block_iq4_nlx8;
    static constexpr int offset = 128;
    static __m128i       table() {
        const __m128i weights = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
        return _mm_xor_si128(weights, _mm_set1_epi8(static_cast<char>(0x80)));
    }
    static __m256 scales(const block & b) { return _mm256_cvtph_ps(load_128(b.d)); }
};

struct mxfp4_x8 {
    using block                 = block_mxfp4x8;
    static constexpr int offset = 12;
    static __m128i       table() {
        const __m128i weights = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
        return _mm_add_epi8(weights, _mm_set1_epi8(offset));
    }
    // half of 2^(e - 127), which is no normal number for e below 2
    static __m256 scales(const block & b) {
        const __m256i e      = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(b.e)));
        const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        const __m256i small  = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
        return _mm256_castsi256_ps(
            _mm256_mask_mov_epi32(normal, _mm256_cmplt_epi32_mask(e, _mm256_set1_epi32(2)), small));
    }
};

template <typename format, int columns>
void eight_rows(const typename format::block * w, const panel & a, float * out, size_t ld, size_t ahead) {
    constexpr int pairs       = (columns + 1) / 2;
    const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
    const __m512i table       = _mm512_broadcast_i32x4(format::table());

    __m512 acc[pairs];
    for (auto & sum : acc) {
        sum = _mm512_setzero_ps();
    }
    for (int b = 0; b < a.blocks; ++b) {
        const typename format::block & block = w[b];
        prefetch(&block, ahead);
        prefetch(block.qs + 48, ahead);

        const __m512i q0   = load_512(block.qs);
        const __m512i q1   = load_512(block.qs + 64);
        const __m512i x[4] = {
            _mm512_shuffle_epi8(table, _mm512_and_si512(q0, low_nibbles)),
            _mm512_shuffle_epi8(table, _mm512_and_si512(q1, low_nibbles)),
            _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(q0, 4), low_nibbles)),
            _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(q1, 4), low_nibbles)),
        };
        const __m512 d = twice_each(format::scales(block));

        const int8_t *  values = static_cast<const int8_t *>(a.values) + size_t(b) * columns * 32;
        const int32_t * sums   = static_cast<const int32_t *>(a.sums) + size_t(b) * max_columns;
        const float *   scales = a.scales + size_t(b) * max_columns;

        const auto product = [&](int c) {
            __m512i sum = _mm512_set1_epi32(sums[c]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                sum = _mm512_dpbusd_epi32(sum, x[i], spread_8_bytes(values + 32 * c + 8 * i));
            }
            return sum;
        };
#pragma GCC unroll 4
        for (int p = 0; p < pairs; ++p) {
            const __m512i even = product(2 * p);
            __m512i       both = _mm512_add_epi32(even, _mm512_srli_epi64(even, 32));
            if (2 * p + 1 < columns) {
                const __m512i odd = product(2 * p + 1);
                both              = _mm512_mask_add_epi32(both, 0xaaaa, odd, _mm512_slli_epi64(odd, 32));
            }
            const __m512 scale = _mm512_mul_ps(d, _mm512_castsi512_ps(spread_8_bytes(scales + 2 * p)));
            acc[p]             = _mm512_fmadd_ps(_mm512_cvtepi32_ps(both), scale, acc[p]);
        }
    }

    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i odds  = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0);
#pragma GCC unroll 4
    for (int p = 0; p < pairs; ++p) {
        _mm256_storeu_ps(out + 2 * p * ld, _mm512_castps512_ps256(_mm512_permutexvar_ps(evens, acc[p])));
        if (2 * p + 1 < columns) {
            _mm256_storeu_ps(out + (2 * p + 1) * ld, _mm512_castps512_ps256(_mm512_permutexvar_ps(odds, acc[p])));
        }
    }
}

template <typename format>
struct interleaved_rows {
    template <int columns>
    static void rows(const void * w, size_t row_bytes, int rows, const panel & a, float * out, size_t ld) {
        const size_t ahead = 4096;
        for (int row = 0; row < rows; row += 8) {
            const void * from = static_cast<const char *>(w) + row * row_bytes;
            eight_rows<format, columns>(static_cast<const typename format::block *>(from), a, out + row, ld, ahead);
        }
    }
};

// Each of a row's two lanes takes off half of the offset.
template <typename format>
constexpr kernel make_kernel() {
    return {run<interleaved_rows<format>>, 8, sums::of_block, 0, -format::offset / 2, all_columns};
}

}  // namespace

namespace avx512 {
const kernel q4_0_interleaved   = make_kernel<q4_0_x8>();
const kernel iq4_nl_interleaved = make_kernel<iq4_nl_x8>();
const kernel mxfp4_interleaved  = make_kernel<mxfp4_x8>();
}  // namespace avx512

}  // namespace loradrop::cpu
