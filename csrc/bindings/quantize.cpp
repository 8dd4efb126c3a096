// llama.cpp's own quantisation.
#include "bindings.h"
#include "errors.h"
#include "gil.h"
#include "log.h"
#include "processors.h"

#include "ggml-cpp.h"
#include "gguf.h"
#include "llama.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <filesystem>
#include <thread>
#include <utility>
#include <vector>

namespace fs = std::filesystem;
namespace py = pybind11;

namespace loradrop::bindings {

// Names as llama.cpp's llama-quantize knows them. Left out are those that need an importance matrix, or are made for
// one (iq1, iq2, iq3, q2_k_s): without it llama.cpp refuses them, or ends the process over weights of unusual size.
static const std::vector<std::pair<std::string, llama_ftype>> & types() {
    static const std::vector<std::pair<std::string, llama_ftype>> all = {
        {"f32", LLAMA_FTYPE_ALL_F32},          {"f16", LLAMA_FTYPE_MOSTLY_F16},
        {"bf16", LLAMA_FTYPE_MOSTLY_BF16},     {"q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
        {"q6_k", LLAMA_FTYPE_MOSTLY_Q6_K},     {"q5_k", LLAMA_FTYPE_MOSTLY_Q5_K_M},
        {"q5_k_m", LLAMA_FTYPE_MOSTLY_Q5_K_M}, {"q5_k_s", LLAMA_FTYPE_MOSTLY_Q5_K_S},
        {"q5_1", LLAMA_FTYPE_MOSTLY_Q5_1},     {"q5_0", LLAMA_FTYPE_MOSTLY_Q5_0},
        {"q4_k", LLAMA_FTYPE_MOSTLY_Q4_K_M},   {"q4_k_m", LLAMA_FTYPE_MOSTLY_Q4_K_M},
        {"q4_k_s", LLAMA_FTYPE_MOSTLY_Q4_K_S}, {"q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},
        {"q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},     {"iq4_nl", LLAMA_FTYPE_MOSTLY_IQ4_NL},
        {"iq4_xs", LLAMA_FTYPE_MOSTLY_IQ4_XS}, {"mxfp4_moe", LLAMA_FTYPE_MOSTLY_MXFP4_MOE},
        {"q3_k", LLAMA_FTYPE_MOSTLY_Q3_K_M},   {"q3_k_l", LLAMA_FTYPE_MOSTLY_Q3_K_L},
        {"q3_k_m", LLAMA_FTYPE_MOSTLY_Q3_K_M}, {"q3_k_s", LLAMA_FTYPE_MOSTLY_Q3_K_S},
        {"q2_k", LLAMA_FTYPE_MOSTLY_Q2_K},     {"q2_0", LLAMA_FTYPE_MOSTLY_Q2_0},
        {"tq2_0", LLAMA_FTYPE_MOSTLY_TQ2_0},   {"tq1_0", LLAMA_FTYPE_MOSTLY_TQ1_0},
        {"q1_0", LLAMA_FTYPE_MOSTLY_Q1_0},
    };
    return all;
}

static std::vector<std::string> quantize_types() {
    std::vector<std::string> names;
    for (const auto & [name, type] : types()) {
        names.push_back(name);
    }
    return names;
}

static llama_ftype parse_type(const std::string & name) {
    std::string names;
    for (const auto & [known, type] : types()) {
        if (known == name) {
            return type;
        }
        names += (names.empty() ? "" : ", ") + known;
    }
    throw std::invalid_argument("type = '" + name + "', expected one of " + names);
}

static gguf_context_ptr read_header(const std::string & path) {
    return gguf_context_ptr(gguf_init_from_file(path.c_str(), {/*.no_alloc =*/true, /*.ctx =*/nullptr}));
}

// The files of a model that comes in several, else the one.
static std::vector<std::string> parts_of(const std::string & source, const gguf_context * header) {
    const int64_t key = gguf_find_key(header, "split.count");
    if (key < 0 || gguf_get_kv_type(header, key) != GGUF_TYPE_UINT16 || gguf_get_val_u16(header, key) < 2) {
        return {source};
    }
    const int                n = gguf_get_val_u16(header, key);
    std::vector<char>        text(source.size() + 64);
    std::vector<std::string> parts;
    if (llama_split_prefix(text.data(), text.size(), source.c_str(), 0, n) <= 0) {
        throw model_error(source + ": is not named as the first of the " + std::to_string(n) + " files it belongs to");
    }
    const std::string prefix = text.data();
    for (int i = 0; i < n; ++i) {
        llama_split_path(text.data(), text.size(), prefix.c_str(), i, n);
        parts.emplace_back(text.data());
    }
    return parts;
}

// What llama.cpp would not survive, or would turn into a file that is of no use.
static void check_source(const std::string & source) {
    if (!fs::is_regular_file(fs::u8path(source))) {
        throw model_error(source + ": no such file");
    }
    const gguf_context_ptr first = read_header(source);
    if (!first) {
        throw model_error(source + ": cannot be read as GGUF: " + logged_errors());
    }
    if (gguf_find_key(first.get(), "lora_drop.version") >= 0) {
        throw model_error(source + ": holds a corrector, which quantising would lose; quantise the model without it");
    }
    for (const std::string & part : parts_of(source, first.get())) {
        const gguf_context_ptr header = part == source ? nullptr : read_header(part);
        const gguf_context *   read   = part == source ? first.get() : header.get();
        if (!read) {
            throw model_error(part + ": cannot be read as GGUF: " + logged_errors());
        }
        for (int64_t i = 0; i < gguf_get_n_tensors(read); ++i) {
            if (gguf_get_tensor_size(read, i) == 0) {
                throw model_error(part + ": tensor '" + gguf_get_tensor_name(read, i) + "' is empty");
            }
        }
    }
}

// A file with contents could be the source under another name, or another model.
static void check_target(const std::string & target) {
    const fs::path path = fs::u8path(target);
    if (fs::exists(path) && (!fs::is_regular_file(path) || fs::file_size(path) > 0)) {
        throw std::invalid_argument(target + ": exists already");
    }
}

// llama.cpp does not notice every write that fails.
static bool is_complete(const std::string & target) {
    const gguf_context_ptr header = read_header(target);
    if (!header) {
        return false;
    }
    size_t end = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(header.get()); ++i) {
        end = std::max(end, gguf_get_tensor_offset(header.get(), i) + gguf_get_tensor_size(header.get(), i));
    }
    std::error_code ignored;
    return gguf_get_data_offset(header.get()) + end <= fs::file_size(fs::u8path(target), ignored);
}

// Removes the file again unless it is kept; one that was there before becomes empty again.
class new_file {
  public:
    explicit new_file(const std::string & path) : path(fs::u8path(path)), was_there(fs::exists(this->path)) {}

    ~new_file() {
        std::error_code ignored;
        if (!kept && was_there) {
            fs::resize_file(path, 0, ignored);
        } else if (!kept) {
            fs::remove(path, ignored);
        }
    }

    new_file(const new_file &)             = delete;
    new_file & operator=(const new_file &) = delete;

    void keep() { kept = true; }

  private:
    const fs::path path;
    const bool     was_there;
    bool           kept = false;
};

static std::string last_line(const std::string & text) {
    return text.substr(text.rfind('\n') + 1);  // npos + 1 is 0
}

static void quantize(const std::string & source, const std::string & target, const std::string & type,
                     int32_t n_threads) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = parse_type(type);
    // every thread that llama.cpp cannot start ends the process, and more than processors gain nothing
    const int32_t n_processors = usable_processors();
    params.nthread             = n_threads > 0 ? std::min(n_threads, n_processors) : n_processors;

    const abort_guard guard;
    clear_logged_errors();
    check_target(target);
    check_source(source);

    new_file   written(target);
    const bool failed = llama_model_quantize(source.c_str(), target.c_str(), &params) != 0;
    if (failed || !is_complete(target)) {
        std::error_code      ignored;
        const fs::space_info space = fs::space(fs::absolute(fs::u8path(target)).parent_path(), ignored);
        throw model_error(source + ": cannot be quantised to " + type + " as " + target + " (" +
                          std::to_string(space.available >> 20) + " MiB free there): " +
                          (failed ? last_line(logged_errors()) : "what was written cannot be read"));
    }
    written.keep();
}

void register_quantize(py::module_ & m) {
    m.def("quantize_types", quantize_types, "The types that quantize() knows, from large to small.");
    m.def("quantize", quantize, py::arg("source"), py::arg("target"), py::arg("type"), py::kw_only(),
          py::arg("n_threads") = 0, py::call_guard<gil_released>(),
          "Writes the model in source, a GGUF file of f32, f16 or bf16 weights, to the new file target with weights of "
          "a type of quantize_types(). n_threads: 0 or more than there are takes all processors. Raises ModelError "
          "when that fails, and then leaves no target; ValueError for an unknown type and for a target that exists "
          "and is not empty.");
}

}  // namespace loradrop::bindings
