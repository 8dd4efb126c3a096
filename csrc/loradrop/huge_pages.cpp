#include "loradrop/huge_pages.h"

#include "loradrop/hooks.h"

#include "llama-model.h"

#include "ggml-backend.h"

#if defined(__linux__)
#    include <sys/mman.h>
#    include <unistd.h>

#    include <algorithm>
#    include <cinttypes>
#    include <cstdio>
#    include <fstream>
#    include <set>
#    include <string>
#    include <vector>
#endif

namespace loradrop {

#if defined(__linux__)

struct address_range {
    uintptr_t begin;
    uintptr_t end;
};

// ggml's plain buffers of the CPU name no device; its repacked ones do, but are no host buffers. What a GPU's driver
// has allocated on the host belongs to the GPU.
static bool is_cpus(ggml_backend_buffer & buffer) {
    const ggml_backend_dev_t device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(&buffer));
    return device ? ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU
                  : ggml_backend_buffer_is_host(&buffer);
}

// The whole pages inside a buffer of the CPU; none for others.
static address_range whole_pages(ggml_backend_buffer & buffer) {
    if (ggml_backend_buffer_get_size(&buffer) == 0 || !is_cpus(buffer)) {
        return {0, 0};
    }
    const auto page  = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(&buffer));
    const auto end   = begin + ggml_backend_buffer_get_size(&buffer);
    return {(begin + page - 1) / page * page, end / page * page};
}

void advise_huge_pages(ggml_backend_buffer & buffer) {
    const auto [begin, end] = whole_pages(buffer);
    if (begin < end) {
        void * const pages = reinterpret_cast<void *>(begin);
        // malloc may hand out memory that was used before and has small pages; without them the first write gets huge
        // ones. What comes of it is read from the system (huge_page_bytes); a refusal changes nothing.
        (void)madvise(pages, end - begin, MADV_DONTNEED);
        (void)madvise(pages, end - begin, MADV_HUGEPAGE);
    }
}

static std::vector<address_range> weight_pages(const llama_model & model) {
    std::set<ggml_backend_buffer_t> buffers;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        buffers.insert(tensor->buffer);
    }
    buffers.erase(nullptr);
    std::vector<address_range> out;
    for (const ggml_backend_buffer_t buffer : buffers) {
        out.push_back(whole_pages(*buffer));
    }
    return out;
}

uint64_t huge_page_bytes(const llama_model & model) {
    const std::vector<address_range> weights = weight_pages(model);
    std::ifstream                    smaps("/proc/self/smaps");
    uint64_t                         total = 0;
    uint64_t                         ours  = 0;  // bytes of weights in the mapping whose lines are being read
    for (std::string line; std::getline(smaps, line);) {
        address_range mapping;
        uint64_t      kib;
        if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR, &mapping.begin, &mapping.end) == 2) {
            ours = 0;
            for (const auto & [begin, end] : weights) {
                const uintptr_t first = std::max(begin, mapping.begin);
                ours += std::max(std::min(end, mapping.end), first) - first;
            }
        } else if (std::sscanf(line.c_str(), "AnonHugePages: %" SCNu64, &kib) == 1) {
            // memory that was advised is a mapping of its own; in another one the weights have neighbours
            total += std::min(ours, kib * 1024);
        }
    }
    return total;
}

#else

void advise_huge_pages(ggml_backend_buffer &) {
}

uint64_t huge_page_bytes(const llama_model &) {
    return 0;
}

#endif

}  // namespace loradrop
