#include "loradrop/schedule.h"

#include "llama-cparams.h"

#include <algorithm>

namespace loradrop {

bool sequence::is_unbroken() const {
    const auto parts = [](const lora_token & a, const lora_token & b) { return b.pos != a.pos + 1; };
    return std::adjacent_find(lora.begin(), lora.end(), parts) == lora.end();
}

schedule::schedule(uint32_t k, refresh_policy policy, int32_t kv_window, uint32_t n_seq) :
    n_lora(k), refresh(policy), kv_window(kv_window), n_seq(n_seq), sequences(LLAMA_MAX_SEQ) {
}

sequence & schedule::at(int32_t seq_id) {
    return sequences.at(static_cast<size_t>(seq_id));
}

const sequence & schedule::at(int32_t seq_id) const {
    return sequences.at(static_cast<size_t>(seq_id));
}

bool schedule::lora_step_due(int32_t seq_id) const {
    const sequence & s = at(seq_id);
    return s.ready && s.sampled && s.n_missing == 0 && s.lora.size() < n_lora;
}

void schedule::after_lora_step(int32_t seq_id, lora_token token, bool sampled) {
    sequence & s = at(seq_id);
    s.lora.push_back(token);
    s.sampled = sampled;
}

void schedule::after_full_step(int32_t seq_id, int32_t last, bool sampled, int32_t n_rows) {
    sequence & s = at(seq_id);
    s.exact      = s.exact && (s.lora.empty() || replays(seq_id));
    if (s.exact) {
        s.n_exact = last + 1;
    }
    if (replays(seq_id)) {
        const int32_t first = std::max(s.lora.front().pos, n_sinks);
        const int32_t end   = s.lora.back().pos + 1;
        if (first < end) {
            s.thinnable.emplace_back(first, end);
        }
    }
    s.lora.clear();
    s.n_missing = 0;
    s.anchor    = last;
    s.row       = n_rows - 1;
    s.n_back    = n_rows - 1;
    s.sampled   = sampled;
    s.ready     = static_cast<uint32_t>(seq_id) < n_seq;
}

void schedule::advance(int32_t seq_id) {
    sequence & s = at(seq_id);
    ++s.anchor;
    ++s.row;
    ++s.n_back;
}

void schedule::after_failure(int32_t seq_id, int32_t last) {
    sequence & s = at(seq_id);
    s.ready      = false;  // the failed step may have overwritten part of the reuse state
    s.sampled    = false;
    if (refresh == refresh_policy::refill) {
        // what the failed refill did put back ran in full; the rest waits for the next full step
        const auto is_back = [&](const lora_token & t) { return t.pos <= last; };
        if (s.n_missing > 0) {
            s.lora.erase(s.lora.begin(), std::find_if_not(s.lora.begin(), s.lora.end(), is_back));
            s.n_missing = s.lora.size();
        }
    }
}

bool schedule::next_thinned(int32_t seq_id, position_range & range) {
    sequence &    s   = at(seq_id);
    const int32_t end = s.anchor - kv_window + 1;
    if (s.thinnable.empty() || s.thinnable.front().first >= end) {
        return false;
    }
    range        = s.thinnable.front();
    range.second = std::min(range.second, end);
    if (range.first < s.n_exact) {
        s.n_exact = range.first;
        s.exact   = false;
    }
    if (range.second == s.thinnable.front().second) {
        s.thinnable.pop_front();
    } else {
        s.thinnable.front().first = range.second;
    }
    return true;
}

void schedule::clear() {
    std::fill(sequences.begin(), sequences.end(), sequence{});
}

void schedule::remove(int32_t seq_id, int32_t p0, int32_t p1) {
    sequence & s = at(seq_id);
    if (p0 <= s.n_exact && p1 > 0) {
        s.n_exact = std::max(p0, 0);
        s.exact   = p1 > s.last();
    }
    if (s.lora.empty() && s.anchor - s.n_back < p0 && p0 <= s.anchor && s.anchor < p1) {
        // cut back to a position with a row of its own, whose logits were asked for
        const int32_t n_cut = s.anchor - p0 + 1;
        s.anchor -= n_cut;
        s.row -= n_cut;
        s.n_back -= n_cut;
    } else if (p0 <= s.anchor) {
        s.n_back = std::min(s.n_back, std::max(0, s.anchor - std::max(p1, 0)));
    }
    if (p0 <= s.anchor && s.anchor < p1) {
        s.ready = false;
    }
    if (p0 <= s.last() && s.last() < p1) {
        s.sampled = false;  // the next token follows another one than the last that was sampled from
    }
    const auto is_gone  = [=](const lora_token & t) { return p0 <= t.pos && t.pos < p1; };
    const auto n_before = s.lora.size();
    s.lora.erase(std::remove_if(s.lora.begin(), s.lora.end(), is_gone), s.lora.end());
    if (s.lora.size() != n_before) {
        s.ready     = false;  // previous-state has lost the output it would build on
        s.n_missing = std::min(s.n_missing, s.lora.size());
    }

    std::deque<position_range> left;
    for (const auto & [first, end] : s.thinnable) {
        if (first < std::min(end, p0)) {
            left.emplace_back(first, std::min(end, p0));
        }
        if (std::max(first, p1) < end) {
            left.emplace_back(std::max(first, p1), end);
        }
    }
    s.thinnable = std::move(left);
}

void schedule::copy(int32_t from, int32_t to, int32_t p0, int32_t p1) {
    sequence s = at(from);
    s.ready    = s.ready && static_cast<uint32_t>(to) < n_seq;
    s.row      = 0;
    s.n_back   = 0;
    at(to)     = std::move(s);
    if (p0 > 0) {
        remove(to, 0, p0);
    }
    remove(to, p1, INT32_MAX);
}

void schedule::keep_only(int32_t seq_id) {
    for (size_t i = 0; i < sequences.size(); ++i) {
        if (i != static_cast<size_t>(seq_id)) {
            sequences[i] = {};
        }
    }
}

void schedule::shift(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta) {
    sequence & s = at(seq_id);
    if (p0 <= s.last()) {
        s.n_exact = std::min(s.n_exact, std::max(p0, 0));
        s.exact   = false;
    }
    const auto    moved = [=](int32_t pos) { return p0 <= pos && pos < p1 ? pos + delta : pos; };
    const int32_t back  = s.anchor - s.n_back;
    if (moved(back) - back != moved(s.anchor) - s.anchor) {
        s.n_back = 0;
    }
    s.anchor = moved(s.anchor);
    for (lora_token & t : s.lora) {
        t.pos = moved(t.pos);
    }
    for (auto & [first, end] : s.thinnable) {
        first = moved(first);
        end   = moved(end - 1) + 1;
    }
    remove(seq_id, INT32_MIN, 0);  // as llama.cpp does
}

}  // namespace loradrop
