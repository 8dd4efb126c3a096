#include "cpu/attention_scores.h"

#ifdef LORADROP_ATTENTION

#    include "ggml-cpu.h"

#    include <algorithm>
#    include <numeric>

namespace loradrop::cpu {

static float to_float(ggml_fp16_t x) {
    return _cvtsh_ss(x);
}

static ggml_fp16_t to_half(float x) {
    return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
}

void set_query(const score_operands & to, int pair, const float * query) {
    score_element * q = to.queries + static_cast<int64_t>(pair) * to.in_vectors;
    for (int i = 0; i < to.in_vectors; ++i) {
        if constexpr (counts_in_16_bits) {
            q[i] = static_cast<score_element>(to_half(query[i]));
        } else {
            q[i] = static_cast<score_element>(to_float(to_half(query[i])));
        }
    }
    double * beyond = to.queries_beyond + static_cast<int64_t>(pair) * to.beyond;
    for (int i = 0; i < to.beyond; ++i) {
        beyond[i] = static_cast<double>(to_float(to_half(query[to.in_vectors + i])));
    }
}

// Each of as many vectors as they have lanes is added up as ggml adds up one, and the sums are stored in order.
#    if defined(__AVX512FP16__)
using score_vector              = __m512h;
static constexpr int score_lane = 32;

static score_vector load(const score_element * p) {
    return _mm512_loadu_ph(p);
}
static score_vector zero() {
    return _mm512_setzero_ph();
}
static score_vector fma(score_vector a, score_vector b, score_vector c) {
    return _mm512_fmadd_ph(a, b, c);
}
static score_vector plus(score_vector a, score_vector b) {
    return _mm512_add_ph(a, b);
}
static void store(score_element * p, score_vector v) {
    _mm512_store_ph(p, v);
}

// The lower halves of two vectors plus their upper halves.
static __m512h fold(const score_element * a, const score_element * b) {
    const __m256d * a_halves = reinterpret_cast<const __m256d *>(a);
    const __m256d * b_halves = reinterpret_cast<const __m256d *>(b);
    const __m512d   low      = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[0]), b_halves[0], 1);
    const __m512d   high     = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[1]), b_halves[1], 1);
    return _mm512_add_ph(_mm512_castpd_ph(low), _mm512_castpd_ph(high));
}

static void add_up(const score_element * vectors, float * sums) {
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
using score_vector              = __m512;
static constexpr int score_lane = 16;

static score_vector load(const score_element * p) {
    return _mm512_loadu_ps(p);
}
static score_vector zero() {
    return _mm512_setzero_ps();
}
static score_vector fma(score_vector a, score_vector b, score_vector c) {
    return _mm512_fmadd_ps(a, b, c);
}
static score_vector plus(score_vector a, score_vector b) {
    return _mm512_add_ps(a, b);
}
static void store(score_element * p, score_vector v) {
    _mm512_store_ps(p, v);
}

static __m512 fold(const score_element * a, const score_element * b) {
    const __m256d * a_halves = reinterpret_cast<const __m256d *>(a);
    const __m256d * b_halves = reinterpret_cast<const __m256d *>(b);
    const __m512d   low      = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[0]), b_halves[0], 1);
    const __m512d   high     = _mm512_insertf64x4(_mm512_castpd256_pd512(a_halves[1]), b_halves[1], 1);
    return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

static void add_up(const score_element * vectors, float * sums) {
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
using score_vector              = __m256;
static constexpr int score_lane = 8;

static score_vector load(const score_element * p) {
    return _mm256_loadu_ps(p);
}
static score_vector zero() {
    return _mm256_setzero_ps();
}
static score_vector fma(score_vector a, score_vector b, score_vector c) {
    return _mm256_fmadd_ps(a, b, c);
}
static score_vector plus(score_vector a, score_vector b) {
    return _mm256_add_ps(a, b);
}
static void store(score_element * p, score_vector v) {
    _mm256_store_ps(p, v);
}

static __m256 fold(const score_element * a, const score_element * b) {
    const __m256 low  = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(a)), _mm_load_ps(b), 1);
    const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(a + 4)), _mm_load_ps(b + 4), 1);
    return _mm256_add_ps(low, high);
}

static void add_up(const score_element * vectors, float * sums) {
    __m256 v[4];
    for (int i = 0; i < 4; ++i) {
        v[i] = fold(vectors + i * 8, vectors + (i + 4) * 8);
    }
    _mm256_storeu_ps(sums, _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3])));
}
#    endif
static_assert(score_lane == ggml_lanes::width, "sums in other vectors than ggml's");

static const score_element * as_elements(const ggml_fp16_t * key, [[maybe_unused]] const score_operands & with) {
#    ifdef __AVX512FP16__
    return key;
#    else
    ggml_cpu_fp16_to_fp32(key, with.key, with.in_vectors);
    return with.key;
#    endif
}

// Stores for each of some queries the vector whose sum is its product with the key.
template <int Pairs>
static void multiply(const score_element * key, const score_element * queries, int n, score_element * to) {
    score_vector sum[Pairs][4];
    for (int p = 0; p < Pairs; ++p) {
        for (int j = 0; j < 4; ++j) {
            sum[p][j] = zero();
        }
    }
    for (int i = 0; i < n; i += ggml_step) {
        for (int j = 0; j < 4; ++j) {
            const int          at = i + j * score_lane;
            const score_vector k  = load(key + at);
            for (int p = 0; p < Pairs; ++p) {
                sum[p][j] = fma(k, load(queries + p * n + at), sum[p][j]);
            }
        }
    }
    for (int p = 0; p < Pairs; ++p) {
        store(to + p * score_lane, plus(plus(sum[p][0], sum[p][2]), plus(sum[p][1], sum[p][3])));
    }
}

static void score_in_vectors(const score_operands & with, const ggml_fp16_t * const * keys, int cells, float * scores) {
    constexpr int most    = 128;                      // vectors that wait to be added up
    constexpr int at_once = score_lane == 8 ? 2 : 4;  // pairs whose sums fit into the registers
    static_assert(most >= most_pairs);
    alignas(64) score_element vectors[most * score_lane];

    // As many cells as fill whole groups of vectors, where those fit.
    const int whole = score_lane / std::gcd(with.pairs, score_lane);
    const int fit   = most / with.pairs;
    const int step  = fit < whole ? fit : fit / whole * whole;
    for (int c = 0; c < cells; c += step) {
        const int       end = std::min(c + step, cells);
        score_element * to  = vectors;
        for (int i = c; i < end; ++i) {
            const score_element * key   = as_elements(keys[i], with);
            const score_element * query = with.queries;
            int                   p     = 0;
            for (; p + at_once <= with.pairs; p += at_once) {
                multiply<at_once>(key, query, with.in_vectors, to);
                query += at_once * with.in_vectors;
                to += at_once * score_lane;
            }
            for (; p + 2 <= with.pairs; p += 2) {
                multiply<2>(key, query, with.in_vectors, to);
                query += 2 * with.in_vectors;
                to += 2 * score_lane;
            }
            if (p < with.pairs) {
                multiply<1>(key, query, with.in_vectors, to);
                to += score_lane;
            }
        }
        const auto done = (to - vectors) % (score_lane * score_lane);
        std::fill(to, to + (done ? score_lane * score_lane - done : 0), score_element{0});
        float * sums = scores + c * with.pairs;
        for (const score_element * from = vectors; from < to; from += score_lane * score_lane) {
            add_up(from, sums);
            sums += score_lane;
        }
    }
}

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

static void score_beyond(const score_operands & with, const ggml_fp16_t * const * keys, int cells, float * scores) {
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

void score_block(const score_operands & with, const ggml_fp16_t * const * keys, int cells, float * scores) {
    if (with.in_vectors > 0) {
        score_in_vectors(with, keys, cells, scores);
    }
    if (with.beyond > 0) {
        score_beyond(with, keys, cells, scores);
    }
}

}  // namespace loradrop::cpu
#endif
