// What a machine can do at best, whatever the kernel: reading memory, and multiplying bytes.
#pragma once

#include <cstddef>

namespace loradrop::cpu {

// What measure_machine_floor reads: so much more than caches hold that next to nothing comes from them.
constexpr size_t machine_floor_buffer = size_t(512) << 20;

struct machine_floor {
    double bytes_per_second;     // read from memory in pages of 4 KiB
    double products_per_second;  // of bytes; 0 where no kernels are for this processor
};

// Of so many threads together, the best of several tries; takes a second or so. Products are those of the set of
// instructions in use, and of the best that there is where ggml's code is.
machine_floor measure_machine_floor(int n_threads);

}  // namespace loradrop::cpu
