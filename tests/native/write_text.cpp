// write_text MODEL N TEMPERATURE SEED TOKEN...: decodes a prompt token by token and goes on with N sampled ones, which
// it prints. A temperature of 0 takes the most probable.
#include "llama.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>

static llama_sampler * make_sampler(float temperature, uint32_t seed) {
    llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    if (temperature <= 0.0f) {
        llama_sampler_chain_add(chain, llama_sampler_init_greedy());
        return chain;
    }
    llama_sampler_chain_add(chain, llama_sampler_init_top_k(40));
    llama_sampler_chain_add(chain, llama_sampler_init_top_p(0.95f, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_min_p(0.05f, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_temp(temperature));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(seed));
    return chain;
}

int main(int argc, char ** argv) {
    if (argc < 6) {
        std::fprintf(stderr, "usage: write_text MODEL N TEMPERATURE SEED TOKEN...\n");
        return 2;
    }
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }
    const int            n_prompt = argc - 5;
    const int            n        = std::atoi(argv[2]);
    llama_context_params params   = llama_context_default_params();
    params.n_ctx                  = static_cast<uint32_t>(n_prompt + n);
    params.n_threads              = 2;
    llama_context * ctx           = llama_init_from_model(model, params);
    if (!ctx) {
        return 1;
    }
    llama_sampler * sampler =
        make_sampler(std::strtof(argv[3], nullptr), static_cast<uint32_t>(std::strtoul(argv[4], nullptr, 10)));
    for (int i = 0; i < n_prompt + n; ++i) {
        llama_token token;
        if (i < n_prompt) {
            token = static_cast<llama_token>(std::atoi(argv[5 + i]));
        } else {
            token = llama_sampler_sample(sampler, ctx, -1);
            std::printf("%d\n", token);
        }
        if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0) {
            return 1;
        }
    }
    llama_sampler_free(sampler);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
