// How a member of the team takes its share of a pass.
#pragma once
#include <stddef.h>

#include <algorithm>
#include <vector>

// A member's scratch of at least `size` floats, kept from pass to pass.
inline float* scratch(size_t size) {
    static thread_local std::vector<float> buffer;
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
}

// Tiles of one share: few enough that the members end together, enough that sharing costs nothing.
inline int tiles_per_share(int num_tiles, int members) { return std::clamp(num_tiles / (members * 8), 1, 8); }
