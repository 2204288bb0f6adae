// What each draft would say if it knew the token before it: `models/draft_head.py`, `decoding/following.py`.
#pragma once
#include <vector>

#include "reads.h"

class DraftHead {
   public:
    DraftHead(Session& session, const Reads& reads) : session_(session), reads_(reads) {}

    // Called by all members of the team once the reads are answered.
    void run(Team& team);

   private:
    void plan();
    void join(int pair);
    void widen(int block);
    void weigh(int draft);
    void weigh_pair(const Given& given, const std::vector<float>& heads);

    Session& session_;
    const Reads& reads_;
    std::vector<int> drafts_;      // reads that are drafts, and of each its first pair
    std::vector<int> first_pair_;
    CodeBuffer both_, low_;
    std::vector<float> added_;  // [pairs, hidden_size]
};
