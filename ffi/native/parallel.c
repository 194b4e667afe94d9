// A pool of threads that splits a range: the only threads of the cpu device.
//
// Pieces are taken one by one, so a thread that the system has put aside delays nothing but the piece in its hands. (OpenBLAS's
// own threads wait for each other in loops; on a machine with other work that made products ten times slower.)
#include "native.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MAX_THREADS 256
#define SPINS 2000        // looks for work at full speed: about the time between two launches
// then looks in turn with others, some ms, before a helper sleeps: waking it costs as much as a kernel
#define YIELDS 4000
#define PIECES_A_THREAD 4 // small enough to even out, large enough to be worth taking

static struct {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  int threads;      // the caller included
  int cores;        // of the machine, which other processes may share
  atomic_int asleep;
  _Atomic uint64_t ticket; // round << 32 | pieces not yet taken; publishes the fields below
  _Atomic int64_t done;    // pieces finished in this round
  range_fn fn;
  void *context;
  int64_t n, piece;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .threads = 1, .cores = 1};

static inline void relax(void) {
#ifdef __x86_64__
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

// Takes pieces of the current round until none is left.
static void work(void) {
  for (;;) {
    uint64_t ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
    uint32_t left = (uint32_t)ticket;
    if (left == 0) return;
    if (!atomic_compare_exchange_weak_explicit(&pool.ticket, &ticket, ticket - 1, memory_order_acq_rel, memory_order_relaxed))
      continue;
    int64_t begin = (int64_t)(left - 1) * pool.piece, end = begin + pool.piece;
    pool.fn(pool.context, begin, end < pool.n ? end : pool.n);
    atomic_fetch_add_explicit(&pool.done, 1, memory_order_release);
  }
}

static int has_work(void) { return (uint32_t)atomic_load_explicit(&pool.ticket, memory_order_acquire) != 0; }

static _Thread_local int number;

static void *helper(void *which) {
  number = (int)(intptr_t)which;
  for (;;) {
    for (int spin = 0; spin < SPINS + YIELDS && !has_work(); spin++)
      if (spin < SPINS) relax();
      else sched_yield();
    if (!has_work()) {
      pthread_mutex_lock(&pool.lock);
      atomic_fetch_add(&pool.asleep, 1);
      while (!has_work()) pthread_cond_wait(&pool.wake, &pool.lock);
      atomic_fetch_sub(&pool.asleep, 1);
      pthread_mutex_unlock(&pool.lock);
    }
    work();
  }
  return NULL;
}

// Sets the number of threads, before the first kernel, and says how many cores the machine has; returns how many threads there
// are. They live as long as the process.
int native_threads(int threads, int cores) {
  pool.cores = cores;
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  while (pool.threads < threads) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, helper, (void *)(intptr_t)pool.threads) != 0) break;
    pthread_detach(thread);
    pool.threads++;
  }
  return pool.threads;
}

int pool_threads(void) { return pool.threads; }
int machine_cores(void) { return pool.cores; }
int thread_number(void) { return number; }

void parallel(int64_t n, int64_t grain, range_fn fn, void *context) {
  int64_t grains = (n + grain - 1) / grain, most = (int64_t)pool.threads * PIECES_A_THREAD;
  if (pool.threads == 1 || grains < 2) {
    if (n > 0) fn(context, 0, n);
    return;
  }
  int64_t pieces = grains < most ? grains : most;
  pool.piece = (grains + pieces - 1) / pieces * grain;
  pieces = (n + pool.piece - 1) / pool.piece;
  pool.fn = fn;
  pool.context = context;
  pool.n = n;
  atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
  uint64_t round = (atomic_load_explicit(&pool.ticket, memory_order_relaxed) >> 32) + 1;
  atomic_store(&pool.ticket, round << 32 | (uint64_t)pieces);
  if (atomic_load(&pool.asleep) > 0) {
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
  }
  work();
  for (int spin = 0; atomic_load_explicit(&pool.done, memory_order_acquire) < pieces; spin++)
    if (spin < SPINS) relax();
    else sched_yield();
}
