// ggml's vectors of products, and how it adds up what they hold.
#pragma once

#include "cpu/attention_scores.h"

#ifdef LORADROP_ATTENTION
namespace loradrop::cpu {

// add_up takes as many vectors as each has lanes, adds up each as ggml adds up one, and stores the sums in order.
#    if defined(__AVX512FP16__)
using score_vector       = __m512h;
constexpr int score_lane = 32;

inline score_vector load(const score_element * p) {
    return _mm512_loadu_ph(p);
}
inline score_vector zero() {
    return _mm512_setzero_ph();
}
inline score_vector fma(score_vector a, score_vector b, score_vector c) {
    return _mm512_fmadd_ph(a, b, c);
}
inline score_vector plus(score_vector a, score_vector b) {
    return _mm512_add_ph(a, b);
}
inline void store(score_element * p, score_vector v) {
    _mm512_store_ph(p, v);
}

// The lower halves of two vectors plus their upper halves.
inline __m512h fold(const score_element * a, const score_element * b) {
    const __m256d * a_halves = reinterpret_cast<const __m256d *>(a);
    const __m256d * b_halves = reinterpret_cast<const __m256d *>(b);
    const __m512d   low      = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[0]), b_halves[0], 1);
    const __m512d   high     = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[1]), b_halves[1], 1);
    return _mm512_add_ph(_mm512_castpd_ph(low), _mm512_castpd_ph(high));
}

inline void add_up(const score_element * vectors, float * sums) {
    __m512h v[16];
    for (int i = 0; i < 16; ++i) {
        v[i] = fold(vectors + i * 32, vectors + (i + 16) * 32);
    }
    for (int i = 0; i < 8; ++i) {
        const __m512d a = _mm512_castph_pd(v[i]);
        const __m512d b = _mm512_castph_pd(v[i + 8]);
        v[i]            = _mm512_add_ph(_mm512_castpd_ph(_mm512_shuffle_f64x2(a, b, 0x88)),
                                        _mm512_castpd_ph(_mm512_shuffle_f64x2(a, b, 0xdd)));
    }
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castph_pd(v[i]);
        const __m512d b = _mm512_castph_pd(v[i + 4]);
        v[i] = _mm512_add_ph(_mm512_castpd_ph(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ph(_mm512_unpackhi_pd(a, b)));
    }
    for (int i = 0; i < 2; ++i) {
        const __m512 a = _mm512_castph_ps(v[i]);
        const __m512 b = _mm512_castph_ps(v[i + 2]);
        v[i]           = _mm512_add_ph(_mm512_castps_ph(_mm512_shuffle_ps(a, b, 0x88)),
                                       _mm512_castps_ph(_mm512_shuffle_ps(a, b, 0xdd)));
    }
    const __m512i   a       = _mm512_castph_si512(v[0]);
    const __m512i   b       = _mm512_castph_si512(v[1]);
    const __mmask32 odd     = 0xaaaaaaaa;
    const __m512i   firsts  = _mm512_mask_mov_epi16(a, odd, _mm512_slli_epi32(b, 16));
    const __m512i   seconds = _mm512_mask_mov_epi16(_mm512_srli_epi32(a, 16), odd, b);
    const __m512h   total   = _mm512_add_ph(_mm512_castsi512_ph(firsts), _mm512_castsi512_ph(seconds));

    // Quarters hold vectors 0, 16, 8, 24 and following; in a quarter come 0 1, 4 5, 2 3, 6 7 of those.
    alignas(64) static const uint16_t place[32] = {0, 1, 4,  5,  2,  3,  6,  7,  16, 17, 20, 21, 18, 19, 22, 23,
                                                   8, 9, 12, 13, 10, 11, 14, 15, 24, 25, 28, 29, 26, 27, 30, 31};
    const __m512i sorted = _mm512_permutexvar_epi16(_mm512_load_si512(place), _mm512_castph_si512(total));
    _mm512_storeu_ps(sums, _mm512_cvtph_ps(_mm512_castsi512_si256(sorted)));
    _mm512_storeu_ps(sums + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(sorted, 1)));
}
#    elif defined(__AVX512F__)
using score_vector       = __m512;
constexpr int score_lane = 16;

inline score_vector load(const score_element * p) {
    return _mm512_loadu_ps(p);
}
inline score_vector zero() {
    return _mm512_setzero_ps();
}
inline score_vector fma(score_vector a, score_vector b, score_vector c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline score_vector plus(score_vector a, score_vector b) {
    return _mm512_add_ps(a, b);
}
inline void store(score_element * p, score_vector v) {
    _mm512_store_ps(p, v);
}

inline __m512 fold(const score_element * a, const score_element * b) {
    const __m256d * a_halves = reinterpret_cast<const __m256d *>(a);
    const __m256d * b_halves = reinterpret_cast<const __m256d *>(b);
    const __m512d   low      = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[0]), b_halves[0], 1);
    const __m512d   high     = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[1]), b_halves[1], 1);
    return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

inline void add_up(const score_element * vectors, float * sums) {
    __m512 v[8];
    for (int i = 0; i < 8; ++i) {
        v[i] = fold(vectors + i * 16, vectors + (i + 8) * 16);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 4], 0x88), _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd));
    }
    for (int i = 0; i < 2; ++i) {
        const __m512d a = _mm512_castps_pd(v[i]);
        const __m512d b = _mm512_castps_pd(v[i + 2]);
        v[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const __m512 total = _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));

    // Quarters hold vectors 0, 8, 4, 12 and following; in a quarter come 0, 2, 1, 3 of those.
    const __m512i place = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    _mm512_storeu_ps(sums, _mm512_permutexvar_ps(place, total));
}
#    else
using score_vector       = __m256;
constexpr int score_lane = 8;

inline score_vector load(const score_element * p) {
    return _mm256_loadu_ps(p);
}
inline score_vector zero() {
    return _mm256_setzero_ps();
}
inline score_vector fma(score_vector a, score_vector b, score_vector c) {
    return _mm256_fmadd_ps(a, b, c);
}
inline score_vector plus(score_vector a, score_vector b) {
    return _mm256_add_ps(a, b);
}
inline void store(score_element * p, score_vector v) {
    _mm256_store_ps(p, v);
}

inline __m256 fold(const score_element * a, const score_element * b) {
    const __m256 low  = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(a)), _mm_load_ps(b), 1);
    const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(a + 4)), _mm_load_ps(b + 4), 1);
    return _mm256_add_ps(low, high);
}

inline void add_up(const score_element * vectors, float * sums) {
    __m256 v[4];
    for (int i = 0; i < 4; ++i) {
        v[i] = fold(vectors + i * 8, vectors + (i + 4) * 8);
    }
    _mm256_storeu_ps(sums, _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3])));
}
#    endif
static_assert(score_lane == ggml_lanes::width, "sums in other vectors than ggml's");

}  // namespace loradrop::cpu
#endif
