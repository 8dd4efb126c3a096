#include "cpu/attention_beyond.h"

#ifdef LORADROP_ATTENTION

namespace loradrop::cpu {

#    ifdef __AVX512F__
using double_vector               = __m512d;
static constexpr int double_width = 8;

static double_vector all(double x) {
    return _mm512_set1_pd(x);
}
static double_vector load(const double * p) {
    return _mm512_load_pd(p);
}
static double_vector fma(double_vector a, double_vector b, double_vector c) {
    return _mm512_fmadd_pd(a, b, c);
}
static void store_doubles(double * p, __m256 v) {
    _mm512_store_pd(p, _mm512_cvtps_pd(v));
}
static void store_floats(float * p, double_vector v) {
    _mm256_storeu_ps(p, _mm512_cvtpd_ps(v));
}
static double_vector load_floats(const float * p) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
}
#    else
using double_vector               = __m256d;
static constexpr int double_width = 4;

static double_vector all(double x) {
    return _mm256_set1_pd(x);
}
static double_vector load(const double * p) {
    return _mm256_load_pd(p);
}
static double_vector fma(double_vector a, double_vector b, double_vector c) {
    return _mm256_fmadd_pd(a, b, c);
}
static void store_doubles(double * p, __m256 v) {
    _mm256_store_pd(p, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
    _mm256_store_pd(p + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}
static void store_floats(float * p, double_vector v) {
    _mm_storeu_ps(p, _mm256_cvtpd_ps(v));
}
static double_vector load_floats(const float * p) {
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
}
#    endif

// Eight elements of eight keys, so that those of different cells lie side by side.
static void turn_8_by_8(const ggml_fp16_t * const * keys, int first, double * to) {
    __m128i a[8];
    __m128i b[8];
    for (int c = 0; c < 8; ++c) {
        a[c] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(keys[c] + first));
    }
    for (int i = 0; i < 4; ++i) {
        b[2 * i]     = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
            a[4 * i + 2 * j]     = _mm_unpacklo_epi32(b[4 * i + j], b[4 * i + j + 2]);
            a[4 * i + 2 * j + 1] = _mm_unpackhi_epi32(b[4 * i + j], b[4 * i + j + 2]);
        }
    }
    for (int i = 0; i < 4; ++i) {
        store_doubles(to + (2 * i) * block_cells, _mm256_cvtph_ps(_mm_unpacklo_epi64(a[i], a[i + 4])));
        store_doubles(to + (2 * i + 1) * block_cells, _mm256_cvtph_ps(_mm_unpackhi_epi64(a[i], a[i + 4])));
    }
}

// Products of 16-bit floats are exact in double, so one rounding follows each sum, as in ggml's loop.
template <int Pairs>
static void score_beyond_of(const score_operands & with, int first_pair, int cells, float * scores) {
    constexpr int vectors = 4;
    for (int c0 = 0; c0 < cells; c0 += vectors * double_width) {
        alignas(64) float lines[Pairs][vectors * double_width];
        double_vector     sum[Pairs][vectors];
        const int         n = cells - c0 < vectors * double_width ? cells - c0 : vectors * double_width;
        float *           s = scores + static_cast<int64_t>(c0) * with.pairs + first_pair;
        for (int p = 0; p < Pairs; ++p) {
            for (int c = 0; c < vectors * double_width; ++c) {
                lines[p][c] = with.in_vectors > 0 && c < n ? s[c * with.pairs + p] : 0.0f;
            }
            for (int v = 0; v < vectors; ++v) {
                sum[p][v] = load_floats(lines[p] + v * double_width);
            }
        }
        const double * q = with.queries_beyond + static_cast<int64_t>(first_pair) * with.beyond;
        for (int i = 0; i < with.beyond; ++i) {
            double_vector k[vectors];
            for (int v = 0; v < vectors; ++v) {
                k[v] = load(with.keys_beyond + i * block_cells + c0 + v * double_width);
            }
            for (int p = 0; p < Pairs; ++p) {
                const double_vector element = all(q[p * with.beyond + i]);
                for (int v = 0; v < vectors; ++v) {
                    sum[p][v] = fma(k[v], element, sum[p][v]);
                }
            }
        }
        for (int p = 0; p < Pairs; ++p) {
            for (int v = 0; v < vectors; ++v) {
                store_floats(lines[p] + v * double_width, sum[p][v]);
            }
        }
        for (int c = 0; c < n; ++c) {
            for (int p = 0; p < Pairs; ++p) {
                s[c * with.pairs + p] = lines[p][c];
            }
        }
    }
}

void score_beyond(const score_operands & with, const ggml_fp16_t * const * keys, int cells, float * scores) {
    for (int c = 0; c < cells; c += 8) {
        for (int i = 0; i < with.beyond; i += 8) {
            turn_8_by_8(keys + c, with.in_vectors + i, with.keys_beyond + i * block_cells + c);
        }
    }
    constexpr int at_once = double_width / 2;  // as many as sums fit into the registers
    int           p       = 0;
    for (; p + at_once <= with.pairs; p += at_once) {
        score_beyond_of<at_once>(with, p, cells, scores);
    }
    for (; p + 2 <= with.pairs; p += 2) {
        score_beyond_of<2>(with, p, cells, scores);
    }
    if (p < with.pairs) {
        score_beyond_of<1>(with, p, cells, scores);
    }
}

}  // namespace loradrop::cpu
#endif
