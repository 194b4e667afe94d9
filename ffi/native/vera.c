// VeRA: factors out of frozen random projections and trained vectors, and back. Formulas: src/ops/vera.ts.
#include "native.h"

typedef struct {
  float *factor, *vector;
  int rows, columns, ld;
  uint32_t key;
  float bound;
} vera_args;

// Element `index` of a projection: methods/projection.ts.
static inline float draw(uint32_t key, uint32_t index, float bound) {
  return ((float)(int32_t)(mix(key ^ index) >> 8) * 0x1p-23f - 1.0f) * bound;
}

// A[r, k] = d[r] draw(r ld + k)
static void expand_a_range(void *context, int64_t begin, int64_t end) {
  const vera_args *a = context;
  for (int64_t r = begin; r < end; r++) {
    float *row = a->factor + r * a->columns, scale = a->vector[r];
    uint32_t first = (uint32_t)(r * a->ld);
    for (int k = 0; k < a->columns; k++) row[k] = draw(a->key, first + (uint32_t)k, a->bound) * scale;
  }
}

// B[n, r] = b[n] draw(n rank + r), held as [rank, n]
static void expand_b_range(void *context, int64_t begin, int64_t end) {
  const vera_args *a = context;
  for (int64_t r = begin; r < end; r++) {
    float *row = a->factor + r * a->columns;
    for (int n = 0; n < a->columns; n++)
      row[n] = draw(a->key, (uint32_t)n * (uint32_t)a->ld + (uint32_t)r, a->bound) * a->vector[n];
  }
}

// One linear of one adapter: A [rank, columns] or, with `is_b`, the transposed B [rank, columns]. `ld`: elements of a row of
// the projection.
void vera_expand(float *factor, float *vector, int rank, int columns, int ld, int is_b, uint32_t key, float bound) {
  parallel(rank, 1, is_b ? expand_b_range : expand_a_range, &(vera_args){factor, vector, rank, columns, ld, key, bound});
}

static void reduce_a_range(void *context, int64_t begin, int64_t end) {
  const vera_args *a = context;
  for (int64_t r = begin; r < end; r++) {
    float *row = a->factor + r * a->columns;
    uint32_t first = (uint32_t)(r * a->ld);
    double sum = 0;
    for (int k = 0; k < a->columns; k++) {
      sum = __builtin_fma(row[k], draw(a->key, first + (uint32_t)k, a->bound), sum);
      row[k] = 0;
    }
    a->vector[r] += (float)sum;
  }
}

#define BLOCK 64 // columns that are summed together

static void reduce_b_range(void *context, int64_t begin, int64_t end) {
  const vera_args *a = context;
  for (int64_t first = begin; first < end; first += BLOCK) {
    int count = end - first < BLOCK ? (int)(end - first) : BLOCK;
    double sums[BLOCK] = {0};
    for (int64_t r = 0; r < a->rows; r++) {
      float *row = a->factor + r * a->columns + first;
      for (int i = 0; i < count; i++) {
        sums[i] = __builtin_fma(row[i], draw(a->key, (uint32_t)(first + i) * (uint32_t)a->ld + (uint32_t)r, a->bound), sums[i]);
        row[i] = 0;
      }
    }
    for (int i = 0; i < count; i++) a->vector[first + i] += (float)sums[i];
  }
}

// The gradient of the vector, added to what it has; that of the factor becomes 0.
void vera_reduce(float *grad, float *vector, int rank, int columns, int ld, int is_b, uint32_t key, float bound) {
  vera_args args = {grad, vector, rank, columns, ld, key, bound};
  if (is_b) parallel(columns, BLOCK, reduce_b_range, &args);
  else parallel(rank, 1, reduce_a_range, &args);
}
