// Low-rank rows between those of the batch and the sorted ones of experts: src/ops/expert-rows.ts.
#include "native.h"
#include <string.h>

typedef struct {
  float *s, *low;
  const int *place;
  const float *weights;
  int ld, per_token, width;
} low_args;

static void gather_range(void *context, int64_t begin, int64_t end) {
  const low_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    const int *places = a->place + m * a->per_token;
    for (int i = 0; i < a->width; i++) {
      float sum = 0;
      for (int j = 0; j < a->per_token; j++) {
        if (places[j] < 0) continue;
        float x = a->s[(int64_t)places[j] * a->ld + i];
        sum += a->weights ? a->weights[m * a->per_token + j] * x : x;
      }
      a->low[m * a->width + i] = sum;
    }
  }
}
// Rows of the batch: the sum of `width` columns over the slots of each, in their order; `weights` NULL: each counts once.
void low_gather(const float *s, int ld, const int *place, const float *weights, float *low, int rows, int per_token, int width) {
  parallel(rows, 16, gather_range, &(low_args){(float *)s, low, place, weights, ld, per_token, width});
}

typedef struct {
  float *s;
  const float *low;
  const int *low_at, *source;
  int ld, per_token, width, tile;
} spread_args;

static void spread_range(void *context, int64_t begin, int64_t end) {
  const spread_args *a = context;
  for (int64_t p = begin; p < end; p++) {
    int pair = a->source[p], m = pair / a->per_token;
    float *to = a->s + p * a->ld;
    const float *from = a->low + 16 * (int64_t)a->low_at[pair < 0 ? 0 : m / a->tile] + (int64_t)(m % a->tile) * a->width;
    if (pair < 0) memset(to, 0, sizeof(float) * (size_t)a->width);
    else memcpy(to, from, sizeof(float) * (size_t)a->width);
  }
}
// Sorted rows of one adapter: those of the batch that they are of, of which `tile` at a time begin at low_at, zeros in padding.
void low_spread(float *s, int ld, const int *source, const float *low, const int *low_at, int tile, int rows, int per_token,
                int width) {
  parallel(rows, 16, spread_range, &(spread_args){s, low, low_at, source, ld, per_token, width, tile});
}
