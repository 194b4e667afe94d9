// Products of rows with a weight in bf16: both factors in bf16, sums in f32. By AVX512-BF16 tiles and panels are those of
// gemm.c, with pairs of terms in the place of terms; where the processor has AMX, the same rows and panels are multiplied by
// that (gemm_amx.c).
//
// Rows are rounded to bf16 (to nearest, even between two; below the least normal number to zero) as they are needed: some at a
// time, to scratch. An element's sum is the same whatever the sizes of the product, the place of its row and column in it, and
// the number of threads: each instruction adds a pair of products, blocks of DEPTH pairs follow each other from the first on,
// and their sums are added in turn. So an adapter's results do not depend on what it is co-batched with.
#include "gemm_amx.h"
#include "packed.h"
#include <stdlib.h>
#include <string.h>

// Terms of a row that are rounded at a time, of MOST_ROWS rows: whole blocks. src/device/scratch.ts computes the room for them.
#define DEEPEST 6912

#ifdef __x86_64__

#define BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define ALWAYS_BF16 static inline __attribute__((always_inline)) BF16

// Whether the processor has what product_bf16 is made of.
int native_bf16(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

// What a tile multiplies: `depth` pairs, of rows that begin at row[i] and of a panel.
typedef struct {
  const int32_t *row[ROWS];
  const int32_t *b;
  int depth;
  const char *const *ahead; // lines to ask for: `each` for every STRIDE pairs
  int each;
  tile_place to;
} tile_args;

ALWAYS_BF16 void tile(const tile_args *t, const int vectors) {
  __m512 sum[ROWS][VECTORS];
  begin_sums(sum, &t->to, vectors);
  const int32_t *r0 = t->row[0], *r1 = t->row[1], *r2 = t->row[2], *r3 = t->row[3];
  const int32_t *r4 = t->row[4], *r5 = t->row[5], *r6 = t->row[6], *r7 = t->row[7];
  const int32_t *b = t->b;
  const char *const *ahead = t->ahead;
  const int64_t end = t->depth;
  for (int64_t at = 0; at < end;) {
    for (const char *const *last = ahead + t->each; ahead < last; ahead++) __builtin_prefetch(*ahead, 0, 2);
    for (const int64_t stop = end - at < STRIDE ? end : at + STRIDE; at < stop; at++, b += PANEL) {
      __m512bh column[VECTORS];
      UNROLLED for (int j = 0; j < vectors; j++) column[j] = (__m512bh)_mm512_load_si512(b + 16 * j);
#define PAIR(i)                                                                                                                \
  {                                                                                                                            \
    __m512bh value = (__m512bh)_mm512_set1_epi32(r##i[at]);                                                                    \
    UNROLLED for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], value, column[j]);                      \
  }
      PAIR(0) PAIR(1) PAIR(2) PAIR(3) PAIR(4) PAIR(5) PAIR(6) PAIR(7)
#undef PAIR
    }
  }
  write_sums(sum, &t->to, vectors);
}

BF16 static void tile_1(const tile_args *t) { tile(t, 1); }
BF16 static void tile_2(const tile_args *t) { tile(t, 2); }
BF16 static void tile_3(const tile_args *t) { tile(t, 3); }

static inline __mmask32 first_of_32(int count) { return count >= 32 ? 0xffffffff : (1u << count) - 1; }

// A panel from rows of the weight, which become its columns: `terms` of each, by pairs, the last with a zero if they are odd.
BF16 static void pack_rows(const uint16_t *w, int64_t ld, int columns, int terms, int32_t *to) {
  for (int first = 0; first < columns; first += 16)
    for (int k = 0; k < terms; k += 32) {
      __mmask32 mask = first_of_32(terms - k);
      __m512 r[16];
      UNROLLED for (int i = 0; i < 16; i++)
        r[i] = first + i < columns ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, w + (first + i) * ld + k)) : _mm512_setzero_ps();
      transpose(r);
      UNROLLED for (int i = 0; i < 16; i++) _mm512_store_ps((float *)(to + (k / 2 + i) * PANEL + first), r[i]);
    }
}

// A panel from columns of the weight: two rows of it are a row of pairs.
BF16 static void pack_columns(const uint16_t *w, int64_t ld, int columns, int terms, int32_t *to) {
  for (int k = 0; k < terms; k += 2, w += 2 * ld, to += PANEL)
    for (int first = 0; first < columns; first += 16) {
      __mmask16 mask = first_of_16(columns - first);
      __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w + first));
      __m512i high = k + 1 == terms ? _mm512_setzero_si512()
                                    : _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w + ld + first)), 16);
      _mm512_store_si512(to + first, _mm512_or_si512(low, high));
    }
}

// Some rows of a product that are rounded already, `terms` of each, by all of its columns.
typedef struct {
  const float *from; // f32, `lda` apart
  int64_t lda, pitch;
  int32_t *a; // rounded, by pairs, `pitch` apart
  int rows, terms, n, transposed;
  const uint16_t *w; // of these terms
  int64_t ldw;
  float beta, *c;
  int64_t ldc;
  cut to;
} block;

BF16 static void round_range(void *context, int64_t begin, int64_t end) {
  const block *b = context;
  for (int64_t row = begin; row < end; row++) {
    const float *from = b->from + row * b->lda;
    uint16_t *to = (uint16_t *)(b->a + row * b->pitch);
    for (int k = 0; k < b->terms; k += 32) {
      __m512 low = _mm512_maskz_loadu_ps(first_of_16(b->terms - k), from + k);
      __m512 high = b->terms - k > 16 ? _mm512_maskz_loadu_ps(first_of_16(b->terms - k - 16), from + k + 16) : _mm512_setzero_ps();
      _mm512_storeu_si512(to + k, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
}

// One panel of this thread.
static int32_t *panel_of_thread(void) {
  static _Thread_local int32_t *panel;
  if (!panel) panel = aligned_alloc(64, sizeof(int32_t) * PANEL * DEPTH);
  if (!panel) abort(); // 108 KiB: the machine is beyond saving
  return panel;
}

// What a panel is packed from.
static lines_ahead source_of(const block *b, int column, int columns, int k, int terms) {
  if (columns <= 0 || terms <= 0) return (lines_ahead){0};
  if (b->transposed) return lines_of(b->w + column * b->ldw + k, 2 * b->ldw, columns, 2 * terms);
  return lines_of(b->w + k * b->ldw + column, 2 * b->ldw, terms, 2 * columns);
}

// As much as AMX reads of a panel that has `depth` pairs is zero beyond them.
static void zero_end(int32_t *panel, int depth) {
  int whole = (depth + AMX_STEP - 1) / AMX_STEP * AMX_STEP;
  memset(panel + depth * PANEL, 0, sizeof(int32_t) * PANEL * (size_t)(whole - depth));
}

// Rows [row, end) of c by columns [column, last). The columns from `following` on are needed next, where it is not below 0.
static void piece(const block *b, int row, int end, int column, int last, int following) {
  int32_t *panel = panel_of_thread();
  const int amx = amx_works();
  const char *ahead[MOST_AHEAD + DEPTH / STRIDE];
  for (int k = 0; k < b->terms; k += 2 * DEPTH) {
    int terms = least(b->terms - k, 2 * DEPTH);
    for (int first = column; first < last; first += PANEL) {
      int columns = least(last - first, PANEL), vectors = (columns + 15) / 16;
      tile_args t = {.b = panel, .depth = (terms + 1) / 2, .ahead = ahead};
      t.to = (tile_place){.last = first_of_16(columns - 16 * (vectors - 1)), .alpha = 1, .beta = k == 0 ? b->beta : 1, .ldc = b->ldc};
      if (b->transposed) pack_rows(b->w + first * b->ldw + k, b->ldw, columns, terms, panel);
      else pack_columns(b->w + k * b->ldw + first, b->ldw, columns, terms, panel);
      int next = first + PANEL, next_k = k, next_last = last;
      if (next >= last) next = column, next_k = k + 2 * DEPTH;
      if (next_k >= b->terms) next = following, next_k = 0, next_last = following < 0 ? -1 : b->n;
      lines_ahead source = source_of(b, next, least(next_last - next, PANEL), next_k, least(b->terms - next_k, 2 * DEPTH));
      if (amx) zero_end(panel, t.depth);
      for (int m = row; m < end && amx; m += AMX_ROWS) {
        amx_args a = {b->a + m * b->pitch + k / 2, b->pitch, panel, t.depth, vectors, ahead, 0, t.to};
        a.each = next_lines(&source, (end - m + AMX_ROWS - 1) / AMX_ROWS, t.depth, ahead);
        a.to.rows = least(end - m, AMX_ROWS), a.to.c = b->c + m * b->ldc + first;
        amx_tile(&a);
      }
      for (int m = row; m < end && !amx; m += ROWS) {
        t.each = next_lines(&source, (end - m + ROWS - 1) / ROWS, t.depth, ahead);
        t.to.rows = least(end - m, ROWS);
        for (int i = 0; i < ROWS; i++) // what is not written may be computed twice
          t.row[i] = b->a + (m + least(i, t.to.rows - 1)) * b->pitch + k / 2;
        t.to.c = b->c + m * b->ldc + first;
        if (vectors == 3) tile_3(&t);
        else if (vectors == 2) tile_2(&t);
        else tile_1(&t);
      }
    }
  }
}

static void block_range(void *context, int64_t begin, int64_t end) {
  const block *b = context;
  if (amx_works()) amx_begin();
  for (int64_t at = begin; at < end; at++) {
    int row = (int)(at / b->to.across) * b->to.rows, column = (int)(at % b->to.across) * b->to.columns;
    int64_t next = piece_after(at, begin, end);
    int following = next < 0 ? -1 : (int)(next % b->to.across) * b->to.columns;
    piece(b, row, least(row + b->to.rows, b->rows), column, least(column + b->to.columns, b->n), following);
  }
  if (amx_works()) amx_end();
}

static void multiply_block(block *b) {
  b->to = cut_of(b->rows, b->n, pool_threads() == 1 ? 1 : 4 * pool_threads());
  parallel(b->rows, ROWS, round_range, b);
  parallel(b->to.all, 1, block_range, b);
}

// c[m, n] = a op(w) + beta c with a weight in bf16, [n, k] where op transposes, else [k, n]; a is rounded to bf16. `scratch`
// has room for MOST_ROWS or m rows, and 15 that AMX may read after them, of DEEPEST or k values of 16 bits, k rounded up to 32.
void product_bf16(int transposed, int m, int n, int k, const float *a, int lda, const packed_weight *w, float beta, float *c, int ldc,
                  void *scratch) {
  const uint16_t *codes = w->linears[0].codes; // those of all linears lie under each other
  for (int row = 0; row < m; row += MOST_ROWS)
    for (int from = 0; from < k; from += DEEPEST) {
      block b = {.from = a + row * (int64_t)lda + from, .lda = lda, .a = scratch, .rows = least(m - row, MOST_ROWS),
                 .terms = least(k - from, DEEPEST), .n = n, .transposed = transposed, .ldw = w->columns,
                 .w = codes + (transposed ? from : from * w->columns), .beta = from == 0 ? beta : 1,
                 .c = c + row * (int64_t)ldc, .ldc = ldc};
      b.pitch = (b.terms + 31) / 32 * 16;
      multiply_block(&b);
    }
}

#else
int native_bf16(void) { return 0; }
void product_bf16(int transposed, int m, int n, int k, const float *a, int lda, const packed_weight *w, float beta, float *c, int ldc,
                  void *scratch) {
  (void)transposed, (void)m, (void)n, (void)k, (void)a, (void)lda, (void)w, (void)beta, (void)c, (void)ldc, (void)scratch;
  abort();
}
#endif
