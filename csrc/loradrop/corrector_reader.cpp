// Reading and checking: every way in which a corrector can be wrong ends here, before any work starts.
#include "loradrop/corrector.h"
#include "loradrop/errors.h"
#include "loradrop/hooks.h"

#include "ggml.h"
#include "llama-hparams.h"
#include "llama-mmap.h"
#include "llama-model.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <set>

namespace loradrop {

namespace {

std::string shape_of(const std::vector<int64_t> & ne) {
    std::string text = "[";
    for (size_t i = 0; i < ne.size(); ++i) {
        text += (i ? ", " : "") + std::to_string(ne[i]);
    }
    return text + "]";
}

std::vector<int64_t> dims_of(const ggml_tensor * t) {
    return {t->ne, t->ne + ggml_n_dims(t)};
}

// Dimensions that are not named are 1, as in the file.
bool has_shape(const ggml_tensor * t, const std::vector<int64_t> & ne) {
    for (size_t i = 0; i < GGML_MAX_DIMS; ++i) {
        if (t->ne[i] != (i < ne.size() ? ne[i] : 1)) {
            return false;
        }
    }
    return true;
}

}  // namespace

std::string layout_hash(const llama_model & model) {
    std::set<std::string> lines;  // a tied head is listed twice
    for (const auto & [name, tensor] : model.tensors_by_name) {
        if (is_corrector_tensor(name)) {
            continue;
        }
        std::string line = name + " " + std::to_string(tensor->type) + " ";
        const auto  ne   = dims_of(tensor);
        for (size_t i = 0; i < ne.size(); ++i) {
            line += (i ? "x" : "") + std::to_string(ne[i]);
        }
        lines.insert(line + "\n");
    }

    uint64_t hash = 0xcbf29ce484222325ull;
    for (const auto & line : lines) {
        for (const unsigned char c : line) {
            hash = (hash ^ c) * 0x100000001b3ull;
        }
    }
    char text[17];
    std::snprintf(text, sizeof(text), "%016" PRIx64, hash);
    return text;
}

class corrector_reader {
  public:
    corrector_reader(const std::string & path, const llama_model & model) :
        path(path),
        model(model),
        n_layer(static_cast<int32_t>(model.hparams.n_layer())),
        n_embd(model.hparams.n_embd) {}

    std::shared_ptr<const corrector> read() {
        open();
        if (gguf_find_key(gguf.get(), "lora_drop.version") < 0) {
            return nullptr;
        }
        check_base();
        out->base = layout_hash(model);
        read_keys();
        read_tensors();
        check_tensors();
        return out;
    }

  private:
    [[noreturn]] void fail(const std::string & what) const { throw corrector_error(path + ": " + what); }

    void open() {
        ggml_context *         ctx    = nullptr;
        const gguf_init_params params = {/*.no_alloc =*/true, /*.ctx =*/&ctx};
        gguf.reset(gguf_init_from_file(path.c_str(), params));
        meta.reset(ctx);
        if (!gguf) {
            fail("not a readable GGUF file; give a corrector made by loradrop, or a model that holds one");
        }
    }

    //
    // keys
    //

    int64_t find_key(const std::string & key, gguf_type type, bool required) const {
        const int64_t id = gguf_find_key(gguf.get(), key.c_str());
        if (id < 0) {
            if (required) {
                fail("key " + key + " is missing");
            }
            return -1;
        }
        if (gguf_get_kv_type(gguf.get(), id) != type) {
            fail("key " + key + " has type " + gguf_type_name(gguf_get_kv_type(gguf.get(), id)) + ", expected " +
                 gguf_type_name(type));
        }
        return id;
    }

    std::string get_str(const std::string & key, bool required) const {
        const int64_t id = find_key(key, GGUF_TYPE_STRING, required);
        return id < 0 ? "" : gguf_get_val_str(gguf.get(), id);
    }

    uint32_t get_u32(const std::string & key) const {
        return gguf_get_val_u32(gguf.get(), find_key(key, GGUF_TYPE_UINT32, true));
    }

    std::vector<int32_t> get_i32s(const std::string & key) const {
        const int64_t id = find_key(key, GGUF_TYPE_ARRAY, true);
        if (gguf_get_arr_type(gguf.get(), id) != GGUF_TYPE_INT32) {
            fail("key " + key + " must be an array of i32");
        }
        const auto * data = static_cast<const int32_t *>(gguf_get_arr_data(gguf.get(), id));
        return {data, data + gguf_get_arr_n(gguf.get(), id)};
    }

    // A sidecar says which base it was made for.
    void check_base() const {
        if (get_str("adapter.type", false) != "lora_drop") {
            return;
        }
        const std::string arch = get_str("general.architecture", true);
        if (arch != model.arch_name()) {
            fail("general.architecture is '" + arch + "', the model's is '" + model.arch_name() +
                 "'; this corrector belongs to another model");
        }
        check_base_number("lora_drop.base.block_count", n_layer);
        check_base_number("lora_drop.base.embedding_length", n_embd);
        const std::string theirs = get_str("lora_drop.base.tensors", true);
        const std::string ours   = layout_hash(model);
        if (theirs != ours) {
            fail("lora_drop.base.tensors is " + theirs + ", the model's tensors hash to " + ours +
                 "; this corrector belongs to another model or another quantisation of it");
        }
    }

    void check_base_number(const char * key, int64_t ours) const {
        const int64_t theirs = get_u32(key);
        if (theirs != ours) {
            fail(std::string(key) + " is " + std::to_string(theirs) + ", the model has " + std::to_string(ours) +
                 "; this corrector belongs to another model");
        }
    }

    void read_keys() {
        const uint32_t version = get_u32("lora_drop.version");
        if (version != 1) {
            fail("lora_drop.version is " + std::to_string(version) + ", this build reads version 1; update loradrop");
        }
        const std::string reuse = get_str("lora_drop.reuse", true);
        if (!parse_reuse_rule(reuse, out->rule)) {
            fail("lora_drop.reuse is '" + reuse + "', expected previous-state, anchor-state, anchor-delta or segment");
        }
        out->path  = path;
        out->rank  = get_u32("lora_drop.rank");
        out->alpha = gguf_get_val_f32(gguf.get(), find_key("lora_drop.alpha", GGUF_TYPE_FLOAT32, true));
        if (out->rank == 0 || out->rank > n_embd) {
            fail("lora_drop.rank is " + std::to_string(out->rank) + ", expected 1 to " + std::to_string(n_embd));
        }
        if (!std::isfinite(out->alpha)) {
            fail("lora_drop.alpha is not a finite number");
        }
        if (out->rule == reuse_rule::segment) {
            read_segments();
        } else {
            read_layers();
        }
        read_recommended_point();
        out->quality = get_str("lora_drop.quality", false);
    }

    void check_layer(const char * key, int32_t il) const {
        if (il < 1 || il > n_layer - 2) {
            fail(std::string(key) + " names layer " + std::to_string(il) + "; layers 1 to " +
                 std::to_string(n_layer - 2) + " of this model can drop");
        }
    }

    void read_layers() {
        out->layers = get_i32s("lora_drop.layers");
        if (out->layers.empty()) {
            fail("lora_drop.layers is empty");
        }
        std::set<int32_t> seen;
        for (const int32_t il : out->layers) {
            check_layer("lora_drop.layers", il);
            if (!seen.insert(il).second) {
                fail("lora_drop.layers names layer " + std::to_string(il) + " twice");
            }
        }
    }

    void read_segments() {
        const auto flat = get_i32s("lora_drop.segments");
        if (flat.empty() || flat.size() % 2 != 0) {
            fail("lora_drop.segments has " + std::to_string(flat.size()) +
                 " entries, expected the first and the last layer of each run");
        }
        std::set<layer_span> seen;
        for (size_t i = 0; i < flat.size(); i += 2) {
            check_layer("lora_drop.segments", flat[i]);
            check_layer("lora_drop.segments", flat[i + 1]);
            if (flat[i] > flat[i + 1]) {
                fail("lora_drop.segments has a run from layer " + std::to_string(flat[i]) + " to " +
                     std::to_string(flat[i + 1]));
            }
            if (!seen.insert({flat[i], flat[i + 1]}).second) {
                fail("lora_drop.segments has the run " + std::to_string(flat[i]) + " to " +
                     std::to_string(flat[i + 1]) + " twice");
            }
            out->segments.emplace_back(flat[i], flat[i + 1]);
        }
    }

    void read_recommended_point() {
        const int64_t id_rho = find_key("lora_drop.rho", GGUF_TYPE_FLOAT32, false);
        const int64_t id_k   = find_key("lora_drop.k", GGUF_TYPE_UINT32, false);
        if (id_rho >= 0) {
            out->rho = gguf_get_val_f32(gguf.get(), id_rho);
            if (!(*out->rho >= 0.0f && *out->rho < 1.0f)) {
                fail("lora_drop.rho is " + std::to_string(*out->rho) + ", expected 0 <= rho < 1");
            }
        }
        if (id_k >= 0) {
            out->k = gguf_get_val_u32(gguf.get(), id_k);
        }
        out->refresh = get_str("lora_drop.refresh", false);
        if (!out->refresh.empty() && out->refresh != "single" && out->refresh != "refill") {
            fail("lora_drop.refresh is '" + out->refresh + "', expected single or refill");
        }
    }

    //
    // tensors
    //

    void read_tensors() {
        const size_t data_offset = gguf_get_data_offset(gguf.get());

        std::error_code ec;
        const uintmax_t file_size = std::filesystem::file_size(std::filesystem::u8path(path), ec);
        if (ec) {
            fail("cannot be read: " + ec.message());
        }

        struct part {
            ggml_tensor * meta;
            size_t        offset;
        };

        std::vector<part> parts;
        for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
            const char * name = gguf_get_tensor_name(gguf.get(), i);
            if (!is_corrector_tensor(name)) {
                continue;
            }
            ggml_tensor * t      = ggml_get_tensor(meta.get(), name);
            const size_t  offset = data_offset + gguf_get_tensor_offset(gguf.get(), i);
            if (t->type != GGML_TYPE_F32 && t->type != GGML_TYPE_F16 && t->type != GGML_TYPE_Q8_0) {
                fail(std::string("tensor ") + name + " has type " + ggml_type_name(t->type) +
                     ", expected f32, f16 or q8_0");
            }
            if (offset > file_size || ggml_nbytes(t) > file_size - offset) {
                fail(std::string("tensor ") + name + " ends after the end of the file; the file is truncated");
            }
            parts.push_back({t, offset});
        }

        const ggml_init_params params = {ggml_tensor_overhead() * (parts.size() + 1), nullptr, true};
        out->weights.reset(ggml_init(params));
        auto * data = parts.empty() ? nullptr : map_file();
        for (const auto & p : parts) {
            ggml_tensor * t = ggml_dup_tensor(out->weights.get(), p.meta);
            ggml_set_name(t, p.meta->name);
            t->data = data + p.offset;
            out->n_data += ggml_nbytes(t);
            check_finite(t);
        }
    }

    // A file holds runs for several rho, of which a context uses one: mapped, the others take no memory.
    uint8_t * map_file() {
        try {
            llama_file file(path.c_str(), "rb");
            const auto mapping = std::make_shared<llama_mmap>(&file, 0);
            out->mapped        = mapping;
            return static_cast<uint8_t *>(mapping->addr());
        } catch (const std::runtime_error & error) {
            fail(std::string("cannot be read: ") + error.what());
        }
    }

    void check_finite(const ggml_tensor * t) const {
        const auto *       traits = ggml_get_type_traits(t->type);
        std::vector<float> row(t->ne[0]);
        for (int64_t i = 0; i < ggml_nrows(t); ++i) {
            const auto * src = static_cast<const uint8_t *>(t->data) + i * ggml_row_size(t->type, t->ne[0]);
            if (t->type == GGML_TYPE_F32) {
                std::copy_n(reinterpret_cast<const float *>(src), t->ne[0], row.begin());
            } else {
                traits->to_float(src, row.data(), t->ne[0]);
            }
            if (!std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); })) {
                fail(std::string("tensor ") + t->name + " holds NaN or infinity in row " + std::to_string(i));
            }
        }
    }

    bool has(const std::string & name) const { return out->find(name) != nullptr; }

    void expect(const std::string & name, const std::vector<int64_t> & ne) const {
        const ggml_tensor * t = out->find(name);
        if (!t) {
            fail("tensor " + name + " is missing");
        }
        if (!has_shape(t, ne)) {
            fail("tensor " + name + " has shape " + shape_of(dims_of(t)) + ", expected " + shape_of(ne));
        }
        if (ne.size() == 1 && t->type != GGML_TYPE_F32) {
            fail("tensor " + name + " has type " + ggml_type_name(t->type) + ", expected f32");
        }
        checked.insert(name);
    }

    void check_tensors() {
        for (const int32_t il : out->layers) {
            expect(layer_tensor_name(il, "a"), {n_embd, out->rank});
            expect(layer_tensor_name(il, "b"), {out->rank, n_embd});
            const std::string gate = layer_tensor_name(il, "gate");
            if (has(gate)) {
                if (out->rule != reuse_rule::anchor_delta) {
                    fail("tensor " + gate + " is only known to the reuse rule anchor-delta");
                }
                expect(gate, {n_embd});
            }
        }
        for (size_t j = 0; j < out->segments.size(); ++j) {
            check_segment(j);
        }
        for (ggml_tensor * t = ggml_get_first_tensor(out->weights.get()); t;
             t               = ggml_get_next_tensor(out->weights.get(), t)) {
            if (checked.count(t->name) == 0) {
                fail(std::string("tensor ") + t->name + " belongs to no layer or run of this corrector");
            }
        }
    }

    void check_segment(size_t j) {
        const auto name = [j](const char * part) { return segment_tensor_name(j, part); };

        const bool linear = has(name("a")) || has(name("b"));
        const bool hidden = has(name("gate")) || has(name("up")) || has(name("down"));
        if (!linear && !hidden) {
            fail("run " + std::to_string(j) + " of lora_drop.segments has no tensors");
        }
        if (linear) {
            expect(name("a"), {3 * n_embd, out->rank});
            expect(name("b"), {out->rank, n_embd});
        }
        if (hidden) {
            const ggml_tensor * gate = out->find(name("gate"));
            const int64_t       n_ff = gate ? std::max<int64_t>(1, gate->ne[1]) : 1;
            expect(name("gate"), {3 * n_embd, n_ff});
            expect(name("up"), {3 * n_embd, n_ff});
            expect(name("down"), {n_ff, n_embd});
        }
        if (has(name("carry"))) {
            expect(name("carry"), {n_embd});
        }
    }

    const std::string   path;
    const llama_model & model;
    const int32_t       n_layer;
    const int64_t       n_embd;

    gguf_context_ptr gguf;
    ggml_context_ptr meta;

    std::shared_ptr<corrector>    out = std::make_shared<corrector>();
    mutable std::set<std::string> checked;
};

std::shared_ptr<const corrector> corrector::load(const std::string & path, const llama_model & model) {
    return corrector_reader(path, model).read();
}

// The first three and the last always run.
static std::vector<int32_t> layers_from_the_middle(int32_t n_layer) {
    std::vector<int32_t> layers;
    for (int32_t il = 3; il <= n_layer - 2; ++il) {
        layers.push_back(il);
    }
    const float middle = static_cast<float>(n_layer) / 2.0f;
    std::stable_sort(layers.begin(), layers.end(),
                     [=](int32_t a, int32_t b) { return std::abs(a - middle) < std::abs(b - middle); });
    return layers;
}

std::shared_ptr<const corrector> corrector::none(const llama_model & model, std::vector<int32_t> layers) {
    const int32_t n_layer = static_cast<int32_t>(model.hparams.n_layer());
    for (size_t i = 0; i < layers.size(); ++i) {
        const bool again = std::find(layers.begin(), layers.begin() + i, layers[i]) != layers.begin() + i;
        if (layers[i] < 1 || layers[i] > n_layer - 2 || again) {
            throw std::invalid_argument(
                "layers names " + std::to_string(layers[i]) +
                (again ? " twice" : "; layers 1 to " + std::to_string(n_layer - 2) + " can drop"));
        }
    }
    auto out    = std::make_shared<corrector>();
    out->layers = layers.empty() ? layers_from_the_middle(n_layer) : std::move(layers);
    out->base   = layout_hash(model);
    return out;
}

}  // namespace loradrop
