// Rows of a value times the sigmoid of a number of each token.
#include "native.h"

typedef struct {
  const float *dy, *x, *gate, *weight, *residual;
  float *out, *dgate;
  int width;
} tokengate_args;

static void forward_range(void *context, int64_t begin, int64_t end) {
  const tokengate_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    int64_t at = m * a->width;
    float s = sigmoid(dot(a->gate + at, a->weight, a->width));
    for (int i = 0; i < a->width; i++) a->out[at + i] = fused(s, a->x[at + i], a->residual[at + i]);
  }
}
void tokengate_forward(const float *x, const float *gate, const float *weight, const float *residual, float *y, int rows,
                       int width) {
  parallel(rows, 16, forward_range, &(tokengate_args){NULL, x, gate, weight, residual, y, NULL, width});
}

static void backward_range(void *context, int64_t begin, int64_t end) {
  const tokengate_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    int64_t at = m * a->width;
    float s = sigmoid(dot(a->gate + at, a->weight, a->width));
    float d = s * (1.0f - s) * dot(a->dy + at, a->x + at, a->width);
    for (int i = 0; i < a->width; i++) {
      a->dgate[at + i] = fused(d, a->weight[i], a->dgate[at + i]);
      a->out[at + i] = s * a->dy[at + i];
    }
  }
}
void tokengate_backward(const float *dy, const float *x, const float *gate, const float *weight, float *dx, float *dgate,
                        int rows, int width) {
  parallel(rows, 16, backward_range, &(tokengate_args){dy, x, gate, weight, NULL, dx, dgate, width});
}
