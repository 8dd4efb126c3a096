#include "loradrop/draft_length.h"

#include <algorithm>
#include <cmath>

namespace loradrop {

namespace {

constexpr size_t   n_buckets     = 16;
constexpr float    bucket_width  = 0.5f;  // of a margin; logits are natural logarithms
constexpr double   memory        = 0.98;  // what a case still counts when the next one comes
constexpr double   first_rate    = 0.9;   // drafts are taken for good until they have shown what they are
constexpr double   first_cases   = 6;
constexpr double   lora_guess    = 0.5;    // of a full step, before one was measured
constexpr double   row_guess     = 0.05;   // of a full step, what a row more of a check takes
constexpr double   shared_cases  = 8;      // that what other texts have shown counts for
constexpr double   most_loss     = 0.015;  // of the time of plain decoding, for rounds that may not pay
constexpr double   most_account  = 6;      // tokens of plain decoding
constexpr double   first_account = 2;      // when a text begins
constexpr double   most_at_once  = 3;      // that a round may lose above what is on the account
constexpr uint32_t most_rounds   = 48;     // without a full step of one token, which has to be timed now and then

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

void running_rate::weaken(double n_cases) {
    const double share = std::min(1.0, n_cases / n_all);
    n_so *= share;
    n_all *= share;
}

hit_rates::hit_rates() : all(first_rate, first_cases) {
    for (size_t i = 0; i < n_buckets; ++i) {
        const double middle = (static_cast<double>(i) + 0.5) * bucket_width;
        by_margin.emplace_back(of_two(middle), first_cases);
    }
}

size_t hit_rates::bucket_of(float margin) {
    const float bucket = std::min(margin / bucket_width, static_cast<float>(n_buckets - 1));
    return bucket > 0.0f ? static_cast<size_t>(bucket) : 0;  // what cannot be compared too
}

void hit_rates::add(float margin, bool accepted) {
    by_margin[bucket_of(margin)].add(accepted);
    all.add(accepted);
}

void hit_rates::weaken() {
    for (running_rate & rate : by_margin) {
        rate.weaken(shared_cases);
    }
    all.weaken(shared_cases);
}

draft_length::draft_length(uint32_t k) : k(k), check(k + 2) {
}

void draft_length::book(double seconds) {
    account = std::min(account + seconds, most_account * full.get());
}

void draft_length::full_took(double seconds) {
    n_rounds = 0;
    if (is_cold) {
        is_cold = false;
        return;
    }
    const bool is_first = full.empty();
    full.add(seconds);
    book((is_first ? first_account : most_loss) * full.get());
}

void draft_length::check_took(size_t n_tokens, double seconds) {
    is_cold = false;
    ++n_rounds;
    if (n_tokens < check.size()) {
        check[n_tokens].add(seconds);
        const double took = check[n_tokens].is_sure() ? check[n_tokens].get() : seconds;
        book(full.get() - static_cast<double>(n_tokens - 1) * lora_seconds() - took);
    }
}

void draft_length::begin_text() {
    of_best.weaken();
    of_drawn.weaken();
    is_cold = true;
    if (!full.empty()) {
        account = std::min(account, first_account * full.get());
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

double draft_length::round_seconds(size_t n_drafts) const {
    return static_cast<double>(n_drafts) * lora_seconds() + check_seconds(n_drafts + 1);
}

// What a token takes with the best fixed number of drafts, none included, if all are as good as they are on average.
double draft_length::token_seconds() const {
    double best = full.get();
    double sum  = 1.0;  // expected tokens of a round
    double rate = 1.0;
    for (size_t n = 1; n <= k; ++n) {
        rate *= rates().of_all();
        sum += rate;
        best = std::min(best, round_seconds(n) / sum);
    }
    return best;
}

bool draft_length::begins() const {
    if (full.empty() || n_rounds >= most_rounds) {
        return false;
    }
    const bool pays = token_seconds() < full.get();
    // where it does not, one draft is tried as often as the account can bear what that is expected to lose
    const double loss = round_seconds(1) - (1.0 + rates().of_all()) * full.get();
    return account >= (pays ? 0.0 : loss);
}

bool draft_length::goes_on(const std::vector<float> & margins) const {
    const size_t n = margins.size();
    // one round should not lose what many have won
    if (n >= k || round_seconds(n + 1) - full.get() > account + most_at_once * full.get()) {
        return false;
    }
    double rate = 1.0;
    for (const float margin : margins) {
        rate *= rates().of(margin);
    }
    const double token = token_seconds();
    double       gain  = 0.0;  // seconds that the tokens of more drafts take otherwise
    for (size_t m = n + 1; m <= k; ++m) {
        rate *= rates().of_all();
        gain += rate * token;
        if (gain > round_seconds(m) - round_seconds(n)) {
            return true;
        }
    }
    return false;
}

void draft_length::came_to(float margin, bool accepted) {
    (are_drawn ? of_drawn : of_best).add(margin, accepted);
    if (accepted) {
        book(full.get());
    }
}

}  // namespace loradrop
