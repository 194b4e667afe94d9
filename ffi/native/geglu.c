// The gated activation of Gemma's MLP: gelu(gate) up, with the tanh approximation of gelu (Hendrycks and Gimpel 2016), which is
// g sigmoid(2 u), u = sqrt(2 / pi) (g + 0.044715 g^3).
//
// Gate, up and their gradients are columns of wider rows: each has a stride.
#include "native.h"

#define TWICE_ROOT 1.5957691216057308f // 2 sqrt(2 / pi)
#define CUBIC 0.044715f

typedef struct {
  const float *gate, *up, *dh;
  float *to, *dup; // forward: h; backward: dgate
  int gate_stride, up_stride, dgate_stride, dup_stride, width;
} geglu_args;

WIDE static void geglu_forward_range(void *context, int64_t begin, int64_t end) {
  const geglu_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *gate = a->gate + m * a->gate_stride, *up = a->up + m * a->up_stride;
    float *h = a->to + m * a->width;
    for (int i = 0; i < a->width; i++) {
      float g = gate[i];
      h[i] = g * sigmoid(TWICE_ROOT * fused(CUBIC * g * g, g, g)) * up[i];
    }
  }
}
void geglu_forward(const float *gate, int gate_stride, const float *up, int up_stride, float *h, int rows, int width) {
  parallel(rows, 16, geglu_forward_range, &(geglu_args){gate, up, NULL, h, NULL, gate_stride, up_stride, 0, 0, width});
}

WIDE static void geglu_backward_range(void *context, int64_t begin, int64_t end) {
  const geglu_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const float *gate = a->gate + m * a->gate_stride, *up = a->up + m * a->up_stride, *dh = a->dh + m * a->width;
    float *dgate = a->to + m * a->dgate_stride, *dup = a->dup ? a->dup + m * a->dup_stride : NULL;
    for (int i = 0; i < a->width; i++) {
      float g = gate[i], u = up[i], s = sigmoid(TWICE_ROOT * fused(CUBIC * g * g, g, g));
      float slope = TWICE_ROOT * fused(3.0f * CUBIC * g, g, 1.0f);
      dgate[i] = dh[i] * u * s * fused(g * (1.0f - s), slope, 1.0f);
      if (dup) dup[i] = dh[i] * g * s;
    }
  }
}
// dgate and dup may be gate and up themselves; dup may be null.
void geglu_backward(const float *dh, const float *gate, int gate_stride, const float *up, int up_stride, float *dgate,
                    int dgate_stride, float *dup, int dup_stride, int rows, int width) {
  parallel(rows, 16, geglu_backward_range,
           &(geglu_args){gate, up, dh, dgate, dup, gate_stride, up_stride, dgate_stride, dup_stride, width});
}
