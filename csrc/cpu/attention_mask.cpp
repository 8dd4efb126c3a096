#include "cpu/attention_mask.h"

#ifdef LORADROP_ATTENTION

#    include <algorithm>
#    include <cstring>

namespace loradrop::cpu {

attention_mask::attention_mask(int n_pairs, int64_t n_cells) :
    everyone(n_pairs == 64 ? ~uint64_t{0} : (uint64_t{1} << n_pairs) - 1), cells(n_cells) {
}

void attention_mask::add_row(const ggml_fp16_t * mask) {
    if (n_rows == 0 || rows[n_rows - 1].mask != mask) {
        rows[n_rows++] = {mask, 0, 0};
    }
    rows[n_rows - 1].pairs |= uint64_t{1} << added++;
}

// Which of 32 numbers are equal to this one.
static uint32_t equal_bits(const __m256i * numbers, uint16_t to) {
    const __m256i all    = _mm256_set1_epi16(static_cast<short>(to));
    const __m256i first  = _mm256_cmpeq_epi16(_mm256_loadu_si256(numbers), all);
    const __m256i second = _mm256_cmpeq_epi16(_mm256_loadu_si256(numbers + 1), all);
    // packing works on halves of 128 bits
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
    return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
}

seen_cells attention_mask::look(int64_t first) {
    constexpr uint16_t minus_infinity = 0xfc00;

    const auto     n       = static_cast<int>(std::min<int64_t>(32, cells - first));
    const uint32_t present = n == 32 ? ~0U : (1U << n) - 1;
    if (n_rows == 0) {
        return {present, present, true};
    }
    seen_cells seen = {0, present, true};
    for (row * r = rows; r < rows + n_rows; ++r) {
        ggml_fp16_t         copy[32] = {};
        const ggml_fp16_t * numbers  = r->mask + first;
        if (n < 32) {
            numbers = static_cast<const ggml_fp16_t *>(memcpy(copy, numbers, n * sizeof(*numbers)));
        }
        const auto *   halves = reinterpret_cast<const __m256i *>(numbers);
        const uint32_t hidden = equal_bits(halves, minus_infinity);
        r->seen               = ~hidden & present;
        seen.any |= r->seen;
        seen.by_all &= r->seen;
        seen.plain = seen.plain && (hidden | equal_bits(halves, 0)) == ~0U;
    }
    return seen;
}

uint64_t attention_mask::pairs_seeing(int i) const {
    uint64_t pairs = 0;
    for (const row * r = rows; r < rows + n_rows; ++r) {
        pairs |= r->seen >> i & 1 ? r->pairs : 0;
    }
    return pairs;
}

}  // namespace loradrop::cpu
#endif
