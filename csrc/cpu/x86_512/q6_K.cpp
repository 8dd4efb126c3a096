// Q6_K, a row after the other.
//
// ggml keeps eight float sums a row, of which sum l takes the bytes 4 l to 4 l + 3 of every 32; to give the same bits,
// so do we: a vector holds 64 weights of one row, and its halves are added as integers at the end of a block. vpdpbusd
// gives sums of four products, at most 63 * 128 * 4, thus of 16 bits: two of them share a lane, and vpdpwssd multiplies
// both with their scales and adds them. Weights are 0 to 63, less 32: that part is taken from the activations' sums.
#include "cpu/x86/kernels.h"
#include "cpu/x86_512/vectors.h"

#include "repack.h"

namespace loradrop::cpu {
namespace {

struct tables {
    // scales of 128 weights: of the first 64 to the even words, of the others to the odd
    alignas(64) uint16_t spread[2][32];
};

constexpr tables make_tables() {
    tables t{};
    for (int j = 0; j < 2; ++j) {
        for (int word = 0; word < 32; ++word) {
            t.spread[j][word] = static_cast<uint16_t>(8 * j + 4 * (word % 2) + word / 8);
        }
    }
    return t;
}

constexpr tables table = make_tables();

struct unpacked {
    __m512i x[4];      // 64 weights each
    __m512i scale[2];  // of x[0] and x[1], of x[2] and x[3]
    __m256i offset;    // -32 * scale
    float   d;
};

unpacked unpack(const block_q6_K & block) {
    const __m512i low_nibbles = _mm512_set1_epi8(0x0f);
    const __m512i bits_4_5    = _mm512_set1_epi8(0x30);
    const __m512i up_4_2      = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
    const __m512i down_0_2    = _mm512_inserti64x4(_mm512_set1_epi16(0), _mm256_set1_epi16(2), 1);

    unpacked u;
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
        const __m512i l = load_512(block.ql + 64 * j);
        const __m512i h = _mm512_broadcast_i64x4(load_256(block.qh + 32 * j));
        // added, for GCC makes vpternlog of "or", which takes a multiplier's port on Zen 4
        const auto join_bits = [&](__m512i low, __m512i high) {
            return _mm512_add_epi8(_mm512_and_si512(low, low_nibbles), _mm512_and_si512(high, bits_4_5));
        };
        u.x[2 * j]     = join_bits(l, _mm512_sllv_epi16(h, up_4_2));
        u.x[2 * j + 1] = join_bits(_mm512_srli_epi16(l, 4), _mm512_srlv_epi16(h, down_0_2));
    }
    const __m256i scales = _mm256_cvtepi8_epi16(load_128(block.scales));
    u.scale[0]           = _mm512_permutexvar_epi16(load_512(table.spread[0]), _mm512_castsi256_si512(scales));
    u.scale[1]           = _mm512_permutexvar_epi16(load_512(table.spread[1]), _mm512_castsi256_si512(scales));
    u.offset             = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(scales, 5));
    u.d                  = half_to_float(block.d);
    return u;
}

template <int columns>
void one_row(const block_q6_K * w, const panel & a, float * out, size_t ld, size_t ahead) {
    __m256 acc[columns];
    for (auto & sum : acc) {
        sum = _mm256_setzero_ps();
    }
    for (int b = 0; b < a.blocks; ++b) {
        const block_q6_K & block = w[b];
        for (size_t i = 0; i < sizeof(block); i += 64) {
            prefetch(reinterpret_cast<const char *>(&block) + i, ahead);
        }
        const unpacked  u      = unpack(block);
        const size_t    first  = size_t(b) * columns;
        const int8_t *  values = static_cast<const int8_t *>(a.values) + 256 * first;
        const int16_t * sums   = static_cast<const int16_t *>(a.sums) + 16 * first;

        // to spread one from memory takes none of the multipliers' ports
        alignas(32) float d[max_columns];
        _mm256_store_ps(d, _mm256_mul_ps(_mm256_set1_ps(u.d), _mm256_load_ps(a.scales + size_t(b) * max_columns)));
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) {
            const auto product = [&](int k) {
                return _mm512_dpbusd_epi32(_mm512_setzero_si512(), u.x[k], load_512(values + 256 * c + 64 * k));
            };
            __m512i sum = _mm512_madd_epi16(join_words(product(0), product(1)), u.scale[0]);
            sum         = _mm512_dpwssd_epi32(sum, join_words(product(2), product(3)), u.scale[1]);

            __m256i lanes = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
            lanes         = _mm256_dpwssd_epi32(lanes, u.offset, load_256(sums + 16 * c));
            acc[c]        = _mm256_fmadd_ps(_mm256_broadcast_ss(d + c), _mm256_cvtepi32_ps(lanes), acc[c]);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
        out[c * ld] = sum_of(acc[c]);
    }
}

struct plain_rows {
    template <int columns>
    static void rows(const void * w, size_t row_bytes, int rows, const panel & a, float * out, size_t ld) {
        const size_t ahead = 2048;
        for (int row = 0; row < rows; ++row) {
            const void * from = static_cast<const char *>(w) + row * row_bytes;
            one_row<columns>(static_cast<const block_q6_K *>(from), a, out + row, ld, ahead);
        }
    }
};

}  // namespace

namespace avx512 {
const kernel q6_K_plain = {run<plain_rows>, 1, sums::of_16, 0, 0, all_columns};
}

}  // namespace loradrop::cpu
