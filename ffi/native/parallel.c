// A pool of threads that splits a range: the only threads of the cpu device beside OpenBLAS's own.
#include "native.h"
#include <pthread.h>

#define MAX_THREADS 256

static struct {
  pthread_mutex_t lock;
  pthread_cond_t wake, done;
  int threads, started; // wanted, the caller included; running helpers
  uint64_t round;       // grows with each range
  int pending;          // helpers that have not finished this round
  range_fn fn;
  void *context;
  int64_t n, piece;
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, 1, 0, 0, 0, NULL, NULL, 0, 0};

static void run_piece(int index) {
  int64_t begin = index * pool.piece, end = begin + pool.piece;
  if (end > pool.n) end = pool.n;
  if (begin < end) pool.fn(pool.context, begin, end);
}

static void *helper(void *argument) {
  int index = (int)(intptr_t)argument;
  uint64_t seen = 0;
  for (;;) {
    pthread_mutex_lock(&pool.lock);
    while (pool.round == seen) pthread_cond_wait(&pool.wake, &pool.lock);
    seen = pool.round;
    pthread_mutex_unlock(&pool.lock);
    run_piece(index);
    pthread_mutex_lock(&pool.lock);
    if (--pool.pending == 0) pthread_cond_signal(&pool.done);
    pthread_mutex_unlock(&pool.lock);
  }
  return NULL;
}

// Sets the number of threads once, before the first kernel; returns how many there are.
int native_threads(int threads) {
  pool.threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
  while (pool.started < pool.threads - 1) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, helper, (void *)(intptr_t)(pool.started + 1)) != 0) break;
    pthread_detach(thread);
    pool.started++;
  }
  pool.threads = pool.started + 1;
  return pool.threads;
}

void parallel(int64_t n, int64_t grain, range_fn fn, void *context) {
  int64_t pieces = (n + grain - 1) / grain;
  if (pool.threads == 1 || pieces < 2) {
    if (n > 0) fn(context, 0, n);
    return;
  }
  pthread_mutex_lock(&pool.lock);
  pool.fn = fn;
  pool.context = context;
  pool.n = n;
  pool.piece = (pieces + pool.threads - 1) / pool.threads * grain;
  pool.pending = pool.started;
  pool.round++;
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.lock);
  run_piece(0);
  pthread_mutex_lock(&pool.lock);
  while (pool.pending > 0) pthread_cond_wait(&pool.done, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
}
