// The gated activation of the MLP: silu(gate) * up.
#include "native.h"

typedef struct {
  const float *dh, *gate_up;
  float *out;
  int width;
} swiglu_args;

WIDE static void swiglu_forward_range(void *context, int64_t begin, int64_t end) {
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

WIDE static void swiglu_backward_range(void *context, int64_t begin, int64_t end) {
  const swiglu_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *gate = a->gate_up + m * 2 * a->width, *up = gate + a->width, *dh = a->dh + m * a->width;
    float *dgate = a->out + m * 2 * a->width, *dup = dgate + a->width;
    for (int i = 0; i < a->width; i++) {
      float g = gate[i], u = up[i], s = sigmoid(g);
      dgate[i] = dh[i] * u * s * fused(g, 1.0f - s, 1.0f);
      dup[i] = dh[i] * g * s;
    }
  }
}
void swiglu_backward(const float *dh, const float *gate_up, float *dgate_up, int rows, int width) {
  parallel(rows, 16, swiglu_backward_range, &(swiglu_args){dh, gate_up, dgate_up, width});
}
