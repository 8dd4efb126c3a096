#include "cpu/attention_softmax.h"

#ifdef LORADROP_ATTENTION

#    include "cpu/exponentials.h"

#    include <algorithm>

namespace loradrop::cpu {

// The lowest bits of the pairs from p on that fit into a vector.
static uint32_t bits_of(uint64_t pairs, int p) {
    return static_cast<uint32_t>(pairs >> p) & ((1U << pair_lanes::width) - 1);
}

void softmax_block(const running_softmax & state, int pairs, int cells, block_bits & bits, float * scores,
                   float * weights) {
    const uint64_t all_pairs = pairs == 64 ? ~uint64_t{0} : (uint64_t{1} << pairs) - 1;

    std::fill(bits.highest, bits.highest + cells, 0);
    for (int p = 0; p < pairs; p += pair_lanes::width) {
        const pair_lanes::mask present = pair_lanes::from_bits(bits_of(all_pairs, p));
        pair_lanes::vector     highest = pair_lanes::load(state.highest + p);
        for (int c = 0; c < cells; ++c) {
            float *                  s    = scores + c * pairs + p;
            const pair_lanes::vector x    = pair_lanes::load(s);
            const pair_lanes::mask   seen = bits.all ? present : pair_lanes::from_bits(bits_of(bits.seen[c], p));
            const pair_lanes::mask   up   = pair_lanes::both(pair_lanes::greater(x, highest), seen);
            pair_lanes::vector       d    = pair_lanes::minus(x, highest);
            d                             = pair_lanes::choose(up, pair_lanes::minus(highest, x), d);
            pair_lanes::store(s, pair_lanes::choose(seen, d, pair_lanes::all(0.0f)), present);
            highest = pair_lanes::choose(up, x, highest);
            bits.highest[c] |= static_cast<uint64_t>(pair_lanes::bits(up)) << p;
        }
        pair_lanes::store(state.highest + p, highest, present);
    }
    exponentials(scores, weights, cells * pairs);
    for (int p = 0; p < pairs; p += pair_lanes::width) {
        const pair_lanes::mask present = pair_lanes::from_bits(bits_of(all_pairs, p));
        pair_lanes::vector     sum     = pair_lanes::load(state.sum + p);
        for (int c = 0; c < cells; ++c) {
            const pair_lanes::vector e    = pair_lanes::load(weights + c * pairs + p);
            const pair_lanes::mask   seen = bits.all ? present : pair_lanes::from_bits(bits_of(bits.seen[c], p));
            const pair_lanes::mask   up   = pair_lanes::from_bits(bits_of(bits.highest[c], p));
            const pair_lanes::vector one  = pair_lanes::all(1.0f);
            const pair_lanes::vector next =
                pair_lanes::choose(up, pair_lanes::fma(sum, e, one), pair_lanes::plus(sum, e));
            sum = pair_lanes::choose(seen, next, sum);
        }
        pair_lanes::store(state.sum + p, sum, present);
    }
}

}  // namespace loradrop::cpu
#endif
