#include "loradrop/reuse_ops.h"

#include "ggml.h"

namespace loradrop {

namespace {

// Sum of the terms that are there.
ggml_tensor * add(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b) {
    return !a ? b : !b ? a : ggml_add(ctx, a, b);
}

ggml_tensor * norm(ggml_context * ctx, ggml_tensor * x) {
    return ggml_rms_norm(ctx, x, reuse_norm_eps);
}

// s B u, with u = A x
ggml_tensor * correction(ggml_context * ctx, const reuse_run & run, ggml_tensor * u) {
    if (run.scale != 1.0f) {
        u = ggml_scale(ctx, u, run.scale);  // on the rank-sized side, where it costs least
    }
    return ggml_mul_mat(ctx, run.b, u);
}

ggml_tensor * read_state(ggml_context * ctx, ggml_tensor * state, const slot_inputs & slots) {
    if (!state) {
        return nullptr;
    }
    return slots.read ? ggml_get_rows(ctx, state, slots.read)
                      : ggml_view_2d(ctx, state, state->ne[0], 1, state->nb[1], 0);
}

void write_state(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * state, ggml_tensor * value,
                 const slot_inputs & slots) {
    ggml_build_forward_expand(gf, ggml_set_rows(ctx, state, value, slots.write));
}

ggml_tensor * segment_step(ggml_context * ctx, const reuse_run & run, const slot_inputs & slots, ggml_tensor * x) {
    ggml_tensor * n = norm(ctx, x);
    ggml_tensor * y = add(ctx, x, read_state(ctx, run.state_carry, slots));
    if (run.gate) {
        ggml_tensor * gate = ggml_add(ctx, ggml_mul_mat(ctx, run.gate, n), read_state(ctx, run.state_gate, slots));
        ggml_tensor * up   = ggml_add(ctx, ggml_mul_mat(ctx, run.up, n), read_state(ctx, run.state_up, slots));
        y                  = ggml_add(ctx, y, ggml_mul_mat(ctx, run.down, ggml_swiglu_split(ctx, gate, up)));
    }
    if (run.a) {
        ggml_tensor * u = ggml_add(ctx, ggml_mul_mat(ctx, run.a, n), read_state(ctx, run.state_a, slots));
        y               = ggml_add(ctx, y, correction(ctx, run, u));
    }
    return y;
}

void segment_refresh(ggml_context * ctx, ggml_cgraph * gf, const reuse_run & run, const slot_inputs & slots,
                     ggml_tensor * x, ggml_tensor * y) {
    ggml_tensor * f      = ggml_concat(ctx, norm(ctx, y), norm(ctx, x), 0);
    const auto    anchor = [&](ggml_tensor * state, ggml_tensor * weight) {
        if (weight) {
            write_state(ctx, gf, state, ggml_mul_mat(ctx, weight, f), slots);
        }
    };
    anchor(run.state_a, run.a_anchor);
    anchor(run.state_gate, run.gate_anchor);
    anchor(run.state_up, run.up_anchor);
}

}  // namespace

ggml_tensor * build_lora_step(ggml_context * ctx, ggml_cgraph * gf, const reuse_run & run, const slot_inputs & slots,
                              ggml_tensor * x) {
    switch (run.rule) {
        case reuse_rule::segment:
            return segment_step(ctx, run, slots, x);
        case reuse_rule::anchor_delta: {
            ggml_tensor * y = add(ctx, x, read_state(ctx, run.state_carry, slots));
            return run.a ? ggml_add(ctx, y, correction(ctx, run, ggml_mul_mat(ctx, run.a, norm(ctx, x)))) : y;
        }
        case reuse_rule::anchor_state:
        case reuse_rule::previous_state:
            break;
    }
    ggml_tensor * y =
        ggml_add(ctx, correction(ctx, run, ggml_mul_mat(ctx, run.a, x)), read_state(ctx, run.state, slots));
    if (run.rule == reuse_rule::previous_state) {
        write_state(ctx, gf, run.state, y, slots);
    }
    return y;
}

void build_refresh(ggml_context * ctx, ggml_cgraph * gf, const reuse_run & run, const slot_inputs & slots,
                   ggml_tensor * x, ggml_tensor * y) {
    if (run.states().empty()) {
        return;
    }
    if (slots.kept) {
        x = ggml_get_rows(ctx, x, slots.kept);
        y = ggml_get_rows(ctx, y, slots.kept);
    }
    if (run.state) {
        write_state(ctx, gf, run.state, y, slots);
    }
    if (run.state_carry) {
        write_state(ctx, gf, run.state_carry, ggml_mul(ctx, ggml_sub(ctx, y, x), run.carry), slots);
    }
    if (run.rule == reuse_rule::segment) {
        segment_refresh(ctx, gf, run, slots, x, y);
    }
}

}  // namespace loradrop
