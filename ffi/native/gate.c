// A value gated by the sigmoid of another, element by element.
#include "native.h"

typedef struct {
  const float *dy, *x, *gate;
  float *out, *dgate;
} gate_args;

static void gate_forward_range(void *context, int64_t begin, int64_t end) {
  const gate_args *a = context;
  for (int64_t i = begin; i < end; i++) a->out[i] = a->x[i] * sigmoid(a->gate[i]);
}
void gate_forward(const float *x, const float *gate, float *y, int64_t size) {
  parallel(size, 4096, gate_forward_range, &(gate_args){NULL, x, gate, y, NULL});
}

static void gate_backward_range(void *context, int64_t begin, int64_t end) {
  const gate_args *a = context;
  for (int64_t i = begin; i < end; i++) {
    float d = a->dy[i], s = sigmoid(a->gate[i]);
    a->dgate[i] = d * a->x[i] * s * (1.0f - s);
    a->out[i] = d * s;
  }
}
void gate_backward(const float *dy, const float *x, const float *gate, float *dx, float *dgate, int64_t size) {
  parallel(size, 4096, gate_backward_range, &(gate_args){dy, x, gate, dx, dgate});
}
