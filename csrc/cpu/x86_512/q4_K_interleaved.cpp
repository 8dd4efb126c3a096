// Q4_K, eight rows interleaved.
//
// A vector holds eight weights of each of eight rows: two int32 lanes a row. The sum of a sub-block in a lane has 16
// products of at most 15 * 128, thus fits 16 bits: two sub-blocks share a lane, and vpdpwssd multiplies both with their
// scales and adds them. The integer sums of a block of 256 are exact, and only they become floats, as in ggml:
//     acc     = fma(float(sum of products * scales), d_row * d_column, acc)
//     acc_min = fma(float(sum of mins * sums),    dmin_row * d_column, acc_min)
// The two live in the even and odd lanes of one vector.
#include "cpu/x86/kernels.h"
#include "cpu/x86_512/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

struct tables {
    alignas(64) uint32_t scale_words[16];  // sub-block s: the words with scales 0-3 and 4-7
    alignas(64) uint32_t high_words[16];   // sub-block s: (unused, the word whose top bits complete scales 4-7)
    alignas(64) uint32_t min_words[16];
    alignas(64) uint32_t min_high_words[16];
    alignas(64) uint8_t spread[4][64];  // scales of two sub-blocks to the 16-bit pairs of both lanes of each row
    alignas(64) uint8_t mins[2][64];    // mins of four sub-blocks to the 16-bit lanes of each row
};

constexpr tables make_tables() {
    tables t{};
    for (uint32_t s = 0; s < 8; ++s) {
        t.scale_words[2 * s]        = 3 * s;
        t.scale_words[2 * s + 1]    = 3 * s + 2;
        t.high_words[2 * s + 1]     = 3 * s;
        t.min_words[2 * s]          = 3 * s + 1;
        t.min_words[2 * s + 1]      = 3 * s + 2;
        t.min_high_words[2 * s + 1] = 3 * s + 1;
        for (int lane = 0; lane < 16; ++lane) {
            t.spread[s / 2][4 * lane + 2 * (s % 2)] = static_cast<uint8_t>(8 * s + lane / 2);
        }
    }
    for (int half = 0; half < 2; ++half) {
        for (int row = 0; row < 8; ++row) {
            for (int s = 0; s < 4; ++s) {
                t.mins[half][8 * row + 2 * s] = static_cast<uint8_t>(8 * (4 * half + s) + row);
            }
        }
    }
    return t;
}

constexpr tables table = make_tables();

// 64 bytes each: [sub-block][row]
void unpack_scales(const block_q4_Kx8 & w, __m512i & scales, __m512i & mins) {
    const __m512i a = load_512(w.scales);
    const __m512i b = _mm512_castsi256_si512(load_256(w.scales + 64));

    const __m512i low_6_or_4 = _mm512_set1_epi64(0x0f0f0f0f3f3f3f3f);
    const __m512i top_2      = _mm512_set1_epi64(0x3030303000000000);

    const __m512i s      = _mm512_permutex2var_epi32(a, load_512(table.scale_words), b);
    const __m512i s_high = _mm512_permutex2var_epi32(a, load_512(table.high_words), b);
    scales = _mm512_or_si512(_mm512_and_si512(s, low_6_or_4), _mm512_and_si512(_mm512_srli_epi16(s_high, 2), top_2));

    const __m512i m      = _mm512_permutex2var_epi32(a, load_512(table.min_words), b);
    const __m512i m_high = _mm512_permutex2var_epi32(a, load_512(table.min_high_words), b);
    const __m512i m_low  = _mm512_mask_srli_epi32(m, 0xaaaa, m, 4);
    mins = _mm512_or_si512(_mm512_and_si512(m_low, low_6_or_4), _mm512_and_si512(_mm512_srli_epi16(m_high, 2), top_2));
}

// Of a sub-block: 32 weights of each row with 32 activations, in two lanes a row.
__m512i product(const __m512i * x, const int8_t * y) {
    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), x[0], spread_8_bytes(y));
    sum         = _mm512_dpbusd_epi32(sum, x[1], spread_8_bytes(y + 8));
    sum         = _mm512_dpbusd_epi32(sum, x[2], spread_8_bytes(y + 16));
    return _mm512_dpbusd_epi32(sum, x[3], spread_8_bytes(y + 24));
}

template <int columns>
void eight_rows(const block_q4_Kx8 * w, const panel & a, float * out, size_t ld, size_t ahead) {
    const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
    const __m512i pairs       = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);

    __m512 acc[columns];
    for (auto & sum : acc) {
        sum = _mm512_setzero_ps();
    }

    for (int b = 0; b < a.blocks; ++b) {
        const block_q4_Kx8 & block = w[b];
        prefetch(&block, ahead);
        prefetch(block.scales + 48, ahead);  // in the second cache line of eighteen

        __m512i scales, mins;
        unpack_scales(block, scales, mins);

        const int8_t * values = static_cast<const int8_t *>(a.values) + size_t(b) * columns * 256;

        __m512i sums[columns];
        for (auto & sum : sums) {
            sum = _mm512_setzero_si512();
        }

#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair) {
            __m512i low[4], high[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const uint8_t * from = block.qs + 256 * pair + 64 * i;
                prefetch(from, ahead);  // spread over the block: in one burst it would cost more than it gains
                const __m512i x = load_512(from);
                low[i]          = _mm512_and_si512(x, low_nibbles);
                high[i]         = _mm512_and_si512(_mm512_srli_epi16(x, 4), low_nibbles);
            }
            const __m512i scale =
                _mm512_maskz_permutexvar_epi8(0x5555555555555555, load_512(table.spread[pair]), scales);
#pragma GCC unroll 8
            for (int c = 0; c < columns; ++c) {
                const int8_t * y = values + 256 * c + 64 * pair;
                sums[c] = _mm512_dpwssd_epi32(sums[c], join_words(product(low, y), product(high, y + 32)), scale);
            }
        }

        const __m512i mins0 = _mm512_maskz_permutexvar_epi8(0x5555555555555555, load_512(table.mins[0]), mins);
        const __m512i mins1 = _mm512_maskz_permutexvar_epi8(0x5555555555555555, load_512(table.mins[1]), mins);

        // d and dmin of a row side by side
        const __m512 d = _mm512_permutexvar_ps(pairs, _mm512_cvtph_ps(load_256(block.d)));
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) {
            const int16_t * q = static_cast<const int16_t *>(a.sums) + (size_t(b) * columns + c) * 8;

            __m512i min = _mm512_dpwssd_epi32(_mm512_setzero_si512(), mins0, spread_8_bytes(q));
            min         = _mm512_dpwssd_epi32(min, mins1, spread_8_bytes(q + 4));

            // the two lanes of a row become one: the products' in the even lane, the mins' in the odd one
            __m512i both = _mm512_add_epi32(sums[c], _mm512_srli_epi64(sums[c], 32));
            both         = _mm512_mask_add_epi32(both, 0xaaaa, min, _mm512_slli_epi64(min, 32));

            const __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(a.scales[size_t(b) * max_columns + c]));
            acc[c]             = _mm512_fmadd_ps(_mm512_cvtepi32_ps(both), scale, acc[c]);
        }
    }

    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i odds  = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0);
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
        const __m256 sum = _mm512_castps512_ps256(_mm512_permutexvar_ps(evens, acc[c]));
        const __m256 min = _mm512_castps512_ps256(_mm512_permutexvar_ps(odds, acc[c]));
        _mm256_storeu_ps(out + c * ld, _mm256_sub_ps(sum, min));
    }
}

struct interleaved_rows {
    template <int columns>
    static void rows(const void * w, size_t row_bytes, int rows, const panel & a, float * out, size_t ld) {
        // One column, or few that stay in the first cache: the hardware's prefetching does better alone.
        const bool   alone = columns == 1 || (columns < 4 && a.blocks * columns * 292 < 16384);
        const size_t ahead = alone ? 0 : 4096;
        for (int row = 0; row < rows; row += 8) {
            const void * from = static_cast<const char *>(w) + row * row_bytes;
            eight_rows<columns>(static_cast<const block_q4_Kx8 *>(from), a, out + row, ld, ahead);
        }
    }
};

}  // namespace

namespace avx512 {
const kernel q4_K_interleaved = {run<interleaved_rows>, 8, sums::of_32, 0, 0, all_columns};
}

}  // namespace loradrop::cpu
