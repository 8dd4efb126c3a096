#include "loradrop/engine.h"

#include "loradrop/batch.h"
#include "loradrop/errors.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>

namespace loradrop {

static void check_model(const llama_model & model) {
    if (llama_model_has_encoder(&model)) {
        throw unsupported_error("architecture '" + model.arch_name() + "' has an encoder; use rho = 0");
    }
    if (model.hparams.n_pos_per_embd() > 1) {
        throw unsupported_error("architecture '" + model.arch_name() +
                                "' has positions of more than one dimension; use rho = 0");
    }
    if (model.hparams.is_mla()) {
        throw unsupported_error("architecture '" + model.arch_name() +
                                "' keeps K and V as one compressed vector (MLA); use rho = 0");
    }
}

// Of how many positions a sequence keeps its reuse state.
static uint32_t state_rows(const lora_drop_params & params) {
    return params.refresh == refresh_policy::verify ? params.k + 1 : 1;
}

engine::engine(llama_context & ctx, const lora_drop_params & params) :
    ctx(ctx),
    params(params),
    all_runs(ctx.get_model(), *params.corrector,
             plan_runs(*params.corrector, params.rho, static_cast<int32_t>(ctx.get_model().hparams.n_layer())),
             ctx.n_seq_max(), state_rows(params)),
    sched(params.k, params.refresh, params.kv_window, ctx.n_seq_max()),
    ahead(params.refresh == refresh_policy::verify ? params.k : 0),
    variants(ctx.sched, ctx.gf_res_prev) {
    check_model(ctx.get_model());
    const uint32_t n_rows = all_runs.n_rows();
    if (n_rows > ctx.cparams.n_ubatch) {
        throw std::invalid_argument("k = " + std::to_string(params.k) + ": to verify takes a batch of k + 1 tokens, " +
                                    "n_ubatch and n_batch allow for " + std::to_string(ctx.cparams.n_ubatch));
    }
    ctx.cparams.n_outputs_max = std::max(ctx.cparams.n_outputs_max, n_rows);
    if (params.adapt_k) {
        length.emplace(params.k);
    }

    if (params.refresh == refresh_policy::verify && params.draft_rows > 0) {
        head = draft_head::make(ctx.get_model(), params.draft_rows);
    }

    const bool single_column = ctx.n_seq_max() == 1 && n_rows == 1;
    plans[full_step]         = {&all_runs, &sched, false, single_column};
    plans[lora_step]         = {&all_runs, &sched, true, single_column, false, head.get()};
}

llama_memory_i * engine::create_memory(const llama_memory_params & memory_params) {
    mem = new drop_memory(ctx.get_model(), memory_params, ctx.get_cparams(), all_runs, sched,
                          [this] { return reserve_full_step(); });
    return mem;
}

const engine * engine::of(const llama_context & ctx) {
    return ctx.drop.get();
}

engine * engine::of(llama_context & ctx) {
    return ctx.drop.get();
}

//
// graph variants
//

graph_variants::built engine::new_variant() const {
    const size_t max_nodes = ctx.graph_max_nodes(ctx.cparams.n_seq_max);
    return {ggml_backend_sched_ptr(ggml_backend_sched_new(ctx.backend_ptrs.data(), ctx.backend_buft.data(),
                                                          static_cast<int>(ctx.backend_ptrs.size()), max_nodes, false,
                                                          ctx.cparams.op_offload)),
            llm_graph_result_ptr(new llm_graph_result(static_cast<int64_t>(max_nodes)))};
}

void engine::reserve() {
    const uint32_t n_seqs = ctx.cparams.n_seq_max;
    variants.erase_rows();  // what has changed may change their graphs too
    variants.put(lora_variant, new_variant());

    {
        const auto                  mctx = mem->init_full();
        const graph_variants::scope in_lora_step(variants, lora_variant);
        enter_variant();
        if (!ctx.graph_reserve(n_seqs, n_seqs, n_seqs, mctx.get(), ctx.model.hparams.no_alloc)) {
            throw std::runtime_error("not enough memory for the compute buffers of the LoRA step");
        }
    }
    if (variants.wanted() >= first_of_rows && !make_rows_variant(variants.wanted())) {
        throw std::runtime_error("not enough memory for the compute buffers of a small batch");
    }
}

// In the variant that is entered. The memory as a whole has all streams, so each gets as many tokens as one will.
bool engine::reserve_rows(size_t n_tokens) {
    const uint32_t n_streams   = ctx.cparams.kv_unified ? 1 : ctx.cparams.n_seq_max;
    const uint32_t n           = static_cast<uint32_t>(n_tokens) * n_streams;
    plans[full_step].keeps_all = true;
    return ctx.graph_reserve(n, n_streams, n, mem->init_full().get()) != nullptr;
}

bool engine::make_rows_variant(size_t n_tokens) {
    if (variants.has(n_tokens)) {
        return true;
    }
    variants.put(n_tokens, new_variant());
    bool done;
    {
        const graph_variants::scope in_variant(variants, n_tokens);
        enter_variant();
        done = reserve_rows(n_tokens);
    }
    if (!done) {
        variants.erase(n_tokens);
    }
    return done;
}

bool engine::reserve_full_step() {
    const uint32_t n_tokens  = std::min(ctx.cparams.n_ctx, ctx.cparams.n_ubatch);
    const uint32_t n_outputs = std::min(n_tokens, ctx.cparams.n_outputs_max);
    const bool     keeps_all = plans[full_step].keeps_all;

    variants.erase_rows();  // they were made for fewer cells
    const bool has_rows        = variants.wanted() < first_of_rows || make_rows_variant(variants.wanted());
    plans[full_step].keeps_all = false;
    const bool done = ctx.graph_reserve(n_tokens, ctx.cparams.n_seq_max, n_outputs, mem->init_full().get()) != nullptr;
    plans[full_step].keeps_all = keeps_all;
    return done && has_rows;
}

//
// decoding
//

// Whether every token of a full step leaves a row of state: then a client may cut the sequence back to any of them.
bool engine::leaves_rows(const llama_batch & batch) const {
    if (batch.n_tokens < 2 || batch.n_tokens > static_cast<int32_t>(all_runs.n_rows()) || !batch.token || batch.embd ||
        has_coupled_sequences(batch) || distinct_sequences(batch).size() > 1 ||
        !all_runs.has_slot(sequences_of(batch, 0)[0])) {
        return false;
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (!wants_output(batch, i)) {
            return false;
        }
    }
    return true;
}

int engine::run_pass(const llama_batch & batch, step_kind kind) {
    variant_id id = full_variant;
    if (kind == lora_step) {
        id = lora_variant;
    } else if (is_well_formed(batch) && leaves_rows(batch)) {
        id = static_cast<variant_id>(batch.n_tokens);
        if (!make_rows_variant(id)) {
            return 1;
        }
    }
    plans[full_step].keeps_all = id >= first_of_rows;
    const drop_memory::pass     in_pass(*mem, kind == lora_step);
    const graph_variants::scope in_variant(variants, id);
    const int                   status = ctx.decode_pass(batch);
    if (kind == lora_step && head && status == 0) {
        ctx.synchronize();
        head->read(ctx.gf_res_prev->get_gf(), ctx.logits.data);
    }
    return status;
}

bool engine::is_lora_batch(const llama_batch & batch) const {
    if (!batch.token || batch.embd || batch.n_tokens > static_cast<int32_t>(all_runs.n_slots())) {
        return false;
    }
    std::vector<llama_seq_id> seen;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const auto ids = sequences_of(batch, i);
        if (ids.size() != 1 || !sched.lora_step_due(ids[0]) ||
            std::find(seen.begin(), seen.end(), ids[0]) != seen.end()) {
            return false;
        }
        seen.push_back(ids[0]);
    }
    return true;
}

int engine::decode(const llama_batch & batch) {
    if (!is_well_formed(batch)) {
        return run_pass(batch, full_step);  // llama.cpp says what is wrong, and changes nothing
    }
    if (mem->has_state_copies()) {
        ctx.synchronize();
        mem->copy_states();
    }
    if (params.refresh == refresh_policy::verify) {
        return decode_verify(batch);
    }
    return is_lora_batch(batch) ? decode_lora(batch) : decode_full(batch);
}

int engine::decode_lora(const llama_batch & batch) {
    const int status = run_pass(batch, lora_step);
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id s    = sequences_of(batch, i)[0];
        const llama_pos    last = mem->last_stored(s);
        const sequence &   q    = sched.at(s);
        const llama_pos    old  = q.lora.empty() ? q.anchor : q.lora.back().pos;
        if (last > old) {
            sched.after_lora_step(s, {batch.token[i], last}, wants_output(batch, i));
        }
        if (status == 2 || status < -1) {
            sched.after_failure(s, last);
        }
    }
    if (status == 0) {
        ++counts.steps[lora_step];
        counts.tokens[lora_step] += static_cast<uint64_t>(batch.n_tokens);
        counts.last_step = lora_step;
    }
    return status;
}

int engine::decode_full(const llama_batch & batch) {
    const auto sequences = distinct_sequences(batch);

    std::vector<llama_seq_id> replaying;
    for (const llama_seq_id s : sequences) {
        if (sched.replays(s) && mem->take_out_lora_tokens(s)) {
            replaying.push_back(s);
        }
    }

    int status;
    if (replaying.empty()) {
        status = run_pass(batch, full_step);
    } else if (can_extend(batch, replaying)) {
        status = run_with_replays(batch, replaying);
    } else {
        status = run_replays_alone(replaying);
        status = status == 0 ? run_pass(batch, full_step) : status;
    }

    for (const llama_seq_id s : sequences) {
        const llama_pos last = mem->last_stored(s);
        if (status == 0) {
            counts.replayed += sched.replays(s) ? sched.at(s).lora.size() : 0;
            sched.after_full_step(s, last, wants_output(batch, last_token_of(batch, s)),
                                  leaves_rows(batch) ? batch.n_tokens : 1);
            mem->thin(s);
        } else if (status == 2 || status < -1 || sched.replays(s)) {
            sched.after_failure(s, last);
        }
    }
    if (status == 0) {
        ++counts.steps[full_step];
        counts.tokens[full_step] += static_cast<uint64_t>(batch.n_tokens);
        counts.last_step = full_step;
    }
    return status;
}

// One batch takes the replays too when it stays within the context's limits and every output has its place.
bool engine::can_extend(const llama_batch & batch, const std::vector<llama_seq_id> & replaying) const {
    size_t n_tokens = static_cast<size_t>(batch.n_tokens);
    for (const llama_seq_id s : replaying) {
        n_tokens += sched.at(s).lora.size();
    }
    return batch.token && !batch.embd && !ctx.cparams.embeddings && n_tokens <= ctx.cparams.n_batch &&
           !has_coupled_sequences(batch);
}

int engine::run_with_replays(const llama_batch & batch, const std::vector<llama_seq_id> & replaying) {
    batch_builder        extended;
    std::vector<int32_t> index;  // of each token of the batch in the extended one
    auto                 waiting = replaying;

    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id s     = sequences_of(batch, i)[0];
        const auto         found = std::find(waiting.begin(), waiting.end(), s);
        if (found != waiting.end()) {
            waiting.erase(found);
            for (const lora_token & t : sched.at(s).lora) {
                extended.add(t.token, t.pos, s, false);
            }
        }
        const llama_pos pos = batch.pos ? batch.pos[i] : extended.next_pos(s, mem->last_stored(s) + 1);
        index.push_back(extended.size());
        extended.add(batch.token[i], pos, s, wants_output(batch, i));
    }

    const int status = run_pass(extended.view(), full_step);
    if (status == 0) {
        // outputs are asked for by the caller's indices
        const std::vector<int32_t> rows = ctx.output_ids;
        std::fill(ctx.output_ids.begin(), ctx.output_ids.end(), -1);
        for (size_t i = 0; i < index.size(); ++i) {
            ctx.output_ids[i] = rows[index[i]];
        }
    }
    return status;
}

int engine::run_replays_alone(const std::vector<llama_seq_id> & replaying) {
    for (const llama_seq_id s : replaying) {
        batch_builder replay;
        for (const lora_token & t : sched.at(s).lora) {
            replay.add(t.token, t.pos, s, false);
            if (replay.size() == static_cast<int32_t>(ctx.cparams.n_batch) || &t == &sched.at(s).lora.back()) {
                const int status = run_pass(replay.view(), full_step);
                if (status != 0) {
                    return status;
                }
                replay = {};
            }
        }
    }
    return 0;
}

int32_t engine::exact_tokens(llama_seq_id seq_id) const {
    const int32_t n = mem->seq_pos_max(seq_id) + 1;
    return params.refresh == refresh_policy::verify ? n : std::min(n, sched.at(seq_id).n_exact);
}

engine_stats engine::stats() const {
    engine_stats out = counts;
    out.ahead        = ahead.counts();
    out.weight_bytes = all_runs.weight_bytes();
    out.state_bytes  = all_runs.state_bytes();
    out.head_bytes   = head ? head->n_bytes() : 0;
    for (ggml_backend_t backend : ctx.backend_ptrs) {
        out.compute_bytes[full_step] += variants.buffer_bytes(full_variant, backend);
        out.compute_bytes[lora_step] += variants.buffer_bytes(lora_variant, backend);
    }
    return out;
}

//
// hooks
//

void engine_deleter::operator()(engine * e) const {
    delete e;
}

engine_ptr make_engine(llama_context & ctx, const lora_drop_params & params) {
    return engine_ptr(new engine(ctx, params));
}

llama_memory_i * create_memory(engine & e, const llama_memory_params & params) {
    return e.create_memory(params);
}

int decode(engine & e, const llama_batch & batch) {
    return e.decode(batch);
}

void reserve_lora_step(engine & e) {
    e.reserve();
}

void enter_variant(engine & e) {
    e.enter_variant();
}

void count_build(engine & e) {
    e.count_build();
}

const graph_plan * current_plan(const engine & e) {
    return e.plan();
}

}  // namespace loradrop
