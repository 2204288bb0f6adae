#include "reads.h"

#include <algorithm>

#include "reading.h"

namespace {

constexpr int kBatch = 32;  // 6 MB of logits with 49,152 tokens
constexpr int kTilesPerShare = 16;

}  // namespace

Reads::Reads(Session& session, const Rows& rows, const Forward& forward, const Pass& pass, Answers& answers)
    : session_(session),
      stack_(session.stack(pass.drafting)),
      num_tiles_((stack_.vocabulary.size + kTile - 1) / kTile),
      rows_(rows),
      forward_(forward),
      pass_(pass),
      answers_(answers),
      normed_((size_t)pass.num_reads * session.model.hidden_size),
      codes_(pass.num_reads, session.model.hidden_size) {
    int top = 0;
    for (int read = 0; read < pass.num_reads; read++) {
        first_top_.push_back(top);
        top += pass.reads[read].top;
    }
    const size_t needed = (size_t)num_tiles_ * kTile * std::min(kBatch, pass.num_reads);
    if (session.logits.size() < needed) session.logits.resize(needed);
}

void Reads::run(Team& team) {
    team.share(pass_.num_reads, [&](int read) { normalize(read); });
    const int padded = num_tiles_ * kTile;
    float* logits = session_.logits.data();
    for (int first = 0; first < pass_.num_reads; first += kBatch) {
        const int count = std::min(kBatch, pass_.num_reads - first);
        team.share((num_tiles_ + kTilesPerShare - 1) / kTilesPerShare, [&](int index, int next) {
            const int tile = index * kTilesPerShare;
            const uint8_t* ahead = next < 0 ? nullptr : tile_of(stack_.head, next * kTilesPerShare);
            session_.kernels->multiply(stack_.head, {tile, std::min(kTilesPerShare, num_tiles_ - tile), ahead},
                                       codes_.view(), {first, count}, {logits + tile * kTile, padded, false});
        });
        team.share(count, [&](int i) { answer(first + i, logits + (size_t)i * padded); });
        if (!answers_.signals) continue;
        team.share(1, [&](int) { list_signals(first, count); });
        team.share(session_.model.hidden_size / kBlock, [&](int block) { signal(first, block, logits); });
    }
}

void Reads::normalize(int read) {
    const Model& model = session_.model;
    const size_t row = rows_.place[pass_.reads[read].row];
    float* y = normed_.data() + (size_t)read * model.hidden_size;
    session_.normalize(forward_.hidden.data() + row * model.hidden_size, stack_.norm, stack_.norm_shift, y);
    session_.kernels->quantize(y, model.hidden_size, codes_.view(), read, 0);
}

void Reads::answer(int index, float* logits) {
    const Model& model = session_.model;
    const Read& read = pass_.reads[index];
    const int padded = num_tiles_ * kTile;
    if (stack_.head_bias) session_.kernels->add(logits, stack_.head_bias, padded);
    if (model.logit_softcap > 0) session_.kernels->cap(logits, padded, model.logit_softcap);
    if (answers_.logits) keep(logits, answers_.logits + (size_t)index * model.vocab_size);
    const Reading reading(*session_.kernels, logits, stack_.vocabulary, model.mask_token, pass_, read);
    Answer& answer = answers_.answers[index];
    answer = reading.answer();
    for (int i = read.first_target; i < read.first_target + read.num_targets; i++)
        answers_.targets[i] = reading.logprob(pass_.targets[i]);
    const int first = first_top_[index];
    if (read.top) answer.num_top = reading.list_likeliest(read.top, answers_.top_tokens + first, answers_.top_logprobs + first);
    if (read.signalled) reading.weigh(logits);
}

// Logits of all tokens.
void Reads::keep(const float* logits, float* kept) const {
    const Vocabulary& vocabulary = stack_.vocabulary;
    if (vocabulary.size < session_.model.vocab_size) std::fill_n(kept, session_.model.vocab_size, kUnsaid);
    for (int row = 0; row < vocabulary.size; row++) kept[vocabulary.id_of(row)] = logits[row];
}

// Which reads of a batch want their mean embedding, and which tokens these take.
void Reads::list_signals(int first, int count) {
    signalled_.clear();
    weighed_.clear();
    for (int i = 0; i < count; i++)
        if (pass_.reads[first + i].signalled) signalled_.push_back(i);
    const size_t padded = (size_t)num_tiles_ * kTile;
    for (int token = 0; token < stack_.vocabulary.size && !signalled_.empty(); token++)
        if (std::any_of(signalled_.begin(), signalled_.end(), [&](int i) { return session_.logits[i * padded + token] > 0; }))
            weighed_.push_back(token);
}

// 32 entries of the mean embeddings of a batch, summed up token by token, so that no read notices the others.
void Reads::signal(int first, int block, const float* weights) {
    const Model& model = session_.model;
    const size_t padded = (size_t)num_tiles_ * kTile;
    float values[kBlock];
    std::vector<float> sums(signalled_.size() * kBlock);
    for (const int token : weighed_) {
        session_.kernels->unpack(model.embedding, token, {block, 1}, values);
        for (size_t i = 0; i < signalled_.size(); i++) {
            const float weight = weights[signalled_[i] * padded + token];
            if (weight > 0) session_.kernels->add_scaled(sums.data() + i * kBlock, values, weight, kBlock);
        }
    }
    for (size_t i = 0; i < signalled_.size(); i++) {
        float* to = answers_.signals + (size_t)(first + signalled_[i]) * model.hidden_size + block * kBlock;
        for (int k = 0; k < kBlock; k++) to[k] = sums[i * kBlock + k] * model.embedding_scale;
    }
}
