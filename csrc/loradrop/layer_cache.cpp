#include "loradrop/layer_cache.h"

#include "loradrop/kv_access.h"

#include "llama-cparams.h"
#include "llama-model.h"

#include <limits>

namespace loradrop {

cache_options::cache_options(const llama_memory_params & params, const llama_cparams & cparams) :
    type_k(params.type_k),
    type_v(params.type_v),
    v_trans(!cparams.flash_attn),
    offload(cparams.offload_kqv),
    unified(cparams.kv_unified),
    swa_full(params.swa_full),
    n_seq_max(cparams.n_seq_max),
    n_ubatch(cparams.n_ubatch) {
}

layer_cache::layer_cache(const llama_model & model, const cache_options & o,
                         const llama_memory_i::layer_filter_cb & filter, uint32_t n_cells, uint32_t n_rewind) {
    const llama_hparams & hparams = model.hparams;
    if (hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        auto plain = std::make_unique<llama_kv_cache>(model, hparams, o.type_k, o.type_v, o.v_trans, o.offload,
                                                      o.unified, n_cells, o.n_seq_max, 1, hparams.n_swa,
                                                      hparams.swa_type, nullptr, filter, nullptr, nullptr);
        caches     = {plain.get()};
        memory     = std::move(plain);
        return;
    }
    // llama.cpp adds this to the windows; asked for a full-size cache itself, it warns at every growth
    const uint32_t n_beside = o.swa_full ? n_cells : o.n_ubatch + n_rewind * (o.unified ? o.n_seq_max : 1);
    auto           two =
        std::make_unique<llama_kv_cache_iswa>(model, o.type_k, o.type_v, o.v_trans, o.offload, false, o.unified,
                                              n_cells, o.n_seq_max, n_beside, 1, nullptr, filter, nullptr, nullptr);
    iswa   = two.get();
    caches = {two->get_base(), two->get_swa()};
    memory = std::move(two);
    // a full-size cache can be gone back in as far as one likes, but llama.cpp overwrites in it what has left a window
    set_rewind(*iswa->get_swa(), o.swa_full ? std::numeric_limits<llama_pos>::max() : static_cast<llama_pos>(n_rewind));
}

layer_cache::slot_infos layer_cache::prepare(const std::vector<llama_ubatch> & ubatches) {
    slot_infos slots;
    for (llama_kv_cache * cache : caches) {
        slots.push_back(cache->prepare(ubatches));
        if (slots.back().empty()) {
            return {};
        }
    }
    return slots;
}

void layer_cache::move_to(layer_cache & larger) {
    for (size_t i = 0; i < caches.size(); ++i) {
        move_cells(*caches[i], *larger.caches[i]);
    }
}

bool layer_cache::holds(llama_seq_id seq_id, llama_pos pos) const {
    return loradrop::holds(*caches.front(), seq_id, pos);  // of two, the one without windows
}

size_t layer_cache::bytes() const {
    size_t total = 0;
    for (const llama_kv_cache * cache : caches) {
        total += cache_bytes(*cache);
    }
    return total;
}

size_t layer_cache::bytes_with_cells_of(const layer_cache & other) const {
    size_t total = 0;
    for (size_t i = 0; i < caches.size(); ++i) {
        total += cache_bytes(*caches[i]) / caches[i]->get_size() * other.caches[i]->get_size();
    }
    return total;
}

size_t layer_cache::bytes_with_tokens_of(const layer_cache & other) const {
    size_t total = 0;
    for (size_t i = 0; i < caches.size(); ++i) {
        total += loradrop::bytes_with_tokens_of(*caches[i], *other.caches[i]);
    }
    return total;
}

}  // namespace loradrop
