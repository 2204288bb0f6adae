#include "team.h"

#include <chrono>

#if defined(_WIN32)
#include <process.h>
static long process_id() { return _getpid(); }
#else
#include <unistd.h>
static long process_id() { return getpid(); }
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr auto kLongestSpin = std::chrono::microseconds(1000);
constexpr int kSpinsBeforeYield = 4096;  // some 50 us: longer waits mean that another process has the core

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

}  // namespace

Team::Team(int size) : size_(size < 1 ? 1 : size), owner_(process_id()) {
    for (int member = 1; member < size_; member++) threads_.emplace_back([this, member] { serve(member); });
}

Team::~Team() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        pass_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
}

bool Team::is_orphaned() const { return size_ > 1 && owner_ != process_id(); }

void Team::run(const std::function<void(int)>& work) {
    if (size_ == 1) return work(0);
    work_ = &work;
    pass_.fetch_add(1);
    if (sleepers_.load()) {
        { std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }
    work(0);
    meet();
}

void Team::serve(int member) {
    for (unsigned seen = 0;;) {
        await_work(seen);
        seen++;
        if (stopping_) return;
        (*work_)(member);
        meet();
    }
}

void Team::await_work(unsigned seen) {
    const auto start = std::chrono::steady_clock::now();
    for (int spins = 1; pass_.load(std::memory_order_acquire) == seen; spins++) {
        relax();
        if (spins % 64 == 0 && std::chrono::steady_clock::now() - start > kLongestSpin) break;
    }
    if (pass_.load() != seen) return;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return pass_.load() != seen; });
    sleepers_.fetch_sub(1);
}

// A barrier. The last to arrive resets the counters that the next round uses.
void Team::meet() {
    const unsigned round = meeting_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        meeting_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spins = 1; meeting_.load(std::memory_order_acquire) == round; spins++) {
        if (spins % kSpinsBeforeYield)
            relax();
        else
            std::this_thread::yield();
    }
}
