#include "loradrop/drop_memory_context.h"

namespace loradrop {

drop_memory_context::drop_memory_context(llama_memory_status status) : llama_kv_cache_context(status) {
}

drop_memory_context::drop_memory_context(llama_kv_cache & kept, llama_kv_cache & droppable, uint64_t generation) :
    llama_kv_cache_context(&kept),
    droppable(std::make_unique<llama_kv_cache_context>(&droppable)),
    generation(generation) {
}

drop_memory_context::drop_memory_context(llama_kv_cache & kept, slot_infos kept_slots,
                                         const std::vector<llama_ubatch> & ubatches) :
    llama_kv_cache_context(&kept, std::move(kept_slots), ubatches) {
}

drop_memory_context::drop_memory_context(llama_kv_cache & kept, slot_infos kept_slots, llama_kv_cache & droppable,
                                         slot_infos droppable_slots, const std::vector<llama_ubatch> & ubatches,
                                         uint64_t generation) :
    llama_kv_cache_context(&kept, std::move(kept_slots), ubatches),
    droppable(std::make_unique<llama_kv_cache_context>(&droppable, std::move(droppable_slots), ubatches)),
    generation(generation) {
}

bool drop_memory_context::next() {
    if (droppable) {
        droppable->next();
    }
    return llama_kv_cache_context::next();
}

bool drop_memory_context::apply() {
    const bool done = llama_kv_cache_context::apply();
    return (!droppable || droppable->apply()) && done;
}

const llama_kv_cache_context * droppable_of(const llama_memory_context_i * mctx) {
    return static_cast<const drop_memory_context *>(mctx)->droppable.get();
}

uint64_t generation_of(const llama_memory_context_i * mctx) {
    return static_cast<const drop_memory_context *>(mctx)->generation;
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
