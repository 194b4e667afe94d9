// What products by AVX-512 share: how their functions are compiled, sizes of tiles, how a product is cut into pieces, and how
// words are turned in registers and sums written.
#pragma once
#include "native.h"

#ifdef __x86_64__

#define ROWS 8         // of a tile
#define VECTORS 3      // of 16 columns, of a tile
#define PANEL (16 * VECTORS)
#define DEPTH 576      // words of a block's columns: a panel of it is 108 KiB
#define MOST_PANELS 6  // of a piece: those of a block read the same part of its rows, which stays in the second cache
#define MOST_ROWS 480  // of a piece

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
// Of loops over arrays that are to lie in registers.
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif
#define ALWAYS static inline __attribute__((always_inline)) AVX512

static inline int least(int a, int b) { return a < b ? a : b; }

// Masks of the first `count` of a vector, of all where there are more.
static inline __mmask16 first_of_16(int count) { return count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1); }

// How a product is cut into pieces.
typedef struct {
  int rows, columns; // of a piece
  int across, all;   // pieces side by side, and in all
} cut;

// Of m rows by n columns, to about as many pieces.
static inline cut cut_of(int m, int n, int pieces) {
  int panels = (n + PANEL - 1) / PANEL, wide = least(panels / pieces, MOST_PANELS);
  cut c = {least(m, MOST_ROWS), (wide > 1 ? wide : 1) * PANEL, 0, 0};
  c.across = (n + c.columns - 1) / c.columns;
  if (2 * c.across < pieces) { // every piece packs its own panel: no more of them than are needed
    int down = pieces / (2 * c.across), rows = (m + down - 1) / down;
    c.rows = least(c.rows, (rows + 3 * ROWS - 1) / (3 * ROWS) * (3 * ROWS));
  }
  c.all = c.across * ((m + c.rows - 1) / c.rows);
  return c;
}

// Which piece the thread that computes piece `at` of [begin, end) takes next, as far as is known: those of a pool are taken
// from the last to the first (parallel.c), by threads that are about as fast. Below 0: none.
static inline int64_t piece_after(int64_t at, int64_t begin, int64_t end) {
  return at + 1 < end ? at + 1 : begin - pool_threads() * (end - begin);
}

// Weights come from memory: what the next panel is packed from is asked for while this one is multiplied, in its last LATE
// tiles (before, it falls out of the second cache again), some lines between any STRIDE terms (more at once hold up the tile's
// own reads, which miss the first cache). docs/measurements.md has what each is worth.
#define STRIDE 16
#define LATE 6
#define MOST_AHEAD 512 // lines that a tile asks for
#define LINE 64

typedef struct {
  const char *row;
  int64_t pitch;   // bytes from row to row
  int lines, left; // lines of a row, rows that are left
  int line;        // of this row
} lines_ahead;

// Of `rows` rows that begin at `from`, `width` bytes of each.
static inline lines_ahead lines_of(const void *from, int64_t pitch, int rows, int64_t width) {
  int apart = (((uintptr_t)from | (uintptr_t)pitch) & (LINE - 1)) != 0; // a row may touch one line more
  return (lines_ahead){from, pitch, (int)((width + LINE - 1) / LINE) + apart, rows < 0 ? 0 : rows, 0};
}

// Its lines for the first of `tiles` tiles that are left, which is `depth` terms deep; returns how many for each STRIDE terms.
// The last stands there again where there are fewer.
static inline int next_lines(lines_ahead *s, int tiles, int depth, const char *to[MOST_AHEAD + DEPTH / STRIDE]) {
  if (tiles > LATE || s->left == 0) return 0;
  int share = least((s->left * s->lines + tiles - 1) / tiles, MOST_AHEAD), strides = depth > 0 ? (depth + STRIDE - 1) / STRIDE : 1, count = 0;
  for (; count < share && s->left > 0; count++) {
    to[count] = s->row + LINE * s->line;
    if (++s->line == s->lines) s->line = 0, s->row += s->pitch, s->left--;
  }
  int each = (count + strides - 1) / strides;
  for (; count < each * strides; count++) to[count] = to[count - 1];
  return each;
}

// Where a tile's sums go: c = alpha sum + beta c.
typedef struct {
  int rows;       // that are written
  __mmask16 last; // of the last vector of columns
  float alpha, beta;
  float *c;
  int64_t ldc;
} tile_place;

ALWAYS void begin_sums(__m512 sum[ROWS][VECTORS], const tile_place *to, const int vectors) {
  UNROLLED for (int i = 0; i < ROWS; i++)
    UNROLLED for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_setzero_ps();
  UNROLLED for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < vectors; j++)
      if (i < to->rows) __builtin_prefetch(to->c + i * to->ldc + 16 * j, 1, 3);
}

ALWAYS void write_sums(__m512 sum[ROWS][VECTORS], const tile_place *to, const int vectors) {
  __m512 alpha = _mm512_set1_ps(to->alpha), beta = _mm512_set1_ps(to->beta);
  const __mmask16 last = to->last;
  UNROLLED for (int i = 0; i < ROWS; i++) {
    if (i >= to->rows) break;
    float *c = to->c + i * to->ldc;
    UNROLLED for (int j = 0; j < vectors; j++) {
      __mmask16 mask = j == vectors - 1 ? last : 0xffff;
      __m512 before = to->beta == 0 ? _mm512_setzero_ps() : _mm512_mul_ps(beta, _mm512_maskz_loadu_ps(mask, c + 16 * j));
      _mm512_mask_storeu_ps(c + 16 * j, mask, _mm512_fmadd_ps(alpha, sum[i][j], before));
    }
  }
}

// Transposes 16 by 16 values in registers.
ALWAYS void transpose(__m512 r[16]) {
  __m512 t[16];
  UNROLLED for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  UNROLLED for (int i = 0; i < 16; i += 4)
    UNROLLED for (int j = 0; j < 2; j++) {
      __m512d low = _mm512_castps_pd(t[i + j]), high = _mm512_castps_pd(t[i + 2 + j]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  UNROLLED for (int i = 0; i < 4; i++) { // r[4 g + i]: of rows 4 g to 4 g + 3, columns i, i + 4, i + 8, i + 12
    __m512 a = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
    __m512 c = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd), d = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
    t[i] = _mm512_shuffle_f32x4(a, b, 0x88);
    t[8 + i] = _mm512_shuffle_f32x4(a, b, 0xdd);
    t[4 + i] = _mm512_shuffle_f32x4(c, d, 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
  UNROLLED for (int i = 0; i < 16; i++) r[i] = t[i];
}
#endif
