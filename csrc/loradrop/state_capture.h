// Copies layers' outputs out of a decode while it runs.
//
// llama.cpp's own callback on graph nodes hands over each tensor right after it has been computed; so nothing has to
// stay allocated for longer, and a context without capture does not even have the callback.
#pragma once

#include "llama-graph.h"

#include <map>
#include <utility>
#include <vector>

struct llama_model;

namespace loradrop {

// One tensor of [n_embd, n_tokens] for each captured layer that a graph computes.
using layer_tensors = std::vector<std::pair<int32_t, ggml_tensor *>>;

class state_capture {
  public:
    // layers: -1 is the input of layer 0. Throws std::invalid_argument for one that is out of range.
    state_capture(const std::vector<int32_t> & layers, const llama_model & model);

    // For llama_context_params::cb_eval; its user data is the capture.
    static bool on_node(ggml_tensor * node, bool ask, void * capture);

    // The capture of a context; null when it has none.
    static state_capture * of(const llama_cparams & cparams);

    // A decode begins: what the last one has left is gone.
    void begin();

    // Graph and tokens that are computed next.
    void enter_ubatch(const layer_tensors & tensors, const llama_ubatch & ubatch);

    // The decode has succeeded. seq_ids: the sequence of each token of the batch.
    void finish(const std::vector<llama_seq_id> & seq_ids);

    std::vector<int32_t> layers() const;  // ascending

    // Tokens of the last decode; 0 when it has failed or there was none.
    size_t n_tokens() const { return order.size(); }

    // Writes a layer's output, [n_tokens, n_embd], for the tokens of the last decode in the batch's order.
    // Throws std::invalid_argument when there is none.
    void copy(int32_t layer, float * out) const;

    const size_t n_embd;

  private:
    void read(const ggml_tensor * node);

    layer_tensors                         current;  // of the graph that runs
    std::vector<llama_seq_id>             arrived;  // sequence of each row so far
    std::map<int32_t, std::vector<float>> rows;     // by layer: [n_arrived, n_embd]
    std::vector<size_t>                   order;    // row of each token of the batch
};

// The captured tensors of one graph; an input, so that a graph that is reused brings them along.
class captured_tensors : public llm_graph_input_i {
  public:
    captured_tensors(state_capture & capture, int64_t n_tokens);

    // Takes a layer's output when it is captured. Throws unsupported_error when it is not one vector for each token.
    void add(int32_t layer, ggml_tensor * t);

    // Takes the input of layer 0, once the graph is complete.
    void add_first_input(const llm_graph_result & res);

    // Throws unsupported_error when the graph has named no output for a captured layer.
    void check_complete() const;

    void set_input(const llama_ubatch * ubatch) override { capture.enter_ubatch(tensors, *ubatch); }

    bool can_reuse(const llm_graph_params &) override { return true; }

  private:
    state_capture & capture;
    const int64_t   n_tokens;
    layer_tensors   tensors;
};

}  // namespace loradrop
