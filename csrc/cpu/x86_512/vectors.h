// What the kernels of 512 bits share. All in an unnamed namespace: code with these instructions must never be the copy
// that the linker keeps for others.
#pragma once

#include "cpu/kernel.h"

#include <immintrin.h>

namespace loradrop::cpu {
namespace {

inline __m512i load_512(const void * p) {
    return _mm512_loadu_si512(p);
}

inline __m256i load_256(const void * p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}

inline __m128i load_128(const void * p) {
    return _mm_loadu_si128(static_cast<const __m128i *>(p));
}

inline __m512i spread_8_bytes(const void * p) {
    typedef long long __attribute__((may_alias, aligned(1))) eight_bytes;
    return _mm512_set1_epi64(*static_cast<const eight_bytes *>(p));
}

inline __m512i spread_4_bytes(const void * p) {
    typedef int __attribute__((may_alias, aligned(1))) four_bytes;
    return _mm512_set1_epi32(*static_cast<const four_bytes *>(p));
}

inline float half_to_float(uint16_t half) {
    return _cvtsh_ss(half);
}

// The low words of x's lanes beside those of y: two sums that fit 16 bits share a lane. Shifts and masked moves have
// ports of their own on Zen 4, where shuffles take the multipliers'.
inline __m512i join_words(__m512i x, __m512i y) {
    return _mm512_mask_mov_epi16(x, 0xaaaaaaaa, _mm512_slli_epi32(y, 16));
}

// The sum of eight floats in ggml's order.
inline float sum_of(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    s        = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s        = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

inline void prefetch(const void * p, size_t ahead) {
    if (ahead) {
        _mm_prefetch(static_cast<const char *>(p) + ahead, _MM_HINT_T0);
    }
}

// Calls Kernel::rows<columns>, whose loops over columns have a fixed length.
template <typename Kernel>
void run(const void * w, size_t row_bytes, int rows, const panel & a, float * out, size_t ld) {
    using function                         = void (*)(const void *, size_t, int, const panel &, float *, size_t);
    static constexpr function by_columns[] = {
        Kernel::template rows<1>, Kernel::template rows<2>, Kernel::template rows<3>, Kernel::template rows<4>,
        Kernel::template rows<5>, Kernel::template rows<6>, Kernel::template rows<7>, Kernel::template rows<8>,
    };
    by_columns[a.columns - 1](w, row_bytes, rows, a, out, ld);
}

}  // namespace
}  // namespace loradrop::cpu
