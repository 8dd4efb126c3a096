// Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, a row after the other.
//
// ggml keeps eight float sums a row, of which sum l takes the bytes 4 l to 4 l + 3 of every block of 32:
//     acc = fma(float(sum of products), d_row * d_column, acc)
// so two columns share a vector, and a block's weights lie twice in one. Where weights are signed, the activations are
// made unsigned by adding 128, and 128 times the weights is taken off again.
#include "cpu/x86/kernels.h"
#include "cpu/x86_512/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

typedef uint32_t __attribute__((may_alias, aligned(1))) four_bytes;

// Low nibbles, then high ones.
__m512i nibbles_twice(const uint8_t * p) {
    const __m512i up_to_shift = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    return _mm512_and_si512(_mm512_srlv_epi64(_mm512_broadcast_i32x4(load_128(p)), up_to_shift),
                            _mm512_set1_epi8(0x0f));
}

__mmask64 bits_twice(const uint8_t * p) {
    const uint64_t bits = *reinterpret_cast<const four_bytes *>(p);
    return bits | bits << 32;
}

struct q4_0 {
    using block                     = block_q4_0;
    static constexpr bool is_signed = true;
    static __m512i        weights(const block & b) { return _mm512_sub_epi8(nibbles_twice(b.qs), _mm512_set1_epi8(8)); }
};

struct q4_1 {
    using block                     = block_q4_1;
    static constexpr bool is_signed = false;
    static __m512i        weights(const block & b) { return nibbles_twice(b.qs); }
};

struct q5_0 {
    using block                     = block_q5_0;
    static constexpr bool is_signed = true;
    static __m512i        weights(const block & b) {
        const __m512i x = nibbles_twice(b.qs);
        return _mm512_mask_sub_epi8(x, ~bits_twice(b.qh), x, _mm512_set1_epi8(16));
    }
};

struct q5_1 {
    using block                     = block_q5_1;
    static constexpr bool is_signed = false;
    static __m512i        weights(const block & b) {
        const __m512i x = nibbles_twice(b.qs);
        return _mm512_mask_add_epi8(x, bits_twice(b.qh), x, _mm512_set1_epi8(16));
    }
};

struct q8_0 {
    using block                     = block_q8_0;
    static constexpr bool is_signed = true;
    static __m512i        weights(const block & b) { return _mm512_broadcast_i64x4(load_256(b.qs)); }
};

// A block begins with its scale and, if it has one, its min: as floats, in turn. Four bytes are spread from memory, for
// that takes no port of the shuffles.
template <typename format>
__m256 scale_and_min(const typename format::block & b) {
    return _mm256_cvtph_ps(_mm_castps_si128(_mm_broadcast_ss(reinterpret_cast<const float *>(&b))));
}

template <typename format, int columns>
void one_row(const typename format::block * w, const panel & a, float * out, size_t ld, size_t ahead) {
    constexpr int pairs    = (columns + 1) / 2;
    const __m512i one_half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);

    __m512 acc[pairs];
    for (auto & sum : acc) {
        sum = _mm512_setzero_ps();
    }
    [[maybe_unused]] __m256 acc_min = _mm256_setzero_ps();  // a lane for each column

    const auto * values = static_cast<const int8_t *>(a.values);
    for (int b = 0; b < a.blocks; ++b) {
        const typename format::block & block = w[b];
        prefetch(&block, ahead);

        const __m512i x       = format::weights(block);
        const __m256  of_row  = scale_and_min<format>(block);
        const __m256  of_cols = _mm256_load_ps(a.scales + size_t(b) * max_columns);
        const __m512  scales  = _mm512_castps256_ps512(_mm256_mul_ps(_mm256_moveldup_ps(of_row), of_cols));
        __m512i       begin   = _mm512_setzero_si512();
        if constexpr (format::is_signed) {
            const __m512i added = _mm512_dpbusd_epi32(begin, _mm512_set1_epi8(static_cast<char>(0x80)), x);
            begin               = _mm512_sub_epi32(begin, added);
        } else {
            const __m256 sums = _mm256_load_ps(static_cast<const float *>(a.sums) + size_t(b) * max_columns);
            acc_min           = _mm256_fmadd_ps(_mm256_movehdup_ps(of_row), sums, acc_min);
        }
#pragma GCC unroll 4
        for (int p = 0; p < pairs; ++p) {
            // the second half of a last single column is never used
            const __m512i y   = load_512(values + 32 * (size_t(b) * columns + 2 * p));
            const __m512i sum = format::is_signed ? _mm512_dpbusd_epi32(begin, y, x) : _mm512_dpbusd_epi32(begin, x, y);
            const __m512i of_pair = _mm512_add_epi32(one_half, _mm512_set1_epi32(2 * p));
            acc[p] = _mm512_fmadd_ps(_mm512_permutexvar_ps(of_pair, scales), _mm512_cvtepi32_ps(sum), acc[p]);
        }
    }

    alignas(32) float mins[max_columns];
    _mm256_store_ps(mins, acc_min);
#pragma GCC unroll 4
    for (int p = 0; p < pairs; ++p) {
        const float even = sum_of(_mm512_castps512_ps256(acc[p]));
        const float odd  = sum_of(_mm512_extractf32x8_ps(acc[p], 1));
        out[2 * p * ld]  = format::is_signed ? even : even + mins[2 * p];
        if (2 * p + 1 < columns) {
            out[(2 * p + 1) * ld] = format::is_signed ? odd : odd + mins[2 * p + 1];
        }
    }
}

template <typename format>
struct plain_rows {
    template <int columns>
    static void rows(const void * w, size_t row_bytes, int rows, const panel & a, float * out, size_t ld) {
        const size_t ahead = 1024;
        for (int row = 0; row < rows; ++row) {
            const void * from = static_cast<const char *>(w) + row * row_bytes;
            one_row<format, columns>(static_cast<const typename format::block *>(from), a, out + row, ld, ahead);
        }
    }
};

}  // namespace

namespace avx512 {
const kernel q4_0_plain = {run<plain_rows<q4_0>>, 1, sums::none, 128, 0, all_columns};
const kernel q4_1_plain = {run<plain_rows<q4_1>>, 1, sums::scaled, 0, 0, all_columns};
const kernel q5_0_plain = {run<plain_rows<q5_0>>, 1, sums::none, 128, 0, all_columns};
const kernel q5_1_plain = {run<plain_rows<q5_1>>, 1, sums::scaled, 0, 0, all_columns};
const kernel q8_0_plain = {run<plain_rows<q8_0>>, 1, sums::none, 128, 0, all_columns};
}  // namespace avx512

}  // namespace loradrop::cpu
