// Activations that own their memory.
#pragma once
#include <stddef.h>

#include <vector>

#include "kernels.h"

class CodeBuffer {
   public:
    CodeBuffer() = default;
    CodeBuffer(int rows, int inputs)
        : codes_((size_t)rows * inputs), numbers_((size_t)rows * inputs / kBlock * 2),
          totals_((size_t)rows * inputs / kBlock), rows_(rows), inputs_(inputs) {}
    Activations view() {
        float* sums = numbers_.data() + (size_t)rows_ * inputs_ / kBlock;
        return {codes_.data(), numbers_.data(), sums, totals_.data(), inputs_, inputs_};
    }
    // Of the first `inputs` of each row.
    Activations view(int inputs) { return view().part(0, inputs); }

   private:
    std::vector<int8_t> codes_;
    std::vector<float> numbers_;
    std::vector<int32_t> totals_;
    int rows_ = 0, inputs_ = 0;
};
