#include "loradrop/draft_head.h"

#include "loradrop/greedy_choice.h"

#include "ggml-backend.h"
#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace loradrop {

namespace {

constexpr const char * logits_name   = "lora_drop.draft_logits";
constexpr uint32_t     small_vocab   = 1 << 14;  // whose head is soon read
constexpr uint32_t     usual_share   = 8;
constexpr float        likely_margin = 6.0f;  // natural logarithms

// Rows can be read from memory that holds tensors as they are: what a device packs anew or splits cannot.
bool has_rows(const ggml_tensor * t, ggml_backend_dev_t device) {
    if (!t || !t->buffer || !ggml_is_contiguous(t)) {
        return false;
    }
    ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(t->buffer);
    return ggml_backend_buft_is_host(type) || type == ggml_backend_dev_buffer_type(device);
}

// Where the rows of the output head are; null when nowhere.
const ggml_tensor * find_rows(const llama_model & model) {
    const ggml_tensor * head = model.output;
    if (has_rows(head, model.dev_output())) {
        return head;
    }
    const ggml_tensor * embedding = model.tok_embd;
    const bool          tied      = head && embedding && std::strcmp(head->name, embedding->name) == 0;
    return tied && has_rows(embedding, model.dev_output()) ? embedding : nullptr;
}

// Raises or lowers all logits alike, so that the best stays the best.
bool keeps_order(const ggml_tensor * node) {
    return node->op == GGML_OP_SCALE || (node->op == GGML_OP_UNARY && ggml_get_unary_op(node) == GGML_UNARY_OP_TANH);
}

ggml_tensor * same_operation(ggml_context * ctx, const ggml_tensor * node, ggml_tensor * x) {
    if (node->op == GGML_OP_UNARY) {
        return ggml_tanh(ctx, x);
    }
    float scale_and_bias[2];
    std::memcpy(scale_and_bias, node->op_params, sizeof(scale_and_bias));
    return ggml_scale_bias(ctx, x, scale_and_bias[0], scale_and_bias[1]);
}

}  // namespace

uint32_t usual_draft_rows(uint32_t n_vocab) {
    return n_vocab < small_vocab ? n_vocab : n_vocab / usual_share;
}

std::unique_ptr<draft_head> draft_head::make(const llama_model & model, uint32_t n_rows) {
    const ggml_tensor * source  = find_rows(model);
    const auto          n_vocab = static_cast<llama_token>(model.vocab.n_tokens());
    if (!source || source->ne[1] != n_vocab || model.output_b || model.output_s ||
        n_rows >= static_cast<uint32_t>(n_vocab)) {
        return nullptr;
    }
    std::vector<llama_token> fixed;
    for (llama_token token = 0; token < n_vocab; ++token) {
        if (static_cast<uint32_t>(token) < n_rows / 2 || model.vocab.is_eog(token)) {
            fixed.push_back(token);
        }
    }
    return fixed.size() < n_rows ? std::unique_ptr<draft_head>(new draft_head(model, *source, std::move(fixed), n_rows))
                                 : nullptr;
}

draft_head::draft_head(const llama_model & model, const ggml_tensor & source, std::vector<llama_token> fixed,
                       size_t n_rows) :
    head(model.output),
    source(&source),
    tokens(std::move(fixed)),
    rows(static_cast<size_t>(source.ne[1]), -1),
    n_fixed(tokens.size()),
    next(n_fixed),
    of_rows(n_rows),
    one_row(source.nb[1]) {
    for (auto token = static_cast<llama_token>(n_rows / 2); tokens.size() < n_rows; ++token) {
        if (!model.vocab.is_eog(token)) {
            tokens.push_back(token);  // until there are better ones
        }
    }

    ctx.reset(ggml_init({ggml_tensor_overhead(), nullptr, true}));
    weights = ggml_new_tensor_2d(ctx.get(), source.type, source.ne[0], static_cast<int64_t>(tokens.size()));
    ggml_set_name(weights, "lora_drop.draft_head");
    ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(model.dev_output());
    buf.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), type));
    if (!buf) {
        throw std::runtime_error("not enough memory on " + std::string(ggml_backend_buft_name(type)) +
                                 " for the output head of drafts; lower draft_rows");
    }
    ggml_backend_buffer_set_usage(buf.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (size_t row = 0; row < n_rows; ++row) {
        put(row, tokens[row]);
    }
}

void draft_head::put(size_t row, llama_token token) {
    ggml_backend_tensor_get(source, one_row.data(), static_cast<size_t>(token) * source->nb[1], one_row.size());
    ggml_backend_tensor_set(weights, one_row.data(), row * weights->nb[1], one_row.size());
    tokens[row]                      = token;
    rows[static_cast<size_t>(token)] = static_cast<int32_t>(row);
}

void draft_head::add(llama_token token) {
    const auto at = static_cast<size_t>(token);
    if (token < 0 || at >= rows.size() || rows[at] >= 0) {
        return;
    }
    rows[static_cast<size_t>(tokens[next])] = -1;
    put(next, token);
    next = next + 1 < tokens.size() ? next + 1 : n_fixed;
}

void draft_head::add_likely(const float * logits) {
    const size_t n    = rows.size();
    const float  best = greatest(logits, logits + n);
    for (size_t token = 0; token < n; ++token) {
        if (logits[token] > best - likely_margin) {
            add(static_cast<llama_token>(token));
        }
    }
}

void draft_head::replace(ggml_context * graph_ctx, ggml_cgraph * gf, llm_graph_result & res) const {
    std::vector<const ggml_tensor *> after;
    ggml_tensor *                    product = res.t_logits;
    for (; product && keeps_order(product); product = product->src[0]) {
        after.push_back(product);
    }
    if (!product || product->op != GGML_OP_MUL_MAT || product->src[0] != head) {
        return;
    }
    ggml_tensor * logits = ggml_mul_mat(graph_ctx, weights, product->src[1]);
    for (auto node = after.rbegin(); node != after.rend(); ++node) {
        logits = same_operation(graph_ctx, *node, logits);
    }
    ggml_set_name(logits, logits_name);
    ggml_set_output(logits);
    ggml_build_forward_expand(gf, logits);

    res.t_logits->flags &= ~GGML_TENSOR_FLAG_OUTPUT;
    res.t_logits = nullptr;
}

void draft_head::read(ggml_cgraph * gf, float * logits) {
    const ggml_tensor * computed = ggml_graph_get_tensor(gf, logits_name);
    if (!computed) {
        return;
    }
    ggml_backend_tensor_get(computed, of_rows.data(), 0, of_rows.size() * sizeof(float));
    std::fill_n(logits, rows.size(), -std::numeric_limits<float>::infinity());
    for (size_t row = 0; row < tokens.size(); ++row) {
        logits[tokens[row]] = of_rows[row];
    }
}

size_t draft_head::n_bytes() const {
    return ggml_backend_buffer_get_size(buf.get());
}

}  // namespace loradrop
