// VeRA: factors out of frozen random projections and trained vectors, and back. Formulas: src/ops/vera.ts.
#include "native.h"

typedef struct {
  float *factor, *vector;
  int columns, ld, stride;
  uint32_t key;
  float bound;
} vera_args;

// Element `index` of a projection: methods/projection.ts.
static inline float draw(uint32_t key, uint32_t index, float bound) {
  return ((float)(int32_t)(mix(key ^ index) >> 8) * 0x1p-23f - 1.0f) * bound;
}

static void expand_range(void *context, int64_t begin, int64_t end) {
  const vera_args *a = context;
  for (int64_t i = begin; i < end; i++) {
    float *row = a->factor + i * a->ld, scale = a->vector[i];
    uint32_t first = (uint32_t)(i * a->stride);
    for (int j = 0; j < a->columns; j++) row[j] = draw(a->key, first + (uint32_t)j, a->bound) * scale;
  }
}

// One linear of one adapter: rows of `columns` values, `ld` apart; those of the projection are `stride` apart.
void vera_expand(float *factor, float *vector, int rows, int columns, int ld, int stride, uint32_t key, float bound) {
  parallel(rows, 1, expand_range, &(vera_args){factor, vector, columns, ld, stride, key, bound});
}

static void reduce_range(void *context, int64_t begin, int64_t end) {
  const vera_args *a = context;
  for (int64_t i = begin; i < end; i++) {
    float *row = a->factor + i * a->ld;
    uint32_t first = (uint32_t)(i * a->stride);
    double sum = 0;
    for (int j = 0; j < a->columns; j++) {
      sum += (double)row[j] * draw(a->key, first + (uint32_t)j, a->bound);
      row[j] = 0;
    }
    a->vector[i] += (float)sum;
  }
}

// The gradient of the vector, added to what it has; that of the factor becomes 0.
void vera_reduce(float *grad, float *vector, int rows, int columns, int ld, int stride, uint32_t key, float bound) {
  parallel(rows, 1, reduce_range, &(vera_args){grad, vector, columns, ld, stride, key, bound});
}
