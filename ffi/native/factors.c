// Values of adapters on their way between files, blocks and devices: turned, drawn, rounded, checked.
//
// Any thread of the program may call these, also while kernels run: each call has threads of its own, not those of parallel.c.
#include "native.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#define MOST_THREADS 16
#define PIECE (1 << 16) // elements that a thread takes at a time
#define TILE 16

typedef struct {
  range_fn fn;
  void *context;
  int64_t n, piece;
  _Atomic int64_t next;
} shared_work;

static void *take_pieces(void *context) {
  shared_work *work = context;
  for (;;) {
    int64_t begin = atomic_fetch_add(&work->next, work->piece), end = begin + work->piece;
    if (begin >= work->n) return NULL;
    work->fn(work->context, begin, end < work->n ? end : work->n);
  }
}

// Calls fn on pieces of [0, n) in up to `threads` threads, the caller among them; returns when all is done.
static void spread(int threads, int64_t n, int64_t piece, range_fn fn, void *context) {
  shared_work work = {.fn = fn, .context = context, .n = n, .piece = piece, .next = 0};
  pthread_t others[MOST_THREADS];
  int started = 0, most = threads < MOST_THREADS ? threads : MOST_THREADS;
  for (int64_t left = (n + piece - 1) / piece; started + 1 < most && started + 1 < left; started++)
    if (pthread_create(&others[started], NULL, take_pieces, &work) != 0) break;
  take_pieces(&work);
  for (int i = 0; i < started; i++) pthread_join(others[i], NULL);
}

typedef struct {
  const void *from;
  void *to;
  int rows, columns;
} turn_args;

// Columns [begin, end) of `from` become rows: tiles whose lines stay in the cache are read by rows and written by rows.
#define TURN(name, type)                                                                                                       \
  static void name(void *context, int64_t begin, int64_t end) {                                                                \
    const turn_args *a = context;                                                                                              \
    const type *from = a->from;                                                                                                \
    type *to = a->to, tile[TILE][TILE];                                                                                        \
    int64_t rows = a->rows, columns = a->columns;                                                                              \
    for (int64_t column = begin; column < end; column += TILE)                                                                 \
      for (int64_t row = 0; row < rows; row += TILE) {                                                                         \
        int64_t high = rows - row < TILE ? rows - row : TILE, wide = end - column < TILE ? end - column : TILE;                \
        for (int64_t i = 0; i < high; i++)                                                                                     \
          for (int64_t j = 0; j < wide; j++) tile[j][i] = from[(row + i) * columns + column + j];                              \
        for (int64_t j = 0; j < wide; j++) memcpy(to + (column + j) * rows + row, tile[j], high * sizeof(type));               \
      }                                                                                                                        \
  }
TURN(turn_words, uint32_t)
TURN(turn_bytes, uint8_t)

// to[c, r] = from[r, c], elements of 4 bytes or of 1.
void factor_turn(int threads, const void *from, void *to, int rows, int columns, int bytes) {
  turn_args a = {from, to, rows, columns};
  int64_t few = PIECE / (rows < PIECE ? rows > 0 ? rows : 1 : PIECE); // columns of a piece: whole tiles
  spread(threads, columns, (few + TILE - 1) / TILE * TILE, bytes == 4 ? turn_words : turn_bytes, &a);
}

typedef struct {
  float *out;
  uint32_t key;
  double scale;
} draw_args;

// The stream of base/rng.ts.
static inline uint32_t bits_at(uint32_t key, uint32_t counter) { return mix(mix(counter ^ key) + key + (counter >> 16)); }
static inline double uniform_at(uint32_t key, uint32_t counter) { return (double)(int32_t)(bits_at(key, counter) >> 8) * 0x1p-24; }

static void uniform_range(void *context, int64_t begin, int64_t end) {
  const draw_args *a = context;
  for (int64_t i = begin; i < end; i++) a->out[i] = (float)((2 * uniform_at(a->key, (uint32_t)i) - 1) * a->scale);
}

static void normal_range(void *context, int64_t begin, int64_t end) {
  const draw_args *a = context;
  for (int64_t i = begin; i < end; i++) {
    uint32_t counter = 2 * (uint32_t)i;
    double length = sqrt(-2 * log(1 - uniform_at(a->key, counter)));
    a->out[i] = (float)(length * cos(2 * 3.141592653589793 * uniform_at(a->key, counter + 1)) / a->scale);
  }
}

// The first n numbers of a stream: out[i] uniform in [-bound, bound).
void factor_uniform(int threads, float *out, int64_t n, uint32_t key, double bound) {
  spread(threads, n, PIECE, uniform_range, &(draw_args){out, key, bound});
}

// The same, standard normal, divided by `divisor`.
void factor_normal(int threads, float *out, int64_t n, uint32_t key, double divisor) {
  spread(threads, n, PIECE, normal_range, &(draw_args){out, key, divisor});
}

typedef struct {
  const uint32_t *from;
  uint16_t *to;
  atomic_int *odd;
} bits_args;

static void bf16_range(void *context, int64_t begin, int64_t end) {
  const bits_args *a = context;
  for (int64_t i = begin; i < end; i++) {
    uint32_t u = a->from[i], rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    a->to[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded);
  }
}

// f32 to bf16, to nearest even; NaN stays NaN.
void factor_bf16(int threads, const float *from, uint16_t *to, int64_t n) {
  spread(threads, n, PIECE, bf16_range, &(bits_args){.from = (const uint32_t *)from, .to = to});
}

static void finite_range(void *context, int64_t begin, int64_t end) {
  const bits_args *a = context;
  uint32_t odd = 0;
  for (int64_t i = begin; i < end; i++) odd |= (a->from[i] & 0x7f800000) == 0x7f800000;
  if (odd) atomic_store(a->odd, 1);
}

// Whether all are finite numbers.
int factor_finite(int threads, const float *from, int64_t n) {
  atomic_int odd = 0;
  spread(threads, n, PIECE, finite_range, &(bits_args){.from = (const uint32_t *)from, .odd = &odd});
  return odd == 0;
}

typedef struct {
  const uint8_t *from;
  uint8_t *to;
} copy_args;

static void copy_range(void *context, int64_t begin, int64_t end) {
  const copy_args *a = context;
  memcpy(a->to + begin, a->from + begin, (size_t)(end - begin));
}

// Bytes from one place to another that is new: most of the time goes into the pages that it is given.
void factor_copy(int threads, const void *from, void *to, int64_t bytes) {
  spread(threads, bytes, 1 << 20, copy_range, &(copy_args){from, to});
}

typedef struct {
  int fd;
  int64_t from;
  const uint8_t *bytes;
  atomic_int *found;
} file_args;

static void file_range(void *context, int64_t begin, int64_t end) {
  const file_args *a = context;
  uint8_t read[1 << 16];
  for (int64_t at = begin; at < end && atomic_load(a->found) == 1;) {
    size_t most = end - at < (int64_t)sizeof read ? (size_t)(end - at) : sizeof read;
    ssize_t got = pread(a->fd, read, most, a->from + at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) atomic_store(a->found, -errno);
    else if (got == 0 || memcmp(read, a->bytes + at, (size_t)got) != 0) atomic_store(a->found, 0);
    at += got;
  }
}

// 1 where the file has these bytes from byte `from` on, 0 where it has others or ends, and -errno where it cannot be read.
int factor_in_file(int threads, int fd, int64_t from, const void *bytes, int64_t count) {
  atomic_int found = 1;
  spread(threads, count, 1 << 20, file_range, &(file_args){fd, from, bytes, &found});
  return found;
}

// Begins to write a part of a file to the disk, so that its sync has less to wait for; what fails, that reports.
void file_begin_sync(int fd, int64_t from, int64_t bytes) { sync_file_range(fd, from, bytes, SYNC_FILE_RANGE_WRITE); }
