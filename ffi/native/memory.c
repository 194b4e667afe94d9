// Memory of the cpu device and of the host of a GPU: aligned for vector loads, and returned to the system when released.
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HEADER 4096 // keeps the length next to the block, and the block aligned to a page

// `bytes` zeroed on first touch, or NULL.
void *native_allocate(int64_t bytes) {
  char *base = mmap(NULL, (size_t)bytes + HEADER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return NULL;
  madvise(base, (size_t)bytes + HEADER, MADV_HUGEPAGE); // fewer page faults on weights; a refusal costs nothing
  *(int64_t *)base = bytes + HEADER;
  return base + HEADER;
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE 4096
#define MOST_THREADS 16

// At the begin of a block's header: its length with the header, and how many threads are at its pages.
typedef struct {
  int64_t length;
  _Atomic int working;
} header;

typedef struct {
  header *of;
  char *from;
  int64_t bytes;
} part;

static void *populate(void *context) {
  part *a = context;
  if (madvise(a->from, (size_t)a->bytes, MADV_POPULATE_WRITE) != 0) // one call, since Linux 5.14
    for (int64_t at = 0; at < a->bytes; at += PAGE) *(volatile char *)(a->from + at) = 0;
  atomic_fetch_sub(&a->of->working, 1);
  free(a);
  return NULL;
}

// Has the system give a new block its pages, zeroed, in up to `threads` threads, and returns while they are at it.
void native_populate(void *block, int64_t bytes, int threads) {
  header *of = (header *)((char *)block - HEADER);
  int most = threads < 1 ? 1 : threads < MOST_THREADS ? threads : MOST_THREADS;
  int64_t each = (bytes / most / PAGE + 1) * PAGE;
  for (int64_t from = 0; from < bytes; from += each) {
    part *a = malloc(sizeof *a);
    if (a == NULL) return; // the pages come when they are touched
    *a = (part){of, (char *)block + from, from + each < bytes ? each : bytes - from};
    atomic_fetch_add(&of->working, 1);
    pthread_t thread;
    if (pthread_create(&thread, NULL, populate, a) == 0) pthread_detach(thread);
    else populate(a);
  }
}

// Whether no thread is at a block's pages any more; before that it must not be released.
int native_is_populated(void *block) { return atomic_load(&((header *)((char *)block - HEADER))->working) == 0; }

void native_release(void *block) {
  char *base = (char *)block - HEADER;
  munmap(base, (size_t) * (int64_t *)base);
}

void native_copy(void *to, const void *from, int64_t bytes) { memmove(to, from, (size_t)bytes); }
void native_zero(void *to, int64_t bytes) { memset(to, 0, (size_t)bytes); }
