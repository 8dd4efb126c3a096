#include "loradrop/cache_size.h"

#include "loradrop/drop_memory.h"
#include "loradrop/drop_plan.h"
#include "loradrop/loradrop.h"

#include "llama-model.h"

#include <algorithm>

namespace loradrop {

// llama.cpp rounds cells up to whole blocks of this many.
static constexpr uint64_t cell_block = 256;

static uint64_t in_blocks(uint64_t n_cells) {
    return (n_cells + cell_block - 1) / cell_block * cell_block;
}

static std::vector<bool> droppable_layers(const lora_drop_params * drop, int32_t n_layer) {
    std::vector<bool> out(static_cast<size_t>(n_layer), false);
    if (drop) {
        for (const drop_run & run : plan_runs(*drop->corrector, drop->rho, n_layer)) {
            std::fill(out.begin() + run.first, out.begin() + run.last + 1, true);
        }
    }
    return out;
}

uint64_t initial_cache_bytes(const llama_model & model, const llama_context_params & params) {
    const llama_hparams &    hparams = model.hparams;
    const lora_drop_params * drop    = params.lora_drop;

    const uint64_t n_sharing = params.kv_unified ? params.n_seq_max : 1;  // sequences with one stream of cells
    const uint64_t n_streams = params.kv_unified ? 1 : params.n_seq_max;
    const uint64_t n_cells   = in_blocks(in_blocks(params.n_ctx) / n_streams);
    const uint64_t n_ubatch  = std::min({params.n_ctx, params.n_batch, params.n_ubatch});
    const uint64_t n_rewind  = drop && drop->refresh != refresh_policy::single ? drop->k : 0;
    const bool     v_trans   = params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED;
    const auto     n_layer   = hparams.n_layer();
    const auto     droppable = droppable_layers(drop, static_cast<int32_t>(n_layer));

    uint64_t total = 0;
    for (uint32_t il = 0; il < n_layer; ++il) {
        if (!hparams.has_kv(il) || hparams.is_recr(il)) {
            continue;
        }
        uint64_t cells = droppable[il] ? std::min<uint64_t>(drop_memory::min_growth, n_cells) : n_cells;
        if (hparams.swa_type != LLAMA_SWA_TYPE_NONE && hparams.is_swa(il) && !params.swa_full) {
            const uint64_t window = hparams.n_swa + (droppable[il] ? 0 : n_rewind);
            cells                 = in_blocks(std::min(cells, window * n_sharing + n_ubatch));
        }
        const uint32_t n_v = v_trans ? hparams.n_embd_v_gqa_max() : hparams.n_embd_v_gqa(il);
        const size_t   row = ggml_row_size(params.type_k, hparams.n_embd_k_gqa(il)) +
                           (hparams.is_mla() ? 0 : ggml_row_size(params.type_v, n_v));
        total += cells * n_streams * row;
    }
    return total;
}

}  // namespace loradrop
