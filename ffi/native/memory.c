// Memory of the cpu device: aligned for vector loads, and returned to the system when released.
#include <stddef.h>
#include <stdint.h>
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

void native_release(void *block) {
  char *base = (char *)block - HEADER;
  munmap(base, (size_t) * (int64_t *)base);
}

void native_copy(void *to, const void *from, int64_t bytes) { memmove(to, from, (size_t)bytes); }
void native_zero(void *to, int64_t bytes) { memset(to, 0, (size_t)bytes); }
