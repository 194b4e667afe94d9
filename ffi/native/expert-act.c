// The activation between an expert's two products, and the gradient of the routing weights: src/ops/expert-act.ts.
#include "native.h"

typedef struct {
  float *dact;
  const float *gate_up;
  const int *source;
  const float *weights;
  float *out, *dweights;
  int width, kind;
  float limit, alpha; // limit 0: no clamp
} act_args;

enum { HALVES, INTERLEAVED, SQUARES }; // how gate and up lie in a row; or the square of what is above 0, without a gate

// Features of a row between the products.
static inline int64_t row_width(const act_args *a) { return a->kind == SQUARES ? a->width : 2 * (int64_t)a->width; }

static inline float positive(float x) { return x > 0 ? x : 0; }

// Where gate and up of column i lie in a row.
static inline int gate_at(const act_args *a, int i) { return a->kind == INTERLEAVED ? 2 * i : i; }
static inline int up_at(const act_args *a, int i) { return a->kind == INTERLEAVED ? 2 * i + 1 : i + a->width; }

static inline float within(float x, float least, float most) { return x < least ? least : x > most ? most : x; }

static inline float activated(const act_args *a, float gate, float up) {
  if (a->limit == 0) return gate * sigmoid(gate) * up;
  float g = gate > a->limit ? a->limit : gate;
  return (within(up, -a->limit, a->limit) + 1) * g * sigmoid(a->alpha * g);
}

static void forward_range(void *context, int64_t begin, int64_t end) {
  const act_args *a = context;
  for (int64_t p = begin; p < end; p++)
    for (int i = 0; i < a->width; i++) {
      const float *row = a->gate_up + p * row_width(a);
      float *out = a->out + p * a->width + i;
      *out = a->kind == SQUARES ? positive(row[i]) * positive(row[i]) : activated(a, row[gate_at(a, i)], row[up_at(a, i)]);
    }
}
void expert_act_forward(const float *gate_up, float *act, const int *first_row, int experts, int width, int kind,
                        float limit, float alpha) {
  act_args a = {NULL, gate_up, NULL, NULL, act, NULL, width, kind, limit, alpha};
  parallel(first_row[experts], 16, forward_range, &a);
}

static void backward_range(void *context, int64_t begin, int64_t end) {
  const act_args *a = context;
  for (int64_t p = begin; p < end; p++) {
    const float *row = a->gate_up + p * row_width(a);
    float *dact = a->dact + p * a->width;
    float *out = a->out + p * row_width(a), acc[LANES] = {0};
    int pair = a->source[p];
    if (pair < 0) {
      for (int64_t i = 0; i < row_width(a); i++) out[i] = 0;
      for (int i = 0; i < a->width; i++) dact[i] = 0;
      continue;
    }
    float weight = a->weights[pair];
    for (int i = 0; i < a->width && a->kind == SQUARES; i++) {
      float up = positive(row[i]), d = dact[i];
      acc[i % LANES] += d * up * up;
      dact[i] = weight * up * up;
      out[i] = 2 * weight * d * up;
    }
    for (int i = 0; i < a->width && a->kind != SQUARES; i++) {
      float gate = row[gate_at(a, i)], up = row[up_at(a, i)], d = dact[i] * weight, h = activated(a, gate, up), dgate, dup;
      acc[i % LANES] += dact[i] * h;
      dact[i] = weight * h;
      if (a->limit == 0) {
        float s = sigmoid(gate);
        dgate = d * up * s * fused(gate, 1.0f - s, 1.0f);
        dup = d * gate * s;
      } else {
        float g = gate > a->limit ? a->limit : gate, u = within(up, -a->limit, a->limit), s = sigmoid(a->alpha * g);
        dgate = gate > a->limit ? 0 : d * (u + 1) * s * fused(a->alpha * g, 1.0f - s, 1.0f);
        dup = up < -a->limit || up > a->limit ? 0 : d * g * s;
      }
      out[gate_at(a, i)] = dgate;
      out[up_at(a, i)] = dup;
    }
    a->dweights[pair] = lanes_sum(acc);
  }
}
void expert_act_backward(float *dact, const float *gate_up, const int *source, const float *weights, const int *first_row,
                         float *dgate_up, float *dweights, int experts, int pairs, int width, int kind, float limit,
                         float alpha) {
  for (int i = 0; i < pairs; i++) dweights[i] = 0;
  act_args a = {dact, gate_up, source, weights, dgate_up, dweights, width, kind, limit, alpha};
  parallel(first_row[experts], 16, backward_range, &a);
}
