#include "loradrop/draft_length.h"

#include <algorithm>
#include <cmath>

namespace loradrop {

namespace {

constexpr size_t   n_buckets      = 16;
constexpr float    bucket_width   = 0.5f;  // of a margin; logits are natural logarithms
constexpr double   memory         = 0.98;  // what a case still counts when the next one comes
constexpr double   first_rate     = 0.9;   // drafts are taken for good until they have shown what they are
constexpr double   first_cases    = 6;
constexpr uint32_t first_patience = 64;  // tokens; a round that gives nothing costs about one
constexpr uint32_t most_patience  = 512;
constexpr double   lora_guess     = 0.5;  // of a full step, before one was measured
constexpr double   row_guess      = 0.1;  // of a full step, what a row more takes

// Of two logits alone, the probability of the larger.
double of_two(double margin) {
    return 1.0 / (1.0 + std::exp(-margin));
}

}  // namespace

void running_median::add(double value) {
    last[n++ % last.size()] = value;
}

double running_median::get() const {
    auto         values = last;
    const size_t n_kept = std::min(n, values.size());
    const auto   middle = values.begin() + static_cast<std::ptrdiff_t>((n_kept - 1) / 2);
    std::nth_element(values.begin(), middle, values.begin() + static_cast<std::ptrdiff_t>(n_kept));
    return *middle;
}

running_rate::running_rate(double rate, double n_cases) : n_so(rate * n_cases), n_all(n_cases) {
}

void running_rate::add(bool so) {
    n_so  = n_so * memory + (so ? 1.0 : 0.0);
    n_all = n_all * memory + 1.0;
}

draft_length::draft_length(uint32_t k) :
    k(k), check(k + 2), any_margin(first_rate, first_cases), patience(first_patience) {
    for (size_t i = 0; i < n_buckets; ++i) {
        const double middle = (static_cast<double>(i) + 0.5) * bucket_width;
        by_margin.emplace_back(of_two(middle), first_cases);
    }
}

size_t draft_length::bucket_of(float margin) {
    return static_cast<size_t>(std::clamp(margin / bucket_width, 0.0f, static_cast<float>(n_buckets - 1)));
}

void draft_length::check_took(size_t n_tokens, double seconds) {
    if (n_tokens < check.size()) {
        check[n_tokens].add(seconds);
    }
}

// A check of one token is a full step. Between two sizes that were measured time is a straight line, and beyond them.
double draft_length::check_seconds(size_t n_tokens) const {
    size_t below         = 1;
    double below_seconds = full.get();
    double row           = row_guess * below_seconds;
    for (size_t n = 2; n < check.size(); ++n) {
        if (check[n].empty()) {
            continue;
        }
        const double seconds = std::max(check[n].get(), below_seconds);
        row                  = (seconds - below_seconds) / static_cast<double>(n - below);
        if (n >= n_tokens) {
            break;
        }
        below         = n;
        below_seconds = seconds;
    }
    return below_seconds + row * static_cast<double>(n_tokens - below);
}

// What a token takes with the best fixed number of drafts, none included, if all are as good as they are on average.
double draft_length::token_seconds() const {
    const double step = lora.empty() ? lora_guess * full.get() : lora.get();
    double       best = full.get();
    double       sum  = 1.0;  // expected tokens of a round
    double       rate = 1.0;
    for (size_t n = 1; n <= k; ++n) {
        rate *= any_margin.get();
        sum += rate;
        best = std::min(best, (static_cast<double>(n) * step + check_seconds(n + 1)) / sum);
    }
    return best;
}

bool draft_length::pays(double chance_so_far, size_t n_drafts) const {
    const double step = lora.empty() ? lora_guess * full.get() : lora.get();
    const double row  = check_seconds(n_drafts + 2) - check_seconds(n_drafts + 1);
    return chance_so_far * any_margin.get() * token_seconds() > step + row;
}

bool draft_length::begins() {
    if (full.empty()) {
        return false;
    }
    if (token_seconds() < full.get()) {
        n_plain  = 0;
        patience = first_patience;
        return true;
    }
    if (++n_plain < patience) {
        return false;
    }
    n_plain  = 0;
    patience = std::min(2 * patience, most_patience);
    return true;
}

bool draft_length::goes_on(const std::vector<float> & margins) const {
    if (margins.size() >= k) {
        return false;
    }
    double so_far = 1.0;
    for (const float margin : margins) {
        so_far *= chance(margin);
    }
    return pays(so_far, margins.size());
}

void draft_length::came_to(float margin, bool accepted) {
    by_margin[bucket_of(margin)].add(accepted);
    any_margin.add(accepted);
}

}  // namespace loradrop
