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
constexpr int kBackShift = 20, kPhaseShift = 40;  // of the parts of `Taken`
constexpr uint64_t kMostIndices = (1 << kBackShift) - 1;

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
thread_local int Team::own_number_ = 0;

Team::Team(int size) : size_(size < 1 ? 1 : size), owner_(process_id()), inside_(kClosed), taken_(size_) {
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

void Team::run(const std::function<void()>& work) {
    own_phase_ = 1;
    own_number_ = 0;
    if (size_ == 1) return work();
    work_ = &work;
    phase_.store(1, std::memory_order_relaxed);
    for (Taken& taken : taken_) taken.word.store(0, std::memory_order_relaxed);
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

void Team::serve(int number) {
    own_number_ = number;
    for (unsigned seen = 0;;) {
        await_work(seen);
        seen = pass_.load();
        if (stopping_) return;
        if (!enter()) continue;
        own_phase_ = 1;
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

// An index of a member's range that nobody has taken; -1 where none is left or the phase is over.
int Team::take(uint32_t phase, int member, Part part, bool from_end) {
    std::atomic<uint64_t>& word = taken_[member].word;
    const int count = part.end - part.first;
    uint64_t seen = word.load(std::memory_order_acquire);
    for (;;) {
        const uint32_t at = (uint32_t)(seen >> kPhaseShift);
        if (at > phase) return -1;
        const uint64_t current = at == phase ? seen : (uint64_t)phase << kPhaseShift;
        const int front = (int)(current & kMostIndices), back = (int)(current >> kBackShift & kMostIndices);
        if (front + back >= count) return -1;
        const uint64_t next = current + (from_end ? (uint64_t)1 << kBackShift : 1);
        if (word.compare_exchange_weak(seen, next, std::memory_order_acq_rel, std::memory_order_acquire))
            return from_end ? part.end - 1 - back : part.first + front;
    }
}

void Team::finish(uint32_t phase, int done, int count) {
    if (!done || done_.fetch_add(done, std::memory_order_acq_rel) + done != count) return;
    done_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
}

void Team::await_end_of(uint32_t phase) const {
    for (int spins = 1; phase_.load(std::memory_order_acquire) == phase; spins++) wait_a_little(spins);
}
