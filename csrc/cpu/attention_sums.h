// ggml's vectors of products, and how it adds up what they hold.
#pragma once

#include "cpu/attention_scores.h"

#ifdef LORADROP_ATTENTION
namespace loradrop::cpu {

// add_up takes as many vectors as each has lanes, adds up each as ggml adds up one, and stores the sums in order.
#    ifdef __AVX512F__
using score_vector       = __m512;
constexpr int score_lane = 16;

inline score_vector load(const float * p) {
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
inline void store(float * p, score_vector v) {
    _mm512_store_ps(p, v);
}

inline __m512 fold(const float * a, const float * b) {
    const __m256d * a_halves = reinterpret_cast<const __m256d *>(a);
    const __m256d * b_halves = reinterpret_cast<const __m256d *>(b);
    const __m512d   low      = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[0]), b_halves[0], 1);
    const __m512d   high     = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[1]), b_halves[1], 1);
    return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

inline void add_up(const float * vectors, float * sums) {
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

inline score_vector load(const float * p) {
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
inline void store(float * p, score_vector v) {
    _mm256_store_ps(p, v);
}

inline __m256 fold(const float * a, const float * b) {
    const __m256 low  = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(a)), _mm_load_ps(b), 1);
    const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(a + 4)), _mm_load_ps(b + 4), 1);
    return _mm256_add_ps(low, high);
}

inline void add_up(const float * vectors, float * sums) {
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
