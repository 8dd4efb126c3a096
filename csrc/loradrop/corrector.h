// A corrector as it lies in a GGUF file: inside the model's own, or in a sidecar.
#pragma once

#include "loradrop/reuse_rule.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

struct llama_model;

namespace loradrop {

// First and last layer of a run of neighbouring droppable layers.
using layer_span = std::pair<int32_t, int32_t>;

class corrector {
  public:
    // Reads and checks the corrector in a file against a model. Null when the file has none.
    // Throws corrector_error when there is one that cannot be used.
    static std::shared_ptr<const corrector> load(const std::string & path, const llama_model & model);

    // The stand-in for a missing corrector: what dropped layers would have added is left out. Layers in the order in
    // which they drop; an empty list stands for those from the middle outwards.
    // Throws std::invalid_argument for a layer that cannot drop, or one that comes twice.
    static std::shared_ptr<const corrector> none(const llama_model & model, std::vector<int32_t> layers = {});

    reuse_rule              rule  = reuse_rule::anchor_delta;
    uint32_t                rank  = 0;
    float                   alpha = 0.0f;
    std::vector<int32_t>    layers;    // in the order in which they drop as rho grows; empty for segment
    std::vector<layer_span> segments;  // segment only
    std::optional<float>    rho;       // recommended point
    std::optional<uint32_t> k;
    std::string             refresh;  // recommended policy: single, refill, or empty
    std::string             quality;  // JSON text, may be empty
    std::string             path;
    std::string             base;  // layout_hash of the model that it was loaded for

    bool   is_none() const { return rank == 0 && weights == nullptr; }
    float  scale() const { return rank == 0 ? 0.0f : alpha / static_cast<float>(rank); }
    size_t n_bytes() const;

    // A tensor with its data in the mapped file; null when the file does not have it.
    const ggml_tensor * find(const std::string & name) const;

  private:
    ggml_context_ptr      weights;
    std::shared_ptr<void> mapped;  // the file that their data lies in
    size_t                n_data = 0;

    friend class corrector_reader;
};

// FNV-1a, 64 bit, of a model's tensor names, types and shapes: tells the base that a sidecar was made for.
std::string layout_hash(const llama_model & model);

// Names of a corrector's tensors.
std::string layer_tensor_name(int32_t layer, const char * part);     // blk.N.lora_drop_PART.weight
std::string segment_tensor_name(size_t segment, const char * part);  // lora_drop.seg.J.PART.weight

}  // namespace loradrop
