// Matrix products by AVX-512: tiles of 8 rows and 48 columns in registers, over panels of b that are packed as they are needed.
//
// An element's sum is the same whatever the sizes of the product, the place of its row and column in it, and the number of
// threads: blocks of DEPTH terms from the first on, each in turn, and the blocks in turn. So an adapter's results do not depend
// on what it is co-batched with.
//
// A panel is DEPTH rows of PANEL columns of op(b): both ways of reading a frozen weight, W^T forward and W backward, end in one
// form, and so does one in fewer bits. Packing takes a tenth of the time at 264 rows.
#include "gemm.h"
#include "tiles.h"
#include <stdlib.h>

#ifdef __x86_64__

static int allowed;

// Lets gemm be used where the processor can: off where OpenBLAS's kernels are asked for.
int native_gemm(int allow) {
  __builtin_cpu_init();
  allowed = allow && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return allowed;
}
int gemm_works(void) { return allowed; }

// What a tile multiplies: `depth` terms, of rows that begin at row[i], `step` apart, and of a panel.
typedef struct {
  const float *row[ROWS];
  int64_t step;
  const float *b;
  int depth;
  const char *const *ahead; // lines to ask for: `each` for every STRIDE terms
  int each;
  tile_place to;
} tile_args;

ALWAYS void tile(const tile_args *t, const int vectors) {
  __m512 sum[ROWS][VECTORS];
  begin_sums(sum, &t->to, vectors);
  const float *r0 = t->row[0], *r1 = t->row[1], *r2 = t->row[2], *r3 = t->row[3];
  const float *r4 = t->row[4], *r5 = t->row[5], *r6 = t->row[6], *r7 = t->row[7];
  const float *b = t->b;
  const char *const *ahead = t->ahead;
  const int64_t step = t->step, end = t->depth * step;
  for (int64_t at = 0; at < end;) {
    for (const char *const *last = ahead + t->each; ahead < last; ahead++) __builtin_prefetch(*ahead, 0, 2);
    for (const int64_t stop = end - at < STRIDE * step ? end : at + STRIDE * step; at < stop; at += step, b += PANEL) {
      __m512 column[VECTORS];
      UNROLLED for (int j = 0; j < vectors; j++) column[j] = _mm512_load_ps(b + 16 * j);
#define TERM(i)                                                                                                                \
  {                                                                                                                            \
    __m512 value = _mm512_set1_ps(r##i[at]);                                                                                   \
    UNROLLED for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_fmadd_ps(value, column[j], sum[i][j]);                       \
  }
      TERM(0) TERM(1) TERM(2) TERM(3) TERM(4) TERM(5) TERM(6) TERM(7)
#undef TERM
    }
  }
  write_sums(sum, &t->to, vectors);
}

AVX512 static void tile_1(const tile_args *t) { tile(t, 1); }
AVX512 static void tile_2(const tile_args *t) { tile(t, 2); }
AVX512 static void tile_3(const tile_args *t) { tile(t, 3); }

// 16 values from element `at` on, in f32 or in bf16.
ALWAYS __m512 load(const void *b, int64_t at, __mmask16 mask, const int is_bf16) {
  if (!is_bf16) return _mm512_maskz_loadu_ps(mask, (const float *)b + at);
  __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)b + at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// A panel from rows of b, `ld` apart, that become its columns.
ALWAYS void turn_rows(const void *b, int64_t ld, int columns, int depth, float *to, const int is_bf16) {
  for (int first = 0; first < columns; first += 16)
    for (int k = 0; k < depth; k += 16) {
      __mmask16 mask = first_of_16(depth - k);
      __m512 r[16];
      UNROLLED for (int i = 0; i < 16; i++)
        r[i] = first + i < columns ? load(b, (first + i) * ld + k, mask, is_bf16) : _mm512_setzero_ps();
      transpose(r);
      UNROLLED for (int i = 0; i < 16; i++) _mm512_store_ps(to + (k + i) * PANEL + first, r[i]);
    }
}

// A panel from columns of b.
ALWAYS void take_columns(const void *b, int64_t ld, int columns, int depth, float *to, const int is_bf16) {
  for (int k = 0; k < depth; k++, to += PANEL)
    for (int first = 0; first < columns; first += 16) {
      __mmask16 mask = first_of_16(columns - first);
      _mm512_store_ps(to + first, load(b, k * ld + first, mask, is_bf16));
    }
}

AVX512 static void pack_transposed(const float *b, int64_t ld, int columns, int depth, float *to) {
  turn_rows(b, ld, columns, depth, to, 0);
}
AVX512 static void pack_plain(const float *b, int64_t ld, int columns, int depth, float *to) {
  take_columns(b, ld, columns, depth, to, 0);
}
AVX512 static void pack_transposed_bf16(const uint16_t *b, int64_t ld, int columns, int depth, float *to) {
  turn_rows(b, ld, columns, depth, to, 1);
}
AVX512 static void pack_plain_bf16(const uint16_t *b, int64_t ld, int columns, int depth, float *to) {
  take_columns(b, ld, columns, depth, to, 1);
}

// Of a weight in bf16, its values: those of all linears lie under each other. NULL of any other.
static const uint16_t *values_of(const packed_weight *w) {
  return w && w->format == PACKED_BF16 ? w->linears[0].codes : NULL;
}

// Columns [column, column + columns) and terms [k, k + depth) of op(b) as a panel; `rows` is room for as much.
static void pack(const gemm_args *g, int column, int columns, int k, int depth, float *to, float *rows) {
  const uint16_t *values = values_of(g->packed);
  if (values) {
    int64_t ld = g->packed->columns;
    if (g->trans_b) pack_transposed_bf16(values + column * ld + k, ld, columns, depth, to);
    else pack_plain_bf16(values + k * ld + column, ld, columns, depth, to);
    return;
  }
  const float *b = g->b;
  int64_t ld = g->ldb;
  if (!g->packed) b += g->trans_b ? column * ld + k : k * ld + column;
  else if (g->trans_b) packed_expand(g->packed, column, columns, k, depth, rows, ld = depth), b = rows;
  else packed_expand(g->packed, k, depth, column, columns, rows, ld = columns), b = rows;
  if (g->trans_b) pack_transposed(b, ld, columns, depth, to);
  else pack_plain(b, ld, columns, depth, to);
}

// What `pack` will read for a panel; nothing of a weight that is taken apart first.
static lines_ahead source_of(const gemm_args *g, int column, int columns, int k, int depth) {
  const uint16_t *values = values_of(g->packed);
  if (columns <= 0 || depth <= 0 || (g->packed && !values)) return (lines_ahead){0};
  int64_t size = values ? sizeof *values : sizeof *g->b, ld = size * (values ? g->packed->columns : g->ldb);
  const char *from = values ? (const char *)values : (const char *)g->b;
  if (g->trans_b) return lines_of(from + column * ld + k * size, ld, columns, depth * size);
  return lines_of(from + k * ld + column * size, ld, depth, columns * size);
}

// One panel of this thread, and room for the rows that it is packed from.
static float *panel_of_thread(void) {
  static _Thread_local float *panel;
  if (!panel) panel = aligned_alloc(64, sizeof(float) * PANEL * DEPTH * 2);
  if (!panel) abort(); // 216 KiB: the machine is beyond saving
  return panel;
}

// Rows [row, end) of c by columns [column, last). The columns from `following` on are needed next, where it is not below 0.
static void piece(const gemm_args *g, int row, int end, int column, int last, int following) {
  float *panel = panel_of_thread();
  const char *ahead[MOST_AHEAD + DEPTH / STRIDE];
  int k = 0;
  do {
    int depth = least(g->k - k, DEPTH);
    for (int first = column; first < last; first += PANEL) {
      int columns = least(last - first, PANEL), vectors = (columns + 15) / 16;
      tile_args t = {.b = panel, .depth = depth, .step = g->trans_a ? g->lda : 1, .ahead = ahead};
      t.to = (tile_place){.last = first_of_16(columns - 16 * (vectors - 1)), .alpha = g->alpha, .beta = k == 0 ? g->beta : 1, .ldc = g->ldc};
      pack(g, first, columns, k, depth, panel, panel + PANEL * DEPTH);
      int next = first + PANEL, next_k = k, next_last = last;
      if (next >= last) next = column, next_k = k + depth;
      if (next_k >= g->k) next = following, next_k = 0, next_last = following < 0 ? -1 : g->n;
      lines_ahead source = source_of(g, next, least(next_last - next, PANEL), next_k, least(g->k - next_k, DEPTH));
      for (int m = row; m < end; m += ROWS) {
        t.each = next_lines(&source, (end - m + ROWS - 1) / ROWS, depth, ahead);
        t.to.rows = least(end - m, ROWS);
        for (int i = 0; i < ROWS; i++) {
          int64_t r = m + least(i, t.to.rows - 1); // what is not written may be computed twice
          t.row[i] = g->a + (g->trans_a ? k * (int64_t)g->lda + r : r * g->lda + k);
        }
        t.to.c = g->c + m * (int64_t)g->ldc + first;
        if (vectors == 3) tile_3(&t);
        else if (vectors == 2) tile_2(&t);
        else tile_1(&t);
      }
    }
    k += depth;
  } while (k < g->k);
}

typedef struct {
  const gemm_args *g;
  cut to;
} gemm_pieces;

static void gemm_range(void *context, int64_t begin, int64_t end) {
  const gemm_pieces *p = context;
  const gemm_args *g = p->g;
  for (int64_t at = begin; at < end; at++) {
    int row = (int)(at / p->to.across) * p->to.rows, column = (int)(at % p->to.across) * p->to.columns;
    int64_t next = piece_after(at, begin, end);
    int following = next < 0 ? -1 : (int)(next % p->to.across) * p->to.columns;
    piece(g, row, least(row + p->to.rows, g->m), column, least(column + p->to.columns, g->n), following);
  }
}

static void cut_and_run(const gemm_args *g, int pieces) {
  if (g->m == 0 || g->n == 0) return;
  gemm_pieces p = {g, cut_of(g->m, g->n, pieces)};
  if (pieces == 1) gemm_range(&p, 0, p.to.all);
  else parallel(p.to.all, 1, gemm_range, &p);
}

void gemm(const gemm_args *g) { cut_and_run(g, pool_threads() == 1 ? 1 : 4 * pool_threads()); }
void gemm_here(const gemm_args *g) { cut_and_run(g, 1); }

#else
int native_gemm(int allow) {
  (void)allow;
  return 0;
}
int gemm_works(void) { return 0; }
void gemm(const gemm_args *g) {
  (void)g;
  abort();
}
void gemm_here(const gemm_args *g) {
  (void)g;
  abort();
}
#endif
