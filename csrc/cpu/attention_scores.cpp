#include "cpu/attention_scores.h"

#ifdef LORADROP_ATTENTION

#    include "cpu/attention_beyond.h"
#    include "cpu/attention_sums.h"

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
    float * q = to.queries + static_cast<int64_t>(pair) * to.in_vectors;
    for (int i = 0; i < to.in_vectors; ++i) {
        q[i] = to_float(to_half(query[i]));
    }
    double * beyond = to.queries_beyond + static_cast<int64_t>(pair) * to.beyond;
    for (int i = 0; i < to.beyond; ++i) {
        beyond[i] = static_cast<double>(to_float(to_half(query[to.in_vectors + i])));
    }
}

// Stores for each of some queries the vector whose sum is its product with the key.
template <int Pairs>
static void multiply(const float * key, const float * queries, int n, float * to) {
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
    alignas(64) float vectors[most * score_lane];

    // As many cells as fill whole groups of vectors, where those fit.
    const int whole = score_lane / std::gcd(with.pairs, score_lane);
    const int fit   = most / with.pairs;
    const int step  = fit < whole ? fit : fit / whole * whole;
    for (int c = 0; c < cells; c += step) {
        const int end = std::min(c + step, cells);
        float *   to  = vectors;
        for (int i = c; i < end; ++i) {
            ggml_cpu_fp16_to_fp32(keys[i], with.key, with.in_vectors);
            const float * query = with.queries;
            int           p     = 0;
            for (; p + at_once <= with.pairs; p += at_once) {
                multiply<at_once>(with.key, query, with.in_vectors, to);
                query += at_once * with.in_vectors;
                to += at_once * score_lane;
            }
            for (; p + 2 <= with.pairs; p += 2) {
                multiply<2>(with.key, query, with.in_vectors, to);
                query += 2 * with.in_vectors;
                to += 2 * score_lane;
            }
            if (p < with.pairs) {
                multiply<1>(with.key, query, with.in_vectors, to);
                to += score_lane;
            }
        }
        const auto done = (to - vectors) % (score_lane * score_lane);
        std::fill(to, to + (done ? score_lane * score_lane - done : 0), 0.0f);
        float * sums = scores + c * with.pairs;
        for (const float * from = vectors; from < to; from += score_lane * score_lane) {
            add_up(from, sums);
            sums += score_lane;
        }
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
