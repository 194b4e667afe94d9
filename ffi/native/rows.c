// Kernels that treat each row by itself and need no matrix product: embedding, gather and scatter, RMSNorm, SwiGLU.
#include "native.h"
#include <math.h>
#include <string.h>

typedef struct {
  const int32_t *rows;
  const float *from;
  float *to;
  int width;
} move_args;

static void gather_range(void *context, int64_t begin, int64_t end) {
  const move_args *a = context;
  size_t bytes = sizeof(float) * (size_t)a->width;
  for (int64_t t = begin; t < end; t++)
    if (a->rows[t] < 0) memset(a->to + t * a->width, 0, bytes);
    else memcpy(a->to + t * a->width, a->from + (int64_t)a->rows[t] * a->width, bytes);
}
void rows_gather(const float *x, const int32_t *rows, float *y, int count, int width) {
  parallel(count, 64, gather_range, &(move_args){rows, x, y, width});
}

static void scatter_range(void *context, int64_t begin, int64_t end) {
  const move_args *a = context;
  for (int64_t t = begin; t < end; t++)
    if (a->rows[t] >= 0)
      memcpy(a->to + (int64_t)a->rows[t] * a->width, a->from + t * a->width, sizeof(float) * (size_t)a->width);
}
void rows_scatter(const float *dy, const int32_t *rows, float *dx, int count, int width) {
  parallel(count, 64, scatter_range, &(move_args){rows, dy, dx, width});
}

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
      for (int i = 0; i < a->width; i++) y[i] = residual[i] + a->weight[i] * (x[i] * rstd);
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
      for (int j = 0; j < a->width; j++) dx[j] = residual[j] + rstd * (a->weight[j] * dy[j] - x[j] * mean);
    } else {
      for (int j = 0; j < a->width; j++) dx[j] = rstd * (a->weight[j] * dy[j] - x[j] * mean);
    }
  }
}
void rmsnorm_backward(const float *dy, const float *x, const float *weight, const float *rstd, const float *residual,
                      float *dx, int rows, int width) {
  parallel(rows, 16, rmsnorm_backward_range, &(norm_args){dy, x, weight, residual, dx, (float *)rstd, width, 0});
}

typedef struct {
  const float *dh, *gate_up;
  float *out;
  int width;
} swiglu_args;

static void swiglu_forward_range(void *context, int64_t begin, int64_t end) {
  const swiglu_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *gate = a->gate_up + m * 2 * a->width, *up = gate + a->width;
    float *h = a->out + m * a->width;
    for (int i = 0; i < a->width; i++) h[i] = gate[i] * sigmoid(gate[i]) * up[i];
  }
}
void swiglu_forward(const float *gate_up, float *h, int rows, int width) {
  parallel(rows, 16, swiglu_forward_range, &(swiglu_args){NULL, gate_up, h, width});
}

static void swiglu_backward_range(void *context, int64_t begin, int64_t end) {
  const swiglu_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *gate = a->gate_up + m * 2 * a->width, *up = gate + a->width, *dh = a->dh + m * a->width;
    float *dgate = a->out + m * 2 * a->width, *dup = dgate + a->width;
    for (int i = 0; i < a->width; i++) {
      float g = gate[i], u = up[i], s = sigmoid(g);
      dgate[i] = dh[i] * u * s * (1.0f + g * (1.0f - s));
      dup[i] = dh[i] * g * s;
    }
  }
}
void swiglu_backward(const float *dh, const float *gate_up, float *dgate_up, int rows, int width) {
  parallel(rows, 16, swiglu_backward_range, &(swiglu_args){dh, gate_up, dgate_up, width});
}
