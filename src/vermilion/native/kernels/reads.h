// From hidden states to answers: last norm, head, choice, a few rows at a time so that logits stay in cache.
#pragma once
#include <vector>

#include "forward.h"

class Reads {
   public:
    Reads(Session& session, const Rows& rows, const Forward& forward, const Pass& pass, Answers& answers);

    // Called by all members of the team.
    void run(Team& team);

    // Of a read: its hidden state after the last norm.
    const float* hidden(int read) const { return normed_.data() + (size_t)read * session_.model.hidden_size; }
    const Pass& pass() const { return pass_; }
    Answers& answers() const { return answers_; }
    const Stack& stack() const { return stack_; }
    // The token that the read's row stands on.
    int32_t token_of(int read) const { return rows_.rows[rows_.place[pass_.reads[read].row]].id; }
    // Where the read's likeliest tokens begin in `top_tokens`.
    int first_top(int read) const { return first_top_[read]; }

   private:
    void normalize(int read);
    void answer(int read, float* logits);
    void keep(const float* logits, float* kept) const;
    void list_signals(int first, int count);
    void signal(int first, int block, const float* weights);

    Session& session_;
    const Stack stack_;
    const int num_tiles_;  // of the head
    const Rows& rows_;
    const Forward& forward_;
    const Pass& pass_;
    Answers& answers_;
    std::vector<int> first_top_;
    std::vector<float> normed_;
    CodeBuffer codes_;
    std::vector<int> signalled_;  // of the batch
    std::vector<int> weighed_;    // tokens that some of these weigh
};
