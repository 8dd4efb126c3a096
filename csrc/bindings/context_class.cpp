#include "bindings.h"
#include "context.h"
#include "errors.h"
#include "gil.h"
#include "log.h"

#include "loradrop/engine.h"
#include "loradrop/errors.h"
#include "loradrop/kv_access.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <string_view>

namespace py = pybind11;

namespace loradrop::bindings {

static refresh_policy parse_refresh(const std::string & name) {
    if (name == "single") {
        return refresh_policy::single;
    }
    if (name == "refill") {
        return refresh_policy::refill;
    }
    if (name == "verify") {
        return refresh_policy::verify;
    }
    throw std::invalid_argument("refresh = '" + name + "', expected single, refill or verify");
}

static std::optional<lora_drop_params> drop_params(const model & base, std::shared_ptr<corrector> c, double rho,
                                                   int64_t k, const std::string & refresh, int32_t kv_window,
                                                   std::optional<uint32_t> draft_rows, bool adapt_k) {
    lora_drop_params params;
    params.refresh = parse_refresh(refresh);
    if (!(rho >= 0.0 && rho < 1.0)) {
        throw std::invalid_argument("rho = " + std::to_string(rho) + ", expected 0 <= rho < 1");
    }
    if (k < 0 || k > 1 << 20) {
        throw std::invalid_argument("k = " + std::to_string(k) + ", expected 0 or more");
    }
    if (kv_window < 0) {
        throw std::invalid_argument("kv_window = " + std::to_string(kv_window) + ", expected 0 or more");
    }
    if (adapt_k && params.refresh != refresh_policy::verify) {
        throw std::invalid_argument("adapt_k = true with refresh = '" + refresh + "', expected verify");
    }
    if (draft_rows && params.refresh != refresh_policy::verify) {
        throw std::invalid_argument("draft_rows = " + std::to_string(*draft_rows) + " with refresh = '" + refresh +
                                    "', expected verify");
    }
    if (rho == 0.0 || k == 0) {
        return std::nullopt;
    }
    if (!c) {
        throw std::invalid_argument("rho = " + std::to_string(rho) + " needs a corrector");
    }
    if (c->base != layout_hash(*base.get())) {
        throw corrector_error((c->is_none() ? "corrector" : c->path) + ": was loaded for another model; load it for " +
                              base.path);
    }
    plan_runs(*c, rho, llama_model_n_layer(base.get()));
    params.corrector = std::move(c);
    params.rho       = rho;
    params.k         = static_cast<uint32_t>(k);
    params.kv_window = kv_window;
    params.adapt_k   = adapt_k;
    if (params.refresh == refresh_policy::verify) {
        const auto n_vocab = static_cast<uint32_t>(llama_vocab_n_tokens(base.vocab()));
        params.draft_rows  = draft_rows.value_or(usual_draft_rows(n_vocab));
    }
    return params;
}

static size_t cache_bytes(const context & self) {
    size_t total = 0;
    if (const auto * memory = self.memory()) {
        for (const auto & [buft, size] : memory->memory_breakdown()) {
            total += size;
        }
    }
    return total;
}

// Of the cells that hold a token; of a memory that is no KV cache all.
static size_t used_bytes(const context & self) {
    const auto * memory = self.memory();
    if (const auto * two = dynamic_cast<const llama_kv_cache_iswa *>(memory)) {
        return bytes_with_tokens_of(*two->get_base(), *two->get_base()) +
               bytes_with_tokens_of(*two->get_swa(), *two->get_swa());
    }
    if (const auto * cache = dynamic_cast<const llama_kv_cache *>(memory)) {
        return bytes_with_tokens_of(*cache, *cache);
    }
    return cache_bytes(self);
}

static py::dict stats(const context & self) {
    const loradrop::engine * e = self.engine();
    const engine_stats       s = e ? e->stats() : engine_stats{};

    py::dict out;
    out["full_steps"]         = s.steps[full_step];
    out["lora_steps"]         = s.steps[lora_step];
    out["full_tokens"]        = s.tokens[full_step];
    out["lora_tokens"]        = s.tokens[lora_step];
    out["replayed_tokens"]    = s.replayed;
    out["last_step"]          = s.last_step == lora_step ? "lora" : "full";
    out["graph_builds_full"]  = s.graph_builds[full_step];
    out["graph_builds_lora"]  = s.graph_builds[lora_step];
    out["compute_bytes_full"] = s.compute_bytes[full_step];
    out["compute_bytes_lora"] = s.compute_bytes[lora_step];
    out["corrector_bytes"]    = s.weight_bytes;
    out["reuse_state_bytes"]  = s.state_bytes;
    out["draft_head_bytes"]   = s.head_bytes;
    out["rounds"]             = s.ahead.rounds;
    out["drafted"]            = s.ahead.drafted;
    out["drafts_tried"]       = s.ahead.tried;
    out["drafts_accepted"]    = s.ahead.accepted;

    const size_t kv           = cache_bytes(self);
    out["kv_bytes"]           = kv;
    out["kv_bytes_full"]      = e ? e->memory().bytes_full() : kv;
    const size_t used         = e ? e->memory().used_bytes() : used_bytes(self);
    out["kv_used_bytes"]      = used;
    out["kv_used_bytes_full"] = e ? e->memory().used_bytes_full() : used;
    out["kv_cells_kept"]      = e ? e->memory().cells_kept() : llama_n_ctx(self.get());
    out["kv_cells_droppable"] = e ? e->memory().cells_droppable() : 0;
    out["kv_growth_step"]     = e ? e->memory().growth_step() : 0;
    return out;
}

static py::array_t<float> logits(context & self, int32_t i) {
    const int32_t      n = llama_vocab_n_tokens(self.base->vocab());
    py::array_t<float> out(n);
    std::memcpy(out.mutable_data(), self.logits(i), static_cast<size_t>(n) * sizeof(float));
    return out;
}

static py::array_t<float> states(const context & self, int32_t layer) {
    const state_capture & capture = self.states();
    py::array_t<float>    out({capture.n_tokens(), capture.n_embd});
    capture.copy(layer, out.mutable_data());
    return out;
}

static py::list operations(const context & self) {
    py::list out;
    for (const node_time & node : self.operations()) {
        out.append(py::make_tuple(node.operation, node.name, node.type, node.n_bytes,
                                  static_cast<double>(node.nanoseconds) * 1e-9));
    }
    return out;
}

// Room for so many bytes, which are written where they stay, for they may be many.
static py::bytes room_for(size_t size) {
    auto state = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    if (!state) {
        throw py::error_already_set();
    }
    return state;
}

static uint8_t * data_of(const py::bytes & state) {
    return reinterpret_cast<uint8_t *>(PyBytes_AS_STRING(state.ptr()));
}

static void check_saved(size_t n, size_t size) {
    if (n == 0 || n != size) {
        throw decode_error("the state cannot be saved: " + logged_errors());
    }
}

static py::bytes save_state(context & self) {
    size_t size = 0;
    size_t n    = 0;
    self.run([&](llama_context & ctx) { size = llama_state_get_size(&ctx); });
    py::bytes state = room_for(size);
    self.run([&](llama_context & ctx) { n = llama_state_get_data(&ctx, data_of(state), size); });
    check_saved(n, size);
    return state;
}

static void load_state(context & self, const py::bytes & state) {
    const std::string_view data = state;
    bool                   done = false;
    self.run([&](llama_context & ctx) {
        done = llama_state_set_data(&ctx, reinterpret_cast<const uint8_t *>(data.data()), data.size()) > 0;
        if (!done) {
            llama_memory_clear(llama_get_memory(&ctx), true);
        }
    });
    if (!done) {
        throw std::invalid_argument("the state cannot be restored, the context is empty now: " + logged_errors());
    }
}

static llama_state_seq_flags sequence_flags(bool windows_only) {
    return windows_only ? LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : 0;
}

static py::bytes save_sequence(context & self, llama_seq_id seq_id, bool windows_only) {
    self.check_sequence(seq_id);
    const llama_state_seq_flags flags = sequence_flags(windows_only);
    size_t                      size  = 0;
    size_t                      n     = 0;
    self.run([&](llama_context & ctx) { size = llama_state_seq_get_size_ext(&ctx, seq_id, flags); });
    py::bytes state = room_for(size);
    self.run([&](llama_context & ctx) { n = llama_state_seq_get_data_ext(&ctx, data_of(state), size, seq_id, flags); });
    check_saved(n, size);
    return state;
}

static void load_sequence(context & self, llama_seq_id seq_id, const py::bytes & state, bool windows_only) {
    self.check_sequence(seq_id);
    const std::string_view data = state;
    bool                   done = false;
    self.run([&](llama_context & ctx) {
        done = llama_state_seq_set_data_ext(&ctx, reinterpret_cast<const uint8_t *>(data.data()), data.size(), seq_id,
                                            sequence_flags(windows_only)) > 0;
        if (!done) {
            llama_memory_seq_rm(llama_get_memory(&ctx), seq_id, -1, -1);
        }
    });
    if (!done) {
        throw std::invalid_argument("the state cannot be restored, sequence " + std::to_string(seq_id) +
                                    " is empty now: " + logged_errors());
    }
}

void register_context(py::module_ & m) {
    py::class_<context>(m, "Context", py::is_final(), R"doc(
KV cache, graphs and threads of one decoding. One thread at a time may use it.

With a corrector, rho > 0 and k > 0, decode() chooses between full and LoRA steps. A batch takes a LoRA step when each
of its sequences brings one token, has had a full step, fewer than k LoRA steps since, and the logits of its previous
token were asked for; every other batch is a full step.

With refresh "verify" every decode() gives the full model's logits. For one token of one sequence k LoRA steps draft
what may follow, and a full batch computes the logits of all of it; as long as the client then goes on with the drafted
tokens, decode() has nothing left to compute. The batch of k + 1 tokens has to fit into n_ubatch. With adapt_k a round
drafts as many tokens as pay, by the time that passes take and by how often drafts were right, at most k. Drafts are
chosen among draft_rows tokens, half of them the first of the vocabulary and half those that were decoded or likely of
late; None: an eighth of a vocabulary of 16384 or more; 0: all.

swa_full gives sliding-window layers cells for n_ctx tokens; without it they have them for about their window, and what
has left it cannot be gone back to.

capture names layers whose outputs states() gives after a decode, -1 for the input of layer 0; the last layer cannot be
captured, for it computes only tokens whose logits were asked for.

profile times each operation of a decode for operations(); they then run one by one, and a decode takes longer.

adapters are pairs of an Adapter and its scale; a LoRA step leaves out what they add to dropped layers.

Of a model with a table of positions a sequence can take no more than the table has, and n_ctx is lowered to that.

n_threads and n_threads_batch: 0 chooses; more than the processors that the process may use takes all of these.

Raises ValueError for a bad argument, CorrectorError for a corrector that was loaded for another model, UnsupportedError
for a model that LoRA-Drop cannot serve, RuntimeError or MemoryError for lack of memory, LoradropError for a failed check
of the engine.
)doc")
        .def(py::init([](std::shared_ptr<model> base, uint32_t n_ctx, uint32_t n_batch, uint32_t n_ubatch,
                         uint32_t n_seq_max, int32_t n_threads, int32_t n_threads_batch, std::string flash_attn,
                         std::string type_k, std::string type_v, bool kv_unified, bool swa_full,
                         std::shared_ptr<corrector> c, double rho, int64_t k, const std::string & refresh,
                         int32_t kv_window, std::optional<uint32_t> draft_rows, bool adapt_k, std::vector<int32_t> capture,
                         const std::vector<std::pair<std::shared_ptr<adapter>, float>> & adapters, bool profile) {
                 if (n_ctx == 0 || n_batch == 0 || n_ubatch == 0 || n_seq_max == 0) {
                     throw std::invalid_argument("n_ctx, n_batch, n_ubatch and n_seq_max must be 1 or more");
                 }
                 std::vector<scaled_adapter> scaled;
                 for (const auto & [lora, scale] : adapters) {
                     scaled.push_back({lora, scale});
                 }
                 const auto drop = drop_params(*base, std::move(c), rho, k, refresh, kv_window, draft_rows, adapt_k);
                 const gil_released release;
                 return std::make_unique<context>(
                     std::move(base),
                     context_options{n_ctx, n_batch, n_ubatch, n_seq_max, n_threads, n_threads_batch,
                                     std::move(flash_attn), std::move(type_k), std::move(type_v), kv_unified, swa_full,
                                     std::move(capture), std::move(scaled), profile},
                     drop ? &*drop : nullptr);
             }),
             py::arg("model"), py::kw_only(), py::arg("n_ctx"), py::arg("n_batch") = 512, py::arg("n_ubatch") = 512,
             py::arg("n_seq_max") = 1, py::arg("n_threads") = 0, py::arg("n_threads_batch") = 0,
             py::arg("flash_attn") = "auto", py::arg("type_k") = "f16", py::arg("type_v") = "f16",
             py::arg("kv_unified") = true, py::arg("swa_full") = true, py::arg("corrector") = py::none(),
             py::arg("rho") = 0.0, py::arg("k") = 0, py::arg("refresh") = "single", py::arg("kv_window") = 64,
             py::arg("draft_rows") = py::none(), py::arg("adapt_k") = false, py::arg("capture") = std::vector<int32_t>{},
             py::arg("adapters") = std::vector<std::pair<std::shared_ptr<adapter>, float>>{},
             py::arg("profile") = false)
        .def_property_readonly("n_ctx", &context::n_ctx)
        .def_property_readonly("n_batch", [](const context & self) { return llama_n_batch(self.get()); })
        .def_property_readonly("n_seq_max", [](const context & self) { return llama_n_seq_max(self.get()); })
        .def_readonly("n_threads", &context::n_threads)
        .def_property_readonly("dropped_layers",
                               [](const context & self) {
                                   std::vector<int32_t> layers;
                                   if (const auto * e = self.engine()) {
                                       for (const reuse_run & run : e->runs()) {
                                           for (int32_t il = run.span.first; il <= run.span.last; ++il) {
                                               layers.push_back(il);
                                           }
                                       }
                                   }
                                   return layers;
                               })
        .def(
            "decode",
            [](context & self, std::vector<llama_token> tokens, std::optional<std::vector<llama_seq_id>> seq_ids,
               std::optional<std::vector<llama_pos>> positions, std::optional<std::vector<bool>> outputs) {
                self.decode({std::move(tokens), std::move(seq_ids), std::move(positions), std::move(outputs)});
            },
            py::arg("tokens"), py::kw_only(), py::arg("seq_ids") = py::none(), py::arg("positions") = py::none(),
            py::arg("outputs") = py::none(),
            "Decodes a batch of at most n_batch tokens. seq_ids: the sequence of each (0). positions: of each in its "
            "sequence (the next ones). outputs: which logits to keep (the last token's). Raises ContextFullError, "
            "DecodeAborted, DecodeError, ValueError or IndexError, after each of which the context can be used; "
            "LoradropError for a failed check of the engine, or MemoryError, after which it can only be closed, and all "
            "else raises DecodeError.")
        .def("logits", logits, py::arg("i") = -1,
             "The logits, float32 [n_vocab], of the token at index i of the last batch, -1 for the last output.")
        .def("states", states, py::arg("layer"),
             "A captured layer's output, float32 [n_tokens, n_embd], for the tokens of the last decode in their order. "
             "After a LoRA step that of a dropped layer is its replacement; layers inside a run that is replaced as "
             "one have none. Tokens that a refill replays are not among them. Raises ValueError.")
        .def("operations", operations,
             "With profile, a tuple for each operation of the last decode, in its order: ggml's name of it, the name "
             "of the weights that it reads (else of its result), their type (else ''), their bytes, and the seconds "
             "that it took. Raises ValueError.")
        .def("clear", [](context & self) { llama_memory_clear(self.memory(), false); })
        .def(
            "seq_rm",
            [](context & self, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
                self.check_sequence(seq_id);
                return llama_memory_seq_rm(self.memory(), seq_id, p0, p1);
            },
            py::arg("seq_id"), py::arg("p0") = -1, py::arg("p1") = -1)
        .def(
            "seq_cp",
            [](context & self, llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) {
                self.check_sequence(from);
                self.check_sequence(to);
                const abort_guard guard;
                llama_memory_seq_cp(self.memory(), from, to, p0, p1);
            },
            py::arg("from_"), py::arg("to"), py::arg("p0") = -1, py::arg("p1") = -1)
        .def(
            "seq_keep",
            [](context & self, llama_seq_id seq_id) {
                self.check_sequence(seq_id);
                llama_memory_seq_keep(self.memory(), seq_id);
            },
            py::arg("seq_id"))
        .def(
            "seq_add",
            [](context & self, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
                self.check_sequence(seq_id);
                self.check_shift();
                const abort_guard guard;
                llama_memory_seq_add(self.memory(), seq_id, p0, p1, shift);
            },
            py::arg("seq_id"), py::arg("p0"), py::arg("p1"), py::arg("shift"))
        .def(
            "seq_pos_max",
            [](const context & self, llama_seq_id seq_id) {
                self.check_sequence(seq_id);
                return llama_memory_seq_pos_max(self.memory(), seq_id);
            },
            py::arg("seq_id"), "The last position of a sequence, -1 when it is empty.")
        .def(
            "drafted",
            [](const context & self, llama_seq_id seq_id) -> std::optional<llama_token> {
                self.check_sequence(seq_id);
                const auto * e = self.engine();
                return e ? e->drafted(seq_id) : std::nullopt;
            },
            py::arg("seq_id") = 0,
            "With refresh 'verify', the token that was drafted after a sequence's last one, None where none was: a "
            "decode() of it has nothing to compute.")
        .def(
            "seq_pos_min",
            [](const context & self, llama_seq_id seq_id) {
                self.check_sequence(seq_id);
                return llama_memory_seq_pos_min(self.memory(), seq_id);
            },
            py::arg("seq_id"), "The first position that all layers still have, -1 where there is none.")
        .def(
            "exact_tokens",
            [](const context & self, llama_seq_id seq_id) {
                self.check_sequence(seq_id);
                const auto * e = self.engine();
                return e ? e->exact_tokens(seq_id) : llama_memory_seq_pos_max(self.memory(), seq_id) + 1;
            },
            py::arg("seq_id") = 0,
            "How many of a sequence's tokens, from the first, have K/V in the caches that a prefill of them would leave: "
            "with 'single' the prompt, with 'refill' all up to the last refresh step as long as none has left the "
            "window, else all.")
        .def(
            "count_as_prompt",
            [](context & self, llama_seq_id seq_id) {
                self.check_sequence(seq_id);
                if (loradrop::engine * e = loradrop::engine::of(*self.get())) {
                    e->count_as_prompt(seq_id);
                }
            },
            py::arg("seq_id") = 0,
            "From now on what a sequence holds is prompt, whose K/V droppable layers keep with 'refill' too.")
        .def(
            "draft_greedily",
            [](context & self) {
                if (loradrop::engine * e = loradrop::engine::of(*self.get())) {
                    e->set_picker(nullptr);
                }
            },
            "Ends what Sampler.drafts_for has begun.")
        .def("save_state", save_state)
        .def("load_state", load_state, py::arg("state"))
        .def("save_sequence", save_sequence, py::arg("seq_id"), py::kw_only(), py::arg("windows_only") = false,
             "The state of one sequence; windows_only: without the K/V of layers that have no sliding window, which stay "
             "where they are when a sequence is only cut back.")
        .def("load_sequence", load_sequence, py::arg("seq_id"), py::arg("state"), py::kw_only(),
             py::arg("windows_only") = false, "Raises ValueError, after which the sequence is empty.")
        .def("abort", &context::abort, "Asks a decode that runs on another thread to stop.")
        .def("abort_after", &context::abort_after, py::arg("n"), py::kw_only(), py::arg("failing") = false,
             "Stops the next decode after n operations of its graph, 0 or more; failing: as a failed check of ggml "
             "does. Failures for tests.")
        .def("close", &context::close, "Frees everything; later calls raise DecodeError.")
        .def_property_readonly("stats", stats);
}

}  // namespace loradrop::bindings
