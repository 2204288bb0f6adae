#include "reading.h"

#include <math.h>

#include <algorithm>
#include <functional>

namespace {

// No noise is above 53 log 2: uniform numbers have 52 bits.
constexpr double kMostNoise = 37.5;
// Tokens less likely than the likeliest by this factor's logarithm: a vocabulary of them changes no sample, and a
// mean by less than a hundred-thousandth.
constexpr double kUnlikely = 40.0;
constexpr float kWeightless = -25.0f;
constexpr float kBanned = -INFINITY;
constexpr float kLowest = -3.4e38f;

uint64_t mixed(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebull;
    return word ^ (word >> 31);
}

uint64_t bits_of(uint64_t key, int token) { return mixed(key + (uint64_t)(token + 1) * 0x9e3779b97f4a7c15ull); }

double gumbel_of(uint64_t bits) {
    const double uniform = ((double)(bits >> 12) + 0.5) * 0x1p-52;
    return -log(-log(uniform));
}

// An upper bound of the noise without a logarithm: -log(-log u) <= -log(1 - u), and 1 - u >= 2^-(zeros + 1).
double most_noise(uint64_t bits) {
    const uint64_t rest = ~bits | 1u << 11;
    return (__builtin_clzll(rest) + 1) * 0.6931471805599454;
}

void apply_bans(float* logits, const Vocabulary& vocabulary, const uint8_t* allowed) {
    for (int row = 0; row < vocabulary.size; row++) {
        const int token = vocabulary.id_of(row);
        if (!(allowed[token / 8] >> (token % 8) & 1)) logits[row] = kBanned;
    }
}

}  // namespace

uint64_t noise_key(uint64_t seed, int position) {
    return mixed(seed * 0x9e3779b97f4a7c15ull + (uint64_t)(int64_t)position + 1) >> 1;
}

double gumbel(uint64_t key, int token) { return gumbel_of(bits_of(key, token)); }

Reading::Reading(const Kernels& kernels, float* logits, const Vocabulary& vocabulary, int mask_token,
                 const Pass& pass, const Read& read)
    : kernels_(kernels), logits_(logits), vocabulary_(vocabulary), padded_((vocabulary.size + 15) / 16 * 16),
      read_(read), key_(noise_key(read.seed, read.position)) {
    std::fill(logits + vocabulary.size, logits + padded_, kBanned);
    const int mask = mask_token >= 0 && !read.may_mask ? vocabulary.row_of(mask_token) : -1;
    if (mask >= 0) logits[mask] = kBanned;
    for (int i = 0; i < read.num_changes; i++) {
        const Change& change = pass.changes[read.first_change + i];
        const int row = vocabulary.row_of(change.token);
        if (row < 0) continue;
        float& logit = logits[row];
        logit = (logit > 0 ? logit / change.repetition : logit * change.repetition) + change.add;
    }
    const float divisor = (float)read.divisor;
    for (int token = 0; token < padded_ && divisor != 1.0f; token++) logits[token] /= divisor;
    if (read.allowed >= 0) apply_bans(logits, vocabulary, pass.allowed + read.allowed);
    summary_ = kernels.summarize(logits, padded_, 1.0f);
    total_ = (double)summary_.highest + log(summary_.normalizer);
}

Answer Reading::answer() const {
    Answer made = {};
    const int row = read_.temperature > 0 ? sample() : summary_.at;
    made.token = vocabulary_.id_of(row);
    made.logprob = (double)logits_[row] - total_;
    made.entropy = read_.entropy ? kernels_.entropy(logits_, padded_, (float)total_) : 0.0;
    return made;
}

double Reading::logprob(int32_t token) const {
    const int row = vocabulary_.row_of(token);
    return (double)(row < 0 ? kUnsaid : logits_[row]) - total_;
}

int Reading::list_likeliest(int count, int32_t* tokens, double* logprobs) const {
    const std::vector<int32_t> rows = likeliest(count);
    for (size_t i = 0; i < rows.size(); i++) {
        tokens[i] = vocabulary_.id_of(rows[i]);
        logprobs[i] = (double)logits_[rows[i]] - total_;
    }
    return (int)rows.size();
}

std::vector<int32_t> Reading::not_below(float limit) const {
    std::vector<int32_t> found(256);
    const int count = kernels_.list_not_below(logits_, padded_, std::max(limit, kLowest), found.data(), 256);
    found.resize(count);
    if (count > 256) kernels_.list_not_below(logits_, padded_, std::max(limit, kLowest), found.data(), count);
    return found;
}

// Puts the likeliest `count` first, in order; the rest is left as it comes.
void Reading::sort(std::vector<int32_t>& tokens, int count) const {
    const auto middle = tokens.begin() + std::min(count, (int)tokens.size());
    std::partial_sort(tokens.begin(), middle, tokens.end(), [&](int a, int b) {
        return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    });
}

// A limit that at least `count` values reach and few more do: of the lanes' maxima, the one in place `count`.
float Reading::limit_of(int count) const {
    if (count > 16) return summary_.highest - 1.0f;
    float lanes[16];
    std::copy_n(summary_.lanes, 16, lanes);
    std::nth_element(lanes, lanes + count - 1, lanes + 16, std::greater<float>());
    return std::max(lanes[count - 1], kLowest);
}

std::vector<int32_t> Reading::likeliest(int count) const {
    std::vector<int32_t> found;
    float limit = limit_of(count);
    for (float width = 2.0f;; width *= 2) {
        found = not_below(limit);
        if ((int)found.size() >= count || limit == kLowest) break;
        limit = width > 1e4f ? kLowest : summary_.highest - width;
    }
    sort(found, count);
    if ((int)found.size() > count) found.resize(count);
    return found;
}

int Reading::sample() const {
    const bool has_top_k = read_.top_k > 0 && read_.top_k < padded_;
    if (!has_top_k && read_.top_p >= 1.0 && read_.min_p <= 0.0) {
        if (read_.draw < 0) return sample_all();
        return invert(not_below((float)(summary_.highest - kUnlikely * read_.temperature)));
    }
    std::vector<int32_t> kept;
    if (has_top_k) {
        const std::vector<int32_t> top = likeliest(read_.top_k);
        // Equals of the last one stay.
        kept = top.empty() ? top : not_below(logits_[top.back()]);
    }
    if (read_.top_p < 1.0) kept = nucleus(kept, !has_top_k);
    if (read_.min_p > 0.0) {
        const double limit = summary_.highest + read_.temperature * log(read_.min_p);
        if (!has_top_k && read_.top_p >= 1.0) kept = not_below((float)limit);
        kept.erase(std::remove_if(kept.begin(), kept.end(), [&](int token) { return logits_[token] < limit; }),
                   kept.end());
    }
    return read_.draw < 0 ? sample_among(kept) : invert(std::move(kept));
}

// The inverse of the distribution function over `kept`, by their numbers: `decoding/noise.py`, uniform.
int Reading::invert(std::vector<int32_t> kept) const {
    std::sort(kept.begin(), kept.end());
    std::vector<double> up_to;
    double sum = 0.0;
    for (const int token : kept)
        up_to.push_back(sum += exp(((double)logits_[token] - summary_.highest) / read_.temperature));
    const double number = (double)(noise_key(key_, 2 * read_.draw) >> 10) * 0x1p-53 * sum;
    const size_t at = std::upper_bound(up_to.begin(), up_to.end(), number) - up_to.begin();
    return kept.empty() ? summary_.at : kept[std::min(at, kept.size() - 1)];
}

void Reading::weigh(float* probabilities) const {
    for (int token = 0; token < padded_; token++) {
        const float below = logits_[token] - summary_.highest;
        probabilities[token] = below < kWeightless ? 0.0f : expf((float)(logits_[token] - total_));
    }
}

// The smallest set of likeliest tokens that holds `top_p` of the mass of `kept`, or of all tokens.
std::vector<int32_t> Reading::nucleus(std::vector<int32_t> kept, bool all) const {
    const auto weight = [&](int token) {
        return exp(((double)logits_[token] - summary_.highest) / read_.temperature);
    };
    double mass = 0.0;
    if (all)
        mass = kernels_.summarize(logits_, padded_, (float)(1.0 / read_.temperature)).normalizer;
    else
        for (const int token : kept) mass += weight(token);
    for (double width = 2.0;; width *= 2) {
        const bool whole = !all || width > 1e4;
        if (all) kept = not_below(whole ? kLowest : (float)(summary_.highest - width * read_.temperature));
        sort(kept, (int)kept.size());
        double before = 0.0;
        for (size_t i = 0; i < kept.size(); i++) {
            if (i && before >= read_.top_p * mass) {
                kept.resize(i);
                return kept;
            }
            before += weight(kept[i]);
        }
        if (whole || before >= read_.top_p * mass) return kept;
    }
}

int Reading::sample_among(const std::vector<int32_t>& kept) const {
    int best = summary_.at;
    double most = -INFINITY;
    for (const int token : kept) {
        const double score = logits_[token] / read_.temperature + gumbel(key_, vocabulary_.id_of(token));
        if (score > most || (score == most && token < best)) most = score, best = token;
    }
    return best;
}

// Exact, and nearly as fast as reading the row: few tokens can still win, and only those need logarithms.
int Reading::sample_all() const {
    int best = summary_.at;
    const double inverse = 1.0 / read_.temperature;
    double most = summary_.highest / read_.temperature + gumbel(key_, vocabulary_.id_of(best));
    for (int token = 0; token < padded_; token++) {
        const double scaled = logits_[token] * inverse;
        if (scaled + kMostNoise < most) continue;
        const uint64_t bits = bits_of(key_, vocabulary_.id_of(token));
        if (scaled + most_noise(bits) + 1e-3 < most) continue;
        const double score = logits_[token] / read_.temperature + gumbel_of(bits);
        if (score > most || (score == most && token < best)) most = score, best = token;
    }
    return best;
}
