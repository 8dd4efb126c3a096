#include "cpu/panel.h"

#include "ggml-cpu.h"
#include "simd-mappings.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include <algorithm>
#include <cstring>

namespace loradrop::cpu {

static constexpr size_t alignment = 64;

// Room of a group for values, scales and sums, each from a multiple of `alignment` on.
struct group_layout {
    size_t scales;
    size_t sums;
    size_t end;
};

static size_t aligned(size_t size) {
    return (size + alignment - 1) / alignment * alignment;
}

static group_layout layout_of(ggml_type type, int64_t columns, int64_t blocks) {
    const int64_t sums_bytes = type == GGML_TYPE_Q8_K ? std::max<int64_t>(32 * columns, 128) : 32;
    group_layout  layout{};
    layout.scales = aligned(ggml_blck_size(type) * columns * blocks);
    layout.sums   = layout.scales + aligned(sizeof(float) * max_columns * blocks);
    layout.end    = layout.sums + aligned(sums_bytes * blocks);
    return layout;
}

panels::panels(const kernel & k, ggml_type type, int64_t columns, int64_t blocks, void * memory) :
    k(k), type(type), n_columns(columns), n_blocks(blocks) {
    const auto address = reinterpret_cast<uintptr_t>(memory);
    this->memory       = reinterpret_cast<char *>(aligned(address));
}

size_t panels::bytes(ggml_type type, int64_t columns, int64_t blocks) {
    const int64_t rest = columns % max_columns;
    const size_t  full = columns / max_columns * layout_of(type, max_columns, blocks).end;
    return full + (rest ? layout_of(type, rest, blocks).end : 0) + alignment;
}

panel panels::group(int64_t group) const {
    const int          columns = static_cast<int>(std::min<int64_t>(max_columns, n_columns - group * max_columns));
    const group_layout layout  = layout_of(type, columns, n_blocks);
    const char *       begin   = memory + group * layout_of(type, max_columns, n_blocks).end;
    return {columns, static_cast<int>(n_blocks), begin, reinterpret_cast<const float *>(begin + layout.scales),
            begin + layout.sums};
}

// The activations of one block, and what they are scaled by.
struct block_values {
    const int8_t *  values;
    float           scale;
    float           scaled_sum;  // Q8_1 only
    const int16_t * sums_of_16;  // Q8_K only
};

static block_values values_of(ggml_type type, const void * blocks, int64_t i) {
    switch (type) {
        case GGML_TYPE_Q8_K: {
            const block_q8_K & block = static_cast<const block_q8_K *>(blocks)[i];
            return {block.qs, block.d, 0, block.bsums};
        }
        case GGML_TYPE_Q8_1: {
            const block_q8_1 & block = static_cast<const block_q8_1 *>(blocks)[i];
            return {block.qs, GGML_CPU_FP16_TO_FP32(block.data.data.d), GGML_CPU_FP16_TO_FP32(block.data.data.s),
                    nullptr};
        }
        default: {
            const block_q8_0 & block = static_cast<const block_q8_0 *>(blocks)[i];
            return {block.qs, GGML_CPU_FP16_TO_FP32(block.d), 0, nullptr};
        }
    }
}

// Writes what the kernel asks for of block `b`, column `c` of a group of `columns`.
static void write_sums(const kernel & k, const block_values & block, int64_t b, int64_t c, int64_t columns,
                       void * sums_memory) {
    auto *     words     = static_cast<int16_t *>(sums_memory);
    const auto sum_of_32 = [&](int i) {
        // where all activations of a block are 0, ggml leaves its sums as they were
        return static_cast<int16_t>(block.scale == 0 ? 0 : block.sums_of_16[2 * i] + block.sums_of_16[2 * i + 1]);
    };
    switch (k.extra) {
        case sums::none:
            break;
        case sums::of_16:
            for (int i = 0; i < 16; ++i) {
                words[(b * columns + c) * 16 + i] = block.scale == 0 ? int16_t(0) : block.sums_of_16[i];
            }
            break;
        case sums::of_32:
            for (int i = 0; i < 8; ++i) {
                words[(b * columns + c) * 8 + i] = sum_of_32(i);
            }
            break;
        case sums::of_32_pairs:
            for (int i = 0; i < 8; ++i) {
                words[((b * 4 + i / 2) * max_columns + c) * 2 + i % 2] = sum_of_32(i);
            }
            break;
        case sums::of_block: {
            int sum = 0;
            for (int i = 0; i < QK8_0; ++i) {
                sum += block.values[i];
            }
            static_cast<int32_t *>(sums_memory)[b * max_columns + c] = k.factor * sum;
            break;
        }
        case sums::scaled: {
            float * of_block = static_cast<float *>(sums_memory) + b * max_columns;
            of_block[c]      = block.scaled_sum;
            if (c == 0) {
                std::fill(of_block + columns, of_block + max_columns, 0.0f);
            }
            break;
        }
    }
}

void panels::fill_blocks(const float * x, int64_t column, int64_t first, int64_t end) {
    const int64_t      size    = ggml_blck_size(type);
    const int64_t      group   = column / max_columns;
    const int64_t      c       = column % max_columns;
    const int64_t      columns = std::min<int64_t>(max_columns, n_columns - group * max_columns);
    const group_layout layout  = layout_of(type, columns, n_blocks);
    char *             begin   = memory + group * layout_of(type, max_columns, n_blocks).end;
    auto *             values  = reinterpret_cast<int8_t *>(begin);
    auto *             scales  = reinterpret_cast<float *>(begin + layout.scales);

    const ggml_from_float_t quantize = ggml_get_type_traits_cpu(type)->from_float;

    constexpr int64_t at_once = 8;
    union {
        block_q8_0 q8_0[at_once];
        block_q8_1 q8_1[at_once];
        block_q8_K q8_K[at_once];
    } quantized;

    for (int64_t b = first; b < end; b += at_once) {
        const int64_t n = std::min(at_once, end - b);
        quantize(x + b * size, &quantized, n * size);
        for (int64_t i = 0; i < n; ++i) {
            const block_values block = values_of(type, &quantized, i);
            int8_t *           to    = values + ((b + i) * columns + c) * size;
            if (k.offset == 0) {
                memcpy(to, block.values, size);
            } else {
                for (int64_t j = 0; j < size; ++j) {
                    to[j] = static_cast<int8_t>(block.values[j] ^ 0x80);
                }
            }
            float * scale = scales + (b + i) * max_columns;
            scale[c]      = block.scale;
            if (c == 0) {
                std::fill(scale + columns, scale + max_columns, 0.0f);
            }
            write_sums(k, block, b + i, c, columns, begin + layout.sums);
        }
    }
}

}  // namespace loradrop::cpu
