// Root mean square norm of each head, times the SiLU of a gate.
#include "native.h"
#include <math.h>

typedef struct {
  const float *dy, *x, *gate, *weight;
  float *y, *dgate;
  int64_t gate_stride, dgate_stride; // from one row to the next
  int heads, dim;
  float eps;
} gated_args;

WIDE static void forward_range(void *context, int64_t begin, int64_t end) {
  const gated_args *a = context;
  int dim = a->dim;
  for (int64_t piece = begin; piece < end; piece++) {
    const float *x = a->x + piece * dim;
    const float *gate = a->gate + piece / a->heads * a->gate_stride + piece % a->heads * dim;
    float *y = a->y + piece * dim, rstd = 1.0f / sqrtf(dot(x, x, dim) / (float)dim + a->eps);
    for (int i = 0; i < dim; i++) y[i] = a->weight[i] * (x[i] * rstd) * (gate[i] * sigmoid(gate[i]));
  }
}
void gatednorm_forward(const float *x, const float *gate, int64_t gate_stride, const float *weight, float *y, int rows,
                       int heads, int dim, float eps) {
  gated_args a = {NULL, x, gate, weight, y, NULL, gate_stride, 0, heads, dim, eps};
  parallel((int64_t)rows * heads, 16, forward_range, &a);
}

WIDE static void backward_range(void *context, int64_t begin, int64_t end) {
  const gated_args *a = context;
  int dim = a->dim;
  for (int64_t piece = begin; piece < end; piece++) {
    int64_t m = piece / a->heads, column = piece % a->heads * dim;
    const float *x = a->x + piece * dim, *dy = a->dy + piece * dim, *gate = a->gate + m * a->gate_stride + column;
    float *dx = a->y + piece * dim, *dgate = a->dgate + m * a->dgate_stride + column;
    float rstd = 1.0f / sqrtf(dot(x, x, dim) / (float)dim + a->eps), along = 0;
    for (int i = 0; i < dim; i++) {
      float z = gate[i], s = sigmoid(z), d = dy[i], normed = a->weight[i] * x[i] * rstd;
      dgate[i] = d * normed * s * fused(z, 1.0f - s, 1.0f);
      dx[i] = d * a->weight[i] * z * s;
      along += dx[i] * x[i];
    }
    along *= rstd * rstd / (float)dim;
    for (int i = 0; i < dim; i++) dx[i] = rstd * fused(-x[i], along, dx[i]);
  }
}
void gatednorm_backward(const float *dy, const float *x, const float *gate, int64_t gate_stride, const float *weight, float *dx,
                        float *dgate, int64_t dgate_stride, int rows, int heads, int dim, float eps) {
  gated_args a = {dy, x, gate, weight, dx, dgate, gate_stride, dgate_stride, heads, dim, eps};
  parallel((int64_t)rows * heads, 16, backward_range, &a);
}
