// Rotary embedding of q and k, of whole heads or of their first features, with the norm of each head before it.
#include "native.h"
#include <math.h>
#include <string.h>

typedef struct {
  const float *qkv, *cos, *sin, *q_scale, *q_weight, *k_weight;
  float *out;
  const int32_t *positions;
  int q_heads, k_heads, dim, rotated;
  float eps;
} rope_args;

static float head_rstd(const float *x, int dim, float eps) { return 1.0f / sqrtf(dot(x, x, dim) / (float)dim + eps); }

WIDE static void rope_forward_range(void *context, int64_t begin, int64_t end) {
  const rope_args *a = context;
  int dim = a->dim, half = a->rotated / 2, rotated = a->q_heads + a->k_heads;
  int64_t width = (int64_t)(rotated + a->k_heads) * dim;
  for (int64_t m = begin; m < end; m++) {
    int64_t position = a->positions[m];
    const float *cos = a->cos + position * half, *sin = a->sin + position * half;
    for (int h = 0; h < rotated; h++) {
      const float *x = a->qkv + m * width + (int64_t)h * dim;
      float *out = a->out + m * width + (int64_t)h * dim;
      if (a->q_weight) {
        const float *weight = h < a->q_heads ? a->q_weight : a->k_weight;
        float rstd = head_rstd(x, dim, a->eps);
        for (int i = 0; i < dim; i++) out[i] = weight[i] * (x[i] * rstd);
        x = out;
      }
      for (int i = 0; i < half; i++) {
        float lo = x[i], hi = x[i + half];
        out[i] = fused(lo, cos[i], -(hi * sin[i]));
        out[i + half] = fused(hi, cos[i], lo * sin[i]);
      }
      if (out != x) memcpy(out + 2 * half, x + 2 * half, sizeof(float) * (size_t)(dim - 2 * half));
      if (a->q_scale && h < a->q_heads)
        for (int i = 0; i < dim; i++) out[i] *= a->q_scale[position];
    }
    if (a->out != a->qkv) {
      int64_t v = m * width + (int64_t)rotated * dim;
      memcpy(a->out + v, a->qkv + v, sizeof(float) * (size_t)(a->k_heads * dim));
    }
  }
}
void rope_forward(const float *qkv, const int32_t *positions, const float *cos, const float *sin, const float *q_scale,
                  const float *q_weight, const float *k_weight, float *out, int rows, int q_heads, int k_heads, int dim,
                  int rotated, float eps) {
  rope_args a = {qkv, cos, sin, q_scale, q_weight, k_weight, out, positions, q_heads, k_heads, dim, rotated, eps};
  parallel(rows, 16, rope_forward_range, &a);
}

WIDE static void rope_backward_range(void *context, int64_t begin, int64_t end) {
  const rope_args *a = context;
  int dim = a->dim, half = a->rotated / 2, rotated = a->q_heads + a->k_heads;
  int64_t width = (int64_t)(rotated + a->k_heads) * dim;
  for (int64_t m = begin; m < end; m++) {
    int64_t position = a->positions[m];
    const float *cos = a->cos + position * half, *sin = a->sin + position * half;
    for (int h = 0; h < rotated; h++) {
      float *d = a->out + m * width + (int64_t)h * dim;
      if (a->q_scale && h < a->q_heads)
        for (int i = 0; i < dim; i++) d[i] *= a->q_scale[position];
      for (int i = 0; i < half; i++) {
        float lo = d[i], hi = d[i + half];
        d[i] = fused(lo, cos[i], hi * sin[i]);
        d[i + half] = fused(hi, cos[i], -(lo * sin[i]));
      }
      if (!a->q_weight) continue;
      const float *x = a->qkv + m * width + (int64_t)h * dim;
      const float *weight = h < a->q_heads ? a->q_weight : a->k_weight;
      float rstd = head_rstd(x, dim, a->eps), mean = 0;
      for (int i = 0; i < dim; i++) mean += weight[i] * d[i] * x[i];
      mean *= rstd * rstd / (float)dim;
      for (int i = 0; i < dim; i++) d[i] = rstd * fused(weight[i], d[i], -(x[i] * mean));
    }
  }
}
void rope_backward(float *dqkv, const int32_t *positions, const float *cos, const float *sin, const float *q_scale,
                   const float *qkv, const float *q_weight, const float *k_weight, int rows, int q_heads, int k_heads, int dim,
                   int rotated, float eps) {
  rope_args a = {qkv, cos, sin, q_scale, q_weight, k_weight, dqkv, positions, q_heads, k_heads, dim, rotated, eps};
  parallel(rows, 16, rope_backward_range, &a);
}
