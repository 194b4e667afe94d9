// Root mean square norm of the first spans of a row, each by itself.
#include "native.h"
#include <math.h>
#include <string.h>

typedef struct {
  const float *x, *weights[2];
  float *y, *rstd;
  int64_t rows;
  int width, sizes[2];
  float eps;
} spans_args;

static void spans_forward_range(void *context, int64_t begin, int64_t end) {
  const spans_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *x = a->x + m * a->width;
    float *y = a->y + m * a->width;
    int at = 0;
    for (int span = 0; span < 2; at += a->sizes[span++]) {
      int size = a->sizes[span];
      float rstd = 1.0f / sqrtf(dot(x + at, x + at, size) / (float)size + a->eps);
      a->rstd[span * a->rows + m] = rstd;
      for (int i = 0; i < size; i++) y[at + i] = a->weights[span][i] * (x[at + i] * rstd);
    }
    memcpy(y + at, x + at, sizeof(float) * (size_t)(a->width - at));
  }
}
void spans_forward(const float *x, const float *first, const float *second, float *y, float *rstd, int rows, int width,
                   int first_size, int second_size, float eps) {
  spans_args a = {x, {first, second}, y, rstd, rows, width, {first_size, second_size}, eps};
  parallel(rows, 16, spans_forward_range, &a);
}

static void spans_backward_range(void *context, int64_t begin, int64_t end) {
  const spans_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *x = a->x + m * a->width;
    float *d = a->y + m * a->width;
    for (int span = 0; span < 2; x += a->sizes[span], d += a->sizes[span], span++) {
      const float *weight = a->weights[span];
      int size = a->sizes[span], i = 0;
      float rstd = a->rstd[span * a->rows + m], acc[LANES] = {0};
      for (; i + LANES <= size; i += LANES)
        for (int l = 0; l < LANES; l++) acc[l] += weight[i + l] * d[i + l] * x[i + l];
      for (int l = 0; i < size; i++, l++) acc[l] += weight[i] * d[i] * x[i];
      float mean = lanes_sum(acc) * rstd * rstd / (float)size;
      for (int j = 0; j < size; j++) d[j] = rstd * fused(weight[j], d[j], -(x[j] * mean));
    }
  }
}
void spans_backward(float *dy, const float *x, const float *first, const float *second, const float *rstd, int rows, int width,
                    int first_size, int second_size) {
  spans_args a = {x, {first, second}, dy, (float *)rstd, rows, width, {first_size, second_size}, 0};
  parallel(rows, 16, spans_backward_range, &a);
}
