// Threads that run one pass together. Between passes they spin for a millisecond at most, then sleep.
#pragma once
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Team {
   public:
    explicit Team(int size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // Runs work() on the calling thread and on every other member that is awake in time. All go through the
    // same sequence of `share`s; a member whose core another process holds is not waited for, unless it has
    // begun on an index: the others go on, and it skips what is done.
    void run(const std::function<void()>& work);

    // Within `run`: computes each index below `count` once, on whichever member is free; returns when all are
    // done. What is computed for an index must not depend on who computes it.
    template <class Function> void share(int count, Function function) {
        if (size_ == 1) {
            for (int i = 0; i < count; i++) function(i);
            return;
        }
        if (count <= 0) return;
        const uint32_t phase = own_phase_++;
        for (int i; (i = take(phase, count)) >= 0;) {
            function(i);
            finish(phase, count);
        }
        await_end_of(phase);
    }

    // Whether the threads are gone because the process is a fork of the one that made them.
    bool is_orphaned() const;

   private:
    int take(uint32_t phase, int count);
    void finish(uint32_t phase, int count);
    void await_end_of(uint32_t phase) const;
    void serve();
    bool enter();
    void await_work(unsigned seen);

    static thread_local uint32_t own_phase_;  // shares that this member has gone through in this pass

    const int size_;
    const long owner_;
    std::vector<std::thread> threads_;
    const std::function<void()>* work_ = nullptr;
    bool stopping_ = false;
    std::mutex mutex_;
    std::condition_variable wake_;
    alignas(64) std::atomic<unsigned> pass_{0};
    std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<int> inside_;  // members at work besides the calling one; kClosed: nobody may enter
    alignas(64) std::atomic<uint64_t> state_{0};  // the phase in the high half, its next index in the low one
    alignas(64) std::atomic<int> done_{0};        // indices of the phase that are computed
};
