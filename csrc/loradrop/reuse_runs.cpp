#include "loradrop/reuse_runs.h"

#include "loradrop/errors.h"

#include "ggml-backend.h"
#include "llama-hparams.h"
#include "llama-model.h"

#include <cstring>
#include <initializer_list>

namespace loradrop {

static std::vector<ggml_tensor *> present(std::initializer_list<ggml_tensor *> tensors) {
    std::vector<ggml_tensor *> out;
    for (ggml_tensor * t : tensors) {
        if (t) {
            out.push_back(t);
        }
    }
    return out;
}

std::vector<ggml_tensor *> reuse_run::weights() const {
    return present({a, a_anchor, b, gate, gate_anchor, up, up_anchor, down, carry});
}

std::vector<ggml_tensor *> reuse_run::states() const {
    return present({state, state_carry, state_a, state_gate, state_up});
}

// Declares the tensors of one run, puts them on the device of its first layer, and fills in the weights.
class reuse_run_builder {
  public:
    reuse_run_builder(reuse_runs & owner, const llama_model & model, const corrector & c, uint32_t n_columns) :
        owner(owner), model(model), c(c), n_embd(model.hparams.n_embd), n_columns(n_columns) {}

    void build(const drop_run & span) {
        run       = {};
        run.span  = span;
        run.rule  = c.rule;
        run.scale = c.scale();
        uploads.clear();

        constexpr size_t       max_tensors = 32;
        const ggml_init_params params      = {max_tensors * ggml_tensor_overhead(), nullptr, true};
        ctx                                = ggml_init(params);
        owner.ctxs.emplace_back(ctx);

        if (c.rule == reuse_rule::segment) {
            declare_segment(static_cast<size_t>(span.segment));
        } else {
            declare_layer(span.first);
        }
        allocate();
        owner.all.push_back(run);
    }

  private:
    // A weight that is a range of columns of a tensor of the file.
    struct upload {
        ggml_tensor *       dst;
        const ggml_tensor * src;
        int64_t             first_column;
    };

    ggml_tensor * weight(const std::string & name, int64_t first_column = 0, int64_t columns = -1) {
        const ggml_tensor * src = c.find(name);
        if (!src) {
            return nullptr;
        }
        if (columns < 0) {
            columns = src->ne[0];
        }
        const int64_t block = ggml_blck_size(src->type);
        if (columns % block != 0 || first_column % block != 0) {
            throw corrector_error(c.path + ": tensor " + name + " is " + ggml_type_name(src->type) +
                                  ", whose blocks of " + std::to_string(block) +
                                  " do not divide n_embd = " + std::to_string(n_embd) + "; store it as f16");
        }
        ggml_tensor * dst = ggml_new_tensor_2d(ctx, src->type, columns, ggml_nrows(src));
        // not as in the file, where some begin as the weights of a layer do, which a LoRA step must not have
        ggml_format_name(dst, "corrector/%s%s", name.c_str(), first_column > 0 ? " (anchor)" : "");
        uploads.push_back({dst, src, first_column});
        return dst;
    }

    ggml_tensor * state(int64_t n) {
        return ggml_set_name(ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, n_columns), "lora_drop.state");
    }

    void declare_layer(int32_t il) {
        run.a     = weight(layer_tensor_name(il, "a"));
        run.b     = weight(layer_tensor_name(il, "b"));
        run.carry = weight(layer_tensor_name(il, "gate"));
        if (c.rule != reuse_rule::anchor_delta) {
            run.state = state(n_embd);
        } else if (run.carry) {
            run.state_carry = state(n_embd);
        }
    }

    void declare_segment(size_t j) {
        const auto now    = [&](const char * part) { return weight(segment_tensor_name(j, part), 0, n_embd); };
        const auto anchor = [&](const char * part) { return weight(segment_tensor_name(j, part), n_embd, 2 * n_embd); };

        run.a           = now("a");
        run.a_anchor    = anchor("a");
        run.b           = weight(segment_tensor_name(j, "b"));
        run.gate        = now("gate");
        run.gate_anchor = anchor("gate");
        run.up          = now("up");
        run.up_anchor   = anchor("up");
        run.down        = weight(segment_tensor_name(j, "down"));
        run.carry       = weight(segment_tensor_name(j, "carry"));

        run.state_carry = run.carry ? state(n_embd) : nullptr;
        run.state_a     = run.a ? state(run.a->ne[1]) : nullptr;
        run.state_gate  = run.gate ? state(run.gate->ne[1]) : nullptr;
        run.state_up    = run.up ? state(run.up->ne[1]) : nullptr;
    }

    void allocate() {
        if (!ggml_get_first_tensor(ctx)) {
            return;
        }
        auto * buft = ggml_backend_dev_buffer_type(model.dev_layer(run.span.first));
        auto * buf  = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
        if (!buf) {
            throw std::runtime_error("not enough memory on " + std::string(ggml_backend_buft_name(buft)) +
                                     " for the corrector of layer " + std::to_string(run.span.first) +
                                     "; lower n_gpu_layers or the number of sequences");
        }
        owner.bufs.emplace_back(buf);
        ggml_backend_buffer_clear(buf, 0);

        for (const upload & u : uploads) {
            const size_t         row_size = ggml_row_size(u.dst->type, u.dst->ne[0]);
            const size_t         offset   = ggml_row_size(u.src->type, u.first_column);
            std::vector<uint8_t> rows(ggml_nbytes(u.dst));
            for (int64_t i = 0; i < u.dst->ne[1]; ++i) {
                const auto * row = static_cast<const uint8_t *>(u.src->data) + i * u.src->nb[1] + offset;
                std::memcpy(rows.data() + i * row_size, row, row_size);
            }
            ggml_backend_tensor_set(u.dst, rows.data(), 0, rows.size());
            owner.n_weight_bytes += rows.size();
        }
        for (const ggml_tensor * t : run.states()) {
            owner.n_state_bytes += ggml_nbytes(t);
        }
    }

    reuse_runs &        owner;
    const llama_model & model;
    const corrector &   c;
    const int64_t       n_embd;
    const int64_t       n_columns;
    ggml_context *      ctx = nullptr;
    reuse_run           run;
    std::vector<upload> uploads;
};

reuse_runs::reuse_runs(const llama_model & model, const corrector & c, const std::vector<drop_run> & spans,
                       uint32_t n_slots, uint32_t n_rows) :
    slots(n_slots), rows(n_rows) {
    reuse_run_builder builder(*this, model, c, column_of(-1, 0) + 1);
    for (const drop_run & span : spans) {
        builder.build(span);
    }
}

const reuse_run * reuse_runs::run_of(int32_t il) const {
    for (const reuse_run & run : all) {
        if (run.span.first <= il && il <= run.span.last) {
            return &run;
        }
    }
    return nullptr;
}

const reuse_run * reuse_runs::run_after(int32_t il) const {
    for (const reuse_run & run : all) {
        if (run.span.first == il + 1) {
            return &run;
        }
    }
    return nullptr;
}

uint32_t reuse_runs::column_of(int32_t seq_id, int32_t row) const {
    const uint32_t n_columns = rows > 1 ? rows + 1 : 1;  // of a slot
    return has_slot(seq_id) ? static_cast<uint32_t>(seq_id) * n_columns + static_cast<uint32_t>(row)
                            : slots * n_columns;
}

uint32_t reuse_runs::running_column_of(int32_t seq_id) const {
    return column_of(seq_id, rows > 1 ? static_cast<int32_t>(rows) : 0);
}

uint64_t reuse_runs::weight_hash() const {
    if (hash) {
        return *hash;
    }
    uint64_t   out = 0xcbf29ce484222325ull;
    const auto mix = [&out](uint64_t word) {
        out = (out ^ word) * 0x100000001b3ull;
        out ^= out >> 32;  // else the top bits of two words, such as signs, could cancel each other
    };
    std::vector<uint8_t> data;
    for (const reuse_run & run : all) {
        uint32_t scale;
        std::memcpy(&scale, &run.scale, sizeof(scale));
        mix(scale);
        for (const ggml_tensor * t : run.weights()) {
            data.assign((ggml_nbytes(t) + 7) / 8 * 8, 0);
            ggml_backend_tensor_get(t, data.data(), 0, ggml_nbytes(t));
            for (size_t i = 0; i < data.size(); i += 8) {
                uint64_t word;
                std::memcpy(&word, data.data() + i, sizeof(word));
                mix(word);
            }
        }
    }
    hash = out;
    return out;
}

void reuse_runs::copy_column(uint32_t from, uint32_t to) const {
    std::vector<uint8_t> column;
    for (const reuse_run & run : all) {
        for (ggml_tensor * t : run.states()) {
            column.resize(t->nb[1]);
            ggml_backend_tensor_get(t, column.data(), from * t->nb[1], t->nb[1]);
            ggml_backend_tensor_set(t, column.data(), to * t->nb[1], t->nb[1]);
        }
    }
}

}  // namespace loradrop
