// Rows from the batch to the sorted ones of experts, and back: src/ops/combine.ts, experts.ts.
#include "native.h"
#include <string.h>

typedef struct {
  const float *from;
  const int *pairs; // of each sorted row, or the sorted row of each pair
  const float *numbers, *start;
  float *to;
  int per_token, width, row, ld;
} rows_args;

static void gather_range(void *context, int64_t begin, int64_t end) {
  const rows_args *a = context;
  for (int64_t i = begin; i < end; i++) {
    int pair = a->pairs[a->row + i];
    float *to = a->to + i * a->width;
    if (pair < 0) memset(to, 0, sizeof(float) * (size_t)a->width);
    else memcpy(to, a->from + (int64_t)(pair / a->per_token) * a->width, sizeof(float) * (size_t)a->width);
  }
}
// Sorted rows [row, row + rows): those of the batch that they are of, zeros in padding.
void expert_rows(const float *x, const int *source, int per_token, int row, int rows, int width, float *to) {
  parallel(rows, 16, gather_range, &(rows_args){x, source, NULL, NULL, to, per_token, width, row, width});
}

static void weigh_range(void *context, int64_t begin, int64_t end) {
  const rows_args *a = context;
  for (int64_t i = begin; i < end; i++) {
    int pair = a->pairs[a->row + i];
    float number = pair < 0 ? 0 : a->numbers[pair];
    for (int j = 0; j < a->width; j++) a->to[i * a->width + j] = pair < 0 ? 0 : number * a->from[i * a->ld + j];
  }
}
// Rows `ld` apart, each times its pair's number; the first is sorted row `row`.
void rows_weigh(const float *from, int ld, const float *numbers, const int *source, int row, int rows, int width, float *to) {
  parallel(rows, 16, weigh_range, &(rows_args){from, source, numbers, NULL, to, 1, width, row, ld});
}

static void combine_range(void *context, int64_t begin, int64_t end) {
  const rows_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    float *to = a->to + m * a->width;
    const int *places = a->pairs + m * a->per_token;
    for (int i = 0; i < a->width; i++) {
      float sum = a->start ? a->start[m * a->width + i] : 0;
      for (int j = 0; j < a->per_token; j++) {
        if (places[j] < 0) continue;
        float x = a->from[(int64_t)places[j] * a->width + i];
        sum += a->numbers ? a->numbers[m * a->per_token + j] * x : x;
      }
      to[i] = sum;
    }
  }
}
// Sums over the slots of each token, in their order, on top of `start`; `numbers` NULL: each counts once.
void combine(const float *from, const int *place, const float *numbers, const float *start, float *to, int rows, int per_token,
             int width) {
  parallel(rows, 8, combine_range, &(rows_args){from, place, numbers, start, to, per_token, width, 0, width});
}

typedef struct {
  const float *dout, *bias;
  const int *experts;
  float *dweights;
  int per_token, width;
} bias_args;

static void bias_range(void *context, int64_t begin, int64_t end) {
  const bias_args *a = context;
  for (int64_t m = begin; m < end; m++)
    for (int j = 0; j < a->per_token; j++) {
      int expert = a->experts[m * a->per_token + j];
      if (expert >= 0)
        a->dweights[m * a->per_token + j] += dot(a->dout + m * a->width, a->bias + (int64_t)expert * a->width, a->width);
    }
}
void bias_weight_grad(const float *dout, const float *bias, const int *experts, float *dweights, int rows, int per_token, int width) {
  parallel(rows, 8, bias_range, &(bias_args){dout, bias, experts, dweights, per_token, width});
}
