// Root mean square norm of groups of features, which a gate's SiLU has been multiplied by first.
#include "native.h"
#include <math.h>

typedef struct {
  const float *dy, *x, *gate, *weight;
  float *y, *dgate;
  int64_t gate_stride, dgate_stride; // from one row to the next
  int groups, dim;
  float eps;
} group_args;

static inline float silu(float x) { return x * sigmoid(x); }

// 1 / the root mean square of the gated group.
static float rstd_of(const group_args *a, const float *x, const float *gate) {
  float sum = 0;
  for (int i = 0; i < a->dim; i++) {
    float u = x[i] * silu(gate[i]);
    sum += u * u;
  }
  return 1.0f / sqrtf(sum / (float)a->dim + a->eps);
}

static void forward_range(void *context, int64_t begin, int64_t end) {
  const group_args *a = context;
  for (int64_t piece = begin; piece < end; piece++) {
    int64_t column = piece % a->groups * a->dim;
    const float *x = a->x + piece * a->dim, *gate = a->gate + piece / a->groups * a->gate_stride + column;
    float *y = a->y + piece * a->dim, rstd = rstd_of(a, x, gate);
    for (int i = 0; i < a->dim; i++) y[i] = a->weight[column + i] * (x[i] * silu(gate[i]) * rstd);
  }
}
void groupnorm_forward(const float *x, const float *gate, int64_t gate_stride, const float *weight, float *y, int rows,
                       int groups, int dim, float eps) {
  group_args a = {NULL, x, gate, weight, y, NULL, gate_stride, 0, groups, dim, eps};
  parallel((int64_t)rows * groups, 16, forward_range, &a);
}

static void backward_range(void *context, int64_t begin, int64_t end) {
  const group_args *a = context;
  for (int64_t piece = begin; piece < end; piece++) {
    int64_t m = piece / a->groups, column = piece % a->groups * a->dim;
    const float *x = a->x + piece * a->dim, *dy = a->dy + piece * a->dim, *gate = a->gate + m * a->gate_stride + column;
    float *dx = a->y + piece * a->dim, *dgate = a->dgate + m * a->dgate_stride + column;
    float rstd = rstd_of(a, x, gate), along = 0;
    for (int i = 0; i < a->dim; i++) along += dy[i] * a->weight[column + i] * x[i] * silu(gate[i]);
    along *= rstd * rstd / (float)a->dim;
    for (int i = 0; i < a->dim; i++) {
      float z = gate[i], s = sigmoid(z), du = rstd * fused(dy[i], a->weight[column + i], -(x[i] * z * s * along));
      dgate[i] = du * x[i] * s * fused(z, 1.0f - s, 1.0f);
      dx[i] = du * z * s;
    }
  }
}
void groupnorm_backward(const float *dy, const float *x, const float *gate, int64_t gate_stride, const float *weight, float *dx,
                        float *dgate, int64_t dgate_stride, int rows, int groups, int dim, float eps) {
  group_args a = {dy, x, gate, weight, dx, dgate, gate_stride, dgate_stride, groups, dim, eps};
  parallel((int64_t)rows * groups, 16, backward_range, &a);
}
