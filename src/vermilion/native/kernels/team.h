// Threads that run one pass together. Between passes they spin for a millisecond at most, then sleep.
#pragma once
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

    // Runs work(member) on every member, the calling thread being member 0, and waits for all.
    void run(const std::function<void(int)>& work);

    // Called by all members within `run`: each index below `count` goes to one of them, whoever is free;
    // returns when all are done. What is computed for an index must not depend on who computes it.
    template <class Function> void share(int count, Function function) {
        if (size_ == 1) {
            for (int i = 0; i < count; i++) function(i);
            return;
        }
        for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) function(i);
        meet();
    }

    // Whether the threads are gone because the process is a fork of the one that made them.
    bool is_orphaned() const;

   private:
    void meet();
    void serve(int member);
    void await_work(unsigned seen);

    const int size_;
    const long owner_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* work_ = nullptr;
    bool stopping_ = false;
    std::mutex mutex_;
    std::condition_variable wake_;
    alignas(64) std::atomic<unsigned> pass_{0};
    std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> meeting_{0};
};
