// Exact decoding: LoRA steps draft, one full batch checks, and the client gets the full model's logits alone.
//
// The client's own choice of the next token is the test that a draft has to pass, so whatever it samples with, it gets
// what it would have got from the full model. Between two calls no cache holds a token that ran in a LoRA step.
#include "loradrop/batch.h"
#include "loradrop/engine.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <chrono>

namespace loradrop {

namespace {

class stopwatch {
  public:
    double seconds() const { return std::chrono::duration<double>(clock::now() - begin).count(); }

  private:
    using clock = std::chrono::steady_clock;

    clock::time_point begin = clock::now();
};

// Takes what LoRA steps have left out of the caches and the books, however they end.
struct draft_guard {
    drop_memory & mem;
    sequence &    seq;
    llama_seq_id  seq_id;
    llama_pos     first;

    ~draft_guard() {
        seq.lora.clear();
        mem.take_out(seq_id, first);
    }
};

// Positions of the model's own table, where it has one.
int64_t last_position(const llama_model & model) {
    return model.pos_embd ? model.pos_embd->ne[1] - 1 : INT32_MAX;
}

}  // namespace

// One token of one sequence, whose logits are all that the client wants to know.
bool engine::can_look_ahead(const llama_batch & batch) const {
    if (batch.n_tokens != 1 || !batch.token || batch.embd || !wants_output(batch, 0)) {
        return false;
    }
    const auto ids = sequences_of(batch, 0);
    if (ids.size() != 1 || (batch.pos && batch.pos[0] != mem->seq_pos_max(ids[0]) + 1)) {
        return false;
    }
    const auto & p = ctx.cparams;
    return p.causal_attn && !p.embeddings && !p.embeddings_nextn && !p.warmup && !p.cb_eval &&
           ctx.sampling.samplers.empty() &&
           std::none_of(p.embeddings_layer_inp.begin(), p.embeddings_layer_inp.end(), [](bool b) { return b; });
}

std::optional<llama_token> engine::drafted(llama_seq_id seq_id) const {
    const auto next = seq_id >= 0 && seq_id == mem->ahead_of() ? ahead.next() : std::nullopt;
    return next ? std::optional(next->token) : std::nullopt;
}

void engine::set_picker(std::shared_ptr<draft_picker> chooser) {
    picker = std::move(chooser);
    if (length) {
        length->draw_drafts(picker != nullptr);
    }
}

int engine::decode_verify(const llama_batch & batch) {
    if (head && batch.token) {
        std::for_each(batch.token, batch.token + batch.n_tokens, [this](llama_token token) { head->add(token); });
    }
    const bool         able  = can_look_ahead(batch);
    const llama_seq_id s     = sequences_of(batch, 0)[0];
    const bool         again = s == last_alone;  // sequences that take turns would lose each other's rounds
    last_alone               = distinct_sequences(batch).size() == 1 ? s : -1;

    if (mem->ahead_of() >= 0) {
        // whatever changes the graph asks for a new reservation, and another client of the outputs leaves its own
        // number
        if (able && s == mem->ahead_of() && !ctx.sched_need_reserve && ctx.n_outputs == 1) {
            const auto next = ahead.next();
            const auto row  = ahead.take(batch.token[0]);
            if (length && next) {
                length->came_to(next->margin, row.has_value());
            }
            if (row) {
                sched.advance(s);
                show_row(*row);
                ++counts.tokens[full_step];
                return 0;
            }
        }
        mem->drop_ahead();
    }
    if (able && again && sched.lora_step_due(s) && (!length || length->begins())) {
        return decode_round(batch.token[0], s, batch);
    }
    if (length && batch.n_tokens > 1) {
        length->begin_text();
    }
    return able ? decode_alone(batch) : decode_full(batch);
}

int engine::decode_alone(const llama_batch & batch) {
    const stopwatch time;
    const int       status = decode_full(batch);
    if (status == 0 && (length || head)) {
        ctx.synchronize();
    }
    if (status == 0 && length) {
        length->full_took(time.seconds());
    }
    if (status == 0 && head) {
        head->add_likely(ctx.logits.data);
    }
    return status;
}

int engine::decode_round(llama_token token, llama_seq_id s, const llama_batch & batch) {
    const llama_pos            pos = sched.at(s).anchor + 1;
    std::vector<greedy_choice> drafts;

    int status = draft(s, {token, pos}, drafts);
    if (status != 0) {
        return status;
    }
    if (drafts.empty()) {
        return decode_alone(batch);
    }
    batch_builder check;
    check.add(token, pos, s, true);
    for (const greedy_choice & d : drafts) {
        check.add(d.token, pos + check.size(), s, true);
    }
    const stopwatch time;
    status = run_pass(check.view(), full_step);
    if (status == 1) {
        return decode_full(batch);  // there may be room for the token alone
    }
    if (status != 0) {
        sched.after_failure(s, mem->last_stored(s));
        return status;
    }
    sched.after_full_step(s, pos, true);
    mem->hide_ahead(s);
    ahead.begin(std::move(drafts));
    show_row(0);
    if (length) {
        length->check_took(static_cast<size_t>(check.size()), time.seconds());
    }
    ++counts.steps[full_step];
    ++counts.tokens[full_step];
    counts.last_step = full_step;
    return 0;
}

// The tokens that LoRA steps choose after one; fewer than k where there is no room for more.
int engine::draft(llama_seq_id s, lora_token after, std::vector<greedy_choice> & drafts) {
    const draft_guard  guard  = {*mem, sched.at(s), s, after.pos};
    const auto         n_most = std::min<int64_t>(params.k, last_position(ctx.model) - after.pos);
    std::vector<float> margins;
    if (picker) {
        picker->begin_round();
    }

    while (static_cast<int64_t>(drafts.size()) < n_most && (drafts.empty() || !length || length->goes_on(margins))) {
        const stopwatch time;
        batch_builder   step;
        step.add(after.token, after.pos, s, true);
        const int status = run_pass(step.view(), lora_step);
        if (status == 1 && !drafts.empty()) {
            drafts.pop_back();  // the check takes one cell more than its drafts
        }
        if (status != 0) {
            return status == 1 ? 0 : status;
        }
        ++counts.steps[lora_step];
        sched.after_lora_step(s, after, true);
        ctx.synchronize();
        drafts.push_back(choose_draft());
        margins.push_back(drafts.back().margin);
        if (length) {
            length->lora_took(time.seconds());
        }
        after = {drafts.back().token, after.pos + 1};
        if (ctx.model.vocab.is_eog(after.token)) {
            break;
        }
    }
    return 0;
}

greedy_choice engine::choose_draft() const {
    const auto    n_vocab = static_cast<size_t>(ctx.model.vocab.n_tokens());
    greedy_choice best    = choose_greedily(ctx.logits.data, n_vocab);
    if (picker) {
        const int32_t picked = picker->pick(ctx.logits.data, n_vocab);
        best                 = {picked, picked == best.token ? best.margin : 0.0f};
    }
    return best;
}

// The client finds the logits of one token, as after a batch of one.
void engine::show_row(int32_t row) {
    ctx.synchronize();
    const auto n_vocab = static_cast<size_t>(ctx.model.vocab.n_tokens());
    float *    first   = ctx.logits.data;
    if (row > 0) {
        std::copy_n(first + static_cast<size_t>(row) * n_vocab, n_vocab, first);
    }
    if (head) {
        head->add_likely(first);
    }
    std::fill(ctx.output_ids.begin(), ctx.output_ids.end(), -1);
    ctx.output_ids[0] = 0;
    ctx.n_outputs     = 1;
}

}  // namespace loradrop
