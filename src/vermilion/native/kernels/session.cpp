#include "session.h"

#include <new>

static void* zeros(size_t count) {
    void* made = calloc(count, 1);
    if (!made) throw std::bad_alloc();
    return made;
}

Pool::Pool(const Model& model, int num_slots)
    : num_layers_(model.num_layers),
      num_heads_(model.num_kv_heads),
      head_dim_(model.head_dim),
      part_((size_t)(num_slots + 15) / 16 * 16 * model.head_dim),
      keys_((uint16_t*)zeros(part_ * num_layers_ * num_heads_ * sizeof(uint16_t))),
      values_((uint16_t*)zeros(part_ * num_layers_ * num_heads_ * sizeof(uint16_t))) {}

void Pool::store_key(int layer, int head, int slot, const uint16_t* key) {
    uint16_t* to = keys(layer, head) + (size_t)(slot / 16) * 16 * head_dim_ + slot % 16;
    for (int d = 0; d < head_dim_; d++) to[d * 16] = key[d];
}

void Pool::move(const int32_t* pairs, int count) {
    std::vector<uint16_t> kept((size_t)count * 2 * head_dim_);
    for (int layer = 0; layer < num_layers_; layer++) {
        for (int head = 0; head < num_heads_; head++) {
            uint16_t* to = kept.data();
            for (int i = 0; i < count; i++, to += 2 * head_dim_) {
                const int slot = pairs[2 * i];
                const uint16_t* key = keys(layer, head) + (size_t)(slot / 16) * 16 * head_dim_ + slot % 16;
                const uint16_t* value = values(layer, head) + (size_t)slot * head_dim_;
                for (int d = 0; d < head_dim_; d++) {
                    to[d] = key[d * 16];
                    to[head_dim_ + d] = value[d];
                }
            }
            const uint16_t* from = kept.data();
            for (int i = 0; i < count; i++, from += 2 * head_dim_) {
                store_key(layer, head, pairs[2 * i + 1], from);
                uint16_t* value = values(layer, head) + (size_t)pairs[2 * i + 1] * head_dim_;
                for (int d = 0; d < head_dim_; d++) value[d] = from[head_dim_ + d];
            }
        }
    }
}

Session::Session(const Model& given, int num_pages, int page_size, int threads, const Kernels* kernels)
    : model(given),
      layers(given.layers, given.layers + given.num_layers),
      kernels(kernels),
      page_size(page_size),
      threads(threads),
      pool(given, num_pages * page_size) {
    model.layers = layers.data();
}

Team& Session::workers() {
    if (team && team->is_orphaned()) (void)team.release();  // its threads live in the parent alone
    if (!team) team.reset(new Team(threads));
    return *team;
}
