// Matrix products: ours (gemm.c) where the processor has AVX-512, else OpenBLAS's sgemm on one thread for each piece of the
// output, pieces shared by our threads.
//
// A row's sums must not depend on how many rows there are (an adapter's results may not depend on what it is co-batched with).
// Two things see to that: pieces begin at multiples of ROW_TILE rows, where all of OpenBLAS's x86 kernels do the same sums for
// a row whatever comes after it; and the call is column-major, since the row-major one takes another path for some sizes.
#include "gemm.h"

#define ROW_TILE 24 // rows: src/device/tile.ts has the same
#define TALL (20 * ROW_TILE)

// Columns of a piece at most, and its rows where few pieces lie side by side: large pieces waste least (8 % on two cores), but
// a machine of many cores needs many. By the machine's cores, not by our threads: stages that share a machine must not sum
// differently from one that has it for itself. src/ops/linear/frozen.ts computes with the columns too.
static int widest(void) { return machine_cores() <= 2 ? 288 : 192; }
static int shortest(void) { return machine_cores() <= 2 ? 12 * ROW_TILE : 4 * ROW_TILE; }

enum { ROW_MAJOR = 101, COLUMN_MAJOR = 102, PLAIN = 111, TRANSPOSED = 112 };

typedef struct {
  sgemm_fn sgemm;
  int trans_a, trans_b, m, n, k, lda, ldb, ldc, rows, columns;
  float alpha, beta;
  const float *a, *b;
  float *c;
  const packed_weight *packed; // instead of b, or NULL
  float *scratch;              // of each thread, one piece of it as f32
} product_args;

// The columns of op(b) that a piece multiplies: in place, or expanded to the thread's scratch.
static const float *columns_of(const product_args *p, int column, int columns, int *ld) {
  *ld = p->ldb;
  if (!p->packed) return p->b + (p->trans_b ? (int64_t)column * p->ldb : column);
  float *to = p->scratch + (int64_t)thread_number() * p->columns * p->k;
  if (!p->trans_b) *ld = columns;
  if (p->trans_b) packed_expand(p->packed, column, columns, 0, p->k, to, *ld);
  else packed_expand(p->packed, 0, p->k, column, columns, to, *ld);
  return to;
}

static void product_range(void *context, int64_t begin, int64_t end) {
  const product_args *p = context;
  int across = (p->n + p->columns - 1) / p->columns;
  for (int64_t piece = begin; piece < end; piece++) {
    int row = (int)(piece / across) * p->rows, column = (int)(piece % across) * p->columns;
    int rows = p->m - row < p->rows ? p->m - row : p->rows, columns = p->n - column < p->columns ? p->n - column : p->columns;
    const float *a = p->a + (p->trans_a ? row : (int64_t)row * p->lda);
    int ldb;
    const float *b = columns_of(p, column, columns, &ldb);
    p->sgemm(COLUMN_MAJOR, p->trans_b ? TRANSPOSED : PLAIN, p->trans_a ? TRANSPOSED : PLAIN, columns, rows, p->k, p->alpha, b, ldb,
             a, p->lda, p->beta, p->c + (int64_t)row * p->ldc + column, p->ldc);
  }
}

static void cut_and_run(product_args p) {
  if (p.m == 0 || p.n == 0) return;
  int pair = 2 * widest(), across = (p.n + pair - 1) / pair * 2; // even: most machines have an even number of cores
  p.columns = ((p.n + across - 1) / across + 15) / 16 * 16;
  p.rows = across < 8 ? shortest() : TALL;
  across = (p.n + p.columns - 1) / p.columns;
  parallel((int64_t)((p.m + p.rows - 1) / p.rows) * across, 1, product_range, &p);
}

// c[m, n] = alpha op(a) op(b) + beta c, all row-major; op transposes where asked: a is then [k, m], b [n, k].
void product(sgemm_fn sgemm, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
             const float *b, int ldb, float beta, float *c, int ldc) {
  gemm_args g = {trans_a, trans_b, m, n, k, alpha, beta, a, lda, b, NULL, ldb, c, ldc};
  if (gemm_works()) gemm(&g);
  else cut_and_run((product_args){sgemm, trans_a, trans_b, m, n, k, lda, ldb, ldc, 0, 0, alpha, beta, a, b, c, NULL, NULL});
}

// As `product`, small and in the calling thread.
void product_here(sgemm_fn sgemm, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                  const float *b, int ldb, float beta, float *c, int ldc) {
  gemm_args g = {trans_a, trans_b, m, n, k, alpha, beta, a, lda, b, NULL, ldb, c, ldc};
  if (gemm_works()) gemm_here(&g);
  else sgemm(ROW_MAJOR, trans_a ? TRANSPOSED : PLAIN, trans_b ? TRANSPOSED : PLAIN, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// c[m, n] = a op(w) + beta c with a packed w, [n, k] where op transposes, else [k, n]: the same sums as over w in f32.
// `scratch` has room for widest() * k values for each thread.
void product_packed(sgemm_fn sgemm, int transposed, int m, int n, int k, const float *a, int lda, const packed_weight *w, float beta,
                    float *c, int ldc, float *scratch) {
  gemm_args g = {0, transposed, m, n, k, 1, beta, a, lda, NULL, w, 0, c, ldc};
  if (gemm_works()) gemm(&g);
  else cut_and_run((product_args){sgemm, 0, transposed, m, n, k, lda, transposed ? k : n, ldc, 0, 0, 1, beta, a, NULL, c, w, scratch});
}
