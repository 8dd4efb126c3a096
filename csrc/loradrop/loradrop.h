// What a client of llama.cpp sets to decode with LoRA-Drop: llama_context_params::lora_drop points to this.
#pragma once

#include "loradrop/corrector.h"
#include "loradrop/schedule.h"

#include <memory>

struct lora_drop_params {
    std::shared_ptr<const loradrop::corrector> corrector;
    double                                     rho        = 0.0;  // share of the model's layers that drop, (0, 1)
    uint32_t                                   k          = 0;    // LoRA steps between two refresh steps
    loradrop::refresh_policy                   refresh    = loradrop::refresh_policy::single;
    int32_t                                    kv_window  = 64;  // refill: tokens whose K/V droppable layers still hold
    uint32_t                                   draft_rows = 0;   // verify: rows of the output head in drafts; 0: all
    bool                                       adapt_k    = false;  // verify: k is the most; a round drafts what pays
};
