#include "loradrop/drop_memory_context.h"

namespace loradrop {

namespace {

using plain_context = drop_memory_context<llama_kv_cache_context>;
using pair_context  = drop_memory_context<llama_kv_cache_iswa_context>;

template <typename context>
llama_memory_context_ptr with_droppable(std::unique_ptr<context> kept, llama_memory_context_ptr droppable,
                                        uint64_t generation) {
    kept->droppable  = std::move(droppable);
    kept->generation = generation;
    return kept;
}

llama_memory_context_ptr batch_context(layer_cache & kept, layer_cache::slot_infos slots,
                                       const std::vector<llama_ubatch> & ubatches, llama_memory_context_ptr droppable,
                                       uint64_t generation) {
    if (kept.pair()) {
        return with_droppable(
            std::make_unique<pair_context>(kept.pair(), std::move(slots[0]), std::move(slots[1]), ubatches),
            std::move(droppable), generation);
    }
    return with_droppable(std::make_unique<plain_context>(kept.parts()[0], std::move(slots[0]), ubatches),
                          std::move(droppable), generation);
}

}  // namespace

llama_memory_context_ptr failed_context() {
    return std::make_unique<plain_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
}

llama_memory_context_ptr full_context(layer_cache & kept, layer_cache & droppable, uint64_t generation) {
    if (kept.pair()) {
        return with_droppable(std::make_unique<pair_context>(kept.pair()), droppable->init_full(), generation);
    }
    return with_droppable(std::make_unique<plain_context>(kept.parts()[0]), droppable->init_full(), generation);
}

llama_memory_context_ptr lora_context(layer_cache & kept, layer_cache::slot_infos slots,
                                      const std::vector<llama_ubatch> & ubatches) {
    return batch_context(kept, std::move(slots), ubatches, nullptr, 0);
}

llama_memory_context_ptr full_context(layer_cache & kept, layer_cache::slot_infos kept_slots, layer_cache & droppable,
                                      layer_cache::slot_infos           droppable_slots,
                                      const std::vector<llama_ubatch> & ubatches, uint64_t generation) {
    auto of_droppable = batch_context(droppable, std::move(droppable_slots), ubatches, nullptr, 0);
    return batch_context(kept, std::move(kept_slots), ubatches, std::move(of_droppable), generation);
}

const droppable_part & droppable_of(const llama_memory_context_i * mctx) {
    return dynamic_cast<const droppable_part &>(*mctx);
}

//
// updates
//

drop_update_context::drop_update_context(llama_memory_context_ptr kept, llama_memory_context_ptr droppable) :
    kept(std::move(kept)), droppable(std::move(droppable)) {
}

bool drop_update_context::next() {
    return false;
}

bool drop_update_context::apply() {
    bool done = true;
    for (auto * part : {kept.get(), droppable.get()}) {
        if (part->get_status() == LLAMA_MEMORY_STATUS_SUCCESS) {
            done = part->apply() && done;
        }
    }
    return done;
}

const llama_ubatch & drop_update_context::get_ubatch() const {
    return kept->get_ubatch();
}

llama_memory_status drop_update_context::get_status() const {
    return llama_memory_status_combine(kept->get_status(), droppable->get_status());
}

}  // namespace loradrop
