#include "cpu/attention.h"

#include "cpu/attention_pass.h"

#include "ggml-cpu-impl.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace loradrop::cpu {

#ifdef LORADROP_ATTENTION
static bool has_whole_elements(const ggml_tensor & t, ggml_type type) {
    return t.type == type && t.nb[0] == ggml_type_size(type);
}

static bool is_taken(const ggml_tensor & op) {
    const ggml_tensor & q     = *op.src[0];
    const ggml_tensor & k     = *op.src[1];
    const ggml_tensor & v     = *op.src[2];
    const ggml_tensor * mask  = op.src[3];
    const ggml_tensor * sinks = op.src[4];

    float max_bias;
    memcpy(&max_bias, op.op_params + 1, sizeof(max_bias));
    return has_whole_elements(q, GGML_TYPE_F32) && has_whole_elements(k, GGML_TYPE_F16) &&
           has_whole_elements(v, GGML_TYPE_F16) && has_whole_elements(op, GGML_TYPE_F32) &&
           op.nb[1] == op.ne[0] * sizeof(float) && k.ne[0] % 8 == 0 && v.ne[0] % 8 == 0 && k.ne[2] == v.ne[2] &&
           k.ne[3] == v.ne[3] && q.ne[2] % k.ne[2] == 0 && q.ne[3] % k.ne[3] == 0 &&
           (!mask || has_whole_elements(*mask, GGML_TYPE_F16)) &&
           (!sinks || has_whole_elements(*sinks, GGML_TYPE_F32)) && max_bias < 64.0f;  // slopes stay normal floats
}

static int64_t pairs_of_kv_head(const ggml_tensor & op) {
    return op.src[0]->ne[2] / op.src[1]->ne[2] * op.src[0]->ne[1];
}

// Into how many parts the pairs of each K/V head go: as few as keep the threads busy, for each reads K and V anew.
static int64_t parts_of_kv_head(int64_t pairs, int64_t kv_heads, int n_threads) {
    constexpr int64_t reading = 2;  // what K and V cost, in pairs

    const int64_t least = (pairs + most_pairs - 1) / most_pairs;
    int64_t       best  = 0;
    int64_t       cost  = INT64_MAX;
    for (int64_t parts = least; parts <= std::min(pairs, least + 2 * n_threads); ++parts) {
        const int64_t rounds = (kv_heads * parts + n_threads - 1) / n_threads;
        const int64_t c      = rounds * (reading + (pairs + parts - 1) / parts);
        if (c < cost) {
            best = parts;
            cost = c;
        }
    }
    return best;
}

static char * aligned(void * p) {
    return reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64);
}

bool attend(const ggml_compute_params & params, ggml_tensor & op) {
    if (!is_taken(op)) {
        return false;
    }
    const int64_t kv_heads = op.src[1]->ne[2];
    const int64_t pairs    = pairs_of_kv_head(op);
    const int64_t parts    = parts_of_kv_head(pairs, kv_heads * op.src[0]->ne[3], params.nth);
    const size_t  bytes    = attention_pass_bytes(op, static_cast<int>(std::min<int64_t>(pairs, most_pairs)));
    char *        work     = aligned(params.wdata) + bytes * params.ith;

    if (params.ith == 0) {
        ggml_threadpool_chunk_set(params.threadpool, params.nth);
    }
    ggml_barrier(params.threadpool);
    for (int64_t i = params.ith; i < kv_heads * op.src[0]->ne[3] * parts;
         i         = ggml_threadpool_chunk_add(params.threadpool, 1)) {
        const int64_t  begin = pairs * (i % parts) / parts;
        const int64_t  end   = pairs * (i % parts + 1) / parts;
        attention_part part  = {i / parts / kv_heads, i / parts % kv_heads, static_cast<int>(begin),
                                static_cast<int>(end - begin)};
        attention_pass(op, part, work);
    }
    return true;
}

size_t attend_work_size(const ggml_tensor & op, int n_threads) {
    if (!is_taken(op)) {
        return 0;
    }
    const auto pairs = static_cast<int>(std::min<int64_t>(pairs_of_kv_head(op), most_pairs));
    return attention_pass_bytes(op, pairs) * n_threads + 64;
}
#else
bool attend(const ggml_compute_params &, ggml_tensor &) {
    return false;
}

size_t attend_work_size(const ggml_tensor &, int) {
    return 0;
}
#endif

}  // namespace loradrop::cpu
