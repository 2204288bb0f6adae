// Threads that run one pass together. Between passes they spin for a millisecond at most, then sleep.
#pragma once
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <type_traits>
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
    // begun on this share: the others go on, and it skips what is done.
    void run(const std::function<void()>& work);

    // Within `run`: computes each index below `count` once and returns when all are done. Each member goes through
    // a range of its own, the same one whenever the count is the same, then helps the others from the ends of
    // theirs. What is computed for an index must not depend on who computes it. A function of two numbers also
    // gets the index that its member goes on with, -1 if that is not known.
    template <class Function> void share(int count, Function function) {
        const auto compute = [&](int index, int next) {
            if constexpr (std::is_invocable_v<Function, int, int>)
                function(index, next);
            else
                function(index);
        };
        if (size_ == 1) {
            for (int i = 0; i < count; i++) compute(i, i + 1 < count ? i + 1 : -1);
            return;
        }
        if (count <= 0) return;
        const uint32_t phase = own_phase_++;
        int done = 0;
        const Part own = part(own_number_, count);
        for (int i; (i = take(phase, own_number_, own, false)) >= 0; done++) compute(i, i + 1 < own.end ? i + 1 : -1);
        for (int other = 1; other < size_; other++) {
            const int member = (own_number_ + other) % size_;
            for (int i; (i = take(phase, member, part(member, count), true)) >= 0; done++) compute(i, -1);
        }
        finish(phase, done, count);
        await_end_of(phase);
    }

    // The index at which the calling member begins in a share of this count.
    int first_of(int count) const { return size_ == 1 ? 0 : part(own_number_, count).first; }

    // Whether the threads are gone because the process is a fork of the one that made them.
    bool is_orphaned() const;

   private:
    struct Part {
        int first, end;
    };
    // What is taken of a member's range: its phase, how many from the front, how many from the end.
    struct alignas(64) Taken {
        std::atomic<uint64_t> word{0};
    };

    Part part(int member, int count) const {
        return {(int)((int64_t)count * member / size_), (int)((int64_t)count * (member + 1) / size_)};
    }
    int take(uint32_t phase, int member, Part part, bool from_end);
    void finish(uint32_t phase, int done, int count);
    void await_end_of(uint32_t phase) const;
    void serve(int number);
    bool enter();
    void await_work(unsigned seen);

    static thread_local uint32_t own_phase_;  // of the next share that this member goes through, from 1 on
    static thread_local int own_number_;

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
    std::vector<Taken> taken_;
    alignas(64) std::atomic<uint32_t> phase_{1};
    alignas(64) std::atomic<int> done_{0};  // indices of the phase that are computed
};
