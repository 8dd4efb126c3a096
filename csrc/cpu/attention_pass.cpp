#include "cpu/attention_pass.h"

#include "cpu/attention_mask.h"
#include "cpu/attention_memory.h"

#ifdef LORADROP_ATTENTION

#    include <algorithm>
#    include <cmath>
#    include <cstring>

namespace loradrop::cpu {

namespace {

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

class pass {
  public:
    pass(const ggml_tensor & attention, const attention_part & which, void * work) :
        op(attention),
        part(which),
        m(lay_out(attention, which.pairs, work)),
        mask(which.pairs, attention.src[1]->ne[1]) {
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
        if (op.src[3]) {
            for (int p = 0; p < part.pairs; ++p) {
                mask.add_row(mask_of(p));
            }
        }
    }

    void run() {
        const int64_t cells = op.src[1]->ne[1];
        for (int64_t first = 0; first < cells; first += 32) {
            gather(first);
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

    // Takes those of 32 cells that some pair sees: padding, other sequences and what has left a window cost no more
    // than a look at the mask.
    void gather(int64_t first) {
        const seen_cells seen = mask.look(first);
        for (uint32_t any = seen.any; any; any &= any - 1) {
            const int i        = __builtin_ctz(any);
            bits.seen[n_cells] = seen.by_all >> i & 1 ? mask.all_pairs() : mask.pairs_seeing(i);
            bits.all           = bits.all && (seen.by_all >> i & 1);
            plain              = plain && seen.plain;
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

    const ggml_fp16_t * mask_of(int p) const {
        const ggml_tensor & t = *op.src[3];
        return reinterpret_cast<const ggml_fp16_t *>(at(t, query(p), head(p) % t.ne[2], part.stream % t.ne[3]));
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
            const ggml_fp16_t * row   = mask_of(p);
            const float         slope = slope_of(head(p));
            for (int c = 0; c < n_cells; ++c) {
                m.scores[c * part.pairs + p] += slope * _cvtsh_ss(row[cell[c]]);
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
    attention_memory       m;
    attention_mask         mask;
    int64_t                heads;  // that share the K/V head
    float                  scale;
    float                  softcap;
    const char *           key_rows;
    const char *           value_rows;

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
