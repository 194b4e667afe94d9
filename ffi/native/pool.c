// Means of rows, and their gradient.
#include "native.h"
#include <string.h>

typedef struct {
  const int32_t *bounds;
  const float *from;
  float *to;
  int width;
} pool_args;

static void pool_forward_range(void *context, int64_t begin, int64_t end) {
  const pool_args *a = context;
  for (int64_t p = begin; p < end; p++) {
    int32_t first = a->bounds[2 * p], last = a->bounds[2 * p + 1];
    float *y = a->to + p * a->width;
    memset(y, 0, sizeof(float) * (size_t)a->width);
    for (int64_t row = first; row < last; row++)
      for (int i = 0; i < a->width; i++) y[i] += a->from[row * a->width + i];
    for (int i = 0; i < a->width; i++) y[i] /= (float)(last - first);
  }
}
void pool_forward(const float *x, const int32_t *bounds, float *y, int pools, int width) {
  parallel(pools, 1, pool_forward_range, &(pool_args){bounds, x, y, width});
}

static void pool_backward_range(void *context, int64_t begin, int64_t end) {
  const pool_args *a = context;
  for (int64_t p = begin; p < end; p++) {
    int32_t first = a->bounds[2 * p], last = a->bounds[2 * p + 1];
    const float *dy = a->from + p * a->width;
    for (int64_t row = first; row < last; row++)
      for (int i = 0; i < a->width; i++) a->to[row * a->width + i] = dy[i] / (float)(last - first);
  }
}
void pool_backward(const float *dy, const int32_t *bounds, float *dx, int pools, int width) {
  parallel(pools, 1, pool_backward_range, &(pool_args){bounds, dy, dx, width});
}
