// Heads of q that each have a gate after them, next to k and v (Qwen 3.5).
#include "native.h"
#include <string.h>

typedef struct {
  const float *x, *dy;
  float *gated, *y;
  int heads, k_heads, dim;
} heads_args;

static inline int64_t gated_width(const heads_args *a) { return 2 * (int64_t)(a->heads + a->k_heads) * a->dim; }
static inline int64_t plain_width(const heads_args *a) { return (a->heads + 2 * (int64_t)a->k_heads) * a->dim; }

static void split_range(void *context, int64_t begin, int64_t end) {
  const heads_args *a = context;
  size_t head = sizeof(float) * (size_t)a->dim;
  for (int64_t m = begin; m < end; m++) {
    const float *from = a->gated + m * gated_width(a);
    float *to = a->y + m * plain_width(a);
    for (int h = 0; h < a->heads; h++) memcpy(to + h * a->dim, from + 2 * h * a->dim, head);
    memcpy(to + a->heads * a->dim, from + 2 * a->heads * a->dim, 2 * head * (size_t)a->k_heads);
  }
}
void heads_split(const float *gated, float *y, int rows, int heads, int k_heads, int dim) {
  parallel(rows, 16, split_range, &(heads_args){NULL, NULL, (float *)gated, y, heads, k_heads, dim});
}

static void join_range(void *context, int64_t begin, int64_t end) {
  const heads_args *a = context;
  size_t head = sizeof(float) * (size_t)a->dim;
  for (int64_t m = begin; m < end; m++) {
    float *to = a->gated + m * gated_width(a);
    const float *from = a->dy + m * plain_width(a);
    for (int h = 0; h < a->heads; h++) memcpy(to + 2 * h * a->dim, from + h * a->dim, head);
    memcpy(to + 2 * a->heads * a->dim, from + a->heads * a->dim, 2 * head * (size_t)a->k_heads);
  }
}
void heads_join(const float *dy, float *dgated, int rows, int heads, int k_heads, int dim) {
  parallel(rows, 16, join_range, &(heads_args){NULL, dy, dgated, NULL, heads, k_heads, dim});
}

static void gate_range(void *context, int64_t begin, int64_t end) {
  const heads_args *a = context;
  for (int64_t piece = begin; piece < end; piece++) {
    const float *gate = a->gated + piece / a->heads * gated_width(a) + (2 * (piece % a->heads) + 1) * a->dim;
    for (int64_t i = piece * a->dim, j = 0; j < a->dim; i++, j++) a->y[i] = a->x[i] * sigmoid(gate[j]);
  }
}
void heads_gate(const float *x, const float *gated, float *y, int rows, int heads, int k_heads, int dim) {
  heads_args a = {x, NULL, (float *)gated, y, heads, k_heads, dim};
  parallel((int64_t)rows * heads, 16, gate_range, &a);
}

static void gate_backward_range(void *context, int64_t begin, int64_t end) {
  const heads_args *a = context;
  for (int64_t piece = begin; piece < end; piece++) {
    float *gate = a->gated + piece / a->heads * gated_width(a) + (2 * (piece % a->heads) + 1) * a->dim;
    for (int64_t i = piece * a->dim, j = 0; j < a->dim; i++, j++) {
      float d = a->dy[i], s = sigmoid(gate[j]);
      gate[j] = d * a->x[i] * s * (1.0f - s);
      a->y[i] = d * s;
    }
  }
}
void heads_gate_backward(const float *dy, const float *x, float *gated, float *dx, int rows, int heads, int k_heads, int dim) {
  heads_args a = {x, dy, gated, dx, heads, k_heads, dim};
  parallel((int64_t)rows * heads, 16, gate_backward_range, &a);
}
