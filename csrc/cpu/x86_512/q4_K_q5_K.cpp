// Q4_K and Q5_K, a row after the other.
//
// ggml keeps eight float sums a row, of which sum l takes the bytes 4 l to 4 l + 3 of every 32; a vector holds two
// sub-blocks of 32, and its halves are added as integers at the end of a block of 256. Sums of four products, at most
// 31 * 128 * 4, fit 16 bits: two share a lane, and vpdpwssd multiplies both with their scales and adds them. The mins
// are summed up for all columns at once, a lane for each: in ggml's order, which is another for Q4_K than for Q5_K.
#include "cpu/x86/k_scales.h"
#include "cpu/x86/kernels.h"
#include "cpu/x86_512/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

struct tables {
    // scales of four sub-blocks: of the first two to the even words, of the others to the odd
    alignas(64) uint16_t spread[2][32];
};

constexpr tables make_tables() {
    tables t{};
    for (int j = 0; j < 2; ++j) {
        for (int word = 0; word < 32; ++word) {
            t.spread[j][word] = static_cast<uint16_t>(4 * j + 2 * (word % 2) + word / 16);
        }
    }
    return t;
}

constexpr tables table = make_tables();

// 32 bytes hold the low nibbles of a sub-block and, above them, the next one's.
__m512i two_sub_blocks(const uint8_t * qs) {
    const __m256i x = load_256(qs);
    return _mm512_and_si512(_mm512_inserti64x4(_mm512_castsi256_si512(x), _mm256_srli_epi16(x, 4), 1),
                            _mm512_set1_epi8(0x0f));
}

struct q4_K {
    using block                    = block_q4_K;
    static constexpr int min_lanes = 4;  // ggml sums the mins of each two neighbours for themselves
    static __m512i       weights(const block & b, int j) { return two_sub_blocks(b.qs + 32 * j); }
};

struct q5_K {
    using block                    = block_q5_K;
    static constexpr int min_lanes = 1;
    static __m512i       weights(const block & b, int j) {
        // bit 2 j of each byte is for the first sub-block, bit 2 j + 1 for the second
        const __m512i h  = _mm512_broadcast_i64x4(load_256(b.qh));
        const __m512i up = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(3), 1);
        const __m512i high = _mm512_sllv_epi16(_mm512_srlv_epi16(h, _mm512_set1_epi16(static_cast<short>(2 * j))), up);
        return _mm512_add_epi8(two_sub_blocks(b.qs + 32 * j), _mm512_and_si512(high, _mm512_set1_epi8(0x10)));
    }
};

template <typename format, int columns>
void one_row(const typename format::block * w, const panel & a, float * out, size_t ld, size_t ahead) {
    __m256 acc[columns];
    for (auto & sum : acc) {
        sum = _mm256_setzero_ps();
    }
    __m256 acc_min[format::min_lanes];  // a lane for each column
    for (auto & sum : acc_min) {
        sum = _mm256_setzero_ps();
    }
    for (int b = 0; b < a.blocks; ++b) {
        const typename format::block & block = w[b];
        for (size_t i = 0; i < sizeof(block); i += 64) {
            prefetch(reinterpret_cast<const char *>(&block) + i, ahead);
        }
        uint64_t scale_bytes, min_bytes;
        unpack_scales(block.scales, scale_bytes, min_bytes);
        const __m512i words =
            _mm512_castsi256_si512(_mm256_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<long long>(scale_bytes))));
        const __m512i scale[2] = {_mm512_permutexvar_epi16(load_512(table.spread[0]), words),
                                  _mm512_permutexvar_epi16(load_512(table.spread[1]), words)};
        __m512i       x[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            x[j] = format::weights(block, j);
        }

        const __m256    column_scales = _mm256_load_ps(a.scales + size_t(b) * max_columns);
        const __m256    d_min         = _mm256_mul_ps(_mm256_sub_ps(_mm256_setzero_ps(), column_scales),
                                                      _mm256_set1_ps(half_to_float(block.data.data.dmin)));
        alignas(16) int mins[4];
        _mm_store_si128(reinterpret_cast<__m128i *>(mins),
                        _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<long long>(min_bytes))));
        const auto * sums  = static_cast<const int16_t *>(a.sums) + size_t(b) * 64;
        __m256i      total = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) {
            const __m256i pair = _mm256_madd_epi16(_mm256_set1_epi32(mins[p]), load_256(sums + 16 * p));
            if constexpr (format::min_lanes == 4) {
                acc_min[p] = _mm256_fmadd_ps(d_min, _mm256_cvtepi32_ps(pair), acc_min[p]);
            } else {
                total = _mm256_add_epi32(total, pair);
            }
        }
        if constexpr (format::min_lanes == 1) {
            acc_min[0] = _mm256_fmadd_ps(d_min, _mm256_cvtepi32_ps(total), acc_min[0]);
        }

        // to spread one from memory takes none of the multipliers' ports
        alignas(32) float d[max_columns];
        _mm256_store_ps(d, _mm256_mul_ps(column_scales, _mm256_set1_ps(half_to_float(block.data.data.d))));

        const int8_t * values = static_cast<const int8_t *>(a.values) + size_t(b) * columns * 256;
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) {
            const auto product = [&](int k) {
                return _mm512_dpbusd_epi32(_mm512_setzero_si512(), x[k], load_512(values + 256 * c + 64 * k));
            };
            __m512i sum = _mm512_madd_epi16(join_words(product(0), product(1)), scale[0]);
            sum         = _mm512_dpwssd_epi32(sum, join_words(product(2), product(3)), scale[1]);

            const __m256i lanes = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
            acc[c]              = _mm256_fmadd_ps(_mm256_broadcast_ss(d + c), _mm256_cvtepi32_ps(lanes), acc[c]);
        }
    }

    if constexpr (format::min_lanes == 4) {
        acc_min[0] = _mm256_add_ps(_mm256_add_ps(acc_min[0], acc_min[2]), _mm256_add_ps(acc_min[1], acc_min[3]));
    }
    alignas(32) float mins[max_columns];
    _mm256_store_ps(mins, acc_min[0]);
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
        out[c * ld] = sum_of(acc[c]) + mins[c];
    }
}

template <typename format>
struct plain_rows {
    template <int columns>
    static void rows(const void * w, size_t row_bytes, int rows, const panel & a, float * out, size_t ld) {
        const size_t ahead = 2048;
        for (int row = 0; row < rows; ++row) {
            const void * from = static_cast<const char *>(w) + row * row_bytes;
            one_row<format, columns>(static_cast<const typename format::block *>(from), a, out + row, ld, ahead);
        }
    }
};

}  // namespace

namespace avx512 {
const kernel q4_K_plain = {run<plain_rows<q4_K>>, 1, sums::of_32_pairs, 0, 0, all_columns};
const kernel q5_K_plain = {run<plain_rows<q5_K>>, 1, sums::of_32_pairs, 0, 0, all_columns};
}  // namespace avx512

}  // namespace loradrop::cpu
