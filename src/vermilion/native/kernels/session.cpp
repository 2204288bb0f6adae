#include "session.h"

#include <new>

static void* zeros(size_t count) {
    void* made = calloc(count, 1);
    if (!made) throw std::bad_alloc();
    return made;
}

Pool::Pool(const Model& model, int num_slots) : num_slots_((size_t)(num_slots + 15) / 16 * 16) {
    size_t size = 0;
    const int num_base = model.num_layers;
    for (int index = 0; index < num_base + model.drafter.num_layers; index++) {
        const Layer& layer = index < num_base ? model.layers[index] : model.drafter.layers[index - num_base];
        layers_.push_back({layer.num_kv_heads, layer.head_dim, size});
        size += num_slots_ * layer.num_kv_heads * layer.head_dim;
    }
    keys_ = (uint16_t*)zeros(size * sizeof(uint16_t));
    values_ = (uint16_t*)zeros(size * sizeof(uint16_t));
}

void Pool::store_key(int layer, int head, int slot, const uint16_t* key) {
    const int size = layers_[layer].head_dim;
    uint16_t* to = keys(layer, head) + (size_t)(slot / 16) * 16 * size + slot % 16;
    for (int d = 0; d < size; d++) to[d * 16] = key[d];
}

void Pool::store_key(int layer, int head, int slot, const float* key, const Kernels& kernels) {
    constexpr int kMostAtOnce = 64;
    uint16_t halves[kMostAtOnce];
    const int size = layers_[layer].head_dim;
    uint16_t* to = keys(layer, head) + (size_t)(slot / 16) * 16 * size + slot % 16;
    for (int first = 0; first < size; first += kMostAtOnce) {
        const int count = size - first < kMostAtOnce ? size - first : kMostAtOnce;
        kernels.to_halves(key + first, count, halves);
        for (int d = 0; d < count; d++) to[(first + d) * 16] = halves[d];
    }
}

void Pool::move(const int32_t* pairs, int count) {
    for (int layer = 0; layer < (int)layers_.size(); layer++)
        for (int head = 0; head < layers_[layer].num_heads; head++) move(layer, head, pairs, count);
}

void Pool::move(int layer, int head, const int32_t* pairs, int count) {
    const int size = layers_[layer].head_dim;
    std::vector<uint16_t> kept((size_t)count * 2 * size);
    uint16_t* to = kept.data();
    for (int i = 0; i < count; i++, to += 2 * size) {
        const int slot = pairs[2 * i];
        const uint16_t* key = keys(layer, head) + (size_t)(slot / 16) * 16 * size + slot % 16;
        const uint16_t* value = values(layer, head) + (size_t)slot * size;
        for (int d = 0; d < size; d++) {
            to[d] = key[d * 16];
            to[size + d] = value[d];
        }
    }
    const uint16_t* from = kept.data();
    for (int i = 0; i < count; i++, from += 2 * size) {
        store_key(layer, head, pairs[2 * i + 1], from);
        uint16_t* value = values(layer, head) + (size_t)pairs[2 * i + 1] * size;
        for (int d = 0; d < size; d++) value[d] = from[size + d];
    }
}

Session::Session(const Model& given, int num_pages, int page_size, int threads, const Kernels* kernels)
    : model(given),
      layers(given.layers, given.layers + given.num_layers),
      drafter_layers(given.drafter.layers, given.drafter.layers + given.drafter.num_layers),
      kernels(kernels),
      page_size(page_size),
      threads(threads),
      pool(given, num_pages * page_size) {
    model.layers = layers.data();
    model.drafter.layers = drafter_layers.data();
}

void Session::normalize(const float* x, const float* weight, const float* shift, float* y) const {
    const int size = model.hidden_size, real = model.hidden_norm_size;
    if (model.centred) {
        double sum = 0.0;
        for (int i = 0; i < real; i++) sum += x[i];
        const float mean = (float)(sum / real);
        for (int i = 0; i < size; i++) y[i] = i < real ? x[i] - mean : 0.0f;
        x = y;
    }
    kernels->normalize(x, weight, size, real, model.norm_eps, y);
    if (shift) kernels->add(y, shift, size);
}

Stack Session::stack(bool drafting) const {
    const Model& m = model;
    const Drafter& d = model.drafter;
    if (!drafting)
        return {m.layers, m.num_layers, 0,            m.norm,     m.norm_shift, m.mask_embedding,
                m.head_bias, m.head,    m.draft_down, m.draft_up, {nullptr, m.vocab_size}};
    return {d.layers, d.num_layers, m.num_layers, d.norm, nullptr,      d.mask_embedding,
            nullptr,  d.head,       d.down,       d.up, {d.vocabulary, d.vocab_size}};
}

Team& Session::workers() {
    if (team && team->is_orphaned()) (void)team.release();  // its threads live in the parent alone
    if (!team) team.reset(new Team(threads));
    return *team;
}
