// What the patches in ggml-patches/ call in ggml's CPU back end. C, for ggml-cpu.c includes it.
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct ggml_compute_params;
struct ggml_tensor;

#ifdef __cplusplus
extern "C" {
#endif

// Computes an operation in ggml's place, on all threads; false where it is left to ggml.
bool loradrop_cpu_forward(const struct ggml_compute_params * params, struct ggml_tensor * op);

// Bytes of the graph's work buffer that loradrop_cpu_forward needs for the operation; 0 where it leaves it to ggml.
size_t loradrop_cpu_work_size(const struct ggml_tensor * op, int n_threads);

// A product or an attention of so many tokens, or fewer, gives each the bits that it would get alone; 1 where ggml's
// own code is asked for.
int loradrop_cpu_small_batch(void);

// Waits until an int that another thread changes atomically is not what it was before.
void loradrop_cpu_wait(const void * value, int before);

// Wakes those that wait for an int that has just been changed.
void loradrop_cpu_wake(const void * value);

#ifdef __cplusplus
}
#endif
