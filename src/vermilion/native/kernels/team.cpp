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
constexpr int kSpinsBeforeYield = 2048;  // some 30 us: longer waits mean that another process has a core
constexpr int kClosed = 1 << 30;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void wait_a_little(int spins) {
    if (spins % kSpinsBeforeYield)
        relax();
    else
        std::this_thread::yield();
}

}  // namespace

thread_local uint32_t Team::own_phase_ = 0;

Team::Team(int size) : size_(size < 1 ? 1 : size), owner_(process_id()), inside_(kClosed) {
    for (int member = 1; member < size_; member++) threads_.emplace_back([this] { serve(); });
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

void Team::run(const std::function<void()>& work) {
    own_phase_ = 0;
    if (size_ == 1) return work();
    work_ = &work;
    state_.store(0, std::memory_order_relaxed);
    inside_.store(0, std::memory_order_release);
    pass_.fetch_add(1);
    if (sleepers_.load()) {
        { std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }
    work();
    inside_.fetch_or(kClosed);
    for (int spins = 1; inside_.load(std::memory_order_acquire) != kClosed; spins++) wait_a_little(spins);
}

void Team::serve() {
    for (unsigned seen = 0;;) {
        await_work(seen);
        seen = pass_.load();
        if (stopping_) return;
        if (!enter()) continue;
        own_phase_ = 0;
        (*work_)();
        inside_.fetch_sub(1, std::memory_order_release);
    }
}

bool Team::enter() {
    int inside = inside_.load(std::memory_order_acquire);
    while (!(inside & kClosed))
        if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
    return false;
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

// The next index of this phase; -1 where none is left or the phase is over.
int Team::take(uint32_t phase, int count) {
    uint64_t seen = state_.load(std::memory_order_acquire);
    while ((uint32_t)(seen >> 32) == phase && (int)(uint32_t)seen < count)
        if (state_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire))
            return (int)(uint32_t)seen;
    return -1;
}

void Team::finish(uint32_t phase, int count) {
    if (done_.fetch_add(1, std::memory_order_acq_rel) != count - 1) return;
    done_.store(0, std::memory_order_relaxed);
    state_.store((uint64_t)(phase + 1) << 32, std::memory_order_release);
}

void Team::await_end_of(uint32_t phase) const {
    for (int spins = 1; (uint32_t)(state_.load(std::memory_order_acquire) >> 32) == phase; spins++)
        wait_a_little(spins);
}
