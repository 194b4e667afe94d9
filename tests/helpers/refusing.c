// A machine that has less memory than it says: loaded before the C library, it refuses what the native kernels' library asks
// for beyond MLORA_TEST_BYTES in all, in each process. The program's children inherit no LD_PRELOAD from it: they are given it
// again.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 256

static struct {
  void *at;
  long bytes;
} held[MOST];

static long taken(void) {
  long all = 0;
  for (int i = 0; i < MOST; i++) all += held[i].bytes;
  return all;
}

static int from_native(void *caller) {
  Dl_info info;
  return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "libmlora");
}

static char preload[4096];

__attribute__((constructor)) static void find_itself(void) {
  Dl_info info;
  if (dladdr(preload, &info)) snprintf(preload, sizeof preload, "LD_PRELOAD=%s", info.dli_fname);
}

int execve(const char *path, char *const arguments[], char *const environment[]) {
  int count = 0;
  while (environment[count]) count++;
  char *with[count + 2]; // on the stack: a fork may not allocate
  memcpy(with, environment, count * sizeof *with);
  with[count] = preload;
  with[count + 1] = NULL;
  return (int)syscall(SYS_execve, path, arguments, with);
}

void *mmap(void *where, size_t bytes, int protection, int flags, int fd, off_t offset) {
  const char *limit = getenv("MLORA_TEST_BYTES");
  int ours = limit && from_native(__builtin_return_address(0));
  if (ours && taken() + (long)bytes > atol(limit)) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  void *at = (void *)syscall(SYS_mmap, where, bytes, protection, flags, fd, offset);
  for (int i = 0; ours && i < MOST; i++)
    if (!held[i].at) {
      held[i].at = at;
      held[i].bytes = (long)bytes;
      break;
    }
  return at;
}

int munmap(void *where, size_t bytes) {
  for (int i = 0; i < MOST; i++)
    if (held[i].at == where) held[i].at = NULL, held[i].bytes = 0;
  return (int)syscall(SYS_munmap, where, bytes);
}
