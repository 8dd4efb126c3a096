#include "loradrop/state_capture.h"

#include "loradrop/errors.h"

#include "ggml-backend.h"
#include "llama-cparams.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace loradrop {

static constexpr int32_t first_input = -1;  // stands for the input of layer 0 among the layers

//
// state_capture
//

state_capture::state_capture(const std::vector<int32_t> & layers, const llama_model & model) :
    n_embd(model.hparams.n_embd) {
    const auto last = static_cast<int32_t>(model.hparams.n_layer()) - 2;  // the last layer drops rows without output
    for (const int32_t layer : layers) {
        if (layer < first_input || layer > last) {
            throw std::invalid_argument("capture names layer " + std::to_string(layer) + ", expected -1 to " +
                                        std::to_string(last) + ": all but the last layer of " + model.arch_name());
        }
        rows[layer] = {};
    }
}

state_capture * state_capture::of(const llama_cparams & cparams) {
    return cparams.cb_eval == on_node ? static_cast<state_capture *>(cparams.cb_eval_user_data) : nullptr;
}

std::vector<int32_t> state_capture::layers() const {
    std::vector<int32_t> out;
    for (const auto & [layer, data] : rows) {
        out.push_back(layer);
    }
    return out;
}

bool state_capture::on_node(ggml_tensor * node, bool ask, void * capture) {
    auto * self = static_cast<state_capture *>(capture);
    if (!ask) {
        self->read(node);
        return true;
    }
    return std::any_of(self->current.begin(), self->current.end(),
                       [node](const auto & captured) { return captured.second == node; });
}

void state_capture::begin() {
    current.clear();
    arrived.clear();
    order.clear();
    for (auto & [layer, data] : rows) {
        data.clear();
    }
}

void state_capture::enter_ubatch(const layer_tensors & tensors, const llama_ubatch & ubatch) {
    current = tensors;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        arrived.push_back(ubatch.seq_id[i][0]);
    }
}

void state_capture::read(const ggml_tensor * node) {
    for (const auto & [layer, t] : current) {  // a replacement that adds nothing is one tensor for two layers
        if (t == node) {
            std::vector<float> & data = rows[layer];
            const size_t         end  = data.size();
            data.resize(end + static_cast<size_t>(ggml_nelements(node)));
            ggml_backend_tensor_get(node, data.data() + end, 0, ggml_nbytes(node));
        }
    }
}

// Tokens arrive in the order of their ubatches, in which each sequence keeps its own; what a refill replays comes
// before the tokens of the batch.
void state_capture::finish(const std::vector<llama_seq_id> & seq_ids) {
    current.clear();
    std::map<llama_seq_id, std::vector<size_t>> rows_of;
    for (size_t row = 0; row < arrived.size(); ++row) {
        rows_of[arrived[row]].push_back(row);
    }
    order.resize(seq_ids.size());
    for (size_t i = seq_ids.size(); i-- > 0;) {
        std::vector<size_t> & own = rows_of.at(seq_ids[i]);
        order[i]                  = own.back();
        own.pop_back();
    }
}

void state_capture::copy(int32_t layer, float * out) const {
    const auto found = rows.find(layer);
    if (found == rows.end()) {
        std::string names;
        for (const int32_t captured : layers()) {
            names += (names.empty() ? "" : ", ") + std::to_string(captured);
        }
        throw std::invalid_argument("layer " + std::to_string(layer) +
                                    " is not captured; the context was made with capture = [" + names + "]");
    }
    if (order.empty()) {
        throw std::invalid_argument("layer " + std::to_string(layer) +
                                    " has no states: nothing has been decoded, or the last decode has failed");
    }
    if (found->second.empty()) {
        throw std::invalid_argument("layer " + std::to_string(layer) +
                                    " has no states: the last step was a LoRA step, which replaces the layer's run by "
                                    "one output, that of the run's last layer");
    }
    for (size_t i = 0; i < order.size(); ++i) {
        std::memcpy(out + i * n_embd, found->second.data() + order[i] * n_embd, n_embd * sizeof(float));
    }
}

//
// captured_tensors
//

captured_tensors::captured_tensors(state_capture & capture, int64_t n_tokens) : capture(capture), n_tokens(n_tokens) {
}

void captured_tensors::add(int32_t layer, ggml_tensor * t) {
    const std::vector<int32_t> wanted = capture.layers();
    if (std::find(wanted.begin(), wanted.end(), layer) == wanted.end()) {
        return;
    }
    const auto n_embd = static_cast<int64_t>(capture.n_embd);
    if (t->type != GGML_TYPE_F32 || t->ne[0] != n_embd || ggml_nelements(t) != n_embd * n_tokens ||
        !ggml_is_contiguous(t)) {
        throw unsupported_error("the output of layer " + std::to_string(layer) +
                                " cannot be captured: it is not one f32 vector of the model's width for each token");
    }
    tensors.emplace_back(layer, t);
}

static bool uses(const ggml_tensor * node, const ggml_tensor * src) {
    return std::find(std::begin(node->src), std::end(node->src), src) != std::end(node->src);
}

// What is done to the embedding before layer 0 (scaled, normed, positions added) differs from model to model; but where
// its result is first used twice, by a layer and by the connection around it, the layers begin.
void captured_tensors::add_first_input(const llm_graph_result & res) {
    for (ggml_tensor * cur = res.t_inp_embd; cur;) {
        std::vector<ggml_tensor *> users;
        for (int i = 0; i < ggml_graph_n_nodes(res.get_gf()); ++i) {
            ggml_tensor * node = ggml_graph_node(res.get_gf(), i);
            if (uses(node, cur)) {
                users.push_back(node);
            }
        }
        if (users.size() > 1) {
            add(first_input, cur);
        }
        cur = users.size() == 1 ? users[0] : nullptr;
    }
}

void captured_tensors::check_complete() const {
    for (const int32_t layer : capture.layers()) {
        if (std::none_of(tensors.begin(), tensors.end(), [layer](const auto & t) { return t.first == layer; })) {
            throw unsupported_error("the model's graph does not name the output of layer " + std::to_string(layer) +
                                    ", so it cannot be captured");
        }
    }
}

}  // namespace loradrop
