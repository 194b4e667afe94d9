// Values of attention that are normalised without a weight, and keys and values that layers share.
#include "native.h"
#include <math.h>
#include <string.h>

typedef struct {
  const float *from, *x;
  float *to;
  int in_heads, heads, k_heads, source, dim; // source: the head that the first value is made of
  float eps;
} value_args;

static float head_rstd(const float *x, int dim, float eps) { return 1.0f / sqrtf(dot(x, x, dim) / (float)dim + eps); }

static void value_norm_forward_range(void *context, int64_t begin, int64_t end) {
  const value_args *a = context;
  int64_t dim = a->dim, copied = (a->heads + a->k_heads) * dim, width = copied + a->k_heads * dim;
  for (int64_t m = begin; m < end; m++) {
    const float *row = a->from + m * a->in_heads * dim;
    float *to = a->to + m * width;
    memcpy(to, row, sizeof(float) * (size_t)copied);
    for (int c = 0; c < a->k_heads; c++) {
      const float *x = row + (a->source + c) * dim;
      float *y = to + copied + c * dim, rstd = head_rstd(x, a->dim, a->eps);
      for (int i = 0; i < a->dim; i++) y[i] = x[i] * rstd;
    }
  }
}
void value_norm_forward(const float *x, float *y, int rows, int in_heads, int heads, int k_heads, int source, int dim, float eps) {
  parallel(rows, 16, value_norm_forward_range, &(value_args){x, NULL, y, in_heads, heads, k_heads, source, dim, eps});
}

static void value_norm_backward_range(void *context, int64_t begin, int64_t end) {
  const value_args *a = context;
  int64_t dim = a->dim, copied = (a->heads + a->k_heads) * dim, width = copied + a->k_heads * dim;
  for (int64_t m = begin; m < end; m++) {
    const float *dy = a->from + m * width;
    float *dx = a->to + m * a->in_heads * dim;
    memcpy(dx, dy, sizeof(float) * (size_t)copied);
    for (int c = 0; c < a->k_heads; c++) {
      const float *x = a->x + m * a->in_heads * dim + (a->source + c) * dim, *d = dy + copied + c * dim;
      float *to = dx + (a->source + c) * dim, rstd = head_rstd(x, a->dim, a->eps);
      float mean = dot(d, x, a->dim) * rstd * rstd / (float)a->dim;
      int adds = a->source < a->heads + a->k_heads; // to what the keys have
      for (int i = 0; i < a->dim; i++) to[i] = fused(rstd, fused(-x[i], mean, d[i]), adds ? to[i] : 0);
    }
  }
}
void value_norm_backward(const float *dy, const float *x, float *dx, int rows, int in_heads, int heads, int k_heads, int source,
                         int dim, float eps) {
  parallel(rows, 16, value_norm_backward_range, &(value_args){dy, x, dx, in_heads, heads, k_heads, source, dim, eps});
}

typedef struct {
  const float *from;
  float *to;
  int64_t from_stride, to_stride;
  int width, adds;
} column_args;

static void columns_range(void *context, int64_t begin, int64_t end) {
  const column_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *from = a->from + m * a->from_stride;
    float *to = a->to + m * a->to_stride;
    if (a->adds)
      for (int i = 0; i < a->width; i++) to[i] += from[i];
    else memcpy(to, from, sizeof(float) * (size_t)a->width);
  }
}
void columns_copy(const float *from, int from_stride, float *to, int to_stride, int rows, int width, int adds) {
  parallel(rows, 64, columns_range, &(column_args){from, to, from_stride, to_stride, width, adds});
}
