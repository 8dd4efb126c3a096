#include "cpu/attention_memory.h"

#ifdef LORADROP_ATTENTION

namespace loradrop::cpu {

namespace {

// Hands out a piece of memory bit by bit.
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

}  // namespace

attention_memory lay_out(const ggml_tensor & op, int pairs, void * start) {
    const auto    key_size   = static_cast<int>(op.src[1]->ne[0]);
    const auto    value_size = static_cast<int>(op.src[2]->ne[0]);
    const int     vectors    = in_vectors(key_size);
    const int     beyond     = key_size - vectors;
    const int64_t n_scores   = static_cast<int64_t>(block_cells) * pairs + 32;

    room             r(start);
    attention_memory m        = {};
    m.operands.pairs          = pairs;
    m.operands.in_vectors     = vectors;
    m.operands.beyond         = beyond;
    m.operands.queries        = r.take<float>(static_cast<int64_t>(pairs) * vectors);
    m.operands.queries_beyond = r.take<double>(static_cast<int64_t>(pairs) * beyond);
    m.operands.key            = r.take<float>(vectors);
    m.operands.keys_beyond    = r.take<double>(static_cast<int64_t>(beyond) * block_cells);
    m.values.pairs            = pairs;
    m.values.size             = value_size;
    m.values.sums             = r.take<ggml_fp16_t>(static_cast<int64_t>(pairs) * value_size);
    m.softmax.highest         = r.take<float>(most_pairs);
    m.softmax.sum             = r.take<float>(most_pairs);
    m.scores                  = r.take<float>(n_scores);
    m.weights                 = r.take<float>(n_scores);
    m.result                  = r.take<float>(value_size);
    m.bytes                   = r.end() - reinterpret_cast<uintptr_t>(start);
    return m;
}

}  // namespace loradrop::cpu
#endif
