// The vectors of floats in which ggml's attention counts. Its bits depend on how it was compiled, so this is chosen as
// the compiler chooses there; where LORADROP_ATTENTION stays undefined, attention is left to ggml.
#pragma once

#if defined(LORADROP_X86_KERNELS) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#    define LORADROP_ATTENTION

#    include "simd-mappings.h"

#    include <immintrin.h>

#    include <cstdint>

namespace loradrop::cpu {

// V's lanes: sums are kept in 16 bits, rounded after each cell.
struct eight_lanes {
    using vector               = __m256;
    static constexpr int width = 8;

    static vector load(const ggml_fp16_t * p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static void store(ggml_fp16_t * p, vector v) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    static vector rounded(vector v) { return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
    static vector broadcast(const float * w) { return _mm256_broadcast_ss(w); }
    static vector add_product(vector sum, vector v, vector w) { return rounded(_mm256_fmadd_ps(v, w, sum)); }
    static vector product(vector v, vector w) { return rounded(_mm256_mul_ps(v, w)); }
};

#    ifdef __AVX512F__
struct sixteen_lanes {
    using vector               = __m512;
    static constexpr int width = 16;

    static vector load(const ggml_fp16_t * p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static void store(ggml_fp16_t * p, vector v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    static vector rounded(vector v) { return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
    static vector broadcast(const float * w) { return _mm512_set1_ps(*w); }
    static vector add_product(vector sum, vector v, vector w) { return rounded(_mm512_fmadd_ps(v, w, sum)); }
    static vector product(vector v, vector w) { return rounded(_mm512_mul_ps(v, w)); }
};
#    endif

// What ggml calls GGML_F16_VEC, of which it takes four at a time. Elements beyond the last four are scalars to it.
#    ifdef __AVX512F__
using ggml_lanes = sixteen_lanes;
#    else
using ggml_lanes = eight_lanes;
#    endif
constexpr int ggml_step = 4 * ggml_lanes::width;
static_assert(ggml_step == GGML_F16_STEP && ggml_lanes::width == GGML_F16_EPR, "ggml counts in other vectors");

// The first elements of a row, which ggml takes in vectors.
constexpr int in_vectors(int64_t n) {
    return static_cast<int>(n / ggml_step * ggml_step);
}

// One float for each of some pairs of a head and a query.
#    ifdef __AVX512F__
struct pair_lanes {
    using vector               = __m512;
    using mask                 = __mmask16;
    static constexpr int width = 16;

    static mask     from_bits(uint32_t bits) { return static_cast<mask>(bits); }
    static uint32_t bits(mask m) { return m; }
    static mask     both(mask a, mask b) { return a & b; }
    static vector   load(const float * p) { return _mm512_loadu_ps(p); }
    static void     store(float * p, vector v, mask m) { _mm512_mask_storeu_ps(p, m, v); }
    static mask     greater(vector a, vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
    static vector   choose(mask m, vector yes, vector no) { return _mm512_mask_blend_ps(m, no, yes); }
    static vector   minus(vector a, vector b) { return _mm512_sub_ps(a, b); }
    static vector   plus(vector a, vector b) { return _mm512_add_ps(a, b); }
    static vector   fma(vector a, vector b, vector c) { return _mm512_fmadd_ps(a, b, c); }
    static vector   all(float x) { return _mm512_set1_ps(x); }
};
#    else
struct pair_lanes {
    using vector               = __m256;
    using mask                 = __m256;
    static constexpr int width = 8;

    static mask from_bits(uint32_t bits) {
        const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        return _mm256_castsi256_ps(
            _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit), bit));
    }
    static uint32_t bits(mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }
    static mask     both(mask a, mask b) { return _mm256_and_ps(a, b); }
    static vector   load(const float * p) { return _mm256_loadu_ps(p); }
    static void     store(float * p, vector v, mask m) { _mm256_maskstore_ps(p, _mm256_castps_si256(m), v); }
    static mask     greater(vector a, vector b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
    static vector   choose(mask m, vector yes, vector no) { return _mm256_blendv_ps(no, yes, m); }
    static vector   minus(vector a, vector b) { return _mm256_sub_ps(a, b); }
    static vector   plus(vector a, vector b) { return _mm256_add_ps(a, b); }
    static vector   fma(vector a, vector b, vector c) { return _mm256_fmadd_ps(a, b, c); }
    static vector   all(float x) { return _mm256_set1_ps(x); }
};
#    endif

}  // namespace loradrop::cpu
#endif
