#include "cpu/attention_pass.h"

#ifdef LORADROP_ATTENTION

#    include <algorithm>
#    include <cmath>
#    include <cstring>

namespace loradrop::cpu {

namespace {

// Hands out one piece of memory, bit by bit; from null it tells how much is needed.
class room {
  public:
    explicit room(void * start) : at(reinterpret_cast<uintptr_t>(start)) {}

    template <class T>
    T * take(int64_t n) {
        const uintptr_t here = at;
        at += (static_cast<uintptr_t>(n) * sizeof(T) + 63) / 64 * 64;
        return reinterpret_cast<T *>(here);
    }
    uintptr_t end() const { return at; }

  private:
    uintptr_t at;
};

struct memory {
    score_operands  operands;
    value_sums      values;
    running_softmax softmax;
    float *         scores;
    float *         weights;
    float *         result;
    size_t          bytes;
};

memory lay_out(const ggml_tensor & op, int pairs, void * start) {
    const auto    key_size   = static_cast<int>(op.src[1]->ne[0]);
    const auto    value_size = static_cast<int>(op.src[2]->ne[0]);
    const int     vectors    = in_vectors(key_size);
    const int     beyond     = key_size - vectors;
    const int64_t n_scores   = static_cast<int64_t>(block_cells) * pairs + 32;

    room   r(start);
    memory m                  = {};
    m.operands.pairs          = pairs;
    m.operands.in_vectors     = vectors;
    m.operands.beyond         = beyond;
    m.operands.queries        = r.take<score_element>(static_cast<int64_t>(pairs) * vectors);
    m.operands.queries_beyond = r.take<double>(static_cast<int64_t>(pairs) * beyond);
    m.operands.key            = r.take<score_element>(counts_in_16_bits ? 0 : vectors);
    m.operands.keys_beyond    = r.take<double>(static_cast<int64_t>(beyond) * block_cells);
    m.values.pairs            = pairs;
    m.values.size             = value_size;
    m.values.sums             = r.take<ggml_fp16_t>(static_cast<int64_t>(pairs) * value_size);
    m.values.weights          = r.take<uint32_t>(counts_in_16_bits ? n_scores : 0);
    m.softmax.highest         = r.take<float>(most_pairs);
    m.softmax.sum             = r.take<float>(most_pairs);
    m.scores                  = r.take<float>(n_scores);
    m.weights                 = r.take<float>(n_scores);
    m.result                  = r.take<float>(value_size);
    m.bytes                   = r.end() - reinterpret_cast<uintptr_t>(start);
    return m;
}

float parameter(const ggml_tensor & op, int i) {
    float x;
    memcpy(&x, op.op_params + i, sizeof(x));
    return x;
}

// GCC does not fuse this sum in ggml's code, for a loop stands between; others fuse what is one expression.
float sum_with_sink(float sum, float factor) {
#    if defined(__GNUC__) && !defined(__clang__)
    return sum * factor + 1.0f;
#    else
    return std::fma(sum, factor, 1.0f);
#    endif
}

// The first half of 32 numbers of 16 bits equals `what`, the second half follows.
uint32_t equal_bits(const __m256i first, const __m256i second, const __m256i what) {
    const __m256i equal = _mm256_packs_epi16(_mm256_cmpeq_epi16(first, what), _mm256_cmpeq_epi16(second, what));
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(equal, 0xd8)));
}

// Pairs with the same row of the mask, and where in it they see cells.
struct mask_row {
    const ggml_fp16_t * row;
    uint64_t            pairs;
};

class pass {
  public:
    pass(const ggml_tensor & attention, const attention_part & which, void * work) :
        op(attention), part(which), m(lay_out(attention, which.pairs, work)) {
        const ggml_tensor & q   = *op.src[0];
        heads                   = q.ne[2] / op.src[1]->ne[2];
        softcap                 = parameter(op, 2);
        scale                   = softcap != 0.0f ? parameter(op, 0) / softcap : parameter(op, 0);
        const int64_t kv_stream = part.stream / (q.ne[3] / op.src[1]->ne[3]);
        key_rows                = rows_of(*op.src[1], kv_stream);
        value_rows              = rows_of(*op.src[2], kv_stream);

        for (int p = 0; p < part.pairs; ++p) {
            set_query(m.operands, p, reinterpret_cast<const float *>(at(q, query(p), head(p), part.stream)));
        }
        memset(m.values.sums, 0, sizeof(ggml_fp16_t) * part.pairs * m.values.size);
        std::fill(m.softmax.highest, m.softmax.highest + most_pairs, -INFINITY);
        std::fill(m.softmax.sum, m.softmax.sum + most_pairs, 0.0f);
        find_mask_rows();
    }

    void run() {
        const int64_t cells = op.src[1]->ne[1];
        for (int64_t first = 0; first < cells; first += 32) {
            gather(first, static_cast<int>(std::min<int64_t>(32, cells - first)));
        }
        if (n_cells > 0) {
            compute_block();
        }
        for (int p = 0; p < part.pairs; ++p) {
            finish(p);
        }
    }

  private:
    int64_t query(int p) const { return (part.first_pair + p) / heads; }
    int64_t head(int p) const { return part.kv_head * heads + (part.first_pair + p) % heads; }

    static const char * at(const ggml_tensor & t, int64_t i1, int64_t i2, int64_t i3) {
        return static_cast<const char *>(t.data) + i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3];
    }
    const char * rows_of(const ggml_tensor & t, int64_t stream) const { return at(t, 0, part.kv_head, stream); }

    const ggml_fp16_t * mask_of(int p) const {
        const ggml_tensor & mask = *op.src[3];
        return reinterpret_cast<const ggml_fp16_t *>(
            at(mask, query(p), head(p) % mask.ne[2], part.stream % mask.ne[3]));
    }

    void find_mask_rows() {
        all_pairs = part.pairs == 64 ? ~uint64_t{0} : (uint64_t{1} << part.pairs) - 1;
        if (!op.src[3]) {
            return;
        }
        for (int p = 0; p < part.pairs; ++p) {
            const ggml_fp16_t * row = mask_of(p);
            if (n_rows == 0 || rows[n_rows - 1].row != row) {
                rows[n_rows++] = {row, 0};
            }
            rows[n_rows - 1].pairs |= uint64_t{1} << p;
        }
    }

    // Takes those of up to 32 cells that some pair sees. Blocks hold seen cells alone, so padding, other sequences and
    // what has left a window cost no more than a look at the mask.
    void gather(int64_t first, int n) {
        const uint32_t present = n == 32 ? ~0U : (1U << n) - 1;
        uint32_t       seen[most_pairs];
        uint32_t       any    = n_rows == 0 ? present : 0;
        uint32_t       common = present;
        bool           zeros  = true;
        for (int r = 0; r < n_rows; ++r) {
            seen[r] = look(rows[r].row + first, n, zeros) & present;
            any |= seen[r];
            common &= seen[r];
        }
        for (; any; any &= any - 1) {
            const int      i   = __builtin_ctz(any);
            const uint32_t bit = 1U << i;
            uint64_t       by  = all_pairs;
            if (!(common & bit)) {
                by = 0;
                for (int r = 0; r < n_rows; ++r) {
                    by |= seen[r] & bit ? rows[r].pairs : 0;
                }
                bits.all = false;
            }
            plain              = plain && zeros;
            bits.seen[n_cells] = by;
            cell[n_cells]      = first + i;
            keys[n_cells]      = row_at(key_rows, *op.src[1], first + i);
            values[n_cells]    = row_at(value_rows, *op.src[2], first + i);
            if (++n_cells == block_cells) {
                compute_block();
            }
        }
    }

    static const ggml_fp16_t * row_at(const char * rows, const ggml_tensor & t, int64_t i) {
        return reinterpret_cast<const ggml_fp16_t *>(rows + i * t.nb[1]);
    }

    // Cells that are not masked; clears `zeros` where the mask has another number than 0 for one of these.
    static uint32_t look(const ggml_fp16_t * row, int n, bool & zeros) {
        ggml_fp16_t copy[32];
        if (n < 32) {
            std::fill(copy, copy + 32, ggml_fp16_t{0});
            row = static_cast<const ggml_fp16_t *>(memcpy(copy, row, n * sizeof(*row)));
        }
        const __m256i  first    = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row));
        const __m256i  second   = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + 16));
        const uint32_t infinite = equal_bits(first, second, _mm256_set1_epi16(static_cast<short>(0xfc00)));
        const uint32_t zero     = equal_bits(first, second, _mm256_setzero_si256());
        zeros                   = zeros && (infinite | zero) == ~0U;
        return ~infinite;
    }

    void compute_block() {
        std::fill(keys + n_cells, keys + block_cells, keys[0]);
        score_block(m.operands, keys, n_cells, m.scores);
        scale_scores();
        softmax_block(m.softmax, part.pairs, n_cells, bits, m.scores, m.weights);
        add_values(m.values, values, n_cells, bits, m.weights);
        n_cells  = 0;
        bits.all = true;
        plain    = true;
    }

    void scale_scores() {
        const int n = n_cells * part.pairs;
        for (int i = 0; i < n; ++i) {
            m.scores[i] *= scale;
        }
        if (softcap != 0.0f) {
            for (int i = 0; i < n; ++i) {
                m.scores[i] = softcap * tanhf(m.scores[i]);
            }
        }
        if (plain) {
            return;
        }
        for (int p = 0; p < part.pairs; ++p) {
            const ggml_fp16_t * mask  = mask_of(p);
            const float         slope = slope_of(head(p));
            for (int c = 0; c < n_cells; ++c) {
                m.scores[c * part.pairs + p] += slope * _cvtsh_ss(mask[cell[c]]);
            }
        }
    }

    float slope_of(int64_t h) const {
        const float max_bias = parameter(op, 1);
        if (max_bias <= 0.0f) {
            return 1.0f;
        }
        const auto n_head = static_cast<uint32_t>(op.src[0]->ne[2]);
        const auto base   = 1U << static_cast<uint32_t>(floor(log2(n_head)));
        return h < base ? powf(powf(2.0f, -max_bias / base), static_cast<float>(h + 1))
                        : powf(powf(2.0f, -(max_bias / 2.0f) / base), static_cast<float>(2 * (h - base) + 1));
    }

    void finish(int p) {
        const int           size    = m.values.size;
        float               highest = m.softmax.highest[p];
        float               sum     = m.softmax.sum[p];
        const ggml_fp16_t * sums    = m.values.sums + static_cast<int64_t>(p) * size;
        for (int d = 0; d < size; ++d) {
            m.result[d] = _cvtsh_ss(sums[d]);
        }
        if (op.src[4]) {
            const float sink = static_cast<const float *>(op.src[4]->data)[head(p)];
            if (sink > highest) {
                const float factor = expf(highest - sink);
                for (int d = 0; d < size; ++d) {
                    m.result[d] *= factor;
                }
                sum = sum_with_sink(sum, factor);
            } else {
                sum += expf(sink - highest);
            }
        }
        const float by = sum == 0.0f ? 0.0f : 1.0f / sum;
        auto *      out =
            reinterpret_cast<float *>(static_cast<char *>(op.data) +
                                      (part.stream * op.ne[2] * op.ne[1] + head(p) + query(p) * op.ne[1]) * op.nb[1]);
        for (int d = 0; d < size; ++d) {
            out[d] = m.result[d] * by;
        }
    }

    const ggml_tensor &    op;
    const attention_part & part;
    memory                 m;
    int64_t                heads;  // that share the K/V head
    float                  scale;
    float                  softcap;
    const char *           key_rows;
    const char *           value_rows;
    uint64_t               all_pairs = 0;
    int                    n_rows    = 0;
    mask_row               rows[most_pairs];

    // the block that is being gathered
    int                 n_cells = 0;
    bool                plain   = true;  // its mask says 0 or minus infinity
    block_bits          bits    = {true, {}, {}};
    int64_t             cell[block_cells];
    const ggml_fp16_t * keys[block_cells];
    const ggml_fp16_t * values[block_cells];
};

}  // namespace

size_t attention_pass_bytes(const ggml_tensor & op, int pairs) {
    return lay_out(op, pairs, nullptr).bytes;
}

void attention_pass(const ggml_tensor & op, const attention_part & part, void * work) {
    pass(op, part, work).run();
}

}  // namespace loradrop::cpu
#endif
