// What the kernels of 256 bits share; compiled with AVX-VNNI and without. All in an unnamed namespace: code with these
// instructions must never be the copy that the linker keeps for others.
#pragma once

#include "cpu/kernel.h"

#include <immintrin.h>

namespace loradrop::cpu {
namespace {

#ifdef __AVXVNNI__
constexpr bool has_vnni = true;
#else
constexpr bool has_vnni = false;
#endif

typedef uint32_t __attribute__((may_alias, aligned(1))) four_bytes;
typedef uint64_t __attribute__((may_alias, aligned(1))) eight_bytes;

inline __m256i load_256(const void * p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}

inline __m128i load_128(const void * p) {
    return _mm_loadu_si128(static_cast<const __m128i *>(p));
}

inline __m256i spread_8_bytes(const void * p) {
    return _mm256_set1_epi64x(static_cast<long long>(*static_cast<const eight_bytes *>(p)));
}

inline float half_to_float(uint16_t half) {
    return _cvtsh_ss(half);
}

// sums + the products of unsigned x with signed y, of four bytes in each lane. Without VNNI those of two may have no
// more than 16 bits.
inline __m256i add_products(__m256i sums, __m256i x, __m256i y) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sums, x, y);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1)));
#endif
}

// sums + the products of words, of two in each lane.
inline __m256i add_word_products(__m256i sums, __m256i x, __m256i y) {
#ifdef __AVXVNNI__
    return _mm256_dpwssd_avx_epi32(sums, x, y);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(x, y));
#endif
}

// The sum of eight floats in ggml's order.
inline float sum_of(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    s        = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s        = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

inline void prefetch(const void * p, size_t size, size_t ahead) {
    for (size_t i = 0; ahead && i < size; i += 64) {
        _mm_prefetch(static_cast<const char *>(p) + i + ahead, _MM_HINT_T0);
    }
}

// Calls Kernel::rows<columns>, whose loops over columns have a fixed length, for four at a time: more
// would not fit the registers. The second time the weights are in the cache.
template <typename Kernel>
void run(const void * w, size_t row_bytes, int rows, const panel & a, float * out, size_t ld) {
    using function                         = void (*)(const void *, const panel &, int, float *, size_t, size_t);
    static constexpr function by_columns[] = {
        Kernel::template rows<1>,
        Kernel::template rows<2>,
        Kernel::template rows<3>,
        Kernel::template rows<4>,
    };
    for (int row = 0; row < rows; row += Kernel::rows_at_once) {
        const char * from = static_cast<const char *>(w) + row * row_bytes;
        for (int first = 0; first < a.columns; first += 4) {
            const int n = a.columns - first < 4 ? a.columns - first : 4;
            by_columns[n - 1](from, a, first, out + first * ld + row, ld, first ? 0 : Kernel::ahead);
        }
    }
}

}  // namespace
}  // namespace loradrop::cpu
