#include "loradrop/step_graph.h"

#include "loradrop/draft_head.h"
#include "loradrop/drop_memory_context.h"
#include "loradrop/errors.h"
#include "loradrop/graph_inputs.h"
#include "loradrop/graph_prune.h"

namespace loradrop {

step_graph::step_graph(const llm_graph_params & params, state_capture * capture) :
    plan(params.drop), params(params), res(params.res), ctx(params.res->get_ctx()), gf(params.res->get_gf()) {
    if (capture) {
        auto input = std::make_unique<captured_tensors>(*capture, params.ubatch.n_tokens);
        captured   = input.get();
        res->add_input(std::move(input));
    }
}

// Null when layer il runs in every step.
const reuse_run * step_graph::run_of(int il) const {
    return plan ? plan->runs->run_of(il) : nullptr;
}

const llama_memory_context_i * step_graph::droppable_cells() const {
    if (!plan || plan->lora_step) {
        return nullptr;
    }
    return droppable_of(params.mctx).droppable.get();
}

void step_graph::add_droppable_input(std::unique_ptr<llm_graph_input_i> input) {
    droppable_input = input.get();
    res->add_input(std::make_unique<droppable_attention_input>(std::move(input), droppable_of(params.mctx).generation));
}

bool step_graph::skips_layer(int il) const {
    return run_of(il) && plan->lora_step;
}

ggml_tensor * step_graph::unused_attention(ggml_tensor * wo, ggml_tensor * q_cur, ggml_tensor * v_cur) {
    const int64_t n_out = wo ? wo->ne[1] : v_cur->ne[0] * q_cur->ne[1];
    return ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_out, q_cur->ne[2]);
}

const slot_inputs & step_graph::slots() {
    if (!has_slots) {
        has_slots    = true;
        auto input   = std::make_unique<slot_input>(ctx, *plan, params.ubatch);
        slot_tensors = input->tensors;
        res->add_input(std::move(input));
    }
    return slot_tensors;
}

void step_graph::check_layer_output(const ggml_tensor * cur, int il) const {
    const int64_t n_embd = params.hparams.n_embd;
    if (cur->type != GGML_TYPE_F32 || cur->ne[0] != n_embd || cur->ne[1] != params.ubatch.n_tokens ||
        ggml_nelements(cur) != n_embd * params.ubatch.n_tokens) {
        throw unsupported_error("the output of layer " + std::to_string(il) +
                                " is not one f32 vector of the model's width for each token; use rho = 0");
    }
}

// What follows layer il: at the end of a dropped run in a LoRA step its replacement, else the layer's output.
ggml_tensor * step_graph::run_output(ggml_tensor * cur, int il) {
    const reuse_run * run = run_of(il);
    if (run && run->span.last == il) {
        const auto input = run_inputs.find(run->span.first);
        if (input == run_inputs.end()) {
            throw unsupported_error("layer " + std::to_string(run->span.first - 1) +
                                    " does not name its output; use rho = 0");
        }
        if (plan->lora_step) {
            cur = build_lora_step(ctx, gf, *run, slots(), input->second);
        } else {
            check_layer_output(cur, il);
            build_refresh(ctx, gf, *run, slots(), input->second, cur);
        }
        ++n_runs_done;
    }
    if (const reuse_run * next = plan->runs->run_after(il)) {
        check_layer_output(cur, il);
        run_inputs[next->span.first] = cur;
    }
    return cur;
}

ggml_tensor * step_graph::layer_output(ggml_tensor * cur, int il) {
    if (plan) {
        cur = run_output(cur, il);
    }
    if (captured) {
        captured->add(il, cur);  // inside a replaced run too, where it will not be computed
    }
    return cur;
}

void step_graph::finish() {
    if (plan && n_runs_done != plan->runs->runs().size()) {
        throw unsupported_error("the model's graph names the outputs of only " + std::to_string(n_runs_done) + " of " +
                                std::to_string(plan->runs->runs().size()) + " dropped runs; use rho = 0");
    }
    if (plan && plan->lora_step) {
        if (plan->head) {
            plan->head->replace(ctx, gf, *res);
        }
        prune_graph(gf);
        check_layers_absent(gf, *plan->runs);
    }
    if (captured) {
        captured->add_first_input(*res);
        captured->check_complete();
    }
}

//
// hooks
//

std::shared_ptr<step_graph> begin_graph(const llm_graph_params & params) {
    state_capture * capture = state_capture::of(params.cparams);
    return params.drop || capture ? std::make_shared<step_graph>(params, capture) : nullptr;
}

const llama_memory_context_i * droppable_cells(const step_graph & g) {
    return g.droppable_cells();
}

void add_droppable_input(step_graph & g, std::unique_ptr<llm_graph_input_attn_kv> input) {
    g.add_droppable_input(std::move(input));
}

void add_droppable_input(step_graph & g, std::unique_ptr<llm_graph_input_attn_kv_iswa> input) {
    g.add_droppable_input(std::move(input));
}

llm_graph_input_attn_kv * attention_input(const step_graph & g, llm_graph_input_attn_kv * kept, int il) {
    return g.attention_input(kept, il);
}

llm_graph_input_attn_kv_iswa * attention_input(const step_graph & g, llm_graph_input_attn_kv_iswa * kept, int il) {
    return g.attention_input(kept, il);
}

bool skips_layer(const step_graph & g, int il) {
    return g.skips_layer(il);
}

ggml_tensor * unused_attention(step_graph & g, ggml_tensor * wo, ggml_tensor * q_cur, ggml_tensor * v_cur) {
    return g.unused_attention(wo, q_cur, v_cur);
}

ggml_tensor * layer_output(step_graph & g, ggml_tensor * cur, int il) {
    return g.layer_output(cur, il);
}

void finish_graph(step_graph & g) {
    g.finish();
}

}  // namespace loradrop
