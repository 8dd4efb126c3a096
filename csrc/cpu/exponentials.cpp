#include "cpu/exponentials.h"

#include "cpu/attention_lanes.h"

#ifdef LORADROP_ATTENTION

#    include <cmath>

namespace loradrop::cpu {

// The result is counted in double to 1e-12 and rounded. A library whose own error, before it rounds, is below 1/128 of
// the last bit (glibc and musl: 0.002) can only round otherwise where the double lies that close to the middle between
// two floats; such numbers, one in 64, are left to the library.
static constexpr int     margin_bits = 22;  // of the 29 that a double has more than a float
static constexpr int64_t centre      = (int64_t{1} << margin_bits) - (int64_t{1} << 28);
static constexpr int64_t far_bits    = (int64_t{1} << 29) - (int64_t{1} << (margin_bits + 1));
static constexpr float   least       = -87.0f;  // below, results lose bits

// 2^f for f from -1/2 to 1/2, by interpolation in Chebyshev's nodes.
static constexpr double polynomial[] = {1.0,
                                        0.6931471805459335,
                                        0.2402265069581299,
                                        0.05550410941205933,
                                        0.009618129159402572,
                                        0.001333345056800083,
                                        0.00015403455852451916,
                                        1.5310079402197884e-05,
                                        1.3255224878025137e-06};
static constexpr int    degree       = 8;
static constexpr double log2_e       = 1.4426950408889634;
static constexpr double to_integer   = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the integer in the low bits

#    ifdef __AVX512F__
static constexpr int group = 16;

// Sets bits of `near` where the library has to decide.
static __m256 exp8(__m256 x, uint32_t & near) {
    const __m512d t      = _mm512_mul_pd(_mm512_cvtps_pd(x), _mm512_set1_pd(log2_e));
    const __m512d n      = _mm512_add_pd(t, _mm512_set1_pd(to_integer));
    const __m512d f      = _mm512_sub_pd(t, _mm512_sub_pd(n, _mm512_set1_pd(to_integer)));
    __m512d       result = _mm512_set1_pd(polynomial[degree]);
    for (int i = degree - 1; i >= 0; --i) {
        result = _mm512_fmadd_pd(result, f, _mm512_set1_pd(polynomial[i]));
    }
    const __m512i bits = _mm512_add_epi64(_mm512_castpd_si512(result), _mm512_slli_epi64(_mm512_castpd_si512(n), 52));
    near = _mm512_testn_epi64_mask(_mm512_add_epi64(bits, _mm512_set1_epi64(centre)), _mm512_set1_epi64(far_bits));
    return _mm512_cvtpd_ps(_mm512_castsi512_pd(bits));
}

static uint32_t exp_group(const float * x, float * out) {
    const __m256 low       = _mm256_loadu_ps(x);
    const __m256 high      = _mm256_loadu_ps(x + 8);
    uint32_t     near_low  = 0;
    uint32_t     near_high = 0;
    _mm256_storeu_ps(out, exp8(low, near_low));
    _mm256_storeu_ps(out + 8, exp8(high, near_high));
    const uint32_t outside = _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(least), _CMP_NGE_UQ);
    return near_low | near_high << 8 | outside;
}
#    else
static constexpr int group = 8;

static __m128 exp4(__m128 x, uint32_t & near) {
    const __m256d t      = _mm256_mul_pd(_mm256_cvtps_pd(x), _mm256_set1_pd(log2_e));
    const __m256d n      = _mm256_add_pd(t, _mm256_set1_pd(to_integer));
    const __m256d f      = _mm256_sub_pd(t, _mm256_sub_pd(n, _mm256_set1_pd(to_integer)));
    __m256d       result = _mm256_set1_pd(polynomial[degree]);
    for (int i = degree - 1; i >= 0; --i) {
        result = _mm256_fmadd_pd(result, f, _mm256_set1_pd(polynomial[i]));
    }
    const __m256i bits = _mm256_add_epi64(_mm256_castpd_si256(result), _mm256_slli_epi64(_mm256_castpd_si256(n), 52));
    const __m256i far =
        _mm256_and_si256(_mm256_add_epi64(bits, _mm256_set1_epi64x(centre)), _mm256_set1_epi64x(far_bits));
    near =
        static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(far, _mm256_setzero_si256()))));
    return _mm256_cvtpd_ps(_mm256_castsi256_pd(bits));
}

static uint32_t exp_group(const float * x, float * out) {
    const __m256 all       = _mm256_loadu_ps(x);
    uint32_t     near_low  = 0;
    uint32_t     near_high = 0;
    _mm_storeu_ps(out, exp4(_mm256_castps256_ps128(all), near_low));
    _mm_storeu_ps(out + 4, exp4(_mm256_extractf128_ps(all, 1), near_high));
    const int outside = _mm256_movemask_ps(_mm256_cmp_ps(all, _mm256_set1_ps(least), _CMP_NGE_UQ));
    return near_low | near_high << 4 | static_cast<uint32_t>(outside);
}
#    endif

void exponentials(const float * x, float * out, int n) {
    // What the library decides is gathered from 64 numbers, so that few branches are guessed wrong.
    for (int first = 0; first < n; first += 64) {
        const int last    = n - first < 64 ? n : first + 64;
        uint64_t  library = 0;
        for (int i = first; i < last; i += group) {
            library |= static_cast<uint64_t>(exp_group(x + i, out + i)) << (i - first);
        }
        if (last - first < 64) {
            library &= (uint64_t{1} << (last - first)) - 1;
        }
        for (; library; library &= library - 1) {
            const int i = first + __builtin_ctzll(library);
            out[i]      = expf(x[i]);
        }
    }
}

}  // namespace loradrop::cpu
#endif
