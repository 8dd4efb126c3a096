#include "cpu/expert_plan.h"

namespace loradrop::cpu {

expert_plan::expert_plan(const ggml_tensor & op, void * memory) :
    n_chosen(static_cast<int64_t *>(memory)),
    chosen(reinterpret_cast<chosen_expert *>(n_chosen + 1)),
    columns(reinterpret_cast<expert_column *>(chosen + op.src[0]->ne[2])) {
}

size_t expert_plan::bytes(const ggml_tensor & op) {
    return sizeof(int64_t) + sizeof(chosen_expert) * op.src[0]->ne[2] +
           sizeof(expert_column) * ggml_nelements(op.src[2]);
}

static int32_t expert_of(const ggml_tensor & ids, int64_t slot, int64_t token) {
    const char * at = static_cast<const char *>(ids.data) + slot * ids.nb[0] + token * ids.nb[1];
    return *reinterpret_cast<const int32_t *>(at);
}

void expert_plan::write(const ggml_tensor & op) {
    const ggml_tensor & ids       = *op.src[2];
    const int64_t       n_experts = op.src[0]->ne[2];

    const auto for_each_column = [&](const auto & act) {
        for (int32_t token = 0; token < ids.ne[1]; ++token) {
            for (int32_t slot = 0; slot < ids.ne[0]; ++slot) {
                act(chosen[expert_of(ids, slot, token)], expert_column{slot, token});
            }
        }
    };
    for (int64_t e = 0; e < n_experts; ++e) {
        chosen[e] = {static_cast<int32_t>(e), 0, 0};
    }
    for_each_column([](chosen_expert & e, expert_column) { ++e.n_columns; });
    int32_t first = 0;
    for (int64_t e = 0; e < n_experts; ++e) {
        chosen[e].first_column = first;
        first += chosen[e].n_columns;
        chosen[e].n_columns = 0;
    }
    for_each_column([&](chosen_expert & e, expert_column c) { columns[e.first_column + e.n_columns++] = c; });

    *n_chosen = 0;
    for (int64_t e = 0; e < n_experts; ++e) {
        if (chosen[e].n_columns > 0) {
            chosen[(*n_chosen)++] = chosen[e];
        }
    }
}

}  // namespace loradrop::cpu
