// dump_logits MODEL OUT: decodes a fixed text token by token, past the number of cells from which llama.cpp would split
// attention, and writes the logits of every eighth token as raw f32.
#include "llama.h"

#include <cstdio>

int main(int argc, char ** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: dump_logits MODEL OUT\n");
        return 2;
    }
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 1024;
    params.n_threads            = 2;
    params.n_threads_batch      = 2;
    llama_context * ctx         = llama_init_from_model(model, params);
    std::FILE *     out         = std::fopen(argv[2], "wb");
    if (!ctx || !out) {
        return 1;
    }
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    uint32_t state = 1;
    for (int i = 0; i < 600; ++i) {
        // any tokens do, as long as both programs take the same
        state             = state * 1664525u + 1013904223u;
        llama_token token = static_cast<llama_token>((state >> 8) % static_cast<uint32_t>(n_vocab));
        if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0) {
            return 1;
        }
        if (i % 8 == 7) {
            std::fwrite(llama_get_logits_ith(ctx, -1), sizeof(float), static_cast<size_t>(n_vocab), out);
        }
    }
    std::fclose(out);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
