#include "draft_head.h"

#include <math.h>

#include <algorithm>
#include <numeric>

#include "reading.h"

namespace {

constexpr float kEps = 1.1920929e-7f;  // what PyTorch's rms_norm adds in single precision

double log_sum_exp(const double* x, int count) {
    const double most = *std::max_element(x, x + count);
    double sum = 0.0;
    for (int i = 0; i < count; i++) sum += exp(x[i] - most);
    return most + log(sum);
}

}  // namespace

void DraftHead::run(Team& team) {
    const Model& model = session_.model;
    team.share(1, [&](int) { plan(); });
    const int num_pairs = reads_.answers().num_given;
    if (!num_pairs) return;
    team.share(num_pairs, [&](int pair) { join(pair); });
    team.share(reads_.stack().draft_down.outputs / kBlock, [&](int block) { widen(block); });
    team.share(model.hidden_size / kBlock, [&](int block) {
        session_.kernels->multiply(reads_.stack().draft_up, {block * 2, 2}, low_.view(), {0, num_pairs},
                                   {added_.data() + block * kBlock, model.hidden_size, false});
    });
    team.share((int)drafts_.size(), [&](int draft) { weigh(draft); });
}

// Which tokens may stand before each draft: the choices of the draft before it, or the base's token there.
void DraftHead::plan() {
    const Pass& pass = reads_.pass();
    Answers& out = reads_.answers();
    out.num_given = 0;
    int first = 0;
    const auto add = [&](int read, int before) {
        const int count = std::min(pass.reads[read].choices, out.answers[read].num_top);
        out.given[out.num_given++] = {read, before, first, count};
        first += count;
    };
    for (int read = 0; read < pass.num_reads; read++) {
        const int after = pass.reads[read].after;
        if (after == -2) continue;
        drafts_.push_back(read);
        first_pair_.push_back(out.num_given);
        if (after == -3) {
            add(read, reads_.token_of(read));
        } else if (after >= 0 && pass.reads[after].after == -2) {
            add(read, out.answers[after].token);
        } else if (after >= 0) {
            const int count = std::min(pass.reads[after].choices, out.answers[after].num_top);
            for (int i = 0; i < count; i++) add(read, out.top_tokens[reads_.first_top(after) + i]);
        }
    }
    first_pair_.push_back(out.num_given);
    both_ = CodeBuffer(out.num_given, 2 * session_.model.hidden_size);
    low_ = CodeBuffer(out.num_given, reads_.stack().draft_up.inputs);
    added_.resize((size_t)out.num_given * session_.model.hidden_size);
}

void DraftHead::join(int pair) {
    const Model& model = session_.model;
    const Given& given = reads_.answers().given[pair];
    std::vector<float> x(model.hidden_size);
    session_.kernels->normalize(reads_.hidden(given.read), nullptr, model.hidden_size, model.hidden_norm_size, kEps, x.data());
    session_.kernels->quantize(x.data(), model.hidden_size, both_.view(), pair, 0);
    session_.kernels->unpack(model.embedding, given.before, all_blocks(model.embedding), x.data());
    session_.kernels->normalize(x.data(), nullptr, model.hidden_size, model.hidden_norm_size, kEps, x.data());
    session_.kernels->quantize(x.data(), model.hidden_size, both_.view(), pair, model.hidden_size);
}

void DraftHead::widen(int block) {
    const int num_pairs = reads_.answers().num_given;
    const std::vector<float> ones(kBlock, 1.0f);
    std::vector<float> y((size_t)num_pairs * kBlock);
    session_.kernels->multiply(reads_.stack().draft_down, {block * 2, 2}, both_.view(), {0, num_pairs},
                               {y.data(), kBlock, false});
    for (int pair = 0; pair < num_pairs; pair++) {
        float* x = y.data() + (size_t)pair * kBlock;
        session_.kernels->gate(kSilu, x, ones.data(), kBlock, x);
        session_.kernels->quantize(x, kBlock, low_.view(), pair, block * kBlock);
    }
}

void DraftHead::weigh(int draft) {
    const Model& model = session_.model;
    const Answers& out = reads_.answers();
    const int read = drafts_[draft], first = first_pair_[draft], end = first_pair_[draft + 1];
    if (first == end) return;
    std::vector<float> heads((size_t)out.given[first].count * model.hidden_size);
    for (int i = 0; i < out.given[first].count; i++)
        session_.kernels->unpack(model.head, out.top_tokens[reads_.first_top(read) + i], all_blocks(model.head),
                                 heads.data() + (size_t)i * model.hidden_size);
    for (int pair = first; pair < end; pair++) {
        weigh_pair(out.given[pair], heads);
        // Where tokens are sampled, the one that shares the base's noise, its likeliest choice.
        const Read& wanted = reads_.pass().reads[read];
        Given& given = reads_.answers().given[pair];
        if (wanted.temperature <= 0 || !given.count) continue;
        int best = given.first;
        double most = -INFINITY;
        const uint64_t key = noise_key(wanted.seed, wanted.position);
        for (int i = given.first; i < given.first + given.count; i++) {
            const double noise = gumbel(key, out.given_tokens[i]);
            const double score = out.given_logprobs[i] / wanted.temperature + noise;
            if (score > most) most = score, best = i;
        }
        std::swap(out.given_tokens[given.first], out.given_tokens[best]);
        std::swap(out.given_logprobs[given.first], out.given_logprobs[best]);
        given.count = 1;
    }
}

// The draft's choices weighed anew, keeping the share of probability that they had together.
void DraftHead::weigh_pair(const Given& given, const std::vector<float>& heads) {
    const int size = session_.model.hidden_size, count = given.count;
    if (!count) return;
    const Answers& out = reads_.answers();
    const float* added = added_.data() + (size_t)(&given - out.given) * size;
    const double* old = out.top_logprobs + reads_.first_top(given.read);
    std::vector<double> changed(count);
    for (int i = 0; i < count; i++)
        changed[i] = old[i] + (double)session_.kernels->dot(added, heads.data() + (size_t)i * size, size);
    const double shift = log_sum_exp(old, count) - log_sum_exp(changed.data(), count);
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return changed[a] > changed[b]; });
    for (int i = 0; i < count; i++) {
        out.given_tokens[given.first + i] = out.top_tokens[reads_.first_top(given.read) + order[i]];
        out.given_logprobs[given.first + i] = changed[order[i]] + shift;
    }
}
