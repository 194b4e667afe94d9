// DoRA: the norms of the rows of W + scale B A, and their lengths as factors. Formulas: src/ops/dora.ts.
#include "native.h"
#include <math.h>

#define COLUMNS 64 // columns of a row that are summed together, and that a thread takes at a time
#define MOST_RANK 256 // src/methods/definition.ts has the same

typedef struct {
  const float *weight, *a, *b;
  int width, rank, stride, begins;
  float scale, *m, *gain, *inverse;
} norm_args;

static void norm_range(void *context, int64_t begin, int64_t end) {
  const norm_args *n = context;
  for (int64_t row = begin; row < end; row++) {
    const float *w = n->weight + row * n->width;
    float b[MOST_RANK];
    for (int r = 0; r < n->rank; r++) b[r] = n->b[(int64_t)r * n->stride + row];
    double squares = 0;
    for (int first = 0; first < n->width; first += COLUMNS) {
      int count = n->width - first < COLUMNS ? n->width - first : COLUMNS;
      float sums[COLUMNS] = {0};
      for (int r = 0; r < n->rank; r++)
        for (int i = 0; i < count; i++) sums[i] = fused(b[r], n->a[(int64_t)r * n->width + first + i], sums[i]);
      for (int i = 0; i < count; i++) {
        double value = fused(n->scale, sums[i], w[first + i]);
        squares = __builtin_fma(value, value, squares);
      }
    }
    float norm = (float)sqrt(squares);
    if (n->begins) n->m[row] = norm;
    n->inverse[row] = norm > 0 ? 1 / norm : 0;
    n->gain[row] = norm > 0 ? n->m[row] / norm : 0;
  }
}

// Rows of one linear of one adapter: weight [rows, width], a [rank, width], transposed b [rank, rows], its rows `stride` apart.
void dora_norm(const float *weight, const float *a, const float *b, int rows, int width, int rank, int stride, float scale,
               float *m, float *gain, float *inverse, int begins) {
  norm_args args = {weight, a, b, width, rank, stride, begins, scale, m, gain, inverse};
  parallel(rows, 1, norm_range, &args);
}

typedef struct {
  const float *z, *gain, *bias, *residual;
  float *y;
  int width;
} forward_args;

static void forward_range(void *context, int64_t begin, int64_t end) {
  const forward_args *f = context;
  for (int64_t row = begin; row < end; row++)
    for (int n = 0; n < f->width; n++) {
      int64_t i = row * f->width + n;
      float y = f->gain[n] * f->z[i];
      if (f->bias) y += f->bias[n];
      if (f->residual) y += f->residual[i];
      f->y[i] = y;
    }
}

// The rows of one adapter.
void dora_forward(const float *z, const float *gain, const float *bias, const float *residual, float *y, int rows, int width) {
  forward_args args = {z, gain, bias, residual, y, width};
  parallel(rows, 1, forward_range, &args);
}

typedef struct {
  const float *dy, *gain, *inverse;
  float *z, *dm;
  int rows, width;
} backward_args;

static void backward_range(void *context, int64_t begin, int64_t end) {
  const backward_args *b = context;
  for (int64_t first = begin; first < end; first += COLUMNS) {
    int count = end - first < COLUMNS ? (int)(end - first) : COLUMNS;
    float sums[COLUMNS] = {0};
    for (int64_t row = 0; row < b->rows; row++) {
      const float *dy = b->dy + row * b->width + first;
      float *z = b->z + row * b->width + first;
      for (int i = 0; i < count; i++) {
        sums[i] = fused(dy[i], z[i], sums[i]);
        z[i] = b->gain[first + i] * dy[i];
      }
    }
    for (int i = 0; i < count; i++) b->dm[first + i] = fused(b->inverse[first + i], sums[i], b->dm[first + i]);
  }
}

// The rows of one adapter, each column from row to row.
void dora_backward(const float *dy, float *z, const float *gain, const float *inverse, float *dm, int rows, int width) {
  backward_args args = {dy, gain, inverse, z, dm, rows, width};
  parallel(width, COLUMNS, backward_range, &args);
}
