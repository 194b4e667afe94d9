// The square of what is above 0.
#include "native.h"

typedef struct {
  const float *dy, *x;
  float *y;
} square_args;

static inline float positive(float x) { return x > 0 ? x : 0; }

static void forward_range(void *context, int64_t begin, int64_t end) {
  const square_args *a = context;
  for (int64_t i = begin; i < end; i++) a->y[i] = positive(a->x[i]) * positive(a->x[i]);
}
void squaredrelu_forward(const float *x, float *y, int64_t count) {
  parallel(count, 4096, forward_range, &(square_args){NULL, x, y});
}

static void backward_range(void *context, int64_t begin, int64_t end) {
  const square_args *a = context;
  for (int64_t i = begin; i < end; i++) a->y[i] = 2 * positive(a->x[i]) * a->dy[i];
}
void squaredrelu_backward(const float *dy, const float *x, float *dx, int64_t count) {
  parallel(count, 4096, backward_range, &(square_args){dy, x, dx});
}
