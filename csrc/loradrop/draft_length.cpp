#include "loradrop/draft_length.h"

#include <algorithm>
#include <cmath>

namespace loradrop {

namespace {

constexpr size_t n_buckets     = 16;
constexpr float  bucket_width  = 0.5f;  // of a margin; logits are natural logarithms
constexpr double memory        = 0.98;  // what a case still counts when the next one comes
constexpr double first_rate    = 0.9;   // drafts are taken for good until they have shown what they are
constexpr double first_cases   = 6;
constexpr double lora_guess    = 0.5;    // of a full step, before one was measured
constexpr double row_guess     = 0.05;   // of a full step, what a row more of a check takes
constexpr double most_loss     = 0.015;  // of the time, for rounds that are tried where none pays
constexpr double most_patience = 512;    // tokens, before a round is tried again
constexpr int    try_weight    = 3;      // cases that a try stands for, as there are few, and long apart

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
    const auto   end    = values.begin() + static_cast<std::ptrdiff_t>(n_kept);
    const auto   middle = values.begin() + static_cast<std::ptrdiff_t>(n_kept < enough ? 0 : (n_kept - 1) / 2);
    std::nth_element(values.begin(), middle, end);
    return *middle;
}

running_rate::running_rate(double rate, double n_cases) : n_so(rate * n_cases), n_all(n_cases) {
}

void running_rate::add(bool so) {
    n_so  = n_so * memory + (so ? 1.0 : 0.0);
    n_all = n_all * memory + 1.0;
}

draft_length::draft_length(uint32_t k) : k(k), check(k + 2), any_margin(first_rate, first_cases) {
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

double draft_length::lora_seconds() const {
    return lora.empty() ? lora_guess * full.get() : lora.get();
}

// A check of one token is a full step. Sizes that are not known well lie on a straight line between those that are, or
// little above the last of them, if they have not been quicker than that.
double draft_length::check_seconds(size_t n_tokens) const {
    size_t below         = 1;
    double below_seconds = full.get();
    double row           = row_guess * below_seconds;
    for (size_t n = 2; n < check.size(); ++n) {
        if (!check[n].is_sure()) {
            continue;
        }
        if (n == n_tokens) {
            return check[n].get();
        }
        if (n > n_tokens) {
            row = std::max(0.0, (check[n].get() - below_seconds) / static_cast<double>(n - below));
            break;
        }
        below         = n;
        below_seconds = check[n].get();
    }
    const double guess = below_seconds + row * static_cast<double>(n_tokens - below);
    return check[n_tokens].empty() ? guess : std::min(guess, check[n_tokens].get());
}

// What a token takes with the best fixed number of drafts, none included, if all are as good as they are on average.
double draft_length::token_seconds() const {
    double best = full.get();
    double sum  = 1.0;  // expected tokens of a round
    double rate = 1.0;
    for (size_t n = 1; n <= k; ++n) {
        rate *= any_margin.get();
        sum += rate;
        best = std::min(best, (static_cast<double>(n) * lora_seconds() + check_seconds(n + 1)) / sum);
    }
    return best;
}

bool draft_length::begins() {
    if (full.empty()) {
        return false;
    }
    if (token_seconds() < full.get()) {
        n_plain = 0;
        is_try  = false;
        return true;
    }
    // now and then one draft, as often as what it loses allows
    const double loss     = (lora_seconds() + check_seconds(2)) / full.get() - 1.0 - any_margin.get();
    const double patience = std::min(loss / most_loss, most_patience);
    is_try                = ++n_plain >= patience;
    if (is_try) {
        n_plain = 0;
    }
    return is_try;
}

bool draft_length::goes_on(const std::vector<float> & margins) const {
    double rate = 1.0;
    for (const float margin : margins) {
        rate *= chance(margin);
    }
    const size_t n     = margins.size();
    const double token = token_seconds();
    double       gain  = 0.0;  // seconds that the tokens of more drafts take otherwise
    for (size_t m = n + 1; m <= k; ++m) {
        rate *= any_margin.get();
        gain += rate * token;
        if (gain > static_cast<double>(m - n) * lora_seconds() + check_seconds(m + 1) - check_seconds(n + 1)) {
            return true;
        }
    }
    return false;
}

void draft_length::came_to(float margin, bool accepted) {
    by_margin[bucket_of(margin)].add(accepted);
    for (int i = 0; i < (is_try ? try_weight : 1); ++i) {
        any_margin.add(accepted);
    }
}

}  // namespace loradrop
