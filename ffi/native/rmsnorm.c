// Root mean square norm, each row by itself.
#include "native.h"
#include <math.h>

typedef struct {
  const float *dy, *x, *weight, *residual;
  float *y, *rstd;
  int width;
  float eps;
} norm_args;

static void rmsnorm_forward_range(void *context, int64_t begin, int64_t end) {
  const norm_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *x = a->x + m * a->width;
    float *y = a->y + m * a->width;
    float rstd = 1.0f / sqrtf(dot(x, x, a->width) / (float)a->width + a->eps);
    a->rstd[m] = rstd;
    if (a->residual) {
      const float *residual = a->residual + m * a->width;
      for (int i = 0; i < a->width; i++) y[i] = fused(a->weight[i], x[i] * rstd, residual[i]);
    } else {
      for (int i = 0; i < a->width; i++) y[i] = a->weight[i] * (x[i] * rstd);
    }
  }
}
void rmsnorm_forward(const float *x, const float *weight, const float *residual, float *y, float *rstd, int rows, int width,
                     float eps) {
  parallel(rows, 16, rmsnorm_forward_range, &(norm_args){NULL, x, weight, residual, y, rstd, width, eps});
}

static void rmsnorm_backward_range(void *context, int64_t begin, int64_t end) {
  const norm_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *x = a->x + m * a->width, *dy = a->dy + m * a->width;
    float *dx = a->y + m * a->width, rstd = a->rstd[m], acc[LANES] = {0};
    int i = 0;
    for (; i + LANES <= a->width; i += LANES)
      for (int l = 0; l < LANES; l++) acc[l] += a->weight[i + l] * dy[i + l] * x[i + l];
    for (int l = 0; i < a->width; i++, l++) acc[l] += a->weight[i] * dy[i] * x[i];
    float mean = lanes_sum(acc) * rstd * rstd / (float)a->width;
    if (a->residual) {
      const float *residual = a->residual + m * a->width;
      for (int j = 0; j < a->width; j++) dx[j] = fused(rstd, fused(a->weight[j], dy[j], -(x[j] * mean)), residual[j]);
    } else {
      for (int j = 0; j < a->width; j++) dx[j] = rstd * fused(a->weight[j], dy[j], -(x[j] * mean));
    }
  }
}
void rmsnorm_backward(const float *dy, const float *x, const float *weight, const float *rstd, const float *residual,
                      float *dx, int rows, int width) {
  parallel(rows, 16, rmsnorm_backward_range, &(norm_args){dy, x, weight, residual, dx, (float *)rstd, width, 0});
}
