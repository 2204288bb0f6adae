#include "interface.h"

#include "draft_head.h"
#include "reading.h"

void run_pass(Session& session, const Pass& pass, Answers& answers) {
    if (pass.num_moves) session.pool.move(pass.moves, pass.num_moves);
    Team& team = session.workers();
    const Rows rows(pass, session.page_size);
    Forward forward(session, rows, pass, answers.tapped, team);
    Reads reads(session, rows, forward, pass, answers);
    DraftHead drafts(session, reads);
    bool any_draft = false;
    for (int read = 0; read < pass.num_reads; read++) any_draft |= pass.reads[read].after != -2;
    answers.num_given = 0;
    team.run([&] {
        forward.run();
        if (pass.num_reads) reads.run(team);
        if (any_draft && reads.stack().draft_down.tiles) drafts.run(team);
    });
}

int vermilion_layout_version() { return kLayoutVersion; }

const char* vermilion_instruction_set(const char* wanted) {
    const Kernels* kernels = choose_kernels(wanted);
    return kernels ? kernels->name : nullptr;
}

Session* vermilion_open(const Model* model, int32_t num_pages, int32_t page_size, int32_t threads,
                        const char* instruction_set) {
    const Kernels* kernels = choose_kernels(instruction_set);
    if (!kernels) return nullptr;
    try {
        return new Session(*model, num_pages, page_size, threads, kernels);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void vermilion_close(Session* session) { delete session; }

void vermilion_run(Session* session, const Pass* pass, Answers* answers) { run_pass(*session, *pass, *answers); }

void vermilion_adapt(Session* session, int32_t number, const LowRank* layers) {
    if (layers)
        session->adapters[number].assign(layers, layers + (size_t)session->model.num_layers * 4);
    else
        session->adapters.erase(number);
}

double vermilion_noise(uint64_t seed, int32_t position, int32_t token) {
    return gumbel(noise_key(seed, position), token);
}
