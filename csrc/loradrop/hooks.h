// What the patches in ggml-patches/ call. Every llama.cpp file that builds a graph includes this
// header, so it holds declarations only and changes rarely.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>

struct ggml_backend_buffer;
struct ggml_tensor;
struct llama_batch;
struct llama_context;
struct llama_memory_context_i;
struct llama_memory_i;
struct llama_memory_params;
struct llm_graph_params;
struct lora_drop_params;

class llm_graph_input_attn_kv;
class llm_graph_input_attn_kv_iswa;

namespace loradrop {

// Reads and writes the private parts of llama_kv_cache (kv_access.cpp).
struct kv_access;

//
// model loading
//

// True for the name of a tensor that belongs to a corrector and not to the model.
bool is_corrector_tensor(const std::string & name);

// Asks the system for huge pages for a buffer that nothing has been written to yet: what it holds is lost.
void advise_huge_pages(ggml_backend_buffer & buffer);

//
// context
//

class engine;

struct engine_deleter {
    void operator()(engine * e) const;
};

using engine_ptr = std::unique_ptr<engine, engine_deleter>;

engine_ptr       make_engine(llama_context & ctx, const lora_drop_params & params);
llama_memory_i * create_memory(engine & e, const llama_memory_params & params);

// Decodes a batch: chooses the step, runs one or more passes, keeps the books.
int decode(engine & e, const llama_batch & batch);

// Reserves the graph and the scheduler of the LoRA step; the full step's are llama.cpp's own.
void reserve_lora_step(engine & e);

// Puts graph and scheduler of the planned step in place before a ubatch is processed.
void enter_variant(engine & e);

// Counts a graph that could not be reused.
void count_build(engine & e);

// Keeps the exception that ended the creation of a context, for a caller that wants more than a null.
void keep_init_error(std::exception_ptr error);

//
// graph
//

struct graph_plan;
class step_graph;

const graph_plan * current_plan(const engine & e);

// Null when the parameters carry neither a plan nor a capture.
std::shared_ptr<step_graph> begin_graph(const llm_graph_params & params);

// The cells of droppable layers that the present ubatch writes, of the same class as the kept layers'; null in a LoRA
// step, which writes none.
const llama_memory_context_i * droppable_cells(const step_graph & g);

// Hands over the attention input (indices and masks) of the droppable layers.
void add_droppable_input(step_graph & g, std::unique_ptr<llm_graph_input_attn_kv> input);
void add_droppable_input(step_graph & g, std::unique_ptr<llm_graph_input_attn_kv_iswa> input);

// The attention input that layer il uses: the given one, or that of the droppable layers.
llm_graph_input_attn_kv *      attention_input(const step_graph & g, llm_graph_input_attn_kv * kept, int il);
llm_graph_input_attn_kv_iswa * attention_input(const step_graph & g, llm_graph_input_attn_kv_iswa * kept, int il);

// True when layer il does not run in this graph.
bool skips_layer(const step_graph & g, int il);

// Stands for the attention output of a layer that does not run; has its shape and is never computed.
ggml_tensor * unused_attention(step_graph & g, ggml_tensor * wo, ggml_tensor * q_cur, ggml_tensor * v_cur);

// Called with each layer's output. Full step: keeps what the reuse rule needs. LoRA step: replaces it. In both it is
// noted when it is captured.
ggml_tensor * layer_output(step_graph & g, ggml_tensor * cur, int il);

// Called when the model's graph is complete.
void finish_graph(step_graph & g);

}  // namespace loradrop
